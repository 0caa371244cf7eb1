"""What workers tell of while they do a task: taken from the task's holder, passed on once.

An event goes to its job, where the job's task leads on by it, to the job's webhook and to the
callbacks of this process.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import msgspec

from avtomatika_common.backend.ports import Backend, JobNotFound, ResultAnswer
from avtomatika_common.logs import get_logger
from avtomatika_common.records import pack_event_notification
from avtomatika_common.schemas import compiled
from avtomatika_core.events import WorkerEventArrived
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_core.machine import state_by_event
from avtomatika_gateway.blueprints import Blueprints
from avtomatika_gateway.bodies import parse_job_id
from avtomatika_gateway.refusals import BadRequest, Conflict, Forbidden
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.skills import SkillContracts, check_event
from rxon import EventAnswer, WorkerEvent

log = get_logger()

OnWorkerEvent = Callable[[str, dict[str, Any]], Coroutine[Any, Any, None]]
"""Told of each event that was accepted here, the first time: the worker, and the message.

It raises nothing."""

_NOT_WANTED: Final[Mapping[ResultAnswer, str]] = {
    ResultAnswer.STALE_TASK: "the task is neither the job's current task nor an open branch.",
    ResultAnswer.DEADLINE_EXCEEDED: "the task's result deadline has passed.",
    ResultAnswer.JOB_CANCELLED: "the job was cancelled.",
    ResultAnswer.JOB_TERMINATED: "the job has already ended.",
}


class WorkerEvents:
    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        blueprints: Blueprints,
        contracts: SkillContracts,
        on_accepted: OnWorkerEvent | None,
    ) -> None:
        self._is_strict = settings.strict_event_validation
        self._drain_seconds = settings.shutdown_timeout_seconds
        self._clock = backend.clock
        self._jobs = backend.jobs
        self._board = backend.board
        self._blueprints = blueprints
        self._contracts = contracts
        self._on_accepted = on_accepted
        self._told: set[asyncio.Task[None]] = set()
        self._tasks: asyncio.TaskGroup | None = None

    def serve(self, tasks: asyncio.TaskGroup) -> None:
        """Callbacks run in `tasks`."""
        self._tasks = tasks

    async def accept(self, sender: WorkerId, event: WorkerEvent) -> EventAnswer:
        """Judge an event and pass it on. Raises Forbidden, BadRequest, JobNotFound, Conflict."""
        if event.worker_id != sender:
            raise Forbidden(
                f"Forbidden: Authenticated worker '{sender}' cannot send events"
                f" for another worker '{event.worker_id}'."
            )
        named = event.target_task_id or event.origin_task_id
        if not event.target_job_id or not named:
            raise BadRequest(
                "target_job_id and target_task_id are required: the task of yours the event is about"
            )
        job_id, task_id = parse_job_id(event.target_job_id), TaskId(named)
        stored = await self._jobs.load(job_id)
        if stored is None:
            raise JobNotFound
        job = stored.job
        fields = {"job_id": job_id, "task_id": task_id, "worker_id": sender}
        await self._check(job.origin.blueprint, event, fields)
        await self._check_skill(sender, job_id, task_id, event)
        now = self._clock.now()
        arrived = WorkerEventArrived(
            at=now,
            task_id=task_id,
            worker_id=sender,
            event_id=event.event_id,
            event_type=event.event_type,
            payload=event.payload,
        )
        leads_on = state_by_event(job, task_id, event.event_type) is not None
        report = await self._board.report_event(
            job_id,
            task_id,
            sender,
            event.event_id,
            event=arrived if leads_on else None,
            notification=pack_event_notification(job, event, now),
        )
        match report.answer:
            case ResultAnswer.APPLIED:
                pass
            case ResultAnswer.JOB_NOT_FOUND:
                raise JobNotFound
            case ResultAnswer.WORKER_MISMATCH:
                raise Forbidden(
                    f"Forbidden: Worker '{sender}' does not hold the task '{task_id}'"
                    f" of job '{job_id}'."
                )
            case _:
                log.info("worker event refused", reason=report.answer.value, **fields)
                raise Conflict(f"The event was not accepted: {_NOT_WANTED[report.answer]}")
        if not report.is_repeat:
            log.info("worker event taken", event_type=event.event_type, **fields)
            self._tell(sender, event)
        return EventAnswer()

    async def _check(self, blueprint: str, event: WorkerEvent, fields: Mapping[str, str]) -> None:
        """What the blueprint declares of its events. Raises BadRequest."""
        entry = await self._blueprints.named(blueprint)
        if entry is None or not entry.events:
            return
        if event.event_type not in entry.events:
            declared = ", ".join(sorted(entry.events))
            problem = f"it declares only these events: {declared}"
        else:
            schema = entry.events[event.event_type]
            reason = None if schema is None else compiled(schema).problem(event.payload)
            if reason is None:
                return
            problem = f"its payload does not fit the schema: {reason}"
        self._refuse(event, f"blueprint '{blueprint}'", problem, fields)

    async def _check_skill(
        self, sender: WorkerId, job_id: JobId, task_id: TaskId, event: WorkerEvent
    ) -> None:
        """What the worker itself declares of the skill. Raises BadRequest."""
        contracts = await self._contracts.of(sender)
        task_type = await self._board.type_of(task_id, job_id) if contracts else None
        contract = None if task_type is None else contracts.get(task_type)
        problem = (
            None if contract is None else check_event(contract, event.event_type, event.payload)
        )
        if problem is not None:
            fields = {"job_id": job_id, "task_id": task_id, "worker_id": sender}
            self._refuse(event, f"skill '{task_type}'", problem, fields)

    def _refuse(self, event: WorkerEvent, by: str, problem: str, fields: Mapping[str, str]) -> None:
        """Raises BadRequest, unless all that is wanted is to be told."""
        if self._is_strict:
            raise BadRequest(f"Event '{event.event_type}' is not valid for {by}: {problem}")
        log.warning(
            "worker event is not as declared",
            event_type=event.event_type,
            declared_by=by,
            reason=problem,
            **fields,
        )

    def _tell(self, sender: WorkerId, event: WorkerEvent) -> None:
        """The worker does not wait for what an application does with its event."""
        if self._on_accepted is None:
            return
        message: dict[str, Any] = msgspec.to_builtins(event)
        assert self._tasks is not None, "events are accepted while the service runs"
        told = self._tasks.create_task(self._on_accepted(sender, message))
        self._told.add(told)
        told.add_done_callback(self._told.discard)

    async def drain(self) -> None:
        """Let callbacks that are under way finish, for as long as a stop may take."""
        if not self._told:
            return
        _, late = await asyncio.wait(self._told, timeout=self._drain_seconds)
        for told in late:
            told.cancel()
