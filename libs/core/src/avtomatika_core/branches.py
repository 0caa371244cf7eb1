"""One branch of a fan-out: how it starts, and what each of its events makes of it.

A branch lives beside its job, under the id of its current task, so that a join of many costs the
same per result. Every event that does not end it gives it a new id: a repeated event finds none.
"""

from typing import Any

from msgspec.structs import replace

from avtomatika_core.commands import NextAttempt, OfferTask, RecordFact
from avtomatika_core.errors import IllegalTransition
from avtomatika_core.events import TaskEvent, TimerFired
from avtomatika_core.job import Branch, BranchResult, JobId, Origin, TaskId
from avtomatika_core.outcomes import Rules, TaskRequest
from avtomatika_core.retry import (
    attempt_fact,
    checkpoint_after,
    failure_of,
    offer,
    policy_of,
    retry_delay,
    task_result,
    time_limits,
)


def open_branch(
    index: int,
    request: TaskRequest,
    *,
    token: str,
    state: str,
    at: float,
    origin: Origin,
    rules: Rules,
) -> Branch:
    """Branch number `index` of the fan-out `token`, offered at `at` (Unix seconds)."""
    dispatch_deadline, result_timeout = time_limits(request, origin, rules, at)
    return Branch(
        index=index,
        token=token,
        state=state,
        request=request,
        dispatched_at=at,
        result_timeout_seconds=result_timeout,
        dispatch_deadline=dispatch_deadline,
    )


def branch_offer(
    task_id: TaskId, branch: Branch, *, origin: Origin, data_metadata: dict[str, Any]
) -> OfferTask:
    """The task of a branch as it is put on the board."""
    return offer(
        task_id,
        branch.request,
        attempt=branch.attempt,
        dispatch_deadline=branch.dispatch_deadline,
        result_timeout_seconds=branch.result_timeout_seconds,
        origin=origin,
        data_metadata=data_metadata,
        checkpoint=branch.checkpoint,
        is_branch=True,
    )


def settle(
    branch: Branch, event: TaskEvent, rules: Rules, *, job_id: JobId
) -> BranchResult | NextAttempt:
    """What the end of its current attempt, found to be for this open branch, makes of it."""
    failure = failure_of(event, branch)
    if failure is None or failure.is_last(branch.attempt, branch.request, rules):
        return BranchResult(index=branch.index, result=task_result(event, job_id, failure))
    policy = policy_of(branch.request, rules)
    return NextAttempt(
        task_id=event.fresh_id,
        branch=replace(
            branch,
            attempt=branch.attempt + 1,
            dispatched_at=event.at,
            dispatch_deadline=None,
            is_waiting=True,
            checkpoint=checkpoint_after(event, branch),
        ),
        due=event.at + retry_delay(branch.attempt, event.jitter, policy, rules),
        offer=None,
    )


def offer_again(
    branch: Branch,
    event: TimerFired,
    rules: Rules,
    *,
    job_id: JobId,
    origin: Origin,
    data_metadata: dict[str, Any],
) -> NextAttempt:
    """The next attempt of a branch whose retry delay is over."""
    if not branch.is_waiting:
        raise IllegalTransition(
            status="on the board",
            event="TimerFired",
            reason=f"branch {branch.index} of job '{job_id}' waits for no retry",
        )
    deadline, result_timeout = time_limits(branch.request, origin, rules, event.at)
    again = replace(
        branch,
        dispatched_at=event.at,
        dispatch_deadline=deadline,
        result_timeout_seconds=result_timeout,
        is_waiting=False,
    )
    task = branch_offer(event.fresh_id, again, origin=origin, data_metadata=data_metadata)
    return NextAttempt(task_id=event.fresh_id, branch=again, due=None, offer=task)


def branch_fact(branch: Branch, event: TaskEvent, job_id: JobId) -> RecordFact:
    """What the archive is told of an attempt of this branch that ended by `event`."""
    result = task_result(event, job_id, failure_of(event, branch))
    return attempt_fact(event, branch.state, branch.attempt, result)
