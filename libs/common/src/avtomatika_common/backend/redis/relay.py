"""The relay in Redis: what partitions decided about workers' places, and what became of workers."""

from typing import Final, cast

from redis.asyncio.connection import ConnectionPool

from avtomatika_common.backend.ports import Relay, StoreOptions
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.board import RedisBoard
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.readers import Entry, Readers, by_field
from avtomatika_common.backend.redis.workers import RedisWorkers
from avtomatika_core.job import WorkerId

_GONE: Final = f"{keys.WORKERS}gone"
_AT_ONCE: Final = 512
_WORKERS_AT_ONCE: Final = 64


class RedisRelay(Relay):
    """Entries are applied in order, each once, then deleted; also where two relays meet."""

    def __init__(
        self,
        pool: ConnectionPool,
        commands: Commands,
        board: RedisBoard,
        workers: RedisWorkers,
        options: StoreOptions,
    ) -> None:
        self._readers = Readers(pool)
        self._commands = commands
        self._workers = workers
        self._board = board
        self._options = options

    async def close(self) -> None:
        await self._readers.close()

    async def run_once(self, partition: int) -> int:
        out = f"{keys.partition(partition)}out"
        entries = await self._readers.entries(
            out, "0", count=_AT_ONCE, seconds=self._options.block_seconds
        )
        if not entries:
            return 0
        await self._workers.change_holds(
            [
                (f[b"k"], f[b"w"], f[b"t"], f.get(b"o", b""), f.get(b"j", b""), entry_id)
                for entry_id, f in entries
            ],
            partition,
        )
        await self._commands.command("XDEL", out, *(entry_id for entry_id, _ in entries))
        return len(entries)

    async def return_lost(self) -> int:
        total = 0
        while True:
            gone = cast(
                "list[Entry]",
                await self._commands.command("XRANGE", _GONE, "-", "+", "COUNT", _WORKERS_AT_ONCE),
            )
            for entry_id, flat in gone:
                fields = by_field(flat)
                for partition in range(self._options.partitions):
                    await self._board.return_leases(
                        partition,
                        WorkerId(fields[b"w"].decode()),
                        int(fields[b"i"]),
                        lost=fields[b"l"] == b"1",
                    )
                await self._commands.command("XDEL", _GONE, entry_id)
            total += len(gone)
            if len(gone) < _WORKERS_AT_ONCE:
                return total
