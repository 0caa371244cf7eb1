"""Blueprints as the tests of requirements write them: a line per state."""

from collections.abc import Callable
from typing import Any

from avtomatika import StateMachineBlueprint
from avtomatika.context import ActionFactory


async def _end() -> None:
    pass


def a_blueprint(
    name: str, *, ends: tuple[str, ...] = ("done",), **handlers: Callable[..., object]
) -> StateMachineBlueprint:
    """The first of the handlers' states is the start; `ends` are end states that do nothing."""
    blueprint = StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")
    targets = [*handlers, *ends]
    for number, (state, handler) in enumerate(handlers.items()):
        blueprint.handler_for(state, is_start=number == 0, targets=targets)(handler)
    for state in ends:
        blueprint.handler_for(state, is_end=True)(_end)
    return blueprint


def go_to(state: str) -> Callable[..., None]:
    def go(actions: ActionFactory) -> None:
        actions.transition_to(state)

    return go


def dispatch(transitions: dict[str, str], task_type: str = "resize", **options: Any) -> Any:
    """A handler that gives out one task; `options` of the initial data go before these."""

    def give_out(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        given = {**options, **initial_data.get("options", {})}
        actions.dispatch_task(task_type, {}, transitions, **given)

    return give_out


def run(child: str, transitions: dict[str, str], **initial_data: Any) -> Callable[..., None]:
    """A handler that runs another blueprint."""

    def run_it(actions: ActionFactory) -> None:
        actions.run_blueprint(child, initial_data, transitions)

    return run_it
