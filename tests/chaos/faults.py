"""Which process, connection or server fails when: a plan drawn from a seed, and its performance."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from tests.chaos.suite import Suite

PROCESS_FAULT_SECONDS: Final = 2.0
"""From one fault of a process to the next."""
OTHER_FAULT_SECONDS: Final = 4.0
"""From one fault of a connection, or of Redis, to the next."""
SHORT_PAUSE_SECONDS: Final = (0.3, 3.0)
LONG_PAUSE_SECONDS: Final = (5.5, 9.0)
"""Longer than any lease, claim or registration lives."""

REDIS: Final = "redis"


class Fault(msgspec.Struct, frozen=True):
    at: float
    """Seconds from the begin of the plan."""
    kind: str
    target: str
    seconds: float = 0.0
    """How long it lasts, or until the next process starts in its place."""


class Performed(msgspec.Struct, frozen=True):
    """A fault that was really done."""

    fault: Fault
    at: float
    """Unix seconds, to be compared with logs."""
    pid: int | None


_OF_PROCESSES: Final = {"kill": 55, "restart": 15, "short pause": 18, "long pause": 12}
_OF_OTHERS: Final = {
    "cut": 40,
    "delay": 15,
    "half-open": 25,
    "redis restart": 12,
    "redis pause": 12,
}


def plan(seed: int, seconds: float, members: Sequence[str], links: Sequence[str]) -> list[Fault]:
    """The same for the same arguments."""
    draw = random.Random(f"{seed}/faults")
    faults = [
        _of_process(draw, at, members) for at in _moments(draw, seconds, PROCESS_FAULT_SECONDS)
    ]
    faults += [_of_other(draw, at, links) for at in _moments(draw, seconds, OTHER_FAULT_SECONDS)]
    return sorted(faults, key=lambda fault: fault.at)


def _moments(draw: random.Random, seconds: float, pause: float) -> list[float]:
    """One in each `pause`, somewhere in its middle."""
    return [
        round((number + draw.uniform(0.3, 0.7)) * pause, 3)
        for number in range(int(seconds / pause))
    ]


def _drawn(draw: random.Random, weights: dict[str, int]) -> str:
    return draw.choices(list(weights), list(weights.values()))[0]


def _of_process(draw: random.Random, at: float, members: Sequence[str]) -> Fault:
    kind, target = _drawn(draw, _OF_PROCESSES), draw.choice(members)
    lasts = {
        "kill": draw.choice((0.0, 0.0, 1.0, 7.0)),
        "short pause": draw.uniform(*SHORT_PAUSE_SECONDS),
        "long pause": draw.uniform(*LONG_PAUSE_SECONDS),
    }
    return Fault(at, kind, target, round(lasts.get(kind, 0.0), 2))


def _of_other(draw: random.Random, at: float, links: Sequence[str]) -> Fault:
    kind, target = _drawn(draw, _OF_OTHERS), draw.choice(links)
    lasts = {
        "delay": draw.uniform(1.0, 4.0),
        "half-open": draw.uniform(1.0, 8.0),
        "redis restart": draw.choice((0.0, 1.0, 3.0)),
        "redis pause": draw.choice((0.5, 2.0, 7.0)),
    }
    is_of_redis = kind.startswith(REDIS)
    return Fault(at, kind, REDIS if is_of_redis else target, round(lasts.get(kind, 0.0), 2))


class Faults:
    """Performs a plan; what was done stands in `performed`."""

    def __init__(self, suite: Suite, faults: Sequence[Fault]) -> None:
        self._suite = suite
        self._plan = faults
        self._redis = asyncio.Lock()
        self._frozen: Counter[str] = Counter()
        self.performed: list[Performed] = []

    @property
    def by_kind(self) -> Counter[str]:
        return Counter(done.fault.kind for done in self.performed)

    async def perform(self) -> None:
        """Returns when the last fault is over."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for fault in self._plan:
                await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
                group.create_task(self._perform(fault))

    def _note(self, fault: Fault, pid: int | None) -> None:
        at = time.time()  # noqa: TID251 - to be compared with logs
        self.performed.append(Performed(fault, at, pid))

    async def _perform(self, fault: Fault) -> None:
        if fault.target == REDIS:
            async with self._redis:
                await self._fail_redis(fault)
        elif fault.kind in _OF_PROCESSES:
            await self._fail_process(fault)
        else:
            await self._fail_link(fault)

    async def _fail_process(self, fault: Fault) -> None:
        member = self._suite.members[fault.target]
        pid = member.pid
        if pid is None or self._frozen[fault.target]:
            return  # it is down already
        self._note(fault, pid)
        match fault.kind:
            case "kill":
                member.kill(fault.seconds)
            case "restart":
                member.terminate()
            case _:
                self._frozen[fault.target] += 1
                member.freeze()
                await asyncio.sleep(fault.seconds)
                self._frozen[fault.target] -= 1
                member.thaw()

    async def _fail_link(self, fault: Fault) -> None:
        link = self._suite.links[fault.target]
        self._note(fault, None)
        match fault.kind:
            case "cut":
                link.cut()
            case "delay":
                link.delay_seconds = 0.2
                await asyncio.sleep(fault.seconds)
                link.delay_seconds = 0.0
            case _:
                link.die()
                await asyncio.sleep(fault.seconds)
                link.heal()

    async def _fail_redis(self, fault: Fault) -> None:
        self._note(fault, None)
        if fault.kind == "redis restart":
            await self._suite.restart_redis(fault.seconds)
        else:
            self._suite.redis.freeze()
            await asyncio.sleep(fault.seconds)
            self._suite.redis.thaw()
