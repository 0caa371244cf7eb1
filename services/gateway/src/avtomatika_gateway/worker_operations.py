"""What a worker may do, apart from HTTP: one function on wire messages for each operation."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from avtomatika_common.backend.ports import (
    JobNotFound,
    LeasedTask,
    ResultAnswer,
    TaskBoard,
    WorkerDirectory,
)
from avtomatika_common.clock import Clock
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_core.events import TaskCancelled, TaskEvent, TaskFailed, TaskSucceeded
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_gateway.refusals import BadRequest, Forbidden, NotFound
from rxon import TaskError, TaskPayload, TaskResult, WorkerRegistration
from rxon.constants import (
    ERROR_CODE_TRANSIENT,
    PROTOCOL_VERSION,
    TASK_STATUS_CANCELLED,
    TASK_STATUS_FAILURE,
)

log = get_logger()

_IGNORED: Final[Mapping[ResultAnswer, str]] = {
    ResultAnswer.STALE_TASK: "The task is neither the job's current task nor an open branch.",
    ResultAnswer.WORKER_MISMATCH: "The task is not held by this worker.",
    ResultAnswer.DEADLINE_EXCEEDED: "The task's result deadline has passed.",
    ResultAnswer.JOB_CANCELLED: "The job was cancelled.",
    ResultAnswer.JOB_TERMINATED: "The job has already ended.",
}


async def register(
    workers: WorkerDirectory,
    registration: WorkerRegistration,
    document: Mapping[str, Any],
    ttl_seconds: float,
    worker_protocol: str | None,
) -> dict[str, str]:
    """Take the worker in as it describes itself; `document` is the whole of it, as it was sent."""
    worker_id = WorkerId(registration.worker_id)
    described = {"status": "idle", **document, "reputation": 1.0}
    registered = await workers.register(worker_id, described, ttl_seconds)
    if registered.replaced is not None:
        log.warning(
            "worker registered over a live one",
            worker_id=worker_id,
            host=registration.capabilities.hostname,
            earlier_host=_host_of(registered.replaced),
        )
    else:
        log.info("worker registered", worker_id=worker_id, tasks=registration.supported_tasks)
    answer = {"status": "registered", "version": PROTOCOL_VERSION}
    if worker_protocol not in (None, PROTOCOL_VERSION):
        answer["warning"] = (
            f"The worker speaks protocol {worker_protocol}, the orchestrator {PROTOCOL_VERSION}."
        )
    return answer


def _host_of(document: Mapping[str, Any]) -> object:
    match document:
        case {"capabilities": {"hostname": hostname}}:
            return hostname
        case _:
            return None


async def heartbeat(
    workers: WorkerDirectory,
    board: TaskBoard,
    worker_id: WorkerId,
    changes: Mapping[str, Any] | None,
    current_tasks: Sequence[TaskId],
    ttl_seconds: float,
) -> dict[str, Any]:
    """Renew the registration, with news or without. Raises NotFound.

    A task the worker names it has, even where the answer that brought it was not confirmed.
    """
    kept = None if changes is None else _without(changes, "worker_id", "reputation")
    beat = await workers.beat(worker_id, kept, ttl_seconds)
    if beat is None:
        raise NotFound("Worker not found")
    document, to_stop = beat
    if current_tasks:
        await board.confirm_held(worker_id, current_tasks)
    answer = {"status": "ttl_refreshed"} if changes is None else dict(document)
    return {**answer, "cancel_task_ids": list(to_stop)} if to_stop else answer


def _without(document: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def payload_of(task: LeasedTask) -> TaskPayload:
    return msgspec.convert(task, TaskPayload, from_attributes=True)


async def submit_result(
    board: TaskBoard, clock: Clock, sender: WorkerId, result: TaskResult, job_id: JobId
) -> dict[str, str]:
    """Judge a result and say what became of it. Raises Forbidden, BadRequest, JobNotFound."""
    if result.worker_id != sender:
        raise Forbidden(
            f"Forbidden: Authenticated worker '{sender}' cannot submit results"
            f" for another worker '{result.worker_id}'."
        )
    answer = await board.end_lease(job_id, sender, event_of(result, clock.now()))
    fields = {"job_id": job_id, "task_id": result.task_id, "worker_id": sender}
    match answer:
        case ResultAnswer.APPLIED:
            log.info("result taken", status=result.status, **fields)
            return {"status": "ok"}
        case ResultAnswer.JOB_NOT_FOUND:
            raise JobNotFound
        case _:
            log.info("result ignored", reason=answer.value, **fields)
            return {"status": "ignored", "reason": answer.value, "message": _IGNORED[answer]}


def event_of(result: TaskResult, now: float) -> TaskEvent:
    """What a result means to its job. Raises BadRequest."""
    data = result.data
    if data is not None and not isinstance(data, dict):
        raise BadRequest("data must be an object or null")
    about: dict[str, Any] = {
        "at": now,
        "task_id": TaskId(result.task_id),
        "worker_id": WorkerId(result.worker_id),
        "fresh_id": TaskId(new_id()),
        "jitter": random.uniform(-1, 1),  # noqa: S311 - spreads retries, guards nothing
        "data": data,
    }
    if result.status == TASK_STATUS_CANCELLED:
        return TaskCancelled(**about)
    about["data_metadata"] = (
        None if result.data_metadata is None else msgspec.to_builtins(result.data_metadata)
    )
    if result.status != TASK_STATUS_FAILURE:
        return TaskSucceeded(**about, status=result.status)
    error = result.error or TaskError(
        code=ERROR_CODE_TRANSIENT, message="No error details provided."
    )
    return TaskFailed(
        **about,
        code=error.code,
        message=error.message or "No error message provided.",
        details=error.details,
    )
