"""The workers' sockets at this gateway: one per worker in the whole deployment, the newest wins."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from avtomatika_common.backend.ports import (
    Backend,
    CloseSocket,
    StopTask,
)
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_core.job import WorkerId
from avtomatika_gateway.background import unhurried
from avtomatika_gateway.settings import Settings
from rxon import WorkerCommand
from rxon.constants import COMMAND_CANCEL_TASK

_RENEW_SECONDS: Final = 20.0

log = get_logger()


class Socket(Protocol):
    """One connection to a worker."""

    async def send(self, command: WorkerCommand) -> None: ...

    async def replace(self) -> None:
        """Close it: another connection is the worker's socket now."""
        ...


class Sockets:
    """Those that are open here."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._gateway = settings.instance_id
        self._workers = backend.workers
        self._open: dict[str, tuple[WorkerId, Socket]] = {}
        """By the name of the connection."""
        self._tasks: asyncio.TaskGroup | None = None

    async def serve(self, tasks: asyncio.TaskGroup) -> None:
        """Keep the sockets ours until cancelled; what is sent to them is sent in `tasks`."""
        self._tasks = tasks
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            mine = [(worker_id, name) for name, (worker_id, _) in self._open.items()]
            if mine:
                await unhurried(self._renew(mine))

    async def _renew(self, mine: Sequence[tuple[WorkerId, str]]) -> None:
        for worker_id, name in await self._workers.renew_sockets(self._gateway, mine):
            self.close(CloseSocket(worker_id=worker_id, connection=name))

    @asynccontextmanager
    async def held(self, worker_id: WorkerId, socket: Socket) -> AsyncGenerator[None, None]:
        """While the block lasts this is the worker's socket; an earlier one is closed."""
        name = new_id()
        self._open[name] = (worker_id, socket)
        # In a task of its own: a connection that ends just now must not cut it in two.
        assert self._tasks is not None, "sockets are open while the service runs"
        # If it fails, the next renewal claims it.
        claim = self._workers.claim_socket(worker_id, self._gateway, name)
        claiming = self._tasks.create_task(unhurried(claim))
        try:
            await asyncio.shield(claiming)
            yield
        finally:
            del self._open[name]
            self._start(self._release(worker_id, name, claiming))

    async def _release(self, worker_id: WorkerId, name: str, claiming: asyncio.Task[None]) -> None:
        await claiming
        await self._workers.release_socket(worker_id, name)

    def stop(self, stop: StopTask) -> None:
        """Send the command to stop a task, if the connection is still there."""
        command = WorkerCommand(
            command=COMMAND_CANCEL_TASK, task_id=stop.task_id, job_id=stop.job_id
        )
        if (found := self._open.get(stop.connection)) is not None:
            self._start(_sent(found[1], command))

    def close(self, close: CloseSocket) -> None:
        if (found := self._open.get(close.connection)) is not None:
            log.info("socket replaced", worker_id=close.worker_id)
            self._start(_replaced(found[1]))

    def _start(self, operation: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None, "sockets are open while the service runs"
        self._tasks.create_task(unhurried(operation))


async def _sent(socket: Socket, command: WorkerCommand) -> None:
    try:
        await socket.send(command)
    except (ConnectionError, TimeoutError):
        log.info("command not sent", command=command.command, task_id=command.task_id)


async def _replaced(socket: Socket) -> None:
    with suppress(ConnectionError, TimeoutError):  # it ends by itself
        await socket.replace()
