"""Sleep, signals and deadlines on Redis, with watcher and executors as in a real deployment."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from avtomatika_common import ids
from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import TooManySignals
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.lifecycle import running
from avtomatika_core.events import SignalReceived
from avtomatika_core.job import JobId, JobStatus, Origin, new_job
from tests.contract.builders import Executor
from tests.integration.test_executor_on_redis import a_store, executor, is_empty, watcher
from tests.jobs import create_job, ended
from tests.support import until

pytestmark = pytest.mark.integration


async def send(store: RedisStorage, job_id: JobId, **data: Any) -> None:
    signal = SignalReceived(at=store.clock.now(), name="tick", data=data)
    await store.jobs.send_signal(job_id, signal)


async def test_each_of_many_signals_counts_once_whoever_applies_it(redis_url: str) -> None:
    """Two executors, jobs that listen, work and listen again, and signals that come all the while."""
    blueprint = StateMachineBlueprint("counter")

    @blueprint.handler_for("listen", is_start=True)
    async def listen(actions: ActionFactory) -> None:
        actions.wait_for_signal("tick", {"received": "count"}, 60)

    @blueprint.handler_for("count")
    async def count(state_history: dict[str, Any], actions: ActionFactory) -> None:
        seen: list[int] = state_history.setdefault("seen", [])
        seen.append(state_history["n"])
        await asyncio.sleep(0)
        if len(seen) < 40:
            actions.transition_to("listen")
        else:
            actions.sleep(0.02, next_state="end")

    @blueprint.handler_for("end", is_end=True)
    async def end() -> None:
        pass

    async with (
        a_store(redis_url) as store,
        running(watcher(store), executor(store, blueprint), executor(store, blueprint)),
    ):
        job_ids = [await create_job(store, blueprint) for _ in range(5)]
        await asyncio.gather(*(send(store, job_id, n=n) for n in range(40) for job_id in job_ids))
        jobs = [await ended(store, job_id, 20.0) for job_id in job_ids]
        await until(lambda: is_empty(store))

    for job in jobs:
        assert job.status is JobStatus.FINISHED
        assert sorted(job.data.state_history["seen"]) == list(range(40))
        assert (job.signals.kept, job.signals.taken) == ((), 40)


async def test_a_job_that_takes_no_signals_is_sent_no_more_than_a_hundred(redis_url: str) -> None:
    blueprint = StateMachineBlueprint("deaf")

    @blueprint.handler_for("a", is_start=True)
    async def sleep(actions: ActionFactory) -> None:
        actions.sleep(600, next_state="end")

    @blueprint.handler_for("end", is_end=True)
    async def end() -> None:
        pass

    async with a_store(redis_url) as store, running(executor(store, blueprint)):
        job_id = await create_job(store, blueprint)
        outcomes = await asyncio.gather(
            *(send(store, job_id, n=n) for n in range(150)), return_exceptions=True
        )
        await until(lambda: is_empty(store))
        stored = await store.jobs.load(job_id)

    assert [type(one) for one in outcomes if one is not None] == [TooManySignals] * 50
    assert stored is not None
    assert stored.job.status is JobStatus.SLEEPING
    assert len(stored.job.signals.kept) == 100


async def test_a_job_ends_when_its_time_is_over_and_its_handler_is_stopped(redis_url: str) -> None:
    blueprint = StateMachineBlueprint("endless")
    stopped = asyncio.Event()

    @blueprint.handler_for("a", is_start=True, is_end=True)
    async def endless(state_history: dict[str, Any]) -> None:
        state_history["left"] = True
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with (
        a_store(redis_url) as store,
        running(watcher(store), executor(store, blueprint)),
        asyncio.timeout(20),
    ):
        origin = Origin(
            blueprint="endless",
            group="default",
            start_state="a",
            created_at=store.clock.now(),
            timeout_seconds=0.3,
        )
        job_id = (await store.jobs.create(new_job(JobId(ids.new_id()), origin))).job_id
        job = await ended(store, job_id)
        await stopped.wait()
        await until(lambda: is_empty(store))
        after = await ended(store, job_id)

    assert (job.status, job.data.state_history) == (JobStatus.FAILED, {})
    assert job.head.error_message == "Job timed out after 0.3 seconds."
    assert after == job
    assert job.head.finished_at is not None
    assert 0.3 <= job.head.finished_at - job.origin.created_at < 1.3


async def test_a_signal_is_told_from_the_entry_of_its_jobs_creation(redis_url: str) -> None:
    """R2: both lanes number their entries by the time, and these come in one millisecond."""
    p, later = keys.partition(0), 4_000_000_000_000
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        begun, dead = Executor(store), Executor(store, "dead")
        await begun.read_all()  # now there are lanes
        for lane in ("in", "new"):
            last = await client.xadd(keys.lane(p, lane, "default"), {"j": "none"}, id=f"{later}-0")
            await client.xdel(keys.lane(p, lane, "default"), last)
        job = await dead.start()
        await send(store, job.job.id, n=1)
        await dead.read_all()

        await store.inbox.take_over("default", "dead", begun.name, 20)

        stored = await store.jobs.load(job.job.id)
    assert stored is not None
    assert stored.tries == 1
