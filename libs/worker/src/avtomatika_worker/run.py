"""One run of a worker: from connecting to its orchestrators until it has left them."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from avtomatika_worker.handlers import execute
from avtomatika_worker.in_hand import InHand
from avtomatika_worker.link import Link
from avtomatika_worker.orchestrators import Orchestrator
from avtomatika_worker.outbox import Outbox
from avtomatika_worker.outcome import Outcome, failure
from avtomatika_worker.profile import Profile
from avtomatika_worker.reports import Reports
from avtomatika_worker.session import Ask, Peer, Rhythm, Session
from avtomatika_worker.spool import Spool
from avtomatika_worker.task_files import files_of_task
from avtomatika_worker.threads import from_thread
from rxon import Task, TaskResult, Transport, WorkerCommand, WorkerRegistration
from rxon.constants import (
    COMMAND_CANCEL_TASK,
    ERROR_CODE_PERMANENT,
    ERROR_CODE_TRANSIENT,
    TASK_STATUS_FAILURE,
)

FAREWELL_SECONDS: Final = 5.0
"""How long a worker that stops waits for its orchestrators to hear of it."""

log = logging.getLogger("avtomatika_worker")


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What goes on, for somebody who looks."""

    running: int
    done: int
    failed: int
    task_name: str | None
    """The task that has spoken last, if it still runs."""
    progress: float | None
    message: str


class Run:
    """Does what the session decides. `stop` ends it gently."""

    def __init__(self, profile: Profile, lines: Sequence[tuple[Orchestrator, Transport]]) -> None:
        config = profile.config
        self._profile = profile
        self._config = config
        self._session = Session(
            [orchestrator for orchestrator, _ in lines],
            places=profile.places,
            rhythm=Rhythm(
                heartbeat_seconds=config.HEARTBEAT_INTERVAL,
                pause_seconds=config.TASK_POLL_ERROR_DELAY,
                result_pause_seconds=config.RESULT_RETRY_INITIAL_DELAY,
                result_retries=config.RESULT_MAX_RETRIES,
            ),
            one_by_one=profile.takes_one_by_one,
            in_turn=config.MULTI_ORCHESTRATOR_MODE.upper() == "ROUND_ROBIN",
            draw=random.random,
        )
        self._spool = Spool(Path(config.RESULT_SPOOL_DIR), config.WORKER_ID)
        self._links = tuple(
            self._link(peer, transport)
            for peer, (_, transport) in zip(self._session.peers, lines, strict=True)
        )
        self._class_places = {
            name: asyncio.Semaphore(limit) for name, limit in profile.limits.items()
        }
        self._in_hand: dict[str, InHand] = {}
        self._for_others: list[InHand] = []
        self._spoke_last: InHand | None = None
        self._done = 0
        self._failed = 0
        self._work: asyncio.TaskGroup
        self._stopping = asyncio.Event()
        self._polling_may_go_on = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.changed = asyncio.Event()
        """The status is another one."""

    def stop(self) -> None:
        """Finish what is in hand and end."""
        self._stopping.set()

    async def work(self) -> None:
        """Work until `stop`."""
        self._introduce()
        await self._load_spool()
        self._profile.on_change = self._tell_from_any_thread
        try:
            async with AsyncExitStack() as closing:
                for link in self._links:
                    closing.push_async_callback(link.transport.close)
                    await link.transport.connect()
                await self._serve()
                await self._at_each(self._leave(link) for link in self._links)
        finally:
            self._profile.on_change = None

    def in_hand(self, task_id: str) -> InHand | None:
        return self._in_hand.get(task_id)

    def reports(self, one: InHand) -> Reports:
        return Reports(one, self._config.WORKER_ID, self._heard_of)

    def status(self) -> Status:
        speaker = self._spoke_last
        return Status(
            running=len(self._in_hand),
            done=self._done,
            failed=self._failed,
            task_name=speaker.task.type if speaker else None,
            progress=speaker.progress if speaker else None,
            message=speaker.message if speaker else "",
        )

    # -- the session with the orchestrators

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            services = [
                tasks.create_task(service, name=f"serve {link.peer.orchestrator.url}")
                for link in self._links
                for service in self._services(link)
            ]
            async with asyncio.TaskGroup() as self._work:
                polling = tasks.create_task(self._take_tasks(), name="take tasks")
                await self._stopping.wait()
                deadline = self.loop.time() + self._config.SHUTDOWN_TIMEOUT
                self._session.draining = True
                log.info("draining", extra={"running": len(self._in_hand)})
                polling.cancel()  # what is on its way is refused, and goes back to the board
                await self._at_each(self._beat(link) for link in self._links)
                await self._finish(deadline)
            for service in services:
                service.cancel()

    def _services(self, link: Link) -> Iterable[Coroutine[Any, Any, None]]:
        yield self._keep_in_touch(link)
        yield from link.outbox.senders()
        yield link.resend()
        if self._config.ENABLE_WEBSOCKETS:
            yield link.listen(lambda command: self._obey(link, command))
        if self._config.TLS_CERT_PATH:
            yield link.renew_token()

    async def _keep_in_touch(self, link: Link) -> None:
        while True:
            if not link.peer.registered:
                await link.register(self._registration)
                self._polling_may_go_on.set()
            await link.wait_to_beat()
            await self._beat(link)

    async def _beat(self, link: Link) -> None:
        if not link.peer.registered:
            return
        # All of them, whoever gave them: two addresses may be doors of one orchestrator, which takes
        # back what it gave and is not told of.
        parked = [task_id for one in self._links for task_id in sorted(one.outbox.parked)]
        heartbeat = self._profile.heartbeat(
            self._running_classes(),
            current_tasks=dict.fromkeys((*self._in_hand, *parked)),
            draining=self._session.draining,
        )
        self._withdraw(link, await link.beat(heartbeat))

    async def _take_tasks(self) -> None:
        """Polls are open only while there is a place for each task they may bring."""
        async with asyncio.TaskGroup() as polls:
            while True:
                ask = self._session.next_poll(self.loop.time(), len(self._in_hand))
                if ask is None:
                    await self._wait_to_poll()
                else:
                    self._session.poll_began(ask)
                    polls.create_task(self._poll(ask), name="poll")

    async def _poll(self, ask: Ask) -> None:
        link = next(one for one in self._links if one.peer is ask.peer)
        tasks: Sequence[Task] | None = None
        try:
            tasks = await link.poll(self._config.TASK_POLL_TIMEOUT, ask.most)
            if tasks:
                self._take(link, tasks)
                if self._profile.takes_one_by_one:
                    await self._beat(link)  # what it may still take is known before the next poll
            elif tasks is not None:  # after an error another orchestrator may be asked at once
                await asyncio.sleep(self._config.IDLE_POLL_DELAY)
        finally:
            self._session.poll_ended(ask, None if tasks is None else len(tasks))
            self._polling_may_go_on.set()

    async def _wait_to_poll(self) -> None:
        """Until a place is free, an orchestrator is back, or the first rest is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._session.first_rest_ends_at(self.loop.time())):
                await self._polling_may_go_on.wait()
        self._polling_may_go_on.clear()

    def _obey(self, link: Link, command: WorkerCommand) -> None:
        if command.command == COMMAND_CANCEL_TASK and command.task_id is not None:
            self._withdraw(link, (command.task_id,))
        else:
            log.debug("unknown command", extra={"command": command.command})

    def _withdraw(self, link: Link, task_ids: Iterable[str]) -> None:
        for task_id in task_ids:
            in_hand = self._in_hand.get(task_id)
            if in_hand is not None and in_hand.link is link and not in_hand.unwanted:
                log.info("task no longer wanted", extra={"task_id": task_id})
                in_hand.withdraw()

    async def _finish(self, deadline: float) -> None:
        """Give what is in hand its time; then let go of it, and write down what is undelivered."""
        executions = [one.execution for one in self._in_hand.values()]
        await _wait_for(executions, deadline - self.loop.time())
        for task_id, one in self._in_hand.items():
            if not one.execution.done():
                log.warning("task did not end in time", extra={"task_id": task_id})
                one.abandon()
        reports = [one.report for one in self._in_hand.values()]
        time_left = max(0.0, deadline - self.loop.time()) + FAREWELL_SECONDS
        for report in await _wait_for(reports, time_left):
            report.cancel()
        for link in self._links:
            await link.outbox.write_undelivered()

    async def _leave(self, link: Link) -> None:
        """Sign off, which gives the tasks that did not end to others; else say that they failed."""
        if _may_leave(link) and await link.leave():
            return
        stopped = failure(ERROR_CODE_TRANSIENT, "The worker stopped before the task ended.")
        for one in self._for_others:
            if one.link is link:
                await link.send_once(self._result(one, stopped))

    async def _at_each(self, calls: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Make the calls at the same time; none holds the end up for long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS), asyncio.TaskGroup() as farewells:
                for call in calls:
                    farewells.create_task(call, name="farewell")

    # -- a task in hand

    def _take(self, link: Link, tasks: Sequence[Task]) -> None:
        for task in tasks:
            if task.task_id in self._in_hand or task.task_id in link.outbox.parked:
                log.warning("task came twice", extra={"task_id": task.task_id})
                link.heard.set()  # if its result is parked, somebody wants it now
            elif self._session.draining:
                log.info("task came too late", extra={"task_id": task.task_id})
            else:
                self._start(task, link)

    def _start(self, task: Task, link: Link) -> None:
        one = InHand(
            task=task,
            link=link,
            handler=self._profile.handlers.get(task.type),
            files=files_of_task(Path(self._config.TASK_FILES_DIR), task.task_id),
        )
        one.execution = self._work.create_task(self._execute(one), name="execute")
        self._in_hand[task.task_id] = one
        self._tell()
        one.report = self._work.create_task(self._report(one), name="report")

    async def _execute(self, one: InHand) -> Outcome:
        task, handler = one.task, one.handler
        if handler is None:
            return failure(ERROR_CODE_PERMANENT, f"Unsupported task: {task.type}")
        reports = self.reports(one)
        send_progress: object = reports.send_progress
        send_event: object = reports.send_event
        if handler.in_thread:
            send_progress = from_thread(reports.send_progress, self.loop)
            send_event = from_thread(reports.send_event, self.loop)
        async with self._class_places.get(handler.task_type or "") or nullcontext():
            one.started = True
            return await execute(
                handler,
                {
                    "params": task.params,
                    "task_id": task.task_id,
                    "job_id": task.job_id,
                    "tracing_context": task.tracing_context,
                    "priority": 0,
                    "checkpoint": task.checkpoint,
                    "cancellation": one.cancellation,
                    "send_progress": send_progress,
                    "send_event": send_event,
                    "add_to_hot_cache": self._profile.add_to_hot_cache,
                    "remove_from_hot_cache": self._profile.remove_from_hot_cache,
                },
                one.files,
                self._profile.middlewares,
            )

    async def _report(self, one: InHand) -> None:
        try:
            await asyncio.wait({one.execution})
            if one.is_for_another():
                self._for_others.append(one)
            else:
                await self._deliver(one, one.outcome())
            if one.handler is not None and one.handler.takes_files:
                await asyncio.to_thread(one.files.remove_sync)
        finally:
            del self._in_hand[one.task.task_id]
            if self._spoke_last is one:
                self._spoke_last = None
            self._tell()
            self._polling_may_go_on.set()

    async def _deliver(self, one: InHand, outcome: Outcome) -> None:
        if outcome.status == TASK_STATUS_FAILURE:
            self._failed += 1
        else:
            self._done += 1
        await one.link.outbox.deliver(self._result(one, outcome))

    def _result(self, one: InHand, outcome: Outcome) -> TaskResult:
        return TaskResult(
            job_id=one.task.job_id,
            task_id=one.task.task_id,
            worker_id=self._config.WORKER_ID,
            status=outcome.status,
            data=outcome.data,
            error=outcome.error,
        )

    def _heard_of(self, one: InHand, unwanted: Iterable[str]) -> None:
        self._spoke_last = one
        self.changed.set()
        self._withdraw(one.link, unwanted)

    # -- results and the tasks that come back with them

    def _reserve(self, peer: Peer, results: Sequence[TaskResult]) -> int:
        ending = sum(result.task_id in self._in_hand for result in results)
        taken = len(self._in_hand) - ending
        most = self._session.most_with_results(peer, self.loop.time(), taken)
        self._session.asked += most
        return most

    def _arrived(self, peer: Peer, most: int, tasks: Sequence[Task]) -> None:
        self._session.asked -= most
        self._take(next(link for link in self._links if link.peer is peer), tasks)
        self._polling_may_go_on.set()

    async def _load_spool(self) -> None:
        await asyncio.to_thread(self._spool.sweep)
        left = await asyncio.to_thread(self._spool.load)
        for link in self._links:
            url = link.peer.orchestrator.url
            link.outbox.load([one.result for one in left if one.orchestrator == url])
        if left:
            log.info("results left from an earlier run", extra={"results": len(left)})

    # -- what we say of ourselves

    def _introduce(self) -> None:
        if not self._profile.handlers:
            log.warning("no tasks are registered: nothing will come")
        log.info(
            "started",
            extra={
                "worker_id": self._config.WORKER_ID,
                "tasks": ",".join(self._profile.handlers),
                "places": self._profile.places,
                "orchestrators": ",".join(link.peer.orchestrator.url for link in self._links),
            },
        )

    def _registration(self) -> WorkerRegistration:
        return self._profile.registration(self._running_classes())

    def _running_classes(self) -> list[str | None]:
        return [one.task_class for one in self._in_hand.values()]

    def _tell(self) -> None:
        self.changed.set()
        for link in self._links:
            link.news.set()

    def _tell_from_any_thread(self) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is left to tell
            self.loop.call_soon_threadsafe(self._tell)

    def _link(self, peer: Peer, transport: Transport) -> Link:
        outbox = Outbox(
            peer,
            transport,
            self._session,
            self._spool,
            reserve=self._reserve,
            arrived=self._arrived,
        )
        return Link(peer, transport, self._session, outbox, self._config.HEARTBEAT_DEBOUNCE_DELAY)


def _may_leave(link: Link) -> bool:
    """Not where results are still to come: leaving gives their tasks to others."""
    return link.peer.registered and not link.outbox.has_undelivered


async def _wait_for(
    tasks: Sequence[asyncio.Task[Any]], seconds: float
) -> Sequence[asyncio.Task[Any]]:
    """Wait, but no longer than so many seconds; those that have not ended come back."""
    if not tasks:
        return ()
    _, pending = await asyncio.wait(tasks, timeout=max(0.0, seconds))
    return tuple(pending)
