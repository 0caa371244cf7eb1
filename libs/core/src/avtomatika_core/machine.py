"""The job state machine: the only place that decides what a job does next.

Nothing here reads a clock, draws an id, logs or awaits: the event brings it all. A late or repeated
event is everyday and gives the same job back; it is known by its run, token or task id, never by
its place in an order.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, assert_never

from msgspec.structs import replace

from avtomatika_core.branches import branch_offer, open_branch
from avtomatika_core.commands import (
    CancelChild,
    ClearDeadline,
    ClearTimer,
    CloseBranches,
    CloseTask,
    Command,
    CreateChild,
    FollowedBy,
    Notify,
    RecordFact,
    ResumeParent,
    SetTimer,
    StartBranches,
    Step,
)
from avtomatika_core.errors import IllegalTransition
from avtomatika_core.events import (
    ApprovalDecided,
    BranchesDone,
    CancelRequested,
    ChildFinished,
    Continue,
    Event,
    HandlerRaised,
    HandlerReturned,
    JobCreated,
    JobSetAside,
    JobTimedOut,
    SignalReceived,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
    WorkerEventArrived,
)
from avtomatika_core.job import (
    REDRIVABLE,
    TERMINAL,
    ApprovalWait,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    Head,
    Job,
    JobData,
    JobId,
    JobStatus,
    LastError,
    Origin,
    Parent,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
    Wait,
    new_job,
)
from avtomatika_core.outcomes import (
    AwaitApproval,
    DispatchParallel,
    DispatchTask,
    EndOutcome,
    Rules,
    RunBlueprint,
    Sleep,
    TaskRequest,
    TransitionTo,
    WaitForSignal,
)
from avtomatika_core.retry import (
    Failure,
    attempt_fact,
    checkpoint_after,
    failure_of,
    most_attempts,
    offer,
    plain_seconds,
    policy_of,
    retry_delay,
    task_result,
    time_limits,
)
from avtomatika_core.signals import Signal

_OPEN: Final = frozenset(JobStatus) - TERMINAL

# The statuses in which an event can mean something, and then only for the right run, token or task.
# In every other status it is late or repeated and changes nothing.
APPLIES_IN: Final[Mapping[type[Event], frozenset[JobStatus]]] = {
    JobCreated: frozenset({JobStatus.PENDING}),
    Continue: frozenset(),  # carries a running job from one inbox entry to the next
    HandlerReturned: frozenset({JobStatus.RUNNING}),
    HandlerRaised: frozenset({JobStatus.RUNNING}),
    TaskSucceeded: frozenset({JobStatus.WAITING_FOR_WORKER}),
    TaskFailed: frozenset({JobStatus.WAITING_FOR_WORKER}),
    TaskCancelled: frozenset({JobStatus.WAITING_FOR_WORKER}),
    TaskTimedOut: frozenset({JobStatus.WAITING_FOR_WORKER}),
    WorkerEventArrived: frozenset({JobStatus.WAITING_FOR_WORKER}),
    BranchesDone: frozenset({JobStatus.WAITING_FOR_PARALLEL_TASKS}),
    ChildFinished: frozenset({JobStatus.WAITING_FOR_SUB_JOB}),
    ApprovalDecided: frozenset({JobStatus.WAITING_FOR_HUMAN}),
    TimerFired: frozenset(
        {
            JobStatus.AWAITING_RETRY,
            JobStatus.WAITING_FOR_HUMAN,
            JobStatus.SLEEPING,
            JobStatus.WAITING_FOR_SIGNAL,
        }
    ),
    SignalReceived: _OPEN | REDRIVABLE,  # kept: the job may run again
    JobTimedOut: _OPEN,
    CancelRequested: _OPEN,
    JobSetAside: _OPEN,
}
# What still applies once the cancel mark is set.
_DESPITE_THE_MARK: Final[frozenset[type[Event]]] = frozenset(
    {CancelRequested, JobTimedOut, JobSetAside, SignalReceived}
)

_STATUS_OF_OUTCOME: Final[Mapping[EndOutcome, JobStatus]] = {
    EndOutcome.SUCCESS: JobStatus.FINISHED,
    EndOutcome.FAILURE: JobStatus.FAILED,
    EndOutcome.CANCELLED: JobStatus.CANCELLED,
}
_OUTCOME_OF_CHILD: Final[Mapping[str, str]] = {
    JobStatus.FINISHED: "success",
    JobStatus.FAILED: "failure",
    JobStatus.QUARANTINED: "failure",
    JobStatus.CANCELLED: "cancelled",
}
_NOTICE: Final[
    Mapping[JobStatus, Literal["job_finished", "job_failed", "job_quarantined", "job_cancelled"]]
] = {
    JobStatus.FINISHED: "job_finished",
    JobStatus.FAILED: "job_failed",
    JobStatus.QUARANTINED: "job_quarantined",
    JobStatus.CANCELLED: "job_cancelled",
}


def step(job: Job, event: Event, rules: Rules) -> Step:
    """Advance `job` by `event`. `result.job is job` when the event changes nothing.

    Raises `IllegalTransition` for what no order of events can bring about, and then nothing has
    changed.
    """
    kind = type(event)
    if job.head.status not in APPLIES_IN[kind] or (job.cancelled and kind not in _DESPITE_THE_MARK):
        return Step(job)
    match event:
        case HandlerReturned():
            return _returned(job, event, rules)
        case HandlerRaised():
            return _raised(job, event, rules)
        case JobCreated():
            return _created(job, event)
        case TaskSucceeded() | TaskFailed() | TaskCancelled() | TaskTimedOut():
            return _task_ended(job, event, rules)
        case WorkerEventArrived():
            return _event_arrived(job, event, rules)
        case TimerFired():
            return _timer_fired(job, event, rules)
        case BranchesDone():
            return _branches_done(job, event, rules)
        case ChildFinished():
            return _child_finished(job, event, rules)
        case ApprovalDecided():
            return _decided(job, event, rules)
        case SignalReceived():
            return _signal_received(job, event, rules)
        case JobTimedOut():
            return _timed_out(job, event)
        case CancelRequested():
            return _cancelled(job, event, rules)
        case JobSetAside():
            return _set_aside(job, event)
        case Continue():
            return Step(job)
        case _:
            assert_never(event)


# --- The handler came back


def _created(job: Job, event: JobCreated) -> Step:
    head = replace(job.head, status=JobStatus.RUNNING, updated_at=event.at)
    return Step(replace(job, head=head, run=job.run + 1))


def _returned(job: Job, event: HandlerReturned, rules: Rules) -> Step:
    if event.run != job.run:
        return Step(job)
    if event.data is not None or event.context_updates:
        data = job.data if event.data is None else event.data
        job = replace(job, data=_updated(data, event.context_updates))
    result = _acted(job, event, rules)
    if not event.sent_events:
        return result
    notices = (Notify(event="worker_event", at=event.at, sent=sent) for sent in event.sent_events)
    return Step(result.job, (*notices, *result.commands))


def _acted(job: Job, event: HandlerReturned, rules: Rules) -> Step:
    """What the action of the handler makes of the job."""
    match event.action:
        case TransitionTo():
            fact = _handled(job, event, "transition", event.action.state)
            error = event.action.error_message or _lasting_error(job.head)
            return _enter(job, event.action.state, event.at, rules, error, (fact,))
        case DispatchTask():
            return _dispatch(job, event, event.action.task, rules)
        case DispatchParallel():
            return _fan_out(job, event, event.action, rules)
        case RunBlueprint():
            return _run_blueprint(job, event, event.action, rules)
        case AwaitApproval():
            return _await_approval(job, event, event.action)
        case Sleep():
            return _sleep(job, event, event.action, rules)
        case WaitForSignal():
            return _wait_for_signal(job, event, event.action, rules)
        case None:
            return _end_or_nothing(job, event, rules)
        case _:
            assert_never(event.action)


def _updated(data: JobData, updates: dict[str, Any]) -> JobData:
    if not updates:
        return data
    return replace(data, state_history={**data.state_history, **updates})


def _dispatch(job: Job, event: HandlerReturned, request: TaskRequest, rules: Rules) -> Step:
    task_id = TaskId(_one_id(job, event))
    fact = _handled(job, event, "task", task_info={"task_id": task_id, **request.described()})
    head = _waiting_head(job, event.at)
    return _offer(replace(job, head=head), task_id, request, 1, event.at, rules, (fact,))


def _fan_out(job: Job, event: HandlerReturned, action: DispatchParallel, rules: Rules) -> Step:
    if len(event.fresh_ids) != len(action.tasks):
        raise _illegal(job, event, f"{len(action.tasks)} tasks, {len(event.fresh_ids)} ids")
    token = str(job.run)
    ids = [TaskId(task_id) for task_id in event.fresh_ids]
    branches = tuple(
        open_branch(
            index,
            request,
            token=token,
            state=job.head.state,
            at=event.at,
            origin=job.origin,
            rules=rules,
        )
        for index, request in enumerate(action.tasks)
    )
    offers = tuple(
        branch_offer(task_id, branch, origin=job.origin, data_metadata=job.data_metadata)
        for task_id, branch in zip(ids, branches, strict=True)
    )
    tasks = [
        {"task_id": task_id, **request.described()}
        for task_id, request in zip(ids, action.tasks, strict=True)
    ]
    commands = (
        StartBranches(token=token, branches=branches, offers=offers),
        _handled(job, event, "parallel", tasks=tasks),
    )
    if not branches:
        error = _lasting_error(job.head)
        return _enter(
            job, action.aggregate_into, event.at, rules, error, commands, aggregating=True
        )
    wait = BranchesWait(token=token, aggregate_into=action.aggregate_into, count=len(branches))
    return _wait(job, event.at, JobStatus.WAITING_FOR_PARALLEL_TASKS, wait, commands)


def _run_blueprint(job: Job, event: HandlerReturned, action: RunBlueprint, rules: Rules) -> Step:
    origin = job.origin
    if origin.depth >= rules.max_depth:
        text = (
            f"State '{job.head.state}' would start blueprint '{action.blueprint}' more than "
            f"{rules.max_depth} generations below the first job (MAX_HOLARCHY_DEPTH): raise the "
            "limit or end the recursion."
        )
        fact = _handled(job, event, "failure")
        return _end(job, event.at, JobStatus.FAILED, text, (fact,))
    if not (event.child_group and event.child_start_state):
        raise _illegal(job, event, f"group or start state of '{action.blueprint}' is missing")
    child_id = JobId(_one_id(job, event))
    token = str(job.run)
    child = new_job(
        child_id,
        Origin(
            blueprint=action.blueprint,
            group=event.child_group,
            start_state=event.child_start_state,
            initial_data=action.initial_data,
            client=origin.client,
            created_at=event.at,
            data_metadata=job.data_metadata,
            tracing_context=origin.tracing_context,
            dispatch_timeout=_own_or(action.dispatch_timeout, origin.dispatch_timeout),
            result_timeout=_own_or(action.result_timeout, origin.result_timeout),
            parent=Parent(job_id=job.id, group=origin.group, token=token),
            depth=origin.depth + 1,
        ),
    )
    wait = ChildWait(
        token=token,
        child_id=child_id,
        child_group=event.child_group,
        blueprint=action.blueprint,
        transitions=action.transitions,
    )
    fact = _handled(job, event, "blueprint", action.blueprint, child_job_id=child_id)
    commands = (CreateChild(child=child), fact)
    return _wait(job, event.at, JobStatus.WAITING_FOR_SUB_JOB, wait, commands)


def _own_or(own: float | None, of_parent: float | None) -> float | None:
    return of_parent if own is None else own


def _await_approval(job: Job, event: HandlerReturned, action: AwaitApproval) -> Step:
    if not event.approval_secret_hash:
        raise _illegal(job, event, "the approval has no token")
    deadline = None if action.timeout_seconds is None else event.at + action.timeout_seconds
    wait = ApprovalWait(
        token=str(job.run),
        secret_hash=event.approval_secret_hash,
        integration=action.integration,
        message=action.message,
        transitions=action.transitions,
        requested_at=event.at,
        deadline=deadline,
    )
    shown = {
        "integration": action.integration,
        "message": action.message,
        "decisions": wait.decisions,
        "deadline": deadline,
    }
    commands: tuple[Command, ...] = (
        Notify(
            event="approval_requested",
            at=event.at,
            approval={**shown, "token": event.approval_secret},
        ),
        _handled(job, event, "approval", approval=shown),
    )
    if deadline is not None:
        commands = (SetTimer(token=wait.token, due=deadline), *commands)
    return _wait(job, event.at, JobStatus.WAITING_FOR_HUMAN, wait, commands)


def _sleep(job: Job, event: HandlerReturned, action: Sleep, rules: Rules) -> Step:
    due = event.at + (action.seconds or 0.0) if action.until is None else action.until
    fact = _handled(job, event, "sleep", action.next_state)
    if due <= event.at:
        error = _lasting_error(job.head)
        return _enter(job, action.next_state, event.at, rules, error, (fact,))
    wait = SleepWait(token=str(job.run), due=due, next_state=action.next_state)
    commands = (SetTimer(token=wait.token, due=due), fact)
    return _wait(job, event.at, JobStatus.SLEEPING, wait, commands)


def _wait_for_signal(job: Job, event: HandlerReturned, action: WaitForSignal, rules: Rules) -> Step:
    fact = _handled(job, event, "signal")
    kept = job.signals.oldest(action.name)
    if kept is not None:
        error = _lasting_error(job.head)
        return _take_signal(job, kept, action.transitions, event.at, rules, error, (fact,))
    deadline = None if action.timeout_seconds is None else event.at + action.timeout_seconds
    wait = SignalWait(
        token=str(job.run),
        name=action.name,
        transitions=action.transitions,
        requested_at=event.at,
        deadline=deadline,
    )
    commands: tuple[Command, ...] = (fact,)
    if deadline is not None:
        commands = (SetTimer(token=wait.token, due=deadline), *commands)
    return _wait(job, event.at, JobStatus.WAITING_FOR_SIGNAL, wait, commands)


def _end_or_nothing(job: Job, event: HandlerReturned, rules: Rules) -> Step:
    state = job.head.state
    outcome = rules.end_states.get(state)
    if outcome is None:
        text = f"Handler for state '{state}' set no action."
        return _end(job, event.at, JobStatus.FAILED, text, (_handled(job, event, "failure"),))
    fact = _handled(job, event, "end")
    error = _lasting_error(job.head)
    return _end(job, event.at, _STATUS_OF_OUTCOME[outcome], error, (fact,))


def _raised(job: Job, event: HandlerRaised, rules: Rules) -> Step:
    if event.run != job.run:
        return Step(job)
    head = job.head
    fact = RecordFact(
        kind="step_failed",
        at=event.at,
        state=head.state,
        started_at=event.started_at,
        attempt=head.retry_count + 1,
        details={"error_message": event.message},
    )
    policy, repeat = policy_of(None, rules), head.retry_count + 1
    if event.is_definition_error or repeat >= most_attempts(policy, rules):
        return _end(job, event.at, JobStatus.QUARANTINED, event.message, (fact,))
    wait = HandlerRetryWait(
        token=str(job.run), due=event.at + retry_delay(repeat, event.jitter, policy, rules)
    )
    return Step(
        replace(
            job,
            head=replace(
                head,
                status=JobStatus.AWAITING_RETRY,
                retry_count=repeat,
                wait=wait,
                error_message=event.message,
                updated_at=event.at,
            ),
        ),
        (SetTimer(token=wait.token, due=wait.due), fact),
    )


# --- Something the job waited for came


def _task_ended(job: Job, event: TaskEvent, rules: Rules) -> Step:
    wait = job.head.wait
    if not isinstance(wait, TaskWait) or wait.task_id != event.task_id:
        return Step(job)
    failure = failure_of(event, wait)
    result = task_result(event, job.id, failure)
    commands = (attempt_fact(event, job.head.state, wait.attempt, result),)
    if failure is not None:
        return _task_failed(job, event, wait, failure, rules, commands)
    next_state = wait.request.transitions.get(result["status"])
    if next_state is not None:
        job = _merged(job, event)
        head = replace(job.head, last_error=None)
        error = _lasting_error(job.head)
        return _enter(replace(job, head=head), next_state, event.at, rules, error, commands)
    if isinstance(event, TaskCancelled):
        text = f"The worker stopped task '{event.task_id}' as cancelled."
        return _end(job, event.at, JobStatus.CANCELLED, text, commands)
    text = f"Worker returned unhandled status: {result['status']}"
    return _unhandled(job, event.at, text, rules, commands)


def _task_failed(
    job: Job,
    event: TaskEvent,
    wait: TaskWait,
    failure: Failure,
    rules: Rules,
    commands: tuple[Command, ...],
) -> Step:
    if not failure.is_last(wait.attempt, wait.request, rules):
        token = f"{job.run}.{wait.attempt + 1}"
        policy = policy_of(wait.request, rules)
        due = event.at + retry_delay(wait.attempt, event.jitter, policy, rules)
        retry = TaskRetryWait(
            token=token,
            request=wait.request,
            attempt=wait.attempt + 1,
            due=due,
            checkpoint=checkpoint_after(event, wait),
        )
        head = replace(
            job.head,
            status=JobStatus.AWAITING_RETRY,
            task_retry_count=wait.attempt,
            wait=retry,
            error_message=failure.message,
            updated_at=event.at,
        )
        return Step(replace(job, head=head), (SetTimer(token=token, due=due), *commands))
    status, text = failure.ending(wait.attempt)
    transitions = wait.request.transitions
    next_state = transitions.get("failure")
    if isinstance(event, TaskTimedOut):
        next_state = transitions.get("timeout", next_state)
    if next_state is None:
        return _end(job, event.at, status, text, commands)
    last_error = LastError(
        code=failure.code,
        message=failure.message,
        details=failure.details,
        task_id=event.task_id,
        worker_id=event.worker_id,
    )
    job = _merged(job, event)
    head = replace(job.head, last_error=last_error)
    return _enter(replace(job, head=head), next_state, event.at, rules, text, commands)


def state_by_event(job: Job, task_id: TaskId, event_type: str) -> str | None:
    """Where an event of this type about this task leads the job; None: it changes nothing."""
    wait = job.head.wait
    if not isinstance(wait, TaskWait) or wait.task_id != task_id:
        return None
    return wait.request.event_transitions.get(event_type)


def _event_arrived(job: Job, event: WorkerEventArrived, rules: Rules) -> Step:
    next_state = state_by_event(job, event.task_id, event.event_type)
    if next_state is None:
        return Step(job)
    told = {"event_id": event.event_id, "event_type": event.event_type, "payload": event.payload}
    fact = RecordFact(
        kind="worker_event",
        at=event.at,
        state=job.head.state,
        next_state=next_state,
        worker_id=event.worker_id,
        details={"worker_event": told},
    )
    commands = (CloseTask(task_id=event.task_id), fact)
    error = _lasting_error(job.head)
    head = replace(job.head, last_error=None)
    job = replace(job, head=head, data=_updated(job.data, event.payload))
    return _enter(job, next_state, event.at, rules, error, commands)


def _merged(job: Job, event: TaskEvent) -> Job:
    """The job with what the worker sent laid over its own data."""
    if isinstance(event, TaskTimedOut):
        return job
    data = _updated(job.data, event.data or {})
    if not isinstance(event, TaskCancelled) and event.data_metadata:
        data = replace(data, data_metadata={**job.data_metadata, **event.data_metadata})
    return replace(job, data=data)


def _timer_fired(job: Job, event: TimerFired, rules: Rules) -> Step:
    wait = job.head.wait
    match wait:
        case HandlerRetryWait(token=event.token):
            head = replace(job.head, status=JobStatus.RUNNING, wait=None, updated_at=event.at)
            return Step(replace(job, head=head, run=job.run + 1))
        case TaskRetryWait(token=event.token):
            return _offer(
                job,
                event.fresh_id,
                wait.request,
                wait.attempt,
                event.at,
                rules,
                checkpoint=wait.checkpoint,
            )
        case ApprovalWait(token=event.token):
            next_state = wait.transitions.get("timeout")
            if next_state is not None:
                error = job.head.error_message
                return _enter(job, next_state, event.at, rules, error)
            seconds = plain_seconds((wait.deadline or event.at) - wait.requested_at)
            text = f"Nobody decided on the approval '{wait.integration}' within {seconds} seconds."
            return _end(job, event.at, JobStatus.FAILED, text)
        case SleepWait(token=event.token):
            error = job.head.error_message
            return _enter(job, wait.next_state, event.at, rules, error)
        case SignalWait(token=event.token):
            next_state = wait.transitions.get("timeout")
            if next_state is not None:
                error = job.head.error_message
                return _enter(job, next_state, event.at, rules, error)
            seconds = plain_seconds((wait.deadline or event.at) - wait.requested_at)
            text = f"No signal '{wait.name}' came within {seconds} seconds."
            return _end(job, event.at, JobStatus.FAILED, text)
        case _:
            return Step(job)


def _branches_done(job: Job, event: BranchesDone, rules: Rules) -> Step:
    wait = job.head.wait
    if not isinstance(wait, BranchesWait) or wait.token != event.token:
        return Step(job)
    error = job.head.error_message
    return _enter(job, wait.aggregate_into, event.at, rules, error, aggregating=True)


def _child_finished(job: Job, event: ChildFinished, rules: Rules) -> Step:
    wait = job.head.wait
    if (
        not isinstance(wait, ChildWait)
        or wait.token != event.token
        or wait.child_id != event.child_id
    ):
        return Step(job)
    outcome = _OUTCOME_OF_CHILD.get(event.status)
    if outcome is None:
        raise _illegal(job, event, f"sub-job '{event.child_id}' is still {event.status!r}")
    entry = {
        "outcome": outcome,
        "final_state": event.final_state,
        "error_message": event.error_message,
        "result": event.result,
    }
    job = replace(job, data=_updated(job.data, {f"sub_job_{event.child_id}_result": entry}))
    next_state = wait.transitions.get(outcome)
    if next_state is None and outcome == "cancelled":
        next_state = wait.transitions.get("failure")
    if next_state is None:
        text = f"No transition for sub-job outcome '{outcome}'."
        return _unhandled(job, event.at, text, rules)
    error = job.head.error_message
    if outcome != "success":
        reason = f": {event.error_message}" if event.error_message else "."
        error = f"Sub-job '{event.child_id}' ended as {event.status}{reason}"
    return _enter(job, next_state, event.at, rules, error)


def _decided(job: Job, event: ApprovalDecided, rules: Rules) -> Step:
    wait = job.head.wait
    if not isinstance(wait, ApprovalWait) or wait.token != event.token:
        return Step(job)
    next_state = wait.transitions.get(event.decision)
    if next_state is None:
        raise _illegal(job, event, f"'{event.decision}' is none of its decisions")
    fact = RecordFact(
        kind="approval_received",
        at=event.at,
        state=job.head.state,
        next_state=next_state,
        started_at=wait.requested_at,
        details={"decision": event.decision},
    )
    error = job.head.error_message
    return _enter(job, next_state, event.at, rules, error, (*_closing(wait), fact))


def _signal_received(job: Job, event: SignalReceived, rules: Rules) -> Step:
    """The wait for it takes it. Else it is kept: also by a job that is being stopped, for that may
    lead to another state, and by one that was stopped while it was on its way."""
    if job.signals.know(event.number):
        return Step(job)
    signal = Signal(number=event.number, name=event.name, data=event.data)
    wait = job.head.wait
    if job.cancelled or not isinstance(wait, SignalWait) or wait.name != event.name:
        return Step(replace(job, signals=job.signals.keeping(signal)))
    error = job.head.error_message
    return _take_signal(job, signal, wait.transitions, event.at, rules, error, _closing(wait))


def _take_signal(
    job: Job,
    signal: Signal,
    transitions: Mapping[str, str],
    at: float,
    rules: Rules,
    error_message: str | None,
    commands: tuple[Command, ...],
) -> Step:
    next_state = transitions["received"]
    fact = RecordFact(
        kind="signal_received",
        at=at,
        state=job.head.state,
        next_state=next_state,
        details={"signal": {"name": signal.name, "data": signal.data}},
    )
    job = replace(job, data=_updated(job.data, signal.data), signals=job.signals.taking(signal))
    return _enter(job, next_state, at, rules, error_message, (*commands, fact))


# --- The job is stopped from outside


def _cancelled(job: Job, event: CancelRequested, rules: Rules) -> Step:
    if not job.cancelled:  # whoever asks sets the mark first: without it this is a repeat
        return Step(job)
    wait = job.head.wait
    fact = RecordFact(
        kind="job_cancelled", at=event.at, state=job.head.state, details={"reason": event.reason}
    )
    next_state = _transitions_of(wait).get("cancelled")
    if next_state is None:
        return _end(job, event.at, JobStatus.CANCELLED, event.reason, (fact,), open_wait=wait)
    error = job.head.error_message
    return _enter(job, next_state, event.at, rules, error, (*_closing(wait), fact))


def _transitions_of(wait: Wait | None) -> Mapping[str, str]:
    match wait:
        case TaskWait() | TaskRetryWait():
            return wait.request.transitions
        case ChildWait() | ApprovalWait() | SignalWait():
            return wait.transitions
        case HandlerRetryWait() | BranchesWait() | SleepWait() | None:
            return {}
        case _:
            assert_never(wait)


def _timed_out(job: Job, event: JobTimedOut) -> Step:
    """Also without the mark, for a cancel that led on has taken it away; so a new run is counted,
    and a handler that runs now is found unwanted."""
    seconds = job.origin.timeout_seconds
    if seconds is None:
        raise _illegal(job, event, "it has no deadline")
    redriven_at = job.head.redriven_at
    if redriven_at is not None and event.at <= redriven_at:  # since then it has all of it again
        return Step(job)
    text = f"Job timed out after {plain_seconds(seconds)} seconds."
    stopped = replace(job, run=job.run + 1, cancelled=False)
    return _end(stopped, event.at, JobStatus.FAILED, text, open_wait=job.head.wait)


def _set_aside(job: Job, event: JobSetAside) -> Step:
    return _end(job, event.at, JobStatus.QUARANTINED, event.reason, open_wait=job.head.wait)


# --- Where every way ends: a next state, a wait, or the end


def _enter(
    job: Job,
    state: str,
    at: float,
    rules: Rules,
    error_message: str | None,
    commands: tuple[Command, ...] = (),
    *,
    aggregating: bool = False,
) -> Step:
    """A handler run in `state` is wanted; its counters are fresh and the cancel mark is gone."""
    head = job.head
    entered = head.transition_count + 1
    if entered > rules.max_transitions > 0:
        text = (
            f"More than {rules.max_transitions} transitions (MAX_TRANSITIONS_PER_JOB), the last "
            f"from state '{head.state}' to '{state}': raise the limit, or end the loop."
        )
        return _end(job, at, JobStatus.FAILED, text, commands)
    return Step(
        Job(
            id=job.id,
            origin=job.origin,
            head=Head(
                status=JobStatus.RUNNING,
                state=state,
                aggregating=aggregating,
                transition_count=entered,
                error_message=error_message,
                last_error=head.last_error,
                updated_at=at,
                redriven_at=head.redriven_at,
            ),
            data=job.data,
            run=job.run + 1,
            signals=job.signals,
        ),
        commands,
    )


def _unhandled(
    job: Job, at: float, text: str, rules: Rules, commands: tuple[Command, ...] = ()
) -> Step:
    """An outcome for which the blueprint declares no next state."""
    if rules.has_failed_state:
        return _enter(job, "failed", at, rules, text, commands)
    return _end(job, at, JobStatus.FAILED, text, commands)


def _waiting_head(job: Job, at: float) -> Head:
    """The head after a handler that succeeded and does not leave its state yet."""
    return replace(
        job.head,
        retry_count=0,
        task_retry_count=0,
        error_message=_lasting_error(job.head),
        updated_at=at,
    )


def _wait(
    job: Job, at: float, status: JobStatus, wait: Wait, commands: tuple[Command, ...]
) -> Step:
    head = replace(_waiting_head(job, at), status=status, wait=wait)
    return Step(replace(job, head=head), commands)


def _offer(
    job: Job,
    task_id: TaskId,
    request: TaskRequest,
    attempt: int,
    at: float,
    rules: Rules,
    commands: tuple[Command, ...] = (),
    *,
    checkpoint: dict[str, Any] | None = None,
) -> Step:
    """Attempt number `attempt` of a task goes on the board, and the job waits for it."""
    deadline, result_timeout = time_limits(request, job.origin, rules, at)
    wait = TaskWait(
        task_id=task_id,
        request=request,
        attempt=attempt,
        dispatched_at=at,
        dispatch_deadline=deadline,
        result_timeout_seconds=result_timeout,
        checkpoint=checkpoint,
    )
    task = offer(
        task_id,
        request,
        attempt=attempt,
        dispatch_deadline=deadline,
        result_timeout_seconds=result_timeout,
        origin=job.origin,
        data_metadata=job.data_metadata,
        checkpoint=checkpoint,
    )
    head = replace(job.head, status=JobStatus.WAITING_FOR_WORKER, wait=wait, updated_at=at)
    return Step(replace(job, head=head), (task, *commands))


def _end(
    job: Job,
    at: float,
    status: JobStatus,
    error_message: str | None,
    commands: tuple[Command, ...] = (),
    *,
    open_wait: Wait | None = None,
) -> Step:
    """The one terminal routine. `open_wait` is what a forced end must still close."""
    is_success = status is JobStatus.FINISHED
    head = replace(
        job.head,
        status=status,
        wait=None,
        error_message=None if is_success else error_message,
        last_error=None if is_success else job.head.last_error,
        updated_at=at,
        finished_at=at,
    )
    commands = (
        *_closing(open_wait),
        *(() if job.origin.timeout_seconds is None else (ClearDeadline(),)),
        *commands,
        RecordFact(kind="job_completed", at=at, state=head.state, started_at=job.origin.created_at),
        Notify(event=_NOTICE[status], at=at),
    )
    parent = job.origin.parent
    if parent is not None:
        answer = ChildFinished(
            at=at,
            token=parent.token,
            child_id=job.id,
            status=status,
            final_state=head.state,
            error_message=head.error_message,
            result=job.data.state_history,
        )
        commands = (*commands, ResumeParent(parent=parent, event=answer))
    return Step(replace(job, head=head), commands)


def _closing(wait: Wait | None) -> tuple[Command, ...]:
    """What must go with a wait that ends otherwise than by what it waited for."""
    match wait:
        case TaskWait():
            return (CloseTask(task_id=wait.task_id),)
        case BranchesWait():
            return (CloseBranches(),)
        case ChildWait():
            return (CancelChild(child_id=wait.child_id, child_group=wait.child_group),)
        case TaskRetryWait() | HandlerRetryWait() | SleepWait():
            return (ClearTimer(token=wait.token),)
        case ApprovalWait() | SignalWait():
            return () if wait.deadline is None else (ClearTimer(token=wait.token),)
        case None:
            return ()
        case _:
            assert_never(wait)


# --- Small parts


def _handled(
    job: Job,
    event: HandlerReturned,
    followed_by: FollowedBy,
    next_state: str | None = None,
    **details: Any,
) -> RecordFact:
    return RecordFact(
        kind="step",
        at=event.at,
        state=job.head.state,
        started_at=event.started_at,
        next_state=next_state,
        followed_by=followed_by,
        attempt=job.head.retry_count + 1,
        details=details or None,
    )


def _lasting_error(head: Head) -> str | None:
    """The error that stays when the current handler or task succeeds: not one of its own."""
    return None if head.retry_count or head.task_retry_count else head.error_message


def _one_id(job: Job, event: HandlerReturned) -> str:
    if len(event.fresh_ids) != 1:
        raise _illegal(job, event, f"one id is needed, {len(event.fresh_ids)} came")
    return event.fresh_ids[0]


def _illegal(job: Job, event: Event, reason: str) -> IllegalTransition:
    return IllegalTransition(status=job.head.status, event=type(event).__name__, reason=reason)
