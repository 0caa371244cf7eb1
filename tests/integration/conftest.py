"""Whole orchestrators on memory and on Redis; those of the SDK's tests with each way in."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from avtomatika import MemoryStorage, OrchestratorEngine, RedisStorage, StateMachineBlueprint
from avtomatika_common.backend.ports import StorageBackend
from tests.integration import sdk_site
from tests.integration.hooks import Hooks, webhook_receiver
from tests.integration.sites import Site, a_site

NewStorage = Callable[[], StorageBackend]
OpenSite = Callable[..., Awaitable[Site]]


@pytest.fixture(params=["memory", "redis"])
async def new_storage(
    request: pytest.FixtureRequest, one_redis: Callable[[], str]
) -> AsyncGenerator[NewStorage, None]:
    """Makes storages; those of one test on Redis share it, in memory each is alone."""
    url = one_redis() if request.param == "redis" else None
    async with AsyncExitStack() as stack:

        def made() -> StorageBackend:
            if url is None:
                return MemoryStorage()
            client = Redis.from_url(url)
            stack.push_async_callback(client.aclose)
            return RedisStorage(client)

        yield made


@pytest.fixture
async def open_site(new_storage: NewStorage) -> AsyncGenerator[OpenSite, None]:
    """Start an engine with these blueprints, and these settings beside the usual ones."""
    async with AsyncExitStack() as stack:

        async def opened(
            *blueprints: StateMachineBlueprint,
            storage: StorageBackend | None = None,
            **settings: str,
        ) -> Site:
            site = a_site(storage or new_storage(), blueprints, **settings)
            return await stack.enter_async_context(site)

        yield opened


@pytest.fixture
async def hooks() -> AsyncGenerator[Hooks, None]:
    async with webhook_receiver() as receiver:
        yield receiver


@pytest.fixture(params=["memory-http", "memory-in-process", "redis-http", "redis-in-process"])
def site(
    request: pytest.FixtureRequest, one_redis: Callable[[], str], tmp_path: Path
) -> sdk_site.Site:
    backend, _, way = request.param.partition("-")
    return sdk_site.Site(way, one_redis() if backend == "redis" else None, tmp_path)


@pytest.fixture
async def engine(site: sdk_site.Site) -> AsyncGenerator[OrchestratorEngine, None]:
    async with site.engine() as engine:
        yield engine
