"""What a worker may do, apart from HTTP: one method on wire messages for each operation.

Every transport calls these with the worker it has authenticated, so all of them behave the same.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

import rxon
from avtomatika_common.backend.ports import (
    Backend,
    JobNotFound,
    LeasedTask,
    Progress,
    ResultAnswer,
)
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_core.events import TaskCancelled, TaskEvent, TaskFailed, TaskSucceeded
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_gateway.bodies import parse_job_id
from avtomatika_gateway.deliveries import Deliveries
from avtomatika_gateway.http_errors import refusal_of
from avtomatika_gateway.polls import Polls
from avtomatika_gateway.refusals import BadRequest, Forbidden, NotFound
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.skills import SkillContracts, contracts_of
from rxon import (
    BatchedResultAnswer,
    ProgressAnswer,
    ProgressUpdatePayload,
    Task,
    TaskError,
    TaskPayload,
    TaskResult,
)
from rxon import ResultAnswer as WireAnswer
from rxon.constants import (
    ERROR_CODE_TRANSIENT,
    PROTOCOL_VERSION,
    TASK_STATUS_CANCELLED,
    TASK_STATUS_FAILURE,
)
from rxon.exceptions import BadMessage
from rxon.parsing import UnreadBatch

READY_SECONDS: Final = 0.05
"""How long a task that waits may be on its way to a poll that does not."""
MOST_TASKS: Final = 512
"""At once, whatever a worker asks for."""

log = get_logger()

_NOBODY: Final = WorkerId("")
_OK: Final = WireAnswer(status="ok")
_IGNORED: Final[Mapping[ResultAnswer, str]] = {
    ResultAnswer.STALE_TASK: "The task is neither the job's current task nor an open branch.",
    ResultAnswer.WORKER_MISMATCH: "The task is not held by this worker.",
    ResultAnswer.DEADLINE_EXCEEDED: "The task's result deadline has passed.",
    ResultAnswer.JOB_CANCELLED: "The job was cancelled.",
    ResultAnswer.JOB_TERMINATED: "The job has already ended.",
}


class WorkerOperations:
    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        polls: Polls,
        deliveries: Deliveries,
        contracts: SkillContracts,
    ) -> None:
        self._ttl_seconds = settings.registration_ttl_seconds
        self._clock = backend.clock
        self._workers = backend.workers
        self._board = backend.board
        self._polls = polls
        self._deliveries = deliveries
        self._contracts = contracts

    # --- registration

    async def register(
        self, sender: WorkerId | None, document: Mapping[str, Any], protocol: str | None
    ) -> dict[str, str]:
        """Take the worker in as it describes itself; `document` is the whole of it, as it was sent.

        `protocol`: the version it speaks, if it says so. Raises BadMessage, Forbidden, and
        BadRequest where a skill's contract cannot be used.
        """
        registration = rxon.parse_registration(document)
        worker_id = WorkerId(registration.worker_id)
        if worker_id != sender:
            raise Forbidden(
                f"Forbidden: Authenticated worker '{sender}' cannot register"
                f" another worker '{worker_id}'."
            )
        promised = contracts_of(document)
        described = {"status": "idle", **rxon.with_supported_tasks(document), "reputation": 1.0}
        registered = await self._workers.register(worker_id, described, self._ttl_seconds)
        self._contracts.remember(worker_id, registered.incarnation, promised)
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
        if protocol not in (None, PROTOCOL_VERSION):
            answer["warning"] = (
                f"The worker speaks protocol {protocol}, the orchestrator {PROTOCOL_VERSION}."
            )
        return answer

    async def heartbeat(
        self, worker_id: WorkerId, changes: Mapping[str, Any], *, began_at: float
    ) -> dict[str, Any]:
        """Renew the registration, with news or without. Raises NotFound, and as `register`.

        `changes` is the whole heartbeat as it was sent, or empty. Where it lists its current tasks
        it has those and no others of what was handed out before it began (Unix seconds).
        """
        heartbeat = rxon.parse_heartbeat(changes, worker_id=worker_id) if changes else None
        if has_skills := "supported_skills" in changes:
            contracts_of(changes)
        told = rxon.with_supported_tasks(changes)
        kept = {k: v for k, v in told.items() if k not in ("worker_id", "reputation")}
        beat = await self._workers.beat(worker_id, kept or None, self._ttl_seconds)
        if beat is None:
            raise NotFound("Worker not found")
        if has_skills:
            self._contracts.forget(worker_id)
        if heartbeat is not None and isinstance(heartbeat.current_tasks, tuple) and beat.held:
            await self._reconcile(worker_id, heartbeat.current_tasks, began_at)
        answer: dict[str, Any] = dict(beat.document) if changes else {"status": "ttl_refreshed"}
        if beat.cancel_task_ids:
            answer["cancel_task_ids"] = list(beat.cancel_task_ids)
        return answer

    async def _reconcile(
        self, worker_id: WorkerId, current_tasks: Sequence[str], began_at: float
    ) -> None:
        named = [TaskId(task_id) for task_id in current_tasks]
        returned = await self._board.report_held(
            worker_id, named, began_at=began_at, report=new_id()
        )
        if returned:
            log.warning("tasks never arrived, offered again", worker_id=worker_id, count=returned)

    async def require_registered(self, worker_id: WorkerId) -> None:
        """Raises NotFound for a worker that is not registered, or no longer."""
        if await self._workers.get(worker_id) is None:
            raise NotFound("Worker not found")

    async def leave(self, worker_id: WorkerId) -> dict[str, str]:
        """The worker signs off; what it holds is offered to others. Raises NotFound."""
        if not await self._workers.leave(worker_id):
            raise NotFound("Worker not found")
        log.info("worker left", worker_id=worker_id)
        return {"status": "unregistered"}

    # --- tasks

    async def poll(
        self, worker_id: WorkerId, most: int = 1, *, seconds: float | None = None
    ) -> Sequence[LeasedTask]:
        """Up to `most` tasks, waiting for the first; none if none came in time.

        It waits as long as polls are held, but no longer than `seconds`. Each task must be told to
        `Deliveries`. Raises NotFound, BadRequest.
        """
        if most < 1:
            raise BadRequest("max must be a whole number from 1")
        return await self._polls.wait(worker_id, room=min(most, MOST_TASKS), seconds=seconds)

    async def _ready_tasks(self, worker_id: WorkerId, most: int) -> Sequence[LeasedTask]:
        """As `poll`, of those that are ready; none for a worker that is not registered."""
        if most < 1 or not await self._board.has_waiting():
            return ()
        try:
            return await self._polls.wait(
                worker_id, room=min(most, MOST_TASKS), seconds=READY_SECONDS
            )
        except NotFound:
            return ()

    async def submit_batch(
        self, sender: WorkerId, batch: UnreadBatch
    ) -> tuple[Sequence[BatchedResultAnswer], Sequence[LeasedTask]]:
        """What each result alone would have been answered, and then tasks as from `poll`."""
        answers = await asyncio.gather(*(self._submit(sender, one) for one in batch.results))
        return answers, await self._ready_tasks(sender, batch.most)

    async def _submit(self, sender: WorkerId, document: object) -> BatchedResultAnswer:
        """One result of several: what is wrong with it is not the fault of the others."""
        try:
            result = rxon.parse_result(rxon.as_object(document), sender=sender)
            answer = await self.submit_result(sender, result)
        except (BadMessage, BadRequest, Forbidden, JobNotFound) as error:
            return BatchedResultAnswer(error=refusal_of(error).text)
        return BatchedResultAnswer(
            status=answer.status, reason=answer.reason, message=answer.message
        )

    async def submit_result(self, sender: WorkerId, result: TaskResult) -> WireAnswer:
        """Judge a result and say what became of it. Raises Forbidden, BadRequest, JobNotFound.

        One that its worker's contract does not promise counts as a failure.
        """
        job_id = parse_job_id(result.job_id)
        if result.worker_id != sender:
            raise Forbidden(
                f"Forbidden: Authenticated worker '{sender}' cannot submit results"
                f" for another worker '{result.worker_id}'."
            )
        event = event_of(result, self._clock.now())
        if isinstance(event, TaskSucceeded):
            event = await self._as_promised(sender, job_id, event)
        answer = await self._board.end_lease(job_id, sender, event)
        if answer is ResultAnswer.APPLIED:
            self._deliveries.settled(result.task_id, sender)
            log.debug(
                "result taken",
                status=result.status,
                job_id=job_id,
                task_id=result.task_id,
                worker_id=sender,
            )
        return _judged(answer, "result ignored", sender, TaskId(result.task_id), job_id)

    async def _as_promised(
        self, sender: WorkerId, job_id: JobId, event: TaskSucceeded
    ) -> TaskSucceeded | TaskFailed:
        """The result, or the failure it is by the contract of its skill."""
        if not await self._contracts.of(sender):
            return event
        task_type = await self._board.type_of(event.task_id, job_id)
        if task_type is None:
            return event
        violation = await self._contracts.violated_by_result(
            task_type, event.task_id, sender, event.status, event.data
        )
        if violation is None:
            return event
        log.warning(
            "result violates its contract", job_id=job_id, task_id=event.task_id, worker_id=sender
        )
        return violation

    # --- progress

    async def report_and_hear(
        self, sender: WorkerId | None, progress: ProgressUpdatePayload
    ) -> ProgressAnswer:
        """As `report_progress`, and the tasks that nobody wants any more.

        Without a sender it is the holder's.
        """
        worker = sender or await self.holder_of(progress) or _NOBODY
        answer, to_stop = await asyncio.gather(
            self.report_progress(worker, progress), self._workers.to_stop(worker)
        )
        return ProgressAnswer(
            status=answer.status,
            reason=answer.reason,
            message=answer.message,
            cancel_task_ids=tuple(to_stop),
        )

    async def report_progress(
        self, sender: WorkerId, progress: ProgressUpdatePayload
    ) -> WireAnswer:
        """Show how far a task is, and keep its checkpoint. Raises JobNotFound.

        Judged as a result is: ignored unless the sender holds the task.
        """
        job_id, task_id = parse_job_id(progress.job_id), TaskId(progress.task_id)
        entry = Progress(
            progress=min(1.0, max(0.0, progress.progress)),
            message=progress.message or "",
            at=self._clock.now(),
            task_id=task_id,
        )
        checkpoint = (
            None if isinstance(progress.checkpoint, msgspec.UnsetType) else progress.checkpoint
        )
        answer = await self._board.record_progress(task_id, job_id, sender, entry, checkpoint)
        return _judged(answer, "progress ignored", sender, task_id, job_id)

    async def holder_of(self, progress: ProgressUpdatePayload) -> WorkerId | None:
        """Whose progress it is where the sender did not say. Raises JobNotFound."""
        return await self._board.holder(parse_job_id(progress.job_id), TaskId(progress.task_id))


def _judged(
    answer: ResultAnswer, ignored: str, sender: WorkerId, task_id: TaskId, job_id: JobId
) -> WireAnswer:
    match answer:
        case ResultAnswer.APPLIED:
            return _OK
        case ResultAnswer.JOB_NOT_FOUND:
            raise JobNotFound
        case _:
            log.info(ignored, reason=answer.value, job_id=job_id, task_id=task_id, worker_id=sender)
            return WireAnswer(status="ignored", reason=answer.value, message=_IGNORED[answer])


def payload_of(task: LeasedTask) -> TaskPayload:
    """The task as a plain poll gets it: exactly six keys."""
    return msgspec.convert(task, TaskPayload, from_attributes=True)


def task_of(task: LeasedTask) -> Task:
    """The task as a poll for several gets it."""
    return msgspec.convert(task, Task, from_attributes=True)


def _host_of(document: Mapping[str, Any]) -> object:
    match document:
        case {"capabilities": {"hostname": hostname}}:
            return hostname
        case _:
            return None


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
