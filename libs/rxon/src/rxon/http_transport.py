"""A worker's line to its orchestrator over HTTP and, for commands and progress, a WebSocket."""

import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final, TypeVar

import aiohttp
import msgspec
import orjson

from rxon.constants import (
    AUTH_HEADER_WORKER,
    ENDPOINT_TASK_NEXT,
    ENDPOINT_TASK_PROGRESS,
    ENDPOINT_TASK_RESULT,
    ENDPOINT_TASK_RESULTS,
    ENDPOINT_WORKER_EVENTS,
    ENDPOINT_WORKER_HEARTBEAT,
    ENDPOINT_WORKER_REGISTER,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_HEADER,
    STS_TOKEN_ENDPOINT,
    WORKER_API_PREFIX,
    WORKER_ID_HEADER,
    WS_ENDPOINT,
)
from rxon.exceptions import RequestRefused, RxonAuthError, RxonNetworkError, RxonProtocolError
from rxon.models import (
    EventAnswer,
    Heartbeat,
    HeartbeatAnswer,
    ProgressAnswer,
    ProgressUpdatePayload,
    ResultAnswer,
    ResultBatch,
    ResultBatchAnswer,
    Task,
    TaskBatch,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerCommand,
    WorkerEvent,
    WorkerRegistration,
)
from rxon.utils import to_dict

CONNECT_SECONDS: Final = 10.0
"""A host that takes no connection for so long counts as away."""
REQUEST_TIMEOUT_SECONDS: Final = 60.0
POLL_MARGIN_SECONDS: Final = 5.0
"""How much longer than the orchestrator holds a poll we wait for its answer."""
SOCKET_HEARTBEAT_SECONDS: Final = 20.0
"""A socket whose other side does not answer a ping for so long is taken for dead."""

_Answer = TypeVar("_Answer")


class HttpTransport:
    """A `Transport` over HTTP. On a 401 it renews its token once, if it may have a certificate."""

    def __init__(
        self,
        url: str,
        worker_id: str,
        token: str,
        ssl_context: ssl.SSLContext | None = None,
        *,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self._base = url.rstrip("/") + WORKER_API_PREFIX
        self._worker_id = worker_id
        self._token = token
        self._ssl = ssl_context
        self._session = session
        self._owns_session = session is None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def worker_id(self) -> str:
        return self._worker_id

    async def connect(self) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def register(self, registration: WorkerRegistration) -> None:
        await self._ask("POST", ENDPOINT_WORKER_REGISTER, registration)

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        path = ENDPOINT_TASK_NEXT.format(worker_id=self._worker_id)
        answer = await self._ask("GET", path, timeout_seconds=timeout_seconds + POLL_MARGIN_SECONDS)
        return None if answer is None else _read(answer, TaskPayload)

    async def poll_tasks(self, timeout_seconds: float, most: int) -> Sequence[Task]:
        path = f"{ENDPOINT_TASK_NEXT.format(worker_id=self._worker_id)}?max={most}"
        answer = await self._ask("GET", path, timeout_seconds=timeout_seconds + POLL_MARGIN_SECONDS)
        if answer is None:
            return ()
        if "tasks" in _read(answer, dict[str, msgspec.Raw]):
            return _read(answer, TaskBatch).tasks
        # An orchestrator that does not know `max` answers with the one task itself.
        return (_read(answer, Task),)

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        answer = await self._ask("POST", ENDPOINT_TASK_RESULT, result)
        return _read(answer or b"", ResultAnswer)

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        batch = ResultBatch(results=tuple(results), max=msgspec.UNSET if most is None else most)
        answer = await self._ask("POST", ENDPOINT_TASK_RESULTS, batch)
        return _read(answer or b"", ResultBatchAnswer)

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        path = ENDPOINT_WORKER_HEARTBEAT.format(worker_id=self._worker_id)
        return _read(await self._ask("PATCH", path, heartbeat) or b"", HeartbeatAnswer)

    async def send_progress(self, progress: ProgressUpdatePayload) -> ProgressAnswer:
        """Over the socket where one is open. A checkpoint goes by HTTP, which acknowledges it.

        An orchestrator that takes no progress by HTTP gets that over the socket too.
        """
        if progress.checkpoint is msgspec.UNSET and await self._sent_by_socket(progress):
            return ProgressAnswer(status="ok")
        try:
            answer = await self._ask("POST", ENDPOINT_TASK_PROGRESS, progress)
        except RequestRefused as refused:
            not_there = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
            is_an_answer = "Job not found" in str(refused)
            if (
                refused.status in not_there
                and not is_an_answer
                and await self._sent_by_socket(progress)
            ):
                return ProgressAnswer(status="ok")
            raise
        return _read(answer or b"", ProgressAnswer)

    async def _sent_by_socket(self, message: object) -> bool:
        if self._socket is None:
            return False
        try:
            await self._socket.send_str(orjson.dumps(to_dict(message)).decode())
        except (ConnectionError, aiohttp.ClientError):
            return False
        return True

    async def send_event(self, event: WorkerEvent) -> EventAnswer:
        return _read(await self._ask("POST", ENDPOINT_WORKER_EVENTS, event) or b"", EventAnswer)

    async def leave(self) -> None:
        await self._ask("DELETE", ENDPOINT_WORKER_HEARTBEAT.format(worker_id=self._worker_id))

    async def listen_for_commands(self) -> AsyncIterator[WorkerCommand]:
        """Messages that are no command are passed over. Raises as every call does."""
        path = f"{WS_ENDPOINT}/{self._worker_id}"
        if self._session is None:
            raise RxonNetworkError("The transport is not connected.")
        try:
            async with self._session.ws_connect(
                self._base + path,
                headers=self._headers(with_token=True),
                ssl=True if self._ssl is None else self._ssl,
                heartbeat=SOCKET_HEARTBEAT_SECONDS,
            ) as socket:
                self._socket = socket
                async for message in socket:
                    with suppress(msgspec.DecodeError, TypeError):
                        yield msgspec.json.decode(message.data, type=WorkerCommand)
        except aiohttp.WSServerHandshakeError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                raise RxonAuthError(
                    f"No socket: {error.message}", {"status": error.status}
                ) from error
            raise RequestRefused(
                f"No socket: {error.message}", status=error.status, body=""
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RxonNetworkError(f"GET {WORKER_API_PREFIX}{path}: {_reason(error)}") from error
        finally:
            self._socket = None

    async def refresh_token(self) -> TokenResponse:
        status, answer, _ = await self._exchange("POST", STS_TOKEN_ENDPOINT, with_token=False)
        if status >= HTTPStatus.BAD_REQUEST:
            raise RxonAuthError(
                f"No access token by certificate: {_error_text(answer)}",
                {"status": status, "body": _text(answer)},
            )
        token = _read(answer, TokenResponse)
        self._token = token.access_token
        return token

    async def _ask(
        self,
        method: str,
        path: str,
        message: object = None,
        *,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> bytes | None:
        """The body of the answer, None for 204; renews the token once where that can help."""
        body = None if message is None else orjson.dumps(to_dict(message))
        answered = await self._exchange(method, path, body, timeout_seconds=timeout_seconds)
        if answered[0] == HTTPStatus.UNAUTHORIZED and self._ssl is not None:
            await self.refresh_token()
            answered = await self._exchange(method, path, body, timeout_seconds=timeout_seconds)
        status, answer, headers = answered
        if status == HTTPStatus.NO_CONTENT:
            return None
        if status < HTTPStatus.BAD_REQUEST:
            return answer
        if status == HTTPStatus.UNAUTHORIZED:
            raise RxonAuthError(_error_text(answer), {"status": status, "body": _text(answer)})
        raise RequestRefused(
            f"{method} {WORKER_API_PREFIX}{path}: {status} {_error_text(answer)}",
            status=status,
            body=_text(answer),
            retry_after=_seconds(headers.get("Retry-After")),
        )

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        with_token: bool = True,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """One request and its whole answer: status, body, headers."""
        if self._session is None:
            raise RxonNetworkError("The transport is not connected.")
        headers = self._headers(with_token=with_token)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                self._base + path,
                data=body,
                headers=headers,
                ssl=True if self._ssl is None else self._ssl,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS),
            ) as response:
                return response.status, await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RxonNetworkError(
                f"{method} {WORKER_API_PREFIX}{path}: {_reason(error)}"
            ) from error

    def _headers(self, *, with_token: bool) -> dict[str, str]:
        headers = {PROTOCOL_VERSION_HEADER: PROTOCOL_VERSION, WORKER_ID_HEADER: self._worker_id}
        if with_token:
            headers[AUTH_HEADER_WORKER] = self._token
        return headers


def _read(answer: bytes, message: type[_Answer]) -> _Answer:
    try:
        return msgspec.json.decode(answer, type=message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RxonProtocolError(
            f"An answer that is no {message.__name__}: {error}", {"body": _text(answer)}
        ) from error


def _reason(error: aiohttp.ClientError | TimeoutError | OSError) -> str:
    """Why nobody answered, for whoever reads it in a log."""
    match error:
        case aiohttp.ClientConnectorError(os_error=ConnectionError(errno=int(number))):
            return f"cannot connect to {error.host}:{error.port}: {os.strerror(number)}"
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or error.os_error
            return f"cannot connect to {error.host}:{error.port}: {why}"
        case TimeoutError():
            return str(error) or "no answer in time"
        case _:
            return str(error) or type(error).__name__


def _error_text(answer: bytes) -> str:
    """The text of `{"error": text}`, or whatever the other side (a proxy, say) wrote."""
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(answer, type=dict[str, str])["error"]
    return _text(answer)


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", "replace")


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else max(0.0, float(retry_after))
    except ValueError:  # the header may also be a date; then our own delay will do
        return None
