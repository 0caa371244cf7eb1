"""Many jobs, long chains, slow handlers and large data share one executor."""

import asyncio
import gc
import threading
from collections.abc import Generator
from time import thread_time
from typing import Any

import pytest
from services.executor.tests.faults import with_faults
from services.executor.tests.world import World, a_blueprint, dispatch, go_to

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import Delivery
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobStatus
from tests.blueprints import counting_chain
from tests.support import until


async def test_jobs_that_come_together_all_finish(world: World) -> None:
    """R2."""
    inside = 0
    all_inside = asyncio.Event()

    async def handler(actions: ActionFactory) -> None:
        nonlocal inside
        inside += 1
        if inside == 5:
            all_inside.set()
        await all_inside.wait()
        actions.transition_to("end")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_ids = [await world.create(blueprint) for _ in range(5)]
        jobs = [await world.end_of(job_id) for job_id in job_ids]

    assert [job.status for job in jobs] == [JobStatus.FINISHED] * 5
    assert inside == 5


async def test_a_plain_function_that_blocks_holds_up_nobody(world: World) -> None:
    """R60."""
    may_end = threading.Event()

    def slow(actions: ActionFactory) -> None:
        assert may_end.wait(10.0)
        actions.transition_to("end")

    sleeping = a_blueprint({"a": slow}, name="sleeping")
    awake = counting_chain(3)
    async with running(world.executor(sleeping, awake)):
        slow_id = await world.create(sleeping)
        await world.until_status(slow_id, JobStatus.RUNNING)
        meanwhile = await world.end_of(await world.create(awake))
        still = await world.job(slow_id)
        may_end.set()
        job = await world.end_of(slow_id)

    assert meanwhile.status is JobStatus.FINISHED
    assert still.status is JobStatus.RUNNING
    assert job.status is JobStatus.FINISHED


async def test_never_more_handlers_run_than_the_limit(world: World) -> None:
    """Also when a read brings more than was asked for; what is above the limit others may read."""
    store = world.store
    inside, most, may_end = 0, 0, asyncio.Event()

    async def read(group: str, consumer: str, room: int) -> list[Delivery]:
        return await store.inbox.read(group, consumer, room + 1)

    async def handler(actions: ActionFactory) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await may_end.wait()
        inside -= 1
        actions.transition_to("end")

    def unread() -> int:
        return sum(len(lane) for lane in world.tables.groups["default"].lanes.values())

    blueprint = a_blueprint({"a": handler})
    backend = with_faults(store, "inbox", read=read)
    executor = world.executor(blueprint, backend=backend, max_concurrent_jobs=3)
    job_ids = [await world.create(blueprint) for _ in range(10)]
    async with running(executor):
        await until(lambda: inside == 3 and unread() == 7, message="one is kept back")
        may_end.set()
        jobs = [await world.end_of(job_id) for job_id in job_ids]

    assert most == 3
    assert {job.status for job in jobs} == {JobStatus.FINISHED}


async def test_a_long_chain_lets_other_started_jobs_in(world: World) -> None:
    order: list[str] = []

    async def step(context: JobContext) -> None:
        count = context.state_history["count"] = context.state_history.get("count", 0) + 1
        order.append("long")
        if count == 3:
            await world.succeed(task)
        context.actions.transition_to("a" if count < 20 else "end")

    def after(actions: ActionFactory) -> None:
        order.append("other")
        actions.transition_to("end")

    long = a_blueprint({"a": step}, name="long")
    other = a_blueprint({"a": dispatch({"success": "b"}), "b": after}, name="other")
    executor = world.executor(long, other, max_concurrent_jobs=1, steps_per_claim=5)
    async with running(executor):
        other_id = await world.create(other)
        task = await world.take()
        job = await world.end_of(await world.create(long))
        await world.end_of(other_id)

    assert job.data.state_history["count"] == 20
    assert order == [*["long"] * 5, "other", *["long"] * 15]


@pytest.fixture
def frozen_heap() -> Generator[None, None, None]:
    """What the other tests of this process left is nothing for the collector to look at.

    A service process does the same once it has started (`calm_collector`).
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_heap")
async def test_a_megabyte_of_history_does_not_block_the_loop(world: World) -> None:
    """R76: 1 MB through 50 steps, and a ticking task beside it."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        before = thread_time()  # of the loop's thread: other processes of this machine do not count
        while True:
            await asyncio.sleep(0.001)
            now = thread_time()
            worst = max(worst, now - before)
            before = now

    def step(state_history: dict[str, Any], actions: ActionFactory) -> None:
        if not state_history:
            state_history["rows"] = [{"n": n, "text": "x" * 100} for n in range(10_000)]
        count = state_history["count"] = state_history.get("count", 0) + 1
        actions.transition_to("a" if count < 50 else "end")

    blueprint = a_blueprint({"a": step})
    async with running(world.executor(blueprint)), asyncio.TaskGroup() as group:
        ticking = group.create_task(tick())
        job = await world.end_of(await world.create(blueprint))
        ticking.cancel()

    assert len(world.record(job.id).data) > 1_000_000
    assert job.data.state_history["count"] == 50
    assert worst < 0.1


async def test_short_chains_of_many_jobs_each_run_each_step_once(world: World) -> None:
    blueprint = counting_chain(3)
    aside = a_blueprint({"a": go_to("end")})
    async with running(world.executor(blueprint, aside), world.executor(blueprint, aside)):
        job_ids = [await world.create(blueprint) for _ in range(200)]
        jobs = [await world.end_of(job_id) for job_id in job_ids]

    assert all(job.data.state_history["steps"] == [0, 1, 2] for job in jobs)
    assert await world.store.inbox.length() == 0
