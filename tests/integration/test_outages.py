"""Redis goes away and comes back: what was acknowledged is not lost, and nobody is taken for dead.

A whole orchestrator works the while. Times are a fraction of the real ones; their ratios are not.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from avtomatika import RedisStorage, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory
from avtomatika_common import leadership
from avtomatika_common.backend.redis import connection, hints, liveness, storage
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_executor import takeover
from avtomatika_watcher import Settings as WatcherSettings
from tests.conftest import REDIS_BINARIES, missing
from tests.integration.sites import Site, a_site, persistently
from tests.interop.door import CLIENT_TOKEN, Door, result_of
from tests.proxy import proxy_to
from tests.servers import RedisServer, a_redis_server
from tests.support import until

pytestmark = pytest.mark.integration

LIFETIME_SECONDS = 1.0
"""Of liveness, of leases, of a worker's registration: nothing lives longer unless it is renewed."""
OUTAGE_SECONDS = 1.5
SETTINGS = {
    "WORKER_HEALTH_CHECK_INTERVAL_SECONDS": str(LIFETIME_SECONDS / 2),
    "WORKER_POLL_TIMEOUT_SECONDS": "0.5",
    "WATCHER_INTERVAL_SECONDS": "0.2",
    "RETRY_DELAY_SECONDS": "0.1",
    "SHUTDOWN_TIMEOUT_SECONDS": "1",
}


@pytest.fixture(autouse=True)
def scaled_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the real ones."""
    monkeypatch.setattr(liveness, "_LIFETIME_MS", int(LIFETIME_SECONDS * 1000))
    monkeypatch.setattr(liveness, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(liveness, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(takeover, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(takeover, "_CALM_SECONDS", 1.0)
    monkeypatch.setattr(leadership, "LEASE_SECONDS", LIFETIME_SECONDS)
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.3)
    monkeypatch.setattr(leadership, "STANDBY_SECONDS", 0.2)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(hints, "_BLOCK_SECONDS", 1.0)
    usual = WatcherSettings.from_config

    def eager(config: Config) -> WatcherSettings:
        """The reconciler looks at everything all the time."""
        return replace(usual(config), pause_seconds=0.01, lap_seconds=0.1, quiet_seconds=0.0)

    monkeypatch.setattr(WatcherSettings, "from_config", eager)
    quick = partial(Commands, answer_seconds=0.5, give_up_seconds=1.0)
    monkeypatch.setattr(storage, "Commands", quick)


@pytest.fixture
def server() -> Generator[RedisServer, None, None]:
    """It keeps what it has told to be done, also when it is killed."""
    if not REDIS_BINARIES:
        missing("Redis")
    with a_redis_server(
        max(REDIS_BINARIES.items())[1], "--appendonly", "yes", "--appendfsync", "everysec"
    ) as running:
        yield running


def the_work() -> StateMachineBlueprint:
    """A step, a task, two branches, the end."""
    blueprint = StateMachineBlueprint("work", api_version="v1", api_endpoint="/jobs/work")

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.transition_to("task")

    @blueprint.handler_for("task")
    async def task(actions: ActionFactory) -> None:
        actions.dispatch_task("resize", {}, {"success": "spread"})

    @blueprint.handler_for("spread")
    async def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize"}] * 2, aggregate_into="join")

    @blueprint.aggregator_for("join")
    async def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history["joined"] = len(aggregation_results)
        actions.transition_to("end")

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


class Load:
    """A client that makes jobs, and workers that do their tasks, through whatever happens."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.accepted: list[str] = []
        self.results = 0

    async def make_jobs(self) -> None:
        number = 0
        while True:
            number += 1
            headers = {"X-Client-Token": CLIENT_TOKEN, "Idempotency-Key": f"job-{number}"}
            ask = partial(
                self._door.call,
                "POST",
                "/api/v1/jobs/work",
                {"initial_data": {"n": number}},
                token=None,
                headers=headers,
            )
            answer = await persistently(ask)
            assert answer.status == 202, answer
            self.accepted.append(answer.json["job_id"])
            await asyncio.sleep(0.02)

    async def work(self, worker_id: str) -> None:
        registration = {"worker_id": worker_id, "supported_tasks": ["resize"]}
        await persistently(
            partial(self._door.call, "POST", "/_worker/workers/register", registration)
        )
        while True:
            answer = await persistently(partial(self._door.poll, worker_id))
            if answer.status == 404:
                await persistently(
                    partial(self._door.call, "POST", "/_worker/workers/register", registration)
                )
            if answer.status != 200:
                continue
            told = await persistently(partial(self._door.result, result_of(answer.json, worker_id)))
            assert told.status == 200, told
            self.results += 1


@asynccontextmanager
async def a_loaded_site(url: str) -> AsyncGenerator[tuple[Site, Load], None]:
    async with (
        Redis.from_url(url) as client,
        a_site(RedisStorage(client), [the_work()], **SETTINGS) as site,
        asyncio.TaskGroup() as group,
    ):
        load = Load(site.door)
        makes = group.create_task(load.make_jobs())
        workers = [group.create_task(load.work(f"w{number}")) for number in range(3)]
        await until(lambda: load.results > 10, 10.0)
        yield site, load
        makes.cancel()
        try:
            await all_ended(site, load)
        finally:
            for worker in workers:
                worker.cancel()


async def all_ended(site: Site, load: Load) -> None:
    """Every job that was accepted has ended well, once."""
    door = site.door
    for job_id in load.accepted:

        async def has_ended(job_id: str = job_id) -> bool:
            answer = await persistently(partial(door.ask, "GET", f"/jobs/{job_id}"))
            assert answer.status == 200, f"{job_id} was accepted and is lost: {answer}"
            return bool(answer.json["status"] == "finished")

        await until(has_ended, 10.0, f"{job_id} did not end")
    assert len(set(load.accepted)) == len(load.accepted)
    await until(lambda: all(site.ends[job_id] for job_id in load.accepted))
    assert {site.ends[job_id] for job_id in load.accepted} == {1}
    assert await site.engine.storage.inspection.mended() == {}
    for job_id in load.accepted:
        document = await door.document(job_id)
        assert document["state_history"] == {"joined": 2}
        assert document["transition_count"] == 4


async def goes_on(load: Load) -> None:
    """New jobs are accepted and tasks done again."""
    accepted, results = len(load.accepted), load.results
    await until(
        lambda: len(load.accepted) > accepted + 3 and load.results > results + 3,
        10.0,
        "it does not go on",
    )


async def test_a_redis_that_crashes_and_starts_again_loses_nothing(server: RedisServer) -> None:
    """R1."""
    async with a_loaded_site(server.url) as (_, load):
        server.kill()
        await asyncio.sleep(0.3)
        server.start()

        await goes_on(load)


async def test_a_redis_that_stands_still_for_longer_than_everything_lives(
    server: RedisServer,
) -> None:
    async with a_loaded_site(server.url) as (_, load):
        server.freeze()
        await asyncio.sleep(OUTAGE_SECONDS)
        server.thaw()

        await goes_on(load)


async def test_a_redis_that_is_paused(server: RedisServer) -> None:
    async with (
        a_loaded_site(server.url) as (_, load),
        Redis.from_url(server.url) as client,
    ):
        await client.client_pause(int(OUTAGE_SECONDS * 1000), all=True)
        await asyncio.sleep(OUTAGE_SECONDS)

        await goes_on(load)


async def test_a_redis_that_cannot_be_reached(server: RedisServer) -> None:
    async with proxy_to(server.url) as (proxy, url), a_loaded_site(url) as (_, load):
        proxy.refuses = True
        proxy.cut_now()
        await asyncio.sleep(OUTAGE_SECONDS)
        proxy.refuses = False

        await goes_on(load)


async def test_answers_that_do_not_arrive(server: RedisServer) -> None:
    async with proxy_to(server.url) as (proxy, url), a_loaded_site(url) as (_, load):
        proxy.is_silent.set()
        await asyncio.sleep(OUTAGE_SECONDS)
        proxy.is_silent.clear()

        await goes_on(load)


async def test_answers_that_come_late(server: RedisServer) -> None:
    async with proxy_to(server.url) as (proxy, url), a_loaded_site(url) as (_, load):
        proxy.delay_seconds = 0.15
        await goes_on(load)
        proxy.delay_seconds = 0.0

        await goes_on(load)


async def again_and_again(act: Callable[[], Awaitable[object]]) -> None:
    for _ in range(20):
        await act()
        await asyncio.sleep(0.05)


async def test_scripts_that_are_flushed_while_they_are_used(server: RedisServer) -> None:
    async with (
        a_loaded_site(server.url) as (_, load),
        Redis.from_url(server.url) as client,
    ):
        await again_and_again(client.script_flush)

        await goes_on(load)


async def test_clients_that_are_cut_off(server: RedisServer) -> None:
    async with (
        a_loaded_site(server.url) as (_, load),
        Redis.from_url(server.url) as client,
    ):
        kill = partial(client.client_kill_filter, _type="normal", skipme=True)
        await again_and_again(kill)

        await goes_on(load)


async def outage(server: RedisServer, kind: str) -> None:
    if kind == "frozen":
        server.freeze()
        await asyncio.sleep(OUTAGE_SECONDS)
        server.thaw()
    else:
        server.kill()
        await asyncio.sleep(OUTAGE_SECONDS)
        server.start()


@pytest.mark.parametrize("kind", ["frozen", "crashed"])
async def test_after_an_outage_no_worker_is_taken_for_lost(server: RedisServer, kind: str) -> None:
    """It outlasts the worker's registration; the task in its hands is still its own."""
    async with (
        Redis.from_url(server.url) as client,
        a_site(RedisStorage(client), [the_work()], **SETTINGS) as site,
    ):
        door = site.door
        job_id = await door.create("work")
        await door.register("w1")
        task = await door.task("w1")

        await outage(server, kind)
        beat = await persistently(
            partial(door.heartbeat, "w1", {"current_tasks": [task["task_id"]]})
        )
        for _ in range(6):  # whoever would act on it has had the time
            await asyncio.sleep(0.2)
            await door.heartbeat("w1", {"current_tasks": [task["task_id"]]})
        told = await persistently(partial(door.done, task, "w1"))
        document = await door.document(job_id)

    assert beat.status == 200
    assert told.status == 200
    assert "task_retry_count" not in document or document["task_retry_count"] == 0
    assert document.get("error_message") is None
