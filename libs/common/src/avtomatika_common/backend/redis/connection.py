"""Connections to Redis: how they are made, which errors pass, and those for reads that block."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.backend.redis.pipeline import ConnectionLost, Pipeline
from avtomatika_common.backend.redis.sentinel import MasterPool, service_of

Argument = bytes | str | int | float

# Its type stub knows commands of one word only.
pack = cast("Callable[[tuple[Argument, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]

ANSWER_SECONDS: Final = 5.0
"""Longest wait for a connection, or for a server that says nothing; then it counts as broken."""
_POOL_SETTINGS: Final = ("maint_", "orig_", "oss_", "himport_")
NETWORK_ERRORS: Final = (RedisError, OSError, TimeoutError, ConnectionLost)


def own_pool(client: Redis) -> ConnectionPool:
    """Connections to the same server as `client`, or the same service of Sentinel, with settings we can
    rely on: plain replies as bytes, no hidden repeats, no time limit of their own (callers set one)."""
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
    if isinstance(theirs, SentinelConnectionPool):
        return MasterPool(theirs, settings)
    return ConnectionPool(connection_class=theirs.connection_class, **settings)


async def follow_master(pool: ConnectionPool) -> None:
    """Leave servers that Sentinel names no more, for ever; without Sentinel there is one server."""
    if isinstance(pool, MasterPool):
        await pool.follow()


def address_of(pool: ConnectionPool) -> str:
    """`host:port/db`, the socket's path, or the service and its server; nothing secret."""
    if isinstance(pool, MasterPool):
        return service_of(pool)
    settings = pool.connection_kwargs
    if "path" in settings:
        return str(settings["path"])
    host, port = settings.get("host", "localhost"), settings.get("port", 6379)
    return urlsplit(f"//{host}:{port}/{settings.get('db', 0)}").geturl()[2:]


async def connected(pool: ConnectionPool, seconds: float) -> AbstractConnection:
    async with asyncio.timeout(seconds):  # the handshake included
        return cast("AbstractConnection", await pool.get_connection())  # type: ignore[no-untyped-call]


def server_of(connection: AbstractConnection) -> object:
    """Differs between servers."""
    made: Any = connection
    return getattr(made, "host", None), getattr(made, "port", None)


def words(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__


_NOT_NOW_ERRORS: Final = (
    BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError,
)  # fmt: skip
_NOT_NOW: Final = (
    "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY", "TRYAGAIN",
    "UNBLOCKED force",  # it has become a replica
)  # fmt: skip


def passes(error: ResponseError) -> bool:
    """Whether the same command may be accepted later, or by another server."""
    if isinstance(error, _NOT_NOW_ERRORS):
        return True
    text = str(error)
    return text.startswith(_NOT_NOW) and not text.startswith("BUSYGROUP")


class BlockingReader:
    """One connection for one reader that blocks; broken or cancelled, it is made anew."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._connection: AbstractConnection | None = None
        self._pipeline: Pipeline[asyncio.Future[Any]] | None = None

    async def read(self, *arguments: Argument, seconds: float) -> Any:
        """Send one command and wait for its answer, at most `seconds` and a margin without a byte.

        Raises StoreUnavailable, ResponseError. A read that was cut may have taken entries: they are
        in the consumer's pending list.
        """
        complete = False
        try:
            pipeline = self._pipeline
            if pipeline is None or pipeline.is_over:
                pipeline = await self._connect()
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            pipeline.silence_seconds = seconds + ANSWER_SECONDS
            pipeline.send(pack(arguments), (answer,))
            reply = await answer
            complete = True
        except ResponseError as error:
            if passes(error):
                raise StoreUnavailable(f"Redis refuses for now: {error}") from error
            complete = True
            raise
        except NETWORK_ERRORS as error:
            raise StoreUnavailable(f"Redis does not answer: {words(error)}") from error
        else:
            return reply
        finally:
            if not complete:
                await self.close()

    async def _connect(self) -> Pipeline[asyncio.Future[Any]]:
        await self.close()
        self._connection = await connected(self._pool, ANSWER_SECONDS)
        self._pipeline = Pipeline(
            self._connection,
            answered=_answered,
            lost=self._lost,
            writable=lambda: None,
            silence_seconds=ANSWER_SECONDS,
        )
        return self._pipeline

    def _lost(self, reason: Exception) -> None:
        assert self._pipeline is not None, "it has been there until now"
        for answer in self._pipeline.unanswered:
            if not answer.done():
                answer.set_exception(ConnectionLost(words(reason)))

    async def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.end(ConnectionLost("closed here"))
        connection, self._connection, self._pipeline = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)


def _answered(answer: asyncio.Future[Any], reply: Any) -> None:
    if answer.done():
        return
    if isinstance(reply, Exception):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)
