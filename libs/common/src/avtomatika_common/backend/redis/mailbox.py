"""Mail to gateways in Redis: a stream each, read by position."""

from redis.asyncio.connection import ConnectionPool

from avtomatika_common.backend.ports import Mailbox, Match
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.readers import Readers
from avtomatika_core.job import JobId, TaskId, WorkerId


class RedisMailbox(Mailbox):
    def __init__(self, pool: ConnectionPool, block_seconds: float) -> None:
        self._readers = Readers(pool)
        self._block_seconds = block_seconds

    async def close(self) -> None:
        await self._readers.close()

    async def read(self, gateway: str, after: str) -> tuple[str, list[Match]]:
        entries = await self._readers.entries(
            f"{keys.WORKERS}mail:{gateway}", after, count=512, seconds=self._block_seconds
        )
        position = entries[-1][0] if entries else after
        return position, [_match(fields) for _, fields in entries]


def _match(fields: dict[bytes, bytes]) -> Match:
    return Match(
        poll_id=fields[b"p"].decode(),
        worker_id=WorkerId(fields[b"w"].decode()),
        incarnation=int(fields[b"i"]),
        task_id=TaskId(fields[b"t"].decode()),
        job_id=JobId(fields[b"j"].decode()),
        offer_number=int(fields[b"o"]),
    )
