"""A transport that stays in the process, for tests of workers."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from rxon.models import (
    BatchedResultAnswer,
    EventAnswer,
    Heartbeat,
    HeartbeatAnswer,
    ProgressAnswer,
    ProgressUpdatePayload,
    ResultAnswer,
    ResultBatchAnswer,
    Task,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerCommand,
    WorkerEvent,
    WorkerRegistration,
)


class MockTransport:
    """Keeps what the worker sends, in lists; hands out what is pushed."""

    def __init__(self, worker_id: str, token: str) -> None:
        self.worker_id = worker_id
        self.token = token
        self.connected = False
        self.has_left = False
        self.registered: list[WorkerRegistration] = []
        self.heartbeats: list[Heartbeat] = []
        self.results: list[TaskResult] = []
        self.progress_updates: list[ProgressUpdatePayload] = []
        self.events: list[WorkerEvent] = []
        self._tasks: asyncio.Queue[TaskPayload] = asyncio.Queue()
        self._commands: asyncio.Queue[WorkerCommand] = asyncio.Queue()

    def push_task(self, task: TaskPayload) -> None:
        """Hand `task` to the next poll."""
        self._tasks.put_nowait(task)

    def push_command(self, command: WorkerCommand) -> None:
        """Send `command` to whoever listens for commands."""
        self._commands.put_nowait(command)

    def has_told_all(self) -> bool:
        """Whether every command that was pushed has been taken."""
        return self._commands.empty()

    async def connect(self) -> None:
        self.connected = True

    async def close(self) -> None:
        self.connected = False

    async def register(self, registration: WorkerRegistration) -> None:
        self.registered.append(registration)

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._tasks.get()
        except TimeoutError:
            return None

    async def poll_tasks(self, timeout_seconds: float, most: int) -> Sequence[Task]:
        first = await self.poll_task(timeout_seconds)
        if first is None:
            return ()
        return (_as_task(first), *self._ready(most - 1))

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        self.results.append(result)
        return ResultAnswer(status="ok")

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        self.results += results
        answers = tuple(BatchedResultAnswer(status="ok") for _ in results)
        return ResultBatchAnswer(answers=answers, tasks=tuple(self._ready(most or 0)))

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        self.heartbeats.append(heartbeat)
        return HeartbeatAnswer()

    async def send_progress(self, progress: ProgressUpdatePayload) -> ProgressAnswer:
        self.progress_updates.append(progress)
        return ProgressAnswer(status="ok")

    async def send_event(self, event: WorkerEvent) -> EventAnswer:
        self.events.append(event)
        return EventAnswer()

    async def listen_for_commands(self) -> AsyncIterator[WorkerCommand]:
        while True:
            yield await self._commands.get()

    async def leave(self) -> None:
        self.has_left = True

    async def refresh_token(self) -> TokenResponse:
        return TokenResponse(access_token=self.token, expires_in=3600, worker_id=self.worker_id)

    def _ready(self, most: int) -> list[Task]:
        """Up to `most` tasks that were pushed already."""
        ready: list[Task] = []
        while len(ready) < most and not self._tasks.empty():
            ready.append(_as_task(self._tasks.get_nowait()))
        return ready


def _as_task(task: TaskPayload) -> Task:
    return task if isinstance(task, Task) else msgspec.convert(task, Task, from_attributes=True)
