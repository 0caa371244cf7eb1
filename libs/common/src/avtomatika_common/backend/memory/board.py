"""The board in memory: which tasks wait, and who holds the others."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from avtomatika_common import codec, ids
from avtomatika_common.backend.memory.tables import (
    CLOSED,
    DEADLINE,
    LOST,
    RESULT,
    JobRecord,
    Tables,
    Task,
    jitter,
    waiting_task,
)
from avtomatika_common.backend.ports import (
    EVENTS_KNOWN,
    EventReport,
    LeasedTask,
    Progress,
    ResultAnswer,
    TaskBoard,
    WaitingTask,
)
from avtomatika_core.events import TaskEvent, TaskFailed, WorkerEventArrived
from avtomatika_core.job import TERMINAL, JobId, JobStatus, TaskId, WorkerId

_RETURNED_SECONDS: Final = 60.0
_unpack_payload: Final = msgspec.msgpack.Decoder(LeasedTask).decode


class MemoryBoard(TaskBoard):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def heads(self, partition: int, per_shape: int) -> list[WaitingTask]:
        here = self._tables.partitions[partition]
        places = sorted(
            (*place, len(queue) > per_shape)
            for queue in here.board.values()
            for place in islice(queue, per_shape)
        )
        return [
            waiting_task(here.tasks[task_id], has_more=has_more)
            for _, _, task_id, has_more in places
        ]

    async def has_waiting(self) -> bool:
        return any(here.board for here in self._tables.partitions)

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
        *,
        until: float = math.inf,
    ) -> LeasedTask | None:
        tables = self._tables
        task, record = tables.task(job_id, task_id), tables.job(job_id)
        if (
            task is None
            or task.worker_id is not None
            or task.offer_number != offer_number
            or record is None
            or record.cancelled
            or tables.clock.now() >= until
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
        return replace(
            _unpack_payload(task.payload),
            offer_number=offer_number,
            leased_at=now,
            deadline=task.result_deadline,
            checkpoint=task.last_checkpoint,
        )

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

    async def report_held(
        self, worker_id: WorkerId, task_ids: Sequence[TaskId], *, began_at: float, report: str
    ) -> int:
        named, returned = set(task_ids), 0
        for partition in self._tables.partitions:
            for task in list(partition.held.get(worker_id, {}).values()):
                if task.task_id in named:
                    self._confirm(task)
                elif task.leased_at >= began_at or task.missed_by == report:
                    continue
                elif task.missed_by is None:
                    task.missed_by = report
                else:
                    self._tables.take_back(task)
                    returned += 1
        return returned

    def _confirm(self, task: Task) -> None:
        task.missed_by = None
        if self._tables.clear_timer("delivery", task.job_id, task.task_id):
            due = task.late_at(task.leased_at)
            self._tables.set_timer("result", task.job_id, task.task_id, due)

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
        if record.closed.get(event.task_id) == (RESULT, worker_id):
            return ResultAnswer.APPLIED
        task = self._judge(record, job_id, event.task_id, worker_id)
        if not isinstance(task, Task):
            leased = self._leased(job_id, event.task_id, worker_id)
            if leased is not None:
                # The worker is done with it: it need not be told to stop it any more.
                self._tables.close_task(leased, CLOSED, stop=False)
            elif task is not ResultAnswer.WORKER_MISMATCH:
                self._tables.send_out(job_id, "end_hold", worker_id, event.task_id, None)
            return task
        event = replace(event, leased_at=task.leased_at)
        if isinstance(event, TaskFailed):
            event = replace(event, checkpoint=task.last_checkpoint)
        packed = codec.pack(event)
        self._tables.close_task(task, RESULT, by=worker_id, stop=False)
        self._tables.append(record.group, job_id, packed, is_branch=task.is_branch)
        return ResultAnswer.APPLIED

    async def record_progress(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        progress: Progress,
        checkpoint: Mapping[str, Any] | None,
    ) -> ResultAnswer:
        record = self._tables.job(job_id)
        if record is None:
            return ResultAnswer.JOB_NOT_FOUND
        task = self._judge(record, job_id, task_id, worker_id)
        if not isinstance(task, Task):
            return task
        packed = codec.pack(progress)
        kept = task.checkpoint if checkpoint is None else codec.pack(checkpoint)
        if not (record.progress and record.progress[-1] == packed):  # else this call is a repeat
            record.progress.append(packed)
        task.checkpoint = kept
        self._confirm(task)
        if task.heartbeat_timeout_seconds is not None:
            due = task.late_at(self._tables.clock.now())
            self._tables.set_timer("result", job_id, task_id, due)
        return ResultAnswer.APPLIED

    async def report_event(
        self,
        job_id: JobId,
        task_id: TaskId,
        worker_id: WorkerId,
        event_id: str,
        *,
        event: WorkerEventArrived | None,
        notification: bytes | None,
    ) -> EventReport:
        tables = self._tables
        record = tables.job(job_id)
        if record is None:
            return EventReport(answer=ResultAnswer.JOB_NOT_FOUND)
        if (worker_id, event_id) in record.events:
            return EventReport(answer=ResultAnswer.APPLIED, is_repeat=True)
        task = self._judge(record, job_id, task_id, worker_id)
        if not isinstance(task, Task):
            return EventReport(answer=task)
        packed = None if event is None else codec.pack(event)
        record.events[worker_id, event_id] = None
        if len(record.events) > EVENTS_KNOWN:
            del record.events[next(iter(record.events))]
        if packed is not None:
            tables.append(record.group, job_id, packed)
        if notification is not None:
            tables.add_work(tables.notifications, job_id, notification)
        return EventReport(answer=ResultAnswer.APPLIED)

    async def holder(self, job_id: JobId, task_id: TaskId) -> WorkerId | None:
        task = self._tables.task(job_id, task_id)
        return None if task is None else task.worker_id

    def _judge(
        self, record: JobRecord, job_id: JobId, task_id: TaskId, worker_id: WorkerId
    ) -> Task | ResultAnswer:
        """The task, where the worker's word on it counts."""
        why, _ = record.closed.get(task_id, (None, None))
        if record.cancelled or record.status is JobStatus.CANCELLED:
            return ResultAnswer.JOB_CANCELLED
        if record.status in TERMINAL:
            return ResultAnswer.JOB_TERMINATED
        if why == DEADLINE:
            return ResultAnswer.DEADLINE_EXCEEDED
        task = self._tables.task(job_id, task_id)
        if task is None:
            return ResultAnswer.STALE_TASK
        return task if task.worker_id == worker_id else ResultAnswer.WORKER_MISMATCH

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
            checkpoint=task.last_checkpoint,
        )
        self._tables.close_task(task, LOST, stop=True)
        self._tables.append_event(task.job_id, event, is_branch=task.is_branch)

    async def length(self) -> int:
        return sum(len(queue) for here in self._tables.partitions for queue in here.board.values())

    async def waiting(self, job_id: JobId, limit: int) -> list[WaitingTask]:
        record = self._tables.job(job_id)
        open_tasks = (
            () if record is None else (self._tables.task(job_id, one) for one in record.tasks)
        )
        on_board = [task for task in open_tasks if task is not None and task.worker_id is None]
        return [
            waiting_task(task) for task in sorted(on_board, key=lambda task: task.place)[:limit]
        ]

    async def type_of(self, task_id: TaskId, job_id: JobId) -> str | None:
        task = self._tables.task(job_id, task_id)
        return None if task is None else task.type
