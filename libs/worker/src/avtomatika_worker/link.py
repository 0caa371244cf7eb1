"""The line to one orchestrator: carries the messages, and tells the session what came of them."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from avtomatika_worker.outbox import Outbox
from avtomatika_worker.session import Peer, Repeat, Session, hint_for, is_not_there
from rxon import (
    Heartbeat,
    ProgressAnswer,
    ProgressUpdatePayload,
    RxonError,
    Task,
    TaskResult,
    Transport,
    WorkerCommand,
    WorkerEvent,
    WorkerRegistration,
)

SOCKET_PAUSE_SECONDS: Final = 5.0
FIRST_TOKEN_SECONDS: Final = 5.0
TOKEN_PAUSE_SECONDS: Final = 60.0
"""At least so long between two access tokens."""
TOKEN_PART: Final = 0.8
"""The part of its life after which a token is renewed."""

log = logging.getLogger("avtomatika_worker")


class Link:
    """Never raises `RxonError` unless it says so: an orchestrator that is away is everyday."""

    def __init__(
        self,
        peer: Peer,
        transport: Transport,
        session: Session,
        outbox: Outbox,
        debounce_seconds: float,
    ) -> None:
        self.peer = peer
        self.transport = transport
        self.outbox = outbox
        self.news = asyncio.Event()
        """There is something to tell before the next regular heartbeat."""
        self.heard = asyncio.Event()
        """It has just answered: what waited for that may be tried again."""
        self.registered = asyncio.Event()
        self._session = session
        self._debounce_seconds = debounce_seconds
        self._next_beat_in = session.seconds_to_next_beat()
        self._poll: asyncio.Timeout | None = None

    async def register(self, registration: Callable[[], WorkerRegistration]) -> None:
        """Register with the registration of that moment, however long it takes."""
        while True:
            # Results of tasks from before count only until we come as a new worker.
            await self.outbox.resend()
            try:
                await self.transport.register(registration())
            except RxonError as error:
                pause = self._session.failed(self.peer, error)
                about = {**self._about(error), "next_try_seconds": round(pause, 1)}
                if (hint := hint_for(error)) is not None:
                    about["hint"] = hint
                log.warning("registration failed", extra=about)
                await asyncio.sleep(pause)
            else:
                self._session.registered(self.peer)
                self.registered.set()
                if self._poll is not None:
                    # Of a poll from before nobody knows any more: it would bring nothing.
                    self._poll.reschedule(asyncio.get_running_loop().time())
                self.news.set()  # a registration carries no load and no hot cache
                log.info("registered", extra=self._about())
                return

    async def wait_to_beat(self) -> None:
        """Return when the next heartbeat is due: at its time, or soon after a change."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._next_beat_in):
                await self.news.wait()
                await asyncio.sleep(self._debounce_seconds)
        self.news.clear()

    async def beat(self, heartbeat: Heartbeat) -> tuple[str, ...]:
        """Send a heartbeat; the ids of tasks nobody wants any more come back."""
        try:
            answer = await self.transport.send_heartbeat(heartbeat)
        except RxonError as error:
            self._next_beat_in = self._session.failed(self.peer, error)
            self._failed("heartbeat failed", error)
            return ()
        self._next_beat_in = self._session.seconds_to_next_beat()
        self._session.heard(self.peer)
        self.heard.set()
        return answer.cancel_task_ids

    async def poll(self, timeout_seconds: float, most: int) -> Sequence[Task] | None:
        """Wait for tasks, until we register anew. None: an error, and the link rests."""
        try:
            async with asyncio.timeout(None) as self._poll:
                tasks = await self._asked_for(timeout_seconds, most)
        except TimeoutError:
            return ()
        except RxonError as error:
            now = asyncio.get_running_loop().time()
            self._session.poll_failed(self.peer, error, now)
            self._failed("poll failed", error)
            return None
        finally:
            self._poll = None
        self._session.heard(self.peer)
        return tasks

    async def _asked_for(self, timeout_seconds: float, most: int) -> Sequence[Task]:
        if self.peer.knows_batches:
            return await self.transport.poll_tasks(timeout_seconds, most)
        task = await self.transport.poll_task(timeout_seconds)
        return () if task is None else (msgspec.convert(task, Task, from_attributes=True),)

    async def send_progress(self, progress: ProgressUpdatePayload) -> ProgressAnswer:
        """Raises `RxonError`."""
        return await self.transport.send_progress(progress)

    async def send_event(self, event: WorkerEvent) -> None:
        """Send an event until it is taken. Raises the last `RxonError` when tries are used up."""
        attempt = 0
        while True:
            attempt += 1
            try:
                await self.transport.send_event(event)
            except RxonError as error:
                what_now = self._session.result_failed(error, attempt)
                if not isinstance(what_now, Repeat):
                    raise
                log.warning("event not delivered yet", extra=self._about(error))
                await asyncio.sleep(what_now.after_seconds)
            else:
                return

    async def listen(self, obey: Callable[[WorkerCommand], None]) -> None:
        """Obey commands, for ever; a connection that ends is made again."""
        failed_before = False
        while True:
            await self.registered.wait()
            try:
                async for command in self.transport.listen_for_commands():
                    failed_before = False
                    obey(command)
                log.info("socket closed", extra=self._about())
            except RxonError as error:
                level = logging.DEBUG if failed_before else logging.WARNING
                log.log(level, "no socket", extra=self._about(error))
                failed_before = True
            await asyncio.sleep(self._session.seconds_to_reconnect(SOCKET_PAUSE_SECONDS))

    async def renew_token(self) -> None:
        """Keep the access token that a certificate is worth fresh, for ever."""
        await asyncio.sleep(FIRST_TOKEN_SECONDS)
        while True:
            try:
                token = await self.transport.refresh_token()
            except RxonError as error:
                log.warning("access token not renewed", extra=self._about(error))
                await asyncio.sleep(TOKEN_PAUSE_SECONDS)
            else:
                await asyncio.sleep(max(TOKEN_PAUSE_SECONDS, TOKEN_PART * token.expires_in))

    async def resend(self) -> None:
        """Send parked results whenever the orchestrator has been heard, for ever."""
        while True:
            await self.heard.wait()
            self.heard.clear()
            await self.outbox.resend()

    async def leave(self) -> bool:
        """Sign off; whether that was heard."""
        try:
            await self.transport.leave()
        except RxonError as error:
            level = logging.DEBUG if is_not_there(error) else logging.WARNING
            log.log(level, "not signed off", extra=self._about(error))
            return False
        log.info("signed off", extra=self._about())
        return True

    async def send_once(self, result: TaskResult) -> None:
        """Bring a result that does not matter much later."""
        try:
            await self.transport.send_result(result)
        except RxonError as error:
            about = {"task_id": result.task_id, "job_id": result.job_id}
            log.warning("result not delivered", extra={**about, **self._about(error)})

    def _failed(self, what: str, error: RxonError) -> None:
        if not self.peer.registered:
            self.registered.clear()
            self.news.set()  # wakes whoever registers
        log.warning(what, extra=self._about(error))

    def _about(self, error: RxonError | None = None) -> dict[str, object]:
        about: dict[str, object] = {"orchestrator": self.peer.orchestrator.url}
        return about if error is None else {**about, "error": str(error)}
