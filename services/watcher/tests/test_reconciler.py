"""The reconciler costs the same however many jobs there are, and a fault of it stops nothing else."""

# pyright: reportPrivateUsage=false

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import LOOKS_AT_ONCE, LookAt, Seen, StoreOptions
from avtomatika_common.clock import ManualClock
from avtomatika_common.ids import new_id
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobId, Origin, new_job
from avtomatika_watcher import Settings, WatcherService
from tests.support import until


@asynccontextmanager
async def a_store(jobs: int) -> AsyncGenerator[tuple[MemoryStorage, ManualClock], None]:
    """With so many new jobs, all of them quiet."""
    clock = ManualClock()
    store = MemoryStorage(clock)
    await store.open(StoreOptions(block_seconds=0.05))
    for _ in range(jobs):
        origin = Origin(
            blueprint="b", group="default", start_state="s", created_at=clock.now() - 60
        )
        await store.jobs.create(new_job(JobId(new_id()), origin))
    yield store, clock
    await store.close()


async def test_its_cost_does_not_grow_with_the_jobs() -> None:
    sizes: list[int] = []
    async with a_store(5000) as (store, clock):
        inspection = store.inspection
        around, live = inspection.around, inspection.live

        async def counted_around(partition: int, looks: Sequence[LookAt]) -> list[Seen]:
            sizes.append(len(looks))
            return await around(partition, looks)

        async def counted_live(*args: Any) -> Any:
            cursor, jobs = await live(*args)
            sizes.append(len(jobs))
            return cursor, jobs

        inspection.around = counted_around  # type: ignore[method-assign]
        inspection.live = counted_live  # type: ignore[method-assign]
        service = WatcherService(Settings(pause_seconds=0.125), store)
        async with running(service):
            await until(lambda: clock.sleepers >= 7)
            for _ in range(100):
                clock.advance(0.01)
                await until(lambda: clock.sleepers >= 7)

    assert max(sizes) <= LOOKS_AT_ONCE
    assert 6 <= len(sizes) <= 9  # in one second
    assert await store.inspection.mended() == {}


async def test_each_lap_begins_only_when_its_time_has_come() -> None:
    laps = 0
    async with a_store(1) as (store, clock):
        live = store.inspection.live

        async def counted(*args: Any) -> Any:
            nonlocal laps
            laps += 1
            return await live(*args)

        store.inspection.live = counted  # type: ignore[method-assign]
        async with running(WatcherService(Settings(lap_seconds=10.0), store)):
            for _ in range(310):
                await until(lambda: clock.sleepers >= 7)
                clock.advance(0.1)

    assert laps == 4


async def test_a_fault_of_the_reconciler_does_not_stop_the_timers() -> None:
    async with a_store(1) as (store, clock):

        async def live(*_: Any) -> Any:
            raise ZeroDivisionError

        store.inspection.live = live  # type: ignore[method-assign]
        async with running(WatcherService(Settings(), store)):
            await until(lambda: clock.sleepers >= 7)
            [delivery] = await store.inbox.read("default", "e", 1)
            await store.inbox.defer(delivery, 30.0)
            for _ in range(40):
                clock.advance(1.0)
                await until(lambda: clock.sleepers >= 7)

            assert await store.inbox.read("default", "e", 1)


async def test_what_was_mended_is_counted_and_said() -> None:
    async with a_store(1) as (store, clock):
        service = WatcherService(Settings(), store)
        store._tables.entries.clear()
        store._tables.groups["default"].lanes["new"].clear()
        async with running(service):
            for _ in range(30):
                await until(lambda: clock.sleepers >= 7)
                clock.advance(1.0)
            await until(store.inspection.mended)

    assert await store.inspection.mended() == {"claim": 1}
