"""Timers fire when they are due, once, for the one who may; leases decide who may."""

import asyncio

import pytest
from msgspec.structs import replace

from avtomatika_common.backend.ports import Hint, Lease, LostLease, StorageBackend
from avtomatika_common.leadership import Contact, lead
from avtomatika_core.events import TimerFired
from avtomatika_core.job import HandlerRetryWait
from tests.contract.builders import (
    APPROVAL,
    Executor,
    a_job,
    a_task,
    errors,
    fire,
    next_due,
    watcher_lease,
)
from tests.contract.conftest import Open, PassTime

# --- timers


async def test_a_timer_becomes_one_event_when_it_is_due(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.raised(await executor.start())
    wait = claim.job.head.wait
    assert isinstance(wait, HandlerRetryWait)
    assert await next_due(backend) == pytest.approx(wait.due, abs=0.002)
    assert await fire(backend) == 0

    await pass_time(0.06)
    assert await fire(backend) == 1
    assert await fire(backend) == 0

    [delivery] = await executor.read_all()
    assert delivery.job_id == claim.job.id
    assert delivery.lane == "in"
    assert isinstance(delivery.event, TimerFired)
    assert delivery.event.token == wait.token
    assert delivery.event.fresh_id
    assert await next_due(backend) is None


async def test_timers_fire_in_portions(backend: StorageBackend, pass_time: PassTime) -> None:
    executor = Executor(backend)
    for _ in range(5):
        await executor.raised(await executor.start())
    lease = await watcher_lease(backend)
    await pass_time(0.06)

    fired = [await backend.timers.fire(0, lease, 2) for _ in range(4)]

    assert fired == [2, 2, 1, 0]
    assert len(await executor.read_all()) == 5


async def test_the_first_to_come_is_the_next(backend: StorageBackend) -> None:
    executor = Executor(backend)
    now = backend.clock.now()
    for seconds in (50.0, 20.0, 80.0):
        await executor.run(await executor.start(), replace(APPROVAL, timeout_seconds=seconds))

    assert await next_due(backend) == pytest.approx(now + 20.0, abs=0.5)


async def test_partitions_have_timers_of_their_own(open_backend: Open) -> None:
    backend = await open_backend(partitions=2)
    executor = Executor(backend)
    claim = await executor.start(a_job(backend, partition=1))

    await executor.raised(claim)

    assert await backend.timers.next_due(0) is None
    assert await backend.timers.next_due(1) is not None


async def test_only_the_holder_of_the_lease_fires(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R65."""
    executor = Executor(backend)
    await executor.raised(await executor.start())
    stale = await backend.leases.acquire("p0/timers", "watcher-0", 0.05)
    assert stale is not None
    await pass_time(0.06)
    current = await watcher_lease(backend)

    with pytest.raises(LostLease):
        await backend.timers.fire(0, stale)
    assert await executor.read_all() == []

    assert await backend.timers.fire(0, current) == 1


async def test_an_earlier_timer_is_hinted_a_later_one_is_not(backend: StorageBackend) -> None:
    executor = Executor(backend)
    first, second, third = [await executor.start() for _ in range(3)]
    position = await backend.hints.position("p0")

    await executor.run(first, replace(APPROVAL, timeout_seconds=50.0))
    await executor.run(second, replace(APPROVAL, timeout_seconds=90.0))
    await executor.run(third, replace(APPROVAL, timeout_seconds=20.0))

    hinted: list[Hint] = []
    while len(hinted) < 2:
        position, hints, lost = await backend.hints.wait("p0", position, 5.0)
        assert not lost
        hinted += [hint for hint in hints if hint.kind == "timer"]
    assert len(hinted) == 2


# --- hints


async def test_a_hint_wakes_who_waits(backend: StorageBackend) -> None:
    executor = Executor(backend)
    position = await backend.hints.position("p0")

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(backend.hints.wait("p0", position, 10.0))
        await asyncio.sleep(0)
        await executor.dispatch(a_task("scan"))

    _, hints, lost = waiting.result()
    assert [(hint.kind, hint.value) for hint in hints if hint.kind == "task"] == [("task", "scan")]
    assert not lost


async def test_hints_are_read_once_and_none_is_missed(backend: StorageBackend) -> None:
    executor = Executor(backend)
    position = await backend.hints.position("p0")
    for _ in range(3):
        await executor.dispatch(a_task(dispatch_timeout_seconds=0.0))

    found = 0
    while found < 3:
        position, hints, _ = await backend.hints.wait("p0", position, 5.0)
        found += len(hints)

    assert found == 3
    assert await backend.hints.wait("p0", position, 0.05) == (position, [], False)


async def test_who_was_away_too_long_is_told_that_hints_were_lost(backend: StorageBackend) -> None:
    executor = Executor(backend)
    position = await backend.hints.position("p0")
    for _ in range(26):
        await executor.fan_out(50)

    found, any_lost = 0, False
    while True:
        position, hints, lost = await backend.hints.wait("p0", position, 0.2)
        found += sum(hint.kind == "task" for hint in hints)
        any_lost = any_lost or lost
        if not hints:
            break

    assert any_lost or found == 26 * 50


# --- leases


async def test_one_of_many_gets_the_lease(backend: StorageBackend) -> None:
    answers = await asyncio.gather(
        *(backend.leases.acquire("scheduler", f"s-{number}", 60.0) for number in range(10))
    )

    assert len([lease for lease in answers if lease is not None]) == 1


async def test_the_holder_may_ask_again(backend: StorageBackend) -> None:
    first = await backend.leases.acquire("scheduler", "s-1", 60.0)

    assert first is not None
    assert await backend.leases.acquire("scheduler", "s-1", 60.0) == first


async def test_tokens_count_up_with_each_holder(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R65: so one that had it twice is told from itself."""
    first = await backend.leases.acquire("scheduler", "s-1", 0.05)
    await pass_time(0.06)
    second = await backend.leases.acquire("scheduler", "s-2", 60.0)
    assert first is not None
    assert second is not None
    await backend.leases.release(second)
    third = await backend.leases.acquire("scheduler", "s-1", 60.0)
    assert third is not None

    assert first.token < second.token < third.token


async def test_a_renewed_lease_is_kept(backend: StorageBackend, pass_time: PassTime) -> None:
    """R65."""
    lease = await backend.leases.acquire("scheduler", "s-1", 0.1)
    assert lease is not None
    await backend.leases.renew(lease, 60.0)

    await pass_time(0.15)

    assert await backend.leases.acquire("scheduler", "s-2", 60.0) is None


async def test_a_lease_that_is_over_cannot_be_renewed_or_released(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R65."""
    old = await backend.leases.acquire("scheduler", "s-1", 0.05)
    assert old is not None
    await pass_time(0.06)
    with pytest.raises(LostLease):
        await backend.leases.renew(old, 60.0)
    assert await backend.leases.acquire("scheduler", "s-2", 60.0) is not None

    await backend.leases.release(old)

    assert await backend.leases.acquire("scheduler", "s-1", 60.0) is None


async def test_a_lease_that_another_has_by_now_cannot_be_renewed(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R65: it is not made to last longer, either."""
    old = await backend.leases.acquire("scheduler", "s-1", 0.05)
    assert old is not None
    await pass_time(0.06)
    assert await backend.leases.acquire("scheduler", "s-2", 0.1) is not None

    with pytest.raises(LostLease):
        await backend.leases.renew(old, 60.0)

    await pass_time(0.11)
    assert await backend.leases.acquire("scheduler", "s-3", 60.0) is not None


async def test_a_lease_is_free_as_soon_as_its_work_is_over(backend: StorageBackend) -> None:
    """R65: others need not wait for its time to pass."""
    has_begun = asyncio.Event()

    async def work(_lease: Lease) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    leases, clock = backend.leases, backend.clock
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(
            lead("scheduler", "s-1", work, leases=leases, clock=clock, contact=Contact(clock))
        )
        await has_begun.wait()
        assert await leases.acquire("scheduler", "s-2", 60.0) is None
        leading.cancel()

    assert await leases.acquire("scheduler", "s-2", 60.0) is not None


async def test_leases_of_different_names_are_independent(backend: StorageBackend) -> None:
    outcomes = await asyncio.gather(
        *(
            backend.leases.acquire(name, "w-1", 60.0)
            for name in ("p0/watcher", "p0/dispatcher", "scheduler")
        )
    )

    assert errors(outcomes) == []
    assert None not in outcomes
