"""What a job is. Data only; how it changes is in `machine.py`."""

from enum import StrEnum
from typing import Any, Final, NewType

import msgspec

from avtomatika_core.outcomes import TaskRequest
from avtomatika_core.signals import NO_SIGNALS, Signals

JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)
WorkerId = NewType("WorkerId", str)


class JobStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    AWAITING_RETRY = "awaiting_retry"
    WAITING_FOR_WORKER = "waiting_for_worker"
    WAITING_FOR_PARALLEL_TASKS = "waiting_for_parallel_tasks"
    WAITING_FOR_SUB_JOB = "waiting_for_sub_job"
    WAITING_FOR_HUMAN = "waiting_for_human"
    WAITING_FOR_SIGNAL = "waiting_for_signal"
    SLEEPING = "sleeping"
    FINISHED = "finished"
    FAILED = "failed"
    QUARANTINED = "quarantined"
    CANCELLED = "cancelled"


TERMINAL: Final = frozenset(
    {JobStatus.FINISHED, JobStatus.FAILED, JobStatus.QUARANTINED, JobStatus.CANCELLED}
)

REDRIVABLE: Final = frozenset({JobStatus.FAILED, JobStatus.QUARANTINED})
"""A job that ended so may run again (`redrive.py`)."""


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class Client(_Value, frozen=True, kw_only=True):
    """On whose behalf a job runs. Never holds a token of a client."""

    name: str | None = None
    """None: nobody's (scheduled and background jobs)."""
    plan: str = "unknown"
    params: dict[str, Any] = {}
    token: str = ""
    """`internal-scheduler` for background jobs, else empty."""


class Parent(_Value, frozen=True, kw_only=True):
    """The job that waits for this one, and the wait it answers."""

    job_id: JobId
    group: str
    token: str


class Origin(_Value, frozen=True, kw_only=True):
    """How a job came to be: written once, never changed."""

    blueprint: str
    group: str
    """Executor group that hosts the blueprint."""
    start_state: str
    initial_data: dict[str, Any] = {}
    client: Client = Client()
    created_at: float
    webhook_url: str | None = None
    metadata: dict[str, Any] = {}
    data_metadata: dict[str, Any] = {}
    tracing_context: dict[str, str] = {}
    dispatch_timeout: float | None = None
    result_timeout: float | None = None
    timeout_seconds: float | None = None
    """The job has so long from its creation on. None: as long as it takes, or as its parent has."""
    parent: Parent | None = None
    depth: int = 0
    """Generations above this job; 0 for a root."""


class JobData(_Value, frozen=True, kw_only=True):
    """The user's data: what handlers read and change. JSON values only."""

    state_history: dict[str, Any] = {}
    initial_data: dict[str, Any] | None = None
    """None: as it was created."""
    data_metadata: dict[str, Any] | None = None
    """None: as it was created."""


class LastError(_Value, frozen=True, kw_only=True):
    """Why the last task failed, kept for the state that handles the failure."""

    code: str
    message: str
    details: Any = None
    task_id: TaskId | None = None
    worker_id: WorkerId | None = None


class TaskWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="task"):
    """A task is on the board or with a worker. Its id is the token of the wait."""

    task_id: TaskId
    request: TaskRequest
    attempt: int
    """From 1."""
    dispatched_at: float
    dispatch_deadline: float | None = None
    result_timeout_seconds: float
    checkpoint: dict[str, Any] | None = None
    """What earlier attempts left."""


class TaskRetryWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="task_retry"):
    """A failed task waits for its next attempt."""

    token: str
    request: TaskRequest
    attempt: int
    """The attempt to come."""
    due: float
    checkpoint: dict[str, Any] | None = None
    """It starts with this."""


class HandlerRetryWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="handler_retry"):
    """A handler that raised waits for its next run."""

    token: str
    due: float


class BranchesWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="branches"):
    token: str
    aggregate_into: str
    count: int


class ChildWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="child"):
    token: str
    child_id: JobId
    child_group: str
    blueprint: str
    transitions: dict[str, str]


class ApprovalWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="approval"):
    token: str
    secret_hash: str
    """sha256 (hex) of the wait's own token, which the approver holds."""
    integration: str
    message: str
    transitions: dict[str, str]
    requested_at: float
    deadline: float | None = None

    @property
    def decisions(self) -> list[str]:
        """What an approver may answer."""
        return [decision for decision in self.transitions if decision != "timeout"]


class SleepWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="sleep"):
    token: str
    due: float
    next_state: str


class SignalWait(_Value, frozen=True, kw_only=True, tag_field="kind", tag="signal"):
    token: str
    name: str
    transitions: dict[str, str]
    """`received`, and perhaps `timeout` and `cancelled` -> next state."""
    requested_at: float
    deadline: float | None = None


Wait = (
    TaskWait
    | TaskRetryWait
    | HandlerRetryWait
    | BranchesWait
    | ChildWait
    | ApprovalWait
    | SleepWait
    | SignalWait
)


class Head(_Value, frozen=True, kw_only=True):
    """What every step may change: small, written by each commit. Times in Unix seconds."""

    status: JobStatus = JobStatus.PENDING
    state: str
    aggregating: bool = False
    """The state was entered from a fan-out: its aggregator runs."""
    retry_count: int = 0
    """Repeats of the current handler step."""
    task_retry_count: int = 0
    """Repeats of the current task."""
    transition_count: int = 0
    wait: Wait | None = None
    error_message: str | None = None
    last_error: LastError | None = None
    updated_at: float
    finished_at: float | None = None
    redriven_at: float | None = None
    """When it last began to run again after an end."""


class Job(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One run of a blueprint."""

    id: JobId
    origin: Origin
    head: Head
    data: JobData = JobData()
    run: int = 0
    """Number of the handler run now wanted; a run with another number is no longer wanted."""
    cancelled: bool = False
    """The cancel mark: set at once by whoever asks, acted on by `CancelRequested`.

    A job whose time is over is marked so too; then `JobTimedOut` acts on it."""
    signals: Signals = NO_SIGNALS

    @property
    def status(self) -> JobStatus:
        return self.head.status

    @property
    def state(self) -> str:
        return self.head.state

    @property
    def initial_data(self) -> dict[str, Any]:
        changed = self.data.initial_data
        return self.origin.initial_data if changed is None else changed

    @property
    def data_metadata(self) -> dict[str, Any]:
        changed = self.data.data_metadata
        return self.origin.data_metadata if changed is None else changed

    @property
    def is_terminal(self) -> bool:
        return self.head.status in TERMINAL


def is_beside(before: Job, after: Job) -> bool:
    """Whether all that happened is that a signal was kept: what the job does goes on as it was."""
    return after.head is before.head and after.signals is not before.signals


def new_job(job_id: JobId, origin: Origin) -> Job:
    """The job as it is stored when it is created."""
    return Job(
        id=job_id,
        origin=origin,
        head=Head(state=origin.start_state, updated_at=origin.created_at),
    )


class Branch(_Value, frozen=True, kw_only=True):
    """One open branch of a fan-out, kept beside the job under its current task id."""

    index: int
    """Place in the list the handler gave."""
    token: str
    """Of the `BranchesWait` it belongs to."""
    request: TaskRequest
    attempt: int = 1
    dispatched_at: float
    result_timeout_seconds: float
    dispatch_deadline: float | None = None
    state: str = ""
    """State whose handler asked for the fan-out."""
    is_waiting: bool = False
    """Not on the board: it waits for the timer of its next attempt."""
    checkpoint: dict[str, Any] | None = None
    """What earlier attempts left."""


class BranchResult(_Value, frozen=True, kw_only=True):
    """How a branch ended; the aggregator gets `result`."""

    index: int
    result: dict[str, Any]
    """`{job_id, task_id, worker_id, status, data, error, data_metadata}`."""
