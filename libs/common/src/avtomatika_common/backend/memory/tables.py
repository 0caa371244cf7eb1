"""What the memory store holds, and the moves that several of its ports share.

As on Redis everything a caller brought is kept packed, so nobody holds a live reference into the
store. No method here awaits: what a port does between two awaits is one atomic operation.
"""

import math
import secrets
from bisect import bisect_left, insort
from collections import Counter, deque
from itertools import count
from typing import Any, Final, Literal, NamedTuple

from avtomatika_common import codec, ids
from avtomatika_common.backend.memory.signals import Signals
from avtomatika_common.backend.memory.timetable import Kind, Timer, Timetable
from avtomatika_common.backend.ports import (
    DEAD_EVENTS_KEPT,
    PROGRESS_KEPT,
    Hint,
    LeasedTask,
    StoreOptions,
    WaitingTask,
)
from avtomatika_common.backend.shapes import shape_of
from avtomatika_common.clock import Clock
from avtomatika_core.commands import OfferTask
from avtomatika_core.events import InboxEvent, JobCreated
from avtomatika_core.job import TERMINAL, Job, JobId, JobStatus, TaskId, WorkerId

LaneName = Literal["in", "new"]
HoldChange = Literal["keep_hold", "end_hold", "unmatched", "stop"]
Place = tuple[float, int, TaskId]
"""Of a task on the board: priority (negated), number, and whose it is."""

RESULT: Final = "result"
DEADLINE: Final = "deadline"
LOST: Final = "lost"
CLOSED: Final = "closed"

REMEMBERED_SECONDS: Final = 7 * 86_400.0
"""How long, at least, it is known after a job that it was made."""
_HINTS_KEPT: Final = 1000


def jitter() -> float:
    """-1..1, spreads retries."""
    return secrets.randbelow(2001) / 1000 - 1


class Entry:
    """One inbox entry; `consumer` None: nobody has read it yet."""

    __slots__ = ("consumer", "entry_id", "event", "group", "is_branch", "job_id", "lane", "tries")

    def __init__(
        self,
        entry_id: str,
        lane: LaneName,
        group: str,
        job_id: JobId,
        event: bytes,
        is_branch: bool,
    ) -> None:
        self.entry_id = entry_id
        self.lane: LaneName = lane
        self.group = group
        self.job_id = job_id
        self.event = event
        self.is_branch = is_branch
        self.consumer: str | None = None
        self.tries = 0
        """Of a branch's event: how often it could not be handled."""


class Group:
    """The inbox of one executor group: unread entries by lane, and who has read which."""

    __slots__ = ("consumers", "lanes")

    def __init__(self) -> None:
        self.lanes: dict[LaneName, deque[Entry]] = {"in": deque(), "new": deque()}
        self.consumers: dict[str, dict[str, Entry]] = {}


class Task:
    """One task that is open: on the board, or leased to a worker."""

    __slots__ = (
        "checkpoint", "dispatch_deadline", "heartbeat_timeout_seconds", "incarnation", "is_branch", "job_id", "leased_at",
        "max_cost", "missed_by", "offer_number", "payload", "place", "priority", "reason",
        "requirements",
        "result_timeout_seconds", "shape", "strategy", "task_id", "type", "worker_id",
    )  # fmt: skip

    def __init__(self, job_id: JobId, offer: OfferTask) -> None:
        self.task_id = offer.task_id
        self.job_id = job_id
        self.type = offer.type
        self.requirements = codec.pack(offer.resource_requirements)
        self.max_cost = offer.max_cost
        self.strategy = offer.strategy
        self.priority = offer.priority
        self.dispatch_deadline = offer.dispatch_deadline
        self.result_timeout_seconds = offer.result_timeout_seconds
        self.heartbeat_timeout_seconds = offer.heartbeat_timeout_seconds
        self.is_branch = offer.is_branch
        self.shape = shape_of(
            offer.type, offer.resource_requirements, offer.max_cost, offer.strategy
        )
        self.payload = codec.pack(
            LeasedTask(
                task_id=offer.task_id,
                job_id=job_id,
                type=offer.type,
                params=offer.params,
                tracing_context=offer.tracing_context,
                params_metadata=offer.params_metadata,
                attempt=offer.attempt,
            )
        )
        self.checkpoint = None if offer.checkpoint is None else codec.pack(offer.checkpoint)
        self.place: Place = (-offer.priority, 0, offer.task_id)
        self.offer_number = 1
        self.reason: str | None = None
        self.worker_id: WorkerId | None = None
        self.incarnation = 0
        self.leased_at = 0.0
        self.missed_by: str | None = None
        """A report of its holder's that did not name it."""

    @property
    def result_deadline(self) -> float:
        return self.leased_at + self.result_timeout_seconds

    def late_at(self, heard_at: float) -> float:
        """When the holder is late, if nothing is heard of it after `heard_at`."""
        if self.heartbeat_timeout_seconds is None:
            return self.result_deadline
        return min(self.result_deadline, heard_at + self.heartbeat_timeout_seconds)

    @property
    def last_checkpoint(self) -> dict[str, Any] | None:
        return None if self.checkpoint is None else codec.unpack(self.checkpoint)


def waiting_task(task: Task, *, has_more: bool = False) -> WaitingTask:
    """A task on the board, as the dispatcher sees it."""
    return WaitingTask(
        task_id=task.task_id,
        job_id=task.job_id,
        type=task.type,
        resource_requirements=codec.unpack(task.requirements),
        max_cost=task.max_cost,
        strategy=task.strategy,
        priority=task.priority,
        offer_number=task.offer_number,
        place=task.place[1],
        has_more=has_more,
    )


class HintLog:
    """The last hints of one source, numbered."""

    __slots__ = ("kept", "last")

    def __init__(self) -> None:
        self.last = 0
        self.kept: deque[Hint] = deque(maxlen=_HINTS_KEPT)


class Partition:
    """What lies beside the jobs of one partition."""

    __slots__ = ("board", "held", "out", "returned", "tasks", "timetable")

    def __init__(self) -> None:
        self.tasks: dict[TaskId, Task] = {}
        self.board: dict[str, list[Place]] = {}
        """Shape -> its tasks, in the order in which they are handed out."""
        self.timetable = Timetable()
        self.held: dict[WorkerId, dict[TaskId, Task]] = {}
        self.returned: dict[WorkerId, tuple[int, float]] = {}
        """Worker -> the registration up to which its leases were returned, and until when to know it."""
        self.out: deque[tuple[HoldChange, WorkerId, TaskId, int | None, JobId]] = deque()
        """What takes effect in the worker directory: for a task's offer of this number, None: any."""


class JobRecord:
    __slots__ = (
        "branches", "cancelled", "claim", "closed", "data", "deadline", "events", "expires_at", "fence", "group", "head",
        "idempotency", "nonce", "open", "origin", "owner", "progress", "results", "run", "signals", "signals_sent",
        "signals_taken", "status", "tasks", "tries", "version", "wait",
    )  # fmt: skip

    def __init__(self, job: Job, data: bytes, nonce: str) -> None:
        self.origin = codec.pack(job.origin)
        self.head = codec.pack(job.head)
        self.data = data
        self.version = 0
        self.nonce = nonce
        self.fence = f"0:{nonce}"
        self.run = job.run
        self.cancelled = job.cancelled
        self.status = job.status
        self.group = job.origin.group
        self.owner = job.origin.client.name
        self.claim: str | None = None
        self.tries = 0
        self.deadline: float | None = None
        """When the job's own time is over."""
        self.wait: str | None = None
        """Token of an open approval."""
        self.signals: bytes | None = None
        self.signals_sent = 0
        self.signals_taken = 0
        self.expires_at: float | None = None
        self.idempotency: tuple[str, str] | None = None
        """Client and key of the request that made it; known as long as the job."""
        self.tasks: set[TaskId] = set()
        """Those that are open."""
        self.closed: dict[TaskId, tuple[str, WorkerId | None]] = {}
        """How tasks were closed, and by whose result."""
        self.branches: dict[TaskId, bytes] = {}
        self.results: dict[TaskId, bytes] = {}
        self.open = 0
        self.events: dict[tuple[WorkerId, str], None] = {}
        """Of workers, that counted; oldest first."""
        self.progress: deque[bytes] = deque(maxlen=PROGRESS_KEPT)

    def renew_fence(self, nonce: str) -> None:
        self.version += 1
        self.nonce = nonce
        self.fence = f"{self.version}:{nonce}"


class Quarantined(NamedTuple):
    """What a job was before it was quarantined with a dead event."""

    fence: str
    """Its fence since then."""
    is_claim: bool
    status: JobStatus
    origin: bytes
    head: bytes
    data: bytes
    wait: str | None
    deadline: float | None
    cancelled: bool


class DeadEntry(NamedTuple):
    """An entry that could not be handled."""

    dead_id: str
    entry: Entry
    reason: str
    at: float
    was: Quarantined | None = None


class WorkEntry:
    """One entry of a work stream."""

    __slots__ = ("consumer", "deliveries", "entry_id", "partition", "payload")

    def __init__(self, entry_id: str, partition: int, payload: bytes) -> None:
        self.entry_id = entry_id
        self.partition = partition
        self.payload = payload
        self.consumer: str | None = None
        self.deliveries = 0


class WorkLog:
    """A stream shared by the consumers of one group."""

    __slots__ = ("entries", "topic", "unread")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.entries: dict[str, WorkEntry] = {}
        self.unread: deque[WorkEntry] = deque()


class Tables:
    """Everything of one store. `clear` empties it; the options stay."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.signals = Signals()
        self.options = StoreOptions()
        self._numbers = count(1)
        self.hint_logs: dict[str, HintLog] = {}
        self.clear()

    def clear(self) -> None:
        self.jobs: dict[JobId, JobRecord] = {}
        self.ends: deque[tuple[float, JobId]] = deque()
        """When ended jobs are forgotten; retention is one for all, so this is in order."""
        self.idempotency: dict[tuple[str, str], tuple[JobId, str, float]] = {}
        """Of client and key: the job, a fingerprint of the request, and until when that is known."""
        self.idempotency_ends: deque[tuple[float, tuple[str, str]]] = deque()
        """When keys are forgotten, if they still are to be then; in order, as all live equally long."""
        self.made: dict[JobId, float] = {}
        """Ids that make one job only, and until when that is known; oldest first."""
        self.counts: Counter[tuple[JobStatus, str | None]] = Counter()
        self.quarantined: dict[JobId, None] = {}
        """Oldest first."""
        self.mended: Counter[str] = Counter()
        self.groups: dict[str, Group] = {}
        self.entries: dict[str, Entry] = {}
        self.deferred: dict[str, Entry] = {}
        self.dead: dict[str, DeadEntry] = {}
        """Oldest first."""
        self.partitions = [Partition() for _ in range(self.options.partitions)]
        self.facts = WorkLog("facts")
        self.notifications = WorkLog("notifications")

    def number(self) -> int:
        """One that was not given out before: ids of entries, nonces, places on the board."""
        return next(self._numbers)

    def partition_of(self, job_id: JobId) -> int:
        return ids.partition_of(job_id, self.options.partitions)

    # --- jobs

    def job(self, job_id: JobId) -> JobRecord | None:
        record = self.jobs.get(job_id)
        if record is None or record.expires_at is None or record.expires_at > self.clock.now():
            return record
        return None

    def new_record(self, job: Job) -> JobRecord:
        """`job` as it is kept; not stored yet. Raises NotJson."""
        return JobRecord(job, codec.pack_data(job.data), str(self.number()))

    def add_job(
        self,
        job_id: JobId,
        record: JobRecord,
        created_at: float,
        *,
        deadline: float | None = None,
    ) -> None:
        """Store a new job with its first event."""
        self.jobs[job_id] = record
        self.count(record, 1)
        event = codec.pack(JobCreated(at=created_at))
        record.claim = self.append(record.group, job_id, event, lane="new")
        record.deadline = deadline
        if deadline is not None:
            self.set_timer("job", job_id, "", deadline)

    def remember(
        self, key: tuple[str, str], job_id: JobId, fingerprint: str, *, for_now: bool = False
    ) -> None:
        """Know what the key was used for, `for_now` until it is remembered anew."""
        if for_now:
            self.idempotency[key] = (job_id, fingerprint, math.inf)
            return
        until = self.remembered_until()
        self.idempotency[key] = (job_id, fingerprint, until)
        self.idempotency_ends.append((until, key))

    def remembered_until(self) -> float:
        return self.clock.now() + max(REMEMBERED_SECONDS, self.options.retention_seconds)

    def known_use(self, key: tuple[str, str]) -> tuple[JobId, str] | None:
        """The job and the fingerprint of the request that used this key."""
        now = self.clock.now()
        ends = self.idempotency_ends
        while ends and ends[0][0] <= now:
            ended = ends.popleft()[1]
            if ended in self.idempotency and self.idempotency[ended][2] <= now:
                del self.idempotency[ended]
        known = self.idempotency.get(key)
        return None if known is None else known[:2]

    def _keep_key(self, job_id: JobId, record: JobRecord, *, for_now: bool) -> None:
        if record.idempotency is not None:
            _, fingerprint, _ = self.idempotency[record.idempotency]
            self.remember(record.idempotency, job_id, fingerprint, for_now=for_now)

    def end_job(self, job_id: JobId, record: JobRecord) -> None:
        now = self.clock.now()
        if record.status is JobStatus.QUARANTINED:
            self.quarantined[job_id] = None
        if self.options.retention_seconds > 0:
            record.expires_at = now + self.options.retention_seconds
            self.ends.append((record.expires_at, job_id))
            self._keep_key(job_id, record, for_now=False)
        self.forget_ended(now)

    def reopen_job(
        self, job_id: JobId, record: JobRecord, status: JobStatus, deadline: float | None
    ) -> None:
        """What `end_job` did is undone."""
        self.set_status(record, status)
        record.expires_at = None
        self._keep_key(job_id, record, for_now=True)
        self.quarantined.pop(job_id, None)
        if deadline is not None:
            self.set_timer("job", job_id, "", deadline)

    def forget_ended(self, now: float) -> None:
        while self.ends and self.ends[0][0] <= now:
            job_id = self.ends.popleft()[1]
            record = self.jobs.get(job_id)
            if record is not None and record.expires_at is not None and record.expires_at <= now:
                del self.jobs[job_id]
                self.quarantined.pop(job_id, None)

    def count(self, record: JobRecord, by: int) -> None:
        self.counts[record.status, None] += by
        if record.owner is not None:
            self.counts[record.status, record.owner] += by

    def set_status(self, record: JobRecord, status: JobStatus) -> None:
        self.count(record, -1)
        record.status = status
        self.count(record, 1)

    def mark_cancelled(self, job_id: JobId, record: JobRecord, event: bytes) -> None:
        """From now on the running handler's outcome is refused; `event` is the new claim."""
        if not record.cancelled:
            self.mark(job_id, record, event)

    def mark(self, job_id: JobId, record: JobRecord, event: bytes) -> None:
        """As `mark_cancelled`, whether it is marked or not."""
        if record.status in TERMINAL:
            return
        record.cancelled = True
        record.run += 1
        record.renew_fence(str(self.number()))
        record.claim = self.append(record.group, job_id, event)

    # --- inbox

    def group(self, name: str) -> Group:
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group()
        return group

    def append(
        self,
        group: str,
        job_id: JobId,
        event: bytes,
        *,
        lane: LaneName = "in",
        is_branch: bool = False,
    ) -> str:
        """Returns the entry's id."""
        entry = Entry(str(self.number()), lane, group, job_id, event, is_branch)
        self.enqueue(entry)
        return entry.entry_id

    def enqueue(self, entry: Entry) -> None:
        self.entries[entry.entry_id] = entry
        self.group(entry.group).lanes[entry.lane].append(entry)
        self.signals.notify(f"inbox {entry.group}")

    def requeue(self, entry: Entry) -> None:
        """Back into its lane, for whoever reads then; a claim follows it."""
        record = self.job(entry.job_id)
        was_claim = record is not None and record.claim == entry.entry_id
        entry.entry_id = str(self.number())
        entry.consumer = None
        if record is not None and was_claim:
            record.claim = entry.entry_id
        self.enqueue(entry)

    def append_event(self, job_id: JobId, event: InboxEvent, *, is_branch: bool = False) -> None:
        """An event for a job that has started; none for one that is forgotten."""
        record = self.job(job_id)
        if record is not None:
            self.append(record.group, job_id, codec.pack(event), is_branch=is_branch)

    def pending_entry(self, entry_id: str, consumer: str) -> Entry | None:
        entry = self.entries.get(entry_id)
        return entry if entry is not None and entry.consumer == consumer else None

    def answer(self, entry: Entry) -> None:
        del self.entries[entry.entry_id]
        assert entry.consumer is not None, "only what was read is answered"
        del self.groups[entry.group].consumers[entry.consumer][entry.entry_id]

    def set_aside(self, entry: Entry, reason: str, was: Quarantined | None = None) -> None:
        self.answer(entry)
        dead_id = str(self.number())
        self.dead[dead_id] = DeadEntry(dead_id, entry, reason, self.clock.now(), was)
        if len(self.dead) > DEAD_EVENTS_KEPT:
            del self.dead[next(iter(self.dead))]

    # --- work streams

    def add_work(self, log: WorkLog, job_id: JobId, payload: bytes) -> None:
        entry = WorkEntry(str(self.number()), self.partition_of(job_id), payload)
        log.entries[entry.entry_id] = entry
        log.unread.append(entry)
        self.signals.notify(log.topic)

    # --- timers and hints

    def set_timer(self, kind: Kind, job_id: JobId, token: str, due: float) -> None:
        partition = self.partition_of(job_id)
        if self.partitions[partition].timetable.set((kind, job_id, token), due):
            self.hint(f"p{partition}", Hint(kind="timer", value=repr(due)))

    def clear_timer(self, kind: Kind, job_id: JobId, token: str) -> bool:
        timer: Timer = (kind, job_id, token)
        return self.partitions[self.partition_of(job_id)].timetable.clear(timer)

    def has_timer(self, kind: Kind, job_id: JobId, token: str) -> bool:
        return (kind, job_id, token) in self.partitions[self.partition_of(job_id)].timetable

    def deadline(self, job_id: JobId) -> float | None:
        """When the job's own time is over."""
        return self.partitions[self.partition_of(job_id)].timetable.due(("job", job_id, ""))

    def hint_log(self, source: str) -> HintLog:
        log = self.hint_logs.get(source)
        if log is None:
            log = self.hint_logs[source] = HintLog()
        return log

    def hint(self, source: str, hint: Hint) -> None:
        log = self.hint_log(source)
        log.last += 1
        log.kept.append(hint)
        self.signals.notify(f"hints {source}")

    # --- tasks

    def task(self, job_id: JobId, task_id: TaskId) -> Task | None:
        """The open task of this job."""
        task = self.partitions[self.partition_of(job_id)].tasks.get(task_id)
        return task if task is not None and task.job_id == job_id else None

    def offer_task(self, record: JobRecord, task: Task) -> None:
        """A new task, on the board, at the end of its priority."""
        partition = self.partitions[self.partition_of(task.job_id)]
        task.place = (-task.priority, self.number(), task.task_id)
        partition.tasks[task.task_id] = task
        record.tasks.add(task.task_id)
        self._put_on_board(partition, task)

    def _put_on_board(self, partition: Partition, task: Task) -> None:
        insort(partition.board.setdefault(task.shape, []), task.place)
        if task.dispatch_deadline is not None:
            self.set_timer("dispatch", task.job_id, task.task_id, task.dispatch_deadline)
        source = f"p{self.partition_of(task.job_id)}"
        self.hint(source, Hint(kind="task", value=task.type, task=waiting_task(task)))

    def leave_board(self, partition: Partition, task: Task) -> None:
        queue = partition.board[task.shape]
        del queue[bisect_left(queue, task.place)]
        if not queue:
            del partition.board[task.shape]
        self.clear_timer("dispatch", task.job_id, task.task_id)

    def _leave_holder(self, partition: Partition, task: Task, worker_id: WorkerId) -> None:
        held = partition.held[worker_id]
        del held[task.task_id]
        if not held:
            del partition.held[worker_id]
        self.clear_timer("delivery", task.job_id, task.task_id)
        self.clear_timer("result", task.job_id, task.task_id)

    def send_out(
        self,
        job_id: JobId,
        change: HoldChange,
        worker_id: WorkerId,
        task_id: TaskId,
        offer: int | None,
    ) -> None:
        number = self.partition_of(job_id)
        self.partitions[number].out.append((change, worker_id, task_id, offer, job_id))
        self.signals.notify(f"out {number}")

    def take_back(self, task: Task) -> None:
        """Out of its holder's hands and back to the place it had, as the next offer; uncounted."""
        partition = self.partitions[self.partition_of(task.job_id)]
        worker_id = task.worker_id
        assert worker_id is not None, "only a leased task is taken back"
        self._leave_holder(partition, task, worker_id)
        self.send_out(task.job_id, "end_hold", worker_id, task.task_id, task.offer_number)
        task.worker_id = None
        task.missed_by = None
        task.offer_number += 1
        self._put_on_board(partition, task)

    def close_task(self, task: Task, why: str, *, by: WorkerId | None = None, stop: bool) -> None:
        """The task's gate closes, once and for good. `stop`: its holder is told to stop it."""
        partition = self.partitions[self.partition_of(task.job_id)]
        if task.worker_id is None:
            self.leave_board(partition, task)
        else:
            self._leave_holder(partition, task, task.worker_id)
            change: HoldChange = "stop" if stop else "end_hold"
            self.send_out(task.job_id, change, task.worker_id, task.task_id, None)
        del partition.tasks[task.task_id]
        record = self.job(task.job_id)
        if record is not None:
            record.tasks.discard(task.task_id)
            record.closed[task.task_id] = (why, by)
