"""What executors that are processes of their own run: slow enough to be killed in the middle.

Each run of a handler leaves a line in the file that `initial_data["log"]` names.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from avtomatika_common.actions import ActionFactory
from avtomatika_common.blueprint import StateMachineBlueprint
from tests.blueprints import counting_chain


def note(log: str, *words: object) -> None:
    """One line, whole even when several processes write at once."""
    with Path(log).open("a") as file:
        file.write(f"{os.getpid()} {' '.join(map(str, words))}\n")


slow = StateMachineBlueprint("slow")
"""Three states of `seconds` each; `state_history["steps"]` counts them."""


def _add_slow(state: str, following: str) -> None:
    @slow.handler_for(state, is_start=state == "s0", targets=[following])
    async def handler(
        job_id: str,
        state_history: dict[str, Any],
        log: str,
        seconds: float,
        actions: ActionFactory,
    ) -> None:
        note(log, job_id, state)
        await asyncio.sleep(seconds)
        state_history.setdefault("steps", []).append([state, os.getpid()])
        actions.transition_to(following)


for _state, _following in (("s0", "s1"), ("s1", "s2"), ("s2", "end")):
    _add_slow(_state, _following)


@slow.handler_for("end", is_end=True)
async def end() -> None:
    pass


blocking = StateMachineBlueprint("blocking")
"""Its handler keeps the whole event loop to itself for `seconds`."""


@blocking.handler_for("hold", is_start=True)
async def hold(job_id: str, log: str, seconds: float, actions: ActionFactory) -> None:
    note(log, job_id, "hold")
    time.sleep(seconds)  # noqa: ASYNC251 - what should not be done, and is
    actions.transition_to("end")


blocking.handler_for("end", is_end=True)(end)

endless = StateMachineBlueprint("endless")
"""A plain function that does not come back for a minute."""


@endless.handler_for("hold", is_start=True)
def hold_thread(job_id: str, log: str, actions: ActionFactory) -> None:
    note(log, job_id, "hold")
    time.sleep(60)
    actions.transition_to("end")


endless.handler_for("end", is_end=True)(end)

chain = counting_chain(10)
