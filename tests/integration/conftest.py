"""Sites on memory and on Redis."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, ExitStack
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from avtomatika import MemoryStorage, RedisStorage, StateMachineBlueprint
from avtomatika_common.backend.ports import StorageBackend
from tests.conftest import REDIS_BINARIES, missing
from tests.integration.sites import Site, a_site
from tests.servers import redis_answers, running_redis

NewStorage = Callable[[], StorageBackend]
OpenSite = Callable[..., Awaitable[Site]]


class RedisOfSites:
    """A Redis of this run, started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._url: str | None = None

    @property
    def url(self) -> str:
        if self._url is None:
            if not REDIS_BINARIES:
                missing("Redis")
            self._url = self._stack.enter_context(running_redis(max(REDIS_BINARIES.items())[1]))
        return self._url

    def empty(self) -> str:
        """Its URL, with nothing in it."""
        assert redis_answers(urlsplit(self.url).port or 0, "FLUSHALL", "+OK")
        return self.url


@pytest.fixture(scope="session")
def redis_of_sites() -> Generator[RedisOfSites, None, None]:
    with ExitStack() as stack:
        yield RedisOfSites(stack)


@pytest.fixture(params=["memory", "redis"])
async def new_storage(
    request: pytest.FixtureRequest, redis_of_sites: RedisOfSites
) -> AsyncGenerator[NewStorage, None]:
    """Makes storages; those of one test on Redis share it, in memory each is alone."""
    url = redis_of_sites.empty() if request.param == "redis" else None
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
