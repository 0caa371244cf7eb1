"""The whole orchestrator in one process: the same services as apart, over one storage."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientSession, web

from avtomatika import app_keys
from avtomatika_common import ids
from avtomatika_common.backend.opening import storage_of, store_options
from avtomatika_common.backend.ports import (
    JobIsTerminal,
    JobNotFound,
    StorageBackend,
    Stored,
    StoreUnavailable,
)
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.codec import as_json, check_json
from avtomatika_common.config import Config
from avtomatika_common.contracts import input_problem
from avtomatika_common.documents import base_document, job_document
from avtomatika_common.history import history_reader
from avtomatika_common.lifecycle import Service, StartupError, Suite
from avtomatika_common.loading import in_directory
from avtomatika_common.logs import get_logger
from avtomatika_common.process import run_process
from avtomatika_common.records import open_approval, record_id, sent_event
from avtomatika_core.commands import Notify, Step
from avtomatika_core.events import CancelRequested, SignalReceived
from avtomatika_core.job import Client, Job, JobId, Origin, new_job
from avtomatika_core.signals import check_signal_name
from avtomatika_dispatcher.service import DispatcherService
from avtomatika_dispatcher.settings import Settings as DispatcherSettings
from avtomatika_executor.service import ExecutorService
from avtomatika_executor.settings import Settings as ExecutorSettings
from avtomatika_gateway.blueprints import path_of
from avtomatika_gateway.in_process import InProcessDoor
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings as GatewaySettings
from avtomatika_gateway.tls import server_tls
from avtomatika_history.service import HistoryService
from avtomatika_history.settings import Settings as HistorySettings
from avtomatika_notifier.service import NotifierService
from avtomatika_notifier.settings import Settings as NotifierSettings
from avtomatika_scheduler.service import SchedulerService
from avtomatika_scheduler.settings import Settings as SchedulerSettings
from avtomatika_watcher.service import WatcherService
from avtomatika_watcher.settings import Settings as WatcherSettings
from rxon import Transport

log = get_logger()

_CALLBACK_SECONDS = 60.0

OnJobFinished = Callable[[str, str, dict[str, Any]], Awaitable[object]]
OnApprovalRequested = Callable[[str, dict[str, Any]], Awaitable[object]]
OnWorkerEvent = Callable[[str, dict[str, Any]], Awaitable[object]]


class OrchestratorEngine:
    """Register blueprints, then `run()`, or `await start()` and `await stop()`.

    `storage`: None takes Redis where the configuration names one, else memory. `config` may be
    changed until the engine starts. `app` is the aiohttp application: routes may be added to it,
    and its parts are in `avtomatika.app_keys`.

    Callbacks (async functions, called in the process that committed the change):
    `on_job_finished` gets (job_id, status, job document), `on_approval_requested` (job_id,
    `{integration, message, decisions, deadline, token, url}`; `url` is a path of this engine).
    `on_worker_event` gets (worker_id, event) of each event that was accepted at this engine's own
    door, the first time, and of each a handler sent here: those have the worker_id "".
    One that raises is logged and hurts nobody.
    """

    def __init__(self, storage: StorageBackend | None = None, config: Config | None = None) -> None:
        self.config = config or Config()
        self.storage: StorageBackend = storage or storage_of(self.config)
        self._chosen_by = None if storage else (self.config.redis_url(),)
        self.blueprints: dict[str, StateMachineBlueprint] = {}
        self.on_job_finished: list[OnJobFinished] = []
        self.on_approval_requested: list[OnApprovalRequested] = []
        self.on_worker_event: list[OnWorkerEvent] = []
        self.app = web.Application(client_max_size=self.config.MAX_REQUEST_BODY_BYTES)
        self._in_process = InProcessDoor()
        self._is_set_up = False
        self._suite: Suite | None = None
        self._session: ClientSession | None = None
        self._make_services()

    # -- blueprints

    def register_blueprint(self, blueprint: StateMachineBlueprint) -> None:
        """Validate it and host it. Raises ValueError, and RuntimeError once the engine is set up."""
        if self._is_set_up:
            raise RuntimeError("Cannot register blueprints after engine setup.")
        if blueprint.name in self.blueprints:
            raise ValueError(f"Blueprint with name '{blueprint.name}' is already registered.")
        for other in self.blueprints.values() if blueprint.api_endpoint else ():
            if other.api_endpoint and path_of("", other) == path_of("", blueprint):
                raise ValueError(
                    f"Blueprints '{other.name}' and '{blueprint.name}' have the same endpoint"
                    f" '{blueprint.api_endpoint}'; give one another api_endpoint or api_version."
                )
        blueprint.validate()
        self.blueprints[blueprint.name] = blueprint

    # -- life

    def setup(self) -> None:
        """Fix storage and blueprints. `start` and `run` do it; it may be repeated."""
        if self._is_set_up:
            return
        for blueprint in in_directory(self.config.BLUEPRINTS_DIR):
            self.register_blueprint(blueprint)
        if self._chosen_by not in {None, (self.config.redis_url(),)}:  # it was changed meanwhile
            self.storage = storage_of(self.config)
        self._is_set_up = True

    async def start(self) -> None:
        """Start every service; returns when work can arrive.

        Raises RuntimeError `Storage Backend is unavailable.`, and when it was started before: an
        aiohttp application serves once, so the next start takes a new engine. Raises StartupError.
        """
        await self._open()
        try:
            self._suite = Suite(*self._services)
            await self._suite.start()
        except BaseException:
            self._suite = None
            await self._close()
            raise

    async def stop(self) -> None:
        """Intake ends first, running handlers get `SHUTDOWN_TIMEOUT_SECONDS`, then the rest.

        What did not end is taken up by another instance or, where the storage lasts, the next start.
        """
        suite, self._suite = self._suite, None
        try:
            if suite is not None:
                await suite.stop()
        finally:
            await self._close()

    def run(self) -> None:
        """Run until SIGINT or SIGTERM. Blocks; not for use inside an event loop."""
        code = run_process(self._as_process, self.config)
        if code:
            raise SystemExit(code)

    @asynccontextmanager
    async def _as_process(self, _config: Config) -> AsyncGenerator[Sequence[Service], None]:
        try:
            await self._open()
        except RuntimeError as error:
            raise StartupError(f"{error} {error.__cause__ or ''}".strip()) from error
        try:
            yield self._services
        finally:
            await self._close()

    async def _open(self) -> None:
        self.setup()
        if app_keys.HTTP_SESSION_KEY in self.app:
            raise RuntimeError("The engine was started before; make a new one.")
        try:
            await self.storage.open(store_options(self.config))
        except StartupError as reason:
            raise RuntimeError("Storage Backend is unavailable.") from reason
        try:
            if not await self.storage.ping():
                raise RuntimeError("Storage Backend is unavailable.")
            self._make_services()
            # aiohttp takes it when an application is made; the setting may have changed since.
            self.app._client_max_size = self.config.MAX_REQUEST_BODY_BYTES  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            self._gateway.add_routes()
            self._session = ClientSession()
            self.app[app_keys.HTTP_SESSION_KEY] = self._session
        except BaseException:
            await self._close()
            raise

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self.storage.close()

    def _make_services(self) -> None:
        """From configuration, blueprints and storage as they are now.

        Made anew at each start: a storage has the ports that work only once it is open.
        """
        config, storage = self.config, self.storage
        self._gateway = GatewayService(
            GatewaySettings.from_config(config),
            storage,
            history_reader(config.history_uri(), config.timezone()),
            server_tls(config),
            app=self.app,
            on_worker_event=self._event_accepted,
            in_process=self._in_process,
        )
        executor = ExecutorService(
            ExecutorSettings.from_config(config),
            storage,
            self.blueprints.values(),
            on_commit=self._committed,
            instance=getattr(storage, "consumer_name", None) or config.INSTANCE_ID,
        )
        dispatcher = DispatcherService(DispatcherSettings.from_config(config), storage)
        watcher = WatcherService(WatcherSettings.from_config(config), storage)
        scheduler = SchedulerService(
            SchedulerSettings.from_config(config, must_know_blueprints=True), storage
        )
        history = HistoryService(HistorySettings.from_config(config), storage)
        notifier = NotifierService(NotifierSettings.from_config(config), storage)
        self.app[app_keys.ENGINE_KEY] = self
        self.app[app_keys.EXECUTOR_KEY] = executor
        self.app[app_keys.DISPATCHER_KEY] = dispatcher
        self.app[app_keys.WATCHER_KEY] = watcher
        self.app[app_keys.SCHEDULER_KEY] = scheduler
        self.app[app_keys.HISTORY_KEY] = history
        # Stopped in reverse order: intake first, the archive last. Without blueprints an executor
        # could only hand on the jobs it took from those who can run them.
        executors = (executor,) if self.blueprints else ()
        self._services: tuple[Service, ...] = (
            history, notifier, watcher, dispatcher, *executors, scheduler, self._gateway,
        )  # fmt: skip

    @property
    def port(self) -> int:
        """Where the HTTP door listens, once the engine is started."""
        return self._gateway.port

    def transport(self, worker_id: str) -> Transport:
        """A line for a worker of this name in the engine's own event loop: no network, no token.

        `Worker(clients=[({"url": "in-process"}, engine.transport("w1"))])` works for this engine,
        from its start to its stop; the transport may be made before. Raises ValueError for what
        cannot be the id of a worker.
        """
        return self._gateway.transport(worker_id)

    # -- jobs

    async def create_background_job(
        self,
        blueprint_name: str,
        initial_data: Mapping[str, Any],
        source: str = "internal",
        tracing_context: Mapping[str, str] | None = None,
        data_metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Create a job that belongs to no client; its id.

        Raises ValueError `Blueprint … not found.` and for data against the blueprint's contract,
        TypeError for data that JSON cannot carry.
        """
        check_json([initial_data, tracing_context or {}, data_metadata or {}])
        blueprint = self.blueprints.get(blueprint_name)
        if blueprint is not None and blueprint.start_state is not None:
            group, start_state = self.config.AVTOMATIKA_EXECUTOR_GROUP, blueprint.start_state
            contract = blueprint.input_schema
        else:
            _, entries = await self.storage.catalogue.entries()
            entry = next((e for e in entries if e.name == blueprint_name), None)
            if entry is None:
                raise ValueError(f"Blueprint '{blueprint_name}' not found.")
            group, start_state = entry.group, entry.start_state
            contract = entry.input_schema
        if problem := input_problem(blueprint_name, contract, dict(initial_data)):
            raise ValueError(problem)
        origin = Origin(
            blueprint=blueprint_name,
            group=group,
            start_state=start_state,
            initial_data=dict(initial_data),
            client=Client(plan="system", token="internal-scheduler", params={"source": source}),  # noqa: S106
            created_at=self.storage.clock.now(),
            data_metadata=dict(data_metadata or {}),
            tracing_context=dict(tracing_context or {}),
        )
        created = await self.storage.jobs.create(new_job(JobId(ids.new_id()), origin))
        return created.job_id

    async def cancel_job(self, job_id: str) -> bool:
        """Cancel a job in any state that is not terminal; False: there is none such."""
        event = CancelRequested(at=self.storage.clock.now())
        try:
            await self.storage.jobs.request_cancel(JobId(job_id), event)
        except (JobNotFound, JobIsTerminal):
            return False
        return True

    async def send_signal(
        self, job_id: str, name: str, data: Mapping[str, Any] | None = None
    ) -> bool:
        """Send the job a signal, `data` being merged into its `state_history` when it is taken.

        False: there is no such job, or it has ended. Raises ValueError for a name no signal can
        have, TypeError for data that JSON cannot carry, TooManySignals.
        """
        given = dict(data or {})
        check_json(given)
        signal = SignalReceived(
            at=self.storage.clock.now(), name=check_signal_name(name), data=given
        )
        try:
            await self.storage.jobs.send_signal(JobId(job_id), signal)
        except (JobNotFound, JobIsTerminal):
            return False
        return True

    async def _committed(self, stored: Stored, step: Step) -> None:
        """Tell the callbacks what this process committed."""
        if not (self.on_job_finished or self.on_approval_requested or self.on_worker_event):
            return
        commands = (command for one in step.in_order for command in one.commands)
        for index, command in enumerate(commands):
            if not isinstance(command, Notify):
                continue
            job = stored.job
            if command.sent is not None:
                event_id = record_id(job.id, stored.fence, index)
                event = sent_event(job.id, command.sent, event_id=event_id, at=command.at)
                await self._event_accepted("", event)
            elif command.approval is not None:
                for on_approval in self.on_approval_requested:
                    async with _survived(job.id):
                        await on_approval(job.id, open_approval(job.id, command.approval))
            elif self.on_job_finished:
                document = await self._document(job)
                for on_finished in self.on_job_finished:
                    async with _survived(job.id):
                        await on_finished(job.id, job.status.value, document)

    async def _event_accepted(self, worker_id: str, event: dict[str, Any]) -> None:
        for on_event in self.on_worker_event:
            async with _survived(event["target_job_id"]):
                await on_event(worker_id, event)

    async def _document(self, job: Job) -> dict[str, Any]:
        try:
            view = await self.storage.jobs.view(job.id)
        except StoreUnavailable:
            view = None
        document: dict[str, Any] = as_json(
            base_document(job) if view is None else job_document(view)
        )
        return document


@asynccontextmanager
async def _survived(job_id: str) -> AsyncGenerator[None, None]:
    """A callback that raises, or never returns, is the application's trouble, not the job's."""
    try:
        async with asyncio.timeout(_CALLBACK_SECONDS):
            yield
    except Exception:
        log.exception("callback failed", job_id=job_id)
