"""Doors of real engines, on memory and on Redis."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from redis.asyncio import Redis

from avtomatika import MemoryStorage, OrchestratorEngine, RedisStorage
from avtomatika.config import Config
from tests.interop.blueprints import branches, one_task, two_tasks
from tests.interop.door import CLIENT_TOKEN, WORKER_TOKEN, Door

OpenDoor = Callable[..., Awaitable[Door]]

MAX_BODY = 100_000
_SETTINGS = {
    "API_HOST": "127.0.0.1",
    "API_PORT": "0",
    "CLIENT_TOKEN": CLIENT_TOKEN,
    "GLOBAL_WORKER_TOKEN": WORKER_TOKEN,
    "MAX_REQUEST_BODY_BYTES": str(MAX_BODY),
    "RATE_LIMITING_ENABLED": "false",
    "REDIS_STREAM_BLOCK_MS": "100",
    "RETRY_DELAY_SECONDS": "0",
    "WORKER_POLL_TIMEOUT_SECONDS": "1",
}


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
async def open_door(
    request: pytest.FixtureRequest, one_redis: Callable[[], str]
) -> AsyncGenerator[OpenDoor, None]:
    """Start an engine with these settings beside the usual ones, and come to its door.

    Engines that one test starts on Redis share it.
    """
    url = one_redis() if request.param == "redis" else None
    async with AsyncExitStack() as stack:

        async def opened(**settings: str) -> Door:
            storage = MemoryStorage()
            if url is not None:
                client = Redis.from_url(url)
                stack.push_async_callback(client.aclose)
                storage = RedisStorage(client)
            engine = OrchestratorEngine(storage, Config({**_SETTINGS, **settings}))
            for blueprint in (one_task(), two_tasks(), branches()):
                engine.register_blueprint(blueprint)
            await engine.start()
            running = AsyncExitStack()
            running.push_async_callback(engine.stop)
            stack.push_async_callback(running.aclose)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Door(session, engine.port, stop=running.aclose)

        yield opened


@pytest.fixture
async def door(open_door: OpenDoor) -> Door:
    """The door of an engine with the suite's usual settings."""
    return await open_door()
