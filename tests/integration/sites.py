"""Whole orchestrators that a test runs in its own process: their doors, and hooks inside them."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
from msgspec.structs import replace

from avtomatika import OrchestratorEngine, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika_common.backend.ports import Lease, StorageBackend, StoreOptions, Worker
from avtomatika_common.lifecycle import running
from avtomatika_core.job import WorkerId
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings
from tests.interop.door import CLIENT_TOKEN, WORKER_TOKEN, Answer, Door
from tests.support import until

SETTINGS = {
    "API_HOST": "127.0.0.1",
    "API_PORT": "0",
    "CLIENT_TOKEN": CLIENT_TOKEN,
    "GLOBAL_WORKER_TOKEN": WORKER_TOKEN,
    "RATE_LIMITING_ENABLED": "false",
    "REDIS_STREAM_BLOCK_MS": "100",
    "RETRY_DELAY_SECONDS": "0",
    "WORKER_POLL_TIMEOUT_SECONDS": "5",
}

Act = Callable[[], Awaitable[object]]


class Site:
    """A running engine, its door and its storage."""

    def __init__(self, engine: OrchestratorEngine, door: Door) -> None:
        self.engine = engine
        self.door = door
        self.storage = engine.storage
        self.ends: Counter[str] = Counter()
        """How often the engine told that a job had ended."""
        self.leases: list[tuple[str, str]] = []
        """Worker and task of each lease."""
        engine.on_job_finished.append(self._count_end)
        self._record_leases(self.storage.board.lease)

    async def _count_end(self, job_id: str, _status: str, _document: Mapping[str, Any]) -> None:
        self.ends[job_id] += 1

    def _record_leases(self, lease: Callable[..., Awaitable[Any]]) -> None:
        async def recorded(*args: Any, **kwargs: Any) -> Any:
            leased = await lease(*args, **kwargs)
            if leased is not None:
                self.leases.append((args[3], args[0]))
            return leased

        _replace(self.storage.board, "lease", recorded)

    async def worker(self, worker_id: str) -> Worker:
        found = await self.storage.workers.get(WorkerId(worker_id))
        assert found is not None, f"{worker_id} is not registered"
        return found

    async def polls(self, worker_id: str, count: int) -> None:
        """Wait until so many tasks could come by this worker's open polls."""

        async def are_open() -> bool:
            return (await self.worker(worker_id)).places.room == count

        await until(are_open, message=f"not {count} polls of {worker_id}")

    async def holds(self, worker_id: str, count: int) -> None:
        """Wait until this worker holds so many tasks, as far as those who choose know."""

        async def is_so() -> bool:
            return (await self.worker(worker_id)).places.held == count

        await until(is_so, message=f"{worker_id} does not hold {count}")

    async def is_idle(self) -> bool:
        """Nothing is left to be done, now or later."""
        storage = self.storage
        return (
            await storage.board.length() == 0
            and await storage.inbox.length() == 0
            and await storage.notifications.length() == 0
            and await storage.facts.length() == 0
            and await storage.timers.next_due(0) is None
        )

    @asynccontextmanager
    async def another_gateway(self, **settings: str) -> AsyncGenerator[Door, None]:
        """The door of one more gateway over the same storage."""
        config = Config({**SETTINGS, **settings})
        service = GatewayService(Settings.from_config(config), self.storage)
        async with running(service), aiohttp.ClientSession() as session, AsyncExitStack() as stack:
            yield Door(session, service.port, stop=stack.aclose)


@asynccontextmanager
async def a_site(
    storage: StorageBackend, blueprints: Sequence[StateMachineBlueprint], **settings: str
) -> AsyncGenerator[Site, None]:
    engine = OrchestratorEngine(storage, Config({**SETTINGS, **settings}))
    for blueprint in blueprints:
        engine.register_blueprint(blueprint)
    await engine.start()
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncExitStack() as running_engine:
        running_engine.push_async_callback(engine.stop)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Site(engine, Door(session, engine.port, stop=running_engine.aclose))


async def persistently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """As whoever repeats what was not answered, or refused for the moment."""
    while True:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(3):
                answer = await ask()
            if answer.status < 500:
                return answer
        await asyncio.sleep(0.02)


def impatient(storage: StorageBackend, delivery_timeout_seconds: float) -> StorageBackend:
    """The storage, where an answer that nobody confirms is given up sooner."""
    original = storage.open

    async def opened(options: StoreOptions) -> None:
        await original(replace(options, delivery_timeout_seconds=delivery_timeout_seconds))

    _replace(storage, "open", opened)
    return storage


def with_dispatchers(storage: StorageBackend, *partitions: int, named: str) -> StorageBackend:
    """The storage, where only instances of that name dispatch these partitions, and no others."""
    original = storage.open
    theirs = {f"p{partition}/dispatcher" for partition in partitions}

    async def opened(options: StoreOptions) -> None:
        await original(options)
        acquire = storage.leases.acquire

        async def acquired(name: str, holder: str, seconds: float) -> Lease | None:
            is_for_them = name in theirs
            if name.endswith("/dispatcher") and is_for_them != holder.startswith(named):
                return None
            return await acquire(name, holder, seconds)

        _replace(storage.leases, "acquire", acquired)

    _replace(storage, "open", opened)
    return storage


def _replace(port: object, method: str, by: Callable[..., Awaitable[Any]]) -> None:
    setattr(port, method, by)


def once(port: object, method: str, *, before: Act | None = None, after: Act | None = None) -> None:
    """Do something before or after the next call of a port's method, while its caller waits."""
    original: Callable[..., Awaitable[Any]] = getattr(port, method)

    async def hooked(*args: Any, **kwargs: Any) -> Any:
        _replace(port, method, original)
        if before is not None:
            await before()
        answer = await original(*args, **kwargs)
        if after is not None:
            await after()
        return answer

    _replace(port, method, hooked)
