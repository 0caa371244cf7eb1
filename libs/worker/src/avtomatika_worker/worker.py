"""The worker as its author sees it: handlers are registered with it, and it runs."""

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

import aiohttp

from avtomatika_worker.config import DEFAULT_TOKEN, MODES, InvalidSetting, WorkerConfig
from avtomatika_worker.handlers import HandlerFunction, read_handler
from avtomatika_worker.health import health_endpoint
from avtomatika_worker.logs import LineHandler, line_of_logger, setup_logging
from avtomatika_worker.orchestrators import (
    Orchestrator,
    read_orchestrator,
    read_orchestrators,
    unread_keys,
)
from avtomatika_worker.profile import Profile
from avtomatika_worker.progress_line import showing_progress
from avtomatika_worker.run import Run
from avtomatika_worker.types import CapacityChecker, Middleware
from rxon import Transport, create_transport, validate_identifier
from rxon.security import create_client_ssl_context

log = logging.getLogger("avtomatika_worker")

_Function = TypeVar("_Function", bound=HandlerFunction)


class Worker:
    """Runs the functions registered with `task` for one or more orchestrators.

    `worker_type` and `max_concurrent_tasks` go before the settings of the same name;
    `task_type_limits` says how many tasks of a class may run at once; `skill_dependencies` which
    models a task needs; `capacity_checker` is asked whether a task may come now; `http_session`
    is used and never closed; `clients` are (orchestrator, transport) pairs, for tests and for an
    orchestrator in this process: a worker without a WORKER_ID takes the name these are made for;
    `announce_contracts` tells the orchestrators what params and statuses each task has.
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
        *,
        announce_contracts: bool = False,
    ) -> None:
        self.config = config or WorkerConfig()
        self._clients = None if clients is None else tuple(clients)
        if self._clients and self.config.has_drawn_id:
            self.config.WORKER_ID = _named_by(self._clients) or self.config.WORKER_ID
        if max_concurrent_tasks is not None and max_concurrent_tasks < 1:
            raise ValueError("max_concurrent_tasks must be at least 1.")
        self._profile = Profile(
            config=self.config,
            worker_type=worker_type or self.config.WORKER_TYPE,
            places=max_concurrent_tasks or self.config.MAX_CONCURRENT_TASKS,
            limits=dict(task_type_limits or {}),
            skill_dependencies=None
            if skill_dependencies is None
            else {task: tuple(models) for task, models in skill_dependencies.items()},
            capacity_checker=capacity_checker,
            announce_contracts=announce_contracts,
        )
        self._http_session = http_session
        self._run: Run | None = None
        self._stop_early = False

    @property
    def worker_id(self) -> str:
        return self.config.WORKER_ID

    @property
    def worker_type(self) -> str:
        return self._profile.worker_type

    @property
    def max_concurrent_tasks(self) -> int:
        return self._profile.places

    def task(
        self,
        name: str,
        task_type: str | None = None,
        *,
        description: str | None = None,
        output_statuses: Sequence[str] | None = None,
    ) -> Callable[[_Function], _Function]:
        """Register the decorated function, `async` or plain, for tasks called `name`.

        `task_type` is a class of concurrency for `task_type_limits`; `description` and
        `output_statuses` go into the contract, where contracts are announced. Raises ValueError
        for a bad or repeated name, TypeError for a function with an argument that nobody supplies.
        """
        validate_identifier(name, "task name")
        handlers = self._profile.handlers
        if name in handlers:
            raise ValueError(f"Task '{name}' is already registered.")

        def register(function: _Function) -> _Function:
            handlers[name] = read_handler(
                name,
                task_type,
                function,
                description=description,
                output_statuses=output_statuses,
            )
            return function

        return register

    def add_middleware(self, middleware: Middleware) -> None:
        """Run each task inside `await middleware(context, next)`; the first added is outermost.

        `context` has `task_id`, `job_id`, `task_name`, `params`, and `handler_kwargs`, which may be
        changed: what is added reaches the handlers that take it.
        """
        self._profile.middlewares.append(middleware)

    def add_to_hot_cache(self, model: str) -> None:
        """Tell the orchestrators that `model` is loaded. May be called from any thread."""
        self._profile.add_to_hot_cache(model)

    def remove_from_hot_cache(self, model: str) -> None:
        self._profile.remove_from_hot_cache(model)

    def get_hot_cache(self) -> set[str]:
        return set(self._profile.hot_cache)

    async def send_progress(
        self,
        task_id: str,
        job_id: str,  # noqa: ARG002 - part of the signature that workers have always used
        progress: float,
        message: str = "",
        checkpoint: dict[str, object] | None = None,
    ) -> None:
        """Tell how far a task in hand is, from 0 to 1. May be awaited in any thread's loop.

        `checkpoint` is handed to the task's next attempt, should there be one. Never raises for
        an orchestrator that does not take it.
        """
        run = self._run
        in_hand = None if run is None else run.in_hand(task_id)
        if run is None or in_hand is None:
            log.warning("progress of a task that is not in hand", extra={"task_id": task_id})
            return
        sending = run.reports(in_hand).send_progress(progress, message, checkpoint)
        if asyncio.get_running_loop() is run.loop:
            await sending
        else:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(sending, run.loop))

    async def check_for_cancellation(self, task_id: str) -> bool:
        """Whether a task in hand should end early: nobody wants it any more, or we stop."""
        in_hand = None if self._run is None else self._run.in_hand(task_id)
        return in_hand is not None and in_hand.cancellation.requested

    def run(self) -> None:
        """Work until SIGINT or SIGTERM. Sets up logging unless somebody else has."""
        self._run_alone(health_port=None)

    def run_with_health_check(self) -> None:
        """As `run`, with GET `/health` on WORKER_PORT, which answers 200 `OK` all the while."""
        self._run_alone(health_port=self.config.WORKER_PORT)

    def stop(self) -> None:
        """Let `main` finish what is in hand and return. To be called in its event loop."""
        self._stop_early = True
        if self._run is not None:
            self._run.stop()

    async def main(self) -> None:
        """Work until `stop`, or until SIGINT or SIGTERM where nobody else handles these.

        Raises ValueError if the settings are wrong.
        """
        await self.work_for(self._clients)

    async def work_for(
        self,
        clients: Iterable[tuple[Mapping[str, object], Transport]] | None,
        *,
        line: LineHandler | None = None,
    ) -> None:
        """As `main`, for these orchestrators, or the configured ones if it is None.

        `line` shows what goes on.
        """
        if self._run is not None:
            raise RuntimeError("The worker runs already.")
        self.config.validate()
        lines = self._lines(clients)
        self._warn_of_settings(uses_token=clients is None)
        run = self._run = Run(self._profile, lines)
        if self._stop_early:
            run.stop()
        try:
            with _calling_on_signals(self.stop):
                async with showing_progress(run, line) if line else nullcontext():
                    await run.work()
        finally:
            self._run = None
            self._stop_early = False
        log.info("stopped", extra={"worker_id": self.worker_id})

    def _run_alone(self, health_port: int | None) -> None:
        if not log.hasHandlers():
            setup_logging(
                self.config.LOG_LEVEL,
                self.config.LOG_FORMAT,
                colours=False if self.config.NO_COLOR else None,
            )
        asyncio.run(self._main_alone(health_port))

    async def _main_alone(self, health_port: int | None) -> None:
        async with health_endpoint(health_port) if health_port is not None else nullcontext():
            await self.work_for(self._clients, line=line_of_logger())

    def _lines(
        self, clients: Iterable[tuple[Mapping[str, object], Transport]] | None
    ) -> list[tuple[Orchestrator, Transport]]:
        """The orchestrators, the one to be asked first in front, each with its transport."""
        if clients is not None:
            given = [(read_orchestrator(entry), transport) for entry, transport in clients]
            return sorted(given, key=lambda one: (one[0].priority, one[0].url))
        config = self.config
        ssl_context = self._ssl_context()
        return [
            (
                orchestrator,
                create_transport(
                    orchestrator.url,
                    self.worker_id,
                    orchestrator.token or config.WORKER_TOKEN,
                    ssl_context,
                    session=self._http_session,
                ),
            )
            for orchestrator in read_orchestrators(config.ORCHESTRATORS)
        ]

    def _ssl_context(self) -> ssl.SSLContext | None:
        """Raises InvalidSetting."""
        config = self.config
        if not (config.TLS_CA_PATH or config.TLS_CERT_PATH):
            return None
        try:
            return create_client_ssl_context(
                config.TLS_CA_PATH, config.TLS_CERT_PATH, config.TLS_KEY_PATH
            )
        except ssl.SSLError as error:
            raise InvalidSetting(
                "TLS_CA_PATH, TLS_CERT_PATH and TLS_KEY_PATH must be PEM files of a CA, and of a"
                f" certificate and its key: {error}."
            ) from error

    def _warn_of_settings(self, *, uses_token: bool) -> None:
        if uses_token and self.config.WORKER_TOKEN == DEFAULT_TOKEN:
            log.warning("WORKER_TOKEN is not set: it is how orchestrators know their workers")
        if self.config.MULTI_ORCHESTRATOR_MODE.upper() not in MODES:
            log.warning(
                "unknown mode counts as FAILOVER",
                extra={
                    "setting": "MULTI_ORCHESTRATOR_MODE",
                    "value": self.config.MULTI_ORCHESTRATOR_MODE,
                },
            )
        if unread := unread_keys(self.config.ORCHESTRATORS):
            log.warning(
                "keys without effect",
                extra={"setting": "ORCHESTRATORS_CONFIG", "keys": unread},
            )
        if self.config.S3_ENDPOINT_URL:
            log.warning(
                "setting has no effect in this version", extra={"setting": "S3_ENDPOINT_URL"}
            )


def _named_by(clients: Iterable[tuple[Mapping[str, object], Transport]]) -> str | None:
    """The one worker that all these transports were made for, as far as they say."""
    names = {getattr(transport, "worker_id", None) for _, transport in clients}
    name = names.pop() if len(names) == 1 else None
    return name if isinstance(name, str) else None


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
