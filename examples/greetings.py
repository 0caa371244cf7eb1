"""A blueprint that has its work done by a worker: `python examples/greetings.py`."""

from typing import Any

from avtomatika import ActionFactory, OrchestratorEngine, StateMachineBlueprint

greetings = StateMachineBlueprint("greetings", api_version="v1", api_endpoint="/jobs/greetings")


@greetings.handler_for("ask", is_start=True)
async def ask(actions: ActionFactory, name: str = "world") -> None:
    """`name` is looked up in the job's data; without one the default is taken."""
    actions.dispatch_task(
        task_type="greet",
        params={"name": name},
        transitions={"success": "finished", "failure": "failed"},
    )


@greetings.handler_for("finished", is_end=True)
async def finished(state_history: dict[str, Any]) -> None:
    """What the worker returned has been merged into `state_history`."""
    print(state_history["greeting"], flush=True)


@greetings.handler_for("failed", is_end=True)
async def failed() -> None:
    """The job's `error_message` says why the task failed."""


if __name__ == "__main__":
    engine = OrchestratorEngine()
    engine.register_blueprint(greetings)
    engine.run()
