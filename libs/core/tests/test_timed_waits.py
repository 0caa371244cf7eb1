"""Sleep, signals and a job's own deadline."""

import pytest
from libs.core.tests.builders import (
    LATER,
    NOON,
    RULES,
    WITH_FAILED,
    a_job,
    a_signal,
    a_task,
    all_of,
    ask_signal,
    asleep,
    cancelled,
    ends,
    facts,
    fired,
    goes_to,
    marked,
    only,
    raised,
    returned,
    token_of,
    waiting_for_signal,
    waiting_for_task,
    with_deadline,
)

from avtomatika_core.commands import (
    ClearDeadline,
    ClearTimer,
    CloseTask,
    OfferTask,
    RecordFact,
    SetTimer,
)
from avtomatika_core.errors import IllegalTransition
from avtomatika_core.events import CancelRequested, JobTimedOut
from avtomatika_core.job import (
    Job,
    JobData,
    JobId,
    JobStatus,
    Origin,
    SignalWait,
    SleepWait,
    new_job,
)
from avtomatika_core.machine import step
from avtomatika_core.outcomes import Action, Sleep, TransitionTo
from avtomatika_core.signals import Signals, check_signal_name

# --- Sleep


@pytest.mark.parametrize(
    "action",
    [Sleep(seconds=30.0, next_state="awake"), Sleep(until=NOON + 30, next_state="awake")],
)
def test_a_sleeping_job_wakes_in_the_state_it_named(action: Sleep) -> None:
    job = a_job()

    result = step(job, returned(job, action), RULES)

    wait = result.job.head.wait
    assert result.job.status is JobStatus.SLEEPING
    assert isinstance(wait, SleepWait)
    assert only(result, SetTimer) == SetTimer(token=wait.token, due=NOON + 30)
    fact = only(result, RecordFact)
    assert (fact.kind, fact.followed_by, fact.next_state) == ("step", "sleep", "awake")
    woken = step(result.job, fired(result.job), RULES)
    goes_to(woken, "awake", before=result.job)
    assert woken.commands == ()


@pytest.mark.parametrize(
    "action",
    [Sleep(seconds=0.0, next_state="awake"), Sleep(until=NOON - 30, next_state="awake")],
)
def test_a_sleep_that_is_over_goes_on_at_once(action: Sleep) -> None:
    job = a_job()

    result = step(job, returned(job, action), RULES)

    goes_to(result, "awake", before=job)
    assert all_of(result, SetTimer) == []


def test_a_handler_that_sleeps_has_succeeded() -> None:
    """R22."""
    job = a_job()
    resting = step(job, raised(job), RULES).job
    again = step(resting, fired(resting), RULES).job

    head = step(again, returned(again, Sleep(seconds=1.0, next_state="b")), RULES).job.head

    assert (head.retry_count, head.error_message) == (0, None)


def test_a_cancelled_sleep_leaves_no_timer() -> None:
    """R8, R40."""
    job = asleep()

    result = cancelled(job)

    ends(result, JobStatus.CANCELLED, "Cancelled by request.")
    assert only(result, ClearTimer) == ClearTimer(token=token_of(job))


# --- Signals


def test_a_job_that_waits_for_a_signal_goes_where_received_leads() -> None:
    job = waiting_for_signal(60.0)
    wait = job.head.wait
    assert isinstance(wait, SignalWait)
    assert (job.status, wait.name, wait.deadline) == (
        JobStatus.WAITING_FOR_SIGNAL,
        "paid",
        NOON + 60,
    )

    result = step(job, a_signal(amount=3), RULES)

    goes_to(result, "next", before=job)
    assert result.job.data.state_history == {"amount": 3}
    assert only(result, ClearTimer) == ClearTimer(token=wait.token)
    fact = only(result, RecordFact)
    assert (fact.kind, fact.state, fact.next_state) == ("signal_received", "work", "next")
    assert fact.details == {"signal": {"name": "paid", "data": {"amount": 3}}}


def test_the_data_of_a_signal_is_laid_over_the_jobs() -> None:
    job = a_job(data=JobData(state_history={"amount": 1, "item": "book"}))
    waiting = step(job, ask_signal(job), RULES).job

    result = step(waiting, a_signal(amount=3), RULES)

    assert result.job.data.state_history == {"amount": 3, "item": "book"}


def test_a_wait_without_a_timeout_has_no_timer() -> None:
    job = a_job()

    asked = step(job, ask_signal(job), RULES)

    assert all_of(asked, SetTimer) == []
    assert all_of(step(asked.job, a_signal(), RULES), ClearTimer) == []


STATES = {
    "created": lambda: new_job(
        JobId("j"), Origin(blueprint="b", group="g", start_state="s", created_at=NOON)
    ),
    "running": a_job,
    "task": waiting_for_task,
    "asleep": asleep,
    "another signal": waiting_for_signal,
}


@pytest.mark.parametrize("which", STATES)
def test_a_signal_that_comes_before_its_wait_is_kept_beside_the_job(which: str) -> None:
    job = STATES[which]()

    result = step(job, a_signal(name="early", n=1), RULES)

    assert result.commands == ()
    assert result.job.head is job.head
    assert (result.job.run, result.job.data) == (job.run, job.data)
    assert [signal.name for signal in result.job.signals.kept] == ["early"]
    assert step(result.job, a_signal(name="early", n=1), RULES).job is result.job


def test_a_kept_signal_is_taken_at_once_when_its_wait_comes() -> None:
    job = step(a_job(), a_signal(1, "other"), RULES).job
    job = step(job, a_signal(2, amount=3), RULES).job

    result = step(job, ask_signal(job, 60.0), RULES)

    goes_to(result, "next", before=job)
    assert result.job.data.state_history == {"amount": 3}
    assert all_of(result, SetTimer) == []
    assert facts(result) == ["step", "signal_received"]
    assert [signal.name for signal in result.job.signals.kept] == ["other"]
    assert result.job.signals.taken == 1


def test_of_kept_signals_the_oldest_is_taken_first() -> None:
    job = a_job()
    for number in (2, 3, 1):  # two executors may apply them in another order than they came in
        job = step(job, a_signal(number, amount=number), RULES).job

    amounts: list[int] = []
    for _ in range(3):
        job = step(job, ask_signal(job), RULES).job
        amounts.append(job.data.state_history["amount"])

    assert amounts == [1, 2, 3]
    assert job.signals == Signals(taken=3, applied_up_to=3)


def test_a_repeat_of_a_signal_that_was_taken_changes_nothing() -> None:
    """R15."""
    job = step(waiting_for_signal(), a_signal(), RULES).job
    again = step(job, ask_signal(job), RULES).job

    assert step(again, a_signal(), RULES).job is again


def test_a_handler_outcome_loses_no_signal_that_came_while_it_ran() -> None:
    job = a_job()
    meanwhile = step(job, a_signal(), RULES).job

    went_on = step(
        meanwhile,
        returned(job, TransitionTo(state="next"), data=JobData(state_history={"x": 1})),
        RULES,
    ).job

    assert went_on.data.state_history == {"x": 1}
    assert [signal.name for signal in went_on.signals.kept] == ["paid"]


def test_a_signal_that_does_not_come_in_time_goes_where_timeout_leads() -> None:
    job = waiting_for_signal(60.0, timeout="remind")

    goes_to(step(job, fired(job), RULES), "remind", before=job)


def test_a_signal_that_does_not_come_in_time_else_fails_the_job() -> None:
    job = waiting_for_signal(60.0)

    result = step(job, fired(job), WITH_FAILED)

    ends(result, JobStatus.FAILED, "No signal 'paid' came within 60 seconds.")


def test_of_a_signal_and_its_timeout_the_first_takes_effect() -> None:
    """R16."""
    job = waiting_for_signal(60.0, timeout="remind")
    late = fired(job)

    received = step(job, a_signal(), RULES).job
    expired = step(job, late, RULES).job

    assert step(received, late, RULES).job is received
    kept = step(expired, a_signal(), RULES).job
    assert (kept.state, len(kept.signals.kept)) == ("remind", 1)


def test_a_signal_to_a_job_that_is_being_cancelled_is_kept_for_the_state_it_goes_to() -> None:
    job = step(marked(waiting_for_signal(cancelled="tidy")), a_signal(), RULES).job
    assert job.status is JobStatus.WAITING_FOR_SIGNAL

    tidying = step(job, CancelRequested(at=LATER), RULES).job

    assert (tidying.state, len(tidying.signals.kept)) == ("tidy", 1)


@pytest.mark.parametrize("name", ["", "x" * 256, "line\nbreak"])
def test_a_name_no_signal_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 printable characters"):
        check_signal_name(name)


# --- The job's own time


def late(job: Job) -> Job:
    """As the store leaves it when its time is over."""
    return marked(with_deadline(job, 90.0))


@pytest.mark.parametrize(
    "job", [a_job(), waiting_for_task(), asleep(), waiting_for_signal(cancelled="tidy")]
)
def test_a_job_whose_time_is_over_fails_with_its_seconds(job: Job) -> None:
    result = step(late(job), JobTimedOut(at=LATER), WITH_FAILED)

    ends(result, JobStatus.FAILED, "Job timed out after 90 seconds.")
    assert not result.job.cancelled
    assert result.job.run > job.run


def test_a_job_whose_time_is_over_closes_what_was_open() -> None:
    """R8."""
    result = step(late(waiting_for_task()), JobTimedOut(at=LATER), RULES)

    assert only(result, CloseTask).task_id == "task-1"


def test_the_outcome_of_a_handler_that_ran_into_the_deadline_is_dropped() -> None:
    job = late(a_job())

    assert step(job, returned(job, TransitionTo(state="next"), run=job.run - 1), RULES).job is job


def test_a_cancel_that_led_on_does_not_save_a_job_from_its_deadline() -> None:
    job = with_deadline(waiting_for_signal(cancelled="tidy"), 90.0)
    tidying = cancelled(job).job

    result = step(tidying, JobTimedOut(at=LATER), RULES)

    ends(result, JobStatus.FAILED, "Job timed out after 90 seconds.")
    assert result.job.run > tidying.run


@pytest.mark.parametrize("has_deadline", [True, False])
def test_a_job_that_ends_in_time_leaves_no_deadline(has_deadline: bool) -> None:
    """R8."""
    job = a_job("end")
    job = with_deadline(job) if has_deadline else job

    result = step(job, returned(job), RULES)

    assert len(all_of(result, ClearDeadline)) == has_deadline


def test_the_deadline_stays_while_the_job_goes_on() -> None:
    job = with_deadline(a_job())
    actions: list[Action] = [TransitionTo(state="next"), Sleep(seconds=1.0, next_state="x")]

    for action in actions:
        assert all_of(step(job, returned(job, action), RULES), ClearDeadline) == []


def test_a_job_without_a_deadline_cannot_be_late() -> None:
    with pytest.raises(IllegalTransition, match="it has no deadline"):
        step(a_job(), JobTimedOut(at=LATER), RULES)


# --- The heartbeat of a task


def test_the_offer_of_a_task_carries_its_heartbeat_timeout() -> None:
    job = a_job()
    action = a_task(heartbeat_timeout_seconds=5.0)

    result = step(job, returned(job, action, fresh_ids=("task-1",)), RULES)

    assert only(result, OfferTask).heartbeat_timeout_seconds == 5.0
