"""Mail to gateways in Redis: a stream each, read by position."""

from typing import Final

import msgspec
from redis.asyncio.connection import ConnectionPool

from avtomatika_common.backend.ports import (
    CloseSocket,
    Mail,
    Mailbox,
    Match,
    Promise,
    StopTask,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.readers import Readers
from avtomatika_core.job import JobId, TaskId, WorkerId

_unpack_promises: Final = msgspec.msgpack.Decoder(list[tuple[TaskId, JobId, int]]).decode


class RedisMailbox(Mailbox):
    def __init__(self, pool: ConnectionPool, block_seconds: float) -> None:
        self._readers = Readers(pool)
        self._block_seconds = block_seconds

    async def close(self) -> None:
        await self._readers.close()

    async def read(self, gateway: str, after: str) -> tuple[str, list[Mail]]:
        entries = await self._readers.entries(
            f"{keys.WORKERS}mail:{gateway}", after, count=512, seconds=self._block_seconds
        )
        position = entries[-1][0] if entries else after
        return position, [_mail(fields) for _, fields in entries]


def _mail(fields: dict[bytes, bytes]) -> Mail:
    worker_id = WorkerId(fields[b"w"].decode())
    match fields[b"k"]:
        case b"match":
            return Match(
                poll_id=fields[b"p"].decode(),
                worker_id=worker_id,
                incarnation=int(fields[b"i"]),
                until=int(fields[b"u"]) / 1000,
                promises=[
                    Promise(task_id=task_id, job_id=job_id, offer_number=offer)
                    for task_id, job_id, offer in _unpack_promises(fields[b"t"])
                ],
            )
        case b"stop":
            return StopTask(
                worker_id=worker_id,
                connection=fields[b"c"].decode(),
                task_id=TaskId(fields[b"t"].decode()),
                job_id=JobId(fields[b"j"].decode()),
            )
        case _:
            return CloseSocket(worker_id=worker_id, connection=fields[b"c"].decode())
