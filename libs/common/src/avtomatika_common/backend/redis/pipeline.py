"""One connection whose calls are sent as they come, and answered in order as the replies arrive.

redis-py makes the connection: address, TLS, login. From then on its bytes are read and written here,
without a task or a stream in between: those would cost more than all the rest of a call.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse

_Call = TypeVar("_Call")

_NOTHING: Final = object()


class ConnectionLost(Exception):
    """The connection is over; the text says why."""


class Pipeline(asyncio.Protocol, Generic[_Call]):
    """Takes over `connection` after its handshake; `end` is all that may be done to it afterwards.

    `answered` is given each call with its reply, an exception if the server refused it. `lost` is told
    once why the connection is over. `writable`: the other side reads again, more may be sent.
    `silence_seconds`: longest wait for any byte while calls are unanswered; may be set anew.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        answered: Callable[[_Call, Any], None],
        lost: Callable[[Exception], None],
        writable: Callable[[], None],
        silence_seconds: float,
    ) -> None:
        self._answered = answered
        self._lost = lost
        self._writable = writable
        self.silence_seconds = silence_seconds
        self._loop = asyncio.get_running_loop()
        self._unanswered: deque[_Call] = deque()
        self._heard_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self.is_over = False
        self.is_writable = True
        made: Any = connection
        self._reader: Any = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=made._parser.parse_error,  # noqa: SLF001 - it knows which error is which
            notEnoughData=_NOTHING,
        )
        self._transport: asyncio.WriteTransport = made._writer.transport  # noqa: SLF001
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self._loop.call_soon(self.end, ConnectionLost("closed by the server"))

    @property
    def unanswered(self) -> list[_Call]:
        """In the order they were sent."""
        return list(self._unanswered)

    def __len__(self) -> int:
        return len(self._unanswered)

    def send(self, packed: bytes, calls: Iterable[_Call]) -> None:
        """Send these bytes, which get one reply for each of `calls`."""
        if not self._unanswered:
            self._heard_at = self._loop.time()
            self._be_alarmed_at(self._heard_at + self.silence_seconds)
        self._unanswered.extend(calls)
        self._transport.write(packed)

    def end(self, reason: Exception) -> None:
        """Close the connection at once; what is unanswered stays so."""
        if self.is_over:
            return
        self.is_over = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._transport.abort()
        self._lost(reason)

    def _be_alarmed_at(self, when: float) -> None:
        """Or sooner, where an alarm is set already."""
        if self._alarm is not None:
            if self._alarm.when() <= when:
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Has the server fallen silent? A loop that was blocked has read what came by now."""
        self._alarm = None
        if not self._unanswered:
            return
        silent_until = self._heard_at + self.silence_seconds
        if self._loop.time() < silent_until:
            self._be_alarmed_at(silent_until)
        else:
            self.end(ConnectionLost(f"no answer within {self.silence_seconds:g} s"))

    # -- what the transport tells

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        try:
            while not self.is_over:
                reply = self._reader.gets()
                if reply is _NOTHING:
                    return
                self._answered(self._unanswered.popleft(), reply)
        except (InvalidResponse, IndexError) as error:  # not a reply, or one to nothing
            self.end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)  # redis-py waits for that when it closes a connection
        self.end(exc or ConnectionLost("closed by the server"))

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._writable()
