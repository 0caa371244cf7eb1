"""What a job is when it runs again after its end."""

from collections.abc import Callable

import pytest
from libs.core.tests.builders import (
    CHILD,
    LATER,
    NO_RETRIES,
    NOON,
    RULES,
    a_job,
    a_signal,
    a_task,
    after_task_failures,
    child_finished,
    failed,
    fired,
    marked,
    only,
    raised,
    returned,
    succeeded,
    token_of,
    waiting_for_approval,
    waiting_for_branches,
    waiting_for_child,
    waiting_for_signal,
    waiting_for_task,
    with_data,
    with_deadline,
)
from msgspec.structs import replace

from avtomatika_core.commands import OfferTask, ResumeParent
from avtomatika_core.events import BranchesDone, Event, JobSetAside, JobTimedOut
from avtomatika_core.job import REDRIVABLE, Job, JobData, JobId, JobStatus, Parent
from avtomatika_core.machine import step
from avtomatika_core.outcomes import DispatchTask, Rules, TaskRequest, TransitionTo
from avtomatika_core.redrive import redrive

AGAIN = LATER + 100


def after(job: Job, event: Event) -> Job:
    return step(job, event, RULES).job


def quarantined(job: Job) -> Job:
    return after(job, raised(job, is_definition_error=True))


def after_permanent_failure() -> Job:
    return after(waiting_for_task(), failed(code="PERMANENT_ERROR"))


def with_aggregator_broken() -> Job:
    job = waiting_for_branches()
    joining = after(job, BranchesDone(at=LATER, token="1"))
    return quarantined(joining)


def set_aside(job: Job) -> Job:
    return after(job, JobSetAside(at=LATER, reason="poison"))


def timed_out() -> Job:
    return after(marked(with_deadline(waiting_for_task(), 5.0)), JobTimedOut(at=LATER))


def with_child_failed(job: Job) -> Job:
    return after(job, child_finished(job, "quarantined"))


def expired(job: Job) -> Job:
    return after(job, fired(job))


ENDS: dict[str, Callable[[], Job]] = {
    "its handler failed": lambda: quarantined(a_job()),
    "its task failed": after_permanent_failure,
    "its aggregator failed": with_aggregator_broken,
    "its sub-job failed": lambda: with_child_failed(waiting_for_child()),
    "nobody decided": lambda: expired(waiting_for_approval(1.0)),
    "no signal came": lambda: expired(waiting_for_signal(1.0)),
    "its time was over": timed_out,
    "it was set aside in a fan-out": lambda: set_aside(waiting_for_branches()),
    "it was set aside when it was to be cancelled": lambda: set_aside(marked(waiting_for_task())),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_however_it_ended_the_handler_of_its_state_is_wanted_with_fresh_counters(
    end: Callable[[], Job],
) -> None:
    ended = end()
    assert ended.status in REDRIVABLE

    job = redrive(ended, AGAIN).job

    head = job.head
    assert (head.status, head.state) == (JobStatus.RUNNING, ended.state)
    assert head.aggregating == ended.head.aggregating
    assert (head.retry_count, head.task_retry_count, head.transition_count) == (0, 0, 0)
    assert (head.wait, head.error_message, head.finished_at) == (None, None, None)
    assert head.updated_at == AGAIN
    assert job.run == ended.run + 1
    assert not job.cancelled
    assert (job.data, job.signals, job.origin) == (ended.data, ended.signals, ended.origin)
    assert after(job, returned(job, TransitionTo(state="end"))).state == "end"


def test_the_task_that_failed_is_dispatched_again_as_its_first_attempt() -> None:
    ended = after(after_task_failures(3), failed())
    assert ended.status is JobStatus.QUARANTINED
    job = redrive(ended, AGAIN).job

    result = step(job, returned(job, a_task(), fresh_ids=("task-9",)), RULES)

    assert result.job.status is JobStatus.WAITING_FOR_WORKER
    assert only(result, OfferTask).attempt == 1


def test_its_handler_has_all_its_attempts_again() -> None:
    ended = step(a_job(), raised(a_job()), NO_RETRIES).job
    job = redrive(ended, AGAIN).job

    again = after(job, raised(job))

    assert (again.status, again.head.retry_count) == (JobStatus.AWAITING_RETRY, 1)


def test_a_result_for_the_task_before_the_end_changes_nothing() -> None:
    job = redrive(after_permanent_failure(), AGAIN).job
    waiting = after(job, returned(job, a_task(), fresh_ids=("task-9",)))

    assert step(waiting, succeeded(), RULES).job is waiting


def test_the_loop_guard_counts_from_the_redrive_on() -> None:
    rules = Rules(max_transitions=2)
    job = a_job()
    for _ in range(3):
        job = step(job, returned(job, TransitionTo(state="work")), rules).job
    assert job.status is JobStatus.FAILED

    again = redrive(job, AGAIN).job

    assert step(again, returned(again, TransitionTo(state="work")), rules).job.status is (
        JobStatus.RUNNING
    )


def test_the_handler_of_a_failure_still_reads_why() -> None:
    task = DispatchTask(task=TaskRequest(type="t", transitions={"failure": "repair"}))
    job = a_job()
    waiting = after(job, returned(job, task, fresh_ids=("task-1",)))
    ended = quarantined(after(waiting, failed(code="PERMANENT_ERROR")))

    job = redrive(ended, AGAIN).job

    assert job.head.last_error is not None
    assert job.head.last_error.code == "PERMANENT_ERROR"


def test_a_kept_signal_is_taken_by_the_wait_after_the_redrive() -> None:
    ended = quarantined(after(a_job(), a_signal(amount=3)))
    job = redrive(ended, AGAIN).job

    assert [signal.data for signal in job.signals.kept] == [{"amount": 3}]


def test_all_of_its_time_begins_anew() -> None:
    assert redrive(timed_out(), AGAIN).deadline == AGAIN + 5.0
    assert redrive(quarantined(a_job()), AGAIN).deadline is None


def test_the_end_of_its_time_before_the_redrive_does_not_end_it_after() -> None:
    job = redrive(set_aside(with_deadline(waiting_for_task(), 5.0)), AGAIN).job
    went_on = after(job, returned(job, TransitionTo(state="work")))

    for late in (job, went_on):
        assert step(late, JobTimedOut(at=LATER), RULES).job is late
        assert after(late, JobTimedOut(at=AGAIN + 5)).status is JobStatus.FAILED


def test_its_own_parent_has_its_answer_and_takes_no_other() -> None:
    parent = waiting_for_child(success="good", failure="bad")
    token = token_of(parent)
    child = a_job(parent=Parent(job_id=JobId("parent"), group="g", token=token))
    ended = step(child, raised(child, is_definition_error=True), RULES)
    answer = only(ended, ResumeParent).event
    parent = after(parent, child_finished(parent, answer.status))
    assert parent.state == "bad"
    again = redrive(ended.job, AGAIN).job

    end = step(again, returned(again, TransitionTo(state="end")), RULES).job
    second = only(step(end, returned(end), RULES), ResumeParent).event

    assert (second.token, second.status) == (token, "finished")
    late = replace(second, child_id=CHILD)
    assert step(parent, late, RULES).job is parent


def test_history_tells_what_it_was_before() -> None:
    fact = redrive(quarantined(a_job()), AGAIN).fact

    assert (fact.kind, fact.at, fact.state) == ("job_redriven", AGAIN, "work")
    assert fact.details == {"previous_status": "quarantined", "previous_error": "boom"}


def test_its_data_is_what_its_last_step_left() -> None:
    data = JobData(state_history={"done": 1})
    ended = quarantined(with_data(a_job(), data))

    assert redrive(ended, NOON).job.data is data
