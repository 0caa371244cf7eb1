"""Due timers in memory: what each of them is for."""

from typing import Literal

from avtomatika_common import codec, ids
from avtomatika_common.backend.memory.leases import MemoryLeases
from avtomatika_common.backend.memory.tables import DEADLINE, Tables, jitter
from avtomatika_common.backend.memory.timetable import Timer
from avtomatika_common.backend.ports import Lease, Timers
from avtomatika_core.events import JobTimedOut, TaskTimedOut, TimerFired
from avtomatika_core.job import JobId, TaskId


class MemoryTimers(Timers):
    def __init__(self, tables: Tables, leases: MemoryLeases) -> None:
        self._tables = tables
        self._leases = leases

    async def next_due(self, partition: int) -> float | None:
        return self._tables.partitions[partition].timetable.next_due()

    async def fire(self, partition: int, lease: Lease, limit: int = 512) -> int:
        self._leases.check(lease)
        now = self._tables.clock.now()
        self._tables.forget_ended(now)
        timetable = self._tables.partitions[partition].timetable
        fired = 0
        while fired < limit and (timer := timetable.pop_due(now)) is not None:
            self._fire(timer, now)
            fired += 1
        return fired

    def _fire(self, timer: Timer, now: float) -> None:
        kind, job_id, token = timer
        match kind:
            case "wait":
                record = self._tables.job(job_id)
                if record is not None and record.wait == token:
                    record.wait = None
                self._append(job_id, token, now, is_branch=False)
            case "branch":
                self._append(job_id, token, now, is_branch=True)
            case "entry":
                entry = self._tables.deferred.pop(token)
                self._tables.requeue(entry)
            case "dispatch" | "result":
                self._time_out(job_id, TaskId(token), kind, now)
            case "delivery":
                task = self._tables.task(job_id, TaskId(token))
                assert task is not None, "a closed task has no timer"
                self._tables.take_back(task)
            case "job":
                record = self._tables.job(job_id)
                if record is not None:
                    event = codec.pack(JobTimedOut(at=now))
                    self._tables.mark(job_id, record, event)

    def _append(self, job_id: JobId, token: str, now: float, *, is_branch: bool) -> None:
        event = TimerFired(at=now, token=token, fresh_id=TaskId(ids.new_id()))
        self._tables.append_event(job_id, event, is_branch=is_branch)

    def _time_out(
        self, job_id: JobId, task_id: TaskId, timeout: Literal["dispatch", "result"], now: float
    ) -> None:
        task = self._tables.task(job_id, task_id)
        assert task is not None, "a closed task has no timer"
        event = TaskTimedOut(
            at=now,
            task_id=task_id,
            worker_id=task.worker_id,
            fresh_id=TaskId(ids.new_id()),
            jitter=jitter(),
            timeout=timeout,
            waiting_reason=task.reason or "",
            leased_at=None if task.worker_id is None else task.leased_at,
            checkpoint=task.last_checkpoint,
        )
        self._tables.close_task(task, DEADLINE, stop=True)
        self._tables.append_event(job_id, event, is_branch=task.is_branch)
