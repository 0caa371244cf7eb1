"""What tests wait with."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import NamedTuple

from avtomatika_common.backend.ports import (
    Mail,
    Match,
    MatchAnswer,
    WaitingTask,
    WorkerDirectory,
)
from avtomatika_core.job import JobId, TaskId, WorkerId


async def until(
    condition: Callable[[], object | Awaitable[object]],
    timeout: float = 5.0,  # noqa: ASYNC109 - the deadline is what this is about
    message: str = "",
) -> None:
    """Return as soon as `condition()` is true; fail when it is not within `timeout` seconds.

    An async condition is awaited. `message` says what was waited for.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    pause = 0.0
    while True:
        answer = condition()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return
        if loop.time() > deadline:
            raise AssertionError(message or f"waited {timeout:g} s, still {answer!r}")
        await asyncio.sleep(pause)  # first only a turn of the loop, then 1, 2, 4 … 20 ms
        pause = min(pause * 2 or 0.001, 0.02)


async def match_one(
    workers: WorkerDirectory, worker_id: WorkerId, task: WaitingTask
) -> MatchAnswer:
    """What becomes of a single match."""
    matched = await workers.match([(worker_id, task)])
    return matched.answers[0]


class Promised(NamedTuple):
    """One promise of a match, with the match it travelled in."""

    poll_id: str
    worker_id: WorkerId
    incarnation: int
    task_id: TaskId
    job_id: JobId
    offer_number: int


def promised(mail: Sequence[Mail]) -> list[Promised]:
    """The promises in a gateway's mail, in order."""
    return [
        Promised(
            match.poll_id,
            match.worker_id,
            match.incarnation,
            promise.task_id,
            promise.job_id,
            promise.offer_number,
        )
        for match in mail
        if isinstance(match, Match)
        for promise in match.promises
    ]
