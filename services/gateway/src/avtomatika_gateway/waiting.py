"""Why a job waits: for what, since when, and what keeps every worker from its tasks."""

import heapq
import math
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from avtomatika_common.backend.ports import JobView, WaitingTask, Worker
from avtomatika_core.job import (
    ApprovalWait,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    SignalWait,
    SleepWait,
    TaskRetryWait,
    TaskWait,
)
from avtomatika_core.routing import (
    Demand,
    Unfit,
    WorkerProfile,
    demand_of,
    missing_resources,
    profile_of,
    unfitness,
    waiting_reason,
)

MOST_TASKS: Final = 100
MOST_WORKERS: Final = 100

_DISTANCES: Final = {verdict: 3 + place for place, verdict in enumerate(reversed(Unfit))}


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What a job waits for. Times in Unix seconds; all None: it waits for nothing."""

    waiting_for: str | None = None
    since: float | None = None
    deadline: float | None = None
    """When the wait is over by itself, or goes into its next part; None: never."""


def wait_of(view: JobView) -> Wait:
    """A task waits for a worker until one has it, and then for its result."""
    head = view.job.head
    match head.wait:
        case TaskWait() as wait:
            task = view.task
            is_held = task is not None and task.worker_id is not None
            return Wait(
                waiting_for="worker",
                since=wait.dispatched_at,
                deadline=task.result_deadline if task and is_held else wait.dispatch_deadline,
            )
        case BranchesWait():
            return Wait(waiting_for="branches", since=head.updated_at)
        case ChildWait():
            return Wait(waiting_for="sub_job", since=head.updated_at)
        case ApprovalWait() as wait:
            return Wait(waiting_for="human", since=wait.requested_at, deadline=wait.deadline)
        case SleepWait() as wait:
            return Wait(waiting_for="timer", since=head.updated_at, deadline=wait.due)
        case SignalWait() as wait:
            return Wait(waiting_for="signal", since=wait.requested_at, deadline=wait.deadline)
        case TaskRetryWait() | HandlerRetryWait() as wait:
            return Wait(waiting_for="retry", since=head.updated_at, deadline=wait.due)
        case None:
            return Wait()


def why_waiting(
    view: JobView,
    tasks: Sequence[WaitingTask],
    workers: Collection[Worker],
    min_reputation: float,
) -> dict[str, Any]:
    """The answer: `tasks` are those of the job that nobody has, `workers` all that are alive."""
    wait = wait_of(view)
    described = [(worker, profile_of(worker.worker_id, worker.document)) for worker in workers]
    findings: dict[Demand, _Finding] = {}
    told: list[dict[str, Any]] = []
    for task in tasks[:MOST_TASKS]:
        demand = demand_of(task.type, task.resource_requirements, task.max_cost, task.strategy)
        if demand not in findings:
            findings[demand] = _look(demand, described, min_reputation)
        told.append(
            {
                "task_id": task.task_id,
                "task_type": task.type,
                "waiting_reason": findings[demand].waiting_reason,
                "workers": findings[demand].workers,
            }
        )
    return {"status": view.job.status, **msgspec.structs.asdict(wait), "tasks": told}


class _Finding(msgspec.Struct, frozen=True, kw_only=True):
    waiting_reason: str | None
    """None: a worker is about to get it."""
    workers: list[dict[str, str]]


def _look(
    demand: Demand, described: Sequence[tuple[Worker, WorkerProfile]], min_reputation: float
) -> _Finding:
    verdicts = [unfitness(demand, profile, min_reputation) for _, profile in described]
    reason = waiting_reason(demand, set(verdicts))
    if None not in verdicts:  # then a low reputation keeps nobody from it
        verdicts = [None if one is Unfit.REPUTATION else one for one in verdicts]
    nearest = heapq.nsmallest(
        MOST_WORKERS,
        (
            (_distance(worker, profile, verdict), worker.worker_id, number)
            for number, (verdict, (worker, profile)) in enumerate(
                zip(verdicts, described, strict=True)
            )
        ),
    )
    is_about_to_go = bool(nearest) and nearest[0][0] == 0
    return _Finding(
        waiting_reason=None if is_about_to_go else reason,
        workers=[
            {
                "worker_id": worker_id,
                "reason": _reason(demand, *described[number], verdicts[number], min_reputation),
            }
            for _, worker_id, number in nearest
        ],
    )


def _distance(worker: Worker, profile: WorkerProfile, verdict: Unfit | None) -> int:
    """0: it is free and fit; the larger, the less it takes part in the choice."""
    if verdict is not None:
        return _DISTANCES[verdict]
    if _is_full(worker, profile):
        return 2
    return 0 if worker.places.room else 1


def _is_full(worker: Worker, profile: WorkerProfile) -> bool:
    limit = profile.max_concurrent_tasks
    return limit is not None and worker.places.held >= limit


def _reason(
    demand: Demand,
    worker: Worker,
    profile: WorkerProfile,
    verdict: Unfit | None,
    min_reputation: float,
) -> str:
    """Why this worker was passed over."""
    match verdict:
        case Unfit.TYPE:
            return f"does not do tasks of type '{demand.type}'"
        case Unfit.NOT_ALLOWED:
            return f"may not be given tasks of type '{demand.type}'"
        case Unfit.DRAINING:
            return "is draining: takes no new tasks"
        case Unfit.RESOURCES:
            return "; ".join(missing_resources(demand, profile))
        case Unfit.COST:
            # The cost itself is not shown to everybody who may ask.
            has = "not known" if math.isinf(profile.cost_of(demand.type)) else "higher"
            return f"cost is {has}, wanted is at most {demand.max_cost:.12g}"
        case Unfit.REPUTATION:
            has = f"{profile.reputation:.4g}"
            return f"reputation {has} is below {min_reputation:.4g}, and a better one is fit"
        case None if _is_full(worker, profile):
            return f"holds {worker.places.held} of {profile.max_concurrent_tasks:.12g} tasks"
        case None if not worker.places.room:
            return "has no open poll"
        case None:
            return "is free: about to be given a task"
