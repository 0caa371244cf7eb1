"""The requirements about what is kept, and by whom, and of a stop: each on a whole orchestrator."""

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from avtomatika import RedisStorage, StateMachineBlueprint
from avtomatika.context import ActionFactory
from avtomatika_common import leadership
from avtomatika_common.backend.ports import IdempotencyKey, Lease, StoreOptions
from avtomatika_common.backend.redis import keys
from avtomatika_common.history import history_reader
from avtomatika_common.lifecycle import running
from avtomatika_core.redrive import redrive
from avtomatika_watcher import Settings as WatcherSettings
from avtomatika_watcher import WatcherService
from tests.contract.builders import Executor, a_job
from tests.integration.blueprints import a_blueprint, dispatch, go_to, run
from tests.integration.conftest import OpenSite
from tests.integration.hooks import Hooks
from tests.integration.sites import Site, a_site
from tests.interop.door import Door
from tests.support import until

pytestmark = pytest.mark.integration


# --- R62: what is left


async def test_an_idempotency_key_is_known_for_as_long_as_its_job(redis_url: str) -> None:
    """R62. No longer than a week after it, however long the job takes and however often it runs."""
    async with Redis.from_url(redis_url) as client:
        store = RedisStorage(client)
        await store.open(StoreOptions(retention_seconds=60))
        executor = Executor(store)
        job = a_job(store)
        name = keys.idempotency(keys.partition(0), "ann", "k")
        key = IdempotencyKey(client="ann", key="k", fingerprint="f")
        await store.jobs.create(job, idempotency=key)
        lifetimes = [await client.ttl(name)]
        await executor.raised(await executor.apply(await executor.read()), is_final=True)
        lifetimes.append(await client.ttl(name))
        ended = await store.jobs.load(job.id)
        assert ended is not None
        await store.jobs.redrive(ended, redrive(ended.job, store.clock.now()))
        lifetimes.append(await client.ttl(name))
        again = await store.jobs.create(a_job(store), idempotency=key)
        await store.close()

    assert [seconds > 0 for seconds in lifetimes] == [False, True, False]
    assert max(lifetimes) <= 7 * 86_400
    assert (again.job_id, again.is_repeat) == (job.id, True)


def something_of_everything() -> list[StateMachineBlueprint]:
    def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize"}] * 3, aggregate_into="join")

    def ask(actions: ActionFactory) -> None:
        actions.await_human_approval("mail", "?", {"yes": "done"}, timeout_seconds=0.1)

    def sleep(actions: ActionFactory) -> None:
        actions.sleep(0.1, next_state="done")

    def wait(actions: ActionFactory) -> None:
        actions.wait_for_signal("go", {"received": "done"}, timeout_seconds=60)

    def break_down() -> None:
        raise OSError("no luck")

    fan_out = a_blueprint("fan_out", start=spread, aside=go_to("done"))
    fan_out.aggregator_for("join", targets=["done", "aside"])(go_to("done"))
    return [
        a_blueprint("chain", start=go_to("next"), next=go_to("done")),
        a_blueprint("task", start=dispatch({"success": "done"}, dispatch_timeout_seconds=60)),
        fan_out,
        a_blueprint("parent", start=run("task", {"success": "done"})),
        a_blueprint("approval", start=ask),
        a_blueprint("sleeping", start=sleep),
        a_blueprint("waiting", start=wait),
        a_blueprint("broken", start=break_down),
        a_blueprint("held", start=dispatch({"success": "done"}, "held")),
    ]


async def live_through_everything(site: Site, hooks: Hooks, round_number: int) -> None:
    """Jobs of every kind, and what can happen to them; then nothing of it is left to do."""
    door, name = site.door, f"w{round_number}"
    await door.register(name, "resize", "held")
    made: dict[str, str] = {}
    for blueprint in site.engine.blueprints:
        body = {"initial_data": {}, "webhook_url": hooks.url, "timeout_seconds": 60}
        answer = await door.ask("POST", f"/jobs/{blueprint}", body)
        assert answer.status == 202, answer
        made[blueprint] = answer.json["job_id"]
    held: dict[str, Any] | None = None
    for _ in range(6):  # one of a job, three of a fan-out, one of a sub-job, and one to be held
        task = await door.task(name)
        if task["type"] == "held":
            held = task
            continue
        await door.progress(task, name, progress=0.5)
        await door.done(task, name)
    assert held is not None
    async with door.socket(name) as socket:
        await door.cancel(made["held"])
        await socket.receive_json(timeout=5)
    assert (await door.ask("POST", f"/jobs/{made['waiting']}/signals/go", {})).status < 300
    for job_id in made.values():
        await door.ended(job_id)
    assert (await door.ask("POST", f"/jobs/{made['broken']}/redrive")).status == 202
    await door.ended(made["broken"])
    assert (await door.ask("DELETE", f"/jobs/quarantined/{made['broken']}")).status == 200
    assert (await door.call("DELETE", f"/_worker/workers/{name}")).status == 200
    await until(site.is_idle, message="something is left to do")


async def keys_of(client: Redis) -> set[str]:
    return {key.decode() async for key in client.scan_iter("avtomatika:*")}


async def size_of(client: Redis, key: str) -> int:
    match await client.type(key):
        case b"hash":
            return await client.hlen(key)
        case b"zset":
            return await client.zcard(key)
        case b"set":
            return await client.scard(key)
        case b"stream":
            return await client.xlen(key)
        case _:
            return 1


async def lasting(client: Redis) -> dict[str, int]:
    """Keys that do not end by themselves, and how much is in them; hints are the newest few."""
    return {
        key: await size_of(client, key)
        for key in await keys_of(client)
        if await client.pttl(key) == -1 and not key.endswith(":hint")
    }


async def test_nothing_grows_with_the_jobs_that_are_over(
    one_redis: Callable[[], str], hooks: Hooks
) -> None:
    """R62."""
    retention = 1.0
    async with (
        Redis.from_url(one_redis()) as client,
        a_site(
            RedisStorage(client),
            something_of_everything(),
            JOB_RETENTION_SECONDS=str(retention),
            JOB_MAX_RETRIES="0",
        ) as site,
    ):
        left: list[dict[str, int]] = []
        for number in range(2):
            await live_through_everything(site, hooks, number)
            of_jobs = {key for key in await keys_of(client) if ":j:" in key or ":t:" in key}
            lifetimes = [await client.pttl(key) for key in of_jobs]
            assert of_jobs
            assert all(each == -2 or 0 <= each <= retention * 1000 for each in lifetimes)

            async def are_forgotten(of_jobs: set[str] = of_jobs) -> bool:
                return not of_jobs & await keys_of(client)

            await until(are_forgotten, message="jobs outlive their retention")
            left.append(await lasting(client))

    assert left[0] == left[1]


async def test_the_queue_counts_what_is_not_processed_yet(open_site: OpenSite) -> None:
    """R62."""
    begun, may_end = 0, asyncio.Event()

    async def wait(actions: ActionFactory) -> None:
        nonlocal begun
        begun += 1
        await may_end.wait()
        actions.transition_to("done")

    site = await open_site(a_blueprint("slow", start=wait), EXECUTOR_MAX_CONCURRENT_JOBS="2")
    lengths = [await site.storage.get_job_queue_length()]
    job_ids = [await site.door.create("slow") for _ in range(5)]
    await until(lambda: begun == 2)
    lengths.append(await site.storage.get_job_queue_length())
    may_end.set()
    for job_id in job_ids:
        await site.door.ended(job_id)
    await until(site.is_idle)
    lengths.append(await site.storage.get_job_queue_length())

    assert lengths == [0, 5, 0]


# --- R65: one of many


async def test_of_two_watchers_with_slow_rounds_one_handles_each_timeout(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R65: a round takes several times as long as the lease lasts."""
    monkeypatch.setattr(leadership, "LEASE_SECONDS", 0.4)
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leadership, "STANDBY_SECONDS", 0.05)
    give_out = dispatch({"success": "done", "timeout": "late"}, dispatch_timeout_seconds=0.2)
    site = await open_site(a_blueprint("work", ends=("done", "late"), start=give_out))
    timers, leases = site.storage.timers, site.storage.leases
    fire, acquire = timers.fire, leases.acquire
    fired = 0
    holders: Counter[str] = Counter()

    async def slow_round(partition: int, lease: Lease, limit: int = 512) -> int:
        nonlocal fired
        await asyncio.sleep(1.2)
        count = await fire(partition, lease, limit)
        fired += count
        return count

    async def watched(name: str, holder: str, seconds: float) -> Lease | None:
        lease = await acquire(name, holder, seconds)
        if lease is not None and name == "p0/watcher":
            holders[holder] += 1
        return lease

    monkeypatch.setattr(timers, "fire", slow_round)
    monkeypatch.setattr(leases, "acquire", watched)
    async with running(WatcherService(WatcherSettings(instance_id="other"), site.storage)):
        job_ids = [await site.door.create("work") for _ in range(5)]
        jobs = [await site.door.ended(job_id) for job_id in job_ids]

    assert {job["current_state"] for job in jobs} == {"late"}
    assert fired == 5
    assert site.ends == dict.fromkeys(job_ids, 1)
    assert not holders  # the first has it all the time


# --- R70: the stop


async def takes_nothing(door: Door) -> bool:
    try:
        await door.ask("GET", "/blueprints")
    except aiohttp.ClientError:
        return True
    return False


async def test_a_stop_ends_intake_first_and_tells_last_what_its_handlers_did(
    open_site: OpenSite, hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R70: the job of a handler that is let finish has its row and its webhook before all is over."""
    begun, reads_no_more, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
    blueprint = StateMachineBlueprint("slow", api_version="v1", api_endpoint="/jobs/slow")

    @blueprint.handler_for("start", is_start=True, is_end=True)
    async def start(job_id: str) -> None:
        begun.set()
        await may_end.wait()

    archive = f"sqlite:{tmp_path / 'history.db'}"
    site = await open_site(blueprint, HISTORY_DATABASE_URI=archive)
    read = site.storage.inbox.read

    async def watched(*args: Any) -> Any:
        try:
            return await read(*args)
        except asyncio.CancelledError:
            reads_no_more.set()
            raise

    monkeypatch.setattr(site.storage.inbox, "read", watched)
    body = {"initial_data": {}, "webhook_url": hooks.url}
    answer = await site.door.ask("POST", "/jobs/slow", body)
    job_id = answer.json["job_id"]
    await begun.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(site.door.stop())
        await until(lambda: takes_nothing(site.door), message="the door is still open")
        await until(reads_no_more.is_set, message="the executor takes more")
        assert site.ends == {}
        may_end.set()

    history = history_reader(archive, UTC)
    assert history is not None
    rows = await history.rows(job_id)
    assert [row["event_type"] for row in rows][-1] == "job_completed"
    assert [hook["event"] for hook in hooks.of(job_id)] == ["job_finished"]
    assert site.ends == {job_id: 1}
