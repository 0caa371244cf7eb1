"""A transport that stays in the process, for tests of workers."""

import asyncio

from rxon.models import (
    Heartbeat,
    HeartbeatAnswer,
    ResultAnswer,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerRegistration,
)


class MockTransport:
    """Keeps what the worker sends in `registered`, `heartbeats` and `results`."""

    def __init__(self, worker_id: str, token: str) -> None:
        self.worker_id = worker_id
        self.token = token
        self.connected = False
        self.registered: list[WorkerRegistration] = []
        self.heartbeats: list[Heartbeat] = []
        self.results: list[TaskResult] = []
        self._tasks: asyncio.Queue[TaskPayload] = asyncio.Queue()

    def push_task(self, task: TaskPayload) -> None:
        """Hand `task` to the next poll."""
        self._tasks.put_nowait(task)

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

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        self.results.append(result)
        return ResultAnswer(status="ok")

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        self.heartbeats.append(heartbeat)
        return HeartbeatAnswer()

    async def refresh_token(self) -> TokenResponse:
        return TokenResponse(access_token=self.token, expires_in=3600, worker_id=self.worker_id)
