"""Jobs in memory: created, loaded, committed."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from avtomatika_common import codec
from avtomatika_common.backend.memory.tables import (
    CLOSED,
    JobRecord,
    Quarantined,
    Tables,
    Task,
)
from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    Created,
    Delivery,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobIsTerminal,
    JobNotFound,
    JobStore,
    JobView,
    LostClaim,
    OpenTask,
    Progress,
    StaleJob,
    Stored,
    StoreFull,
    TooManySignals,
    UnreadableJob,
    too_many_new_jobs,
)
from avtomatika_common.backend.salvage import salvaged_job
from avtomatika_common.records import pack_fact, pack_notification
from avtomatika_core.commands import (
    CancelChild,
    ClearDeadline,
    ClearTimer,
    CloseBranches,
    CloseTask,
    Command,
    CreateChild,
    NextAttempt,
    Notify,
    OfferTask,
    RecordFact,
    ResumeParent,
    SetTimer,
    StartBranches,
    Step,
)
from avtomatika_core.events import (
    ApprovalDecided,
    BranchesDone,
    CancelRequested,
    Continue,
    SignalReceived,
)
from avtomatika_core.job import (
    TERMINAL,
    ApprovalWait,
    Branch,
    BranchResult,
    Job,
    JobId,
    JobStatus,
    Origin,
    TaskId,
    TaskWait,
    WorkerId,
    is_beside,
)
from avtomatika_core.redrive import Redriven
from avtomatika_core.signals import MOST_WAITING

_COMMITS_PER_TURN: Final = 64
_HELD_AT_ONCE: Final = 512
_unpack_progress: Final = msgspec.msgpack.Decoder(Progress).decode

Effect = Callable[[], object]


class MemoryJobs(JobStore):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._commits = 0

    async def create(
        self, job: Job, *, idempotency: IdempotencyKey | None = None, once: bool = False
    ) -> Created:
        tables = self._tables
        now = tables.clock.now()
        tables.forget_ended(now)
        if idempotency is not None:
            first = self._first_answer(idempotency)
            if first is not None:
                return Created(job_id=first, is_repeat=True)
        if tables.job(job.id) is not None or self._was_made(job.id, now):
            return Created(job_id=job.id, is_repeat=True)
        waiting = tables.group(job.origin.group).lanes["new"]
        if len(waiting) >= tables.options.most_new_jobs:
            raise StoreFull(too_many_new_jobs(job.origin.group))
        record = tables.new_record(job)
        fact = self._created_fact(job, record)
        timeout = job.origin.timeout_seconds
        deadline = None if timeout is None else job.origin.created_at + timeout
        tables.add_job(job.id, record, job.origin.created_at, deadline=deadline)
        if fact is not None:
            tables.add_work(tables.facts, job.id, fact)
        if once:
            tables.made[job.id] = tables.remembered_until()
        if idempotency is not None:
            record.idempotency = (idempotency.client, idempotency.key)
            tables.remember(record.idempotency, job.id, idempotency.fingerprint, for_now=True)
        return Created(job_id=job.id, is_repeat=False)

    def _first_answer(self, idempotency: IdempotencyKey) -> JobId | None:
        known = self._tables.known_use((idempotency.client, idempotency.key))
        if known is None:
            return None
        job_id, fingerprint = known
        if fingerprint != idempotency.fingerprint:
            raise IdempotencyKeyReused
        return job_id

    def _was_made(self, job_id: JobId, now: float) -> bool:
        made = self._tables.made
        while made and made[oldest := next(iter(made))] <= now:  # all are known equally long
            del made[oldest]
        return job_id in made

    def _created_fact(self, job: Job, record: JobRecord) -> bytes | None:
        if not self._tables.options.keep_facts:
            return None
        created = RecordFact(kind="job_created", at=job.origin.created_at, state=job.state)
        return pack_fact(job, created, record.fence, 0)

    async def load(self, job_id: JobId) -> Stored | None:
        record = self._tables.job(job_id)
        return None if record is None else self._stored(job_id, record)

    def _stored(self, job_id: JobId, record: JobRecord) -> Stored:
        unreadable: msgspec.MsgspecError | None = None
        try:
            job = Job(
                id=job_id,
                origin=codec.unpack_origin(record.origin),
                head=codec.unpack_head(record.head),
                data=codec.unpack_data(record.data),
                run=record.run,
                cancelled=record.cancelled,
                signals=codec.unpack_signals(record.signals),
            )
        except msgspec.MsgspecError as error:
            unreadable = error
            job = salvaged_job(
                job_id,
                record.origin,
                record.head,
                record.data,
                status=record.status,
                group=record.group,
                owner=record.owner,
                run=record.run,
                task_id=next(iter(record.tasks), ""),
                now=self._tables.clock.now(),
            )
        stored = Stored(
            job=job,
            fence=record.fence,
            next_nonce=str(self._tables.number()),
            packed_data=record.data,
            claim=record.claim,
            tries=record.tries,
            is_salvaged=unreadable is not None,
        )
        if unreadable is not None:
            raise UnreadableJob(stored, str(unreadable)) from unreadable
        return stored

    async def commit(
        self,
        stored: Stored,
        step: Step,
        delivery: Delivery,
        *,
        packed_data: bytes | None = None,
        requeue: bool = False,
        set_aside: str | None = None,
    ) -> Stored:
        # On Redis each commit waits for the network. Here a long chain would keep the loop to itself.
        self._commits += 1
        if not self._commits % _COMMITS_PER_TURN:
            await asyncio.sleep(0)
        record = self._tables.jobs.get(step.job.id)
        if record is None or record.nonce != stored.next_nonce:
            record = self._write(
                record, stored, step, delivery, packed_data, requeue=requeue, set_aside=set_aside
            )
        return Stored(
            job=step.job,
            fence=record.fence,
            next_nonce=str(self._tables.number()),
            packed_data=record.data,
            claim=record.claim,
        )

    def _write(
        self,
        record: JobRecord | None,
        stored: Stored,
        step: Step,
        delivery: Delivery,
        packed_data: bytes | None,
        *,
        requeue: bool,
        set_aside: str | None,
    ) -> JobRecord:
        tables, job = self._tables, step.job
        head = job.head
        entry = tables.pending_entry(delivery.entry_id, delivery.consumer)
        if entry is None:
            raise LostClaim
        if record is None or record.fence != stored.fence:
            raise StaleJob
        packed_head = codec.pack(head)
        if job.data is stored.job.data and not stored.is_salvaged:
            packed_data = stored.packed_data
        elif packed_data is None:
            packed_data = codec.pack_data(job.data)
        is_new = job.signals is not stored.job.signals
        packed_signals = codec.pack(job.signals) if is_new else record.signals
        effects = self._effects(record, stored, step)
        packed_origin = codec.pack(job.origin) if stored.is_salvaged else record.origin
        before = (record.status, record.origin, record.head, record.data, record.wait)
        deadline = tables.deadline(job.id)
        was_marked, was_claim = record.cancelled, record.claim == entry.entry_id

        # Everything is packed, so nothing below can fail.
        record.renew_fence(stored.next_nonce)
        record.origin = packed_origin
        if is_new:
            record.signals = packed_signals
            record.signals_taken = job.signals.taken
        beside = is_beside(stored.job, job)
        # What came beside says nothing of the tries of a claim.
        record.tries = record.tries if beside and record.claim else 0
        if beside:
            tables.answer(entry)
            return record
        record.head = packed_head
        record.data = packed_data
        record.run = job.run
        record.cancelled = job.cancelled
        record.wait = head.wait.token if isinstance(head.wait, ApprovalWait) else None
        if record.status is not head.status:
            tables.set_status(record, head.status)
        if set_aside is not None:
            record.claim = None
            was = Quarantined(record.fence, was_claim, *before, deadline, was_marked)
            tables.set_aside(entry, set_aside, was)
        elif head.status is not JobStatus.RUNNING:
            record.claim = None
            tables.answer(entry)
        elif requeue:
            record.claim = tables.append(record.group, job.id, _CONTINUE)
            tables.answer(entry)
        else:
            record.claim = entry.entry_id
        for effect in effects:
            effect()
        if head.status in TERMINAL:
            tables.end_job(job.id, record)
        return record

    # --- what a commit causes

    def _effects(self, record: JobRecord, stored: Stored, step: Step) -> list[Effect]:
        """The commands with everything packed, ready to be carried out."""
        fence = f"{record.version + 1}:{stored.next_nonce}"
        effects: list[Effect] = []
        commands = [(one.job, command) for one in step.in_order for command in one.commands]
        for index, (job, command) in enumerate(commands):
            if isinstance(command, RecordFact) and not self._tables.options.keep_facts:
                continue
            effect = self._effect(record, job, command, fence, index)
            if effect is not None:
                effects.append(effect)
        return effects

    def _effect(
        self, record: JobRecord, job: Job, command: Command, fence: str, index: int
    ) -> Effect | None:
        tables = self._tables
        match command:
            case RecordFact() | Notify():
                return self._record(job, command, fence, index)
            case OfferTask():
                return partial(tables.offer_task, record, Task(job.id, command))
            case StartBranches():
                tasks = [Task(job.id, offer) for offer in command.offers]
                branches = [codec.pack(branch) for branch in command.branches]
                return partial(self._start_branches, record, tasks, branches)
            case SetTimer():
                return partial(tables.set_timer, "wait", job.id, command.token, command.due)
            case ClearTimer():
                return partial(tables.clear_timer, "wait", job.id, command.token)
            case ClearDeadline():
                return partial(tables.clear_timer, "job", job.id, "")
            case CloseTask():
                return partial(self._close_task, job.id, command.task_id)
            case CloseBranches():
                return partial(self._close_branches, job.id, record)
            case CreateChild():
                child = tables.new_record(command.child)
                fact = self._created_fact(command.child, child)
                return partial(self._create_child, command.child, child, fact)
            case CancelChild():
                event = CancelRequested(at=job.head.updated_at, reason="Parent job ended.")
                return partial(self._cancel_child, command.child_id, codec.pack(event))
            case ResumeParent():
                return partial(
                    self._resume_parent, command.parent.job_id, codec.pack(command.event)
                )

    def _record(
        self, job: Job, command: RecordFact | Notify, fence: str, index: int
    ) -> Effect | None:
        tables = self._tables
        if isinstance(command, RecordFact):
            fact = pack_fact(job, command, fence, index)
            return partial(tables.add_work, tables.facts, job.id, fact)
        packed = pack_notification(job, command, fence, index)
        if packed is None:
            return None
        return partial(tables.add_work, tables.notifications, job.id, packed)

    def _start_branches(self, record: JobRecord, tasks: list[Task], branches: list[bytes]) -> None:
        record.branches = {
            task.task_id: branch for task, branch in zip(tasks, branches, strict=True)
        }
        record.results = {}
        record.open = len(tasks)
        for task in tasks:
            self._tables.offer_task(record, task)

    def _close_task(self, job_id: JobId, task_id: TaskId) -> None:
        task = self._tables.task(job_id, task_id)
        if task is not None:
            self._tables.close_task(task, CLOSED, stop=True)

    def _close_branches(self, job_id: JobId, record: JobRecord) -> None:
        for task_id in record.branches:
            self._close_task(job_id, task_id)
            self._tables.clear_timer("branch", job_id, task_id)
        record.branches = {}

    def _create_child(self, child: Job, record: JobRecord, fact: bytes | None) -> None:
        self._tables.add_job(child.id, record, child.origin.created_at)
        if fact is not None:
            self._tables.add_work(self._tables.facts, child.id, fact)

    def _cancel_child(self, child_id: JobId, event: bytes) -> None:
        child = self._tables.job(child_id)
        if child is not None:
            self._tables.mark_cancelled(child_id, child, event)

    def _resume_parent(self, parent_id: JobId, event: bytes) -> None:
        parent = self._tables.job(parent_id)
        if parent is not None:
            self._tables.append(parent.group, parent_id, event)

    # --- fan-outs

    async def branch_results(self, job_id: JobId) -> dict[TaskId, BranchResult]:
        record = self._tables.job(job_id)
        return {} if record is None else _in_order(record.results)

    async def branch(self, job_id: JobId, task_id: TaskId) -> Branch | None:
        record = self._tables.job(job_id)
        packed = None if record is None else record.branches.get(task_id)
        return None if packed is None else codec.unpack_branch(packed)

    async def origin(self, job_id: JobId) -> tuple[Origin, int] | None:
        record = self._tables.job(job_id)
        return None if record is None else (codec.unpack_origin(record.origin), record.version)

    async def settle_branch(
        self,
        delivery: Delivery,
        task_id: TaskId,
        outcome: BranchResult | NextAttempt,
        *,
        token: str,
        fact: bytes | None = None,
    ) -> None:
        tables, job_id = self._tables, delivery.job_id
        entry = tables.pending_entry(delivery.entry_id, delivery.consumer)
        if entry is None:
            raise LostClaim
        record = tables.job(job_id)
        if record is not None and not record.cancelled and task_id in record.branches:
            if isinstance(outcome, BranchResult):
                self._end_branch(record, delivery, task_id, outcome, token)
            else:
                self._repeat_branch(record, job_id, task_id, outcome)
            if fact is not None and tables.options.keep_facts:
                tables.add_work(tables.facts, job_id, fact)
        tables.answer(entry)

    def _end_branch(
        self,
        record: JobRecord,
        delivery: Delivery,
        task_id: TaskId,
        result: BranchResult,
        token: str,
    ) -> None:
        record.results[task_id] = codec.pack(result)
        del record.branches[task_id]
        record.open -= 1
        if record.open == 0:
            at = self._tables.clock.now() if delivery.event is None else delivery.event.at
            event = codec.pack(BranchesDone(at=at, token=token))
            self._tables.append(record.group, delivery.job_id, event)

    def _repeat_branch(
        self, record: JobRecord, job_id: JobId, task_id: TaskId, again: NextAttempt
    ) -> None:
        packed = codec.pack(again.branch)
        task = None if again.offer is None else Task(job_id, again.offer)
        del record.branches[task_id]
        record.branches[again.task_id] = packed
        if task is not None:
            self._tables.offer_task(record, task)
        else:
            assert again.due is not None, "an attempt is offered now or due later"
            self._tables.set_timer("branch", job_id, again.task_id, again.due)

    # --- what readers and clients ask

    async def view(self, job_id: JobId) -> JobView | None:
        record = self._tables.job(job_id)
        if record is None:
            return None
        try:
            stored = self._stored(job_id, record)
        except UnreadableJob as error:
            stored = error.salvaged
        wait = stored.job.head.wait
        return JobView(
            job=stored.job,
            task=self._open_task(job_id, wait.task_id) if isinstance(wait, TaskWait) else None,
            branches=sorted(
                record.branches,
                key=lambda task_id: codec.unpack_branch(record.branches[task_id]).index,
            ),
            results=_in_order(record.results),
            progress=[_unpack_progress(entry) for entry in record.progress],
        )

    def _open_task(self, job_id: JobId, task_id: TaskId) -> OpenTask:
        task = self._tables.task(job_id, task_id)
        holder = None if task is None else task.worker_id
        return OpenTask(
            task_id=task_id,
            worker_id=holder,
            picked_up_at=None if task is None or holder is None else task.leased_at,
            result_deadline=None if task is None or holder is None else task.result_deadline,
            waiting_reason=None if task is None else task.reason,
        )

    async def is_wanted(self, job_id: JobId, run: int) -> bool:
        record = self._tables.job(job_id)
        return record is not None and record.run == run and not record.cancelled

    async def request_cancel(
        self, job_id: JobId, event: CancelRequested
    ) -> list[tuple[WorkerId, TaskId]]:
        record = self._tables.job(job_id)
        if record is None:
            raise JobNotFound
        if record.status in TERMINAL:
            raise JobIsTerminal(record.status)
        self._tables.mark_cancelled(job_id, record, codec.pack(event))
        open_tasks = [self._tables.task(job_id, task_id) for task_id in record.tasks]
        held = [
            (task.worker_id, task.task_id)
            for task in open_tasks
            if task is not None and task.worker_id is not None
        ]
        return held[:_HELD_AT_ONCE]

    async def decide_approval(self, job_id: JobId, *, token: str, decision: str, at: float) -> None:
        record = self._tables.job(job_id)
        if record is None:
            raise JobNotFound
        if record.wait != token or record.cancelled:
            raise ApprovalNotOpen
        record.wait = None
        self._tables.clear_timer("wait", job_id, token)
        event = ApprovalDecided(at=at, token=token, decision=decision)
        self._tables.append(record.group, job_id, codec.pack(event))

    async def send_signal(
        self,
        job_id: JobId,
        signal: SignalReceived,
        *,
        idempotency: IdempotencyKey | None = None,
    ) -> None:
        if idempotency is not None and self._first_answer(idempotency) is not None:
            return
        record = self._tables.job(job_id)
        if record is None:
            raise JobNotFound
        if record.status in TERMINAL:
            raise JobIsTerminal(record.status)
        if record.signals_sent - record.signals_taken >= MOST_WAITING:
            raise TooManySignals
        event = codec.pack(replace(signal, number=record.signals_sent + 1))
        record.signals_sent += 1
        self._tables.append(record.group, job_id, event)
        if idempotency is not None:
            key = (idempotency.client, idempotency.key)
            self._tables.remember(key, job_id, idempotency.fingerprint)

    async def not_ended(self, job_ids: Collection[JobId]) -> set[JobId]:
        records = {job_id: self._tables.job(job_id) for job_id in job_ids}
        return {
            job_id
            for job_id, record in records.items()
            if record is not None and record.status not in TERMINAL
        }

    async def redrive(self, stored: Stored, redriven: Redriven) -> None:
        tables, job = self._tables, redriven.job
        record = tables.job(job.id)
        if record is None:
            raise JobNotFound
        if record.nonce == stored.next_nonce:
            return
        if record.fence != stored.fence:
            raise StaleJob
        record.renew_fence(stored.next_nonce)
        record.head = codec.pack(job.head)
        record.run = job.run
        record.cancelled = job.cancelled
        record.tries = 0
        record.deadline = redriven.deadline
        tables.reopen_job(job.id, record, job.status, redriven.deadline)
        record.claim = tables.append(record.group, job.id, _CONTINUE)
        if tables.options.keep_facts:
            fact = pack_fact(job, redriven.fact, record.fence, 0)
            tables.add_work(tables.facts, job.id, fact)

    async def quarantined(self, owner: str | None = None) -> list[JobId]:
        found: list[JobId] = []
        for job_id in reversed(self._tables.quarantined):
            record = self._tables.job(job_id)
            if record is not None and (owner is None or record.owner == owner):
                found.append(job_id)
        return found

    async def forget_quarantined(self, job_id: JobId) -> bool:
        if self._tables.job(job_id) is None or job_id not in self._tables.quarantined:
            return False
        del self._tables.quarantined[job_id]
        return True

    async def count_by_status(self, owner: str | None = None) -> dict[JobStatus, int]:
        counts = self._tables.counts
        return {status: n for status in JobStatus if (n := counts[status, owner])}


_CONTINUE: Final = codec.pack(Continue(at=0.0))


def _in_order(packed: Mapping[TaskId, bytes]) -> dict[TaskId, BranchResult]:
    results = [(task_id, codec.unpack_branch_result(value)) for task_id, value in packed.items()]
    return dict(sorted(results, key=lambda entry: entry[1].index))
