"""One entry of the inbox: load its job, decide, run handlers, commit, until the job waits or ends.

A handler begins before the step that starts it is written; the store's refusal of that step stops it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from avtomatika_common import codec
from avtomatika_common.backend.ports import (
    Backend,
    Delivery,
    DropAnswer,
    LostClaim,
    StaleJob,
    Stored,
    StoreUnavailable,
)
from avtomatika_common.backend.salvage import load_readable
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.logs import get_logger
from avtomatika_core.commands import Step
from avtomatika_core.errors import AvtomatikaError, IllegalTransition
from avtomatika_core.events import Event, JobSetAside
from avtomatika_core.job import Job, JobId, JobStatus, SignalWait, is_beside
from avtomatika_core.machine import step
from avtomatika_core.outcomes import Rules
from avtomatika_executor.begun import Begun
from avtomatika_executor.branches import settle_branch_event
from avtomatika_executor.hosting import Hosting
from avtomatika_executor.runs import Ended, HandlerRuns
from avtomatika_executor.settings import Settings

log = get_logger()

OnCommit = Callable[[Stored, Step], Awaitable[None]]
"""Told of each committed step, in the process that committed it."""

_BACK_OFF_SECONDS = 0.5
_DEFER_SECONDS = 2.0
_BAD_ENDS = {JobStatus.FAILED: "job failed", JobStatus.QUARANTINED: "job quarantined"}


class UnreadableEvent(AvtomatikaError):
    """An entry's event cannot be decoded: a newer version wrote it, perhaps."""

    def __init__(self) -> None:
        super().__init__("An event of the job could not be read.")


class InHand:
    """One entry in hand: its task, and the handler run it is in."""

    __slots__ = ("job_id", "run", "since", "task", "unwanted")

    def __init__(self, job_id: JobId) -> None:
        self.job_id = job_id
        self.run: int | None = None
        """Number of the run that has begun and is stored; None: no handler runs."""
        self.since = 0.0
        self.task: asyncio.Task[None] | None = None
        self.unwanted = False

    def runs(self, run: int) -> None:
        self.run, self.since = run, asyncio.get_running_loop().time()


class _Entry(NamedTuple):
    """An entry whose blueprint is hosted here."""

    delivery: Delivery
    event: Event
    blueprint: StateMachineBlueprint
    rules: Rules
    in_hand: InHand


class Advances:
    """`has_room`: whether the executor could take another entry; `tasks` is where commits run beside
    their handlers."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        hosting: Hosting,
        runs: HandlerRuns,
        tasks: asyncio.TaskGroup,
        *,
        has_room: Callable[[], bool],
        on_commit: OnCommit | None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._jobs = backend.jobs
        self._inbox = backend.inbox
        self._clock = backend.clock
        self._hosting = hosting
        self._runs = runs
        self._tasks = tasks
        self._has_room = has_room
        self._on_commit = on_commit
        self.draining = False
        """We stop: what runs on is left to others after its next step."""

    async def advance(self, delivery: Delivery, in_hand: InHand) -> None:
        """Raises LostClaim, StoreUnavailable, UnreadableEvent, UnreadableJob, and what else may break."""
        event = delivery.event
        if event is None:
            raise UnreadableEvent
        if delivery.is_branch:
            await settle_branch_event(
                self._jobs, self._inbox, self._rules_for_branch, delivery, event
            )
            return
        stored = await self._jobs.load(delivery.job_id)
        if stored is None:
            await self._inbox.drop(delivery)
            log.info("event of a job that is gone", job_id=delivery.job_id)
            return
        if stored.tries > self._settings.max_tries and not stored.job.is_terminal:
            tries = stored.tries - 1  # this one is not tried
            reason = f"An event of the job was delivered {tries} times without a commit."
            await self._quarantine(stored, delivery, reason)
            return
        blueprint = self._hosting.blueprints.get(stored.job.origin.blueprint)
        if blueprint is None:
            await self._hand_on(delivery, stored)
            return
        rules = self._hosting.rules[blueprint.name]
        await self._go_on(stored, _Entry(delivery, event, blueprint, rules, in_hand))

    async def _go_on(self, stored: Stored, entry: _Entry) -> None:
        steps, requeue = 0, False
        first = self._decided(stored, entry.event, entry.rules)
        running: Stored | None
        if _starts_run(stored, first):
            steps = 1
            running, requeue = await self._begin(stored, first, entry)
        else:
            running = await self._apply(stored, entry.event, entry.rules, entry.delivery)
        while running is not None and running.job.status is JobStatus.RUNNING and not requeue:
            entry.in_hand.runs(running.job.run)
            ended = await self._runs.run(entry.blueprint, running)
            entry.in_hand.run = None
            steps += 1
            requeue = self._gives_up_claim(steps)
            running = await self._apply_outcome(running, ended, entry, requeue=requeue)

    def _gives_up_claim(self, steps: int) -> bool:
        """Whether a job that runs on is queued again: we stop, or others have waited long enough."""
        return self.draining or (steps >= self._settings.steps_per_claim and not self._has_room())

    async def _begin(
        self, stored: Stored, first: Step, entry: _Entry
    ) -> tuple[Stored | None, bool]:
        """Run the first handler after the event, which made the job run; the job after its outcome.

        A handler that does not wait is done when it has begun, and both steps are one commit. While
        another waits, the first step is committed. Also returned: whether the job was queued again.
        """
        started = _unwritten(stored, first)
        begun = Begun(self._runs.run(entry.blueprint, started))
        requeue = self._gives_up_claim(1)
        if begun.result is not None:
            ended = begun.result
            second = self._decided(started, ended.event, entry.rules).after(first)
            # What the handler did not change is what the first step left.
            as_started = second.job.data is started.job.data
            packed = started.packed_data if as_started else ended.packed_for(second.job)
            try:
                committed = await self._commit(stored, second, entry.delivery, packed, requeue)
            except StaleJob:
                running = await self._apply_anew(entry)
            else:
                await self._report(committed, second)
                return committed, requeue
        else:
            ended, running = await self._run_beside_commit(begun, stored, started, entry)
            requeue = self._gives_up_claim(1)
        if running is None or running.job.run != started.job.run:
            return running, False
        return await self._apply_outcome(running, ended, entry, requeue=requeue), requeue

    async def _apply_anew(self, entry: _Entry) -> Stored | None:
        """The event on the job as it is by now."""
        again = await self._jobs.load(entry.delivery.job_id)
        if again is None:
            await self._inbox.drop(entry.delivery)
            return None
        return await self._apply(again, entry.event, entry.rules, entry.delivery)

    async def _apply_outcome(
        self, running: Stored, ended: Ended, entry: _Entry, *, requeue: bool
    ) -> Stored | None:
        return await self._apply(
            running, ended.event, entry.rules, entry.delivery, ended, requeue=requeue
        )

    async def _run_beside_commit(
        self, begun: Begun[Ended], stored: Stored, started: Stored, entry: _Entry
    ) -> tuple[Ended, Stored | None]:
        """Let the handler go on while the step that made it run is committed.

        It is stopped where that shows that its run is not wanted.
        """
        in_hand, task = entry.in_hand, entry.in_hand.task
        assert task is not None, "an entry is handled in a task of its own"
        applying = self._apply(stored, entry.event, entry.rules, entry.delivery)
        committing = self._tasks.create_task(_settled(applying))

        def look(_: object) -> None:
            running = committing.result() if not committing.cancelled() else None
            if isinstance(running, Stored) and running.job.run == started.job.run:
                in_hand.runs(running.job.run)
            elif not handler_is_done:
                in_hand.unwanted = True
                task.cancel()

        handler_is_done = False
        committing.add_done_callback(look)
        try:
            ended = await begun
        finally:
            handler_is_done = True
            running = await asyncio.shield(committing)
            in_hand.run = None
            if isinstance(running, Exception):
                raise running
        return ended, running

    async def _apply(
        self,
        stored: Stored,
        event: Event,
        rules: Rules,
        delivery: Delivery,
        ended: Ended | None = None,
        *,
        requeue: bool = False,
    ) -> Stored | None:
        """Commit what `event` makes of the job. None: the entry is answered, nothing is to be run.

        An event that came beside what the job does is written so, and runs nothing either.

        A stale job is loaded and decided again: a handler's outcome is applied again if its run is
        still wanted, the handler is not run again.
        """
        while True:
            result = self._decided(stored, event, rules)
            if result.job is stored.job:
                return await self._dropped(delivery)
            packed = None if ended is None else ended.packed_for(result.job)
            try:
                committed = await self._commit(stored, result, delivery, packed, requeue)
            except StaleJob:
                again = await self._jobs.load(delivery.job_id)
                if again is None:
                    await self._inbox.drop(delivery)
                    return None
                stored = again
                continue
            if is_beside(stored.job, result.job):
                return None
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
        _log_bad_end(committed.job)
        if self._on_commit is not None:
            await self._on_commit(committed, result)

    async def _commit(
        self,
        stored: Stored,
        result: Step,
        delivery: Delivery,
        packed_data: bytes | None,
        requeue: bool,
        set_aside: str | None = None,
    ) -> Stored:
        """One commit; the same one again while the store cannot say whether it happened."""
        while True:
            try:
                return await self._jobs.commit(
                    stored,
                    result,
                    delivery,
                    packed_data=packed_data,
                    requeue=requeue,
                    set_aside=set_aside,
                )
            except StoreUnavailable as error:
                if self.draining:
                    raise
                log.warning("commit repeated", job_id=delivery.job_id, error=str(error))
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _dropped(self, delivery: Delivery) -> Stored | None:
        """Answer an entry that changes nothing; the job, if the entry carries it: run its handler."""
        if await self._inbox.drop(delivery) is DropAnswer.CARRIES:
            return await self._jobs.load(delivery.job_id)
        return None

    async def _hand_on(self, delivery: Delivery, stored: Stored) -> None:
        """A blueprint that is not hosted here: to its group, or quarantine where nobody has it."""
        name = stored.job.origin.blueprint
        if not await self._was_handed_on(delivery, name):
            log.error("blueprint not found", job_id=delivery.job_id, blueprint=name)
            event = JobSetAside(at=self._clock.now(), reason=f"Blueprint '{name}' not found.")
            await self._apply(stored, event, self._hosting.default_rules, delivery)

    async def _was_handed_on(self, delivery: Delivery, blueprint: str) -> bool:
        """False: nobody hosts it."""
        _, entries = await self._backend.catalogue.entries()
        group = next((entry.group for entry in entries if entry.name == blueprint), None)
        if group is None:
            return False
        if group != self._settings.group:
            await self._inbox.forward(delivery, group)
        else:  # another executor of this group has it: a newer version of the code
            await self._inbox.defer(delivery, _DEFER_SECONDS)
        return True

    async def _rules_for_branch(self, delivery: Delivery, blueprint: str) -> Rules | None:
        rules = self._hosting.rules.get(blueprint)
        if rules is None and not await self._was_handed_on(delivery, blueprint):
            return self._hosting.default_rules  # the job is quarantined when its branches are done
        return rules

    async def put_off(self, delivery: Delivery, reason: str) -> None:
        """Let an entry that could not be handled come again, or, after too many tries, set it aside.

        Another executor may do better: one with newer code, or one that is in better health.
        """
        try:
            await self._put_off(delivery, reason)
        except LostClaim:
            pass
        except Exception:  # the audit comes back to it
            log.exception("entry not put off", job_id=delivery.job_id, entry=delivery.entry_id)

    async def _put_off(self, delivery: Delivery, reason: str) -> None:
        stored = await load_readable(self._jobs, delivery.job_id)
        if stored is None or stored.job.is_terminal:
            log.error("entry set aside", entry=delivery.entry_id, reason=reason)
            await self._inbox.set_aside(delivery, reason)
            return
        tries = 1 + (delivery.tries if delivery.is_branch else stored.tries)
        if tries < self._settings.max_tries:
            await self._inbox.defer(delivery, self._settings.again_seconds, failed=True)
        else:
            await self._quarantine(stored, delivery, reason)

    async def _quarantine(self, stored: Stored, delivery: Delivery, reason: str) -> None:
        """End the job, and keep the entry among the dead events."""
        event = JobSetAside(at=self._clock.now(), reason=reason)
        result = step(stored.job, event, self._hosting.default_rules)
        try:
            committed = await self._commit(
                stored, result, delivery, None, requeue=False, set_aside=reason
            )
        except StaleJob:  # something else was done to it meanwhile: so it is to be tried again
            await self._inbox.forward(delivery, delivery.group)
            return
        await self._report(committed, result)


def _log_bad_end(job: Job) -> None:
    """One line for a job that has just ended, and not well."""
    words = _BAD_ENDS.get(job.status)
    if words is not None:
        log.warning(
            words,
            job_id=job.id,
            blueprint=job.origin.blueprint,
            state=job.state,
            error=job.head.error_message,
        )


def _starts_run(stored: Stored, first: Step) -> bool:
    """Whether a handler may begin before this step is written.

    Of two signals at the same time only one starts the run they both would start: which one is, only
    the store can say.
    """
    return (
        first.job.run != stored.job.run
        and first.job.status is JobStatus.RUNNING
        and not isinstance(stored.job.head.wait, SignalWait)
    )


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
