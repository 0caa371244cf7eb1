"""One orchestrator as a worker sees it: registered or not, resting after an error or not."""

import asyncio
import logging
from contextlib import suppress
from http import HTTPStatus

from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.orchestrators import Orchestrator
from rxon import (
    Heartbeat,
    RxonError,
    RxonNetworkError,
    TaskPayload,
    TaskResult,
    Transport,
    WorkerRegistration,
)
from rxon.exceptions import RequestRefused

log = logging.getLogger("avtomatika_worker")


class Link:
    """Carries messages and remembers what the answers mean for the next ones.

    Never raises `RxonError`: an orchestrator that is away is everyday.
    """

    def __init__(
        self, orchestrator: Orchestrator, transport: Transport, config: WorkerConfig
    ) -> None:
        self.orchestrator = orchestrator
        self.transport = transport
        self.registered = False
        self.resting_until = 0.0
        """No poll before this time of the event loop's clock."""
        self.news = asyncio.Event()
        """There is something to tell before the next regular heartbeat."""
        self._config = config
        self._next_beat_in = config.HEARTBEAT_INTERVAL

    async def register(self, registration: WorkerRegistration) -> None:
        """Register, however long it takes."""
        while True:
            try:
                await self.transport.register(registration)
            except RxonError as error:
                log.warning("registration failed", extra=self._about(error))
                await asyncio.sleep(self._pause_after(error))
            else:
                self.registered = True
                self.news.set()  # a registration carries no load and no hot cache
                log.info("registered", extra={"orchestrator": self.orchestrator.url})
                return

    async def wait_to_beat(self) -> None:
        """Return when the next heartbeat is due: at its time, or soon after a change."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._next_beat_in):
                await self.news.wait()
                await asyncio.sleep(self._config.HEARTBEAT_DEBOUNCE_DELAY)
        self.news.clear()

    async def beat(self, heartbeat: Heartbeat) -> tuple[str, ...]:
        """Send a heartbeat; the ids of tasks nobody wants any more come back."""
        try:
            answer = await self.transport.send_heartbeat(heartbeat)
        except RxonError as error:
            self._next_beat_in = self._pause_after(error)
            self._failed("heartbeat failed", error)
            return ()
        self._next_beat_in = self._config.HEARTBEAT_INTERVAL
        return answer.cancel_task_ids

    async def poll(self) -> TaskPayload | None:
        """Wait for a task; after an error the link rests."""
        try:
            return await self.transport.poll_task(self._config.TASK_POLL_TIMEOUT)
        except RxonError as error:
            self.resting_until = asyncio.get_running_loop().time() + self._pause_after(error)
            self._failed("poll failed", error)
            return None

    async def deliver(self, result: TaskResult) -> None:
        """Send a result, again and again where another try can help."""
        about = {"task_id": result.task_id, "job_id": result.job_id, "task_status": result.status}
        retries = self._config.RESULT_MAX_RETRIES
        for attempt in range(retries + 1):
            try:
                answer = await self.transport.send_result(result)
            except RxonError as error:
                if attempt == retries or not _worth_another_try(error):
                    log.error("result lost", extra={**about, **self._about(error)})
                    return
                log.warning("result not delivered yet", extra={**about, **self._about(error)})
                delay = self._config.RESULT_RETRY_INITIAL_DELAY * 2**attempt
                await asyncio.sleep(_retry_after(error) or delay)
            else:
                log.info("result delivered", extra={**about, "answer": answer.reason or "ok"})
                return

    def _failed(self, what: str, error: RxonError) -> None:
        if isinstance(error, RequestRefused) and error.status == HTTPStatus.NOT_FOUND:
            self.registered = False
            self.resting_until = 0.0
            self.news.set()
        log.warning(what, extra=self._about(error))

    def _pause_after(self, error: RxonError) -> float:
        return _retry_after(error) or self._config.TASK_POLL_ERROR_DELAY

    def _about(self, error: RxonError) -> dict[str, str]:
        return {"orchestrator": self.orchestrator.url, "error": str(error)}


def _worth_another_try(error: RxonError) -> bool:
    if isinstance(error, RequestRefused):
        return (
            error.status == HTTPStatus.TOO_MANY_REQUESTS
            or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        )
    return isinstance(error, RxonNetworkError)


def _retry_after(error: RxonError) -> float | None:
    return error.retry_after if isinstance(error, RequestRefused) else None
