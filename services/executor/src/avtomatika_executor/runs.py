"""One run of one handler: what it gets, and the event its end is."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import msgspec

from avtomatika_common import codec, ids
from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import Backend, Stored
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import ClientConfig, JobContext
from avtomatika_common.definitions import DefinitionError
from avtomatika_common.handlers import CompiledHandler
from avtomatika_common.logs import get_logger
from avtomatika_common.user_data import ensure_json
from avtomatika_core.events import HandlerRaised, HandlerReturned
from avtomatika_core.job import Job, JobData, LastError
from avtomatika_core.outcomes import (
    Action,
    AwaitApproval,
    DispatchParallel,
    DispatchTask,
    RunBlueprint,
    SentEvent,
    TransitionTo,
)
from avtomatika_executor.hosting import Hosting

log = get_logger()


class Ended(msgspec.Struct, frozen=True):
    """How a run ended, and the data it left, packed (None: unchanged or not kept)."""

    event: HandlerReturned | HandlerRaised
    packed_data: bytes | None = None

    def packed_for(self, job: Job) -> bytes | None:
        """The job's data packed, if nothing (a signal that was kept) was laid over what it left."""
        if isinstance(self.event, HandlerReturned) and job.data is self.event.data:
            return self.packed_data
        return None


class HandlerRuns:
    """Runs handlers on copies of the job's data, so that nothing of a failed run is kept."""

    def __init__(self, backend: Backend, hosting: Hosting, threads: Executor) -> None:
        self._jobs = backend.jobs
        self._now: Callable[[], float] = backend.clock.now
        self._partitions = backend.partitions
        self._hosting = hosting
        self._threads = threads

    async def run(self, blueprint: StateMachineBlueprint, stored: Stored) -> Ended:
        """Run the handler of the job's current state. Only what the store raises is raised."""
        job = stored.job
        started_at = self._now()
        results = await self._results(job) if job.head.aggregating else None
        try:
            context, handler = self._prepare(blueprint, stored, results)
            await handler.run(context, self._threads)
            data, packed = None, None
            if handler.may_change_data:
                data, packed = _changed_data(stored, context)
            action, updates = context.actions.action, context.actions.context_updates
            sent = context.actions.sent_events
            _refuse_what_is_not_json(job.state, action, updates, sent)
        except (Exception, asyncio.CancelledError, SystemExit) as error:
            if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            return self._raised(blueprint, job, error, started_at)
        try:
            event = await self._returned(job, action, updates, data, started_at)
        except DefinitionError as error:
            return self._raised(blueprint, job, error, started_at)
        if sent:
            event = msgspec.structs.replace(event, sent_events=sent)
        return Ended(event, None if updates else packed)

    async def _results(self, job: Job) -> dict[str, Any]:
        results = await self._jobs.branch_results(job.id)
        return {task_id: branch.result for task_id, branch in results.items()}

    def _prepare(
        self, blueprint: StateMachineBlueprint, stored: Stored, results: dict[str, Any] | None
    ) -> tuple[JobContext, CompiledHandler]:
        job = stored.job
        origin, head = job.origin, job.head
        context = JobContext(
            job.id,
            head.state,
            job.initial_data,
            job.data.state_history,
            ClientConfig(origin.client.token, origin.client.plan, origin.client.params),
            ActionFactory(job.id),
            blueprint.stores,
            origin.tracing_context,
            results,
            origin.webhook_url,
            None,
            None if head.last_error is None else _as_dict(head.last_error),
        )
        if blueprint.conditional_handlers:  # a condition is the user's code too
            context = _on_copies(context, stored)
            return context, blueprint.handler_to_run(context)
        handler = blueprint.handler_to_run(context)
        return (_on_copies(context, stored) if handler.may_change_data else context), handler

    def _raised(
        self,
        blueprint: StateMachineBlueprint,
        job: Job,
        error: BaseException,
        started_at: float,
    ) -> Ended:
        """Called while `error` is handled."""
        where = {"job_id": job.id, "blueprint": blueprint.name, "state": job.state, "run": job.run}
        is_definition_error = isinstance(error, DefinitionError)
        if is_definition_error:
            message = str(error)
            log.error("blueprint cannot go on", **where, reason=message)
        else:
            message = f"Handler for state '{job.state}' raised {type(error).__name__}: {error}"
            log.exception("handler raised", **where, error=type(error).__name__)  # noqa: LOG004
        return Ended(
            HandlerRaised(
                at=self._now(),
                run=job.run,
                message=message,
                is_definition_error=is_definition_error,
                started_at=started_at,
                jitter=secrets.randbelow(2001) / 1000 - 1,
            )
        )

    async def _returned(
        self,
        job: Job,
        action: Action | None,
        updates: dict[str, Any],
        data: JobData | None,
        started_at: float,
    ) -> HandlerReturned:
        fresh_ids: tuple[str, ...] = ()
        child_group, child_start_state, secret = "", "", ""
        match action:
            case DispatchTask():
                fresh_ids = (ids.new_id(),)
            case DispatchParallel():
                fresh_ids = tuple(ids.new_id() for _ in action.tasks)
            case RunBlueprint():
                partition = ids.partition_of(job.id, self._partitions)
                fresh_ids = (ids.new_id_in_partition(partition, self._partitions),)
                child = await self._hosting.entry(action.blueprint)
                child_group, child_start_state = child.group, child.start_state
            case AwaitApproval():
                secret = secrets.token_urlsafe(32)
            case _:
                pass
        return HandlerReturned(
            at=self._now(),
            run=job.run,
            action=action,
            data=data,
            context_updates=updates,
            started_at=started_at,
            fresh_ids=fresh_ids,
            child_group=child_group,
            child_start_state=child_start_state,
            approval_secret=secret,
            approval_secret_hash=hashlib.sha256(secret.encode()).hexdigest() if secret else "",
        )


def _is_being_cancelled() -> bool:
    """Whether we are to stop; else a CancelledError is an error of the handler's own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _on_copies(context: JobContext, stored: Stored) -> JobContext:
    data = codec.unpack_data(stored.packed_data)
    initial_data = data.initial_data
    if initial_data is None:
        initial_data = codec.unpack(codec.pack(stored.job.origin.initial_data))
    return context._replace(state_history=data.state_history, initial_data=initial_data)


def _changed_data(stored: Stored, context: JobContext) -> tuple[JobData | None, bytes | None]:
    """The data as the handler left it, and packed; None where nothing changed."""
    before = stored.job.data
    initial_data: dict[str, Any] | None = context.initial_data
    if before.initial_data is None and initial_data == stored.job.origin.initial_data:
        initial_data = None
    after = JobData(
        state_history=context.state_history,
        initial_data=initial_data,
        data_metadata=before.data_metadata,
    )
    try:
        packed = codec.pack_data(after)
    except codec.NotJson:
        # Raises the DefinitionError that names the place; else what it gives can be packed.
        plain = ensure_json(
            stored.job.state,
            {"state_history": after.state_history, "initial_data": context.initial_data},
        )
        after = msgspec.structs.replace(
            after,
            state_history=plain["state_history"],
            initial_data=None if initial_data is None else plain["initial_data"],
        )
        packed = codec.pack_data(after)
    if packed == stored.packed_data:
        return None, None
    return after, packed


def _refuse_what_is_not_json(
    state: str, action: Action | None, updates: dict[str, Any], sent: tuple[SentEvent, ...]
) -> None:
    if isinstance(action, TransitionTo) and not (updates or sent):  # the plain step
        return
    match action:
        case DispatchTask(task=task):
            given: dict[str, object] = {"params": task.params}
        case DispatchParallel(tasks=tasks):
            given = {"params": [task.params for task in tasks]}
        case RunBlueprint(initial_data=initial_data):
            given = {"initial_data": initial_data}
        case _:
            given = {}
    if updates:
        given["update_context"] = updates
    if sent:
        given["send_event"] = [event.payload for event in sent]
    if not given:
        return
    try:
        codec.check_json(given)
    except codec.NotJson:
        ensure_json(state, given)


def _as_dict(error: LastError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "details": error.details,
        "task_id": error.task_id,
        "worker_id": error.worker_id,
    }
