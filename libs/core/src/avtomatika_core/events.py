"""Everything that can happen to a job. Times (Unix seconds), ids and chance come with the event."""

from typing import Any, Literal

import msgspec

from avtomatika_core.job import JobData, JobId, TaskId, WorkerId
from avtomatika_core.outcomes import Action, SentEvent


class _Event(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="event", gc=False
):
    at: float


class JobCreated(_Event, frozen=True, kw_only=True, tag="job_created"):
    """The job was accepted: its start state may run."""


class Continue(_Event, frozen=True, kw_only=True, tag="continue"):
    """A running job goes on in its current state, under a new inbox entry."""


class HandlerReturned(_Event, frozen=True, kw_only=True, tag="handler_returned"):
    """Run `run` of the handler of the current state came back."""

    run: int
    action: Action | None = None
    data: JobData | None = None
    """The job's data as the handler left it; None: unchanged."""
    context_updates: dict[str, Any] = {}
    """Merged into `state_history` with the step."""
    sent_events: tuple[SentEvent, ...] = ()
    started_at: float
    fresh_ids: tuple[str, ...] = ()
    """A task id for each task of the action, or the child's job id."""
    child_group: str = ""
    child_start_state: str = ""
    """Of the sub-blueprint, from the catalogue."""
    approval_secret: str = ""
    approval_secret_hash: str = ""


class HandlerRaised(_Event, frozen=True, kw_only=True, tag="handler_raised"):
    """Run `run` of the handler failed."""

    run: int
    message: str
    is_definition_error: bool = False
    """Repeating it cannot help: quarantine at once."""
    started_at: float
    jitter: float = 0.0
    """-1..1, spreads the retry delay by 20 %."""


class _TaskEvent(_Event, frozen=True, kw_only=True):
    task_id: TaskId
    worker_id: WorkerId | None = None
    fresh_id: TaskId
    """Id for the next attempt, should there be one."""
    jitter: float = 0.0


class TaskSucceeded(_TaskEvent, frozen=True, kw_only=True, tag="task_succeeded"):
    """The worker reported `success` or a status of its own."""

    status: str = "success"
    data: dict[str, Any] | None = None
    data_metadata: dict[str, Any] | None = None
    leased_at: float | None = None


class TaskFailed(_TaskEvent, frozen=True, kw_only=True, tag="task_failed"):
    """The worker reported `failure`, or was lost."""

    code: str = "TRANSIENT_ERROR"
    message: str = "No error message provided."
    details: Any = None
    data: dict[str, Any] | None = None
    data_metadata: dict[str, Any] | None = None
    leased_at: float | None = None
    checkpoint: dict[str, Any] | None = None
    """The last one the attempt left."""


class TaskCancelled(_TaskEvent, frozen=True, kw_only=True, tag="task_cancelled"):
    """The worker reported `cancelled`."""

    data: dict[str, Any] | None = None
    leased_at: float | None = None


class TaskTimedOut(_TaskEvent, frozen=True, kw_only=True, tag="task_timed_out"):
    timeout: Literal["dispatch", "result"]
    waiting_reason: str = ""
    """Why no worker had taken the task, for a dispatch timeout."""
    leased_at: float | None = None
    checkpoint: dict[str, Any] | None = None
    """The last one the attempt left."""


class WorkerEventArrived(_Event, frozen=True, kw_only=True, tag="worker_event_arrived"):
    """The holder of a task told of something, before its result."""

    task_id: TaskId
    worker_id: WorkerId
    event_id: str
    event_type: str
    payload: dict[str, Any] = {}


class BranchesDone(_Event, frozen=True, kw_only=True, tag="branches_done"):
    token: str


class ChildFinished(_Event, frozen=True, kw_only=True, tag="child_finished"):
    token: str
    child_id: JobId
    status: str
    final_state: str
    error_message: str | None = None
    result: dict[str, Any] = {}
    """The child's `state_history`."""


class ApprovalDecided(_Event, frozen=True, kw_only=True, tag="approval_decided"):
    token: str
    decision: str


class TimerFired(_Event, frozen=True, kw_only=True, tag="timer_fired"):
    """A timer of the job is due: a retry delay or a sleep is over, or a wait has expired."""

    token: str
    fresh_id: TaskId
    """Id for the task, should it start one."""


class SignalReceived(_Event, frozen=True, kw_only=True, tag="signal_received"):
    """Somebody outside told the job of something, whether it waits for it yet or not."""

    name: str
    data: dict[str, Any] = {}
    number: int = 0
    """Place among the job's signals, from 1: given by the store."""


class JobTimedOut(_Event, frozen=True, kw_only=True, tag="job_timed_out"):
    """The job's own time is over."""


class CancelRequested(_Event, frozen=True, kw_only=True, tag="cancel_requested"):
    reason: str = "Cancelled by request."


class JobSetAside(_Event, frozen=True, kw_only=True, tag="job_set_aside"):
    """The job's event could not be handled again and again: quarantine."""

    reason: str


TaskEvent = TaskSucceeded | TaskFailed | TaskCancelled | TaskTimedOut
InboxEvent = (
    JobCreated
    | Continue
    | TaskSucceeded
    | TaskFailed
    | TaskCancelled
    | TaskTimedOut
    | WorkerEventArrived
    | BranchesDone
    | ChildFinished
    | ApprovalDecided
    | TimerFired
    | SignalReceived
    | JobTimedOut
    | CancelRequested
)
"""What arrives through an inbox stream."""
Event = InboxEvent | HandlerReturned | HandlerRaised | JobSetAside
