"""Stores with one law left out each: what the exploration must find."""

# pyright: reportPrivateUsage=false

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from typing_extensions import override

from avtomatika_common.backend.memory.board import MemoryBoard
from avtomatika_common.backend.memory.inbox import MemoryInbox
from avtomatika_common.backend.memory.jobs import MemoryJobs
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import (
    Created,
    Delivery,
    DropAnswer,
    IdempotencyKey,
    LeasedTask,
    ResultAnswer,
    StaleJob,
    Stored,
)
from avtomatika_common.clock import Clock
from avtomatika_core.commands import Step
from avtomatika_core.events import TaskEvent
from avtomatika_core.job import Job, JobId, TaskId, WorkerId


class _CommitsWithoutClaim(MemoryJobs):
    @override
    async def commit(
        self, stored: Stored, step: Step, delivery: Delivery, **options: Any
    ) -> Stored:
        entry = self._tables.entries.get(delivery.entry_id)
        if entry is not None and entry.consumer is not None:
            delivery = replace(delivery, consumer=entry.consumer)
        return await super().commit(stored, step, delivery, **options)


class _CommitsStaleJobs(MemoryJobs):
    @override
    async def commit(
        self, stored: Stored, step: Step, delivery: Delivery, **options: Any
    ) -> Stored:
        record = self._tables.jobs[stored.job.id]
        return await super().commit(replace(stored, fence=record.fence), step, delivery, **options)


class _ForgetsItsCommits(MemoryJobs):
    @override
    async def commit(
        self, stored: Stored, step: Step, delivery: Delivery, **options: Any
    ) -> Stored:
        if self._tables.jobs[stored.job.id].nonce == stored.next_nonce:
            raise StaleJob
        return await super().commit(stored, step, delivery, **options)


class _ForgetsKeys(MemoryJobs):
    @override
    async def create(
        self, job: Job, *, idempotency: IdempotencyKey | None = None, once: bool = False
    ) -> Created:
        return await super().create(job, once=once)


class _LeavesTheApprovalOpen(MemoryJobs):
    @override
    async def decide_approval(self, job_id: JobId, *, token: str, decision: str, at: float) -> None:
        await super().decide_approval(job_id, token=token, decision=decision, at=at)
        self._tables.jobs[job_id].wait = token


class _AnswersWhatItReads(MemoryInbox):
    @override
    async def read(self, group: str, consumer: str, room: int) -> list[Delivery]:
        deliveries = await super().read(group, consumer, room)
        for delivery in deliveries:
            self._tables.answer(self._tables.entries[delivery.entry_id])
        return deliveries


class _DropsClaims(MemoryInbox):
    @override
    async def drop(self, delivery: Delivery) -> DropAnswer:
        entry = self._tables.pending_entry(delivery.entry_id, delivery.consumer)
        if entry is None:
            return DropAnswer.LOST
        self._tables.answer(entry)
        return DropAnswer.DROPPED


class _TakesAnybodysResult(MemoryBoard):
    @override
    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        task = self._tables.task(job_id, event.task_id)
        if task is not None and task.worker_id is None:
            await self.lease(event.task_id, job_id, task.offer_number, worker_id, 1)
        elif task is not None and task.worker_id is not None:
            worker_id = task.worker_id
        return await super().end_lease(job_id, worker_id, event)


class _LeavesTheTimer(MemoryBoard):
    @override
    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        answer = await super().end_lease(job_id, worker_id, event)
        due = self._tables.clock.now() + 1.0
        self._tables.set_timer("result", job_id, event.task_id, due)
        return answer


class _HandsOutCancelledTasks(MemoryBoard):
    @override
    async def lease(
        self,
        task_id: TaskId,
        job_id: JobId,
        offer_number: int,
        worker_id: WorkerId,
        incarnation: int,
        **options: Any,
    ) -> LeasedTask | None:
        record = self._tables.jobs[job_id]
        is_cancelled, record.cancelled = record.cancelled, False
        try:
            return await super().lease(
                task_id, job_id, offer_number, worker_id, incarnation, **options
            )
        finally:
            record.cancelled = is_cancelled


class _ClosesWithoutEvent(MemoryBoard):
    @override
    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        known = set(self._tables.entries)
        answer = await super().end_lease(job_id, worker_id, event)
        for entry_id in self._tables.entries.keys() - known:
            del self._tables.entries[entry_id]
            self._tables.group("default").lanes["in"].pop()
        return answer


class _KeepsPlaces(MemoryBoard):
    @override
    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        answer = await super().end_lease(job_id, worker_id, event)
        self._tables.partitions[0].out.clear()
        return answer


Part = type[MemoryJobs] | type[MemoryInbox] | type[MemoryBoard]


class FaultyStorage(MemoryStorage):
    """A memory store, one part of which is another."""

    def __init__(self, part: Part, clock: Clock) -> None:
        super().__init__(clock)
        if issubclass(part, MemoryInbox):
            self.inbox = part(self._tables, self.liveness)
        elif issubclass(part, MemoryBoard):
            self.board = part(self._tables)
            self.relay._board = self.board
        else:
            self.jobs = part(self._tables)


FAULTS: Sequence[tuple[Part, str, str]] = [
    (_CommitsWithoutClaim, "chain", "who lost the claim has written"),
    (_CommitsStaleJobs, "cancelled chain", "a stale job was written"),
    (_ForgetsItsCommits, "chain", "the repeat of a commit is refused"),
    (_ForgetsKeys, "chain", "a second job"),
    (_LeavesTheApprovalOpen, "approval", "one approval is decided twice"),
    (_AnswersWhatItReads, "chain", "no entry carries a job that is to run"),
    (_DropsClaims, "fair chain", "no entry carries a job that is to run"),
    (_TakesAnybodysResult, "task", "a result counts that is not the holder's"),
    (_LeavesTheTimer, "task", "a task that is closed has a result timer"),
    (_ClosesWithoutEvent, "task", "a job stays waiting_for_worker"),
    (_KeepsPlaces, "two workers", "after the end there are places taken"),
    (_HandsOutCancelledTasks, "cancelled task", "a task of a cancelled job is handed out"),
]
