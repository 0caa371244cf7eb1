"""One attempt of a task: its time limits, its offer, its record, and what its failure leads to."""

from typing import Any, Final, assert_never

import msgspec

from avtomatika_core.commands import OfferTask, RecordFact
from avtomatika_core.events import (
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
)
from avtomatika_core.job import Branch, JobId, JobStatus, Origin, TaskId, TaskWait
from avtomatika_core.outcomes import Rules, TaskRequest
from avtomatika_core.retry_policy import RetryPolicy

_PERMANENT: Final = (JobStatus.QUARANTINED, "Task failed with permanent error ({code})")
# Codes that a repeat cannot help: how a job ends by them, and what it says. All others, known or
# not, are retried.
_FINAL_CODES: Final[dict[str, tuple[JobStatus, str]]] = {
    "PERMANENT_ERROR": _PERMANENT,
    "SECURITY_ERROR": _PERMANENT,
    "DEPENDENCY_ERROR": _PERMANENT,
    "CONTRACT_VIOLATION_ERROR": _PERMANENT,
    "INVALID_INPUT_ERROR": (JobStatus.FAILED, "Task failed due to invalid input"),
    "INTEGRITY_MISMATCH_ERROR": (JobStatus.FAILED, "Task failed due to data integrity mismatch"),
}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed, in the words of a `TaskError`."""

    code: str
    message: str
    details: Any = None
    is_final: bool = False
    """Another attempt cannot help."""

    @property
    def error(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "details": self.details}

    def is_last(self, attempt: int, request: TaskRequest, rules: Rules) -> bool:
        """Whether nothing is tried after this failure of attempt number `attempt` (from 1)."""
        policy = policy_of(request, rules)
        return self.is_final or self.code in policy.never or attempt >= most_attempts(policy, rules)

    def ending(self, attempt: int) -> tuple[JobStatus, str]:
        """How a job ends whose blueprint has no answer to this last failure."""
        if self.code in _FINAL_CODES:
            status, text = _FINAL_CODES[self.code]
            return status, f"{text.format(code=self.code)}: {self.message}"
        if self.is_final:
            return JobStatus.FAILED, self.message
        return JobStatus.QUARANTINED, f"Task failed after {attempt} attempts: {self.message}"


def failure_of(event: TaskEvent, attempt: TaskWait | Branch) -> Failure | None:
    """What went wrong with this attempt; None when the worker succeeded or stopped as told."""
    if isinstance(event, TaskSucceeded | TaskCancelled):
        return None
    if isinstance(event, TaskFailed):
        return Failure(
            code=event.code,
            message=event.message,
            details=event.details,
            is_final=event.code in _FINAL_CODES,
        )
    if event.timeout == "result":
        return Failure(code="TIMEOUT_ERROR", message="Worker task timed out.")
    waited = (attempt.dispatch_deadline or event.at) - attempt.dispatched_at
    reason = f": {event.waiting_reason}" if event.waiting_reason else "."
    return Failure(
        code="TIMEOUT_ERROR",
        message=f"No worker took the task within {plain_seconds(waited)} seconds{reason}",
        is_final=True,
    )


def task_result(event: TaskEvent, job_id: JobId, failure: Failure | None) -> dict[str, Any]:
    """How an attempt ended, in the form in which a worker reports it.

    An attempt that was lost or timed out reports nothing itself: its `data` is empty.
    """
    match event:
        case TaskSucceeded():
            status, data, metadata = event.status, event.data, event.data_metadata
        case TaskFailed():
            status, data, metadata = "failure", event.data or {}, event.data_metadata
        case TaskCancelled():
            status, data, metadata = "cancelled", event.data, None
        case TaskTimedOut():
            status, data, metadata = "failure", {}, None
        case _:
            assert_never(event)
    return {
        "job_id": job_id,
        "task_id": event.task_id,
        "worker_id": event.worker_id,
        "status": status,
        "data": data,
        "error": None if failure is None else failure.error,
        "data_metadata": metadata,
    }


def attempt_fact(event: TaskEvent, state: str, attempt: int, result: dict[str, Any]) -> RecordFact:
    """The end of attempt number `attempt` (from 1) of a task that `state` asked for."""
    return RecordFact(
        kind="task_timed_out" if isinstance(event, TaskTimedOut) else "task_finished",
        at=event.at,
        state=state,
        started_at=event.leased_at,
        worker_id=event.worker_id,
        attempt=attempt,
        details={"result": result},
    )


def policy_of(request: TaskRequest | None, rules: Rules) -> RetryPolicy:
    """The nearest one; `request`: None for a handler."""
    return rules.retry if request is None or request.retry is None else request.retry


def most_attempts(policy: RetryPolicy, rules: Rules) -> int:
    return rules.max_retries + 1 if policy.attempts is None else policy.attempts


def retry_delay(repeat: int, jitter: float, policy: RetryPolicy, rules: Rules) -> float:
    """Seconds before repeat number `repeat` (from 1); `jitter` is -1..1."""
    return policy.delay(repeat, jitter, rules.retry_delay_seconds)


def time_limits(
    request: TaskRequest, origin: Origin, rules: Rules, at: float
) -> tuple[float | None, float]:
    """The dispatch deadline (Unix seconds, None: none) and the result timeout (seconds).

    The task's own count before the job's, those before the configured ones.
    """
    dispatch = _first(
        request.dispatch_timeout_seconds, origin.dispatch_timeout, rules.dispatch_timeout_seconds
    )
    result = _first(
        request.result_timeout_seconds, origin.result_timeout, rules.result_timeout_seconds
    )
    return (at + dispatch if dispatch > 0 else None), result


def offer(
    task_id: TaskId,
    request: TaskRequest,
    *,
    attempt: int,
    dispatch_deadline: float | None,
    result_timeout_seconds: float,
    origin: Origin,
    data_metadata: dict[str, Any],
    checkpoint: dict[str, Any] | None = None,
    is_branch: bool = False,
) -> OfferTask:
    """The task as it is put on the board. `data_metadata` is the job's whole one."""
    return OfferTask(
        task_id=task_id,
        type=request.type,
        params=request.params,
        resource_requirements=request.resource_requirements,
        max_cost=request.max_cost,
        strategy=request.strategy,
        priority=request.priority,
        dispatch_deadline=dispatch_deadline,
        result_timeout_seconds=result_timeout_seconds,
        tracing_context=origin.tracing_context,
        params_metadata=data_metadata or None,
        attempt=attempt,
        checkpoint=checkpoint,
        heartbeat_timeout_seconds=request.heartbeat_timeout_seconds,
        is_branch=is_branch,
    )


def checkpoint_after(event: TaskEvent, attempt: TaskWait | Branch) -> dict[str, Any] | None:
    """What the next attempt starts with: the last checkpoint any attempt of the task has left."""
    left = event.checkpoint if isinstance(event, TaskFailed | TaskTimedOut) else None
    return attempt.checkpoint if left is None else left


def plain_seconds(seconds: float) -> str:
    """`5`, `0.25`: without the noise of subtracting times of day."""
    rounded = round(seconds, 3)
    return str(int(rounded)) if rounded.is_integer() else str(rounded)


def _first(own: float | None, of_job: float | None, configured: float) -> float:
    if own is not None:
        return own
    return configured if of_job is None else of_job
