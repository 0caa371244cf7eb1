"""What stands beside live jobs in memory, and its repair.

Here nothing can come apart by itself. What is mended on Redis is mended here too, so that one suite
tests both.
"""

from bisect import insort
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Final

import msgspec
from msgspec.structs import replace
from typing_extensions import override

from avtomatika_common import codec
from avtomatika_common.backend.memory.tables import JobRecord, Tables, Task, waiting_task
from avtomatika_common.backend.memory.timetable import Timer
from avtomatika_common.backend.memory.workers import MemoryWorkers
from avtomatika_common.backend.ports import (
    Hint,
    Inspection,
    LiveJob,
    LookAt,
    Orphan,
    Seen,
)
from avtomatika_core.consistency import Append, Around, FlawKind, Mend, Repair, TaskAround
from avtomatika_core.job import (
    TERMINAL,
    ApprovalWait,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    JobId,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
    WorkerId,
)

_JOB_TIMERS: Final = frozenset({"wait", "branch", "job"})
_TASK_TIMERS: Final = frozenset({"dispatch", "delivery", "result"})


class MemoryInspection(Inspection):
    """A cursor is how many were seen, "0" at both ends; of those that move up some are seen later."""

    def __init__(self, tables: Tables, workers: MemoryWorkers) -> None:
        self._tables = tables
        self._workers = workers

    async def live(self, partition: int, cursor: str, limit: int) -> tuple[str, Sequence[LiveJob]]:
        jobs, first = self._tables.jobs, int(cursor)
        found: list[LiveJob] = []
        for job_id, record in islice(jobs.items(), first, first + limit):
            if record.status in TERMINAL or self._tables.partition_of(job_id) != partition:
                continue
            try:
                head = codec.unpack_head(record.head)
            except msgspec.MsgspecError:  # whoever is to handle an event of it will say so
                continue
            found.append(
                LiveJob(
                    job_id=job_id,
                    group=record.group,
                    fence=record.fence,
                    head=head,
                    cancelled=record.cancelled,
                )
            )
        following = first + limit
        return str(following if following < len(jobs) else 0), found

    @override
    async def awaited(
        self, partition: int, group: str, until: float, cursor: str, limit: int
    ) -> tuple[str, Collection[JobId]]:
        # Whatever their group and time: what comes of that is only mended later.
        return "0", {entry.job_id for entry in self._tables.entries.values()}

    @override
    async def around(self, partition: int, looks: Sequence[LookAt]) -> list[Seen]:
        at = self._tables.clock.now()
        expected: set[JobId] = set()
        if any(look.since is not None for look in looks):
            expected = {entry.job_id for entry in self._tables.entries.values()}
            expected |= {entry.job_id for entry in self._tables.deferred.values()}
        return [self._seen(look, expected, at) for look in looks]

    def _seen(self, look: LookAt, expected: set[JobId], at: float) -> Seen:
        job_id = look.job.job_id
        record = self._tables.job(job_id)
        if record is None:
            return Seen(around=Around(), mark="", is_current=False, may_have_event=False, at=at)
        following = int(look.cursor) + look.branches
        return Seen(
            around=self._around(look, record),
            mark=record.fence,
            is_current=record.fence == look.job.fence,
            may_have_event=look.since is None or job_id in expected,
            at=at,
            next_branches=str(following if following < len(record.branches) else 0),
        )

    def _around(self, look: LookAt, record: JobRecord) -> Around:
        tables, job_id, due = self._tables, look.job.job_id, record.deadline
        around = Around(
            has_claim=record.claim in tables.entries or record.claim in tables.deferred,
            has_deadline=due is None or tables.has_timer("job", job_id, ""),
            is_late=due is not None and due <= tables.clock.now(),
        )
        wait = None if look.job.head is None else look.job.head.wait
        match wait:
            case TaskWait(task_id=task_id):
                return replace(around, tasks=self._tasks(job_id, [task_id]))
            case (
                TaskRetryWait(token=token)
                | HandlerRetryWait(token=token)
                | SleepWait(token=token)
                | SignalWait(token=token)
            ):
                has_timer = tables.has_timer("wait", job_id, token)
                return replace(around, has_timer=has_timer)
            case ApprovalWait(token=token):
                return replace(
                    around,
                    is_open=record.wait == token,
                    has_timer=tables.has_timer("wait", job_id, token),
                )
            case BranchesWait():
                first = int(look.cursor)
                looked_at = list(islice(record.branches, first, first + look.branches))
                return replace(
                    around,
                    open=record.open,
                    branches=len(record.branches),
                    tasks=self._tasks(job_id, looked_at),
                )
            case ChildWait(child_id=child_id):
                child = tables.job(child_id)
                if child is None:
                    return replace(around, child="absent")
                is_over = child.status in TERMINAL
                return replace(around, child="ended" if is_over else "live")
            case None:
                return around

    def _tasks(self, job_id: JobId, task_ids: Sequence[TaskId]) -> tuple[TaskAround, ...]:
        tables = self._tables
        found: list[TaskAround] = []
        for task_id in task_ids:
            task = tables.task(job_id, task_id)
            if task is not None:
                found.append(self._task(task))
            elif not tables.has_timer("branch", job_id, task_id):
                found.append(TaskAround(task_id=task_id, state="absent"))
        return tuple(found)

    def _task(self, task: Task) -> TaskAround:
        tables, job_id, task_id = self._tables, task.job_id, task.task_id
        here = tables.partitions[tables.partition_of(job_id)]
        if task.worker_id is None:
            return TaskAround(
                task_id=task_id,
                state="board",
                is_placed=task.place in here.board.get(task.shape, ()),
                has_timer=task.dispatch_deadline is None
                or tables.has_timer("dispatch", job_id, task_id),
            )
        return TaskAround(
            task_id=task_id,
            state="leased",
            is_placed=task_id in here.held.get(task.worker_id, {}),
            has_timer=tables.has_timer("delivery", job_id, task_id)
            or tables.has_timer("result", job_id, task_id),
        )

    @override
    async def mend(self, partition: int, job_id: JobId, mark: str, mend: Mend) -> bool:
        record = self._tables.job(job_id)
        if record is None or record.fence != mark:
            return False
        if isinstance(mend, Append):
            event = codec.pack(mend.event)
            entry_id = self._tables.append(record.group, job_id, event, is_branch=mend.is_branch)
            if mend.is_claim:
                record.claim = entry_id
        else:
            self._repair(job_id, record, mend)
        return True

    def _repair(self, job_id: JobId, record: JobRecord, repair: Repair) -> None:
        tables = self._tables
        match repair.kind:
            case FlawKind.TIMER:
                tables.set_timer("wait", job_id, repair.subject, repair.due)
            case FlawKind.DEADLINE:
                if record.deadline is not None:
                    tables.set_timer("job", job_id, "", record.deadline)
            case FlawKind.APPROVAL:
                record.wait = repair.subject
            case FlawKind.BRANCHES:
                record.open = len(record.branches)
                if not record.open:
                    tables.append(record.group, job_id, codec.pack(repair.event))
            case FlawKind.BOARD | FlawKind.LEASE | FlawKind.TASK_TIMER:
                task = tables.task(job_id, TaskId(repair.subject))
                if task is not None:
                    self._put_back(task, repair.kind)
            case _:
                raise AssertionError(f"in memory there is no flaw {repair.kind}")

    def _put_back(self, task: Task, kind: FlawKind) -> None:
        tables, job_id, task_id = self._tables, task.job_id, task.task_id
        number = tables.partition_of(job_id)
        here = tables.partitions[number]
        if task.worker_id is not None:
            if kind is FlawKind.LEASE:
                here.held.setdefault(task.worker_id, {})[task_id] = task
            elif kind is FlawKind.TASK_TIMER:
                due = task.late_at(tables.clock.now())
                tables.set_timer("result", job_id, task_id, due)
        elif kind is FlawKind.BOARD:
            insort(here.board.setdefault(task.shape, []), task.place)
            hint = Hint(kind="task", value=task.type, task=waiting_task(task))
            tables.hint(f"p{number}", hint)
        elif kind is FlawKind.TASK_TIMER and task.dispatch_deadline is not None:
            tables.set_timer("dispatch", job_id, task_id, task.dispatch_deadline)

    # -- what belongs to no job

    async def orphans(
        self, partition: int, cursor: str, limit: int
    ) -> tuple[str, Sequence[Orphan]]:
        tables, first = self._tables, int(cursor)
        timetable = tables.partitions[partition].timetable
        found = [
            Orphan(kind="timer", name="/".join(timer))
            for timer in islice(timetable, first, first + limit)
            if self._is_orphan(timer)
        ]
        found += [
            Orphan(kind="deferred", name=entry_id)
            for entry_id, entry in islice(tables.deferred.items(), first, first + limit)
            if tables.partition_of(entry.job_id) == partition
            and not tables.has_timer("entry", entry.job_id, entry_id)
        ]
        found += [
            Orphan(kind="quarantine", name=job_id)
            for job_id in islice(tables.quarantined, first, first + limit)
            if tables.job(job_id) is None and tables.partition_of(job_id) == partition
        ]
        following = first + limit
        most = max(len(timetable), len(tables.deferred), len(tables.quarantined))
        return str(following if following < most else 0), found

    def _is_orphan(self, timer: Timer) -> bool:
        kind, job_id, token = timer
        if kind in _JOB_TIMERS:
            return self._tables.job(job_id) is None
        if kind in _TASK_TIMERS:
            return self._tables.task(job_id, TaskId(token)) is None
        return token not in self._tables.deferred

    @override
    async def lost_entries(
        self, partition: int, group: str, cursor: str, limit: int
    ) -> tuple[str, Sequence[Orphan]]:
        return "0", []  # one thing says whose an entry is, and whether it was delivered

    @override
    async def workers(self, cursor: str, limit: int) -> tuple[str, Sequence[WorkerId]]:
        workers, first = self._workers.registered(), int(cursor)
        following = first + limit
        return str(following if following < len(workers) else 0), workers[first:following]

    @override
    async def orphan_places(
        self, worker_id: WorkerId, cursor: str, limit: int, since: float
    ) -> tuple[str, Sequence[Orphan]]:
        partitions, first = self._tables.partitions, int(cursor)
        held = {
            task_id: task
            for here in partitions
            for task_id, task in here.held.get(worker_id, {}).items()
        }
        kept = self._workers.kept_places(worker_id)
        # Here one is told from another, so nothing has to wait for those that came before `since`.
        on_the_way = {(change[1], change[2]) for here in partitions for change in here.out}
        following = first + limit
        found = [
            Orphan(kind="hold", name=task_id, worker_id=worker_id, mark=str(offer))
            for task_id, offer in kept[first:following]
            if task_id not in held and (worker_id, task_id) not in on_the_way
        ]
        found += [
            Orphan(kind="lease", name=task_id, worker_id=worker_id)
            for task_id, task in islice(held.items(), first, following)
            if self._tables.task(task.job_id, task_id) is None
        ]
        return str(following if following < max(len(kept), len(held)) else 0), found

    async def remove(self, partition: int, orphan: Orphan) -> bool:
        tables, name = self._tables, orphan.name
        match orphan.kind:
            case "timer":
                kind, job_id, token = name.split("/", 2)
                timetable = tables.partitions[partition].timetable
                timer = next((one for one in timetable if one == (kind, job_id, token)), None)
                return timer is not None and self._is_orphan(timer) and timetable.clear(timer)
            case "deferred":
                entry = tables.deferred.get(name)
                if entry is None or tables.has_timer("entry", entry.job_id, name):
                    return False
                tables.set_timer("entry", entry.job_id, name, tables.clock.now())
                return True
            case "quarantine":
                job_id = JobId(name)
                return tables.job(job_id) is None and (
                    tables.quarantined.pop(job_id, self) is not self
                )
            case "hold":
                assert orphan.worker_id is not None, "a place is a worker's"
                self._workers.change_hold(
                    "end_hold", orphan.worker_id, TaskId(name), int(orphan.mark), JobId("")
                )
                return True
            case "lease":
                assert orphan.worker_id is not None, "a place is a worker's"
                return self._remove_lease(orphan.worker_id, TaskId(name))
            case "entry":
                return False

    async def count_mended(self, kind: str) -> None:
        self._tables.mended[kind] += 1

    async def mended(self) -> dict[str, int]:
        return dict(self._tables.mended)

    def _remove_lease(self, worker_id: WorkerId, task_id: TaskId) -> bool:
        for here in self._tables.partitions:
            held = here.held.get(worker_id, {})
            task = held.get(task_id)
            if task is not None and self._tables.task(task.job_id, task_id) is None:
                del held[task_id]
                return True
        return False
