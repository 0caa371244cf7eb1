"""Redis goes away and comes back: what was acknowledged is not lost, and nobody is taken for dead.

A whole orchestrator works the while. Times are a fraction of the real ones; their ratios are not.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis

from avtomatika import RedisStorage
from tests.conftest import REDIS_BINARIES, missing
from tests.integration import outages
from tests.integration.outages import OUTAGE_SECONDS, SETTINGS, Load, goes_on, scale_times, the_work
from tests.integration.sites import Site, a_site, persistently
from tests.proxy import proxy_to
from tests.servers import RedisServer, a_redis_server

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def scaled_times(monkeypatch: pytest.MonkeyPatch) -> None:
    scale_times(monkeypatch)


@pytest.fixture
def server() -> Generator[RedisServer, None, None]:
    """It keeps what it has told to be done, also when it is killed."""
    if not REDIS_BINARIES:
        missing("Redis")
    # With `everysec` what it tells while a sync takes its time is not in the file yet.
    with a_redis_server(
        max(REDIS_BINARIES.items())[1], "--appendonly", "yes", "--appendfsync", "always"
    ) as running:
        yield running


@asynccontextmanager
async def a_loaded_site(url: str) -> AsyncGenerator[tuple[Site, Load], None]:
    async with Redis.from_url(url) as client, outages.a_loaded_site(RedisStorage(client)) as loaded:
        yield loaded


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
