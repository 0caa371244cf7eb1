"""The workers' sockets in memory: which connection of which gateway is a worker's."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.mail import MemoryMailbox
from avtomatika_common.backend.ports import CloseSocket
from avtomatika_common.clock import Clock
from avtomatika_core.job import WorkerId

_KEPT_SECONDS: Final = 60.0


class Socket(NamedTuple):
    gateway: str
    connection: str
    until: float

    def is_of(self, gateway: str, connection: str) -> bool:
        return (self.gateway, self.connection) == (gateway, connection)


class Sockets:
    def __init__(self, clock: Clock, liveness: MemoryLiveness, mailbox: MemoryMailbox) -> None:
        self._clock = clock
        self._liveness = liveness
        self._mailbox = mailbox
        self._of: dict[WorkerId, Socket] = {}

    def clear(self) -> None:
        self._of.clear()

    def live(self, worker_id: WorkerId) -> Socket | None:
        """The worker's socket, if its gateway is alive."""
        socket = self._of.get(worker_id)
        if socket is None or socket.until <= self._clock.now():
            return None
        return socket if self._liveness.has(socket.gateway) else None

    def close(self, worker_id: WorkerId) -> None:
        """It is the worker's socket no more, and its gateway is told."""
        if (socket := self.live(worker_id)) is not None:
            close = CloseSocket(worker_id=worker_id, connection=socket.connection)
            self._mailbox.send(socket.gateway, close)
        self._of.pop(worker_id, None)

    def claim(self, worker_id: WorkerId, gateway: str, connection: str) -> None:
        earlier = self._of.get(worker_id)
        if earlier is None or not earlier.is_of(gateway, connection):
            self.close(worker_id)
        self._keep(worker_id, gateway, connection)

    def _keep(self, worker_id: WorkerId, gateway: str, connection: str) -> None:
        until = self._clock.now() + _KEPT_SECONDS
        self._of[worker_id] = Socket(gateway, connection, until)

    def renew(
        self, gateway: str, sockets: Sequence[tuple[WorkerId, str]]
    ) -> list[tuple[WorkerId, str]]:
        """Those that are another connection's by now."""
        lost: list[tuple[WorkerId, str]] = []
        for worker_id, connection in sockets:
            kept = self._of.get(worker_id)
            is_over = kept is None or kept.until <= self._clock.now()
            if kept is None or is_over or kept.is_of(gateway, connection):
                self._keep(worker_id, gateway, connection)
            else:
                lost.append((worker_id, connection))
        return lost

    def release(self, worker_id: WorkerId, connection: str) -> None:
        socket = self._of.get(worker_id)
        if socket is not None and socket.connection == connection:
            del self._of[worker_id]

    def forget(self, gateway: str) -> None:
        """A gateway that is gone has none."""
        self._of = {w: socket for w, socket in self._of.items() if socket.gateway != gateway}
