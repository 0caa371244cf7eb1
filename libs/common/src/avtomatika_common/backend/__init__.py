"""What the orchestrator keeps outside a process: ports in its own words, on memory and on Redis."""
