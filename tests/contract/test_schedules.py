"""Schedules: moved on by the one who leads, paused and run by anybody; a time makes one job."""

import asyncio
import math

import pytest
from msgspec.structs import replace

from avtomatika_common.backend.ports import Lease, LostLease, ScheduleEntry, StorageBackend
from avtomatika_core.job import JobId
from avtomatika_core.schedule import Every, Overlap, Schedule, Standing
from avtomatika_core.wall_times import Times
from tests.contract.builders import Executor, a_job
from tests.contract.conftest import Bench, Open, PassTime

NIGHTLY = Schedule(
    name="nightly",
    blueprint="b",
    when=Times(timezone="Europe/Berlin", hours=(2,), minutes=(30,), dates=(-1, 5)),
    initial_data={"n": [1, {"x": None}]},
    overlap=Overlap.QUEUE,
    ends_at=1_800_000_000.5,
)
TICK = Schedule(name="tick", blueprint="b", when=Every(seconds=1.5))
FIRED = Standing(when=TICK.when, anchor=1.25, settled=4.25, last_run=4.25, last_job_id=JobId("j-1"))


async def leading(backend: StorageBackend, holder: str = "s-1", seconds: float = 60.0) -> Lease:
    lease = await backend.leases.acquire("scheduler", holder, seconds)
    assert lease is not None
    return lease


async def published(backend: StorageBackend, *schedules: Schedule) -> Lease:
    lease = await leading(backend)
    await backend.schedules.publish(lease, schedules or (NIGHTLY, TICK))
    return lease


async def entry(backend: StorageBackend, name: str = "tick") -> ScheduleEntry:
    found = await backend.schedules.get(name)
    assert found is not None
    return found


async def test_schedules_are_read_as_they_were_published(backend: StorageBackend) -> None:
    await published(backend, TICK, NIGHTLY)

    _, entries = await backend.schedules.entries()

    assert entries == [ScheduleEntry(schedule=NIGHTLY), ScheduleEntry(schedule=TICK)]
    assert await backend.schedules.get("nightly") == entries[0]
    assert entries[0].standing.settled == -math.inf
    assert entries[0].last_run == (None, None)
    assert await backend.schedules.get("other") is None


async def test_a_great_many_schedules_are_read_too(backend: StorageBackend) -> None:
    many = [replace(TICK, name=f"s{number:04}") for number in range(1100)]
    lease = await published(backend, *many)

    _, entries = await backend.schedules.entries()
    await backend.schedules.publish(lease, many[:3])
    _, few = await backend.schedules.entries()

    assert [entry.schedule for entry in entries] == many
    assert [entry.schedule for entry in few] == many[:3]


async def test_what_was_published_is_a_copy(backend: StorageBackend) -> None:
    data = {"n": [1]}
    await published(backend, replace(TICK, initial_data=data))

    data["n"].append(2)

    assert (await entry(backend)).schedule.initial_data == {"n": [1]}


async def test_a_schedule_that_is_not_published_any_more_is_gone(backend: StorageBackend) -> None:
    lease = await published(backend)

    await backend.schedules.publish(lease, [NIGHTLY])

    assert [found.schedule.name for found in (await backend.schedules.entries())[1]] == ["nightly"]
    assert await backend.schedules.get("tick") is None
    assert await backend.schedules.set_paused("tick", is_paused=True, at=1.0) is None


async def test_one_that_comes_back_stands_where_it_stood(backend: StorageBackend) -> None:
    lease = await published(backend)
    await backend.schedules.end_slot("tick", lease, FIRED)
    await backend.schedules.set_paused("tick", is_paused=True, at=1.0)
    await backend.schedules.publish(lease, [])

    slower = replace(TICK, when=Every(seconds=9))
    await backend.schedules.publish(lease, [slower])

    assert await entry(backend) == ScheduleEntry(schedule=slower, standing=FIRED, is_paused=True)


async def test_a_schedule_stands_where_its_leader_left_it(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    lease = await published(backend)
    assert await backend.schedules.begin_slot("tick", lease, replace(FIRED, begun=5.75))
    assert (await entry(backend)).standing == replace(FIRED, begun=5.75)

    await backend.schedules.end_slot("tick", lease, FIRED)

    assert (await entry(backend)).standing == FIRED
    assert (await entry(backend)).last_run == (4.25, "j-1")
    assert (await entry(backend, "nightly")).standing == Standing()


async def test_a_leader_that_slept_changes_nothing(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R65."""
    await published(backend)
    old = await backend.leases.acquire("other", "s-1", 0.05)
    assert old is not None
    await pass_time(0.06)
    assert await backend.leases.acquire("other", "s-2", 60.0)
    before = await backend.schedules.entries()

    for attempt in (
        backend.schedules.begin_slot("tick", old, FIRED),
        backend.schedules.end_slot("tick", old, FIRED),
        backend.schedules.publish(old, [replace(TICK, name="new")]),
        backend.schedules.publish(old, []),
    ):
        with pytest.raises(LostLease):
            await attempt

    assert await backend.schedules.entries() == before


async def test_in_a_pause_nothing_is_begun(backend: StorageBackend) -> None:
    lease = await published(backend)

    paused = await backend.schedules.set_paused("tick", is_paused=True, at=10.5)

    assert paused == ScheduleEntry(schedule=TICK, is_paused=True)
    assert not await backend.schedules.begin_slot("tick", lease, FIRED)
    assert (await entry(backend)).standing == Standing()
    assert await backend.schedules.begin_slot("nightly", lease, FIRED)
    await backend.schedules.end_slot("tick", lease, FIRED)
    assert (await entry(backend)).standing == FIRED


async def test_the_end_of_a_pause_is_known_and_only_the_first_call_ends_it(
    backend: StorageBackend,
) -> None:
    lease = await published(backend)
    await backend.schedules.set_paused("tick", is_paused=False, at=5.0)
    assert (await entry(backend)).resumed_at is None
    await backend.schedules.set_paused("tick", is_paused=True, at=10.5)

    resumed = await backend.schedules.set_paused("tick", is_paused=False, at=20.125)
    again = await backend.schedules.set_paused("tick", is_paused=False, at=30.0)

    assert again == resumed == ScheduleEntry(schedule=TICK, resumed_at=20.125)
    assert await backend.schedules.begin_slot("tick", lease, FIRED)


async def test_a_job_out_of_its_time_is_the_last_run_until_the_next_time(
    backend: StorageBackend,
) -> None:
    lease = await published(backend)
    await backend.schedules.end_slot("tick", lease, FIRED)

    await backend.schedules.note_asked("tick", JobId("j-2"), 5.5)

    assert (await entry(backend)).last_run == (5.5, "j-2")
    later = replace(FIRED, last_run=7.25, last_job_id=JobId("j-3"))
    await backend.schedules.end_slot("tick", lease, later)
    assert (await entry(backend)).last_run == (7.25, "j-3")


async def test_an_unknown_schedule_is_not_made_by_what_people_want(
    backend: StorageBackend, bench: Bench
) -> None:
    """R64."""
    lease = await leading(backend)
    before = await bench.contents()

    assert await backend.schedules.set_paused("x", is_paused=True, at=1.0) is None
    await backend.schedules.note_asked("x", JobId("j"), 1.0)
    await backend.schedules.end_slot("x", lease, FIRED)

    assert await bench.contents() == before
    assert await backend.schedules.entries() == (
        (await backend.schedules.entries())[0],
        [],
    )


async def test_who_follows_hears_of_a_pause_at_once(open_backend: Open) -> None:
    backend = await open_backend(block_seconds=20.0)
    await published(backend)
    version, _ = await backend.schedules.entries()

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(backend.schedules.changed(version))
        await asyncio.sleep(0)
        await backend.schedules.set_paused("tick", is_paused=True, at=1.0)

    assert (await backend.schedules.entries())[0] != version


async def test_where_nothing_changes_nobody_is_woken(backend: StorageBackend) -> None:
    lease = await published(backend)
    version, _ = await backend.schedules.entries()

    await backend.schedules.publish(lease, [TICK, NIGHTLY])
    await backend.schedules.set_paused("tick", is_paused=False, at=1.0)
    await backend.schedules.end_slot("tick", lease, FIRED)
    await backend.schedules.changed(version)  # gives up after the block time

    assert (await backend.schedules.entries())[0] == version


# --- one job for one time


async def test_an_id_that_makes_one_job_is_known_when_its_job_is_forgotten(
    open_backend: Open, pass_time: PassTime
) -> None:
    backend = await open_backend(retention_seconds=1)
    job, other = a_job(backend), a_job(backend)
    executor = Executor(backend)
    first = await backend.jobs.create(job, once=True)
    await executor.end(await executor.apply(await executor.read()))
    await backend.jobs.create(other)
    await executor.end(await executor.apply(await executor.read()))
    await pass_time(1.1)
    assert await backend.jobs.load(job.id) is None

    again = await backend.jobs.create(job, once=True)
    other_again = await backend.jobs.create(other, once=True)

    assert not first.is_repeat
    assert again.is_repeat
    assert again.job_id == job.id
    assert await backend.jobs.load(job.id) is None
    assert not other_again.is_repeat
