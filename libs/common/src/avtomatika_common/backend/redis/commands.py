"""Commands to Redis: many callers share one connection, and nobody waits for the answers of others.

Every write is a script that may be sent twice, so what was not answered when a connection broke is
sent again. Blocking reads have connections of their own.
"""

import asyncio
import math
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError

from avtomatika_common.backend.ports import StoreFull, StoreUnavailable
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.connection import (
    ANSWER_SECONDS,
    NETWORK_ERRORS,
    Argument,
    address_of,
    connected,
    pack,
    passes,
    server_of,
    words,
)
from avtomatika_common.backend.redis.pipeline import ConnectionLost, Pipeline
from avtomatika_common.backend.redis.scripts import Script, script
from avtomatika_common.logs import get_logger

log = get_logger()

_MOST_UNANSWERED: Final = 1024
"""What is more waits here: all of it is sent again when a connection breaks."""
_REPLICAS_MS: Final = 1000
"""Longest wait for the replicas, well below that for an answer."""
_ONLINE_REPLICA: Final = re.compile(rb"^slave\d+:.*\bstate=online\b", re.MULTILINE)
_BEGIN_WAIT: Final = pack(("EVAL", script("begin_wait").source, 1, keys.META))
_ASK_INFO: Final = pack(("INFO", "replication"))
_BACKOFF_SECONDS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class _NotNow(RedisError):
    """The server refuses for the moment: it starts, fails over, lacks replicas or disk."""


class _Call:
    __slots__ = ("future", "packed", "script", "until")

    def __init__(self, packed: bytes, script: Script | None, future: asyncio.Future[Any]) -> None:
        self.packed = packed
        self.script = script
        self.future = future
        self.until: float | None = None
        """When to give up (the loop's time): set when it could not be sent at first."""


class _Load:
    """A script the server did not know, ahead of the calls of it."""

    __slots__ = ("packed",)

    def __init__(self, script: Script) -> None:
        self.packed = pack(("SCRIPT", "LOAD", script.source))


class _Ask:
    """Behind calls whose answers are held: how many replicas there are, and, once `expected` have all
    that was written, how many have. It gets three replies."""

    __slots__ = ("expected", "packed", "replies")

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.packed = b"".join([_BEGIN_WAIT, _ASK_INFO, pack(("WAIT", expected, _REPLICAS_MS))])
        self.replies: list[Any] = []


_Sent = _Call | _Load | _Ask


class Commands:
    """What is called in one turn of the loop is sent together, and the next turn's right behind it.

    `answer_seconds`: longest wait for a connection, or for a server that says nothing.
    `give_up_seconds`: for how long an unanswered command is repeated, that wait included.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        give_up_seconds: float = 10.0,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._pool = pool
        self._give_up_seconds = give_up_seconds
        self._answer_seconds = answer_seconds
        self._queue: deque[_Call] = deque()
        self._wanted = asyncio.Event()
        """Something is to be sent, and there is no connection."""
        self._serving: asyncio.Task[None] | None = None
        self._pipeline: Pipeline[_Sent] | None = None
        self._is_flushing = False
        self._failures = 0
        """Since the last answer."""
        self._missing: list[_Call] = []
        """Their scripts are about to be loaded."""
        self._refused: list[_Call] = []
        """By a server that can do nothing now."""
        self._asks_replicas = False
        self._replicas = 0
        """How many there were last."""
        self._held: list[tuple[_Call, Any]] = []
        """With their answers, until the replicas have it too."""
        self._outward = self
        """Where calls go whose answers somebody outside is told."""
        self._server: object = None
        """Where the last connection went."""
        self._here_since = math.inf
        self.breaks = 0
        """How often a connection broke: what was under way then may have been done twice."""

    def open(self, *, replicated: bool = False) -> None:
        """`replicated`: outward calls are answered once every replica there is has them."""
        if replicated:
            # On a connection of their own: a replica that lags holds up nothing else.
            self._outward = Commands(
                self._pool,
                give_up_seconds=self._give_up_seconds,
                answer_seconds=self._answer_seconds,
            )
            self._outward._asks_replicas = True  # noqa: SLF001 - it is one of us
            self._outward.open()
        self._loop = asyncio.get_running_loop()
        self._serving = self._loop.create_task(self._serve(), name="redis commands")

    async def close(self) -> None:
        if self._outward is not self:
            await self._outward.close()
            self._outward = self
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self._serving = None
        for call in (*self._unanswered(), *self._queue):
            _refuse(call, StoreUnavailable("the connection to Redis is closed"))
        self._queue.clear()

    @property
    def here_seconds(self) -> float:
        """How long ago the first connection to this server was made; another one comes by fail-over."""
        return max(0.0, self._loop.time() - self._here_since)

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
        packed = pack(("EVALSHA", script.sha, len(keys), *keys, *arguments))
        to = self._outward if outward else self
        return to._call(packed, script)  # noqa: SLF001 - it is one of us

    def command(self, *arguments: Argument) -> asyncio.Future[Any]:
        """Run one plain command. Awaiting raises ResponseError, StoreUnavailable."""
        return self._call(pack(arguments), None)

    def _call(self, packed: bytes, script: Script | None) -> asyncio.Future[Any]:
        if self._serving is None:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable("the connection to Redis is closed"))
            return future
        future = self._loop.create_future()
        self._queue.append(_Call(packed, script, future))
        if self._pipeline is None:
            self._wanted.set()
        else:
            self._flush_soon()
        return future

    # -- the connection

    async def _serve(self) -> None:
        """Have a connection whenever there is something to send."""
        while True:
            await self._wanted.wait()
            try:
                reason = await self._use_connection()
            except Exception as error:  # if this ended, its callers would wait for ever
                if not isinstance(error, NETWORK_ERRORS):
                    log.exception("redis connection failed")
                reason = error
            if not self._put_back(reason):
                continue  # it was closed at rest
            if not self._failures:
                log.warning(
                    "redis connection lost", server=address_of(self._pool), error=words(reason)
                )
            await asyncio.sleep(_BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)])
            self._failures += 1

    async def _use_connection(self) -> Exception:
        """Make a connection and send on it until it is lost; why it was."""
        connection = await connected(self._pool, self._answer_seconds)
        if server_of(connection) != self._server:
            self._server = server_of(connection)
            self._here_since = self._loop.time()
        lost: asyncio.Future[Exception] = self._loop.create_future()

        def tell(reason: Exception) -> None:
            if not lost.done():
                lost.set_result(reason)

        try:
            self._pipeline = Pipeline(
                connection,
                answered=self._answered,
                lost=tell,
                writable=self._flush_soon,
                silence_seconds=self._answer_seconds,
            )
            self._flush()
            return await lost
        finally:
            if self._pipeline is not None:
                self._pipeline.end(ConnectionLost("closed here"))
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)

    def _put_back(self, reason: Exception) -> bool:
        """What was not answered is to be sent again, or given up; False: there is no such call."""
        now = self._loop.time()
        sent = self._unanswered()
        self.breaks += bool(sent)
        waiting = [call for call in (*sent, *self._queue) if not call.future.done()]
        self._queue.clear()
        for call in waiting:
            if call.until is None:
                call.until = now + self._give_up_seconds - self._answer_seconds
            if call.until <= now:
                _refuse(call, StoreUnavailable(f"Redis does not answer: {words(reason)}"))
            else:
                self._queue.append(call)
        if not self._queue:
            self._wanted.clear()
        return bool(waiting)

    def _unanswered(self) -> list[_Call]:
        """Calls that were sent, or about to be sent again, on a pipeline that is over."""
        pipeline, self._pipeline = self._pipeline, None
        sent = pipeline.unanswered if pipeline is not None else []
        calls = [call for call, _ in self._held] + self._refused + self._missing
        self._held, self._refused, self._missing = [], [], []
        return calls + [one for one in sent if isinstance(one, _Call)]

    # -- what is sent

    def _flush_soon(self) -> None:
        """At the end of this turn of the loop, when everybody has made their calls."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        pipeline = self._pipeline
        if pipeline is None or pipeline.is_over or not pipeline.is_writable:
            return
        calls: list[_Call] = []
        room = _MOST_UNANSWERED - len(pipeline)
        while self._queue and len(calls) < room:
            call = self._queue.popleft()
            if not call.future.done():
                calls.append(call)
        if calls:
            self._write(pipeline, calls)

    def _write(self, pipeline: Pipeline[_Sent], sent: Sequence[_Sent]) -> None:
        packed = [one.packed for one in sent]
        if self._asks_replicas:
            ask = _Ask(self._replicas)
            pipeline.send(b"".join([*packed, ask.packed]), [*sent, ask, ask, ask])
        else:
            pipeline.send(b"".join(packed), sent)

    def _load_missing(self) -> None:
        pipeline = self._pipeline
        if pipeline is None or pipeline.is_over:
            return
        calls, self._missing = self._missing, []
        scripts = {call.script.name: call.script for call in calls if call.script}
        loads: list[_Sent] = [_Load(missing) for missing in scripts.values()]
        self._write(pipeline, [*loads, *calls])

    # -- what is answered

    def _answered(self, sent: _Sent, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._answered_badly(sent, reply)
        elif isinstance(sent, _Call):
            if self._asks_replicas:
                self._held.append((sent, reply))
            else:
                self._failures = 0
                _accept(sent, reply)
        elif isinstance(sent, _Ask):
            sent.replies.append(reply)
            if len(sent.replies) == 3:
                self._release(sent)
        if self._queue:  # there was no room for it
            self._flush_soon()

    def _answered_badly(self, sent: _Sent, error: Exception) -> None:
        if isinstance(sent, _Call):
            if isinstance(error, NoScriptError):
                if not self._missing:
                    self._loop.call_soon(self._load_missing)
                self._missing.append(sent)
                return
            if isinstance(error, OutOfMemoryError):
                _refuse(sent, StoreFull(str(error)))
                return
            if isinstance(error, ResponseError) and not passes(error):
                _refuse(sent, error)
                return
            self._refused.append(sent)
        # As if it had not answered: a new connection, the same calls again.
        assert self._pipeline is not None, "it has just told of an answer"
        self._pipeline.end(_NotNow(str(error)))

    def _release(self, ask: _Ask) -> None:
        """Tell the answers that are held if every replica there is has what those calls wrote.

        Also what an earlier, unanswered call wrote: a repeat of it writes nothing, and its answer
        stands on that.
        """
        _, info, reached = ask.replies
        there_are = len(_ONLINE_REPLICA.findall(info))
        self._replicas = there_are
        if reached < there_are and ask.expected < there_are:  # not all of them were waited for
            assert self._pipeline is not None, "it has just told of an answer"
            self._write(self._pipeline, [])
            return
        self._failures = 0
        held, self._held = self._held, []
        for call, reply in held:
            if reached >= there_are:
                _accept(call, reply)
            else:
                _refuse(call, StoreUnavailable(f"{reached} of {there_are} replicas have it"))


def _accept(call: _Call, reply: object) -> None:
    if not call.future.done():
        call.future.set_result(reply)


def _refuse(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)
        call.future.exception()  # who asked for much at once may hear of the first one only
