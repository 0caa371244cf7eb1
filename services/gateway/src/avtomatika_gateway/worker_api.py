"""The worker's side of the door: `/_worker`."""

import asyncio
import select
from typing import Final

from aiohttp import web

import rxon
from avtomatika_common.backend.ports import Backend, LeasedTask
from avtomatika_core.job import TaskId, WorkerId
from avtomatika_gateway import worker_operations as operations
from avtomatika_gateway.access import Access
from avtomatika_gateway.bodies import json_response, parse_job_id, read_message
from avtomatika_gateway.polls import Polls
from avtomatika_gateway.refusals import Forbidden
from avtomatika_gateway.settings import Settings
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
from rxon.exceptions import MissingWorkerId

WORKER_ID_HEADER: Final = "X-Worker-ID"
_TRACING_HEADERS: Final = ("traceparent", "tracestate")

# Tells that the other side has closed its end, before the event loop has read so; Linux only.
_PEER_HAS_LEFT: Final = getattr(select, "POLLRDHUP", 0)


class WorkerApi:
    def __init__(self, settings: Settings, backend: Backend, access: Access, polls: Polls) -> None:
        self._ttl_seconds = settings.registration_ttl_seconds
        self._clock = backend.clock
        self._workers = backend.workers
        self._board = backend.board
        self._access = access
        self._polls = polls

    def add_to(self, app: web.Application) -> None:
        heartbeat_path = WORKER_API_PREFIX + ENDPOINT_WORKER_HEARTBEAT
        app.add_routes(
            [
                web.post(WORKER_API_PREFIX + ENDPOINT_WORKER_REGISTER, self._register),
                web.get(WORKER_API_PREFIX + ENDPOINT_TASK_NEXT, self._next_task, allow_head=False),
                web.patch(heartbeat_path, self._heartbeat),
                web.patch(f"{heartbeat_path}/status", self._heartbeat),
                web.post(WORKER_API_PREFIX + ENDPOINT_TASK_RESULT, self._result),
                web.post(WORKER_API_PREFIX + STS_TOKEN_ENDPOINT, self._token),
            ]
        )
        app.on_response_prepare.append(_add_version)

    async def _sender(self, request: web.Request, hint: object) -> WorkerId | None:
        """The authenticated worker; `hint` is the id it gave where the header does not count."""
        named = hint if isinstance(hint, str) and hint else request.headers.get(WORKER_ID_HEADER)
        worker_id = await self._access.worker(request.headers.get(AUTH_HEADER_WORKER), named)
        if worker_id is not None:
            rxon.validate_identifier(worker_id, "worker_id")
        return worker_id

    async def _sender_in_path(self, request: web.Request) -> WorkerId:
        worker_id = await self._sender(request, request.match_info["worker_id"])
        assert worker_id is not None, "the path names a worker"
        return worker_id

    async def _register(self, request: web.Request) -> web.Response:
        document = await read_message(request)
        sender = await self._sender(request, document.get("worker_id"))
        registration = rxon.parse_registration(document)
        assert sender == registration.worker_id
        answer = await operations.register(
            self._workers,
            registration,
            document,
            self._ttl_seconds,
            request.headers.get(PROTOCOL_VERSION_HEADER),
        )
        return json_response(answer)

    async def _heartbeat(self, request: web.Request) -> web.Response:
        worker_id = await self._sender_in_path(request)
        changes = await read_message(request) if await request.read() else None
        named: list[TaskId] = []
        if changes:
            heartbeat = rxon.parse_heartbeat(changes, worker_id=worker_id)
            named = [TaskId(task_id) for task_id in heartbeat.current_tasks or ()]
        answer = await operations.heartbeat(
            self._workers, self._board, worker_id, changes or None, named, self._ttl_seconds
        )
        return json_response(answer)

    async def _result(self, request: web.Request) -> web.Response:
        document = await read_message(request)
        # The header, where there is one, says who sends; the body may then name another worker.
        named = request.headers.get(WORKER_ID_HEADER) or document.get("worker_id")
        sender = await self._sender(request, named)
        result = rxon.parse_result(document, sender=sender)
        if sender is None:
            raise MissingWorkerId
        job_id = parse_job_id(result.job_id)
        return json_response(
            await operations.submit_result(self._board, self._clock, sender, result, job_id)
        )

    async def _token(self, request: web.Request) -> web.Response:
        await self._sender(request, None)
        raise Forbidden("Unauthorized: mTLS certificate required to issue access token.")

    async def _next_task(self, request: web.Request) -> web.StreamResponse:
        worker_id = await self._sender_in_path(request)
        task = await self._polls.wait(worker_id)
        if task is None:
            return web.Response(status=204)
        if _has_left(request):
            self._polls.undelivered(task, worker_id)
            return web.Response(status=204)
        response = _task_response(task)
        try:
            await response.prepare(request)
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            self._polls.undelivered(task, worker_id)
            raise
        self._polls.delivered(task, worker_id, request.protocol)
        return response


def _task_response(task: LeasedTask) -> web.Response:
    traced = task.tracing_context
    headers = {name: traced[name] for name in _TRACING_HEADERS if name in traced}
    return json_response(operations.payload_of(task), headers=headers)


def _has_left(request: web.Request) -> bool:
    """Whether the client has closed the connection, as far as the kernel knows by now."""
    if request.transport is None or request.transport.is_closing():
        return True
    if not _PEER_HAS_LEFT:
        return False
    look = select.poll()
    look.register(request.transport.get_extra_info("socket").fileno(), _PEER_HAS_LEFT)
    return bool(look.poll(0))


async def _add_version(request: web.Request, response: web.StreamResponse) -> None:
    if request.path.startswith(f"{WORKER_API_PREFIX}/"):
        response.headers[PROTOCOL_VERSION_HEADER] = PROTOCOL_VERSION
