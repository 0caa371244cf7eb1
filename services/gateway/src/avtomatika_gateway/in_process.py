"""Workers in the gateway's own process: the operations without HTTP, refused as over HTTP.

What a worker sends is made the document it would have been on the wire: so it keeps to the limit of
bodies, holds nothing that is not JSON, and nothing that the worker may still change.
"""

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

import rxon
from avtomatika_common import codec
from avtomatika_common.backend.ports import LeasedTask
from avtomatika_common.clock import Clock
from avtomatika_common.logs import get_logger
from avtomatika_core.job import WorkerId
from avtomatika_gateway.bodies import parse_message
from avtomatika_gateway.deliveries import Deliveries
from avtomatika_gateway.http_errors import REFUSED, UNEXPECTED, Refusal, refusal_of
from avtomatika_gateway.refusals import BodyTooLarge
from avtomatika_gateway.sockets import Sockets
from avtomatika_gateway.worker_events import WorkerEvents
from avtomatika_gateway.worker_operations import WorkerOperations, payload_of, task_of
from rxon import (
    EventAnswer,
    Heartbeat,
    HeartbeatAnswer,
    ProgressAnswer,
    ProgressUpdatePayload,
    ResultAnswer,
    ResultBatch,
    ResultBatchAnswer,
    RxonAuthError,
    RxonNetworkError,
    Task,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerCommand,
    WorkerEvent,
    WorkerRegistration,
)
from rxon.constants import PROTOCOL_VERSION
from rxon.exceptions import RequestRefused

log = get_logger()


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """What is behind the door while a gateway runs."""

    operations: WorkerOperations
    events: WorkerEvents
    deliveries: Deliveries
    sockets: Sockets
    clock: Clock
    max_body_bytes: int
    tasks: asyncio.TaskGroup
    loop: asyncio.AbstractEventLoop

    def document(self, body: bytes) -> dict[str, Any]:
        """Raises BodyTooLarge, BadMessage."""
        if len(body) > self.max_body_bytes:
            raise BodyTooLarge(limit=self.max_body_bytes)
        return parse_message(body)


class InProcessDoor:
    """Lets workers of this process in while a gateway runs, whenever their transport was made."""

    def __init__(self) -> None:
        self._inside: Inside | None = None
        self._under_way = 0
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()
        self._listeners: set[Listener] = set()

    def open(self, inside: Inside) -> None:
        self._inside = inside

    async def close(self, drain_seconds: float) -> None:
        """Let nobody in any more, and calls that are under way end, if they do in this time."""
        self._inside = None
        for listener in self._listeners:
            listener.end()
        try:
            async with asyncio.timeout(drain_seconds):
                await self._is_quiet.wait()
        except TimeoutError:
            log.warning("calls of workers cut off", count=self._under_way)

    @contextmanager
    def entered(self) -> Generator[Inside]:
        """One call of a worker: what is raised inside comes out as from any transport.

        Raises RxonNetworkError where no gateway runs.
        """
        inside = self._inside
        if inside is None:
            raise RxonNetworkError("The orchestrator of this process does not run.")
        if asyncio.get_running_loop() is not inside.loop:
            raise RuntimeError("An in-process worker has to run in its engine's event loop.")
        self._under_way += 1
        self._is_quiet.clear()
        try:
            yield inside
        except REFUSED as error:
            raise _refused(refusal_of(error)) from error
        except Exception as error:
            log.exception("unexpected fault", transport="in-process")
            raise _refused(UNEXPECTED) from error
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._is_quiet.set()

    def listen(self, worker_id: WorkerId) -> "Listener":
        """A socket of the worker's, until it or the gateway ends it."""
        with self.entered() as inside:
            listener = Listener()
            self._listeners.add(listener)
            inside.tasks.create_task(self._hold(inside.sockets, worker_id, listener))
            return listener

    async def _hold(self, sockets: Sockets, worker_id: WorkerId, listener: "Listener") -> None:
        try:
            async with sockets.held(worker_id, listener):
                await listener.ended.wait()
        finally:
            listener.end()
            self._listeners.discard(listener)


class Listener:
    """A `Socket` whose other end is in this process."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._commands: asyncio.Queue[WorkerCommand | None] = asyncio.Queue()

    async def next(self) -> WorkerCommand | None:
        """The next command; None: there will be no more."""
        return await self._commands.get()

    async def send(self, command: WorkerCommand) -> None:
        if self.ended.is_set():
            raise ConnectionResetError
        self._commands.put_nowait(command)

    async def replace(self) -> None:
        self.end()

    def end(self) -> None:
        if not self.ended.is_set():
            self.ended.set()
            self._commands.put_nowait(None)


class InProcessTransport:
    """A `Transport` for a worker in the event loop of the gateway.

    Nobody is authenticated: it is the application itself that calls.
    """

    def __init__(self, door: InProcessDoor, worker_id: str) -> None:
        """Raises ValueError for what cannot be the id of a worker."""
        rxon.validate_identifier(worker_id, "worker_id")
        self._door = door
        self._worker_id = WorkerId(worker_id)
        self._listening: set[Listener] = set()

    @property
    def worker_id(self) -> str:
        return self._worker_id

    async def connect(self) -> None:
        pass

    async def close(self) -> None:
        for listener in self._listening:
            listener.end()

    async def register(self, registration: WorkerRegistration) -> None:
        body = _body_of(registration)
        with self._door.entered() as inside:
            document = inside.document(body)
            await inside.operations.register(self._worker_id, document, PROTOCOL_VERSION)

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        with self._door.entered() as inside:
            tasks = await inside.operations.poll(self._worker_id, seconds=timeout_seconds)
            self._handed_over(inside, tasks)
            return payload_of(tasks[0]) if tasks else None

    async def poll_tasks(self, timeout_seconds: float, most: int) -> Sequence[Task]:
        with self._door.entered() as inside:
            tasks = await inside.operations.poll(self._worker_id, most, seconds=timeout_seconds)
            self._handed_over(inside, tasks)
            return tuple(task_of(task) for task in tasks)

    def _handed_over(self, inside: Inside, tasks: Sequence[LeasedTask]) -> None:
        """Nothing may be awaited between the coming of tasks, this, and their return: so none is
        lost."""
        for task in tasks:
            inside.deliveries.written(task, self._worker_id, self)

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        body = _body_of(result)
        with self._door.entered() as inside:
            read = rxon.parse_result(inside.document(body), sender=self._worker_id)
            return await inside.operations.submit_result(self._worker_id, read)

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        room = msgspec.UNSET if most is None else most
        body = _body_of(ResultBatch(results=tuple(results), max=room))
        with self._door.entered() as inside:
            batch = rxon.parse_result_batch(inside.document(body))
            answers, tasks = await inside.operations.submit_batch(self._worker_id, batch)
            self._handed_over(inside, tasks)
            handed_over = tuple(task_of(task) for task in tasks)
            return ResultBatchAnswer(answers=tuple(answers), tasks=handed_over)

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        body = _body_of(heartbeat)
        with self._door.entered() as inside:
            changes, now = inside.document(body), inside.clock.now()
            answer = await inside.operations.heartbeat(self._worker_id, changes, began_at=now)
            return msgspec.convert(answer, HeartbeatAnswer)

    async def send_progress(self, progress: ProgressUpdatePayload) -> ProgressAnswer:
        body = _body_of(progress)
        with self._door.entered() as inside:
            read = rxon.parse_progress(inside.document(body))
            return await inside.operations.report_and_hear(self._worker_id, read)

    async def send_event(self, event: WorkerEvent) -> EventAnswer:
        body = _body_of(event)
        with self._door.entered() as inside:
            read = rxon.parse_event(inside.document(body), sender=self._worker_id)
            return await inside.events.accept(self._worker_id, read)

    async def listen_for_commands(self) -> AsyncIterator[WorkerCommand]:
        listener = self._door.listen(self._worker_id)
        self._listening.add(listener)
        try:
            while (command := await listener.next()) is not None:
                yield command
        finally:
            listener.end()
            self._listening.discard(listener)

    async def leave(self) -> None:
        with self._door.entered() as inside:
            await inside.operations.leave(self._worker_id)

    async def refresh_token(self) -> TokenResponse:
        raise RxonAuthError("In process there are no access tokens, and nobody needs one.")


def _body_of(message: object) -> bytes:
    """The message as over HTTP. Raises TypeError for what JSON cannot carry."""
    return codec.json_bytes(rxon.to_dict(message))


def _refused(refusal: Refusal) -> RequestRefused:
    return RequestRefused(
        f"{refusal.status} {refusal.text}",
        status=refusal.status,
        body=codec.json_bytes({"error": refusal.text}).decode(),
        retry_after=refusal.retry_after_seconds,
    )
