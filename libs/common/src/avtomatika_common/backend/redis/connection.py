"""Commands to Redis: many callers share few connections, and what waits together travels together.

Every write is a script that may be sent twice, so what was not answered when a connection broke is
sent again. Blocking reads have connections of their own.
"""

import asyncio
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from avtomatika_common.backend.ports import StoreFull, StoreUnavailable
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.scripts import Script, script
from avtomatika_common.logs import get_logger

log = get_logger()

Argument = bytes | str | int | float

# Its type stub knows commands of one word only.
_pack = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]

_LANES: Final = 2
_LONGEST_BATCH: Final = 256
_ANSWER_SECONDS: Final = 5.0
"""Longest wait for a connection, or for the answers to one batch; then it counts as broken."""
_REPLICAS_MS: Final = 1000
"""Longest wait for the replicas, well below that for an answer."""
_ONLINE_REPLICA: Final = re.compile(rb"^slave\d+:.*\bstate=online\b", re.MULTILINE)
_BEGIN_WAIT: Final = _pack(("EVAL", script("begin_wait").source, 1, keys.META))
_ASK_INFO: Final = _pack(("INFO", "replication"))
_BACKOFF_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_POOL_SETTINGS: Final = ("maint_", "orig_", "oss_", "himport_")
_NETWORK_ERRORS: Final = (RedisError, OSError, TimeoutError)


def own_pool(client: Redis) -> ConnectionPool:
    """Connections to the same server as `client`, with settings we can rely on: plain replies as
    bytes, no hidden repeats, no time limit of their own (callers set one)."""
    theirs = client.connection_pool
    # What redis-py adds for the pool itself (`maint_…`, `orig_…`) belongs to theirs, not to ours.
    settings = {
        name: value
        for name, value in theirs.connection_kwargs.items()
        if not name.startswith(_POOL_SETTINGS)
    }
    settings |= {
        "decode_responses": False,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "socket_timeout": None,
        "health_check_interval": 0,
        "max_connections": 10_000,
    }
    settings.setdefault("socket_connect_timeout", 5.0)
    return ConnectionPool(connection_class=theirs.connection_class, **settings)


async def _connected(pool: ConnectionPool, seconds: float) -> AbstractConnection:
    async with asyncio.timeout(seconds):  # the handshake included
        return cast("AbstractConnection", await pool.get_connection())  # type: ignore[no-untyped-call]


async def _answer(connection: AbstractConnection) -> Any:
    return cast("Any", await connection.read_response(timeout=math.inf, disconnect_on_error=False))


class _Arrived:
    """Replies of a batch that have been read from the socket with an earlier one.

    redis-py fetches each through four coroutines of its own, which takes longer than all the rest of
    a reply. Its parser has them already; where it is not the one we know, nothing has arrived.
    """

    __slots__ = ("_reader", "nothing")

    def __init__(self, connection: AbstractConnection) -> None:
        parser = getattr(connection, "_parser", None)
        reader: object = getattr(parser, "_reader", None)
        self._reader = reader if isinstance(reader, hiredis.Reader) else None
        # Before the batch is sent there is none: this is how the reader says so.
        self.nothing: object = None if self._reader is None else self._reader.gets()

    def next(self) -> Any:
        """The next reply, or `nothing`. Raises what the server answered as an error."""
        if self._reader is None:
            return self.nothing
        reply = cast("object", self._reader.gets())
        if isinstance(reply, Exception):
            raise reply
        return reply


def _words(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


class _NotNow(RedisError):
    """The server refuses for the moment: it starts, fails over, lacks replicas or disk."""


_NOT_NOW_ERRORS: Final = (
    BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError,
)  # fmt: skip
_NOT_NOW: Final = (
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY", "TRYAGAIN",
)  # fmt: skip


def _passes(error: ResponseError) -> bool:
    """Whether the same command may be accepted later, or by another server."""
    if isinstance(error, _NOT_NOW_ERRORS):
        return True
    text = str(error)
    return text.startswith(_NOT_NOW) and not text.startswith("BUSYGROUP")


class _Call:
    __slots__ = ("future", "packed", "script", "until")

    def __init__(self, packed: bytes, script: Script | None, future: asyncio.Future[Any]) -> None:
        self.packed = packed
        self.script = script
        self.future = future
        self.until: float | None = None
        """When to give up (the loop's time): set when it could not be sent at first."""


class Commands:
    """Sends commands in batches.

    `answer_seconds`: longest wait for a connection or the answers to a batch. `give_up_seconds`: for
    how long an unanswered command is repeated, that wait included.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        give_up_seconds: float = 10.0,
        answer_seconds: float = _ANSWER_SECONDS,
    ) -> None:
        self._pool = pool
        self._give_up_seconds = give_up_seconds
        self._answer_seconds = answer_seconds
        self._queue: deque[_Call] = deque()
        self._wake = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []
        self._asks_replicas = False
        self._replicas = 0
        """How many there were last."""
        self._outward = self
        """Where calls go whose answers somebody outside is told."""
        self.breaks = 0
        """How often a connection broke: what was under way then may have been done twice."""

    def open(self, *, replicated: bool = False) -> None:
        """`replicated`: outward calls are answered once every replica there is has them."""
        if replicated:
            # On lanes of their own: a replica that lags holds up nothing else.
            self._outward = Commands(
                self._pool,
                give_up_seconds=self._give_up_seconds,
                answer_seconds=self._answer_seconds,
            )
            self._outward._asks_replicas = True  # noqa: SLF001 - it is one of us
            self._outward.open()
        self._loop = asyncio.get_running_loop()
        self._lanes = [
            self._loop.create_task(self._lane(), name=f"redis commands {number}")
            for number in range(_LANES)
        ]

    async def close(self) -> None:
        if self._outward is not self:
            await self._outward.close()
            self._outward = self
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._lanes = []
        for call in self._queue:
            if not call.future.done():
                call.future.set_exception(StoreUnavailable("the connection to Redis is closed"))
        self._queue.clear()

    def script(
        self,
        script: Script,
        keys: Sequence[Argument],
        arguments: Sequence[Argument],
        *,
        outward: bool = False,
    ) -> asyncio.Future[Any]:
        """Run a script. Awaiting raises ResponseError, StoreFull, StoreUnavailable.

        `outward`: somebody outside is told that it is done.
        """
        packed = _pack(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        to = self._outward if outward else self
        return to._send(packed, script)  # noqa: SLF001 - it is one of us

    def command(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Run one plain command. Awaiting raises ResponseError, StoreUnavailable."""
        return self._send(_pack(arguments), None)

    def _send(self, packed: bytes, script: Script | None) -> asyncio.Future[Any]:
        if not self._lanes:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable("the connection to Redis is closed"))
            return future
        future = self._loop.create_future()
        self._queue.append(_Call(packed, script, future))
        self._wake.set()
        return future

    async def _lane(self) -> None:
        connection: AbstractConnection | None = None
        failures = 0
        batch: list[_Call] = []
        try:
            while True:
                await self._wake.wait()
                batch = self._take()
                if not batch:
                    self._wake.clear()
                    continue
                try:
                    if connection is None:
                        connection = await _connected(self._pool, self._answer_seconds)
                    await self._exchange(connection, batch)
                    failures = 0
                except Exception as error:  # a lane that ended would leave its callers waiting
                    if not isinstance(error, _NETWORK_ERRORS):
                        log.exception("redis connection failed")
                    if connection is not None:
                        await self._drop(connection)
                        connection = None
                    self._put_back(batch, error)
                    if failures == 0:
                        log.warning("redis connection lost", error=_words(error))
                    await asyncio.sleep(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
                    failures += 1
                batch = []
        finally:
            for call in batch:
                if not call.future.done():
                    call.future.set_exception(StoreUnavailable("the connection to Redis is closed"))
            if connection is not None:
                await self._drop(connection)

    def _take(self) -> list[_Call]:
        batch: list[_Call] = []
        while self._queue and len(batch) < _LONGEST_BATCH:
            call = self._queue.popleft()
            if not call.future.done():
                batch.append(call)
        return batch

    def _put_back(self, batch: list[_Call], error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        self.breaks += 1
        waiting = [call for call in (*batch, *self._queue) if not call.future.done()]
        self._queue.clear()
        for call in waiting:
            if call.until is None:
                call.until = now + self._give_up_seconds - self._answer_seconds
            if call.until <= now:
                _refuse(call, StoreUnavailable(f"Redis does not answer: {_words(error)}"))
            else:
                self._queue.append(call)
        if self._queue:  # an idle lane may have found it empty meanwhile
            self._wake.set()

    async def _drop(self, connection: AbstractConnection) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)

    async def _exchange(self, connection: AbstractConnection, batch: list[_Call]) -> None:
        sent = [call.packed for call in batch]
        asked = self._replicas
        if self._asks_replicas:
            sent.append(_ask_replicas(asked))
        replies = _Arrived(connection)
        async with asyncio.timeout(self._answer_seconds):
            await connection.send_packed_command(b"".join(sent), check_health=False)
            missing, held = await self._read_replies(connection, replies, batch)
            if self._asks_replicas:
                await self._release(connection, held, asked)
        if missing:
            await self._load_scripts(connection, missing)
            await self._exchange(connection, missing)

    async def _read_replies(
        self, connection: AbstractConnection, replies: _Arrived, batch: list[_Call]
    ) -> tuple[list[_Call], list[tuple[_Call, Any]]]:
        """Answer the calls; what is left: those whose script is missing, those that wait for replicas."""
        missing: list[_Call] = []
        held: list[tuple[_Call, Any]] = []
        reason: ResponseError | None = None
        for call in batch:
            try:
                reply = replies.next()
                if reply is replies.nothing:
                    reply = await _answer(connection)
            except NoScriptError:
                missing.append(call)
            except OutOfMemoryError as error:
                _refuse(call, StoreFull(str(error)))
            except ResponseError as error:
                if not _passes(error):
                    _refuse(call, error)
                    continue
                reason = error
            else:
                if self._asks_replicas:
                    held.append((call, reply))
                else:
                    _accept(call, reply)
        if reason is not None:  # as if it had not answered: a new connection, the same calls again
            raise _NotNow(str(reason))
        return missing, held

    async def _release(
        self, connection: AbstractConnection, held: list[tuple[_Call, Any]], asked: int
    ) -> None:
        """Answer these calls if every replica there is has what they wrote, else refuse them.

        Also what an earlier, unanswered call wrote: a repeat of it writes nothing, and its answer
        stands on that.
        """
        there_are, reached = await _replicas_reached(connection)
        if reached < there_are and asked < there_are:  # not all of them were waited for
            await connection.send_packed_command(_ask_replicas(there_are), check_health=False)
            there_are, reached = await _replicas_reached(connection)
        self._replicas = there_are
        for call, reply in held:
            if reached >= there_are:
                _accept(call, reply)
            else:
                _refuse(call, StoreUnavailable(f"{reached} of {there_are} replicas have it"))

    async def _load_scripts(self, connection: AbstractConnection, calls: list[_Call]) -> None:
        sources = {call.script.name: call.script.source for call in calls if call.script}
        async with asyncio.timeout(self._answer_seconds):
            for source in sources.values():
                await connection.send_packed_command(
                    _pack(("SCRIPT", "LOAD", source)), check_health=False
                )
                await connection.read_response(timeout=math.inf)


def _ask_replicas(expected: int) -> bytes:
    """How many replicas there are, and once so many have all that was written: how many have."""
    return b"".join([_BEGIN_WAIT, _ASK_INFO, _pack(("WAIT", expected, _REPLICAS_MS))])


async def _replicas_reached(connection: AbstractConnection) -> tuple[int, int]:
    try:
        await _answer(connection)
        info, reached = await _answer(connection), await _answer(connection)
    except ResponseError as error:  # a replica itself by now, perhaps
        raise _NotNow(str(error)) from error
    return len(_ONLINE_REPLICA.findall(info)), reached


def _accept(call: _Call, reply: object) -> None:
    if not call.future.done():
        call.future.set_result(reply)


def _refuse(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)
        call.future.exception()  # who asked for much at once may hear of the first one only


class BlockingReader:
    """One connection for one reader that blocks; broken or cancelled, it is made anew."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None

    async def read(self, *arguments: Argument, seconds: float) -> Any:
        """Send one command and wait for its answer, at most `seconds` and a margin.

        Raises StoreUnavailable, ResponseError. A read that was cut may have taken entries: they are
        in the consumer's pending list.
        """
        complete = False
        try:
            if self._connection is None:
                self._connection = await _connected(self._pool, _ANSWER_SECONDS)
            async with asyncio.timeout(seconds + _ANSWER_SECONDS):
                await self._connection.send_packed_command(_pack(arguments), check_health=False)
                reply = await _answer(self._connection)
            complete = True
        except ResponseError as error:
            if _passes(error):
                raise StoreUnavailable(f"Redis refuses for now: {error}") from error
            complete = True
            raise
        except _NETWORK_ERRORS as error:
            raise StoreUnavailable(f"Redis does not answer: {_words(error)}") from error
        else:
            return reply
        finally:
            if not complete:
                await self.close()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
