"""Large fan-outs in Redis: laid beside the job, opened by one commit, offered and closed in chunks."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from avtomatika_common import ids
from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import ResultAnswer, StoreOptions, WaitingTask
from avtomatika_common.backend.redis.jobs import RedisJobs
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.lifecycle import running
from avtomatika_core.events import CancelRequested, TaskSucceeded
from avtomatika_core.job import JobStatus, TaskId, WorkerId
from avtomatika_executor import ExecutorService, Settings
from avtomatika_watcher import Settings as WatcherSettings
from avtomatika_watcher import WatcherService
from tests.jobs import create_job, ended
from tests.support import until

pytestmark = pytest.mark.integration

WORKER = WorkerId("worker-1")
COUNT = 700


def fan_out() -> StateMachineBlueprint:
    blueprint = StateMachineBlueprint("fan_out")

    @blueprint.handler_for("start", is_start=True)
    async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.dispatch_parallel(
            [{"type": "count", "params": {"n": n}} for n in range(initial_data["branches"])],
            aggregate_into="summarize",
        )

    @blueprint.aggregator_for("summarize")
    async def summarize(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history["numbers"] = [result["data"]["n"] for result in aggregation_results.values()]
        actions.transition_to("end")

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    blueprint.validate()
    return blueprint


@asynccontextmanager
async def orchestrator(url: str, blueprint: StateMachineBlueprint) -> AsyncGenerator[RedisStorage]:
    async with Redis.from_url(url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2, retention_seconds=60))
        watcher = WatcherService(WatcherSettings(), backend)
        async with running(watcher, ExecutorService(Settings(), backend, [blueprint])):
            yield backend
        await backend.close()


async def do(backend: RedisStorage, task: WaitingTask, incarnation: int) -> ResultAnswer:
    leased = await backend.board.lease(
        task.task_id, task.job_id, task.offer_number, WORKER, incarnation
    )
    assert leased is not None
    result = TaskSucceeded(
        at=backend.clock.now(),
        task_id=task.task_id,
        worker_id=WORKER,
        fresh_id=TaskId(ids.new_id()),
        data={"n": leased.params["n"]},
    )
    return await backend.board.end_lease(task.job_id, WORKER, result)


async def test_every_branch_of_a_large_fan_out_reaches_the_aggregator_in_order(
    redis_url: str,
) -> None:
    blueprint = fan_out()
    async with orchestrator(redis_url, blueprint) as backend:
        registered = await backend.workers.register(WORKER, {}, 60)
        job_id = await create_job(backend, blueprint, branches=COUNT)

        await until(lambda: is_offered(backend))
        view = await backend.jobs.view(job_id)
        answers: list[ResultAnswer] = []
        while tasks := await backend.board.heads(0, 100):
            done = (do(backend, task, registered.incarnation) for task in tasks)
            answers += await asyncio.gather(*done)
        job = await ended(backend, job_id)

    assert view is not None
    assert len(view.branches) == COUNT
    assert answers == [ResultAnswer.APPLIED] * COUNT
    assert job.data.state_history["numbers"] == list(range(COUNT))


async def test_a_cancelled_large_fan_out_leaves_nothing_behind(redis_url: str) -> None:
    blueprint = fan_out()
    async with orchestrator(redis_url, blueprint) as backend:
        registered = await backend.workers.register(WORKER, {}, 60)
        job_id = await create_job(backend, blueprint, branches=COUNT)
        await until(backend.board.length)
        first, *_ = await backend.board.heads(0, 1)
        await backend.jobs.request_cancel(job_id, CancelRequested(at=backend.clock.now()))
        refused = await backend.board.lease(
            first.task_id, job_id, first.offer_number, WORKER, registered.incarnation
        )
        job = await ended(backend, job_id)

        async def nothing_waits() -> bool:
            return await backend.board.length() == 0 and await backend.timers.next_due(0) is None

        await until(nothing_waits)
        async with Redis.from_url(redis_url) as client:
            left = [key async for key in client.scan_iter("avtomatika:*")]
            immortal = [key for key in left if b":j:" in key and await client.ttl(key) < 0]
            tasks = [key for key in left if b":t:" in key]

    assert refused is None
    assert job.status is JobStatus.CANCELLED
    assert not immortal
    assert not tasks


@pytest.mark.parametrize("forgotten", [256, COUNT], ids=["a chunk", "all"])
async def test_what_a_store_forgot_of_a_fan_out_is_laid_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, forgotten: int
) -> None:
    """As a replica does that is promoted and did not have it. Facts of the job go before."""
    times = 0
    stage = RedisJobs._stage  # pyright: ignore[reportPrivateUsage]

    async def stage_and_forget(self: RedisJobs, *what: Any) -> None:
        nonlocal times
        times += 1
        await stage(self, *what)
        if times == 1:
            [branches] = [key async for key in client.scan_iter("*:br:*")]
            laid: Any = await client.hkeys(branches)
            await client.hdel(branches, *laid[:forgotten])
            await client.ltrim(branches.replace(b":br:", b":st:"), forgotten, -1)

    monkeypatch.setattr(RedisJobs, "_stage", stage_and_forget)
    async with Redis.from_url(redis_url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2, keep_facts=True))
        executor = ExecutorService(Settings(), backend, [fan_out()])
        async with running(WatcherService(WatcherSettings(), backend), executor):
            registered = await backend.workers.register(WORKER, {}, 60)
            job_id = await create_job(backend, fan_out(), branches=COUNT)
            await until(lambda: is_offered(backend))
            while tasks := await backend.board.heads(0, 100):
                await asyncio.gather(*(do(backend, task, registered.incarnation) for task in tasks))
            job = await ended(backend, job_id)
        await backend.close()

    assert times == 2
    assert job.status is JobStatus.FINISHED
    assert job.data.state_history["numbers"] == list(range(COUNT))


async def is_offered(backend: RedisStorage) -> bool:
    return await backend.board.length() == COUNT
