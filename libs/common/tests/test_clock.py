"""Time and ids: waiting without real time, a server's time as offset, partitions in ids."""

import asyncio
import math
import time
import uuid
from collections import Counter

import pytest

from avtomatika_common.clock import Clock, ManualClock, SystemClock
from avtomatika_common.ids import derived_id, new_id, new_id_in_partition, partition_of
from tests.support import until


async def wait_in(clock: Clock, when: float, wake: asyncio.Event, log: list[float]) -> None:
    await clock.wait_until(when, wake)
    log.append(when)


async def test_a_manual_clock_wakes_exactly_those_whose_time_has_come() -> None:
    clock, woken = ManualClock(start=100), list[float]()

    async with asyncio.TaskGroup() as tasks:
        soon = tasks.create_task(wait_in(clock, 110, asyncio.Event(), woken))
        late = tasks.create_task(wait_in(clock, 120, asyncio.Event(), woken))
        await until(lambda: clock.sleepers == 2)
        clock.advance(10)
        clock.advance(0)
        await soon
        assert not late.done()
        clock.advance(10)

    assert woken == [110, 120]
    assert clock.now() == 120


async def test_a_manual_clock_does_not_wait_for_what_is_past() -> None:
    await ManualClock(start=100).wait_until(100, asyncio.Event())


@pytest.mark.parametrize("clock", [ManualClock(), SystemClock()])
async def test_an_event_ends_the_wait_before_its_time(clock: Clock) -> None:
    wake, woken = asyncio.Event(), list[float]()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        sleeper = tasks.create_task(wait_in(clock, math.inf, wake, woken))
        tasks.create_task(wait_in(clock, 0, asyncio.Event(), woken))
        await until(lambda: woken == [0])
        assert not sleeper.done()
        wake.set()

    assert woken == [0, math.inf]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as tasks:
        sleeper = tasks.create_task(clock.wait_until(math.inf, asyncio.Event()))
        await until(lambda: clock.sleepers == 1)
        sleeper.cancel()

    assert clock.sleepers == 0
    assert sleeper.cancelled()


async def test_the_system_clock_wakes_when_due() -> None:
    clock = SystemClock()
    due = clock.now() + 0.05

    async with asyncio.timeout(5):
        await clock.wait_until(due, asyncio.Event())

    assert clock.now() >= due


async def test_a_correction_counts_for_waits_too() -> None:
    clock = SystemClock()
    clock.correct(time.time() + 3600)  # noqa: TID251 - beside the real one

    async with asyncio.timeout(5):
        await clock.wait_until(time.time() + 3599, asyncio.Event())  # noqa: TID251


def test_the_system_clock_is_wall_clock() -> None:  # R26
    assert abs(SystemClock().now() - time.time()) < 1  # noqa: TID251 - beside the real one


def test_late_replies_do_not_set_the_clock_back() -> None:
    clock = SystemClock()
    clock.correct(time.time() + 100)  # noqa: TID251
    before = clock.now()

    clock.correct(time.time() + 99.97)  # noqa: TID251 - 30 ms on the way

    assert clock.now() >= before


def test_a_server_clock_that_was_set_back_is_followed() -> None:
    clock = SystemClock()
    clock.correct(time.time() + 100)  # noqa: TID251

    clock.correct(time.time() + 50)  # noqa: TID251

    assert abs(clock.now() - time.time() - 50) < 1  # noqa: TID251


def test_an_id_is_a_random_uuid_of_version_4() -> None:
    drawn = [new_id() for _ in range(1000)]

    assert len(set(drawn)) == 1000
    assert all(
        str(uuid.UUID(one)) == one
        and uuid.UUID(one).version == 4
        and uuid.UUID(one).variant == uuid.RFC_4122
        for one in drawn
    )


@pytest.mark.parametrize("partitions", [1, 2, 7, 64])
def test_an_id_is_in_the_partition_it_was_made_for(partitions: int) -> None:
    for partition in range(partitions):
        for _ in range(50):
            made = new_id_in_partition(partition, partitions)

            assert partition_of(made, partitions) == partition
            assert uuid.UUID(made).int & 0xFFFF == int(made[-4:], 16)
            assert uuid.UUID(made).version == 4


def test_plain_ids_spread_over_the_partitions() -> None:
    spread = Counter(partition_of(new_id(), 4) for _ in range(4000))

    assert all(800 < spread[partition] < 1200 for partition in range(4))


def test_a_text_that_is_no_id_has_a_partition_all_the_same() -> None:
    assert partition_of("no such job", 8) == 0
    assert partition_of("", 8) == 0


def test_a_derived_id_depends_on_each_part_and_on_nothing_else() -> None:
    assert derived_id("job", "1") == derived_id("job", "1")
    assert len({derived_id("job", "1"), derived_id("job1"), derived_id("jo", "b1")}) == 3
    assert uuid.UUID(derived_id("job")).variant == uuid.RFC_4122
