"""How often something that failed is tried again, and when."""

from typing import Any

import msgspec
import pytest
from libs.core.tests.builders import (
    NOON,
    RULES,
    a_job,
    after_task_failures,
    all_of,
    ends,
    failed,
    fired,
    goes_to,
    only,
    raised,
    timed_out,
    waiting_for_task,
)
from msgspec.structs import replace

from avtomatika_core.branches import open_branch, settle
from avtomatika_core.commands import NextAttempt, SetTimer
from avtomatika_core.job import BranchResult, JobStatus
from avtomatika_core.machine import step
from avtomatika_core.outcomes import TaskRequest
from avtomatika_core.retry_policy import RetryPolicy, retry_policy


def delays(policy: RetryPolicy, count: int) -> list[float]:
    return [policy.delay(repeat, 0.0, usual_seconds=1.0) for repeat in range(1, count + 1)]


def test_a_policy_that_says_nothing_doubles_the_usual_delay_up_to_a_minute() -> None:
    assert delays(RetryPolicy(), 7) == [1, 2, 4, 8, 16, 32, 60]


def test_a_policy_has_its_own_first_delay_factor_and_longest_delay() -> None:
    policy = RetryPolicy(delay_seconds=0.5, factor=3, max_delay_seconds=5)

    assert delays(policy, 4) == [0.5, 1.5, 4.5, 5]


def test_a_delay_of_nothing_stays_nothing() -> None:
    assert RetryPolicy(delay_seconds=0, factor=1e300).delay(9, 1.0, 1.0) == 0


def test_a_delay_never_grows_out_of_bounds() -> None:
    assert RetryPolicy(factor=1e300).delay(100_000, 0.0, 1.0) == 60


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"attempts": 0}, ValueError, "retry.attempts must be 1 or more, not 0"),
        ({"attempts": 1.5}, TypeError, "retry.attempts must be an integer, not float"),
        ({"attempts": True}, TypeError, "retry.attempts must be an integer, not bool"),
        ({"delay_seconds": -1}, ValueError, "retry.delay_seconds must be a finite number from 0"),
        ({"delay_seconds": "1"}, TypeError, "retry.delay_seconds must be a number, not str"),
        ({"factor": 0.5}, ValueError, "retry.factor must be a finite number from 1 on, not 0.5"),
        ({"factor": float("nan")}, ValueError, "retry.factor must be a finite number"),
        ({"max_delay_seconds": float("inf")}, ValueError, "retry.max_delay_seconds must be"),
        ({"delay_seconds": 90}, ValueError, "raise max_delay_seconds too"),
        ({"never": "ODD"}, TypeError, "retry.never must be a list of error codes, not str"),
        ({"never": [1]}, TypeError, "retry.never must hold strings, not int"),
        ({"attempt": 3}, ValueError, "retry has no field 'attempt': its fields are attempts, "),
    ],
)
def test_a_policy_that_cannot_be_kept_says_what_is_wrong(
    fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        retry_policy(fields)


def test_a_policy_is_no_number() -> None:
    with pytest.raises(TypeError, match="a RetryPolicy or a mapping of its fields, not int"):
        retry_policy(3)


def test_a_mapping_means_the_policy_of_its_fields() -> None:
    policy = RetryPolicy(attempts=2, never=("ODD",))

    assert retry_policy({"attempts": 2, "never": ["ODD"]}) == policy
    assert retry_policy(policy) is policy


def test_a_policy_survives_its_storage() -> None:
    policy = RetryPolicy(attempts=2, delay_seconds=0.5, factor=1, never=("ODD",))

    stored = msgspec.msgpack.encode(TaskRequest(type="t", retry=policy))

    assert msgspec.msgpack.decode(stored, type=TaskRequest).retry == policy


# --- Whose policy counts


def test_the_policy_of_a_task_counts_its_attempts_and_delays() -> None:
    retry = RetryPolicy(attempts=2, delay_seconds=7.0)
    job = waiting_for_task(retry=retry)

    resting = step(job, failed(at=NOON), RULES)

    assert only(resting, SetTimer).due == NOON + 7
    last = step(after_task_failures(1, retry=retry), failed(), RULES)
    ends(last, JobStatus.QUARANTINED, "Task failed after 2 attempts: oom")


def test_the_policy_of_a_blueprint_is_that_of_its_tasks_and_handlers() -> None:
    rules = replace(RULES, retry=RetryPolicy(attempts=2, delay_seconds=7.0))
    job = a_job()

    handler, task = step(job, raised(job), rules), step(waiting_for_task(), failed(), rules)

    assert only(handler, SetTimer).due == NOON + 7
    assert only(task, SetTimer).due == task.job.head.updated_at + 7
    again = step(handler.job, fired(handler.job), rules).job
    ends(step(again, raised(again), rules), JobStatus.QUARANTINED, "boom")


def test_the_nearest_policy_counts_whole() -> None:
    rules = replace(
        RULES, retry=RetryPolicy(attempts=9, delay_seconds=7.0, never=("TRANSIENT_ERROR",))
    )
    job = waiting_for_task(retry=RetryPolicy(factor=4))

    resting = step(job, failed(), rules)

    assert only(resting, SetTimer).due == resting.job.head.updated_at + RULES.retry_delay_seconds
    for _ in range(2):
        on_board = step(resting.job, fired(resting.job, fresh_id="task-1"), rules).job
        resting = step(on_board, failed(), rules)
    on_board = step(resting.job, fired(resting.job, fresh_id="task-1"), rules).job
    ends(
        step(on_board, failed(), rules),
        JobStatus.QUARANTINED,
        "Task failed after 4 attempts: oom",
    )


def test_a_policy_of_one_attempt_tries_nothing_again() -> None:
    job = waiting_for_task(retry=RetryPolicy(attempts=1))

    ends(step(job, failed(), RULES), JobStatus.QUARANTINED, "Task failed after 1 attempts: oom")


# --- Codes that are never tried again


def test_a_code_that_is_never_tried_again_ends_the_job_as_the_last_failure_does() -> None:
    job = waiting_for_task(retry=RetryPolicy(never=("RESOURCE_EXHAUSTED_ERROR",)))

    result = step(job, failed(code="RESOURCE_EXHAUSTED_ERROR"), RULES)

    ends(result, JobStatus.QUARANTINED, "Task failed after 1 attempts: oom")


def test_a_code_that_is_never_tried_again_goes_where_failure_leads() -> None:
    job = waiting_for_task(retry=RetryPolicy(never=("ODD",)), transitions={"failure": "mend"})

    result = step(job, failed(code="ODD"), RULES)

    goes_to(result, "mend", before=job)
    assert result.job.head.last_error is not None
    assert result.job.head.last_error.code == "ODD"


def test_a_result_timeout_may_be_a_code_that_is_never_tried_again() -> None:
    """R16."""
    job = waiting_for_task(
        retry=RetryPolicy(never=("TIMEOUT_ERROR",)), transitions={"timeout": "slow"}
    )

    goes_to(step(job, timed_out(), RULES), "slow", before=job)


def test_other_codes_are_still_tried_again() -> None:
    job = waiting_for_task(retry=RetryPolicy(never=("ODD",)))

    assert step(job, failed(), RULES).job.status is JobStatus.AWAITING_RETRY


def test_no_policy_repeats_what_a_repeat_cannot_help() -> None:
    job = waiting_for_task(retry=RetryPolicy(attempts=9))

    result = step(job, failed(code="PERMANENT_ERROR"), RULES)

    assert result.job.status is JobStatus.QUARANTINED
    assert all_of(result, SetTimer) == []


# --- Branches


def settled(failure_code: str, **retry: Any) -> BranchResult | NextAttempt:
    request = TaskRequest(type="t", retry=RetryPolicy(**retry))
    branch = open_branch(
        0, request, token="1", state="s", at=NOON, origin=a_job().origin, rules=RULES
    )
    return settle(branch, failed(code=failure_code), RULES, job_id=a_job().id)


def test_a_branch_has_the_policy_of_its_own_task() -> None:
    again = settled("ODD", delay_seconds=7.0)

    assert isinstance(again, NextAttempt)
    assert again.due == NOON + 10 + 7


@pytest.mark.parametrize("retry", [{"attempts": 1}, {"never": ("ODD",)}])
def test_a_branch_that_is_not_tried_again_reaches_the_aggregator(retry: dict[str, Any]) -> None:
    ended = settled("ODD", **retry)

    assert isinstance(ended, BranchResult)
    assert ended.result["error"]["code"] == "ODD"
