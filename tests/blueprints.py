"""Blueprints that tests of several parts run."""

from typing import Any

from avtomatika_common.actions import ActionFactory
from avtomatika_common.blueprint import StateMachineBlueprint


def counting_chain(transitions: int, name: str = "chain") -> StateMachineBlueprint:
    """Each state appends its number to `state_history["steps"]`; `end` is the last one."""
    chain = StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")

    def add(number: int) -> None:
        following = f"s{number + 1}" if number + 1 < transitions else "end"

        async def handler(state_history: dict[str, Any], actions: ActionFactory) -> None:
            state_history.setdefault("steps", []).append(number)
            actions.transition_to(following)

        chain.handler_for(f"s{number}", is_start=number == 0, targets=[following])(handler)

    for number in range(transitions):
        add(number)

    @chain.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    chain.validate()
    return chain
