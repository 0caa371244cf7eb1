"""The ports: what the services ask of a backend, in the domain's words.

`memory` and `redis` implement them and are held to one suite in `tests/contract`. Every method is one
atomic operation and may be sent twice. Times are Unix seconds; whether something is due, expired or
alive is judged by the backend's own clock. A `partition` is a number from 0; one job's keys live in one.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

import msgspec

from avtomatika_common.clock import Clock
from avtomatika_core.commands import NextAttempt, Step
from avtomatika_core.consistency import Around, Mend
from avtomatika_core.errors import AvtomatikaError
from avtomatika_core.events import (
    CancelRequested,
    InboxEvent,
    SignalReceived,
    TaskEvent,
    WorkerEventArrived,
)
from avtomatika_core.job import (
    Branch,
    BranchResult,
    Head,
    Job,
    JobId,
    JobStatus,
    Origin,
    TaskId,
    WorkerId,
)
from avtomatika_core.redrive import Redriven
from avtomatika_core.schedule import Schedule, Standing


class _Value(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


# --- errors ---------------------------------------------------------------------------------------


class StoreUnavailable(AvtomatikaError):
    """The backend did not answer in time; the operation may or may not have happened: repeat it."""


class StoreFull(StoreUnavailable):
    """The backend refuses new work to keep room for the work it has."""


class StaleJob(AvtomatikaError):
    """Somebody else changed the job first. Load it again and decide again."""


class LostClaim(AvtomatikaError):
    """The entry is no longer pending for this consumer: another one answers it. Nothing was written."""


def too_many_new_jobs(group: str) -> str:
    return f"too many new jobs of executor group {group!r} wait"


class JobNotFound(AvtomatikaError):
    """No such job, or its retention is over."""


class UnreadableJob(AvtomatikaError):
    """The job's document cannot be decoded: a newer version wrote it, perhaps."""

    def __init__(self, salvaged: "Stored", reason: str) -> None:
        super().__init__(f"The job's document could not be read: {reason.rstrip('.')}.")
        self.salvaged = salvaged
        """What can be read of it, and something plain for the rest."""


class JobIsTerminal(AvtomatikaError):
    """The job has ended already."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the job is already {status}")
        self.status = status


class ApprovalNotOpen(AvtomatikaError):
    """The job does not wait for this approval, or it was decided by somebody else first."""


class TooManySignals(AvtomatikaError):
    """So many signals of the job wait to be taken that it gets no more for now."""


class IdempotencyKeyReused(AvtomatikaError):
    """The key was used for another request."""


class LostLease(AvtomatikaError):
    """The lease went to another holder: stop what it protects."""


# --- jobs -----------------------------------------------------------------------------------------


class IdempotencyKey(_Value, frozen=True, kw_only=True):
    client: str
    key: str
    fingerprint: str
    """Digest of endpoint and body: the same key with another one is refused."""


class Created(_Value, frozen=True, kw_only=True):
    job_id: JobId
    is_repeat: bool
    """The job existed already: this id or idempotency key was used before."""


class Stored(_Value, frozen=True, kw_only=True):
    """A job as it was read or written, and what a later commit must find unchanged."""

    job: Job
    fence: str
    packed_data: bytes
    """`job.data` as it is stored (`codec.pack_data`)."""
    claim: str | None
    """Id of the inbox entry that carries a running job."""
    next_nonce: str
    """Part of the fence the commit of this value writes: drawn once, so that a repeat is the same."""
    tries: int = 0
    """Deliveries since the last commit."""
    is_salvaged: bool = False
    """Something plain stands for what could not be read: a commit replaces the whole document."""


class Delivery(_Value, frozen=True, kw_only=True):
    """One inbox entry, pending for the consumer that read it until it is answered."""

    job_id: JobId
    event: InboxEvent | None
    """None: the entry could not be decoded."""
    entry_id: str
    lane: Literal["in", "new"]
    group: str
    consumer: str
    partition: int
    is_branch: bool = False
    """The event belongs to a branch of a fan-out, not to the job's own wait."""
    tries: int = 0
    """Of a branch's event: how often it could not be handled. Of others the job knows."""


PROGRESS_KEPT: Final = 100
"""Entries per job, the newest."""


class Progress(_Value, frozen=True, kw_only=True):
    progress: float
    message: str
    at: float
    task_id: TaskId


class OpenTask(_Value, frozen=True, kw_only=True):
    """The task a job waits for, as the board knows it."""

    task_id: TaskId
    worker_id: WorkerId | None
    picked_up_at: float | None
    result_deadline: float | None
    waiting_reason: str | None


class JobView(_Value, frozen=True, kw_only=True):
    """Everything a reader may see of a job; `documents.job_document` makes the public form of it."""

    job: Job
    task: OpenTask | None
    branches: Sequence[TaskId]
    """Open branches, by their current task id, in the order the handler gave."""
    results: Mapping[TaskId, BranchResult]
    progress: Sequence[Progress]


class JobStore(Protocol):
    async def create(
        self, job: Job, *, idempotency: IdempotencyKey | None = None, once: bool = False
    ) -> Created:
        """Store a new job with its `JobCreated` event and `job_created` fact.

        `once`: its id says what it is for, and is remembered for a week or the retention, whichever
        is longer, so that there is no second one when the first is forgotten.
        Where it has a `timeout_seconds`, a timer that marks it as a cancel does and appends
        `JobTimedOut`. Raises IdempotencyKeyReused, StoreFull.
        """
        ...

    async def load(self, job_id: JobId) -> Stored | None:
        """Raises UnreadableJob."""
        ...

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
        """Write the step and all its commands, all or nothing.

        While the job is running `delivery` stays pending as its claim (with `requeue` a new entry
        becomes the claim and `delivery` is answered); else `delivery` is answered. So it is, and the
        claim stays with its entry, where the event came beside what the job does (`is_beside`).
        `packed_data` is `step.job.data` as bytes, from a caller that has them. `set_aside`: the reason
        why `delivery` becomes a dead event, with the job as it was before. Raises StaleJob, LostClaim,
        and then nothing was written. After StoreUnavailable the same call may be repeated
        with the same arguments: it is applied once.
        """
        ...

    async def branch_results(self, job_id: JobId) -> dict[TaskId, BranchResult]:
        """Results of the job's last fan-out, in the order the handler gave the tasks."""
        ...

    async def branch(self, job_id: JobId, task_id: TaskId) -> Branch | None:
        """The open branch whose current task this is."""
        ...

    async def origin(self, job_id: JobId) -> tuple[Origin, int] | None:
        """How the job came to be, and how often it was changed since; without the rest of it."""
        ...

    async def settle_branch(
        self,
        delivery: Delivery,
        task_id: TaskId,
        outcome: BranchResult | NextAttempt,
        *,
        token: str,
        fact: bytes | None = None,
    ) -> None:
        """Write the end or next attempt of the branch that is open as `task_id`; answer `delivery`.

        `token` is the fan-out's (`Branch.token`); the last end appends `BranchesDone` with it. A
        next attempt without an offer waits for its timer (`TimerFired` with the new task id as
        token). `fact`: for the archive, packed (`records.pack_branch_fact`). A branch that is not
        open (any more) as this task: `delivery` is answered, nothing else. Raises LostClaim.
        """
        ...

    async def view(self, job_id: JobId) -> JobView | None: ...

    async def is_wanted(self, job_id: JobId, run: int) -> bool:
        """Whether this handler run still counts (no cancel, no later run)."""
        ...

    async def request_cancel(
        self, job_id: JobId, event: CancelRequested
    ) -> Sequence[tuple[WorkerId, TaskId]]:
        """Set the cancel mark, stop the running handler's claim and append the event.

        From now on no task of the job is handed out. Returns which tasks of it are with which
        worker now, 512 at most. Repeating it changes nothing. Raises JobNotFound, JobIsTerminal.
        """
        ...

    async def decide_approval(self, job_id: JobId, *, token: str, decision: str, at: float) -> None:
        """Close the open approval with this wait token and append `ApprovalDecided`.

        Raises JobNotFound, ApprovalNotOpen.
        """
        ...

    async def send_signal(
        self,
        job_id: JobId,
        signal: SignalReceived,
        *,
        idempotency: IdempotencyKey | None = None,
    ) -> None:
        """Append the signal, numbered behind the job's earlier ones.

        A key that was used before for the same request: nothing more is sent. Raises JobNotFound,
        JobIsTerminal, IdempotencyKeyReused, and TooManySignals while `MOST_WAITING` of the job are
        on their way or kept.
        """
        ...

    async def not_ended(self, job_ids: Collection[JobId]) -> set[JobId]:
        """Those of these jobs that have not ended."""
        ...

    async def redrive(self, stored: Stored, redriven: Redriven) -> None:
        """Let a job that has ended run again; a new entry of its inbox carries it.

        What its end took it has back: it is listed as live and no longer as quarantined, is counted
        by its new status, and nothing of it is forgotten before it ends again. Repeating the call
        with the same arguments changes nothing. Raises JobNotFound, StaleJob, StoreFull.
        """
        ...

    async def quarantined(self, owner: str | None = None) -> list[JobId]:
        """Newest first; of one client, or of all (None)."""
        ...

    async def forget_quarantined(self, job_id: JobId) -> bool:
        """Take the id off the list; the job stays. False: it was not on it."""
        ...

    async def count_by_status(self, owner: str | None = None) -> dict[JobStatus, int]:
        """Jobs of one client, or of all (None). Terminal statuses count every job that ended so."""
        ...


# --- inbox ----------------------------------------------------------------------------------------


class DropAnswer(StrEnum):
    DROPPED = "dropped"
    LOST = "lost"
    """Not pending for this consumer."""
    CARRIES = "carries"
    """The entry is the claim of a running job: its handler is to be run."""


class Consumer(_Value, frozen=True, kw_only=True):
    name: str
    pending: int
    is_alive: bool


class Inbox(Protocol):
    async def read(self, group: str, consumer: str, room: int) -> list[Delivery]:
        """Up to `room` new entries (one more at most), started jobs' events before new jobs.

        Waits until there is one, at most the backend's block time; then an empty list.
        """
        ...

    async def pending(self, group: str, consumer: str) -> list[Delivery]:
        """All this consumer has read and not answered, oldest first."""
        ...

    async def drop(self, delivery: Delivery) -> DropAnswer:
        """Answer an entry that changes nothing, unless it carries a running job."""
        ...

    async def consumers(self, group: str) -> list[Consumer]: ...

    async def take_over(self, group: str, dead: str, consumer: str, room: int) -> list[Delivery]:
        """Make up to `room` pending entries of a consumer that is not alive mine.

        `tries` + 1 of its job for each, but for branches' events and signals that carry no run.

        An empty list also when `dead` is alive after all.
        """
        ...

    async def remove_consumer(self, group: str, dead: str) -> bool:
        """Forget a consumer that is dead and has nothing pending. False: it is not so."""
        ...

    async def forward(self, delivery: Delivery, group: str) -> None:
        """Hand the entry to another executor group; a claim follows it. Raises LostClaim."""
        ...

    async def defer(self, delivery: Delivery, seconds: float, *, failed: bool = False) -> None:
        """Deliver the entry again later, to whoever reads then; a claim follows it.

        `failed`: it could not be handled, which counts as one of its tries. Raises LostClaim.
        """
        ...

    async def set_aside(self, delivery: Delivery, reason: str) -> None:
        """Move an entry that cannot be handled to the dead events. Raises LostClaim."""
        ...

    async def length(self) -> int:
        """Entries not yet answered, over all groups and partitions."""
        ...


DEAD_EVENTS_KEPT: Final = 1000
"""Per partition, the newest."""


class DeadEvent(_Value, frozen=True, kw_only=True):
    """An inbox entry that could not be handled."""

    dead_id: str
    job_id: JobId
    """Empty: the entry named none."""
    reason: str
    at: float
    event: Mapping[str, Any] | None
    """None: it cannot be decoded."""


class DeadEvents(Protocol):
    async def newest(self, limit: int) -> list[DeadEvent]: ...

    async def replay(self, dead_id: str) -> bool:
        """Put the entry back into its lane; False: there is no such dead event.

        A job that was quarantined with it, and that nothing has changed since, is as it was before;
        but not while it waited for branches, which were closed then.
        """
        ...

    async def delete(self, dead_id: str) -> bool:
        """Forget it; False: there is no such dead event."""
        ...


# --- tasks ----------------------------------------------------------------------------------------


class WaitingTask(_Value, frozen=True, kw_only=True):
    """A task on the board, as the dispatcher sees it."""

    task_id: TaskId
    job_id: JobId
    type: str
    resource_requirements: Mapping[str, Any] | None
    max_cost: float | None
    strategy: str
    priority: float
    offer_number: int
    """Counts up each time the task comes back to the board."""
    place: int = 0
    """Of two tasks of one priority the one with the lower number is first."""
    has_more: bool = False
    """Further tasks of its shape wait behind those that were listed with it."""


class LeasedTask(_Value, frozen=True, kw_only=True):
    """What the worker is handed: the payload's parts."""

    task_id: TaskId
    job_id: JobId
    type: str
    params: Mapping[str, Any]
    tracing_context: Mapping[str, str]
    params_metadata: Mapping[str, Any] | None
    attempt: int = 1
    offer_number: int = 1
    """Of the offer that was leased."""
    leased_at: float | None = None
    deadline: float | None = None
    """When its result timeout is over."""
    checkpoint: Mapping[str, Any] | None = None
    """The last one any attempt of the task has left."""


class ResultAnswer(StrEnum):
    """How a worker's word on a task was judged; all but APPLIED change nothing."""

    APPLIED = "ok"
    """Or an exact repeat of a result that was."""
    JOB_NOT_FOUND = "job_not_found"
    STALE_TASK = "stale_task"
    WORKER_MISMATCH = "worker_mismatch"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    JOB_CANCELLED = "job_cancelled"
    JOB_TERMINATED = "job_already_terminated"


EVENTS_KNOWN: Final = 1000
"""Events per job whose repeat is known, the newest."""


class EventReport(_Value, frozen=True, kw_only=True):
    answer: ResultAnswer
    is_repeat: bool = False
    """It was APPLIED before."""


class TaskBoard(Protocol):
    async def heads(self, partition: int, per_shape: int) -> list[WaitingTask]:
        """The first tasks of each shape (type, requirements, cost limit, strategy), best first."""
        ...

    async def has_waiting(self) -> bool:
        """Whether any task is on the board, of whatever shape."""
        ...

    async def explain(self, task: WaitingTask, reason: str | None) -> None:
        """Note why a waiting task waits (`waiting_reason`); only informs."""
        ...

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
        """Take the task off the board for this worker; None: it is not there any more.

        `until`: of the promise; later it is None too, for the worker's place may be another's.

        Until `confirm` it has the delivery timeout (5 s), then it goes back to its place.
        """
        ...

    async def confirm(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        """The answer was written to the worker's socket: the result deadline runs from the lease.

        `offer_number`: of the lease this is about; a later one is left alone.
        """
        ...

    async def report_held(
        self, worker_id: WorkerId, task_ids: Sequence[TaskId], *, began_at: float, report: str
    ) -> int:
        """The worker says, in a report that began then, that it has these tasks and no others.

        Those it names are confirmed. One that was handed out before and that two such reports in
        a row do not name never reached it: back to its place on the board, no attempt counted.
        `report` names this report, so that a repeat of it is not a second one. How many went back.
        """
        ...

    async def undeliver(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        """The answer could not be written: back to the same place of the board, no attempt counted.

        `offer_number`: as for `confirm`.
        """
        ...

    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        """Judge a result; where it counts, close the task and append `event`, in one operation.

        An event of a failure is given the task's last checkpoint.
        """
        ...

    async def record_progress(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        progress: Progress,
        checkpoint: Mapping[str, Any] | None,
    ) -> ResultAnswer:
        """Judge it as a result; where it counts, readers see it (the last 100 are kept).

        The heartbeat timeout of the task, if it has one, runs anew.

        `checkpoint` takes the place of the task's last one; None: that stays. After the task's
        result it is stale.
        """
        ...

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
        """Judge an event as a result; where it counts, append `event` and write the notification.

        The worker's last 1,000 event ids of a job are known: an event that counted counts once, and
        a repeat is told apart, also after the task has ended.
        """
        ...

    async def holder(self, job_id: JobId, task_id: TaskId) -> WorkerId | None:
        """Who has this open task of the job now."""
        ...

    async def return_leases(
        self, partition: int, worker_id: WorkerId, incarnation: int, *, lost: bool
    ) -> int:
        """End the leases of a worker's registrations up to `incarnation`; how many.

        Lost: each counts as a failed attempt (`TaskFailed`, "Worker '<id>' was lost.").
        Otherwise (the worker left) they are offered again under the same task id.
        """
        ...

    async def length(self) -> int:
        """Tasks on the board, over all partitions."""
        ...

    async def waiting(self, job_id: JobId, limit: int) -> list[WaitingTask]:
        """Up to `limit` tasks of the job that are on the board, in the order they are handed out."""
        ...

    async def type_of(self, task_id: TaskId, job_id: JobId) -> str | None:
        """Of a task that is on the board or with a worker; None: it is not open."""
        ...


# --- workers --------------------------------------------------------------------------------------


class Places(_Value, frozen=True, kw_only=True):
    """What a worker could take at one moment."""

    incarnation: int
    """Number of its registration: leases of an earlier one are not its own."""
    room: int
    """Tasks its open polls may bring."""
    held: int
    """Tasks it holds or has been promised."""
    stamp: int
    """Counts up with every change of these: of two the higher is the later."""


class Worker(_Value, frozen=True, kw_only=True):
    """A live worker, as it last described itself, and what it holds now."""

    worker_id: WorkerId
    document: Mapping[str, Any]
    places: Places
    turns: Mapping[str, float]
    """Task type -> when it last got one (`round_robin`); Unix seconds."""


class Registered(_Value, frozen=True, kw_only=True):
    incarnation: int
    replaced: Mapping[str, Any] | None
    """The document of the live registration this one took over."""


class MatchAnswer(StrEnum):
    MATCHED = "matched"
    GONE = "gone"
    NO_CREDIT = "no_credit"
    FULL = "full"


class Matched(_Value, frozen=True, kw_only=True):
    """What became of a list of matches."""

    answers: Sequence[MatchAnswer]
    places: Mapping[WorkerId, Places]
    """Of the workers concerned, as they are now; a worker that is gone is missing."""


class Beat(_Value, frozen=True, kw_only=True):
    """What a worker's sign of life is answered with."""

    document: Mapping[str, Any]
    cancel_task_ids: Sequence[TaskId]
    """Tasks it should stop."""
    held: int
    """Tasks it holds or has been promised."""


class WorkerDirectory(Protocol):
    async def register(
        self, worker_id: WorkerId, document: Mapping[str, Any], ttl_seconds: float
    ) -> Registered:
        """A new incarnation; tasks and polls of an earlier one are given up as lost."""
        ...

    async def beat(
        self, worker_id: WorkerId, changes: Mapping[str, Any] | None, ttl_seconds: float
    ) -> Beat | None:
        """Renew the registration, merge `changes` shallowly.

        None: unknown worker, or one whose registration has ended (`expire`); nothing is created.
        Until then a late one counts as any other. `current_tasks` in `changes` takes what
        it does not name off the list of tasks to stop.
        """
        ...

    async def leave(self, worker_id: WorkerId) -> bool: ...

    async def get(self, worker_id: WorkerId) -> Worker | None: ...

    async def get_all(self, worker_ids: Collection[WorkerId]) -> list[Worker]:
        """Those of them that are live."""
        ...

    async def live(self) -> list[Worker]: ...

    async def count(self) -> int: ...

    async def announce_credit(
        self,
        worker_id: WorkerId,
        poll_id: str,
        gateway: str,
        until: float,
        ttl_seconds: float,
        *,
        room: int = 1,
    ) -> int | None:
        """A poll is open at `gateway`: the worker may be given up to `room` tasks, all at once.

        Renews the registration, as `beat` does. Returns the worker's incarnation; None: unknown
        worker, or one whose registration has ended.
        """
        ...

    async def withdraw_credit(self, worker_id: WorkerId, poll_id: str) -> None: ...

    async def match(self, matches: Sequence[tuple[WorkerId, WaitingTask]]) -> Matched:
        """Promise each task to its worker, in order, 512 at most, and tell the gateways.

        Each takes a free place. The first of a worker takes its latest credit, which is used up by
        this call, and as many as that credit has room for travel together; further ones take
        further credits.
        """
        ...

    async def end_hold(
        self,
        worker_id: WorkerId,
        task_id: TaskId,
        *,
        stop: bool = False,
        offer_number: int | None = None,
        can_be_matched: bool = False,
    ) -> None:
        """Free the worker's place; with `stop` it is told to stop the task.

        `offer_number`: of the promise this is about; a newer one of the same task is left alone.
        `can_be_matched`: the promise was not kept for the worker's sake, the task can be matched
        anew at once; who matches is told by a hint.
        """
        ...

    async def stop_task(self, worker_id: WorkerId, task_id: TaskId, job_id: JobId) -> bool:
        """Tell the worker to stop a task it holds, with its next heartbeat and at once by its socket.

        True: a command went to a live socket. Repeating it changes nothing.
        """
        ...

    async def to_stop(self, worker_id: WorkerId) -> Sequence[TaskId]:
        """Tasks it should stop, as `beat` tells them."""
        ...

    async def claim_socket(self, worker_id: WorkerId, gateway: str, connection: str) -> None:
        """This connection is now the worker's socket; the gateway of an earlier one is told."""
        ...

    async def renew_sockets(
        self, gateway: str, sockets: Sequence[tuple[WorkerId, str]]
    ) -> list[tuple[WorkerId, str]]:
        """Keep these sockets of `gateway` for another minute; those that are another's by now."""
        ...

    async def release_socket(self, worker_id: WorkerId, connection: str) -> None:
        """This connection has ended; a newer one is left alone."""
        ...

    async def expire(self) -> int:
        """End registrations whose time is over; their tasks are given up as lost. How many."""
        ...

    async def next_expiry(self) -> float | None: ...


class Promise(_Value, frozen=True, kw_only=True):
    task_id: TaskId
    job_id: JobId
    offer_number: int


PROMISE_SECONDS: Final = 5.0
"""How long a worker's place is kept for a task that was promised to it.

So long a task waits that was promised through a gateway that has died since.
"""


class Match(_Value, frozen=True, kw_only=True):
    """This poll may lease these tasks, and is used up."""

    poll_id: str
    worker_id: WorkerId
    incarnation: int
    until: float
    """So long the promises hold."""
    promises: Sequence[Promise]


class StopTask(_Value, frozen=True, kw_only=True):
    """Send the worker's socket the command to stop this task."""

    worker_id: WorkerId
    connection: str
    task_id: TaskId
    job_id: JobId


class CloseSocket(_Value, frozen=True, kw_only=True):
    """This connection is the worker's socket no more."""

    worker_id: WorkerId
    connection: str


Mail = Match | StopTask | CloseSocket


class Mailbox(Protocol):
    async def read(self, gateway: str, after: str) -> tuple[str, list[Mail]]:
        """Mail behind position `after` ("0" = all), and the new position. Waits as `Inbox.read` does."""
        ...


class Hint(_Value, frozen=True, kw_only=True):
    kind: Literal["task", "timer", "worker", "unmatched"]
    value: str
    """Task: its type. Timer: due time. Worker: its id. Unmatched (a promise was not kept, the task
    can be matched again): `<offer number>:<task id>`."""
    places: Places | None = None
    """Of a worker of which nothing else has changed but `turns`; None: read it."""
    turns: Mapping[str, float] = {}
    """Task type -> when it got one just now."""
    task: WaitingTask | None = None
    """The task that came to the board; None: read the board."""


class Hints(Protocol):
    """Numbered wake-ups. They are not the truth: after a gap, read that again."""

    async def position(self, source: str) -> str:
        """Where new hints of `source` (`p<n>` for a partition, `w` for the workers) will begin."""
        ...

    async def wait(
        self, source: str, after: str, timeout_seconds: float
    ) -> tuple[str, list[Hint], bool]:
        """Hints behind `after`, the new position, and whether some in between were lost."""
        ...


# --- time and leadership --------------------------------------------------------------------------


class Lease(_Value, frozen=True, kw_only=True):
    """The right to be the only one doing `name`; `token` counts up with each holder."""

    name: str
    holder: str
    token: int


class Leases(Protocol):
    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        """None: somebody else holds it."""
        ...

    async def renew(self, lease: Lease, seconds: float) -> None:
        """Raises LostLease."""
        ...

    async def release(self, lease: Lease) -> None: ...


class Timers(Protocol):
    async def next_due(self, partition: int) -> float | None: ...

    async def fire(self, partition: int, lease: Lease, limit: int = 512) -> int:
        """Turn due timers into events of their jobs; how many. Raises LostLease.

        A task's dispatch, result or heartbeat deadline closes the task and becomes `TaskTimedOut`; a
        delivery that was never confirmed goes back to the board; a deferred entry goes back to its
        lane; a job's own deadline marks the job and becomes `JobTimedOut`.
        """
        ...


class LiveJob(_Value, frozen=True, kw_only=True):
    """A job that is listed as live."""

    job_id: JobId
    group: str
    fence: str
    head: Head | None
    """None: there is no such job."""
    cancelled: bool


BRANCHES_LOOKED_AT: Final = 16
"""Of a fan-out, about so many together with its job."""


class LookAt(_Value, frozen=True, kw_only=True):
    """A job to look at."""

    job: LiveJob
    since: float | None = None
    """When something was found missing; None: nothing was."""
    is_awaited: bool = True
    """An event of it may have been in its lane then."""
    cursor: str = "0"
    """Where to go on among its open branches."""
    branches: int = BRANCHES_LOOKED_AT
    """About how many of them to look at."""


class Seen(_Value, frozen=True, kw_only=True):
    """What was seen beside a job."""

    around: Around
    mark: str
    """Changes with everything that happens to the job. Empty: there is no such job."""
    is_current: bool
    """The job is as it was when its head was read."""
    may_have_event: bool
    """An event of the job that was there at `since` may not be answered yet."""
    at: float
    next_branches: str = "0"
    """Where to go on among its open branches; "0": all were seen."""


OrphanKind = Literal["timer", "deferred", "quarantine", "entry", "lease", "hold"]


class Orphan(_Value, frozen=True, kw_only=True):
    """Something beside the jobs that belongs to none: a timer, a place of a worker …"""

    kind: OrphanKind
    name: str
    worker_id: WorkerId | None = None
    """Whose place it is."""
    mark: str = ""
    """Of two looks at the same one it is the same."""


LOOKS_AT_ONCE: Final = 512
"""Jobs and branches together."""


class Inspection(Protocol):
    """What stands beside the live jobs, for who mends what is missing. Nothing of it is urgent."""

    async def live(self, partition: int, cursor: str, limit: int) -> tuple[str, Sequence[LiveJob]]:
        """About `limit` live jobs from `cursor` on ("0": the first), and the next one ("0": all seen).

        A job whose head cannot be decoded is left out.
        """
        ...

    async def awaited(
        self, partition: int, group: str, until: float, cursor: str, limit: int
    ) -> tuple[str, Collection[JobId]]:
        """Jobs with an event in the lane of started jobs that came until then, with a cursor as for `live`.

        Also those that run by such an event.
        """
        ...

    async def around(self, partition: int, looks: Sequence[LookAt]) -> list[Seen]:
        """What stands beside these jobs now: in one moment, `LOOKS_AT_ONCE` at most."""
        ...

    async def mend(self, partition: int, job_id: JobId, mark: str, mend: Mend) -> bool:
        """Carry it out, if the job's mark is still this one."""
        ...

    async def orphans(
        self, partition: int, cursor: str, limit: int
    ) -> tuple[str, Sequence[Orphan]]:
        """Timers, deferred entries and the quarantine list, with a cursor as for `live`."""
        ...

    async def lost_entries(
        self, partition: int, group: str, cursor: str, limit: int
    ) -> tuple[str, Sequence[Orphan]]:
        """Entries in the lanes of a group that were delivered and are nobody's, with a cursor as for `live`."""
        ...

    async def workers(self, cursor: str, limit: int) -> tuple[str, Sequence[WorkerId]]:
        """Those that are registered, with a cursor as for `live`."""
        ...

    async def orphan_places(
        self, worker_id: WorkerId, cursor: str, limit: int, since: float
    ) -> tuple[str, Sequence[Orphan]]:
        """Places a worker holds for tasks it does not have, with a cursor as for `live`.

        None while a change of `since` or before is on its way to the workers' directory. And its
        leases of tasks that are no more.
        """
        ...

    async def remove(self, partition: int, orphan: Orphan) -> bool:
        """Remove it, if it is still one; an entry is delivered instead. A hold is of no partition."""
        ...

    async def count_mended(self, kind: str) -> None:
        """One more of this kind was mended or removed."""
        ...

    async def mended(self) -> Mapping[str, int]:
        """How many were, by their kind, for as long as there are data."""
        ...


class Relay(Protocol):
    """Carries what one partition decided to where it takes effect."""

    async def run_once(self, partition: int) -> int:
        """Apply and acknowledge what waits in the partition, in order; how much. Waits as `Inbox.read`."""
        ...

    async def return_lost(self) -> int:
        """Return the leases of workers that expired, left or registered again; how many workers."""
        ...


FORGOTTEN_AFTER_SECONDS: Final = 7 * 86_400.0
"""How long it is known where a schedule stood that no file names any more."""


class ScheduleEntry(_Value, frozen=True, kw_only=True):
    """A schedule as its leader published it, where it stands, and what people want of it."""

    schedule: Schedule
    standing: Standing = Standing()
    is_paused: bool = False
    resumed_at: float | None = None
    """When the last pause ended."""
    asked_at: float | None = None
    """When somebody last made a job of it out of its time."""
    asked_job_id: JobId | None = None

    @property
    def last_run(self) -> tuple[float | None, JobId | None]:
        """When it last ran, in its time or out of it, and the job of it."""
        standing, asked_at = self.standing, self.asked_at
        if asked_at is not None and (standing.last_run is None or standing.last_run < asked_at):
            return asked_at, self.asked_job_id
        return standing.last_run, standing.last_job_id


class Schedules(Protocol):
    """The schedules of the one who leads; anybody may read, pause and run them."""

    async def publish(self, lease: Lease, schedules: Sequence[Schedule]) -> None:
        """These and no others are there now. Raises LostLease."""
        ...

    async def entries(self) -> tuple[str, list[ScheduleEntry]]:
        """All of them, by name, and the version of what people want of them."""
        ...

    async def get(self, name: str) -> ScheduleEntry | None: ...

    async def changed(self, version: str) -> None:
        """Returns when people want something else, or after the backend's block time."""
        ...

    async def begin_slot(self, name: str, lease: Lease, standing: Standing) -> bool:
        """Note that the job of `standing.begun` is about to be made.

        False: it is paused, nothing was noted. Raises LostLease.
        """
        ...

    async def end_slot(self, name: str, lease: Lease, standing: Standing) -> None:
        """Note where it stands: a time was made a job for, or is to wait, or is over without one.

        Raises LostLease.
        """
        ...

    async def set_paused(self, name: str, *, is_paused: bool, at: float) -> ScheduleEntry | None:
        """How it is then; None: there is none of this name. Repeating it changes nothing."""
        ...

    async def note_asked(self, name: str, job_id: JobId, at: float) -> None:
        """Somebody made this job of it out of its time; nothing for one that is not there."""
        ...


class Liveness(Protocol):
    def keep(self, instance: str) -> AbstractAsyncContextManager[None]:
        """While the block lasts `instance` is alive, even if it blocks the event loop."""
        ...

    async def is_alive(self, instance: str) -> bool: ...

    def known_seconds(self) -> float:
        """For how long this store has been the one that is told who is alive; infinite: always.

        After a fail-over it knows of earlier times only what had reached it.
        """
        ...


# --- the rest -------------------------------------------------------------------------------------


class CatalogueEntry(_Value, frozen=True, kw_only=True):
    """What the gateway must know of a blueprint without its code."""

    name: str
    group: str
    start_state: str
    api_endpoint: str | None
    api_version: str | None
    dot: str
    """The state graph as graphviz DOT."""
    input_schema: dict[str, Any] | None = None
    """JSON Schema of the initial data; None: any object."""
    events: Mapping[str, Mapping[str, Any] | None] = {}
    """Event types it declares -> JSON Schema of the payload; empty: it declares none."""


class Catalogue(Protocol):
    async def publish(self, entries: Sequence[CatalogueEntry]) -> None: ...

    async def entries(self) -> tuple[str, list[CatalogueEntry]]:
        """All entries, and the version they are of."""
        ...

    async def changed(self, version: str) -> None:
        """Returns when the catalogue is of another version, or after the backend's block time."""
        ...


class StreamEntry(_Value, frozen=True, kw_only=True):
    entry_id: str
    partition: int
    payload: bytes
    """msgpack of an `archive.Fact` or `notifications.Notification`."""
    deliveries: int = 1


class WorkStream(Protocol):
    """A stream shared by the consumers of one group: facts for the archive, webhooks to send."""

    async def read(self, consumer: str, room: int) -> list[StreamEntry]:
        """Waits as `Inbox.read` does."""
        ...

    async def pending(self, consumer: str) -> list[StreamEntry]: ...

    async def acknowledge(self, entries: Sequence[StreamEntry]) -> None: ...

    async def take_over(self, consumer: str, room: int) -> list[StreamEntry]:
        """Entries of consumers that are not alive any more."""
        ...

    async def length(self) -> int: ...


class KeyValues(Protocol):
    """The dict-like data stores of blueprints."""

    async def get(self, namespace: str, key: str) -> bytes | None: ...

    async def set(self, namespace: str, key: str, value: bytes) -> None: ...


class Backend(Protocol):
    """All ports of one store; what `MemoryStorage` and `RedisStorage` are to the services."""

    @property
    def partitions(self) -> int: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def jobs(self) -> JobStore: ...
    @property
    def inbox(self) -> Inbox: ...
    @property
    def dead_events(self) -> DeadEvents: ...
    @property
    def board(self) -> TaskBoard: ...
    @property
    def workers(self) -> WorkerDirectory: ...
    @property
    def mailbox(self) -> Mailbox: ...
    @property
    def hints(self) -> Hints: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def timers(self) -> Timers: ...
    @property
    def relay(self) -> Relay: ...
    @property
    def inspection(self) -> Inspection: ...
    @property
    def schedules(self) -> Schedules: ...
    @property
    def liveness(self) -> Liveness: ...
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def facts(self) -> WorkStream: ...
    @property
    def notifications(self) -> WorkStream: ...
    @property
    def key_values(self) -> KeyValues: ...

    async def open(self, options: "StoreOptions") -> None:
        """Connect and check the store. Raises StartupError with one clear sentence."""
        ...

    async def ping(self) -> bool: ...

    async def close(self) -> None: ...


class Durability(StrEnum):
    """What an answer to the outside stands on, where the store can lose something."""

    FAST = "fast"
    """It is in the store's memory."""
    SAFE = "safe"
    """It is in the store's log, which goes to disk each second."""
    STRICT = "strict"
    """It is on disk, and on every replica there is."""


class StoreOptions(_Value, frozen=True, kw_only=True):
    """What a backend must be told once, the same by every process of a deployment."""

    durability: Durability = Durability.SAFE
    partitions: int = 1
    retention_seconds: float = 604_800
    """How long a terminal job is kept; 0: for ever."""
    keep_facts: bool = False
    """Whether there is an archive that reads them."""
    block_seconds: float = 5.0
    """Longest wait of a blocking read."""
    delivery_timeout_seconds: float = 5.0
    most_new_jobs: int = 1_000_000
    """New jobs of one executor group and partition that may wait; more are refused."""


class StorageBackend(Backend, Protocol):
    """The public face of a storage, as applications may call it."""

    async def flush_all(self) -> None:
        """Delete every key of ours, and no other."""
        ...

    async def get_job_state(self, job_id: str) -> dict[str, Any] | None: ...

    async def get_job_queue_length(self) -> int: ...

    async def get_quarantined_jobs(self) -> list[str]: ...

    async def get_worker_info(self, worker_id: str) -> dict[str, Any] | None: ...

    async def get_available_workers(self) -> list[dict[str, Any]]: ...

    async def get_active_worker_count(self) -> int: ...
