"""Advance jobs: one event in, one step committed, the next handler run, until the job waits or ends.

The entry that brought the event stays pending as the job's claim while its handlers run: it lives as
long as this instance is alive, and whoever lost it cannot write.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    Backend,
    Delivery,
    DropAnswer,
    LostClaim,
    StaleJob,
    Stored,
    StoreUnavailable,
)
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.logs import get_logger
from avtomatika_core.commands import Step
from avtomatika_core.errors import IllegalTransition
from avtomatika_core.events import Event, JobSetAside
from avtomatika_core.job import JobId, JobStatus
from avtomatika_core.machine import step
from avtomatika_core.outcomes import Rules
from avtomatika_executor.branches import settle_branch_event
from avtomatika_executor.hosting import Hosting
from avtomatika_executor.runs import HandlerRuns
from avtomatika_executor.settings import Settings
from avtomatika_executor.takeover import TakeOver
from avtomatika_executor.threads import HandlerThreads

log = get_logger()

OnCommit = Callable[[Stored, Step], Awaitable[None]]
"""Told of each committed step, in the process that committed it."""

_AUDIT_SECONDS = 5.0
_WANTED_SECONDS = 1.0
_BACK_OFF_SECONDS = 0.5
_DEFER_SECONDS = 2.0
_UNREADABLE_SECONDS = 10.0


def _monotonic() -> float:
    return asyncio.get_running_loop().time()


_Place = tuple[int, str, str]


def _place_of(delivery: Delivery) -> _Place:
    """Entry ids are those of one stream: each lane of a partition counts its own."""
    return delivery.partition, delivery.lane, delivery.entry_id


class _Advance:
    """One entry in hand: its task, and the handler run it is in."""

    __slots__ = ("job_id", "run", "since", "task", "unwanted")

    def __init__(self, job_id: JobId) -> None:
        self.job_id = job_id
        self.run: int | None = None
        self.since = 0.0
        self.task: asyncio.Task[None] | None = None
        self.unwanted = False


class ExecutorService:
    name = "executor"

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        blueprints: Iterable[StateMachineBlueprint],
        *,
        on_commit: OnCommit | None = None,
        instance: str | None = None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._jobs = backend.jobs
        self._inbox = backend.inbox
        self._clock = backend.clock
        self._blueprints = list(blueprints)
        self._on_commit = on_commit
        self.instance = f"{instance or socket.gethostname()}-{ids.new_id()[:8]}"
        """Name of this consumer: new at each start, so that no claim is ever shared."""
        self._in_hand: dict[_Place, _Advance] = {}
        self._slot_free = asyncio.Event()
        self._audit_due = asyncio.Event()
        self._draining = False

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        self._hosting = Hosting(self._settings, self._backend, self._blueprints)
        for blueprint in self._blueprints:
            blueprint.bind_data_stores(self._backend.key_values)
        await self._hosting.publish()
        self._draining = False
        self._runs = HandlerRuns(self._backend, self._hosting, HandlerThreads())
        take_over = TakeOver(
            self._inbox, self._clock, self._settings.group, self.instance, self._room, self._start
        )
        async with (
            self._backend.liveness.keep(self.instance),
            asyncio.TaskGroup() as self._advances,
            asyncio.TaskGroup() as background,
        ):
            loops = [
                background.create_task(self._read(), name="executor reads"),
                background.create_task(self._audit(), name="executor audits its claims"),
                background.create_task(self._watch_wanted(), name="executor watches cancels"),
                background.create_task(take_over.run(), name="executor takes over"),
            ]
            log.info(
                "executor serves",
                group=self._settings.group,
                blueprints=sorted(self._hosting.blueprints),
                instance=self.instance,
            )
            ready.set()
            await stop.wait()
            self._draining = True
            for task in loops:
                task.cancel()
            await self._drain()

    async def _drain(self) -> None:
        """Let handlers in hand finish; what does not is taken up by others after our liveness ends."""
        tasks = [advance.task for advance in self._in_hand.values() if advance.task is not None]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_timeout_seconds)
        for task in late:
            task.cancel()
        if late:
            log.warning("handlers cut off by shutdown", count=len(late))

    # -- which entries are in hand

    def _room(self) -> int:
        return max(0, self._settings.max_concurrent_jobs - len(self._in_hand))

    def _start(self, delivery: Delivery) -> None:
        """Advance the entry's job, unless it is in hand already.

        Now and then a read brings an entry more than there is room for: that is for others.
        """
        place = _place_of(delivery)
        if place in self._in_hand or self._draining:
            return
        if not (self._room() or delivery.is_branch):
            self._advances.create_task(self._give_back(delivery))
            return
        advance = self._in_hand[place] = _Advance(delivery.job_id)
        advance.task = self._advances.create_task(self._handle(delivery, advance))

    async def _give_back(self, delivery: Delivery) -> None:
        try:
            await self._inbox.forward(delivery, delivery.group)
        except LostClaim:
            pass
        except StoreUnavailable:
            self._audit_due.set()

    async def _read(self) -> None:
        failing = False
        while True:
            room = self._room()
            if not room:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                for delivery in await self._inbox.read(self._settings.group, self.instance, room):
                    self._start(delivery)
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    log.warning("inbox cannot be read", error=str(error))
                failing = True
                self._audit_due.set()  # what the cut read had taken is pending
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _audit(self) -> None:
        """Find entries that are pending for us and not in hand: their read was lost on the way."""
        while True:
            try:
                async with asyncio.timeout(_AUDIT_SECONDS):
                    await self._audit_due.wait()
            except TimeoutError:
                pass
            self._audit_due.clear()
            try:
                for delivery in await self._inbox.pending(self._settings.group, self.instance):
                    self._start(delivery)
            except StoreUnavailable:
                await asyncio.sleep(_BACK_OFF_SECONDS)
                self._audit_due.set()

    async def _watch_wanted(self) -> None:
        """Stop handlers whose job was cancelled meanwhile; their outcome would be refused anyway."""
        while True:
            await asyncio.sleep(_WANTED_SECONDS)
            now = _monotonic()
            for advance in list(self._in_hand.values()):
                run, task = advance.run, advance.task
                if run is None or task is None or now - advance.since < _WANTED_SECONDS:
                    continue
                try:
                    wanted = await self._jobs.is_wanted(advance.job_id, run)
                except StoreUnavailable:
                    break
                if not wanted and advance.run == run:
                    advance.unwanted = True
                    task.cancel()

    # -- one entry

    async def _handle(self, delivery: Delivery, advance: _Advance) -> None:
        try:
            await self._advance(delivery, advance)
        except LostClaim:
            log.info("claim lost", job_id=delivery.job_id, entry=delivery.entry_id)
        except StoreUnavailable as error:
            log.warning("store unavailable", job_id=delivery.job_id, error=str(error))
            self._audit_due.set()
        except asyncio.CancelledError:
            if not advance.unwanted or self._draining:
                raise
            log.info("handler stopped: no longer wanted", job_id=delivery.job_id)
            self._audit_due.set()  # which drops the entry
        except Exception:
            log.exception(
                "entry cannot be handled", job_id=delivery.job_id, entry=delivery.entry_id
            )
            await self._set_aside(delivery, "The executor could not handle it; see its log.")
        finally:
            del self._in_hand[_place_of(delivery)]
            self._slot_free.set()

    async def _advance(self, delivery: Delivery, advance: _Advance) -> None:
        if delivery.is_branch and delivery.event is not None:
            await settle_branch_event(
                self._jobs, self._inbox, self._hosting, delivery, delivery.event
            )
            return
        stored = await self._jobs.load(delivery.job_id)
        if stored is None:
            await self._inbox.drop(delivery)
            log.info("event of a job that is gone", job_id=delivery.job_id)
            return
        event = delivery.event or self._unreadable()
        if stored.tries > self._settings.max_tries:
            event = self._too_often(stored.tries)
        blueprint = self._hosting.blueprints.get(stored.job.origin.blueprint)
        if blueprint is None:
            await self._hand_on(delivery, stored, event)
            return
        rules = self._hosting.rules[blueprint.name]
        running = await self._apply(stored, event, rules, delivery)
        steps = 0
        while running is not None and running.job.status is JobStatus.RUNNING:
            advance.run, advance.since = running.job.run, _monotonic()
            ended = await self._runs.run(blueprint, running)
            advance.run = None
            steps += 1
            requeue = self._draining or (
                steps >= self._settings.steps_per_claim and not self._room()
            )
            running = await self._apply(
                running, ended.event, rules, delivery, ended.packed_data, requeue=requeue
            )
            if requeue:
                return

    def _unreadable(self) -> Event:
        return JobSetAside(at=self._clock.now(), reason="An event of the job could not be read.")

    def _too_often(self, tries: int) -> Event:
        reason = f"An event of the job was delivered {tries} times without a commit."
        return JobSetAside(at=self._clock.now(), reason=reason)

    async def _apply(
        self,
        stored: Stored,
        event: Event,
        rules: Rules,
        delivery: Delivery,
        packed_data: bytes | None = None,
        *,
        requeue: bool = False,
    ) -> Stored | None:
        """Commit what `event` makes of the job. None: the entry is answered, nothing is to be run.

        A stale job is loaded and decided again: a handler's outcome is applied again if its run is
        still wanted, the handler is not run again.
        """
        while True:
            try:
                result = step(stored.job, event, rules)
            except IllegalTransition as refusal:
                log.error("event refused", job_id=delivery.job_id, reason=str(refusal))
                result = Step(stored.job)
            if result.job is stored.job:
                return await self._dropped(delivery)
            try:
                committed = await self._commit(stored, result, delivery, packed_data, requeue)
            except StaleJob:
                again = await self._jobs.load(delivery.job_id)
                if again is None:
                    await self._inbox.drop(delivery)
                    return None
                stored = again
                continue
            if self._on_commit is not None:
                await self._on_commit(committed, result)
            return committed

    async def _commit(
        self,
        stored: Stored,
        result: Step,
        delivery: Delivery,
        packed_data: bytes | None,
        requeue: bool,
    ) -> Stored:
        """One commit; the same one again while the store cannot say whether it happened."""
        while True:
            try:
                return await self._jobs.commit(
                    stored, result, delivery, packed_data=packed_data, requeue=requeue
                )
            except StoreUnavailable as error:
                if self._draining:
                    raise
                log.warning("commit repeated", job_id=delivery.job_id, error=str(error))
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _dropped(self, delivery: Delivery) -> Stored | None:
        """Answer an entry that changes nothing; the job, if the entry carries it: run its handler."""
        if await self._inbox.drop(delivery) is DropAnswer.CARRIES:
            return await self._jobs.load(delivery.job_id)
        return None

    async def _hand_on(self, delivery: Delivery, stored: Stored, event: Event) -> None:
        """A blueprint that is not hosted here: to its group, or quarantine where nobody has it."""
        name = stored.job.origin.blueprint
        _, entries = await self._backend.catalogue.entries()
        group = next((entry.group for entry in entries if entry.name == name), None)
        if isinstance(event, JobSetAside) or group is None:
            if group is None:
                log.error("blueprint not found", job_id=delivery.job_id, blueprint=name)
                event = JobSetAside(at=self._clock.now(), reason=f"Blueprint '{name}' not found.")
            await self._apply(stored, event, self._hosting.default_rules, delivery)
        elif group != self._settings.group:
            await self._inbox.forward(delivery, group)
        else:  # another executor of this group has it: a newer version of the code
            await self._inbox.defer(delivery, _DEFER_SECONDS)

    async def _set_aside(self, delivery: Delivery, reason: str) -> None:
        """Answer an entry that raises, as well as that can be done."""
        try:
            await self._put_away(delivery, reason)
        except LostClaim:
            pass
        except Exception:  # the audit comes back to it
            log.exception("entry not set aside", job_id=delivery.job_id, entry=delivery.entry_id)

    async def _put_away(self, delivery: Delivery, reason: str) -> None:
        """Quarantine the entry's job; set the entry itself aside where there is no such job."""
        try:
            stored = await self._jobs.load(delivery.job_id)
        except msgspec.MsgspecError:  # perhaps written by a newer version: for an executor that is
            log.error("job cannot be read", job_id=delivery.job_id, entry=delivery.entry_id)
            await self._inbox.defer(delivery, _UNREADABLE_SECONDS)
            return
        if stored is None or stored.job.is_terminal:
            await self._inbox.set_aside(delivery, reason)
            return
        event = JobSetAside(at=self._clock.now(), reason=reason)
        result = step(stored.job, event, self._hosting.default_rules)
        await self._jobs.commit(stored, result, delivery)
