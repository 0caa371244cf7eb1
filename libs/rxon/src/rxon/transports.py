"""How a worker talks to its orchestrator: the `Transport` port, and which implementation a URL asks for."""

import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import aiohttp

from rxon.http_transport import HttpTransport
from rxon.models import (
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
from rxon.testing import MockTransport


class Transport(Protocol):
    """One worker's line to one orchestrator.

    Every call may raise `RxonNetworkError` (nobody answered), `RxonAuthError` (we are not let
    in), `RequestRefused` (an answer of 400 or more) or `RxonProtocolError` (a senseless answer).
    """

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def register(self, registration: WorkerRegistration) -> None: ...

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        """Wait for a task as long as the orchestrator holds a poll; None if there was none."""
        ...

    async def poll_tasks(self, timeout_seconds: float, most: int) -> Sequence[Task]:
        """As `poll_task`, for up to `most` tasks at once; empty if there was none."""
        ...

    async def send_result(self, result: TaskResult) -> ResultAnswer: ...

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        """Several results in one request; up to `most` tasks that are ready come back with it."""
        ...

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer: ...

    async def send_progress(self, progress: ProgressUpdatePayload) -> ProgressAnswer: ...

    async def send_event(self, event: WorkerEvent) -> EventAnswer: ...

    def listen_for_commands(self) -> AsyncIterator[WorkerCommand]:
        """Commands as they come, until the connection for them ends; connects when iterated."""
        ...

    async def leave(self) -> None:
        """Sign the worker off: its tasks are offered to others at once."""
        ...

    async def refresh_token(self) -> TokenResponse:
        """Get an access token by client certificate; later calls use it."""
        ...


def create_transport(
    url: str,
    worker_id: str,
    token: str,
    ssl_context: ssl.SSLContext | None = None,
    *,
    session: aiohttp.ClientSession | None = None,
) -> Transport:
    """The transport for `url`: `http(s)://`, or `mock://` for one that stays in this process.

    A `session` that is passed in is used and never closed.
    """
    if url.startswith("mock://"):
        return MockTransport(worker_id, token)
    return HttpTransport(url, worker_id, token, ssl_context, session=session)
