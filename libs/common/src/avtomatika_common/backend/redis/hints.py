"""Wake-ups in Redis: one reader per stream and process, however many wait for it.

A blocking read comes back late and cannot be cut short without losing its connection; so it goes on
by itself, and those who wait do so by their own clock.
"""

import asyncio
from collections import deque
from itertools import takewhile
from typing import Final, Literal, cast

import msgspec
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ResponseError

from avtomatika_common.backend.ports import Hint, Hints, Places, StoreUnavailable
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.board import waiting_task
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.readers import Entry, Readers

_KEPT: Final = 1000
"""Hints remembered here, and the fewest the stream keeps: of more, some may be lost."""
_BLOCK_SECONDS: Final = 5.0
"""Also how long it takes to notice that a read is answered no more."""
_RETRY_SECONDS: Final = 0.5

Position = tuple[int, int]

_unpack_turns: Final = msgspec.msgpack.Decoder(dict[str, float]).decode


class RedisHints(Hints):
    def __init__(self, pool: ConnectionPool, commands: Commands) -> None:
        self._readers = Readers(pool)
        self._commands = commands
        self._feeds: dict[str, _Feed] = {}

    async def close(self) -> None:
        for feed in self._feeds.values():
            await feed.close()
        self._feeds.clear()
        await self._readers.close()

    async def position(self, source: str) -> str:
        last = cast(
            "list[Entry]",
            await self._commands.command("XREVRANGE", _stream(source), "+", "-", "COUNT", 1),
        )
        return last[0][0].decode() if last else "0-0"

    async def wait(
        self, source: str, after: str, timeout_seconds: float
    ) -> tuple[str, list[Hint], bool]:
        feed = self._feeds.get(source)
        if feed is None:
            feed = _Feed(self._readers, _stream(source), _number(after))
            self._feeds[source] = feed
        return await feed.wait(_number(after), timeout_seconds)


class _Feed:
    """The last hints of one stream, from where the first who asked stood."""

    def __init__(self, readers: Readers, stream: str, start: Position) -> None:
        self._readers = readers
        self._stream = stream
        self._begins = self._ends = start
        self._hints: deque[tuple[Position, Hint]] = deque()
        self._arrived = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._follow(), name=f"hints of {stream}")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def wait(self, after: Position, timeout_seconds: float) -> tuple[str, list[Hint], bool]:
        lost = after < self._begins
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._ends <= after and not lost:
                    await self._arrived.wait()
                    lost = after < self._begins
        except TimeoutError:
            return _text(after), [], False
        found = [hint for _, hint in takewhile(lambda one: one[0] > after, reversed(self._hints))]
        found.reverse()
        return _text(max(after, self._ends)), found, lost

    async def _follow(self) -> None:
        while True:
            try:
                entries = await self._readers.entries(
                    self._stream, _text(self._ends), count=_KEPT, seconds=_BLOCK_SECONDS
                )
            except (
                StoreUnavailable,
                ResponseError,
            ):  # who waits finds out by the commands it sends
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for entry_id, fields in entries:
                self._ends = _number(entry_id)
                self._hints.append((self._ends, _hint(fields)))
            if len(entries) == _KEPT:  # perhaps more, and some of them gone before we came
                self._begins = self._ends
            while len(self._hints) > _KEPT:
                self._begins = max(self._begins, self._hints.popleft()[0])
            if entries:
                self._arrived.set()
                self._arrived = asyncio.Event()


def _stream(source: str) -> str:
    prefix = keys.WORKERS if source == "w" else keys.partition(int(source[1:]))
    return f"{prefix}hint"


def _hint(fields: dict[bytes, bytes]) -> Hint:
    kind = cast("Literal['task', 'timer', 'worker', 'unmatched']", fields[b"k"].decode())
    value = fields[b"v"].decode()
    if b"m" in fields:
        task = waiting_task(fields[b"m"], fields[b"n"], fields[b"j"], fields[b"o"], fields[b"r"])
        return Hint(kind=kind, value=value, task=task)
    if b"p" in fields:
        incarnation, room, held, stamp = map(int, fields[b"p"].split(b":"))
        places = Places(incarnation=incarnation, room=room, held=held, stamp=stamp)
        turns = {
            task_type: at / 1000
            for task_type, at in _unpack_turns(fields.get(b"t", b"\x80")).items()
        }
        return Hint(kind=kind, value=value, places=places, turns=turns)
    if kind == "timer":  # scripts count in milliseconds
        value = str(float(value) / 1000)
    return Hint(kind=kind, value=value)


def _number(position: str) -> Position:
    milliseconds, _, sequence = position.partition("-")
    return int(milliseconds), int(sequence or 0)


def _text(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
