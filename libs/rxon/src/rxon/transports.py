"""How a worker talks to its orchestrator: the `Transport` port and its HTTP implementation."""

import ssl
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Final, Protocol, TypeVar

import aiohttp
import msgspec
import orjson

from rxon.constants import (
    AUTH_HEADER_WORKER,
    ENDPOINT_TASK_NEXT,
    ENDPOINT_TASK_RESULT,
    ENDPOINT_WORKER_HEARTBEAT,
    ENDPOINT_WORKER_REGISTER,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_HEADER,
    STS_TOKEN_ENDPOINT,
    WORKER_API_PREFIX,
)
from rxon.exceptions import RequestRefused, RxonAuthError, RxonNetworkError, RxonProtocolError
from rxon.models import (
    Heartbeat,
    HeartbeatAnswer,
    ResultAnswer,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerRegistration,
)
from rxon.testing import MockTransport
from rxon.utils import to_dict

REQUEST_TIMEOUT_SECONDS: Final = 60.0
POLL_MARGIN_SECONDS: Final = 5.0
"""How much longer than the orchestrator holds a poll we wait for its answer."""

_Answer = TypeVar("_Answer")


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

    async def send_result(self, result: TaskResult) -> ResultAnswer: ...

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer: ...

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

    async def connect(self) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession()

    async def close(self) -> None:
        if self._owns_session and self._session is not None:
            await self._session.close()
            self._session = None

    async def register(self, registration: WorkerRegistration) -> None:
        await self._ask("POST", ENDPOINT_WORKER_REGISTER, registration)

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        path = ENDPOINT_TASK_NEXT.format(worker_id=self._worker_id)
        answer = await self._ask("GET", path, timeout_seconds=timeout_seconds + POLL_MARGIN_SECONDS)
        return None if answer is None else _read(answer, TaskPayload)

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        answer = await self._ask("POST", ENDPOINT_TASK_RESULT, result)
        return _read(answer or b"", ResultAnswer)

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        path = ENDPOINT_WORKER_HEARTBEAT.format(worker_id=self._worker_id)
        return _read(await self._ask("PATCH", path, heartbeat) or b"", HeartbeatAnswer)

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
        headers = {PROTOCOL_VERSION_HEADER: PROTOCOL_VERSION}
        if with_token:
            headers[AUTH_HEADER_WORKER] = self._token
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                self._base + path,
                data=body,
                headers=headers,
                ssl=True if self._ssl is None else self._ssl,
                timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            ) as response:
                return response.status, await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RxonNetworkError(
                f"{method} {self._base}{path}: {str(error) or type(error).__name__}"
            ) from error


def _read(answer: bytes, message: type[_Answer]) -> _Answer:
    try:
        return msgspec.json.decode(answer, type=message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RxonProtocolError(
            f"An answer that is no {message.__name__}: {error}", {"body": _text(answer)}
        ) from error


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
