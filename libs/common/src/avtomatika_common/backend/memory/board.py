"""The board in memory: which tasks wait, and who holds the others."""

from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec
from msgspec.structs import replace

from avtomatika_common import codec, ids
from avtomatika_common.backend.memory.tables import (
    DEADLINE,
    LOST,
    RESULT,
    JobRecord,
    Tables,
    Task,
    jitter,
)
from avtomatika_common.backend.ports import LeasedTask, ResultAnswer, TaskBoard, WaitingTask
from avtomatika_core.events import TaskEvent, TaskFailed
from avtomatika_core.job import TERMINAL, JobId, JobStatus, TaskId, WorkerId

_RETURNED_SECONDS: Final = 60.0
_unpack_payload: Final = msgspec.msgpack.Decoder(LeasedTask).decode


class MemoryBoard(TaskBoard):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def heads(self, partition: int, per_shape: int) -> list[WaitingTask]:
        here = self._tables.partitions[partition]
        places = sorted(
            place for queue in here.board.values() for place in islice(queue, per_shape)
        )
        return [_waiting(here.tasks[task_id]) for _, _, task_id in places]

    async def explain(self, task: WaitingTask, reason: str | None) -> None:
        waiting = self._tables.task(task.job_id, task.task_id)
        if waiting is not None and waiting.worker_id is None:
            waiting.reason = reason

    async def lease(
        self,
        task_id: TaskId,
        job_id: JobId,
        offer_number: int,
        worker_id: WorkerId,
        incarnation: int,
    ) -> LeasedTask | None:
        tables = self._tables
        task, record = tables.task(job_id, task_id), tables.job(job_id)
        if (
            task is None
            or task.worker_id is not None
            or task.offer_number != offer_number
            or record is None
            or record.cancelled
        ):
            return None
        partition = tables.partitions[tables.partition_of(job_id)]
        now = tables.clock.now()
        # Leases of this worker up to here were returned already: one more would be overlooked.
        returned, known_until = partition.returned.get(worker_id, (0, 0.0))
        if incarnation <= returned and now < known_until:
            return None
        tables.leave_board(partition, task)
        task.worker_id = worker_id
        task.incarnation = incarnation
        task.leased_at = now
        partition.held.setdefault(worker_id, {})[task_id] = task
        due = now + tables.options.delivery_timeout_seconds
        tables.set_timer("delivery", job_id, task_id, due)
        tables.send_out(job_id, "keep_hold", worker_id, task_id, offer_number)
        return replace(_unpack_payload(task.payload), offer_number=offer_number)

    def _leased(self, job_id: JobId, task_id: TaskId, worker_id: WorkerId) -> Task | None:
        task = self._tables.task(job_id, task_id)
        return task if task is not None and task.worker_id == worker_id else None

    async def confirm(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        task = self._leased(job_id, task_id, worker_id)
        if task is not None and offer_number in {None, task.offer_number}:
            self._confirm(task)

    async def confirm_held(self, worker_id: WorkerId, task_ids: Sequence[TaskId]) -> None:
        for partition in self._tables.partitions:
            held = partition.held.get(worker_id, {})
            for task_id in held.keys() & set(task_ids):
                self._confirm(held[task_id])

    def _confirm(self, task: Task) -> None:
        if self._tables.clear_timer("delivery", task.job_id, task.task_id):
            self._tables.set_timer("result", task.job_id, task.task_id, task.result_deadline)

    async def undeliver(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        task = self._leased(job_id, task_id, worker_id)
        if (
            task is not None
            and offer_number in {None, task.offer_number}
            and self._tables.has_timer("delivery", job_id, task_id)
        ):
            self._tables.take_back(task)

    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        record = self._tables.job(job_id)
        if record is None:
            return ResultAnswer.JOB_NOT_FOUND
        answer = self._judge(record, job_id, worker_id, event)
        if answer is not None:
            if answer not in {ResultAnswer.APPLIED, ResultAnswer.WORKER_MISMATCH}:
                # It is done with a task nobody waits for: it need not be told to stop it any more.
                self._tables.send_out(job_id, "end_hold", worker_id, event.task_id, None)
            return answer
        task = self._tables.task(job_id, event.task_id)
        assert task is not None, "a result that counts is for an open task"
        event = msgspec.structs.replace(event, leased_at=task.leased_at)
        packed = codec.pack(event)
        self._tables.close_task(task, RESULT, by=worker_id, stop=False)
        self._tables.append(record.group, job_id, packed, is_branch=task.is_branch)
        return ResultAnswer.APPLIED

    def _judge(
        self, record: JobRecord, job_id: JobId, worker_id: WorkerId, event: TaskEvent
    ) -> ResultAnswer | None:
        """None: the result counts."""
        why, by = record.closed.get(event.task_id, (None, None))
        if why == RESULT and by == worker_id:
            return ResultAnswer.APPLIED
        if record.cancelled or record.status is JobStatus.CANCELLED:
            return ResultAnswer.JOB_CANCELLED
        if record.status in TERMINAL:
            return ResultAnswer.JOB_TERMINATED
        if why == DEADLINE:
            return ResultAnswer.DEADLINE_EXCEEDED
        task = self._tables.task(job_id, event.task_id)
        if task is None:
            return ResultAnswer.STALE_TASK
        return None if task.worker_id == worker_id else ResultAnswer.WORKER_MISMATCH

    async def return_leases(
        self, partition: int, worker_id: WorkerId, incarnation: int, *, lost: bool
    ) -> int:
        here = self._tables.partitions[partition]
        now = self._tables.clock.now()
        while here.returned and here.returned[oldest := next(iter(here.returned))][1] <= now:
            del here.returned[oldest]
        last = max(incarnation, here.returned.pop(worker_id, (0, 0.0))[0])
        here.returned[worker_id] = (last, now + _RETURNED_SECONDS)
        held = here.held.get(worker_id, {})
        ended = [task for task in held.values() if task.incarnation <= incarnation]
        for task in ended:
            if lost:
                self._lose(task, worker_id, now)
            else:
                self._tables.take_back(task)
        return len(ended)

    def _lose(self, task: Task, worker_id: WorkerId, now: float) -> None:
        event = TaskFailed(
            at=now,
            task_id=task.task_id,
            worker_id=worker_id,
            fresh_id=TaskId(ids.new_id()),
            jitter=jitter(),
            message=f"Worker '{worker_id}' was lost.",
            leased_at=task.leased_at,
        )
        self._tables.close_task(task, LOST, stop=True)
        self._tables.append_event(task.job_id, event, is_branch=task.is_branch)

    async def length(self) -> int:
        return sum(len(queue) for here in self._tables.partitions for queue in here.board.values())


def _waiting(task: Task) -> WaitingTask:
    return WaitingTask(
        task_id=task.task_id,
        job_id=task.job_id,
        type=task.type,
        resource_requirements=codec.unpack(task.requirements),
        max_cost=task.max_cost,
        strategy=task.strategy,
        priority=task.priority,
        offer_number=task.offer_number,
    )
