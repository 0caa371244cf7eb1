"""The only door: HTTP for clients, workers and people, over the ports; it runs no user code.

Workers of the same process may come in without HTTP.
"""

import asyncio
import math
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from avtomatika_common.backend.ports import Backend
from avtomatika_common.history import HistoryReader
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import get_logger
from avtomatika_gateway.access import Access
from avtomatika_gateway.approvals import Approvals
from avtomatika_gateway.blueprints import Blueprints
from avtomatika_gateway.bodies import json_response
from avtomatika_gateway.client_api import ClientApi
from avtomatika_gateway.deliveries import Deliveries
from avtomatika_gateway.http_errors import answer_errors
from avtomatika_gateway.in_process import InProcessDoor, InProcessTransport, Inside
from avtomatika_gateway.mail import read_mail
from avtomatika_gateway.metrics import Metrics
from avtomatika_gateway.polls import Polls
from avtomatika_gateway.schedules import SchedulesApi
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.skills import SkillContracts
from avtomatika_gateway.sockets import Sockets
from avtomatika_gateway.worker_api import WorkerApi
from avtomatika_gateway.worker_events import OnWorkerEvent, WorkerEvents
from avtomatika_gateway.worker_operations import WorkerOperations
from avtomatika_gateway.worker_sockets import WorkerSockets
from rxon import Transport

log = get_logger()


class GatewayService:
    """One HTTP server; any number of them share a backend.

    `app` may be given more routes until `run` is called; one that is passed in keeps its own, and
    its `client_max_size` is the limit of bodies. `in_process` opens while it runs.
    """

    name = "gateway"

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        history: HistoryReader | None = None,
        ssl_context: ssl.SSLContext | None = None,
        app: web.Application | None = None,
        on_worker_event: OnWorkerEvent | None = None,
        in_process: InProcessDoor | None = None,
    ) -> None:
        self.instance_id = settings.instance_id
        self._settings = settings
        self._backend = backend
        self._ssl_context = ssl_context
        self._port: int | None = None
        base = f"/{settings.client_api_prefix}" if settings.client_api_prefix else ""
        access = Access(settings.client_token_digest, settings.worker_token_digest)
        self._deliveries = Deliveries(backend.board)
        contracts = SkillContracts(backend.workers, backend.clock)
        self._polls = Polls(settings, backend, self._deliveries, contracts)
        self._sockets = Sockets(settings, backend)
        self._operations = WorkerOperations(
            settings, backend, self._polls, self._deliveries, contracts
        )
        self._blueprints = Blueprints(backend.catalogue, base)
        self._base = base
        self._worker_events = WorkerEvents(
            settings, backend, self._blueprints, contracts, on_worker_event
        )
        self._worker_api = WorkerApi(
            backend, access, self._operations, self._deliveries, self._worker_events
        )
        self._worker_sockets = WorkerSockets(
            settings, self._worker_api, self._operations, self._sockets
        )
        self._approvals = Approvals(settings, backend, access)
        self._client_api = ClientApi(settings, backend, history, access, self._blueprints)
        self._schedules_api = SchedulesApi(backend, access, self._blueprints)
        self._metrics = Metrics(backend.inspection)
        self._has_routes = False
        self._in_process = in_process or InProcessDoor()
        self.app = app or web.Application(client_max_size=settings.max_request_body_bytes)

    def add_routes(self) -> None:
        """Add our routes to `app`, once; `run` does it where nobody did before."""
        if self._has_routes:
            return
        self._has_routes = True
        self.app.middlewares.append(answer_errors)
        self.app.router.add_get("/_public/status", _status)
        self._metrics.add_to(self.app)
        self._worker_api.add_to(self.app)
        self._worker_sockets.add_to(self.app)
        self._approvals.add_to(self.app)
        self._client_api.add_quarantine_list(self.app)
        if self._settings.enable_client_api:
            self._client_api.add_to(self.app, self._base)
            self._schedules_api.add_to(self.app, self._base)

    def transport(self, worker_id: str) -> Transport:
        """The line of a worker of this name in this event loop; it works while the gateway runs.

        Raises ValueError for what cannot be the id of a worker.
        """
        return InProcessTransport(self._in_process, worker_id)

    @property
    def port(self) -> int:
        """Where it listens, once it is ready."""
        assert self._port is not None, "the gateway does not listen yet"
        return self._port

    @property
    def address(self) -> str:
        """The same as a URL."""
        scheme = "http" if self._ssl_context is None else "https"
        host = self._settings.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        settings = self._settings
        self.add_routes()
        for secret in settings.default_secrets:
            # The name is in the words too: an application's formatter may show nothing else.
            words = f"{secret} is the published default: set a secret of your own"
            log.warning(words, setting=secret)
        runner = web.AppRunner(
            self.app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=settings.shutdown_timeout_seconds,
        )
        async with (
            self._backend.liveness.keep(settings.instance_id),
            asyncio.TaskGroup() as tasks,
        ):
            self._polls.open(tasks)
            self._worker_events.serve(tasks)
            background = [
                tasks.create_task(self._read_mail(), name="gateway mail"),
                tasks.create_task(self._deliveries.serve(tasks), name="gateway deliveries"),
                tasks.create_task(self._sockets.serve(tasks), name="gateway sockets"),
                tasks.create_task(self._blueprints.follow(), name="gateway catalogue"),
            ]
            self._in_process.open(self._inside(tasks))
            try:
                await self._listen(runner)
                ready.set()
                await stop.wait()
                self._polls.close()
                await self._worker_sockets.close()
            finally:
                await runner.cleanup()
                # Later than the application's own clean-up: a worker that stops there is heard.
                await self._in_process.close(settings.shutdown_timeout_seconds)
                self._port = None
                await self._worker_events.drain()
                await self._deliveries.confirm_until(math.inf)
                for task in background:
                    task.cancel()

    def _inside(self, tasks: asyncio.TaskGroup) -> Inside:
        return Inside(
            operations=self._operations,
            events=self._worker_events,
            deliveries=self._deliveries,
            sockets=self._sockets,
            clock=self._backend.clock,
            max_body_bytes=self._settings.max_request_body_bytes,
            tasks=tasks,
            loop=asyncio.get_running_loop(),
        )

    async def _read_mail(self) -> None:
        await read_mail(self.instance_id, self._backend.mailbox, self._polls, self._sockets)

    async def _listen(self, runner: web.AppRunner) -> None:
        settings = self._settings
        await runner.setup()
        assert runner.server is not None
        _report_resets(runner.server, self._deliveries.connection_reset)
        site = web.TCPSite(runner, settings.host, settings.port, ssl_context=self._ssl_context)
        try:
            await site.start()
        except OSError as error:
            raise StartupError(
                f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}."
                " Set API_HOST and API_PORT to a free address."
            ) from error
        self._port = runner.addresses[0][1]
        log.info(
            "gateway serves clients and workers"
            if settings.enable_client_api
            else "gateway serves workers",
            address=self.address,
            host=settings.host,
            port=self._port,
            tls=self._ssl_context is not None,
            instance_id=settings.instance_id,
        )


def _report_resets(server: web.Server, reset: Callable[[object], None]) -> None:
    """Call `reset` with each connection the other end refuses to read from."""
    forget = server.connection_lost

    def connection_lost(handler: RequestHandler, exc: BaseException | None = None) -> None:
        if exc is not None:
            reset(handler)
        forget(handler, exc)

    server.connection_lost = connection_lost  # type: ignore[method-assign]


async def _status(_request: web.Request) -> web.Response:
    return json_response({"status": "ok"})
