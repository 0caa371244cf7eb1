"""A service that kills itself at a point: `python -m tests.chaos.service <name>`.

The points are its writes to the store, each one atomic operation. With `CHAOS_POINT=before:<n>` the
process ends instead of sending the n-th, with `after:<n>` when that is done and nobody here has heard of
it. Times are a fraction of the real ones, so that others notice sooner; their ratios are not.
"""

# pyright: reportPrivateUsage=false

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

from avtomatika_common import leadership
from avtomatika_common.backend.redis import liveness
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.scripts import Script

VARIABLE: Final = "CHAOS_POINT"
LIFETIME_SECONDS: Final = 1.5
_ONLY_READ: Final = frozenset(
    {
        "board_heads", "count_board", "count_workers", "explain_task", "find_orphans", "inspect_jobs",
        "inspect_places", "read_catalogue", "read_lane", "read_live", "read_pending", "read_places",
        "read_schedules", "read_workers", "waiting_tasks",
    }
)  # fmt: skip
_AGAIN_AND_AGAIN: Final = frozenset({"renew_lease", "renew_sockets"})
"""As time passes, not as work is done."""


class Point:
    """Counts the writes, and says at which to die."""

    def __init__(self, when: str, number: int) -> None:
        self._when = when
        self._left = number

    def passed(self, name: str) -> str:
        """Whether to die at this write: `before`, `after` or, empty, not at all."""
        if name in _ONLY_READ | _AGAIN_AND_AGAIN:
            return ""
        self._left -= 1
        return self._when if self._left == 0 else ""


def die(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(point: Point) -> None:
    """Have every write of this process pass the point."""
    original = Commands.script

    def script(
        self: Commands,
        script: Script,
        keys: Sequence[Argument],
        arguments: Sequence[Argument],
        *,
        outward: bool = False,
    ) -> asyncio.Future[Any]:
        when = point.passed(script.name)
        if when == "before":
            die()
        answer = original(self, script, keys, arguments, outward=outward)
        if when == "after":
            answer.add_done_callback(die)
        return answer

    Commands.script = script  # type: ignore[method-assign]


def hurry(name: str) -> None:
    """A fraction of the real times."""
    liveness._LIFETIME_MS = int(LIFETIME_SECONDS * 1000)  # type: ignore[misc]
    liveness._PAUSE_SECONDS = LIFETIME_SECONDS / 5  # type: ignore[misc]
    liveness._ANSWER_SECONDS = LIFETIME_SECONDS / 3  # type: ignore[misc]
    leadership.LEASE_SECONDS = LIFETIME_SECONDS  # type: ignore[misc]
    leadership.RENEW_SECONDS = LIFETIME_SECONDS / 3  # type: ignore[misc]
    leadership.STANDBY_SECONDS = LIFETIME_SECONDS / 5  # type: ignore[misc]
    if name == "executor":
        from avtomatika_executor import takeover  # noqa: PLC0415 - of this service only

        takeover._LOOK_SECONDS = LIFETIME_SECONDS / 5
        takeover._CALM_SECONDS = LIFETIME_SECONDS


def main() -> None:
    name = sys.argv[1]
    hurry(name)
    if given := os.environ.get(VARIABLE):  # noqa: TID251 - of the test's own processes
        when, _, number = given.partition(":")
        watch(Point(when, int(number)))
    sys.argv = [f"avtomatika_{name}"]
    runpy.run_module(f"avtomatika_{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
