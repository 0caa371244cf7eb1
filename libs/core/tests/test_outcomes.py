"""How a job ended, read from the name of its end state; and how a task is shown."""

import pytest

from avtomatika_core.outcomes import EndOutcome, TaskRequest, outcome_of_end_state


@pytest.mark.parametrize("state", ["end", "finished", "done", "published", "failed_over", "ok"])
def test_an_end_state_is_a_success_unless_its_name_says_otherwise(state: str) -> None:  # R20
    assert outcome_of_end_state(state) is EndOutcome.SUCCESS


@pytest.mark.parametrize(
    "state",
    [
        "failed", "failure", "fail", "error", "errored", "rejected", "aborted", "timeout",
        "quarantined", "timed_out", "payment_failed", "upload-Error", "order.REJECTED",
        "call-timed-out",
    ],
)  # fmt: skip
def test_a_last_word_of_failure_makes_the_end_a_failure(state: str) -> None:
    assert outcome_of_end_state(state) is EndOutcome.FAILURE


@pytest.mark.parametrize("state", ["cancelled", "canceled", "order_cancelled", "Job-Canceled"])
def test_a_last_word_of_cancelling_makes_the_end_cancelled(state: str) -> None:
    assert outcome_of_end_state(state) is EndOutcome.CANCELLED


def test_a_task_is_shown_with_every_key_a_handler_may_give() -> None:
    shown = TaskRequest(type="resize", params={"w": 1}, result_timeout_seconds=5.0).described()

    assert set(shown) == {
        "type", "params", "transitions", "dispatch_strategy", "resource_requirements",
        "timeout_seconds", "max_cost", "priority", "dispatch_timeout_seconds",
        "result_timeout_seconds", "event_transitions",
    }  # fmt: skip
    assert (shown["type"], shown["params"], shown["result_timeout_seconds"]) == (
        "resize",
        {"w": 1},
        5.0,
    )
