"""Jobs whose tasks the interop suite does by hand."""

from typing import Any

from avtomatika import StateMachineBlueprint
from avtomatika.context import ActionFactory


def _blueprint(name: str) -> StateMachineBlueprint:
    return StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")


async def _end() -> None:
    pass


def one_task() -> StateMachineBlueprint:
    """One task of type `resize`; a result's status may be `success` or `needs_review`."""
    blueprint = _blueprint("one_task")

    @blueprint.handler_for("start", is_start=True)
    async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.dispatch_task(
            initial_data.get("type", "resize"),
            initial_data.get("params", {}),
            transitions={"success": "done", "needs_review": "reviewed"},
            result_timeout_seconds=initial_data.get("result_timeout_seconds"),
        )

    blueprint.handler_for("done", is_end=True)(_end)
    blueprint.handler_for("reviewed", is_end=True)(_end)
    return blueprint


def two_tasks() -> StateMachineBlueprint:
    """A task `resize`, then another: the first is done while the job goes on."""
    blueprint = _blueprint("two_tasks")

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("resize", {"n": 1}, transitions={"success": "second"})

    @blueprint.handler_for("second")
    async def second(actions: ActionFactory) -> None:
        actions.dispatch_task("resize", {"n": 2}, transitions={"success": "done"})

    blueprint.handler_for("done", is_end=True)(_end)
    return blueprint


def branches() -> StateMachineBlueprint:
    """Two branches; `state_history["joined"]` has their results."""
    blueprint = _blueprint("branches")

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        tasks = [{"type": "resize", "params": {"n": number}} for number in range(2)]
        actions.dispatch_parallel(tasks, aggregate_into="join")

    @blueprint.aggregator_for("join")
    async def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history["joined"] = aggregation_results
        actions.transition_to("done")

    blueprint.handler_for("done", is_end=True)(_end)
    return blueprint
