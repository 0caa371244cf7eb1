"""What the reconciler costs a Redis, counted by the Redis itself: the same however much there is."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from avtomatika_common.backend.ports import LOOKS_AT_ONCE, StorageBackend, StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.clock import ManualClock
from avtomatika_core.job import WorkerId
from avtomatika_watcher import Settings
from avtomatika_watcher.reconciler import Reconciler
from tests.contract.builders import Executor, a_job, fire
from tests.support import until

pytestmark = pytest.mark.integration

PAUSE: Final = 0.025
PAUSES_IN_A_SECOND: Final = 40
A_SECOND: Final = 30_000
"""Commands inside Redis, of the few hundred thousand it can do."""
ROOM: Final = 1.25
"""A cursor may bring some more than were asked for."""

Cost = Counter[str]
Lap = Callable[[Reconciler], Awaitable[None]]


class OnManualClock:
    """A store for whose user time passes only as the test says."""

    def __init__(self, store: StorageBackend) -> None:
        self.inspection = store.inspection
        self.jobs = store.jobs
        self.clock = ManualClock(store.clock.now() + 3600)  # all jobs are quiet


@asynccontextmanager
async def a_store(url: str) -> AsyncGenerator[RedisStorage, None]:
    """Empty."""
    async with Redis.from_url(url) as client:
        await client.flushall()
        store = RedisStorage(client)
        await store.open(StoreOptions(block_seconds=0.2))
        yield store
        await store.close()


async def all_of(calls: Iterable[Coroutine[Any, Any, object]]) -> None:
    """At once, so that they travel together."""
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)


async def done_by(client: Redis) -> Cost:
    """Commands that the Redis has done, also those in scripts."""
    stats: dict[str, Any] = await client.info("commandstats")
    found = Counter({name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()})
    del found["info"]
    return found


async def of_a_lap(url: str, store: RedisStorage, lap: Lap) -> list[Cost]:
    """What it costs from each of its pauses to the next."""
    backend = OnManualClock(store)
    settings = Settings(pause_seconds=PAUSE, lap_seconds=0.0, quiet_seconds=0.0)
    reconciler = Reconciler(settings, backend)  # type: ignore[arg-type]
    await lap_of(reconciler, lap, backend.clock, [], url)  # the scripts are known then
    costs: list[Cost] = []
    await lap_of(reconciler, lap, backend.clock, costs, url)
    return costs


async def lap_of(
    reconciler: Reconciler, lap: Lap, clock: ManualClock, costs: list[Cost], url: str
) -> None:
    async with Redis.from_url(url) as client, asyncio.TaskGroup() as group:
        before = await done_by(client)

        async def run() -> None:
            await lap(reconciler)

        running = group.create_task(run())
        while True:
            await until(lambda: clock.sleepers or running.done())
            if running.done():
                return
            after = await done_by(client)
            costs.append(after - before)
            before = after
            clock.advance(PAUSE)
            await until(lambda: not clock.sleepers)


def kind_of(cost: Cost) -> str:
    """What a portion is about, by the commands only its scripts use."""
    if cost["sscan"]:
        return "live jobs"
    if cost["time"]:
        return "beside jobs"
    return "belongs to none"


def dearest(costs: Sequence[Cost]) -> dict[str, int]:
    """Of each kind of portion, the commands of the largest."""
    found: dict[str, int] = {}
    for cost in costs:
        kind = kind_of(cost)
        found[kind] = max(found.get(kind, 0), cost.total())
    return found


def dearest_second(costs: Sequence[Cost]) -> int:
    of_a_portion = [cost.total() for cost in costs]
    last = max(1, len(of_a_portion) - PAUSES_IN_A_SECOND + 1)
    return max(sum(of_a_portion[n : n + PAUSES_IN_A_SECOND]) for n in range(last))


def tell(what: str, costs: Sequence[Cost]) -> None:
    print(  # noqa: T201 - measured, for who runs it with -s
        f"\n{what}: {len(costs)} portions; commands of the largest: {dearest(costs)}, "
        f"in a second: {dearest_second(costs)}"
    )


async def cost_of_jobs(url: str, count: int) -> list[Cost]:
    """Each with a claim and a timer."""
    async with a_store(url) as store:
        jobs = [a_job(store, timeout_seconds=7200.0) for _ in range(count)]
        await all_of(store.jobs.create(job) for job in jobs)
        costs = await of_a_lap(url, store, lambda reconciler: reconciler.lap(0))
    tell(f"{count} live jobs", costs)
    return costs


async def test_a_portion_costs_the_same_for_few_jobs_and_for_many(redis_url: str) -> None:
    few = await cost_of_jobs(redis_url, 100)
    many = await cost_of_jobs(redis_url, 20_000)

    assert {cost["evalsha"] for cost in (*few, *many)} == {
        1
    }  # so many scripts in a second as pauses
    for kind, commands in dearest(few).items():
        assert commands <= dearest(many)[kind] <= ROOM * commands, kind
    assert len(many) > 10 * PAUSES_IN_A_SECOND
    assert dearest_second(many) <= A_SECOND


async def cost_of_workers(url: str, count: int, tasks: int) -> list[Cost]:
    """One of them has these tasks."""
    async with a_store(url) as store:
        workers = [WorkerId(f"worker-{number}") for number in range(count)]
        await all_of(store.workers.register(worker, {}, 600.0) for worker in workers)
        await Executor(store).fan_out(tasks)
        while await fire(store):
            pass
        while waiting := await store.board.heads(0, LOOKS_AT_ONCE):
            await all_of(
                store.board.lease(task.task_id, task.job_id, task.offer_number, workers[0], 1)
                for task in waiting
            )
        while await store.relay.run_once(0):
            pass
        costs = await of_a_lap(url, store, lambda reconciler: reconciler.lap_of_places())
    tell(f"{count} workers, one with {tasks} tasks", costs)
    return costs


async def test_a_portion_of_places_costs_the_same_for_few_workers_and_for_many(
    redis_url: str,
) -> None:
    few = await cost_of_workers(redis_url, 5, 100)
    many = await cost_of_workers(redis_url, 1000, 2000)

    assert max(cost["evalsha"] for cost in (*few, *many)) == 3
    largest = [max(cost.total() for cost in costs) for costs in (few, many)]
    assert largest[0] <= largest[1] <= ROOM * largest[0]
    assert largest[1] <= LOOKS_AT_ONCE
    assert dearest_second(many) <= A_SECOND


@pytest.mark.parametrize(("jobs", "branches"), [(1, 10_000), (60, 100)])
async def test_branches_are_looked_at_in_portions_however_they_are_spread(
    redis_url: str, jobs: int, branches: int
) -> None:
    async with a_store(redis_url) as store:
        for _ in range(jobs):
            await Executor(store).fan_out(branches)
        while await fire(store):
            pass
        costs = await of_a_lap(redis_url, store, lambda reconciler: reconciler.lap(0))
        mended = await store.inspection.mended()
    tell(f"{jobs} fan-outs of {branches} branches", costs)

    looks = [cost for cost in costs if kind_of(cost) == "beside jobs"]
    # A look at a job reads its mark, one at a branch its task.
    assert sum(cost["hmget"] for cost in looks) >= jobs + jobs * branches
    assert max(cost["hmget"] for cost in looks) <= LOOKS_AT_ONCE
    assert max(cost["evalsha"] for cost in costs) == 1
    assert dearest_second(costs) <= A_SECOND
    assert mended == {}
