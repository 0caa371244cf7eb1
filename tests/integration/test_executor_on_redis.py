"""Executors on Redis with several partitions: fan-outs, sub-jobs, cancels, and entries nobody can read."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from avtomatika_common import ids
from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import Consumer, StoreOptions
from avtomatika_common.backend.redis import keys, liveness
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.events import CancelRequested, TaskSucceeded
from avtomatika_core.job import JobId, JobStatus, Origin, TaskId, WorkerId, new_job
from avtomatika_executor import ExecutorService, Settings, takeover
from avtomatika_watcher import Settings as WatcherSettings
from avtomatika_watcher import WatcherService
from tests.blueprints import counting_chain
from tests.contract.builders import Executor
from tests.jobs import create_job, ended
from tests.proxy import proxy_to
from tests.support import until

pytestmark = pytest.mark.integration

PARTITIONS = 3


@asynccontextmanager
async def a_store(url: str, block_seconds: float = 0.2) -> AsyncGenerator[RedisStorage, None]:
    async with Redis.from_url(url) as client:
        store = RedisStorage(client)
        await store.open(StoreOptions(partitions=PARTITIONS, block_seconds=block_seconds))
        yield store
        await store.close()


def executor(
    store: RedisStorage, *blueprints: StateMachineBlueprint, **settings: Any
) -> ExecutorService:
    for blueprint in blueprints:
        blueprint.validate()
    return ExecutorService(Settings(**settings), store, blueprints)


def watcher(store: RedisStorage) -> WatcherService:
    return WatcherService(WatcherSettings(instance_id="w", heartbeat_seconds=60.0), store)


@asynccontextmanager
async def busy_workers(store: RedisStorage) -> AsyncGenerator[None, None]:
    """Take every task from the boards, do nothing, and succeed."""

    async def work(partition: int) -> None:
        worker = WorkerId(f"w{partition}")
        while True:
            for task in await store.board.heads(partition, 64):
                leased = await store.board.lease(
                    task.task_id, task.job_id, task.offer_number, worker, 1
                )
                assert leased is not None
                await store.board.confirm(task.task_id, task.job_id, worker)
                done = TaskSucceeded(
                    at=store.clock.now(),
                    task_id=task.task_id,
                    worker_id=worker,
                    fresh_id=TaskId(ids.new_id()),
                    data=dict(leased.params),
                )
                await store.board.end_lease(task.job_id, worker, done)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        working = [group.create_task(work(partition)) for partition in range(PARTITIONS)]
        yield
        for task in working:
            task.cancel()


async def is_empty(store: RedisStorage) -> bool:
    return await store.inbox.length() == 0


async def test_fan_outs_join_each_with_all_results(redis_url: str) -> None:
    """R11."""
    blueprint = StateMachineBlueprint("spread")
    seen: list[list[int]] = []

    @blueprint.handler_for("a", is_start=True)
    async def spread(actions: ActionFactory) -> None:
        tasks = [{"type": "t", "params": {"n": n}} for n in range(8)]
        actions.dispatch_parallel(tasks, aggregate_into="join")

    @blueprint.aggregator_for("join")
    async def join(context: JobContext) -> None:
        results = context.aggregation_results or {}
        seen.append([result["data"]["n"] for result in results.values()])
        context.actions.transition_to("end")

    @blueprint.handler_for("end", is_end=True)
    async def end() -> None:
        pass

    async with (
        a_store(redis_url) as store,
        running(executor(store, blueprint), executor(store, blueprint)),
        busy_workers(store),
    ):
        job_ids = [await create_job(store, blueprint) for _ in range(20)]
        jobs = [await ended(store, job_id) for job_id in job_ids]
        await until(lambda: is_empty(store))

    assert {job.status for job in jobs} == {JobStatus.FINISHED}
    assert seen == [list(range(8))] * 20


async def test_as_many_children_that_end_at_once_as_parents_that_go_on(redis_url: str) -> None:
    """R21."""
    child = counting_chain(1, "child")
    parent = StateMachineBlueprint("parent")

    @parent.handler_for("p", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.run_blueprint("child", {}, {"success": "well", "failure": "badly"})

    @parent.handler_for("well", is_end=True)
    @parent.handler_for("badly", is_end=True)
    async def end() -> None:
        pass

    async with a_store(redis_url) as store:
        both = [executor(store, child, parent), executor(store, child, parent)]
        async with running(*both):
            job_ids = [await create_job(store, parent) for _ in range(200)]
            jobs = [await ended(store, job_id, 20.0) for job_id in job_ids]
            await until(lambda: is_empty(store))
            counts = await store.jobs.count_by_status()

    assert {job.state for job in jobs} == {"well"}
    assert counts == {JobStatus.FINISHED: 400}


async def test_a_handler_is_repeated_when_its_delay_is_over(redis_url: str) -> None:
    """R23, with the watcher of a real deployment."""
    blueprint = StateMachineBlueprint("flaky")
    runs: list[float] = []

    @blueprint.handler_for("a", is_start=True, is_end=True)
    async def flaky(state_history: dict[str, Any]) -> None:
        runs.append(asyncio.get_running_loop().time())
        state_history.setdefault("runs", []).append(len(runs))
        if len(runs) < 3:
            raise OSError("again")

    async with (
        a_store(redis_url) as store,
        running(watcher(store), executor(store, blueprint, retry_delay_seconds=0.1, max_retries=2)),
    ):
        job = await ended(store, await create_job(store, blueprint))

    assert (job.status, job.head.error_message) == (JobStatus.FINISHED, None)
    assert job.data.state_history == {"runs": [3]}
    assert 0.07 < runs[1] - runs[0] < runs[2] - runs[1]


async def test_a_cancelled_job_stops_its_handler_and_takes_nothing_from_it(redis_url: str) -> None:
    blueprint = StateMachineBlueprint("held")
    begun, stopped = asyncio.Event(), asyncio.Event()

    @blueprint.handler_for("a", is_start=True, is_end=True)
    async def held(state_history: dict[str, Any]) -> None:
        state_history["left"] = True
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with a_store(redis_url) as store, running(executor(store, blueprint)):
        job_id = await create_job(store, blueprint)
        await begun.wait()
        await store.jobs.request_cancel(job_id, CancelRequested(at=store.clock.now()))
        job = await ended(store, job_id)
        await until(stopped.is_set)
        await until(lambda: is_empty(store))
        after = await ended(store, job_id)

    assert (job.status, job.data.state_history) == (JobStatus.CANCELLED, {})
    assert after == job


async def test_a_job_moves_to_the_group_that_hosts_its_blueprint(redis_url: str) -> None:
    moved, other = counting_chain(3, "moved"), counting_chain(1, "other")
    async with (
        a_store(redis_url) as store,
        running(executor(store, moved, group="blue"), executor(store, other)),
    ):
        job_ids = [await create_job(store, moved) for _ in range(10)]
        jobs = [await ended(store, job_id) for job_id in job_ids]
        await until(lambda: is_empty(store))

    assert all(job.data.state_history["steps"] == [0, 1, 2] for job in jobs)


async def test_a_job_waits_for_the_new_version_of_its_group(redis_url: str) -> None:
    new, old = counting_chain(3, "new"), counting_chain(1, "old")
    async with a_store(redis_url) as store, running(watcher(store)):
        async with running(executor(store, new)):
            pass  # the catalogue knows it now
        async with running(executor(store, old)):
            job_id = await create_job(store, new)
            await until(lambda: is_empty(store), message="the entry is not deferred")
        async with running(executor(store, new)):
            job = await ended(store, job_id)

    assert job.status is JobStatus.FINISHED
    assert job.data.state_history["steps"] == [0, 1, 2]


async def test_entries_and_jobs_nobody_can_read_hold_up_nobody(redis_url: str) -> None:
    blueprint = counting_chain(2)
    async with a_store(redis_url) as store, Redis.from_url(redis_url) as client:
        [garbled, broken] = [await create_job(store, blueprint) for _ in range(2)]
        p = keys.partition(ids.partition_of(broken, PARTITIONS))
        await client.hset(keys.job(p, broken), "head", b"\xc1")
        for number in range(PARTITIONS):
            lane = keys.lane(keys.partition(number), "in", "default")
            await client.xadd(lane, {"odd": "fields"})
            await client.xadd(lane, {"j": "no-id", "e": b"\xc1"})
        own = keys.lane(keys.partition(ids.partition_of(garbled, PARTITIONS)), "new", "default")
        entries: Any = await client.xrange(own)
        for entry_id, fields in entries:
            if fields[b"j"].decode() == garbled:
                await client.xdel(own, entry_id)
        await client.xadd(own, {"j": garbled, "e": b"\xc1"})
        service = executor(store, blueprint, again_seconds=0.02)
        async with running(watcher(store), service):
            job = await ended(store, await create_job(store, blueprint))
            bad = await ended(store, garbled)
            await until(lambda: is_quarantined(store, broken))
            await until(lambda: is_empty(store))
        unreadable = await ended(store, broken)
        dead = {one.job_id: one for one in await store.dead_events.newest(100)}
        await client.hset(keys.job(p, broken), "head", b"\xc1")
        shown = await store.jobs.view(broken)

    assert job.status is JobStatus.FINISHED
    assert (bad.status, bad.head.error_message) == (
        JobStatus.QUARANTINED,
        "An event of the job could not be read.",
    )
    assert unreadable.status is JobStatus.QUARANTINED
    assert dead.keys() == {garbled, broken, "no-id", ""}
    assert dead[broken].reason == unreadable.head.error_message
    assert (dead[broken].event or {})["event"] == "job_created"
    assert dead[garbled].event is None
    assert shown is not None
    assert shown.job.status is JobStatus.QUARANTINED


async def test_an_entry_that_ended_one_executor_after_another_is_set_aside(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(takeover, "_CALM_SECONDS", 0.1)
    blueprint = counting_chain(2)
    async with a_store(redis_url) as store:
        await store.inbox.pending("default", "gone-0")  # all partitions have their group
        job_id = await create_job(store, blueprint)
        [delivery] = await store.inbox.read("default", "gone-0", 1)
        for number in range(5):
            gone, other = f"gone-{number}", f"gone-{number + 1}"
            [delivery] = await store.inbox.take_over("default", gone, other, 10)
        async with running(executor(store, blueprint)):
            job = await ended(store, job_id)
            await until(lambda: is_empty(store))
        [dead] = await store.dead_events.newest(10)
        counts = await store.jobs.count_by_status()
        await store.dead_events.replay(dead.dead_id)
        async with running(executor(store, blueprint)):
            await until(lambda: has_finished(store, job_id))

    assert delivery.job_id == dead.job_id == job_id
    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == dead.reason
    assert dead.reason == "An event of the job was delivered 5 times without a commit."
    assert counts == {JobStatus.QUARANTINED: 1}


async def has_finished(store: RedisStorage, job_id: JobId) -> bool:
    stored = await store.jobs.load(job_id)
    return stored is not None and stored.job.status is JobStatus.FINISHED


async def is_quarantined(store: RedisStorage, job_id: JobId) -> bool:
    return job_id in await store.jobs.quarantined()


async def test_a_document_nobody_could_read_is_given_back_by_a_replay(redis_url: str) -> None:
    blueprint = counting_chain(2)
    async with a_store(redis_url) as store, Redis.from_url(redis_url) as client:
        job_id = await create_job(store, blueprint)
        key = keys.job(keys.partition(ids.partition_of(job_id, PARTITIONS)), job_id)
        parts = ("input", "head", "data")
        whole = [await client.hget(key, part) or b"" for part in parts]
        for part in parts:
            await client.hset(key, part, b"\xc1")
        async with running(executor(store, blueprint, max_tries=1)):
            await until(lambda: is_quarantined(store, job_id))
        [dead] = await store.dead_events.newest(10)
        await store.dead_events.replay(dead.dead_id)
        restored = await client.hmget(key, *parts)
        for part, packed in zip(parts, whole, strict=True):
            await client.hset(key, part, packed)
        async with running(executor(store, blueprint)):
            job = await ended(store, job_id)

    assert restored == [b"\xc1"] * 3
    assert job.data.state_history == {"steps": [0, 1]}


async def jobs_whose_entries_have_one_id(
    store: RedisStorage, client: Redis, blueprint: StateMachineBlueprint
) -> list[JobId]:
    """Each of the two lanes has one of them."""
    p = keys.partition(0)
    new, started = keys.lane(p, "new", "default"), keys.lane(p, "in", "default")
    job_ids = [await create_job_in(store, 0, blueprint) for _ in range(2)]
    entries: Any = await client.xrange(new)
    [(entry_id, _), (other_id, fields)] = entries
    await client.xdel(new, other_id)
    await client.xadd(started, fields, id=entry_id)
    await client.hset(keys.job(p, job_ids[1]), "claim", entry_id)
    return job_ids


async def test_entries_of_two_lanes_may_have_one_id(redis_url: str) -> None:
    """R2: each stream counts its own: neither entry is taken for the other."""
    blueprint = counting_chain(2)
    async with a_store(redis_url) as store, Redis.from_url(redis_url) as client:
        job_ids = await jobs_whose_entries_have_one_id(store, client, blueprint)
        async with running(executor(store, blueprint)):
            jobs = [await ended(store, job_id, 3.0) for job_id in job_ids]
            await until(lambda: is_empty(store))

    assert all(job.data.state_history["steps"] == [0, 1] for job in jobs)


async def test_entries_of_one_id_may_both_be_deferred(redis_url: str) -> None:
    """R2."""
    blueprint = counting_chain(2)
    async with a_store(redis_url) as store, Redis.from_url(redis_url) as client:
        job_ids = await jobs_whose_entries_have_one_id(store, client, blueprint)
        deferred = await Executor(store).read_all()
        for delivery in deferred:
            await store.inbox.defer(delivery, 0.01)
        async with running(watcher(store), executor(store, blueprint)):
            jobs = [await ended(store, job_id, 5.0) for job_id in job_ids]
            await until(lambda: is_empty(store))

    assert {delivery.entry_id for delivery in deferred} == {deferred[0].entry_id}
    assert [delivery.job_id for delivery in deferred] == job_ids[::-1]
    assert all(job.data.state_history["steps"] == [0, 1] for job in jobs)


async def test_who_stopped_reading_is_given_nothing_more(redis_url: str) -> None:
    blueprint = counting_chain(2)
    async with a_store(redis_url, 30.0) as store, asyncio.TaskGroup() as group:
        for consumer in ("gone", "there"):
            await store.inbox.pending("default", consumer)
        reading = group.create_task(store.inbox.read("default", "gone", 10))
        await until(lambda: has_blocked(redis_url))
        reading.cancel()
        await until(lambda: has_not_blocked(redis_url))
        job_ids = {await create_job(store, blueprint) for _ in range(20)}
        found: set[JobId] = set()
        while len(found) < 20:
            deliveries = await store.inbox.read("default", "there", 20)
            assert deliveries, "some went elsewhere"
            found |= {delivery.job_id for delivery in deliveries}

    assert found == job_ids


async def has_blocked(url: str) -> bool:
    async with Redis.from_url(url) as client:
        return bool((await client.info("clients"))["blocked_clients"])


async def has_not_blocked(url: str) -> bool:
    return not await has_blocked(url)


async def create_job_in(
    store: RedisStorage, partition: int, blueprint: StateMachineBlueprint
) -> JobId:
    assert blueprint.start_state is not None
    origin = Origin(
        blueprint=blueprint.name,
        group="default",
        start_state=blueprint.start_state,
        created_at=store.clock.now(),
    )
    job_id = JobId(ids.new_id_in_partition(partition, PARTITIONS))
    return (await store.jobs.create(new_job(job_id, origin))).job_id


def scale_times(monkeypatch: pytest.MonkeyPatch, *, calm_seconds: float) -> None:
    monkeypatch.setattr(liveness, "_LIFETIME_MS", 1000)
    monkeypatch.setattr(liveness, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(takeover, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(takeover, "_CALM_SECONDS", calm_seconds)


def held(runs: list[str], may_end: asyncio.Event) -> StateMachineBlueprint:
    """Its handler says that it runs, and waits."""
    blueprint = StateMachineBlueprint("held")

    @blueprint.handler_for("a", is_start=True, is_end=True)
    async def hold(job_id: str) -> None:
        runs.append(job_id)
        await may_end.wait()

    return blueprint


async def test_after_an_outage_nobody_is_taken_for_dead(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: it outlasts every liveness key; all times are a fifth of the real ones."""
    scale_times(monkeypatch, calm_seconds=1.0)
    runs: list[str] = []
    may_end = asyncio.Event()
    blueprint = held(runs, may_end)

    async with a_store(redis_url) as store, Redis.from_url(redis_url) as client:
        consumers, looks = store.inbox.consumers, 0

        async def counted(group: str) -> list[Consumer]:
            nonlocal looks
            found = await consumers(group)
            looks += 1
            return found

        monkeypatch.setattr(store.inbox, "consumers", counted)
        both = [
            executor(store, blueprint, max_concurrent_jobs=3, shutdown_timeout_seconds=1)
            for _ in range(2)
        ]
        async with running(*both):
            job_ids = [await create_job(store, blueprint) for _ in range(6)]
            await until(lambda: len(runs) == 6 and looks > 12, 10.0)
            keys_of_both = [keys.alive(keys.partition(0), one.instance) for one in both]
            await client.execute_command("CLIENT", "PAUSE", 1500, "ALL")
            outlasted = await client.exists(*keys_of_both) < 2
            looks = 0
            await until(lambda: looks > 22, 15.0)  # calm is over, and more
            may_end.set()
            jobs = [await ended(store, job_id) for job_id in job_ids]

    assert outlasted
    assert sorted(runs) == sorted(job_ids)
    assert {job.status for job in jobs} == {JobStatus.FINISHED}


async def test_two_executors_share_jobs_and_each_step_runs_once(redis_url: str) -> None:
    blueprint = counting_chain(5)
    async with a_store(redis_url) as store:
        both = [executor(store, blueprint, max_concurrent_jobs=10) for _ in range(2)]
        async with running(*both):
            job_ids: list[JobId] = [await create_job(store, blueprint) for _ in range(200)]
            jobs = [await ended(store, job_id, 20.0) for job_id in job_ids]
            await until(lambda: is_empty(store))

    assert all(job.data.state_history["steps"] == [0, 1, 2, 3, 4] for job in jobs)
    assert all(job.head.transition_count == 5 for job in jobs)


async def test_after_an_outage_the_first_one_back_waits_for_the_others(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: by then all liveness keys are gone, and the other's is not back yet."""
    scale_times(monkeypatch, calm_seconds=3.0)
    runs: list[str] = []
    may_end = asyncio.Event()
    blueprint = held(runs, may_end)

    async with (
        proxy_to(redis_url) as (way_of_one, url_of_one),
        proxy_to(redis_url) as (way_of_other, url_of_other),
        Redis.from_url(redis_url) as client,
        a_store(url_of_one) as one,
        a_store(url_of_other) as other,
    ):
        consumers, looks_at_other = one.inbox.consumers, 0

        async def counted(group: str) -> list[Consumer]:
            nonlocal looks_at_other
            found = await consumers(group)
            looks_at_other += 1
            return found

        monkeypatch.setattr(one.inbox, "consumers", counted)
        both = [executor(store, blueprint, max_concurrent_jobs=3) for store in (one, other)]
        one_alive, other_alive = (keys.alive(keys.partition(0), each.instance) for each in both)
        async with running(*both):
            job_ids = [await create_job(one, blueprint) for _ in range(6)]
            await until(
                lambda: len(runs) == 6 and looks_at_other > 17, 10.0
            )  # the first calm is over
            for way in (way_of_one, way_of_other):
                way.refuses = True
                way.cut_now()
            await until(lambda: is_gone(client, one_alive, other_alive))
            way_of_one.refuses = False
            looks_at_other = 0
            await until(lambda: looks_at_other > 3)
            still_away = await is_gone(client, other_alive)
            way_of_other.refuses = False
            await until(lambda: client.exists(other_alive))
            looks_at_other = 0
            await until(lambda: looks_at_other > 17, 15.0)  # calm is over, and more
            may_end.set()
            jobs = [await ended(one, job_id) for job_id in job_ids]

    assert still_away
    assert sorted(runs) == sorted(job_ids)
    assert {job.status for job in jobs} == {JobStatus.FINISHED}


async def is_gone(client: Redis, *names: str) -> bool:
    return await client.exists(*names) == 0
