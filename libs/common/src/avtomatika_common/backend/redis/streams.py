"""Work streams in Redis: entries shared by the consumers of one group, deleted when done."""

from collections.abc import Sequence
from typing import Any, Final, cast

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ResponseError

from avtomatika_common.backend.ports import StoreOptions, StreamEntry, WorkStream
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.readers import Entry, Readers, by_field
from avtomatika_common.backend.redis.scripts import Script, script
from avtomatika_common.logs import get_logger

log = get_logger()

_MAKE_GROUP: Final = script("make_group")
_PENDING: Final = script("read_pending")
_TAKE: Final = script("take_entries")
_ACKNOWLEDGE: Final = script("acknowledge")
_AT_ONCE: Final = 512

Row = tuple[bytes, int, bytes]
Reply = list[tuple[bytes, list[Entry]]] | None


class RedisWorkStream(WorkStream):
    """`name` of the streams: `facts` or `notify`, one in each partition."""

    def __init__(
        self, name: str, pool: ConnectionPool, commands: Commands, options: StoreOptions
    ) -> None:
        self._commands = commands
        self._readers = Readers(pool)
        self._block_seconds = options.block_seconds
        self._prefixes = [keys.partition(number) for number in range(options.partitions)]
        self._streams = [f"{p}{name}" for p in self._prefixes]
        self._first = 0

    async def close(self) -> None:
        await self._readers.close()

    async def read(self, consumer: str, room: int) -> list[StreamEntry]:
        """Several partitions that had nothing may give one entry each, even beyond `room`."""
        if len(self._streams) == 1:
            return await self._wait(consumer, room)
        found: list[StreamEntry] = []
        self._first += 1  # so that no partition is always the last
        for number in range(len(self._streams)):
            if len(found) < room:
                partition = (self._first + number) % len(self._streams)
                found += await self._take_new(consumer, partition, room - len(found))
        return found or await self._wait(consumer, 1)

    async def _take_new(self, consumer: str, partition: int, room: int) -> list[StreamEntry]:
        try:
            reply = cast(
                "Reply",
                await self._commands.command(
                    "XREADGROUP", "GROUP", "g", consumer, "COUNT", room,
                    "STREAMS", self._streams[partition], ">",
                ),
            )  # fmt: skip
        except ResponseError as error:
            await self._make_groups(error)
            return await self._take_new(consumer, partition, room)
        return self._entries(reply)

    async def _wait(self, consumer: str, room: int) -> list[StreamEntry]:
        try:
            reply = cast(
                "Reply",
                await self._readers.read(
                    "XREADGROUP", "GROUP", "g", consumer, "COUNT", room,
                    "BLOCK", max(1, int(self._block_seconds * 1000)),
                    "STREAMS", *self._streams, *(">" for _ in self._streams),
                    seconds=self._block_seconds,
                ),
            )  # fmt: skip
        except ResponseError as error:
            await self._make_groups(error)
            return await self._wait(consumer, room)
        return self._entries(reply)

    def _entries(self, reply: Reply) -> list[StreamEntry]:
        return [
            StreamEntry(
                entry_id=entry_id.decode(),
                partition=self._streams.index(stream.decode()),
                payload=by_field(flat)[b"d"],
            )
            for stream, entries in reply or ()
            for entry_id, flat in entries
        ]

    async def pending(self, consumer: str) -> list[StreamEntry]:
        found: list[StreamEntry] = []
        for partition in range(len(self._streams)):
            after = "-"
            while True:
                rows = await self._rows(_PENDING, partition, [consumer, after, _AT_ONCE])
                found += [_entry(partition, row) for row in rows if row[2]]
                if len(rows) < _AT_ONCE:
                    break
                after = f"({rows[-1][0].decode()}"
        return found

    async def acknowledge(self, entries: Sequence[StreamEntry]) -> None:
        for partition, stream in enumerate(self._streams):
            entry_ids = [entry.entry_id for entry in entries if entry.partition == partition]
            for start in range(0, len(entry_ids), _AT_ONCE):
                await self._commands.script(
                    _ACKNOWLEDGE, [stream], entry_ids[start : start + _AT_ONCE]
                )

    async def take_over(self, consumer: str, room: int) -> list[StreamEntry]:
        found: list[StreamEntry] = []
        for partition, p in enumerate(self._prefixes):
            left = min(room - len(found), _AT_ONCE)
            if left > 0:
                rows = await self._rows(_TAKE, partition, [p, consumer, left])
                found += [_entry(partition, row) for row in rows]
        return found

    async def length(self) -> int:
        return sum(
            [cast("int", await self._commands.command("XLEN", stream)) for stream in self._streams]
        )

    async def _rows(self, which: Script, partition: int, arguments: list[Any]) -> list[Row]:
        try:
            return cast(
                "list[Row]",
                await self._commands.script(which, [self._streams[partition]], arguments),
            )
        except ResponseError as error:
            await self._make_groups(error)
            return []

    async def _make_groups(self, error: ResponseError) -> None:
        """A stream holds exactly the unfinished work, so a group that vanished begins at its start."""
        text = str(error)
        if "NOGROUP" not in text and "UNBLOCKED" not in text and "no such key" not in text:
            raise error
        for stream in self._streams:
            if await self._commands.script(_MAKE_GROUP, [stream], []):
                log.info("consumer group made", stream=stream)


def _entry(partition: int, row: Row) -> StreamEntry:
    entry_id, deliveries, payload = row
    return StreamEntry(
        entry_id=entry_id.decode(), partition=partition, payload=payload, deliveries=deliveries
    )
