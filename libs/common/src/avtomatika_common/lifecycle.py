"""How a service starts, says it is ready, and stops: the same in one process or in seven."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Protocol, cast, runtime_checkable


class StartupError(Exception):
    """This process cannot start; the text is one line that tells its operator what to do."""


class ServiceEnded(Exception):
    """A service returned although nobody had stopped it."""


class Service(Protocol):
    """A long-lived part of the orchestrator."""

    @property
    def name(self) -> str: ...

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Set `ready` once work can arrive; when `stop` is set, finish what is in hand and return.

        What it raises stops every service that runs with it. StartupError, before `ready`, is for
        what an operator can mend.
        """


@runtime_checkable
class Listening(Protocol):
    """A service that others connect to."""

    @property
    def address(self) -> str:
        """A URL, once it is ready."""
        ...


@asynccontextmanager
async def running(*services: Service) -> AsyncGenerator[None, None]:
    """Run `services` for as long as the block lasts.

    They start in order, each when the one before is ready, and are drained in reverse order, one
    after the other, also when the block raises or is cancelled; another cancellation cuts the
    drain short. If one fails, the block and the others are cancelled and its error is raised as
    itself (as a group only when several failed).
    """
    try:
        async with asyncio.TaskGroup() as group:
            started: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
            try:
                for service in services:
                    ready, stop = asyncio.Event(), asyncio.Event()
                    run = _run(service, ready, stop)
                    started.append((stop, group.create_task(run, name=service.name)))
                    await ready.wait()
                yield
            finally:
                for stop, task in reversed(started):
                    stop.set()
                    await asyncio.wait([task])
    except BaseExceptionGroup as errors:
        failure = _only_error(errors)
    else:
        return
    raise failure


async def _run(service: Service, ready: asyncio.Event, stop: asyncio.Event) -> None:
    await service.run(ready, stop)
    if not stop.is_set():
        raise ServiceEnded(f"The service {service.name} ended although nobody had stopped it.")


def _only_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error inside groups of one, else the innermost group of several."""
    first, *others = errors.exceptions
    if others or not isinstance(first, BaseExceptionGroup):
        return errors if others else first
    return _only_error(cast("BaseExceptionGroup[BaseException]", first))


class Suite:
    """`running(...)` for a caller whose start and stop are separate calls, perhaps of two tasks."""

    def __init__(self, *services: Service) -> None:
        self._services = services
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when all are ready; raises what one of them raised before that."""
        started = asyncio.Event()
        # The one task outside a group: it owns the group of the services, and stop() awaits it.
        self._task = asyncio.create_task(self._hold(started), name="suite")  # noqa: TID251
        self._task.add_done_callback(lambda _: started.set())
        try:
            await started.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise
        if self._task.done():
            await self.stop()

    async def _hold(self, started: asyncio.Event) -> None:
        async with running(*self._services):
            started.set()
            await self._stop.wait()

    async def stop(self) -> None:
        """Drain all; raises the error of the one that failed meanwhile. May be repeated."""
        self._stop.set()
        if self._task is not None:
            task, self._task = self._task, None
            await task
