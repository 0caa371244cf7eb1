"""The worker's side of the door: `/_worker` over HTTP."""

import asyncio
import select
from collections.abc import Sequence
from typing import Final

from aiohttp import web

import rxon
from avtomatika_common.backend.ports import Backend, LeasedTask
from avtomatika_core.job import WorkerId
from avtomatika_gateway.access import Access
from avtomatika_gateway.bodies import json_response, read_message
from avtomatika_gateway.deliveries import Deliveries
from avtomatika_gateway.refusals import BadRequest, Forbidden
from avtomatika_gateway.worker_events import WorkerEvents
from avtomatika_gateway.worker_operations import WorkerOperations, payload_of, task_of
from rxon import TaskBatch
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
)
from rxon.exceptions import MissingWorkerId

_LONGEST_NUMBER: Final = 10
_TRACING_HEADERS: Final = ("traceparent", "tracestate")

# Tells that the other side has closed its end, before the event loop has read so; Linux only.
_PEER_HAS_LEFT: Final = getattr(select, "POLLRDHUP", 0)


class WorkerApi:
    def __init__(
        self,
        backend: Backend,
        access: Access,
        operations: WorkerOperations,
        deliveries: Deliveries,
        events: WorkerEvents,
    ) -> None:
        self._clock = backend.clock
        self._access = access
        self._operations = operations
        self._deliveries = deliveries
        self._events = events

    def add_to(self, app: web.Application) -> None:
        worker = WORKER_API_PREFIX + ENDPOINT_WORKER_HEARTBEAT
        app.add_routes(
            [
                web.post(WORKER_API_PREFIX + ENDPOINT_WORKER_REGISTER, self._register),
                web.get(WORKER_API_PREFIX + ENDPOINT_TASK_NEXT, self._next_task, allow_head=False),
                web.patch(worker, self._heartbeat),
                web.patch(f"{worker}/status", self._heartbeat),
                web.delete(worker, self._leave),
                web.post(WORKER_API_PREFIX + ENDPOINT_TASK_RESULT, self._result),
                web.post(WORKER_API_PREFIX + ENDPOINT_TASK_RESULTS, self._results),
                web.post(WORKER_API_PREFIX + ENDPOINT_TASK_PROGRESS, self._progress),
                web.post(WORKER_API_PREFIX + ENDPOINT_WORKER_EVENTS, self._event),
                web.post(WORKER_API_PREFIX + STS_TOKEN_ENDPOINT, self._token),
            ]
        )
        app.on_response_prepare.append(_add_version)

    # --- who sends

    async def sender(self, request: web.Request, hint: object) -> WorkerId | None:
        """The authenticated worker; `hint` is the id it gave where the header does not count."""
        named = hint if isinstance(hint, str) and hint else request.headers.get(WORKER_ID_HEADER)
        worker_id = await self._access.worker(request.headers.get(AUTH_HEADER_WORKER), named)
        if worker_id is not None:
            rxon.validate_identifier(worker_id, "worker_id")
        return worker_id

    async def _sender_in_path(self, request: web.Request) -> WorkerId:
        worker_id = await self.sender(request, request.match_info["worker_id"])
        assert worker_id is not None, "the path names a worker"
        return worker_id

    async def _named_sender(self, request: web.Request, named: object) -> WorkerId | None:
        """Of a message that names its sender, or not. The header says who sends where there is
        one; the body may then name another worker."""
        return await self.sender(request, request.headers.get(WORKER_ID_HEADER) or named)

    async def _sender_of(self, request: web.Request, named: object) -> WorkerId:
        """Of a message that must have a sender."""
        sender = await self._named_sender(request, named)
        if sender is None:
            raise MissingWorkerId
        return sender

    # --- the worker itself

    async def _register(self, request: web.Request) -> web.Response:
        document = await read_message(request)
        sender = await self.sender(request, document.get("worker_id"))
        protocol = request.headers.get(PROTOCOL_VERSION_HEADER)
        return json_response(await self._operations.register(sender, document, protocol))

    async def _heartbeat(self, request: web.Request) -> web.Response:
        began_at = self._clock.now()
        worker_id = await self._sender_in_path(request)
        changes = await read_message(request) if await request.read() else {}
        return json_response(
            await self._operations.heartbeat(worker_id, changes, began_at=began_at)
        )

    async def _event(self, request: web.Request) -> web.Response:
        document = await read_message(request)
        sender = await self._sender_of(request, document.get("worker_id"))
        event = rxon.parse_event(document, sender=sender)
        return json_response(await self._events.accept(sender, event))

    async def _leave(self, request: web.Request) -> web.Response:
        worker_id = await self._sender_in_path(request)
        return json_response(await self._operations.leave(worker_id))

    async def _token(self, request: web.Request) -> web.Response:
        await self.sender(request, None)
        raise Forbidden("Unauthorized: mTLS certificate required to issue access token.")

    # --- its tasks

    async def _next_task(self, request: web.Request) -> web.StreamResponse:
        worker_id = await self._sender_in_path(request)
        most = _most(request.query.get("max"))
        tasks = await self._operations.poll(worker_id, 1 if most is None else most)
        if not tasks:
            return web.Response(status=204)
        response = _plain(tasks[0]) if most is None else _batch(tasks)
        return await self._hand_out(request, response, tasks, worker_id)

    async def _hand_out(
        self,
        request: web.Request,
        response: web.Response,
        tasks: Sequence[LeasedTask],
        worker_id: WorkerId,
    ) -> web.StreamResponse:
        """Write the answer with these tasks; what could not be written goes back to the board."""
        if _has_left(request):
            for task in tasks:
                self._deliveries.put_back(task, worker_id)
            return web.Response(status=204)
        try:
            await response.prepare(request)
            await response.write_eof()
        except (ConnectionError, asyncio.CancelledError):
            for task in tasks:
                self._deliveries.put_back(task, worker_id)
            raise
        for task in tasks:
            self._deliveries.written(task, worker_id, request.protocol)
        return response

    async def _result(self, request: web.Request) -> web.Response:
        document = await read_message(request)
        sender = await self._sender_of(request, document.get("worker_id"))
        result = rxon.parse_result(document, sender=sender)
        return json_response(await self._operations.submit_result(sender, result))

    async def _results(self, request: web.Request) -> web.StreamResponse:
        document = await read_message(request)
        batch = rxon.parse_result_batch(document)
        sender = await self._sender_of(request, batch.worker_id)
        answers, tasks = await self._operations.submit_batch(sender, batch)
        response = json_response({"answers": answers, "tasks": [task_of(task) for task in tasks]})
        if not tasks:
            return response
        return await self._hand_out(request, response, tasks, sender)

    async def _progress(self, request: web.Request) -> web.Response:
        document = await read_message(request)
        sender = await self._named_sender(request, document.get("worker_id"))
        progress = rxon.parse_progress(document)
        return json_response(await self._operations.report_and_hear(sender, progress))


def _most(text: str | None) -> int | None:
    """How many tasks a poll asks for; None: it does not say. Raises BadRequest."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < _LONGEST_NUMBER):
        raise BadRequest("max must be a whole number from 1")
    return int(text)


def _plain(task: LeasedTask) -> web.Response:
    traced = task.tracing_context
    headers = {name: traced[name] for name in _TRACING_HEADERS if name in traced}
    return json_response(payload_of(task), headers=headers)


def _batch(tasks: Sequence[LeasedTask]) -> web.Response:
    return json_response(TaskBatch(tasks=tuple(task_of(task) for task in tasks)))


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
