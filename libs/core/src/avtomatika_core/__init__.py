"""What the orchestrator decides, and nothing of how it is done: values and pure functions."""
