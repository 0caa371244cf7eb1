"""The worker's WebSocket: commands to it, progress from it."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import Any, Final

from aiohttp import WSCloseCode, WSMsgType, web

import rxon
from avtomatika_common.backend.ports import JobNotFound, StoreUnavailable
from avtomatika_common.codec import json_bytes
from avtomatika_common.logs import get_logger
from avtomatika_core.job import WorkerId
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.sockets import Sockets
from avtomatika_gateway.worker_api import WorkerApi
from avtomatika_gateway.worker_operations import WorkerOperations
from rxon import WorkerCommand
from rxon.constants import MSG_TYPE_PROGRESS, WORKER_API_PREFIX, WS_ENDPOINT
from rxon.exceptions import BadMessage

_PING_SECONDS: Final = 20.0
"""A connection that does not answer a ping for half as long is closed."""

_OPENING_SECONDS: Final = 5.0

_KNOWN: Final = f"Known events are: {MSG_TYPE_PROGRESS}."

log = get_logger()


class WorkerSockets:
    def __init__(
        self,
        settings: Settings,
        api: WorkerApi,
        operations: WorkerOperations,
        sockets: Sockets,
    ) -> None:
        self._max_message_bytes = settings.max_request_body_bytes
        self._api = api
        self._operations = operations
        self._sockets = sockets
        self._open: set[web.WebSocketResponse] = set()

    def add_to(self, app: web.Application) -> None:
        path = WORKER_API_PREFIX + WS_ENDPOINT
        app.router.add_get(path, self._serve)
        app.router.add_get(f"{path}/{{worker_id}}", self._serve)

    async def close(self) -> None:
        """Say goodbye to all of them."""
        for connection in list(self._open):
            await connection.close(code=WSCloseCode.GOING_AWAY, message=b"Server shutdown")

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        worker_id = await self._api.sender(request, request.match_info.get("worker_id"))
        if worker_id is not None:
            await self._operations.require_registered(worker_id)
        connection = web.WebSocketResponse(
            heartbeat=_PING_SECONDS, max_msg_size=self._max_message_bytes
        )
        if not connection.can_prepare(request):
            raise web.HTTPBadRequest(text="This path is for WebSocket connections.")
        async with AsyncExitStack() as holding:
            session = _Session(self, connection, holding)
            # Claimed before the worker knows that it is connected: of two the later one wins.
            if worker_id is not None:
                await session.belong_to(worker_id)
            await connection.prepare(request)
            self._open.add(connection)
            holding.callback(self._open.discard, connection)
            await session.run()
        return connection

    async def holder_of(self, document: Mapping[str, Any]) -> WorkerId | None:
        """Who holds the task that a message is about."""
        with suppress(BadMessage, JobNotFound):
            return await self._operations.holder_of(rxon.parse_progress(document))
        return None

    def held(
        self, worker_id: WorkerId, connection: "_Connection"
    ) -> AbstractAsyncContextManager[None]:
        """While the block lasts the connection is the worker's."""
        return self._sockets.held(worker_id, connection)

    async def report_progress(self, worker_id: WorkerId, document: Mapping[str, Any]) -> None:
        await self._operations.report_progress(worker_id, rxon.parse_progress(document))


class _Connection:
    """A `Socket` over aiohttp."""

    def __init__(self, connection: web.WebSocketResponse) -> None:
        self._connection = connection
        self.is_open = asyncio.Event()

    async def send(self, command: WorkerCommand) -> None:
        async with asyncio.timeout(_OPENING_SECONDS):
            await self.is_open.wait()
        sent = {name: value for name, value in rxon.to_dict(command).items() if value is not None}
        await self._connection.send_str(json_bytes(sent).decode())

    async def replace(self) -> None:
        async with asyncio.timeout(_OPENING_SECONDS):
            await self.is_open.wait()
        await self._connection.close(
            code=WSCloseCode.POLICY_VIOLATION, message=b"New connection established"
        )


class _Session:
    """One connection from its upgrade to its end."""

    def __init__(
        self,
        sockets: WorkerSockets,
        messages: web.WebSocketResponse,
        holding: AsyncExitStack,
    ) -> None:
        self._sockets = sockets
        self._messages = messages
        self._connection = _Connection(messages)
        self._holding = holding
        self._worker_id: WorkerId | None = None

    async def belong_to(self, worker_id: WorkerId) -> None:
        """From now on this is the worker's socket."""
        self._worker_id = worker_id
        await self._holding.enter_async_context(self._sockets.held(worker_id, self._connection))

    async def run(self) -> None:
        """Take messages until the connection ends, which is open now."""
        self._connection.is_open.set()
        async for message in self._messages:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await self._take(message.data)

    async def _take(self, data: str | bytes) -> None:
        try:
            document = rxon.parse_object(data.encode() if isinstance(data, str) else data)
        except BadMessage as error:
            log.warning("socket message refused", worker_id=self._worker_id, reason=str(error))
            return
        event = document.get("event")
        if not isinstance(event, str):
            log.warning(
                "socket message refused", worker_id=self._worker_id, reason=f"No event. {_KNOWN}"
            )
            return
        if event != MSG_TYPE_PROGRESS:
            log.debug("socket event ignored", worker_id=self._worker_id, reason=_KNOWN)
            return
        try:
            if self._worker_id is None:
                await self._adopt(document)
            if self._worker_id is None:
                log.info("progress of a task that nobody holds ignored")
                return
            await self._sockets.report_progress(self._worker_id, document)
        except (BadMessage, JobNotFound) as error:
            log.warning(
                "progress refused", worker_id=self._worker_id, reason=str(error) or "unknown job"
            )
        except StoreUnavailable as reason:
            log.warning("progress lost", worker_id=self._worker_id, reason=str(reason))

    async def _adopt(self, document: Mapping[str, Any]) -> None:
        """A connection that belongs to nobody is the holder's of the task it first reports on."""
        holder = await self._sockets.holder_of(document)
        if holder is not None:
            await self.belong_to(holder)
