"""`RedisStorage`: all ports on one Redis, opened together."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from avtomatika_common import codec
from avtomatika_common.backend.ports import (
    Durability,
    StoreOptions,
    StoreUnavailable,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.board import RedisBoard
from avtomatika_common.backend.redis.catalogue import RedisCatalogue
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import (
    BlockingReader,
    address_of,
    follow_master,
    own_pool,
)
from avtomatika_common.backend.redis.dead import RedisDeadEvents
from avtomatika_common.backend.redis.durability import check_durability
from avtomatika_common.backend.redis.hints import RedisHints
from avtomatika_common.backend.redis.inbox import RedisInbox
from avtomatika_common.backend.redis.inspection import RedisInspection
from avtomatika_common.backend.redis.jobs import RedisJobs
from avtomatika_common.backend.redis.key_values import RedisKeyValues
from avtomatika_common.backend.redis.leases import RedisLeases
from avtomatika_common.backend.redis.liveness import RedisLiveness
from avtomatika_common.backend.redis.mailbox import RedisMailbox
from avtomatika_common.backend.redis.relay import RedisRelay
from avtomatika_common.backend.redis.schedules import RedisSchedules
from avtomatika_common.backend.redis.streams import RedisWorkStream
from avtomatika_common.backend.redis.timers import RedisTimers
from avtomatika_common.backend.redis.workers import RedisWorkers
from avtomatika_common.clock import SystemClock
from avtomatika_common.documents import job_document
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import get_logger
from avtomatika_core.job import JobId, WorkerId

log = get_logger()

_OLDEST_SERVER: Final = 7
_ANSWER_SECONDS: Final = 5.0
_CLOCK_SECONDS: Final = 10.0
_LAYOUT: Final = "1"
_VERSION: Final = re.compile(rb"redis_version:([\d.]+)")


class RedisStorage:
    """Jobs, queues and workers in one Redis, shared by every process that uses it.

    `redis_client` says where and how to connect, perhaps by `Sentinel(...).master_for(...)`;
    connections are our own, so its time limits and repeats do not matter. It must have
    `decode_responses=False`. `consumer_name` begins the name of an executor's consumer; a part drawn
    at each start is added.
    """

    def __init__(self, redis_client: "Redis", consumer_name: str | None = None) -> None:
        if redis_client.connection_pool.connection_kwargs.get("decode_responses"):
            raise ValueError("RedisStorage needs a client with decode_responses=False.")
        if not getattr(redis_client.connection_pool, "is_master", True):
            raise ValueError("RedisStorage needs a client of the master, not of a replica.")
        self._client = redis_client
        self.consumer_name = consumer_name
        self.clock = SystemClock()
        self._pool = own_pool(redis_client)
        self._commands = Commands(self._pool)
        self._options = StoreOptions()
        self._tasks: list[asyncio.Task[None]] = []
        self._make_ports()

    def _make_ports(self) -> None:
        pool, commands, options = self._pool, self._commands, self._options
        partitions = options.partitions
        self.jobs = RedisJobs(commands, self.clock, options)
        self.inbox = RedisInbox(pool, commands, options)
        self.dead_events = RedisDeadEvents(commands, partitions)
        self.board = RedisBoard(commands, partitions, int(options.delivery_timeout_seconds * 1000))
        self.workers = RedisWorkers(commands, options.partitions)
        self.mailbox = RedisMailbox(pool, options.block_seconds)
        self.hints = RedisHints(pool, commands)
        self.leases = RedisLeases(commands)
        self.timers = RedisTimers(commands)
        self.relay = RedisRelay(pool, commands, self.board, self.workers, options)
        self.inspection = RedisInspection(commands, self.workers, partitions)
        self.schedules = RedisSchedules(pool, commands, options.block_seconds)
        self.liveness = RedisLiveness(self._client, commands, partitions)
        self.catalogue = RedisCatalogue(pool, commands, options.block_seconds)
        self.facts = RedisWorkStream("facts", pool, commands, options)
        self.notifications = RedisWorkStream("notify", pool, commands, options)
        self.key_values = RedisKeyValues(commands)

    @property
    def partitions(self) -> int:
        return self._options.partitions

    async def open(self, options: StoreOptions) -> None:
        """Connect and check the server. Raises StartupError with one sentence."""
        self._options = options
        self._make_ports()
        try:
            await self._check_server()
        except (StoreUnavailable, ResponseError) as error:
            raise StartupError(
                f"Redis at {self.address} cannot be used: {str(error).rstrip('.')}. "
                "Start it, or set REDIS_URL (or REDIS_HOST and REDIS_PORT) to where it is."
            ) from error
        self._commands.open(replicated=options.durability is Durability.STRICT)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep_time(), name="redis clock"),
            loop.create_task(follow_master(self._pool), name="redis master"),
        ]

    @property
    def address(self) -> str:
        """`host:port/db`, the socket's path, or the service and its server; nothing secret."""
        return address_of(self._pool)

    async def _check_server(self) -> None:
        server = BlockingReader(self._pool)
        try:
            info = cast("bytes", await server.read("INFO", "server", seconds=_ANSWER_SECONDS))
            found = _VERSION.search(info)
            version = found[1].decode() if found else "unknown"
            if not version[:1].isdigit() or int(version.split(".")[0]) < _OLDEST_SERVER:
                raise StartupError(
                    f"Redis at {self.address} is version {version}; avtomatika needs 7.0 or newer."
                )
            asked = str(self._options.partitions)
            stored = await self._stored_partitions(server, asked)
            if stored != asked:
                raise StartupError(
                    f"The data in Redis at {self.address} has {stored} partitions, but "
                    f"AVTOMATIKA_PARTITIONS is {asked}: set it to {stored}."
                )
            await check_durability(self._options.durability, server, self.address)
            self._set_clock(await server.read("TIME", seconds=_ANSWER_SECONDS))
        finally:
            await server.close()

    async def _stored_partitions(self, server: BlockingReader, asked: str) -> str:
        """How many partitions the data has; `asked` from now on where there is none."""
        read = await server.read("HGET", keys.META, "partitions", seconds=_ANSWER_SECONDS)
        if read is None:  # else nothing is written: a server that is full would refuse it
            for field, value in (("partitions", asked), ("layout", _LAYOUT)):
                await server.read("HSETNX", keys.META, field, value, seconds=_ANSWER_SECONDS)
            read = await server.read("HGET", keys.META, "partitions", seconds=_ANSWER_SECONDS)
        return cast("bytes", read).decode()

    def _set_clock(self, server_time: Sequence[bytes]) -> None:
        self.clock.correct(int(server_time[0]) + int(server_time[1]) / 1e6)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_SECONDS)
            try:
                self._set_clock(cast("list[bytes]", await self._commands.command("TIME")))
            except StoreUnavailable:
                continue

    async def ping(self) -> bool:
        """Whether the server answers."""
        server = BlockingReader(self._pool)
        try:
            return bool(await server.read("PING", seconds=_ANSWER_SECONDS) == b"PONG")
        except (StoreUnavailable, ResponseError):
            return False
        finally:
            await server.close()

    async def close(self) -> None:
        """Close our connections; the client given to us stays open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for port in (
            self.inbox, self.mailbox, self.hints, self.relay, self.schedules, self.catalogue,
            self.facts, self.notifications,
        ):  # fmt: skip
            await port.close()
        await self._commands.close()
        await self._pool.aclose()

    async def flush_all(self) -> None:
        """Delete every key of ours, and no other; those of one slot at once, as scripts read them."""
        by_slot: defaultdict[bytes, set[bytes]] = defaultdict(set)
        cursor = "0"
        while True:
            reply = cast(
                "list[Any]",
                await self._commands.command(
                    "SCAN", cursor, "MATCH", f"{keys.PREFIX}*", "COUNT", 500
                ),
            )
            cursor = cast("bytes", reply[0]).decode()
            for key in cast("list[bytes]", reply[1]):
                by_slot[key.partition(b"}")[0]].add(key)
            if cursor == "0":
                break
        for found in by_slot.values():
            await self._commands.command("UNLINK", *found)
        await self._commands.command("HSET", keys.META, "partitions", self._options.partitions)

    async def get_job_state(self, job_id: str) -> dict[str, Any] | None:
        """The job's document; None: no such job."""
        view = await self.jobs.view(JobId(job_id))
        return None if view is None else codec.as_json(job_document(view))

    async def get_job_queue_length(self) -> int:
        """Inbox entries that are not answered yet."""
        return await self.inbox.length()

    async def get_quarantined_jobs(self) -> list[str]:
        """Ids, newest first."""
        return list(await self.jobs.quarantined())

    async def get_worker_info(self, worker_id: str) -> dict[str, Any] | None:
        """The worker's document; None: unknown or expired."""
        worker = await self.workers.get(WorkerId(worker_id))
        return None if worker is None else dict(worker.document)

    async def get_available_workers(self) -> list[dict[str, Any]]:
        """Documents of the live workers."""
        return [dict(worker.document) for worker in await self.workers.live()]

    async def get_active_worker_count(self) -> int:
        return await self.workers.count()
