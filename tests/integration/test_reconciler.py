"""The reconciler on a busy Redis: it mends nothing that is whole, whatever happens at the same time."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from avtomatika_common import ids
from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    JobIsTerminal,
    LostClaim,
    StoreOptions,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.scripts import Script
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.events import CancelRequested, TaskFailed, TaskSucceeded
from avtomatika_core.job import ApprovalWait, JobId, JobStatus, TaskId, WorkerId
from avtomatika_executor import ExecutorService, Settings
from avtomatika_watcher import Settings as WatcherSettings
from avtomatika_watcher import WatcherService
from avtomatika_watcher.reconciler import Reconciler
from tests.blueprints import counting_chain
from tests.contract.breaking import RedisHands
from tests.contract.builders import TO_END, Claim, Executor, a_success, fire, take
from tests.jobs import create_job, ended
from tests.support import until

pytestmark = pytest.mark.integration

PARTITIONS = 2
BUSY_SECONDS = 2.0
EAGER = WatcherSettings(
    instance_id="w",
    heartbeat_seconds=60.0,
    pause_seconds=0.002,
    lap_seconds=0.01,
    quiet_seconds=0.0,
)
"""It looks at everything, without a rest."""


@asynccontextmanager
async def a_store(url: str, partitions: int = PARTITIONS) -> AsyncGenerator[RedisStorage, None]:
    async with Redis.from_url(url) as client:
        store = RedisStorage(client)
        await store.open(StoreOptions(partitions=partitions, block_seconds=0.2))
        yield store
        await store.close()


def a_mixed_load() -> list[StateMachineBlueprint]:
    """A chain; and a blueprint that dispatches, spreads, has a child, fails and asks, in turn."""
    child, mixed = counting_chain(3, "child"), StateMachineBlueprint("mixed")

    @mixed.handler_for("task", is_start=True)
    async def task(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {}, {"success": "spread", "cancelled": "end"})

    @mixed.handler_for("spread")
    async def spread(actions: ActionFactory) -> None:
        count = random.choice((5, 5, 5, 60))  # more than are looked at with their job
        actions.dispatch_parallel([{"type": "t"}] * count, aggregate_into="join")

    @mixed.aggregator_for("join")
    async def join(context: JobContext) -> None:
        context.actions.run_blueprint("child", {}, {"success": "flaky", "failure": "end"})

    failed_once: set[str] = set()

    @mixed.handler_for("flaky")
    async def flaky(job_id: str, actions: ActionFactory) -> None:
        if job_id not in failed_once:
            failed_once.add(job_id)
            raise OSError
        actions.await_human_approval("mail", "?", {"yes": "end"})

    @mixed.handler_for("end", is_end=True)
    async def end() -> None:
        pass

    for blueprint in (child, mixed):
        blueprint.validate()
    return [child, mixed]


async def work(store: RedisStorage, partition: int) -> None:
    """Take every task; most succeed, some fail, some never reach the worker."""
    worker = WorkerId(f"w{partition}")
    registered = await store.workers.register(worker, {}, 600.0)
    while True:
        for task in await store.board.heads(partition, 8):
            leased = await store.board.lease(
                task.task_id, task.job_id, task.offer_number, worker, registered.incarnation
            )
            if leased is None:
                continue
            chance = random.random()
            if chance < 0.1:
                await store.board.undeliver(task.task_id, task.job_id, worker)
                continue
            await store.board.confirm(task.task_id, task.job_id, worker)
            kind: Any = TaskFailed if chance < 0.2 else TaskSucceeded
            event = kind(
                at=store.clock.now(),
                task_id=task.task_id,
                worker_id=worker,
                fresh_id=TaskId(ids.new_id()),
            )
            await store.board.end_lease(task.job_id, worker, event)
        await asyncio.sleep(0.005)


async def decide_or_cancel(store: RedisStorage, job_id: JobId) -> None:
    """As somebody does who is not asked whether it is still time."""
    stored = await store.jobs.load(job_id)
    assert stored is not None
    wait, now = stored.job.head.wait, store.clock.now()
    with suppress(JobIsTerminal, ApprovalNotOpen):
        if isinstance(wait, ApprovalWait):
            await store.jobs.decide_approval(job_id, token=wait.token, decision="yes", at=now)
        elif random.random() < 0.02:
            await store.jobs.request_cancel(job_id, CancelRequested(at=now))


@asynccontextmanager
async def others(store: RedisStorage, job_ids: list[JobId]) -> AsyncGenerator[None, None]:
    """Workers, people who decide, clients who cancel."""

    async def people() -> None:
        while True:
            for job_id in random.sample(job_ids, min(len(job_ids), 10)):
                await decide_or_cancel(store, job_id)
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(store, partition)) for partition in range(PARTITIONS)]
        tasks.append(group.create_task(people()))
        yield
        for task in tasks:
            task.cancel()


async def test_a_healthy_busy_system_is_never_touched(redis_url: str) -> None:
    blueprints = a_mixed_load()
    job_ids: list[JobId] = []
    async with a_store(redis_url) as store:
        settings = Settings(retry_delay_seconds=0.05, max_concurrent_jobs=20, max_retries=10)
        executors = [ExecutorService(settings, store, blueprints) for _ in range(2)]
        watcher = WatcherService(EAGER, store)
        loop = asyncio.get_running_loop()
        laps: Counter[str] = Counter()
        live = store.inspection.live

        async def counted(partition: int, cursor: str, limit: int) -> Any:
            laps["of jobs"] += cursor == "0"
            return await live(partition, cursor, limit)

        store.inspection.live = counted  # type: ignore[method-assign]
        async with running(watcher, *executors), others(store, job_ids):
            ends = loop.time() + BUSY_SECONDS
            while loop.time() < ends:
                job_ids.append(await create_job(store, blueprints[1]))
                await asyncio.sleep(0.02)
            jobs = [await ended(store, job_id, 20.0) for job_id in job_ids]
            await until(lambda: is_empty(store))
        mended = await store.inspection.mended()

    assert mended == {}
    assert laps["of jobs"] > 20
    assert {job.status for job in jobs} <= {JobStatus.FINISHED, JobStatus.CANCELLED}


async def is_empty(store: RedisStorage) -> bool:
    return await store.inbox.length() == 0


def a_reconciler(store: RedisStorage, pause: float = 0.0, lap: float = 0.0) -> Reconciler:
    settings = WatcherSettings(pause_seconds=pause, lap_seconds=lap, quiet_seconds=0.0)
    return Reconciler(settings, store)


async def test_a_large_fan_out_that_is_not_offered_on_goes_on(redis_url: str) -> None:
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler = a_reconciler(store)
        await Executor(store).fan_out(600)
        for _ in range(3):
            await reconciler.lap(0)
        whole = await store.inspection.mended()
        await client.delete(f"{keys.partition(0)}tm")

        for _ in range(2):
            await reconciler.lap(0)

        due = await store.timers.next_due(0)
        mended = await store.inspection.mended()

    assert whole == {}
    assert mended == {"offers": 1}
    assert due is not None


@pytest.mark.parametrize(("pause", "lap"), [(0.0, 0.0), (0.05, 1.2)])
async def test_branches_whose_tasks_are_gone_are_mended_once_however_many(
    redis_url: str, pause: float, lap: float
) -> None:
    """Also where a lap begins so soon after the one before that some may not be mended yet."""
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler, hands = a_reconciler(store, pause, lap), RedisHands(client)
        claim = await Executor(store).fan_out(700)
        while await fire(store):
            pass
        while waiting := await store.board.heads(0, 512):
            for task in waiting:
                await hands.lose_task(claim.job.id, task.task_id)

        for _ in range(6):  # what says so waits to be read
            await reconciler.lap(0)

        mended = await store.inspection.mended()

    assert mended == {"branch": 700}


async def test_an_entry_whose_consumer_was_deleted_is_delivered_again(redis_url: str) -> None:
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler, executor = a_reconciler(store), Executor(store)
        claim = await executor.start()
        lane = keys.lane(keys.partition(0), claim.delivery.lane, "default")
        await reconciler.lap(0)
        await reconciler.lap(0)
        whole = dict(await store.inspection.mended())

        await client.xgroup_delconsumer(lane, "g", claim.delivery.consumer)
        for _ in range(3):
            await reconciler.lap(0)
        mended = await store.inspection.mended()
        with pytest.raises(LostClaim):
            await executor.run(claim, TO_END)
        delivery = await executor.read()
        stored = await store.jobs.load(claim.job.id)
        assert stored is not None
        again = await executor.run(Claim(stored, delivery), TO_END)
        left = await store.inbox.length()

    assert (whole, mended) == ({}, {"entry": 1})
    assert stored.claim == delivery.entry_id
    assert again.job.state == "end"
    assert left == 1  # it runs on


async def test_an_event_that_its_group_was_led_past_is_delivered(redis_url: str) -> None:
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler, executor = a_reconciler(store), Executor(store)
        claim = await executor.dispatch()
        await take(store)
        await store.board.end_lease(
            claim.job.id, WorkerId("worker-1"), a_success(store, claim.task_id)
        )
        await client.xgroup_setid(keys.lane(keys.partition(0), "in", "default"), "g", "$")
        for _ in range(6):  # and it may wait to be read
            await reconciler.lap(0)
        mended = await store.inspection.mended()
        event = (await executor.read()).event

    assert mended == {"entry": 1}
    assert isinstance(event, TaskSucceeded)


async def test_large_events_are_looked_through_a_few_at_a_time(redis_url: str) -> None:
    lane = keys.lane(keys.partition(0), "in", "default")
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        for number in range(20):
            await client.xadd(lane, {"j": f"job-{number}", "e": b"x" * 100_000})
        now, cursor, found = store.clock.now() + 1, "0", list[JobId]()
        while cursor != "0" or not found:
            cursor, some = await store.inspection.awaited(0, "default", now, cursor, 100)
            assert len(some) <= 1
            found += some

    assert found == [f"job-{number}" for number in range(20)]


async def a_held_place(store: RedisStorage) -> Claim:
    """Of `w1`, for a task."""
    registered = await store.workers.register(WorkerId("w1"), {}, 600.0)
    claim = await Executor(store).dispatch()
    [task] = await store.board.heads(0, 1)
    leased = await store.board.lease(
        task.task_id, task.job_id, 1, WorkerId("w1"), registered.incarnation
    )
    assert leased is not None
    await store.relay.run_once(0)
    return claim


async def held(store: RedisStorage) -> int:
    worker = await store.workers.get(WorkerId("w1"))
    assert worker is not None
    return worker.places.held


async def test_the_end_of_a_place_that_was_long_on_its_way_is_nothing_to_mend(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_store(redis_url, 1) as store:
        reconciler = a_reconciler(store)
        claim = await a_held_place(store)
        await store.board.end_lease(
            claim.job.id, WorkerId("w1"), a_success(store, claim.task_id, "w1")
        )
        await reconciler.lap_of_places()
        original = Commands.script

        def relayed_meanwhile(us: Commands, called: Script, *args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                if called.name == "inspect_places":
                    monkeypatch.undo()
                    await store.relay.run_once(0)
                return await original(us, called, *args, **kwargs)

            return run()

        monkeypatch.setattr(Commands, "script", relayed_meanwhile)
        await reconciler.lap_of_places()
        await reconciler.lap_of_places()

        mended = await store.inspection.mended()
        places = await held(store)

    assert (mended, places) == ({}, 0)


async def test_a_place_for_nothing_is_free_again_also_without_its_offer(redis_url: str) -> None:
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler = a_reconciler(store)
        await a_held_place(store)
        await client.zadd(f"{keys.WORKERS}hold:w1", {"gone": math.inf})
        for _ in range(5):
            await reconciler.lap_of_places()

        mended = await store.inspection.mended()
        places = await held(store)

    assert (mended, places) == ({"hold": 1}, 1)


async def test_an_event_behind_many_others_is_waited_for(redis_url: str) -> None:
    lane = keys.lane(keys.partition(0), "in", "default")
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler = a_reconciler(store)
        claim = await Executor(store).dispatch()
        await take(store)
        for _ in range(250):
            await client.xadd(lane, {"j": "other", "e": b""})
        done = a_success(store, claim.task_id)
        await store.board.end_lease(claim.job.id, WorkerId("worker-1"), done)
        for _ in range(3):
            await reconciler.lap(0)
        whole = await store.inspection.mended()
        await client.delete(lane)

        for _ in range(2):
            await reconciler.lap(0)

        mended = await store.inspection.mended()

    assert whole == {}
    assert mended == {"task": 1}


async def test_what_is_live_no_more_is_not_listed_so(redis_url: str) -> None:
    p = keys.partition(0)
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler = a_reconciler(store)
        executor = Executor(store)
        claim = await executor.end(await executor.start())
        await client.sadd(f"{p}live", claim.job.id, "no-such-job")

        for _ in range(3):
            await reconciler.lap(0)

        left = await client.smembers(f"{p}live")
        mended = await store.inspection.mended()

    assert mended == {"live": 2}
    assert left == set()


async def test_a_document_nobody_can_read_does_not_keep_it_from_the_others(redis_url: str) -> None:
    p = keys.partition(0)
    async with a_store(redis_url, 1) as store, Redis.from_url(redis_url) as client:
        reconciler = a_reconciler(store)
        executor = Executor(store)
        [garbled, broken] = [await executor.start() for _ in range(2)]
        await client.hset(keys.job(p, garbled.job.id), "head", b"\xc1")
        await client.delete(keys.lane(p, "new", "default"))

        for _ in range(3):
            await reconciler.lap(0)

        stored = await store.jobs.load(broken.job.id)
        mended = await store.inspection.mended()

    assert mended == {"claim": 1}
    assert stored is not None
