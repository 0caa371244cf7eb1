"""Whatever dies when, each time makes one job; who slept makes none."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from services.scheduler.tests.world import EVERY_TEN_SECONDS, World, a_world, scheduling

from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.lifecycle import running
from avtomatika_core.job import Job
from tests.support import until

PORTS = ("schedules", "jobs", "catalogue", "leases")
_UNCOUNTED = ("changed", "renew", "release")
"""Calls that come when they like."""


class Calls:
    """Passes on the calls to one port, through what may hold them up or break them."""

    def __init__(self, port: Any, through: Callable[[Callable[[], Awaitable[Any]]], Any]) -> None:
        self._port = port
        self._through = through

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name in _UNCOUNTED:
            return method

        async def call(*given: Any, **named: Any) -> Any:
            return await self._through(lambda: method(*given, **named))

        return call


class Crashing:
    """A backend whose connection is lost at the n-th call: before it arrives, or after."""

    def __init__(self, backend: Any, call: int, *, arrives: bool) -> None:
        self._backend = backend
        self._left = call
        self._arrives = arrives
        self.has_crashed = False
        for port in PORTS:
            setattr(self, port, Calls(getattr(backend, port), self._through))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def _through(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self.has_crashed:
            raise StoreUnavailable("dead")
        self._left -= 1
        if self._left >= 0:
            return await call()
        if self._arrives:
            await call()
        self.has_crashed = True
        raise StoreUnavailable("dies here")


async def live_through(world: World, toml: str, call: int, *, arrives: bool) -> bool:
    """The connection is lost at the n-th call; seconds later another scheduler goes on.

    Whether it was lost: there may have been fewer calls.
    """
    backend: Any = Crashing(world.store, call, arrives=arrives)
    async with running(world.scheduler(toml, backend=backend)):
        for _ in range(6):
            await until(lambda: backend.has_crashed or world.clock.sleepers == 2)
            if backend.has_crashed:
                break
            world.clock.advance(2)
    world.clock.advance(6)  # a lease that was taken and not given back is over
    async with scheduling(world, toml):
        anchor = (await world.entry()).standing.anchor
        assert anchor is not None
        await world.go_to(anchor + 25)
    return bool(backend.has_crashed)


def cancelled(jobs: list[Job]) -> list[bool]:
    return [job.cancelled for job in jobs]


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("allow", [False, False, False]),
        ("skip", [False]),
        ("queue", [False]),
        ("cancel_previous", [True, True, False]),
    ],
)
async def test_a_crash_at_any_call_makes_no_job_twice_and_loses_none(
    tmp_path: Path, overlap: str, expected: list[bool], arrives: bool
) -> None:
    """R73."""
    toml = EVERY_TEN_SECONDS + f'overlap = "{overlap}"\n'

    has_crashed, call = True, 0
    while has_crashed:
        async with a_world(tmp_path) as world:
            has_crashed = await live_through(world, toml, call, arrives=arrives)
            jobs = await world.made()
            standing = (await world.entry()).standing

        assert cancelled(jobs) == expected, f"crash at call {call}"
        assert standing.last_job_id == jobs[-1].id
        assert standing.begun is None
        call += 1

    assert call > 8


class Asleep:
    """A backend whose calls take a while when it is told so: the process sleeps, and then goes on."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._may_go_on = asyncio.Event()
        self._may_go_on.set()
        self.fall_asleep_before = ""
        for port in PORTS:
            setattr(self, port, Sleeping(getattr(backend, port), self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @property
    def is_asleep(self) -> bool:
        return not self._may_go_on.is_set()

    def wake(self) -> None:
        self.fall_asleep_before = ""
        self._may_go_on.set()

    async def called(self, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if name == self.fall_asleep_before:
            self._may_go_on.clear()
        await self._may_go_on.wait()
        return await call()


class Sleeping:
    def __init__(self, port: Any, sleeper: Asleep) -> None:
        self._port = port
        self._sleeper = sleeper

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)

        async def call(*given: Any, **named: Any) -> Any:
            return await self._sleeper.called(name, lambda: method(*given, **named))

        return call


@pytest.mark.parametrize("before", ["begin_slot", "create", "end_slot"])
async def test_a_leader_that_sleeps_over_its_lease_makes_nothing_when_it_wakes(
    world: World, before: str
) -> None:
    """R65."""
    backend: Any = Asleep(world.store)
    async with running(world.scheduler(EVERY_TEN_SECONDS, backend=backend)):
        await world.asleep()
        await world.let_pass(9)
        backend.fall_asleep_before = before
        world.clock.advance(1)
        await until(lambda: backend.is_asleep)
        world.clock.advance(6)  # its lease is over
        async with scheduling(world):
            await until(lambda: world.clock.sleepers >= 2)
            await world.has_jobs(2)
            for _ in range(4):
                world.clock.advance(1)
                await until(lambda: world.clock.sleepers >= 2)
            await world.has_jobs(3)
            standing = (await world.entry()).standing

            backend.wake()
            await until(lambda: world.clock.sleepers == 3)

            assert await world.jobs() == 3
            assert (await world.entry()).standing == standing


async def test_a_leader_that_sleeps_for_longer_than_the_retention_makes_nothing(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path, retention_seconds=30) as world:
        backend: Any = Asleep(world.store)
        async with running(world.scheduler(EVERY_TEN_SECONDS, backend=backend)):
            await world.asleep()
            await world.let_pass(9)
            backend.fall_asleep_before = "create"
            world.clock.advance(1)
            await until(lambda: backend.is_asleep)
            world.clock.advance(6)
            async with running(world.scheduler(EVERY_TEN_SECONDS)):
                await world.has_jobs(2)
                await world.store.schedules.set_paused("tick", is_paused=True, at=world.clock.now())
                for job in await world.made():
                    await world.end(job)
            world.clock.advance(31)
            assert await world.made() == []

            backend.wake()
            await until(lambda: world.clock.sleepers > 0)
            await world.let_pass(5)

            assert await world.made() == []
