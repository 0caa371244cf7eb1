"""A branch of a fan-out, from its offer to its entry in the results."""

from typing import Any

import pytest

from avtomatika_core.branches import branch_fact, branch_offer, offer_again, open_branch, settle
from avtomatika_core.commands import NextAttempt
from avtomatika_core.errors import IllegalTransition
from avtomatika_core.events import (
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
)
from avtomatika_core.job import Branch, BranchResult, JobId, Origin, TaskId, WorkerId
from avtomatika_core.outcomes import Rules, TaskRequest

NOON = 1_800_000_000.0
JOB = JobId("job-1")
TASK = TaskId("task-1")
NEXT = TaskId("task-2")
RULES = Rules(max_retries=2, retry_delay_seconds=1.0)
ORIGIN = Origin(
    blueprint="b",
    group="g",
    start_state="start",
    created_at=NOON,
    dispatch_timeout=50.0,
    result_timeout=20.0,
    tracing_context={"traceparent": "00-1"},
)
METADATA = {"file": {"uri": "s3://a/b"}}


def over(changes: dict[str, Any], **usual: Any) -> dict[str, Any]:
    return {**usual, **changes}


def a_branch(**request: Any) -> Branch:
    task = TaskRequest(type="count", **request)
    return open_branch(3, task, token="7", state="split", at=NOON, origin=ORIGIN, rules=RULES)


def a_failure(**changes: Any) -> TaskFailed:
    return TaskFailed(**over(changes, at=NOON + 1, task_id=TASK, fresh_id=NEXT))


def the_result(branch: Branch, event: TaskEvent) -> dict[str, Any]:
    settled = settle(branch, event, RULES, job_id=JOB)
    assert isinstance(settled, BranchResult)
    assert settled.index == branch.index
    return settled.result


def the_next(branch: Branch, event: TaskEvent) -> NextAttempt:
    settled = settle(branch, event, RULES, job_id=JOB)
    assert isinstance(settled, NextAttempt)
    return settled


def after(failures: int) -> Branch:
    """The branch after so many failed attempts, on the board again."""
    branch = a_branch()
    for _ in range(failures):
        waiting = the_next(branch, a_failure())
        branch = again(waiting).branch
    return branch


def again(waiting: NextAttempt) -> NextAttempt:
    fired = TimerFired(at=NOON + 9, token=waiting.task_id, fresh_id=TaskId("task-3"))
    return offer_again(
        waiting.branch, fired, RULES, job_id=JOB, origin=ORIGIN, data_metadata=METADATA
    )


def test_a_branch_has_the_time_limits_of_its_task_before_those_of_the_job() -> None:  # R14
    of_the_job = a_branch()
    of_the_task = a_branch(dispatch_timeout_seconds=5.0, result_timeout_seconds=2.0)

    assert (of_the_job.dispatch_deadline, of_the_job.result_timeout_seconds) == (NOON + 50, 20.0)
    assert (of_the_task.dispatch_deadline, of_the_task.result_timeout_seconds) == (NOON + 5, 2.0)


def test_a_branch_with_a_dispatch_timeout_of_zero_waits_for_ever() -> None:
    assert a_branch(dispatch_timeout_seconds=0.0).dispatch_deadline is None


def test_the_offer_of_a_branch_carries_all_that_its_task_needs() -> None:
    branch = a_branch(params={"x": 1}, priority=2.0, max_cost=0.5, strategy="cheapest")

    task = branch_offer(TASK, branch, origin=ORIGIN, data_metadata=METADATA)

    assert task.is_branch
    assert (task.task_id, task.type, task.params) == (TASK, "count", {"x": 1})
    assert (task.priority, task.max_cost, task.strategy) == (2.0, 0.5, "cheapest")
    assert (task.dispatch_deadline, task.result_timeout_seconds) == (NOON + 50, 20.0)
    assert (task.tracing_context, task.params_metadata) == (ORIGIN.tracing_context, METADATA)


def test_a_good_result_goes_whole_to_the_aggregator() -> None:
    event = TaskSucceeded(
        at=NOON,
        task_id=TASK,
        worker_id=WorkerId("w"),
        fresh_id=NEXT,
        status="partial",
        data={"lines": 3},
        data_metadata=METADATA,
    )

    assert the_result(a_branch(), event) == {
        "job_id": JOB,
        "task_id": TASK,
        "worker_id": "w",
        "status": "partial",
        "data": {"lines": 3},
        "error": None,
        "data_metadata": METADATA,
    }


def test_a_cancelled_branch_is_a_result() -> None:
    event = TaskCancelled(at=NOON, task_id=TASK, fresh_id=NEXT, data={"half": 1})

    result = the_result(a_branch(), event)

    assert (result["status"], result["data"], result["error"]) == ("cancelled", {"half": 1}, None)


def test_a_failed_branch_waits_for_its_next_attempt_under_a_new_id() -> None:
    waiting = the_next(a_branch(), a_failure())

    assert waiting.task_id == NEXT
    assert waiting.due == NOON + 2
    assert waiting.offer is None
    assert (waiting.branch.attempt, waiting.branch.is_waiting) == (2, True)


def test_a_branch_whose_delay_is_over_is_offered_with_fresh_deadlines() -> None:
    offered = again(the_next(a_branch(), a_failure()))

    assert offered.offer is not None
    assert offered.task_id == offered.offer.task_id == "task-3"
    assert (offered.offer.attempt, offered.offer.is_branch) == (2, True)
    assert offered.offer.dispatch_deadline == offered.branch.dispatch_deadline == NOON + 59
    assert offered.offer.params_metadata == METADATA
    assert (offered.due, offered.branch.is_waiting) == (None, False)


def test_the_next_attempt_of_a_branch_starts_with_the_last_checkpoint_any_has_left() -> None:
    late = TaskTimedOut(at=NOON + 20, task_id=TASK, fresh_id=NEXT, timeout="result")

    second = again(the_next(a_branch(), a_failure(checkpoint={"page": 2})))
    third = again(the_next(second.branch, late))

    assert second.offer is not None
    assert third.offer is not None
    assert (second.offer.checkpoint, third.offer.checkpoint) == ({"page": 2}, {"page": 2})


def test_a_branch_on_the_board_waits_for_no_timer() -> None:
    with pytest.raises(IllegalTransition, match="waits for no retry"):
        again(NextAttempt(task_id=TASK, branch=a_branch(), due=None, offer=None))


def test_the_delays_of_a_branch_grow() -> None:
    assert the_next(after(failures=1), a_failure()).due == NOON + 1 + 2


def test_a_branch_that_fails_too_often_reaches_the_aggregator_as_a_failure() -> None:  # R14
    lost = a_failure(message="Worker 'w' was lost.", worker_id=WorkerId("w"))

    result = the_result(after(failures=2), lost)

    assert (result["status"], result["data"], result["worker_id"]) == ("failure", {}, "w")
    assert result["error"] == {
        "code": "TRANSIENT_ERROR",
        "message": "Worker 'w' was lost.",
        "details": None,
    }


def test_a_permanent_failure_of_a_branch_is_not_repeated_and_keeps_its_data() -> None:
    result = the_result(a_branch(), a_failure(code="PERMANENT_ERROR", data={"why": "bad"}))

    assert (result["data"], result["error"]["code"]) == ({"why": "bad"}, "PERMANENT_ERROR")


def test_a_branch_whose_result_is_late_is_tried_again_and_then_fails() -> None:
    late = TaskTimedOut(at=NOON + 20, task_id=TASK, fresh_id=NEXT, timeout="result")

    assert the_next(a_branch(), late).branch.attempt == 2
    result = the_result(after(failures=2), late)
    assert result["data"] == {}
    assert result["error"]["message"] == "Worker task timed out."
    assert result["error"]["code"] == "TIMEOUT_ERROR"


def test_a_branch_that_no_worker_took_fails_at_once() -> None:
    late = TaskTimedOut(
        at=NOON + 51, task_id=TASK, fresh_id=NEXT, timeout="dispatch", waiting_reason="all busy"
    )

    result = the_result(a_branch(), late)

    assert result["error"]["message"] == "No worker took the task within 50 seconds: all busy"
    assert result["data"] == {}


def test_every_attempt_of_a_branch_is_recorded() -> None:
    late = TaskTimedOut(at=NOON + 20, task_id=TASK, fresh_id=NEXT, timeout="result")
    failed = a_failure(worker_id=WorkerId("w"), leased_at=NOON)

    of_failure = branch_fact(after(failures=1), failed, JOB)
    of_timeout = branch_fact(a_branch(), late, JOB)

    assert (of_failure.kind, of_failure.state, of_failure.attempt) == ("task_finished", "split", 2)
    assert (of_failure.worker_id, of_failure.started_at, of_failure.at) == ("w", NOON, NOON + 1)
    assert of_failure.details is not None
    assert of_failure.details["result"]["error"]["code"] == "TRANSIENT_ERROR"
    assert of_timeout.kind == "task_timed_out"
