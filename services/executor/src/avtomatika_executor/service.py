"""Advance jobs: one event in, one step committed, the next handler run, until the job waits or ends.

The entry that brought the event stays pending as the job's claim while its handlers run: it lives as
long as this instance is alive, and whoever lost it cannot write.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from avtomatika_common import codec, ids
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
from avtomatika_executor.begun import Begun
from avtomatika_executor.branches import settle_branch_event
from avtomatika_executor.hosting import Hosting
from avtomatika_executor.runs import Ended, HandlerRuns
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


def _unwritten(stored: Stored, first: Step) -> Stored:
    """The job after a step that is not committed yet, as a handler's run needs it."""
    data = first.job.data
    is_same = data is stored.job.data
    packed = stored.packed_data if is_same else codec.pack_data(data)
    return msgspec.structs.replace(stored, job=first.job, packed_data=packed)


async def _settled(committing: Awaitable[Stored | None]) -> Stored | Exception | None:
    """What became of a commit; nobody hears of an exception of it before the handler has ended."""
    try:
        return await committing
    except Exception as error:  # noqa: BLE001 - handed on to who waits for it
        return error


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
        steps = 0
        first = self._decided(stored, event, rules)
        if first.job is not stored.job and first.job.status is JobStatus.RUNNING:
            steps = 1
            running, requeue = await self._begin(
                stored, first, event, rules, delivery, blueprint, advance
            )
        else:
            running, requeue = await self._apply(stored, event, rules, delivery), False
        while running is not None and running.job.status is JobStatus.RUNNING and not requeue:
            advance.run, advance.since = running.job.run, _monotonic()
            ended = await self._runs.run(blueprint, running)
            advance.run = None
            steps += 1
            requeue = self._gives_up_claim(steps)
            running = await self._apply(
                running, ended.event, rules, delivery, ended.packed_data, requeue=requeue
            )

    def _gives_up_claim(self, steps: int) -> bool:
        """Whether a job that runs on is queued again: we stop, or others have waited long enough."""
        return self._draining or (steps >= self._settings.steps_per_claim and not self._room())

    async def _begin(
        self,
        stored: Stored,
        first: Step,
        event: Event,
        rules: Rules,
        delivery: Delivery,
        blueprint: StateMachineBlueprint,
        advance: _Advance,
    ) -> tuple[Stored | None, bool]:
        """Run the first handler after `event`, which made the job run; the job after its outcome.

        The handler begins before the store knows that it does. One that does not wait is done by
        then, and both steps are one commit. While another waits, the first step is committed. Also
        returned: whether the job was queued again.
        """
        started = _unwritten(stored, first)
        begun = Begun(self._runs.run(blueprint, started))
        if begun.result is not None:
            ended, requeue = begun.result, self._gives_up_claim(1)
            second = self._decided(started, ended.event, rules).after(first)
            # What the handler did not change is what the first step left.
            as_started = second.job.data is started.job.data
            packed = started.packed_data if as_started else ended.packed_data
            try:
                committed = await self._commit(stored, second, delivery, packed, requeue)
            except StaleJob:
                running = await self._apply_anew(event, rules, delivery)
            else:
                await self._report(committed, second)
                return committed, requeue
        else:
            ended, running = await self._run_beside_commit(
                begun, stored, started, event, rules, delivery, advance
            )
        if running is None or running.job.run != started.job.run:
            return running, False
        requeue = self._gives_up_claim(1)
        committed_later = await self._apply(
            running, ended.event, rules, delivery, ended.packed_data, requeue=requeue
        )
        return committed_later, requeue

    async def _apply_anew(self, event: Event, rules: Rules, delivery: Delivery) -> Stored | None:
        """`event` on the job as it is by now."""
        again = await self._jobs.load(delivery.job_id)
        if again is None:
            await self._inbox.drop(delivery)
            return None
        return await self._apply(again, event, rules, delivery)

    async def _run_beside_commit(
        self,
        begun: Begun[Ended],
        stored: Stored,
        started: Stored,
        event: Event,
        rules: Rules,
        delivery: Delivery,
        advance: _Advance,
    ) -> tuple[Ended, Stored | None]:
        """Let the handler go on while the step that made it run is committed.

        It is stopped where that shows that its run is not wanted.
        """
        task = advance.task
        assert task is not None, "an entry is handled in a task of its own"
        committing = self._advances.create_task(
            _settled(self._apply(stored, event, rules, delivery))
        )

        def look(_: object) -> None:
            running = committing.result() if not committing.cancelled() else None
            if isinstance(running, Stored) and running.job.run == started.job.run:
                advance.run, advance.since = running.job.run, _monotonic()
            elif not handler_is_done:
                advance.unwanted = True
                task.cancel()

        handler_is_done = False
        committing.add_done_callback(look)
        try:
            ended = await begun
        finally:
            handler_is_done = True
            running = await asyncio.shield(committing)
            advance.run = None
            if isinstance(running, Exception):
                raise running
        return ended, running

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
            result = self._decided(stored, event, rules)
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
            await self._report(committed, result)
            return committed

    @staticmethod
    def _decided(stored: Stored, event: Event, rules: Rules) -> Step:
        """What `event` makes of the job; the same job, if nothing or if it cannot be."""
        try:
            return step(stored.job, event, rules)
        except IllegalTransition as refusal:
            log.error("event refused", job_id=stored.job.id, reason=str(refusal))
            return Step(stored.job)

    async def _report(self, committed: Stored, result: Step) -> None:
        if self._on_commit is not None:
            await self._on_commit(committed, result)

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
