"""What follows from a step. Written with the new job in one commit, never carried out apart from it."""

from typing import Any, Literal

import msgspec

from avtomatika_core.events import ChildFinished
from avtomatika_core.job import Branch, Job, JobId, Parent, TaskId, WorkerId
from avtomatika_core.outcomes import SentEvent


class _Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class OfferTask(_Command, frozen=True, kw_only=True):
    """Put a task on the board. Its dispatch deadline is a timer of the board's own."""

    task_id: TaskId
    type: str
    params: dict[str, Any]
    resource_requirements: dict[str, Any] | None
    max_cost: float | None
    strategy: str
    priority: float
    dispatch_deadline: float | None
    result_timeout_seconds: float
    tracing_context: dict[str, str]
    params_metadata: dict[str, Any] | None
    attempt: int
    checkpoint: dict[str, Any] | None = None
    """What an earlier attempt left with its progress."""
    heartbeat_timeout_seconds: float | None = None
    """Its holder is late, too, when it sends no progress for so long."""
    is_branch: bool = False


class StartBranches(_Command, frozen=True, kw_only=True):
    """Open a fan-out: `branches[i]` runs as task `offers[i]`; results of an earlier one go."""

    token: str
    branches: tuple[Branch, ...]
    offers: tuple[OfferTask, ...]


class SetTimer(_Command, frozen=True, kw_only=True):
    """A `TimerFired` with this token at `due` (Unix seconds)."""

    token: str
    due: float


class ClearTimer(_Command, frozen=True, kw_only=True):
    token: str


class ClearDeadline(_Command, frozen=True, kw_only=True):
    """The job has ended: the timer of its own deadline goes. It was set when it was created."""


class CloseTask(_Command, frozen=True, kw_only=True):
    """Nobody wants this task any more: off the board, or its holder is told to stop."""

    task_id: TaskId


class CloseBranches(_Command, frozen=True, kw_only=True):
    """Close every open branch as `CloseTask` does; no `BranchesDone` will come."""


class CreateChild(_Command, frozen=True, kw_only=True):
    """Store a sub-job of this one, with its `JobCreated`."""

    child: Job


class CancelChild(_Command, frozen=True, kw_only=True):
    """Mark a sub-job cancelled and append its `CancelRequested`."""

    child_id: JobId
    child_group: str = ""


class ResumeParent(_Command, frozen=True, kw_only=True):
    """Append `event` to the inbox of the job that waits for this one."""

    parent: Parent
    event: ChildFinished


FollowedBy = Literal[
    "transition",
    "task",
    "parallel",
    "blueprint",
    "approval",
    "sleep",
    "signal",
    "end",
    "failure",
]


class RecordFact(_Command, frozen=True, kw_only=True):
    """One thing that happened, for the archive. Times in Unix seconds."""

    kind: Literal[
        "job_created",
        "step",
        "step_failed",
        "task_finished",
        "task_timed_out",
        "worker_event",
        "approval_received",
        "signal_received",
        "job_cancelled",
        "job_redriven",
        "job_completed",
    ]
    at: float
    state: str
    started_at: float | None = None
    next_state: str | None = None
    followed_by: FollowedBy | None = None
    """What the handler of this step asked for."""
    worker_id: WorkerId | None = None
    attempt: int | None = None
    details: dict[str, Any] | None = None
    """Added to the snapshot of the job: `task_info`, `result`, `error_message` …"""


class Notify(_Command, frozen=True, kw_only=True):
    """A webhook to `url`, and the callbacks of the process that commits."""

    event: Literal[
        "job_finished",
        "job_failed",
        "job_quarantined",
        "job_cancelled",
        "approval_requested",
        "worker_event",
    ]
    at: float
    approval: dict[str, Any] | None = None
    """`{integration, message, decisions, deadline, token}`, for `approval_requested`."""
    sent: SentEvent | None = None
    """For `worker_event`: what a handler sent."""


Command = (
    OfferTask
    | StartBranches
    | SetTimer
    | ClearTimer
    | ClearDeadline
    | CloseTask
    | CloseBranches
    | CreateChild
    | CancelChild
    | ResumeParent
    | RecordFact
    | Notify
)


class Step(msgspec.Struct, frozen=True, gc=False):
    """What one event makes of a job. An event that changes nothing gives the same job back."""

    job: Job
    commands: tuple[Command, ...] = ()
    before: "Step | None" = None
    """The step decided just before, from the same stored job: written in one commit with this one."""

    def after(self, before: "Step") -> "Step":
        """This step, on top of one that is not written yet."""
        return Step(self.job, self.commands, before)

    @property
    def in_order(self) -> tuple["Step", ...]:
        """All steps of the commit, the first one first."""
        return (self,) if self.before is None else (*self.before.in_order, self)


class NextAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """A failed branch goes on under a new task id: offered at once, or when `due`."""

    task_id: TaskId
    branch: Branch
    due: float | None
    offer: OfferTask | None
    """Set when it is offered at once (its timer fired); else None."""
