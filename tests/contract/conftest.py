"""The suite that every backend must pass: on memory, and on each Redis server of this machine."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sized
from contextlib import AsyncExitStack, ExitStack
from typing import Protocol, cast
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.ports import StorageBackend, StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.clock import ManualClock
from tests.conftest import REDIS_BINARIES, missing
from tests.contract.breaking import Hands, MemoryHands, RedisHands
from tests.servers import redis_answers, running_redis
from tests.support import until


class Bench(Protocol):
    """One kind of backend, and what tests of it need beside its ports."""

    async def opened(self, options: StoreOptions) -> StorageBackend: ...

    async def pass_time(self, seconds: float) -> None: ...

    async def contents(self) -> Mapping[str, object]:
        """Something that changes when anything is stored."""
        ...

    def hands(self) -> Hands:
        """In the store that is open."""
        ...


class MemoryBench:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._clock = ManualClock()
        self._storage = MemoryStorage(self._clock)

    async def opened(self, options: StoreOptions) -> StorageBackend:
        await self._storage.open(options)
        self._stack.push_async_callback(self._storage.close)
        return self._storage

    async def pass_time(self, seconds: float) -> None:
        self._clock.advance(seconds)

    async def contents(self) -> Mapping[str, object]:
        tables: Tables = self._storage._tables  # pyright: ignore[reportPrivateUsage]
        parts = (tables, self._storage.workers, *tables.partitions)
        sizes = {
            f"{number}.{name}": len(value)
            for number, part in enumerate(parts)
            for name, value in vars_of(part).items()
            if isinstance(value, Sized)
        }
        return sizes | {source: log.last for source, log in tables.hint_logs.items()}

    def hands(self) -> Hands:
        return MemoryHands(self._storage)


class RedisBench:
    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack = stack
        self.url = url
        self._storage: RedisStorage | None = None

    async def opened(self, options: StoreOptions) -> StorageBackend:
        client = client_of(self.url)
        self._stack.push_async_callback(client.aclose)
        self._storage = storage = RedisStorage(client)
        await storage.open(options)
        self._stack.push_async_callback(storage.close)
        return storage

    async def pass_time(self, seconds: float) -> None:
        assert self._storage is not None
        clock = self._storage.clock
        end = clock.now() + seconds + 0.01
        await until(lambda: clock.now() > end, timeout=seconds + 5.0)

    async def contents(self) -> Mapping[str, object]:
        async with client_of(self.url) as client:
            return {key: await client.dump(key) for key in await keys_of(client)}

    def hands(self) -> Hands:
        client = client_of(self.url)
        self._stack.push_async_callback(client.aclose)
        return RedisHands(client)


def client_of(url: str) -> Redis:
    return Redis(port=urlsplit(url).port or 0)


async def keys_of(client: Redis) -> list[str]:
    """All keys there are, whosever they are."""
    keys = cast(
        "list[bytes]",
        await client.execute_command("KEYS", "*"),  # pyright: ignore[reportUnknownMemberType]
    )
    return [key.decode() for key in keys]


def vars_of(part: object) -> dict[str, object]:
    slots = getattr(type(part), "__slots__", None)
    return vars(part) if slots is None else {name: getattr(part, name) for name in slots}


@pytest.fixture(scope="session")
def redis_of_kind() -> Generator[Callable[[str], str], None, None]:
    """URL of an empty server of the kind, started when it is first asked for."""
    urls: dict[str, str] = {}
    with ExitStack() as stack:

        def url(kind: str) -> str:
            if kind not in REDIS_BINARIES:
                missing("Redis")
            if kind not in urls:
                urls[kind] = stack.enter_context(running_redis(REDIS_BINARIES[kind]))
            assert redis_answers(urlsplit(urls[kind]).port or 0, "FLUSHALL", "+OK")
            return urls[kind]

        yield url


KINDS = sorted(REDIS_BINARIES, reverse=True) or ["redis-server"]


ON_REDIS = [pytest.param(kind, marks=pytest.mark.integration) for kind in KINDS]


@pytest.fixture(params=["memory", *ON_REDIS])
async def bench(
    request: pytest.FixtureRequest, redis_of_kind: Callable[[str], str]
) -> AsyncGenerator[Bench, None]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryBench(stack)
        else:
            yield RedisBench(stack, redis_of_kind(request.param))


Open = Callable[..., Awaitable[StorageBackend]]


@pytest.fixture
def open_backend(bench: Bench) -> Open:
    """Opens the backend with these options instead of the usual ones; once in a test."""

    async def opened(**options: object) -> StorageBackend:
        usual = {"block_seconds": 0.05, "delivery_timeout_seconds": 0.1}
        return await bench.opened(StoreOptions(**{**usual, **options}))  # type: ignore[arg-type]

    return opened


@pytest.fixture
async def backend(open_backend: Open) -> StorageBackend:
    return await open_backend()


PassTime = Callable[[float], Awaitable[None]]


@pytest.fixture
def pass_time(bench: Bench) -> PassTime:
    """Lets the backend's clock go on by some seconds. On Redis that takes as long: keep it short."""
    return bench.pass_time
