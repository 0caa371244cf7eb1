"""What time it is, and waiting for a time: wall-clock, passed in, manual in tests."""

import asyncio
import time
from contextlib import suppress
from typing import Protocol

LONGEST_NAP_SECONDS = 10.0  # so that a clock that was set is noticed
LATENCY_SECONDS = 0.05  # a reply may be this late before its time counts as another clock's


class Clock(Protocol):
    def now(self) -> float:
        """Unix seconds, UTC: what is stored and exchanged."""
        ...

    async def wait_until(self, when: float, wake: asyncio.Event) -> None:
        """Return at `when` (Unix seconds, `math.inf` = never) or when `wake` is set.

        The caller clears `wake`, and asks `now()` which of the two it was.
        """


class SystemClock:
    """The clock of this machine, corrected to the one of the Redis server where there is one."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def now(self) -> float:
        return time.time() + (self._offset or 0.0)  # noqa: TID251 - this is the clock

    def correct(self, server_now: float) -> None:
        """Take over the time a server's reply carried (Unix seconds).

        A reply comes late, never early, so the largest offset is the nearest. A smaller one only
        counts when no latency explains it: one of the clocks was set. So `now()` does not jitter.
        """
        offset = server_now - time.time()  # noqa: TID251 - this is the clock
        if self._offset is None or not 0 <= self._offset - offset <= LATENCY_SECONDS:
            self._offset = offset

    async def wait_until(self, when: float, wake: asyncio.Event) -> None:
        while (left := when - self.now()) > 0 and not wake.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, LONGEST_NAP_SECONDS)):
                    await wake.wait()


class ManualClock:
    """A clock that stands still until it is told to advance; for tests."""

    def __init__(self, start: float = 1_767_225_600.0) -> None:
        self._now = start
        self._sleepers: dict[asyncio.Timeout, float] = {}

    def now(self) -> float:
        return self._now

    @property
    def sleepers(self) -> int:
        """How many wait for a time that has not come."""
        return len(self._sleepers)

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake those whose time has come."""
        assert seconds >= 0, "time does not run backwards"
        self._now += seconds
        for sleeper, when in list(self._sleepers.items()):
            if when <= self._now:
                del self._sleepers[sleeper]
                sleeper.reschedule(asyncio.get_running_loop().time())

    async def wait_until(self, when: float, wake: asyncio.Event) -> None:
        if when <= self._now:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as sleeper:
                self._sleepers[sleeper] = when
                try:
                    await wake.wait()
                finally:
                    self._sleepers.pop(sleeper, None)
