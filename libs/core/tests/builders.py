"""Jobs in every state, and what happens to them, for the tests of the core."""

from typing import Any, TypeVar

from msgspec.structs import replace

from avtomatika_core.commands import (
    Command,
    Notify,
    RecordFact,
    ResumeParent,
    Step,
)
from avtomatika_core.events import (
    CancelRequested,
    ChildFinished,
    HandlerRaised,
    HandlerReturned,
    JobCreated,
    SignalReceived,
    TaskCancelled,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
    WorkerEventArrived,
)
from avtomatika_core.job import (
    Job,
    JobData,
    JobId,
    JobStatus,
    Origin,
    TaskId,
    TaskWait,
    WorkerId,
    new_job,
)
from avtomatika_core.machine import step
from avtomatika_core.outcomes import (
    Action,
    AwaitApproval,
    DispatchParallel,
    DispatchTask,
    EndOutcome,
    Rules,
    RunBlueprint,
    Sleep,
    TaskRequest,
    WaitForSignal,
)

NOON = 1_800_000_000.0
LATER = NOON + 10
TASK = TaskId("task-1")
NEXT = TaskId("task-2")
CHILD = JobId("child-1")
WORKER = WorkerId("w-1")
RULES = Rules(
    end_states={
        "end": EndOutcome.SUCCESS,
        "broken": EndOutcome.FAILURE,
        "stopped": EndOutcome.CANCELLED,
    }
)
WITH_FAILED = Rules(end_states=RULES.end_states, has_failed_state=True)
NO_RETRIES = Rules(end_states=RULES.end_states, max_retries=0)

T = TypeVar("T", bound=Command)


def over(changes: dict[str, Any], **usual: Any) -> dict[str, Any]:
    return {**usual, **changes}


def an_origin(**changes: Any) -> Origin:
    return Origin(**over(changes, blueprint="b", group="g", start_state="work", created_at=NOON))


def a_job(state: str = "work", data: JobData | None = None, **origin: Any) -> Job:
    """A job whose handler in `state` is wanted."""
    stored = new_job(JobId("job-1"), an_origin(start_state=state, **origin))
    job = step(stored, JobCreated(at=NOON), RULES).job
    return job if data is None else with_data(job, data)


def with_deadline(job: Job, seconds: float = 60.0) -> Job:
    return replace(job, origin=replace(job.origin, timeout_seconds=seconds))


def with_data(job: Job, data: JobData) -> Job:
    return Job(id=job.id, origin=job.origin, head=job.head, data=data, run=job.run)


def marked(job: Job) -> Job:
    """The job as the store leaves it when somebody asks for its end."""
    return Job(
        id=job.id,
        origin=job.origin,
        head=job.head,
        data=job.data,
        run=job.run + 1,
        cancelled=True,
    )


def returned(job: Job, action: Action | None = None, **changes: Any) -> HandlerReturned:
    return HandlerReturned(
        **over(changes, at=NOON, run=job.run, action=action, started_at=NOON - 1)
    )


def raised(job: Job, message: str = "boom", **changes: Any) -> HandlerRaised:
    return HandlerRaised(
        **over(changes, at=NOON, run=job.run, message=message, started_at=NOON - 1)
    )


def a_task(**changes: Any) -> DispatchTask:
    return DispatchTask(
        task=TaskRequest(**over(changes, type="t", transitions={"success": "next"}))
    )


def waiting_for_task(job: Job | None = None, rules: Rules = RULES, **task: Any) -> Job:
    job = job or a_job()
    return step(job, returned(job, a_task(**task), fresh_ids=(TASK,)), rules).job


def waiting_for_branches(count: int = 2) -> Job:
    job = a_job()
    action = DispatchParallel(tasks=[TaskRequest(type="t")] * count, aggregate_into="join")
    ids = tuple(f"branch-{index}" for index in range(count))
    return step(job, returned(job, action, fresh_ids=ids), RULES).job


def start_child(job: Job, **changes: Any) -> HandlerReturned:
    action = RunBlueprint(
        **over(changes, blueprint="sub", initial_data={"x": 1}, transitions={"success": "next"})
    )
    return returned(job, action, fresh_ids=(CHILD,), child_group="other", child_start_state="begin")


def waiting_for_child(**transitions: str) -> Job:
    job = a_job()
    return step(job, start_child(job, transitions=transitions), RULES).job


def ask_approval(job: Job, timeout: float | None = None, /, **transitions: str) -> HandlerReturned:
    action = AwaitApproval(
        integration="mail", message="ok?", transitions=transitions, timeout_seconds=timeout
    )
    return returned(job, action, approval_secret="open", approval_secret_hash="hash")


def waiting_for_approval(timeout: float | None = None, /, **transitions: str) -> Job:
    job = a_job()
    return step(job, ask_approval(job, timeout, **(transitions or {"yes": "next"})), RULES).job


def succeeded(**changes: Any) -> TaskSucceeded:
    return TaskSucceeded(**over(changes, at=LATER, task_id=TASK, fresh_id=NEXT))


def failed(**changes: Any) -> TaskFailed:
    return TaskFailed(
        **over(changes, at=LATER, task_id=TASK, fresh_id=NEXT, worker_id=WORKER, message="oom")
    )


def stopped(**changes: Any) -> TaskCancelled:
    return TaskCancelled(**over(changes, at=LATER, task_id=TASK, fresh_id=NEXT))


def timed_out(timeout: str = "result", **changes: Any) -> TaskTimedOut:
    return TaskTimedOut(**over(changes, at=LATER, task_id=TASK, fresh_id=NEXT, timeout=timeout))


def told(event_type: str = "halfway", **changes: Any) -> WorkerEventArrived:
    return WorkerEventArrived(
        **over(
            changes,
            at=LATER,
            task_id=TASK,
            worker_id=WORKER,
            event_id="e-1",
            event_type=event_type,
        )
    )


def child_finished(job: Job, status: str = "finished", **changes: Any) -> ChildFinished:
    return ChildFinished(
        **over(
            changes,
            at=LATER,
            token=token_of(job),
            child_id=CHILD,
            status=status,
            final_state="over",
        )
    )


def fired(job: Job, at: float = LATER, fresh_id: str = NEXT) -> TimerFired:
    return TimerFired(at=at, token=token_of(job), fresh_id=TaskId(fresh_id))


def token_of(job: Job) -> str:
    wait = job.head.wait
    assert wait is not None
    return wait.task_id if isinstance(wait, TaskWait) else wait.token


def cancelled(job: Job, rules: Rules = RULES) -> Step:
    return step(marked(job), CancelRequested(at=LATER), rules)


def after_task_failures(count: int, **task: Any) -> Job:
    """On the board again after so many failed attempts."""
    job = waiting_for_task(**task)
    for _ in range(count):
        waiting = step(job, failed(), RULES).job
        job = step(waiting, fired(waiting, fresh_id=TASK), RULES).job
    return job


def all_of(result: Step, kind: type[T]) -> list[T]:
    return [command for command in result.commands if isinstance(command, kind)]


def only(result: Step, kind: type[T]) -> T:
    (command,) = all_of(result, kind)
    return command


def facts(result: Step) -> list[str]:
    return [fact.kind for fact in all_of(result, RecordFact)]


def ends(result: Step, status: JobStatus, error: str | None) -> None:
    """The terminal routine ran, once and whole."""
    head = result.job.head
    assert (head.status, head.error_message) == (status, error)
    assert head.finished_at == head.updated_at
    assert head.wait is None
    assert facts(result)[-1] == "job_completed"
    notice = only(result, Notify)
    assert notice.event == f"job_{status}"
    assert len(all_of(result, ResumeParent)) == (result.job.origin.parent is not None)


def goes_to(result: Step, state: str, before: Job) -> None:
    head = result.job.head
    assert (head.status, head.state, head.wait) == (JobStatus.RUNNING, state, None)
    assert (head.retry_count, head.task_retry_count) == (0, 0)
    assert head.transition_count == before.head.transition_count + 1
    assert result.job.run > before.run
    assert not result.job.cancelled


def asleep(seconds: float = 30.0) -> Job:
    job = a_job()
    return step(job, returned(job, Sleep(seconds=seconds, next_state="awake")), RULES).job


def ask_signal(
    job: Job, timeout: float | None = None, name: str = "paid", /, **transitions: str
) -> HandlerReturned:
    to = {"received": "next", **transitions}
    action = WaitForSignal(name=name, transitions=to, timeout_seconds=timeout)
    return returned(job, action)


def waiting_for_signal(timeout: float | None = None, /, **transitions: str) -> Job:
    job = a_job()
    return step(job, ask_signal(job, timeout, **transitions), RULES).job


def a_signal(number: int = 1, name: str = "paid", **data: Any) -> SignalReceived:
    return SignalReceived(at=LATER, number=number, name=name, data=data)
