"""A worker of the SDK that is slow, forgets itself and fails, at random: `python -m tests.chaos.worker`."""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from avtomatika_worker import Worker
from avtomatika_worker.types import PERMANENT_ERROR
from tests.chaos.marks import mark

worker = Worker(worker_type="chaos")

HANG_SECONDS = 6.0
"""Longer than any task may take."""


class WorkFailed(Exception):
    """It may be tried again."""


POINTS: Final = "point-"
"""Keys of jobs that shall go as others of their kind begin so."""
_begun: set[tuple[str, str]] = set()


def fate(key: str, name: str) -> str:
    """What becomes of a task in the hands of one of our workers."""
    if key.startswith(POINTS):
        is_first = (key, name) not in _begun
        _begun.add((key, name))
        return "fails" if name == "first" and is_first else "done"
    if name.isdigit() and int(name) >= 10:  # of a large fan-out: there are many
        return "done"
    return random.choices(
        ("done", "slow", "fails", "refuses", "hangs"), weights=(70, 12, 10, 2, 6)
    )[0]


def brought(name: str, task_id: str, worker_id: str) -> dict[str, Any]:
    """The data of a result, noted outside."""
    nonce = os.urandom(6).hex()
    mark("brought", task=task_id, name=name, worker=worker_id, nonce=nonce)
    return {f"result_{name}": {"task": task_id, "worker": worker_id, "nonce": nonce}}


@worker.task("work")
async def work(
    params: dict[str, Any],
    task_id: str,
    job_id: str,
    send_progress: Callable[..., Awaitable[None]],
    checkpoint: dict[str, Any] | None,
) -> dict[str, Any]:
    worker_id = worker.config.WORKER_ID
    chosen = fate(params["key"], params["name"])
    mark("task", job=job_id, task=task_id, key=params["key"], worker=worker_id, fate=chosen)
    match chosen:
        case "slow":
            for part in range(1, 4):
                await asyncio.sleep(random.random())
                await send_progress(part / 3, "on its way", checkpoint={"part": part})
        case "fails":
            raise WorkFailed(f"after checkpoint {checkpoint}")
        case "refuses":
            return {"status": "failure", "error": {"code": PERMANENT_ERROR, "message": "no"}}
        case "hangs":
            await asyncio.sleep(HANG_SECONDS)
        case _:
            await asyncio.sleep(random.random() * 0.1)
    return brought(params["name"], task_id, worker_id)


if __name__ == "__main__":
    worker.run()
