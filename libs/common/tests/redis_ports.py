"""The ports on an empty Redis, and jobs with tasks on the board, made without the job store."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import Redis

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.board import RedisBoard
from avtomatika_common.backend.redis.catalogue import RedisCatalogue
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import own_pool
from avtomatika_common.backend.redis.hints import RedisHints
from avtomatika_common.backend.redis.key_values import RedisKeyValues
from avtomatika_common.backend.redis.leases import RedisLeases
from avtomatika_common.backend.redis.liveness import RedisLiveness
from avtomatika_common.backend.redis.mailbox import RedisMailbox
from avtomatika_common.backend.redis.relay import RedisRelay
from avtomatika_common.backend.redis.schedules import RedisSchedules
from avtomatika_common.backend.redis.scripts import Script
from avtomatika_common.backend.redis.streams import RedisWorkStream
from avtomatika_common.backend.redis.workers import RedisWorkers
from avtomatika_common.backend.shapes import shape_of
from avtomatika_core.events import TaskEvent
from avtomatika_core.job import JobId, TaskId

_TASKS: Final = Script("tasks").source
_OFFER: Final = f"""{_TASKS}
offer_task(ARGV[1], ARGV[2], ARGV[3], {{shape = ARGV[4], meta = ARGV[5], type = ARGV[6],
  priority = ARGV[7], payload = ARGV[8], dispatch_due = ARGV[9], result_ms = ARGV[10],
  beat_ms = '', branch = '', checkpoint = ''}})
return 1
"""


class Ports:
    def __init__(self, client: Redis, partitions: int, block_seconds: float) -> None:
        options = StoreOptions(partitions=partitions, block_seconds=block_seconds)
        pool = own_pool(client)
        self._pool = pool
        self._partitions = partitions
        self.commands = Commands(pool)
        self.board = RedisBoard(self.commands, partitions, 5000)
        self.workers = RedisWorkers(self.commands, partitions)
        self.mailbox = RedisMailbox(pool, block_seconds)
        self.hints = RedisHints(pool, self.commands)
        self.leases = RedisLeases(self.commands)
        self.relay = RedisRelay(pool, self.commands, self.board, self.workers, options)
        self.schedules = RedisSchedules(pool, self.commands, block_seconds)
        self.liveness = RedisLiveness(client, self.commands, partitions)
        self.catalogue = RedisCatalogue(pool, self.commands, block_seconds)
        self.facts = RedisWorkStream("facts", pool, self.commands, options)
        self.key_values = RedisKeyValues(self.commands)

    async def close(self) -> None:
        for port in (
            self.mailbox,
            self.hints,
            self.relay,
            self.schedules,
            self.catalogue,
            self.facts,
        ):
            await port.close()
        await self.commands.close()
        await self._pool.disconnect()

    def p(self, job_id: str) -> str:
        return keys.partition(ids.partition_of(job_id, self._partitions))

    async def job(self, status: str = "waiting_for_worker", partition: int = 0) -> JobId:
        job_id = JobId(ids.new_id_in_partition(partition, self._partitions))
        await self.commands.command(
            "HSET", keys.job(self.p(job_id), job_id), "status", status, "cancel", "", "group", "g1"
        )
        return job_id

    async def set_job(self, job_id: JobId, field: str, value: str) -> None:
        await self.commands.command("HSET", keys.job(self.p(job_id), job_id), field, value)

    async def offer(
        self,
        job_id: JobId,
        task_type: str = "paint",
        *,
        priority: float = 0.0,
        strategy: str = "default",
        dispatch_due: int | str = "",
    ) -> TaskId:
        task_id = TaskId(ids.new_id())
        meta: dict[str, Any] = {
            "type": task_type,
            "resource_requirements": None,
            "max_cost": None,
            "strategy": strategy,
        }
        payload: dict[str, Any] = {
            "task_id": task_id,
            "job_id": job_id,
            "type": task_type,
            "params": {"colour": "red"},
            "tracing_context": {},
            "params_metadata": None,
        }
        await self.commands.command(
            "EVAL", _OFFER, 1, keys.task(self.p(job_id), task_id), self.p(job_id), job_id, task_id,
            shape_of(task_type, None, None, strategy), codec.pack(meta), task_type, priority,
            codec.pack(payload), dispatch_due, 300_000,
        )  # fmt: skip
        return task_id

    async def timers(self, partition: int = 0) -> dict[str, float]:
        """Kind and task of each timer -> due (ms)."""
        flat = cast(
            "list[bytes]",
            await self.commands.command(
                "ZRANGE", f"{keys.partition(partition)}tm", 0, -1, "WITHSCORES"
            ),
        )
        found: dict[str, float] = {}
        for member, due in zip(flat[::2], flat[1::2], strict=True):
            kind, _, task_id = member.decode().split("/")
            found[f"{kind} {task_id}"] = float(due)
        return found

    async def events(self, partition: int = 0) -> list[TaskEvent]:
        """The task events in the inbox of group g1."""
        stream = keys.lane(keys.partition(partition), "in", "g1")
        entries = cast(
            "list[tuple[bytes, list[bytes]]]",
            await self.commands.command("XRANGE", stream, "-", "+"),
        )
        decode = msgspec.msgpack.Decoder(TaskEvent).decode
        return [decode(dict(zip(flat[::2], flat[1::2], strict=True))[b"e"]) for _, flat in entries]


@asynccontextmanager
async def open_ports(
    url: str, *, partitions: int = 1, block_seconds: float = 0.2
) -> AsyncGenerator[Ports, None]:
    client = Redis(port=urlsplit(url).port or 0)
    ports = Ports(client, partitions, block_seconds)
    ports.commands.open()
    await ports.commands.command("FLUSHALL")
    try:
        yield ports
    finally:
        await ports.close()
        await client.aclose()
