"""The inbox in Redis: two streams per executor group and partition, one consumer per executor."""

import secrets
from typing import Any, Final, Literal, cast

import msgspec
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ResponseError

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import (
    Consumer,
    Delivery,
    DropAnswer,
    Inbox,
    LostClaim,
    StoreOptions,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import BlockingReader
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.logs import get_logger
from avtomatika_core.events import (
    InboxEvent,
    SignalReceived,
    TaskCancelled,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
)
from avtomatika_core.job import JobId, TaskId

log = get_logger()

Lane = Literal["in", "new"]
Entry = tuple[bytes, list[bytes]]

_LANES: Final[tuple[Lane, Lane]] = ("in", "new")
_DROP: Final = script("drop_entry")
_TAKE_OVER: Final = script("take_over")
_REMOVE: Final = script("remove_consumer")
_FORWARD: Final = script("forward_entry")
_DEFER: Final = script("defer_entry")
_MAKE_GROUP: Final = script("make_group")
_SET_ASIDE: Final = script("set_aside")
_PENDING_AT_ONCE: Final = 10_000


def completed(
    event: InboxEvent,
    leased_at: float | None,
    checkpoint: dict[str, Any] | None,
    number: int | None,
) -> InboxEvent:
    """An event made inside Redis lacks what only a process can give: a fresh id, chance.

    One made by a process lacks what only Redis knows: the lease and the checkpoint of a task, the
    number of a signal.
    """
    if checkpoint is not None and isinstance(event, TaskFailed | TaskTimedOut):
        event = msgspec.structs.replace(event, checkpoint=checkpoint)
    match event:
        case SignalReceived():
            return msgspec.structs.replace(event, number=number or 0)
        case TimerFired(fresh_id=""):
            return msgspec.structs.replace(event, fresh_id=TaskId(ids.new_id()))
        case TaskSucceeded() | TaskFailed() | TaskCancelled() | TaskTimedOut():
            return msgspec.structs.replace(
                event,
                fresh_id=event.fresh_id or TaskId(ids.new_id()),
                jitter=event.jitter or secrets.randbelow(2001) / 1000 - 1,
                leased_at=event.leased_at if leased_at is None else leased_at,
            )
        case _:
            return event


class RedisInbox(Inbox):
    def __init__(self, pool: ConnectionPool, commands: Commands, options: StoreOptions) -> None:
        self._pool = pool
        self._commands = commands
        self._options = options
        self._readers: dict[tuple[str, str], BlockingReader] = {}

    async def close(self) -> None:
        for reader in self._readers.values():
            await reader.close()
        self._readers.clear()

    # -- reading

    async def read(self, group: str, consumer: str, room: int) -> list[Delivery]:
        breaks = self._commands.breaks
        found = await self._read_now(group, consumer, room)
        if self._commands.breaks != breaks:  # a reply with entries may have been lost
            return await self.pending(group, consumer)
        if found:
            return found
        return await self._read_blocking(group, consumer)

    async def _read_now(self, group: str, consumer: str, room: int) -> list[Delivery]:
        found: list[Delivery] = []
        for lane in _LANES:
            for number in range(self._options.partitions):
                if len(found) >= room:
                    return found
                stream = keys.lane(keys.partition(number), lane, group)
                entries = await self._read_lane(stream, consumer, room - len(found))
                found += await self._deliveries(entries, lane, group, consumer, number)
        return found

    async def _read_lane(
        self, stream: str, consumer: str, count: int, after: str = ">"
    ) -> list[Entry]:
        for _ in range(2):  # the second time with the group made
            try:
                return await self._ask_lane(stream, consumer, count, after)
            except ResponseError as error:
                await self._make_group(stream, error)
        return []  # it has vanished again meanwhile

    async def _ask_lane(self, stream: str, consumer: str, count: int, after: str) -> list[Entry]:
        reply = cast(
            "list[tuple[bytes, list[Entry]]] | None",
            await self._commands.command(
                "XREADGROUP", "GROUP", "g", consumer, "COUNT", count, "STREAMS", stream, after
            ),
        )
        return [entry for _, entries in reply or () for entry in entries]

    async def _read_blocking(self, group: str, consumer: str) -> list[Delivery]:
        """Whatever comes first in any lane: as a rule one entry, at most one of each stream."""
        reader = self._readers.setdefault((group, consumer), BlockingReader(self._pool))
        sources: list[tuple[str, Lane, int]] = [
            (keys.lane(keys.partition(number), lane, group), lane, number)
            for number in range(self._options.partitions)
            for lane in _LANES
        ]
        streams = [stream for stream, _, _ in sources]
        seconds = self._options.block_seconds
        try:
            reply = cast(
                "list[tuple[bytes, list[Entry]]] | None",
                await reader.read(
                    "XREADGROUP", "GROUP", "g", consumer,
                    "COUNT", 1, "BLOCK", max(1, int(seconds * 1000)),
                    "STREAMS", *streams, *[">"] * len(streams),
                    seconds=seconds,
                ),
            )  # fmt: skip
        except ResponseError as error:
            for stream in streams:
                await self._make_group(stream, error)
            return []
        found: list[Delivery] = []
        for name, entries in reply or ():
            _, lane, number = sources[streams.index(name.decode())]
            found += await self._deliveries(entries, lane, group, consumer, number)
        return found

    async def _make_group(self, stream: str, error: ResponseError) -> None:
        """A stream holds exactly the unfinished work, so a group that vanished begins at its start."""
        if not str(error).startswith(("NOGROUP", "UNBLOCKED")):  # the stream went as we waited
            raise error
        if await self._commands.script(_MAKE_GROUP, [stream], []):
            log.info("inbox group made", stream=stream)

    async def _deliveries(
        self, entries: list[Entry], lane: Lane, group: str, consumer: str, number: int
    ) -> list[Delivery]:
        found: list[Delivery] = []
        for entry_id, flat in entries:
            if not flat:  # deleted while it was pending: nothing is left to answer
                stream = keys.lane(keys.partition(number), lane, group)
                await self._commands.command("XACK", stream, "g", entry_id)
                continue
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            leased_at, checkpoint, place = fields.get(b"l"), fields.get(b"c"), fields.get(b"n")
            event: InboxEvent | None = None
            try:
                event = completed(
                    codec.unpack_event(fields[b"e"]),
                    int(leased_at) / 1000 if leased_at else None,
                    codec.unpack(checkpoint) if checkpoint else None,
                    int(place) if place else None,
                )
            except (KeyError, ValueError, msgspec.MsgspecError) as error:
                log.warning("inbox entry unreadable", entry=entry_id.decode(), error=str(error))
            found.append(
                Delivery(
                    job_id=JobId(fields.get(b"j", b"").decode(errors="replace")),
                    event=event,
                    entry_id=entry_id.decode(),
                    lane=lane,
                    group=group,
                    consumer=consumer,
                    partition=number,
                    is_branch=b"b" in fields,
                    tries=int(fields.get(b"x", 0)),
                )
            )
        return found

    async def pending(self, group: str, consumer: str) -> list[Delivery]:
        found: list[Delivery] = []
        for number in range(self._options.partitions):
            for lane in _LANES:
                stream = keys.lane(keys.partition(number), lane, group)
                entries = await self._read_lane(stream, consumer, _PENDING_AT_ONCE, after="0")
                found += await self._deliveries(entries, lane, group, consumer, number)
        return found

    # -- answering

    def _stream(self, delivery: Delivery) -> str:
        return keys.lane(keys.partition(delivery.partition), delivery.lane, delivery.group)

    def _job(self, delivery: Delivery) -> str:
        return keys.job(keys.partition(delivery.partition), delivery.job_id)

    async def drop(self, delivery: Delivery) -> DropAnswer:
        answer = cast(
            "bytes",
            await self._commands.script(
                _DROP,
                [self._job(delivery)],
                [self._stream(delivery), delivery.consumer, delivery.entry_id],
            ),
        )
        return DropAnswer(answer.decode().lower())

    async def forward(self, delivery: Delivery, group: str) -> None:
        p = keys.partition(delivery.partition)
        done = await self._commands.script(
            _FORWARD,
            [self._job(delivery)],
            [
                self._stream(delivery), delivery.consumer, delivery.entry_id,
                keys.lane(p, delivery.lane, group), group,
            ],
        )  # fmt: skip
        if not done:
            raise LostClaim

    async def defer(self, delivery: Delivery, seconds: float, *, failed: bool = False) -> None:
        done = await self._commands.script(
            _DEFER,
            [self._job(delivery)],
            [
                keys.partition(delivery.partition), delivery.job_id, self._stream(delivery),
                delivery.consumer, delivery.entry_id, int(seconds * 1000), "1" if failed else "",
            ],
        )  # fmt: skip
        if not done:
            raise LostClaim

    async def set_aside(self, delivery: Delivery, reason: str) -> None:
        done = await self._commands.script(
            _SET_ASIDE,
            [self._job(delivery)],
            [
                keys.partition(delivery.partition), self._stream(delivery), delivery.consumer,
                delivery.entry_id, reason,
            ],
        )  # fmt: skip
        if not done:
            raise LostClaim

    # -- consumers

    async def consumers(self, group: str) -> list[Consumer]:
        pending: dict[str, int] = {}
        for number in range(self._options.partitions):
            for lane in _LANES:
                stream = keys.lane(keys.partition(number), lane, group)
                try:
                    rows = cast(
                        "list[list[bytes]]",
                        await self._commands.command("XINFO", "CONSUMERS", stream, "g"),
                    )
                except ResponseError:  # no stream or group: nobody consumes it
                    continue
                for row in rows:
                    fields = dict(zip(row[::2], row[1::2], strict=True))
                    name = fields[b"name"].decode()
                    pending[name] = pending.get(name, 0) + int(fields[b"pending"])
        alive = keys.partition(0)
        return [
            Consumer(
                name=name,
                pending=count,
                is_alive=bool(await self._commands.command("EXISTS", keys.alive(alive, name))),
            )
            for name, count in pending.items()
        ]

    async def take_over(self, group: str, dead: str, consumer: str, room: int) -> list[Delivery]:
        found: list[Delivery] = []
        for number in range(self._options.partitions):
            p = keys.partition(number)
            for lane in _LANES:
                if len(found) >= room:
                    return found
                reply = cast(
                    "bytes | list[Entry]",
                    await self._commands.script(
                        _TAKE_OVER,
                        [keys.lane(p, lane, group)],
                        [p, keys.alive(p, dead), dead, consumer, min(room - len(found), 512)],
                    ),
                )
                if isinstance(reply, bytes):  # alive after all
                    return found
                found += await self._deliveries(reply, lane, group, consumer, number)
        return found

    async def remove_consumer(self, group: str, dead: str) -> bool:
        removed = True
        for number in range(self._options.partitions):
            p = keys.partition(number)
            for lane in _LANES:
                removed &= bool(
                    await self._commands.script(
                        _REMOVE, [keys.lane(p, lane, group)], [keys.alive(p, dead), dead]
                    )
                )
        return removed

    async def length(self) -> int:
        total = 0
        for number in range(self._options.partitions):
            for group in await self._groups():
                for lane in _LANES:
                    stream = keys.lane(keys.partition(number), lane, group)
                    total += cast("int", await self._commands.command("XLEN", stream))
        return total

    async def _groups(self) -> set[str]:
        entries = cast("list[bytes]", await self._commands.command("HVALS", keys.CATALOGUE))
        groups = {cast("dict[str, str]", codec.unpack(entry))["group"] for entry in entries}
        return groups | {"default"}
