"""The worker: takes tasks from its orchestrators, runs their handlers, brings the results."""

import asyncio
import logging
import signal
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

import aiohttp
import msgspec

from avtomatika_worker.advertise import Advertised, advertise, hot_skills
from avtomatika_worker.config import DEFAULT_TOKEN, WorkerConfig
from avtomatika_worker.handlers import Handler, HandlerFunction, execute, read_handler
from avtomatika_worker.link import Link
from avtomatika_worker.logs import setup_logging
from avtomatika_worker.orchestrators import Turns, read_orchestrator, read_orchestrators
from avtomatika_worker.outcome import CANCELLED, Outcome, failure
from avtomatika_worker.types import CapacityChecker
from rxon import (
    Heartbeat,
    InstalledModel,
    Resources,
    TaskPayload,
    TaskResult,
    Transport,
    WorkerCapabilities,
    WorkerRegistration,
    create_transport,
    validate_identifier,
)
from rxon.constants import ERROR_CODE_PERMANENT, ERROR_CODE_TRANSIENT
from rxon.security import create_client_ssl_context

FAREWELL_SECONDS: Final = 5.0
"""How long a worker that stops waits for its orchestrators to hear of it."""

log = logging.getLogger("avtomatika_worker")

_Function = TypeVar("_Function", bound=HandlerFunction)


@dataclass
class _Running:
    """A task in hand, from its arrival until its result is delivered."""

    handler: Handler | None
    execution: asyncio.Task[Outcome] = field(init=False)
    started: bool = False
    unwanted: bool = False
    """The orchestrator no longer wants it."""
    abandoned: bool = False
    """We stop and it did not end in time."""

    def withdraw(self) -> None:
        """Stop the handler; a thread that runs can only be asked to, by `unwanted`."""
        self.unwanted = True
        in_thread = self.handler is not None and self.handler.in_thread
        if not (in_thread and self.started):
            self.execution.cancel()

    def outcome(self) -> Outcome:
        """What became of the execution, which has ended."""
        outcome = CANCELLED if self.execution.cancelled() else self.execution.result()
        if self.abandoned and not self.unwanted and outcome == CANCELLED:
            # Nobody asked for the task to be cancelled: another worker shall have it.
            return failure(ERROR_CODE_TRANSIENT, "The worker stopped before the task ended.")
        return outcome


class Worker:
    """Runs the functions registered with `task` for one or more orchestrators. It runs once.

    `worker_type` and `max_concurrent_tasks` go before the settings of the same name;
    `task_type_limits` says how many tasks of a class may run at once; `skill_dependencies` which
    models a task needs; `capacity_checker` is asked whether a task may come now; `http_session`
    is used and never closed; `clients` are (orchestrator, transport) pairs for tests.
    """

    def __init__(
        self,
        worker_type: str | None = None,
        max_concurrent_tasks: int | None = None,
        task_type_limits: Mapping[str, int] | None = None,
        http_session: aiohttp.ClientSession | None = None,
        skill_dependencies: Mapping[str, Iterable[str]] | None = None,
        config: WorkerConfig | None = None,
        capacity_checker: CapacityChecker | None = None,
        clients: Iterable[tuple[Mapping[str, object], Transport]] | None = None,
    ) -> None:
        self.config = config or WorkerConfig()
        self.worker_id = self.config.WORKER_ID
        self.worker_type = worker_type or self.config.WORKER_TYPE
        if max_concurrent_tasks is not None and max_concurrent_tasks < 1:
            raise ValueError("max_concurrent_tasks must be at least 1.")
        self.max_concurrent_tasks = max_concurrent_tasks or self.config.MAX_CONCURRENT_TASKS
        self._limits = dict(task_type_limits or {})
        self._class_places = {
            name: asyncio.Semaphore(limit) for name, limit in self._limits.items()
        }
        self._skill_dependencies = (
            None
            if skill_dependencies is None
            else {task: tuple(models) for task, models in skill_dependencies.items()}
        )
        self._capacity_checker = capacity_checker
        self._http_session = http_session
        self._clients = None if clients is None else tuple(clients)
        self._handlers: dict[str, Handler] = {}
        self._hot_cache: set[str] = set()
        self._running: dict[str, _Running] = {}
        self._links: tuple[Link, ...] = ()
        self._turns = Turns()
        self._draining = False
        self._stopping = asyncio.Event()
        self._polling_may_go_on = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def task(self, name: str, task_type: str | None = None) -> Callable[[_Function], _Function]:
        """Register the decorated function, `async` or plain, for tasks called `name`.

        `task_type` is a class of concurrency for `task_type_limits`. Raises ValueError for a bad
        or repeated name, TypeError for a function with an argument that nobody supplies.
        """
        validate_identifier(name, "task name")
        if name in self._handlers:
            raise ValueError(f"Task '{name}' is already registered.")

        def register(function: _Function) -> _Function:
            self._handlers[name] = read_handler(name, task_type, function)
            return function

        return register

    def add_to_hot_cache(self, model: str) -> None:
        """Tell the orchestrators that `model` is loaded. May be called from any thread."""
        if model not in self._hot_cache:
            self._hot_cache.add(model)
            self._tell_from_any_thread()

    def remove_from_hot_cache(self, model: str) -> None:
        if model in self._hot_cache:
            self._hot_cache.discard(model)
            self._tell_from_any_thread()

    def get_hot_cache(self) -> set[str]:
        return set(self._hot_cache)

    async def check_for_cancellation(self, task_id: str) -> bool:
        """Whether a task in hand should end early: nobody wants it any more, or we stop."""
        running = self._running.get(task_id)
        return running is not None and (running.unwanted or running.abandoned)

    def run(self) -> None:
        """Work until SIGINT or SIGTERM. Sets up logging unless somebody else has."""
        if not log.hasHandlers():
            setup_logging(self.config.LOG_LEVEL, self.config.LOG_FORMAT)
        asyncio.run(self.main())

    def stop(self) -> None:
        """Let `main` finish what is in hand and return. To be called in its event loop."""
        self._stopping.set()

    async def main(self) -> None:
        """Work until `stop`, or until SIGINT or SIGTERM where nobody else handles these.

        Raises ValueError if the settings are wrong.
        """
        self.config.validate()
        self._warn_of_settings()
        self._loop = asyncio.get_running_loop()
        self._links = self._connections()
        async with AsyncExitStack() as closing:
            for link in self._links:
                closing.push_async_callback(link.transport.close)
                await link.transport.connect()
            with _calling_on_signals(self.stop):
                await self._serve()
        log.info("stopped", extra={"worker_id": self.worker_id})

    # -- the session with the orchestrators

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            touch = [
                tasks.create_task(self._keep_in_touch(link), name="keep in touch")
                for link in self._links
            ]
            async with asyncio.TaskGroup() as work:
                polling = tasks.create_task(self._take_tasks(work), name="take tasks")
                await self._stopping.wait()
                self._draining = True
                log.info("draining", extra={"running": len(self._running)})
                await self._say_farewell()
                polling.cancel()
                await self._finish_in_time()
            for task in touch:
                task.cancel()

    async def _keep_in_touch(self, link: Link) -> None:
        while True:
            if not link.registered:
                await link.register(self._registration())
                self._polling_may_go_on.set()
            await link.wait_to_beat()
            if link.registered:
                await self._beat(link)

    async def _beat(self, link: Link) -> None:
        for task_id in await link.beat(self._heartbeat()):
            running = self._running.get(task_id)
            if running is not None and not running.unwanted:
                log.info("task no longer wanted", extra={"task_id": task_id})
                running.withdraw()

    async def _take_tasks(self, work: asyncio.TaskGroup) -> None:
        """One poll at a time is open, and only while there is a place for what it may bring."""
        while True:
            link = self._next_link()
            if link is None:
                await self._wait_for_a_link()
                continue
            task = await link.poll()
            if task is None:
                await asyncio.sleep(self.config.IDLE_POLL_DELAY)
            elif task.task_id in self._running:
                log.warning("task came twice", extra={"task_id": task.task_id})
            else:
                self._start(task, link, work)

    def _next_link(self) -> Link | None:
        """Whom to ask for a task, if anybody can be asked now."""
        if self._draining or len(self._running) >= self.max_concurrent_tasks:
            return None
        now = asyncio.get_running_loop().time()
        usable = [link for link in self._links if link.registered and link.resting_until <= now]
        if not usable or self.config.MULTI_ORCHESTRATOR_MODE != "ROUND_ROBIN":
            return next(iter(usable), None)
        chosen = self._turns.choose([link.orchestrator for link in usable])
        return next(link for link in usable if link.orchestrator is chosen)

    async def _wait_for_a_link(self) -> None:
        """Until a place is free, an orchestrator is back, or the first rest is over."""
        now = asyncio.get_running_loop().time()
        rests = [link.resting_until for link in self._links if link.resting_until > now]
        with suppress(TimeoutError):
            async with asyncio.timeout_at(min(rests, default=None)):
                await self._polling_may_go_on.wait()
        self._polling_may_go_on.clear()

    async def _say_farewell(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS), asyncio.TaskGroup() as farewells:
                for link in self._links:
                    if link.registered:
                        farewells.create_task(self._beat(link), name="farewell")

    async def _finish_in_time(self) -> None:
        if self._running:
            executions = [running.execution for running in self._running.values()]
            await asyncio.wait(executions, timeout=self.config.SHUTDOWN_TIMEOUT)
        for task_id, running in self._running.items():
            if not running.execution.done():
                log.warning("task did not end in time", extra={"task_id": task_id})
                running.abandoned = True
                running.execution.cancel()

    # -- a task in hand

    def _start(self, task: TaskPayload, link: Link, work: asyncio.TaskGroup) -> None:
        running = _Running(self._handlers.get(task.type))
        running.execution = work.create_task(self._execute(task, running), name="execute")
        self._running[task.task_id] = running
        self._tell()
        work.create_task(self._report(task, running, link), name="report")

    async def _execute(self, task: TaskPayload, running: _Running) -> Outcome:
        handler = running.handler
        if handler is None:
            return failure(ERROR_CODE_PERMANENT, f"Unsupported task: {task.type}")
        async with self._class_places.get(handler.task_type or "") or nullcontext():
            running.started = True
            return await execute(
                handler,
                {
                    "params": task.params,
                    "task_id": task.task_id,
                    "job_id": task.job_id,
                    "tracing_context": task.tracing_context,
                    "priority": 0,
                    "add_to_hot_cache": self.add_to_hot_cache,
                    "remove_from_hot_cache": self.remove_from_hot_cache,
                },
            )

    async def _report(self, task: TaskPayload, running: _Running, link: Link) -> None:
        try:
            await asyncio.wait({running.execution})
            outcome = running.outcome()
            await link.deliver(
                TaskResult(
                    job_id=task.job_id,
                    task_id=task.task_id,
                    worker_id=self.worker_id,
                    status=outcome.status,
                    data=outcome.data,
                    error=outcome.error,
                )
            )
        finally:
            del self._running[task.task_id]
            self._tell()
            self._polling_may_go_on.set()

    # -- what we say of ourselves

    def _registration(self) -> WorkerRegistration:
        config = self.config
        resources = msgspec.convert(config.RESOURCES, Resources)
        return WorkerRegistration(
            worker_id=self.worker_id,
            worker_type=self.worker_type,
            supported_tasks=self._advertised().supported_tasks,
            resources=msgspec.structs.replace(
                resources, max_concurrent_tasks=self.max_concurrent_tasks
            ),
            installed_software=config.INSTALLED_SOFTWARE,
            installed_models=tuple(
                msgspec.convert(model, InstalledModel) for model in config.INSTALLED_MODELS
            ),
            capabilities=WorkerCapabilities(
                hostname=config.HOSTNAME,
                ip_address=config.IP_ADDRESS,
                cost_per_skill=config.COST_PER_SKILL,
            ),
            cost_per_second=msgspec.UNSET
            if config.COST_PER_SECOND is None
            else config.COST_PER_SECOND,
        )

    def _heartbeat(self) -> Heartbeat:
        advertised = self._advertised()
        return Heartbeat(
            worker_id=self.worker_id,
            status="draining" if self._draining else advertised.status,
            load=float(len(self._running)),
            current_tasks=tuple(self._running),
            supported_tasks=advertised.supported_tasks,
            hot_cache=tuple(sorted(self._hot_cache)),
            skill_dependencies=self._skill_dependencies,
            hot_skills=hot_skills(self._skill_dependencies, self._hot_cache),
        )

    def _advertised(self) -> Advertised:
        return advertise(
            self._handlers.values(),
            running=[
                running.handler.task_type if running.handler else None
                for running in self._running.values()
            ],
            places=self.max_concurrent_tasks,
            limits=self._limits,
            has_capacity=self._has_capacity,
        )

    def _has_capacity(self, task_name: str) -> bool:
        if self._capacity_checker is None:
            return True
        try:
            return self._capacity_checker(task_name)
        except Exception:  # a user's code: a fault in it is no reason to drop all tasks
            log.exception("capacity checker raised", extra={"task_name": task_name})
            return False

    def _tell(self) -> None:
        for link in self._links:
            link.news.set()

    def _tell_from_any_thread(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended: nobody is left to tell
                self._loop.call_soon_threadsafe(self._tell)

    # -- wiring

    def _connections(self) -> tuple[Link, ...]:
        config = self.config
        if self._clients is not None:
            given = [(read_orchestrator(entry), transport) for entry, transport in self._clients]
            given.sort(key=lambda one: (one[0].priority, one[0].url))
            return tuple(Link(*one, config) for one in given)
        ssl_context = (
            create_client_ssl_context(config.TLS_CA_PATH, config.TLS_CERT_PATH, config.TLS_KEY_PATH)
            if config.TLS_CA_PATH or config.TLS_CERT_PATH
            else None
        )
        return tuple(
            Link(
                orchestrator,
                create_transport(
                    orchestrator.url,
                    self.worker_id,
                    orchestrator.token or config.WORKER_TOKEN,
                    ssl_context,
                    session=self._http_session,
                ),
                config,
            )
            for orchestrator in read_orchestrators(config.ORCHESTRATORS)
        )

    def _warn_of_settings(self) -> None:
        if self.config.WORKER_TOKEN == DEFAULT_TOKEN:
            log.warning("WORKER_TOKEN is the default: set a secret of your own")
        for setting in ("S3_ENDPOINT_URL", "ENABLE_WEBSOCKETS"):
            if getattr(self.config, setting):
                log.warning("setting has no effect in this version", extra={"setting": setting})


@contextmanager
def _calling_on_signals(stop: Callable[[], None]) -> Generator[None]:
    """Stop gently on the first SIGINT or SIGTERM; a second one has its usual effect.

    An application that handles SIGTERM itself keeps both signals.
    """
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def release() -> None:
        while caught:
            loop.remove_signal_handler(caught.pop())

    def stop_once() -> None:
        release()
        stop()

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # Not on Windows, and only in the main thread: elsewhere `stop` is the way.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop_once)
                caught.append(number)
    try:
        yield
    finally:
        release()
