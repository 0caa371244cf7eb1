"""The job state machine, rule by rule."""

from typing import get_args

import pytest
from libs.core.tests.builders import (
    CHILD,
    LATER,
    NEXT,
    NO_RETRIES,
    NOON,
    RULES,
    TASK,
    WITH_FAILED,
    WORKER,
    a_job,
    a_signal,
    a_task,
    after_task_failures,
    all_of,
    an_origin,
    ask_approval,
    ask_signal,
    asleep,
    cancelled,
    child_finished,
    ends,
    facts,
    failed,
    fired,
    goes_to,
    marked,
    only,
    raised,
    returned,
    start_child,
    stopped,
    succeeded,
    timed_out,
    token_of,
    told,
    waiting_for_approval,
    waiting_for_branches,
    waiting_for_child,
    waiting_for_signal,
    waiting_for_task,
    with_data,
    with_deadline,
)

from avtomatika_core.commands import (
    CancelChild,
    ClearTimer,
    CloseBranches,
    CloseTask,
    Command,
    CreateChild,
    Notify,
    OfferTask,
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
    JobCreated,
    JobSetAside,
    JobTimedOut,
    SignalReceived,
    TimerFired,
)
from avtomatika_core.job import (
    REDRIVABLE,
    TERMINAL,
    ApprovalWait,
    BranchesWait,
    ChildWait,
    Client,
    HandlerRetryWait,
    Job,
    JobData,
    JobId,
    JobStatus,
    LastError,
    Origin,
    Parent,
    TaskId,
    TaskRetryWait,
    TaskWait,
    is_beside,
    new_job,
)
from avtomatika_core.machine import APPLIES_IN, step
from avtomatika_core.outcomes import (
    Action,
    DispatchParallel,
    DispatchTask,
    Rules,
    SentEvent,
    TaskRequest,
    TransitionTo,
)

# --- The table, and what changes nothing


def test_every_event_has_its_row_in_the_table() -> None:
    assert set(APPLIES_IN) == set(get_args(Event))


def test_only_signals_apply_to_a_job_that_has_ended_and_may_run_again() -> None:
    applies = {event: statuses & TERMINAL for event, statuses in APPLIES_IN.items()}

    assert applies.pop(SignalReceived) == REDRIVABLE
    assert not any(applies.values())


def test_something_can_happen_in_every_status_that_is_not_the_end() -> None:
    only_by_force = {CancelRequested, JobSetAside, JobTimedOut, SignalReceived}

    reached = {s for event, row in APPLIES_IN.items() if event not in only_by_force for s in row}

    assert reached == set(JobStatus) - TERMINAL


def every_event(job: Job) -> list[Event]:
    token = token_of(job) if job.head.wait else "1"
    return [
        JobCreated(at=LATER),
        Continue(at=LATER),
        returned(job, TransitionTo(state="elsewhere")),
        raised(job),
        succeeded(),
        failed(),
        stopped(),
        timed_out(),
        told(),
        BranchesDone(at=LATER, token=token),
        ChildFinished(at=LATER, token=token, child_id=CHILD, status="finished", final_state="over"),
        ApprovalDecided(at=LATER, token=token, decision="yes"),
        TimerFired(at=LATER, token=token, fresh_id=NEXT),
        a_signal(),
        JobTimedOut(at=LATER),
        CancelRequested(at=LATER),
        JobSetAside(at=LATER, reason="poison"),
    ]


def test_a_signal_that_comes_after_the_end_is_kept_and_nothing_else_changes() -> None:
    job = step(a_job(), raised(a_job(), is_definition_error=True), RULES).job

    result = step(job, a_signal(), RULES)

    assert is_beside(job, result.job)
    assert [signal.number for signal in result.job.signals.kept] == [1]
    assert result.commands == ()


def test_every_event_is_tried_on_a_job_that_has_ended() -> None:
    job = step(a_job("end"), returned(a_job("end")), RULES).job

    tried = every_event(job)

    assert {type(event) for event in tried} == set(get_args(Event))
    assert all(step(job, event, RULES) == Step(job) for event in tried)
    assert all(step(marked(job), event, RULES).commands == () for event in tried)


JOBS = {
    "running": a_job,
    "task": waiting_for_task,
    "branches": waiting_for_branches,
    "child": waiting_for_child,
    "approval": lambda: waiting_for_approval(5.0),
    "task retry": lambda: step(waiting_for_task(), failed(), RULES).job,
    "handler retry": lambda: step(a_job(), raised(a_job()), RULES).job,
    "sleep": asleep,
    "signal": lambda: waiting_for_signal(5.0),
}


@pytest.mark.parametrize("which", JOBS)
def test_only_the_asked_for_end_applies_once_the_cancel_mark_is_set(which: str) -> None:
    job = marked(with_deadline(JOBS[which]()))

    by_force = {CancelRequested, JobSetAside, JobTimedOut, SignalReceived}

    for event in every_event(job):
        result = step(job, event, RULES)
        assert (result.job is job) == (type(event) not in by_force), event


@pytest.mark.parametrize("which", JOBS)
def test_a_repeated_end_of_a_wait_changes_nothing(which: str) -> None:  # R15
    job = with_deadline(JOBS[which]())

    for event in every_event(job):
        once = step(job, event, RULES).job
        assert step(once, event, RULES) == Step(once)


@pytest.mark.parametrize("which", JOBS)
def test_the_outcome_of_a_run_that_is_no_longer_wanted_is_dropped(which: str) -> None:
    job = JOBS[which]()

    late = [
        returned(job, TransitionTo(state="x"), run=job.run - 1),
        returned(job, TransitionTo(state="x"), run=job.run + 1),
        raised(job, run=job.run - 1),
    ]

    for event in late:
        result = step(job, event, RULES)
        assert result.job is job
        assert result.commands == ()


def test_events_for_another_task_token_or_child_change_nothing() -> None:  # R15, R21
    retrying = step(waiting_for_task(), failed(), RULES).job
    child = waiting_for_child()
    strangers: list[tuple[Job, Event]] = [
        (waiting_for_task(), succeeded(task_id="invented")),
        (waiting_for_task(), failed(task_id="invented")),
        (waiting_for_task(), stopped(task_id="invented")),
        (waiting_for_task(), timed_out(task_id="invented")),
        (retrying, TimerFired(at=LATER, token="0.2", fresh_id=NEXT)),
        (waiting_for_branches(), BranchesDone(at=LATER, token="0")),
        (child, child_finished(child, token="0")),
        (child, child_finished(child, child_id="another")),
        (waiting_for_approval(), ApprovalDecided(at=LATER, token="0", decision="yes")),
        (asleep(), TimerFired(at=LATER, token="0", fresh_id=NEXT)),
        (waiting_for_signal(5.0), TimerFired(at=LATER, token="0", fresh_id=NEXT)),
    ]

    for job, event in strangers:
        assert step(job, event, RULES).job is job


def test_a_continue_changes_nothing() -> None:
    job = a_job()

    assert step(job, Continue(at=LATER), RULES) == Step(job)


def test_a_job_that_starts_twice_starts_once() -> None:
    stored = new_job(JobId("job-1"), an_origin())

    job = step(stored, JobCreated(at=NOON), RULES).job

    assert (job.status, job.state, job.run) == (JobStatus.RUNNING, "work", 1)
    assert step(job, JobCreated(at=NOON), RULES).job is job


def test_tasks_without_an_id_each_are_illegal() -> None:
    job = a_job()
    two = DispatchParallel(tasks=[TaskRequest(type="t")] * 2, aggregate_into="join")

    for event in (
        returned(job, a_task()),
        returned(job, a_task(), fresh_ids=(TASK, NEXT)),
        returned(job, two, fresh_ids=(TASK,)),
        returned(job, start_child(job).action, child_group="g", child_start_state="s"),
        returned(job, start_child(job).action, fresh_ids=(CHILD,)),
        returned(job, ask_approval(job, yes="next").action),
    ):
        with pytest.raises(IllegalTransition, match="running"):
            step(job, event, RULES)


# --- What a handler may ask for


def test_a_transition_wants_the_handler_of_the_next_state() -> None:
    job = a_job()

    result = step(job, returned(job, TransitionTo(state="next")), RULES)

    goes_to(result, "next", before=job)
    assert result.job.run == job.run + 1
    fact = only(result, RecordFact)
    assert (fact.kind, fact.state, fact.next_state) == ("step", "work", "next")
    assert (fact.followed_by, fact.attempt) == ("transition", 1)
    assert (fact.started_at, fact.at) == (NOON - 1, NOON)


def test_data_that_a_handler_did_not_touch_is_the_same_object() -> None:  # R76
    job = a_job(data=JobData(state_history={"big": "x" * 1000}))

    result = step(job, returned(job, TransitionTo(state="next")), RULES)

    assert result.job.data is job.data
    assert all("x" * 1000 not in repr(command) for command in result.commands)


def test_what_a_handler_left_and_its_updates_are_kept() -> None:
    job = a_job(data=JobData(state_history={"old": 1}))
    left = JobData(state_history={"left": 1, "both": 1}, initial_data={"changed": True})

    result = step(
        job,
        returned(job, TransitionTo(state="n"), data=left, context_updates={"both": 2, "more": 3}),
        RULES,
    )

    assert result.job.data.state_history == {"left": 1, "both": 2, "more": 3}
    assert result.job.initial_data == {"changed": True}
    assert left.state_history == {"left": 1, "both": 1}


def test_updates_alone_are_laid_over_the_data_that_is_there() -> None:
    job = a_job(data=JobData(state_history={"old": 1}))

    result = step(job, returned(job, TransitionTo(state="n"), context_updates={"new": 2}), RULES)

    assert result.job.data.state_history == {"old": 1, "new": 2}


def test_a_transition_may_carry_an_error_message() -> None:
    job = a_job()

    result = step(job, returned(job, TransitionTo(state="x", error_message="no stock")), RULES)

    assert result.job.head.error_message == "no stock"


def test_a_task_goes_on_the_board_and_the_job_waits_for_it() -> None:  # R7
    job = a_job(tracing_context={"traceparent": "00-1"}, data_metadata={"f": {"uri": "u"}})
    action = a_task(
        params={"x": 1},
        strategy="cheapest",
        resource_requirements={"cpu_cores": 2},
        max_cost=0.5,
        priority=3.0,
        dispatch_timeout_seconds=7.0,
        result_timeout_seconds=9.0,
    )

    result = step(job, returned(job, action, fresh_ids=(TASK,)), RULES)

    assert only(result, OfferTask) == OfferTask(
        task_id=TASK,
        type="t",
        params={"x": 1},
        resource_requirements={"cpu_cores": 2},
        max_cost=0.5,
        strategy="cheapest",
        priority=3.0,
        dispatch_deadline=NOON + 7,
        result_timeout_seconds=9.0,
        tracing_context={"traceparent": "00-1"},
        params_metadata={"f": {"uri": "u"}},
        attempt=1,
    )
    assert result.job.status is JobStatus.WAITING_FOR_WORKER
    assert isinstance(result.job.head.wait, TaskWait)
    assert result.job.run == job.run
    assert all_of(result, SetTimer) == []
    fact = only(result, RecordFact)
    assert fact.followed_by == "task"
    assert fact.details is not None
    assert fact.details["task_info"]["task_id"] == TASK
    assert fact.details["task_info"]["params"] == {"x": 1}


@pytest.mark.parametrize(
    ("of_task", "of_job", "dispatch", "result"),
    [
        (None, None, 3600.0, 300.0),
        (None, 40.0, 40.0, 40.0),
        (5.0, 40.0, 5.0, 5.0),
    ],
)
def test_the_times_of_a_task_are_its_own_else_the_jobs_else_configured(
    of_task: float | None, of_job: float | None, dispatch: float, result: float
) -> None:
    job = a_job(dispatch_timeout=of_job, result_timeout=of_job)

    wait = waiting_for_task(
        job, dispatch_timeout_seconds=of_task, result_timeout_seconds=of_task
    ).head.wait

    assert isinstance(wait, TaskWait)
    assert (wait.dispatch_deadline, wait.result_timeout_seconds) == (NOON + dispatch, result)


def test_a_dispatch_timeout_of_zero_waits_for_ever() -> None:
    job = a_job(dispatch_timeout=40.0)

    wait = waiting_for_task(job, dispatch_timeout_seconds=0.0).head.wait

    assert isinstance(wait, TaskWait)
    assert wait.dispatch_deadline is None


def test_a_fan_out_is_one_command() -> None:  # R12
    job = a_job()
    tasks = [TaskRequest(type="a"), TaskRequest(type="b", dispatch_timeout_seconds=3.0)]
    action = DispatchParallel(tasks=tasks, aggregate_into="join")

    result = step(job, returned(job, action, fresh_ids=(TASK, NEXT)), RULES)

    start = only(result, StartBranches)
    assert [task.task_id for task in start.offers] == [TASK, NEXT]
    assert [task.type for task in start.offers] == ["a", "b"]
    assert [branch.index for branch in start.branches] == [0, 1]
    assert start.branches[1].dispatch_deadline == start.offers[1].dispatch_deadline == NOON + 3
    assert all(task.is_branch for task in start.offers)
    assert {branch.token for branch in start.branches} == {start.token}
    assert all_of(result, OfferTask) == []
    wait = result.job.head.wait
    assert isinstance(wait, BranchesWait)
    assert (wait.token, wait.count) == (start.token, 2)
    assert result.job.status is JobStatus.WAITING_FOR_PARALLEL_TASKS


def test_when_the_last_branch_is_done_the_aggregator_runs() -> None:
    job = waiting_for_branches()

    result = step(job, BranchesDone(at=LATER, token=token_of(job)), RULES)

    goes_to(result, "join", before=job)
    assert result.job.head.aggregating


def test_an_empty_fan_out_goes_to_the_aggregator_at_once() -> None:  # R13
    job = a_job()
    action = DispatchParallel(tasks=[], aggregate_into="join")

    result = step(job, returned(job, action), RULES)

    goes_to(result, "join", before=job)
    assert result.job.head.aggregating
    assert only(result, StartBranches).branches == ()  # results of an earlier fan-out go


def test_an_aggregator_that_fails_is_tried_again_as_an_aggregator() -> None:
    waiting = waiting_for_branches()
    job = step(waiting, BranchesDone(at=LATER, token=token_of(waiting)), RULES).job

    resting = step(job, raised(job), RULES).job
    again = step(resting, fired(resting), RULES).job
    gone_on = step(again, returned(again, TransitionTo(state="join")), RULES).job

    assert resting.head.aggregating
    assert again.head.aggregating
    assert not gone_on.head.aggregating


def test_a_sub_job_inherits_from_its_parent() -> None:  # R21
    client = Client(name="acme", plan="gold")
    job = a_job(
        client=client,
        tracing_context={"traceparent": "00-1"},
        data_metadata={"f": 1},
        dispatch_timeout=11.0,
        result_timeout=12.0,
        webhook_url="https://acme/hook",
        depth=2,
    )

    result = step(job, start_child(job, result_timeout=99.0), RULES)

    child = only(result, CreateChild).child
    assert (child.id, child.status, child.state) == (CHILD, JobStatus.PENDING, "begin")
    assert child.origin == Origin(
        blueprint="sub",
        group="other",
        start_state="begin",
        initial_data={"x": 1},
        client=client,
        created_at=NOON,
        data_metadata={"f": 1},
        tracing_context={"traceparent": "00-1"},
        dispatch_timeout=11.0,
        result_timeout=99.0,
        parent=Parent(job_id=job.id, group="g", token=token_of(result.job)),
        depth=3,
    )
    assert result.job.status is JobStatus.WAITING_FOR_SUB_JOB
    fact = only(result, RecordFact)
    assert (fact.followed_by, fact.next_state) == ("blueprint", "sub")


def test_generations_of_sub_jobs_are_limited() -> None:  # R21
    deepest = a_job(depth=RULES.max_depth)
    last_allowed = a_job(depth=RULES.max_depth - 1)

    result = step(deepest, start_child(deepest), RULES)

    assert all_of(result, CreateChild) == []
    assert result.job.status is JobStatus.FAILED
    error = result.job.head.error_message or ""
    assert "'work'" in error
    assert "'sub'" in error
    assert "MAX_HOLARCHY_DEPTH" in error
    ends(result, JobStatus.FAILED, error)
    assert all_of(step(last_allowed, start_child(last_allowed), RULES), CreateChild)


def test_a_person_is_asked_and_told_the_token() -> None:
    job = a_job()

    result = step(job, ask_approval(job, 60.0, yes="a", no="b", timeout="c"), RULES)

    wait = result.job.head.wait
    assert isinstance(wait, ApprovalWait)
    assert (wait.secret_hash, wait.deadline) == ("hash", NOON + 60)
    assert result.job.status is JobStatus.WAITING_FOR_HUMAN
    assert only(result, SetTimer) == SetTimer(token=wait.token, due=NOON + 60)
    notice = only(result, Notify)
    assert notice.event == "approval_requested"
    assert notice.approval == {
        "integration": "mail",
        "message": "ok?",
        "decisions": ["yes", "no"],
        "deadline": NOON + 60,
        "token": "open",
    }
    assert "open" not in repr(only(result, RecordFact))
    assert "open" not in repr(result.job.head)


def test_an_approval_without_a_timeout_has_no_timer() -> None:
    job = a_job()

    result = step(job, ask_approval(job, yes="next"), RULES)

    assert all_of(result, SetTimer) == []


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("end", JobStatus.FINISHED),
        ("broken", JobStatus.FAILED),
        ("stopped", JobStatus.CANCELLED),
    ],
)
def test_an_end_state_ends_the_job_with_its_outcome(state: str, status: JobStatus) -> None:  # R20
    job = a_job(state)

    result = step(job, returned(job), RULES)

    ends(result, status, None)
    assert facts(result) == ["step", "job_completed"]
    assert all_of(result, RecordFact)[0].followed_by == "end"


def test_an_end_state_whose_handler_asks_for_more_goes_on() -> None:
    job = a_job("end")

    goes_to(step(job, returned(job, TransitionTo(state="work")), RULES), "work", before=job)


def test_a_handler_that_asks_for_nothing_fails_the_job_and_names_the_state() -> None:  # R19
    job = a_job()

    result = step(job, returned(job), RULES)

    ends(result, JobStatus.FAILED, "Handler for state 'work' set no action.")
    assert all_of(result, RecordFact)[0].followed_by == "failure"


def test_a_loop_of_transitions_is_ended() -> None:
    rules = Rules(max_transitions=2)
    job = a_job()
    for _ in range(2):
        job = step(job, returned(job, TransitionTo(state="work")), rules).job
        assert job.status is JobStatus.RUNNING

    result = step(job, returned(job, TransitionTo(state="again")), rules)

    error = result.job.head.error_message or ""
    assert "More than 2 transitions (MAX_TRANSITIONS_PER_JOB)" in error
    assert "'work' to 'again'" in error
    ends(result, JobStatus.FAILED, error)


def test_the_guard_against_loops_can_be_switched_off() -> None:
    rules = Rules(max_transitions=0)
    job = a_job()

    for _ in range(50):
        job = step(job, returned(job, TransitionTo(state="work")), rules).job

    assert job.head.transition_count == 50


# --- A handler that raised


def test_a_handler_that_raised_is_tried_again_later_and_leaves_nothing() -> None:  # R23
    job = a_job(data=JobData(state_history={"kept": 1}))

    result = step(job, raised(job), RULES)

    head = result.job.head
    assert (head.status, head.state, head.retry_count) == (JobStatus.AWAITING_RETRY, "work", 1)
    assert head.error_message == "boom"
    assert isinstance(head.wait, HandlerRetryWait)
    assert only(result, SetTimer) == SetTimer(token=head.wait.token, due=NOON + 1)
    assert result.job.data is job.data
    fact = only(result, RecordFact)
    assert (fact.kind, fact.attempt, fact.started_at) == ("step_failed", 1, NOON - 1)
    assert fact.details == {"error_message": "boom"}

    again = step(result.job, fired(result.job), RULES)

    assert (again.job.status, again.job.run) == (JobStatus.RUNNING, job.run + 1)
    assert again.job.head.retry_count == 1
    assert again.commands == ()


@pytest.mark.parametrize(
    ("repeat", "delay"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (2000, 60.0)]
)
def test_each_retry_of_a_handler_waits_twice_as_long_up_to_a_minute(  # R23
    repeat: int, delay: float
) -> None:
    rules = Rules(max_retries=5000)
    job = a_job()
    head = type(job.head)(
        status=JobStatus.RUNNING, state="work", retry_count=repeat - 1, updated_at=NOON
    )
    job = Job(id=job.id, origin=job.origin, head=head, run=5)

    assert only(step(job, raised(job), rules), SetTimer).due == NOON + delay


@pytest.mark.parametrize(("jitter", "delay"), [(-1.0, 0.8), (1.0, 1.2)])
def test_retry_delays_are_spread_by_a_fifth(jitter: float, delay: float) -> None:
    job = a_job()

    due = only(step(job, raised(job, jitter=jitter), RULES), SetTimer).due

    assert due == pytest.approx(NOON + delay, abs=1e-5)


def test_a_handler_that_keeps_raising_is_quarantined() -> None:
    job = a_job()
    for _ in range(RULES.max_retries):
        resting = step(job, raised(job), RULES).job
        assert resting.status is JobStatus.AWAITING_RETRY
        job = step(resting, fired(resting), RULES).job

    result = step(job, raised(job, "still"), RULES)

    ends(result, JobStatus.QUARANTINED, "still")
    assert facts(result) == ["step_failed", "job_completed"]


def test_a_definition_error_is_quarantined_at_once() -> None:  # R24
    job = a_job()

    result = step(job, raised(job, "no argument 'x'", is_definition_error=True), RULES)

    ends(result, JobStatus.QUARANTINED, "no argument 'x'")


@pytest.mark.parametrize("action", [TransitionTo(state="next"), a_task()])
def test_a_handler_that_succeeds_at_last_clears_its_error_and_counter(  # R22
    action: Action,
) -> None:
    job = a_job()
    resting = step(job, raised(job), RULES).job
    again = step(resting, fired(resting), RULES).job
    ids = (TASK,) if isinstance(action, DispatchTask) else ()

    result = step(again, returned(again, action, fresh_ids=ids), RULES)

    assert (result.job.head.error_message, result.job.head.retry_count) == (None, 0)
    assert only(result, RecordFact).attempt == 2


# --- Results of a task


def test_a_result_lays_its_data_over_the_jobs_and_moves_on() -> None:
    job = waiting_for_task(
        a_job(data=JobData(state_history={"a": {"deep": 1}, "b": 1}), data_metadata={"f": 1})
    )

    result = step(
        job,
        succeeded(
            data={"a": {"new": 2}}, data_metadata={"g": 2}, worker_id=WORKER, leased_at=NOON + 1
        ),
        RULES,
    )

    goes_to(result, "next", before=job)
    assert result.job.data.state_history == {"a": {"new": 2}, "b": 1}
    assert result.job.data_metadata == {"f": 1, "g": 2}
    fact = only(result, RecordFact)
    assert (fact.kind, fact.state, fact.worker_id) == ("task_finished", "work", WORKER)
    assert (fact.started_at, fact.attempt) == (NOON + 1, 1)
    assert fact.details is not None
    assert fact.details["result"]["data"] == {"a": {"new": 2}}


def test_a_status_of_the_workers_own_chooses_the_state() -> None:
    job = waiting_for_task(transitions={"success": "next", "needs_review": "review"})

    goes_to(step(job, succeeded(status="needs_review"), RULES), "review", before=job)


def test_a_status_that_nobody_declared_fails_the_job() -> None:  # R18
    job = waiting_for_task()

    result = step(job, succeeded(status="odd", data={"x": 1}), RULES)

    ends(result, JobStatus.FAILED, "Worker returned unhandled status: odd")
    assert facts(result) == ["task_finished", "job_completed"]
    assert all_of(result, CloseTask) == []


def test_a_status_that_nobody_declared_goes_to_the_state_failed_if_there_is_one() -> None:  # R18
    job = waiting_for_task()

    result = step(job, succeeded(status="odd"), WITH_FAILED)

    goes_to(result, "failed", before=job)
    assert result.job.head.error_message == "Worker returned unhandled status: odd"


PERMANENT = [
    "PERMANENT_ERROR",
    "SECURITY_ERROR",
    "DEPENDENCY_ERROR",
    "CONTRACT_VIOLATION_ERROR",
]


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        *(
            (code, JobStatus.QUARANTINED, f"Task failed with permanent error ({code}): oom")
            for code in PERMANENT
        ),
        ("INVALID_INPUT_ERROR", JobStatus.FAILED, "Task failed due to invalid input: oom"),
        (
            "INTEGRITY_MISMATCH_ERROR",
            JobStatus.FAILED,
            "Task failed due to data integrity mismatch: oom",
        ),
    ],
)
def test_some_errors_are_final_at_once(code: str, status: JobStatus, text: str) -> None:  # R18
    ends(step(waiting_for_task(), failed(code=code), WITH_FAILED), status, text)

    handled = waiting_for_task(transitions={"failure": "repair"})
    result = step(handled, failed(code=code, details={"line": 3}, data={"part": 1}), RULES)

    goes_to(result, "repair", before=handled)
    assert result.job.head.error_message == text
    assert result.job.head.last_error == LastError(
        code=code, message="oom", details={"line": 3}, task_id=TASK, worker_id=WORKER
    )
    assert result.job.data.state_history == {"part": 1}


RETRIED = [
    "TRANSIENT_ERROR", "TIMEOUT_ERROR", "RESOURCE_EXHAUSTED_ERROR", "INTERNAL_ERROR", "OWN_CODE",
]  # fmt: skip


@pytest.mark.parametrize("code", RETRIED)
def test_other_errors_are_tried_again_under_a_new_task_id(code: str) -> None:  # R9
    job = waiting_for_task(params={"x": 1}, dispatch_timeout_seconds=0.0)

    result = step(job, failed(code=code), RULES)

    head = result.job.head
    assert (head.status, head.task_retry_count) == (JobStatus.AWAITING_RETRY, 1)
    assert head.error_message == "oom"
    assert isinstance(head.wait, TaskRetryWait)
    assert head.wait.token != TASK
    assert only(result, SetTimer) == SetTimer(token=head.wait.token, due=LATER + 1)
    assert facts(result) == ["task_finished"]

    again = step(result.job, fired(result.job, at=LATER + 1), RULES)

    task = only(again, OfferTask)
    assert (task.task_id, task.attempt, task.params) == (NEXT, 2, {"x": 1})
    assert again.job.status is JobStatus.WAITING_FOR_WORKER
    assert again.job.run == job.run


def test_the_dispatch_deadline_of_a_retry_counts_from_the_retry() -> None:
    waiting = step(waiting_for_task(dispatch_timeout_seconds=5.0), failed(), RULES).job

    task = only(step(waiting, fired(waiting, at=NOON + 100), RULES), OfferTask)

    assert task.dispatch_deadline == NOON + 105


def test_the_next_attempt_starts_with_the_last_checkpoint_any_attempt_has_left() -> None:
    left = step(waiting_for_task(), failed(checkpoint={"page": 2}), RULES).job
    second = step(left, fired(left, fresh_id=TASK), RULES)
    nothing_left = step(second.job, timed_out(), RULES).job

    third = step(nothing_left, fired(nothing_left), RULES)

    assert only(second, OfferTask).checkpoint == {"page": 2}
    assert only(third, OfferTask).checkpoint == {"page": 2}


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_the_delay_before_a_task_is_tried_again_doubles(failures: int) -> None:
    job = after_task_failures(failures)

    assert only(step(job, failed(), RULES), SetTimer).due == LATER + 2**failures


def test_a_task_that_keeps_failing_quarantines_its_job() -> None:  # R9
    job = after_task_failures(3)

    result = step(job, failed(code="INTERNAL_ERROR"), WITH_FAILED)

    ends(result, JobStatus.QUARANTINED, "Task failed after 4 attempts: oom")


def test_after_the_last_retry_the_job_goes_where_failure_leads() -> None:  # R18
    job = after_task_failures(3, transitions={"failure": "repair"})

    result = step(job, failed(), RULES)

    goes_to(result, "repair", before=job)
    assert result.job.head.error_message == "Task failed after 4 attempts: oom"
    assert result.job.head.last_error is not None


def test_a_task_that_succeeds_at_last_leaves_no_error() -> None:  # R22
    result = step(after_task_failures(2), succeeded(), RULES)

    assert (result.job.head.error_message, result.job.head.task_retry_count) == (None, 0)


def test_the_next_task_has_all_its_retries() -> None:  # R22
    job = step(after_task_failures(2), succeeded(), RULES).job
    job = waiting_for_task(job)

    for _ in range(RULES.max_retries):
        resting = step(job, failed(), RULES).job
        assert resting.status is JobStatus.AWAITING_RETRY
        job = step(resting, fired(resting, fresh_id=TASK), RULES).job


def test_an_error_outlives_what_had_no_part_in_it_and_dies_with_success() -> None:  # R22
    job = waiting_for_task(transitions={"failure": "repair"})
    job = step(job, failed(code="PERMANENT_ERROR"), RULES).job
    kept = "Task failed with permanent error (PERMANENT_ERROR): oom"

    broken = step(job, returned(job, TransitionTo(state="broken")), RULES).job
    fine = step(job, returned(job, TransitionTo(state="end")), RULES).job
    repaired = step(waiting_for_task(job), succeeded(), RULES).job

    ends(step(broken, returned(broken), RULES), JobStatus.FAILED, kept)
    result = step(fine, returned(fine), RULES)
    ends(result, JobStatus.FINISHED, None)
    assert result.job.head.last_error is None
    assert (repaired.head.error_message, repaired.head.last_error) == (kept, None)


def test_a_task_that_the_worker_stopped_cancels_the_job() -> None:
    ends(
        step(waiting_for_task(), stopped(), WITH_FAILED),
        JobStatus.CANCELLED,
        "The worker stopped task 'task-1' as cancelled.",
    )


def test_an_event_that_leads_on_ends_the_task_and_leaves_its_payload() -> None:
    job = waiting_for_task(
        with_data(a_job(), JobData(state_history={"kept": 1, "pages": 0})),
        event_transitions={"halfway": "look"},
    )

    result = step(job, told(payload={"pages": 7}), RULES)

    goes_to(result, "look", before=job)
    assert result.job.data.state_history == {"kept": 1, "pages": 7}
    assert only(result, CloseTask).task_id == TASK
    fact = only(result, RecordFact)
    assert (fact.kind, fact.next_state, fact.worker_id) == ("worker_event", "look", WORKER)
    assert fact.details == {
        "worker_event": {"event_id": "e-1", "event_type": "halfway", "payload": {"pages": 7}}
    }
    for late in (succeeded(), failed(), told()):
        assert step(result.job, late, RULES) == Step(result.job)


def test_an_event_of_another_type_or_task_changes_nothing() -> None:
    job = waiting_for_task(event_transitions={"halfway": "look"})

    for event in (told("other"), told(task_id=TaskId("another"))):
        assert step(job, event, RULES) == Step(job)
    resting = step(job, failed(), RULES).job
    assert step(resting, told(), RULES) == Step(resting)


def test_an_event_leads_on_in_every_attempt() -> None:
    job = after_task_failures(2, event_transitions={"halfway": "look"})

    result = step(job, told(), RULES)

    goes_to(result, "look", before=job)


@pytest.mark.parametrize("action", [TransitionTo(state="end"), a_task(), None])
def test_what_a_handler_sends_goes_out_with_its_step(action: Action | None) -> None:
    job = a_job("end")
    sent = SentEvent(event_type="priced", payload={"total": 3})

    result = step(job, returned(job, action, fresh_ids=(TASK,), sent_events=(sent, sent)), RULES)

    notices = [notice for notice in all_of(result, Notify) if notice.event == "worker_event"]
    assert notices == [Notify(event="worker_event", at=NOON, sent=sent)] * 2
    without = step(job, returned(job, action, fresh_ids=(TASK,)), RULES)
    assert result == Step(without.job, (*notices, *without.commands))


def test_a_stopped_task_goes_where_cancelled_leads() -> None:
    job = waiting_for_task(transitions={"cancelled": "tidy"})

    goes_to(step(job, stopped(), RULES), "tidy", before=job)


def test_a_late_result_is_a_failure_that_is_tried_again() -> None:  # R16
    job = waiting_for_task(transitions={"timeout": "slow", "failure": "repair"})

    result = step(job, timed_out(), RULES)

    assert result.job.status is JobStatus.AWAITING_RETRY
    assert result.job.head.error_message == "Worker task timed out."
    assert facts(result) == ["task_timed_out"]


@pytest.mark.parametrize(
    ("transitions", "state"),
    [({"timeout": "slow", "failure": "repair"}, "slow"), ({"failure": "repair"}, "repair")],
)
def test_after_the_last_late_result_timeout_goes_before_failure(  # R16
    transitions: dict[str, str], state: str
) -> None:
    job = waiting_for_task(rules=NO_RETRIES, transitions=transitions)

    result = step(job, timed_out(), NO_RETRIES)

    goes_to(result, state, before=job)
    error = result.job.head.last_error
    assert error is not None
    assert (error.code, error.message) == ("TIMEOUT_ERROR", "Worker task timed out.")


def test_late_results_that_nobody_handles_quarantine_the_job() -> None:
    result = step(waiting_for_task(), timed_out(), NO_RETRIES)

    ends(result, JobStatus.QUARANTINED, "Task failed after 1 attempts: Worker task timed out.")


def test_a_failure_that_the_worker_calls_a_timeout_is_a_failure() -> None:
    job = waiting_for_task(rules=NO_RETRIES, transitions={"timeout": "slow", "failure": "repair"})

    goes_to(step(job, failed(code="TIMEOUT_ERROR"), NO_RETRIES), "repair", before=job)


@pytest.mark.parametrize(("seconds", "text"), [(5.0, "5"), (0.25, "0.25"), (86400.0, "86400")])
def test_a_task_that_no_worker_took_fails_the_job_without_a_retry(  # R7
    seconds: float, text: str
) -> None:
    job = waiting_for_task(dispatch_timeout_seconds=seconds)

    result = step(job, timed_out("dispatch", waiting_reason="all busy"), WITH_FAILED)

    ends(result, JobStatus.FAILED, f"No worker took the task within {text} seconds: all busy")


@pytest.mark.parametrize(
    ("transitions", "state"),
    [({"timeout": "slow", "failure": "repair"}, "slow"), ({"failure": "repair"}, "repair")],
)
def test_a_task_that_no_worker_took_goes_where_timeout_or_failure_leads(
    transitions: dict[str, str], state: str
) -> None:
    job = waiting_for_task(dispatch_timeout_seconds=5.0, transitions=transitions)

    result = step(job, timed_out("dispatch"), RULES)

    goes_to(result, state, before=job)
    assert result.job.head.error_message == "No worker took the task within 5 seconds."


# --- Sub-jobs


@pytest.mark.parametrize(
    ("status", "outcome", "state"),
    [
        ("finished", "success", "good"),
        ("failed", "failure", "bad"),
        ("quarantined", "failure", "bad"),
        ("cancelled", "cancelled", "ugly"),
    ],
)
def test_the_outcome_of_a_sub_job_chooses_the_state(  # R17, R21
    status: str, outcome: str, state: str
) -> None:
    job = waiting_for_child(success="good", failure="bad", cancelled="ugly")

    result = step(job, child_finished(job, status, error_message="e", result={"sum": 3}), RULES)

    goes_to(result, state, before=job)
    assert result.job.data.state_history == {
        "sub_job_child-1_result": {
            "outcome": outcome,
            "final_state": "over",
            "error_message": "e",
            "result": {"sum": 3},
        }
    }


def test_a_cancelled_sub_job_counts_as_a_failure_where_nothing_else_is_declared() -> None:
    job = waiting_for_child(success="good", failure="bad")

    goes_to(step(job, child_finished(job, "cancelled"), RULES), "bad", before=job)


def test_a_failed_sub_job_says_why() -> None:
    job = waiting_for_child(failure="bad")

    result = step(job, child_finished(job, "failed", error_message="no disk"), RULES)

    assert result.job.head.error_message == "Sub-job 'child-1' ended as failed: no disk"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [("finished", "success"), ("failed", "failure"), ("cancelled", "cancelled")],
)
def test_an_outcome_of_a_sub_job_that_nobody_declared_fails_the_job(
    status: str, outcome: str
) -> None:
    job = waiting_for_child()

    failed_job = step(job, child_finished(job, status), RULES)
    in_failed = step(job, child_finished(job, status), WITH_FAILED)

    ends(failed_job, JobStatus.FAILED, f"No transition for sub-job outcome '{outcome}'.")
    assert "sub_job_child-1_result" in failed_job.job.data.state_history
    goes_to(in_failed, "failed", before=job)
    assert in_failed.job.head.error_message == failed_job.job.head.error_message


def test_a_sub_job_that_runs_cannot_have_finished() -> None:
    job = waiting_for_child()

    with pytest.raises(IllegalTransition, match="still 'running'"):
        step(job, child_finished(job, "running"), RULES)


PARENT = Parent(job_id=JobId("parent-1"), group="pg", token="4")


def ways_to_end() -> dict[str, Step]:
    """Every way a sub-job can end."""
    end, work = a_job("end", parent=PARENT), a_job(parent=PARENT)
    task = waiting_for_task(work)
    child = step(work, start_child(work, transitions={}), RULES).job
    human = step(work, ask_approval(work, 5.0, yes="next"), RULES).job
    signal = step(work, ask_signal(work, 5.0), RULES).job
    late = a_job(parent=PARENT, timeout_seconds=5.0)
    loop = Rules(max_transitions=1)
    once = step(work, returned(work, TransitionTo(state="work")), loop).job
    return {
        "end state": step(end, returned(end), RULES),
        "no action": step(work, returned(work), RULES),
        "loop": step(once, returned(once, TransitionTo(state="work")), loop),
        "depth": step(work, start_child(work), Rules(max_depth=0)),
        "raised": step(work, raised(work), NO_RETRIES),
        "definition error": step(work, raised(work, is_definition_error=True), RULES),
        "permanent error": step(task, failed(code="PERMANENT_ERROR"), RULES),
        "exhausted retries": step(task, failed(), NO_RETRIES),
        "unhandled status": step(task, succeeded(status="odd"), RULES),
        "stopped task": step(task, stopped(), RULES),
        "result timeout": step(task, timed_out(), NO_RETRIES),
        "dispatch timeout": step(task, timed_out("dispatch"), RULES),
        "unhandled child": step(child, child_finished(child), RULES),
        "approval expired": step(human, fired(human), RULES),
        "no signal": step(signal, fired(signal), RULES),
        "no more time": step(late, JobTimedOut(at=LATER), RULES),
        "cancel": cancelled(work),
        "set aside": step(work, JobSetAside(at=LATER, reason="poison"), RULES),
    }


@pytest.mark.parametrize("way", ways_to_end())
def test_every_way_to_end_goes_through_the_terminal_routine(way: str) -> None:  # R17
    result = ways_to_end()[way]

    job = result.job
    assert job.is_terminal
    ends(result, job.status, job.head.error_message)
    assert (job.head.error_message is None) == (job.status is JobStatus.FINISHED)
    resume = only(result, ResumeParent)
    assert resume.parent == PARENT
    assert (resume.event.token, resume.event.child_id) == (PARENT.token, job.id)
    assert (resume.event.status, resume.event.final_state) == (job.status, job.state)
    assert resume.event.error_message == job.head.error_message


def test_a_sub_job_hands_its_history_to_its_parent() -> None:  # R21
    job = a_job("end", data=JobData(state_history={"sum": 3}), parent=PARENT)

    assert only(step(job, returned(job), RULES), ResumeParent).event.result == {"sum": 3}


# --- Approvals


def test_a_decision_goes_where_it_leads_and_stops_the_clock() -> None:  # R8
    job = waiting_for_approval(60.0, yes="good", no="bad")

    result = step(job, ApprovalDecided(at=LATER, token=token_of(job), decision="no"), RULES)

    goes_to(result, "bad", before=job)
    assert only(result, ClearTimer) == ClearTimer(token=token_of(job))
    fact = only(result, RecordFact)
    assert (fact.kind, fact.details) == ("approval_received", {"decision": "no"})


def test_a_decision_without_a_deadline_clears_no_timer() -> None:
    job = waiting_for_approval(yes="good")

    result = step(job, ApprovalDecided(at=LATER, token=token_of(job), decision="yes"), RULES)

    assert all_of(result, ClearTimer) == []


def test_a_decision_that_was_not_offered_is_illegal() -> None:
    job = waiting_for_approval(yes="good")

    with pytest.raises(IllegalTransition, match="'maybe'"):
        step(job, ApprovalDecided(at=LATER, token=token_of(job), decision="maybe"), RULES)


def test_an_approval_that_expires_goes_where_timeout_leads() -> None:
    job = waiting_for_approval(60.0, yes="good", timeout="slow")

    result = step(job, fired(job), RULES)

    goes_to(result, "slow", before=job)
    assert all_of(result, ClearTimer) == []


def test_an_approval_that_expires_else_fails_the_job() -> None:
    result = step(waiting_for_approval(60.0), fired(waiting_for_approval(60.0)), WITH_FAILED)

    ends(
        result,
        JobStatus.FAILED,
        "Nobody decided on the approval 'mail' within 60 seconds.",
    )


# --- Ends from outside


@pytest.mark.parametrize(
    ("which", "closed"),
    [
        ("running", None),
        ("task", CloseTask(task_id=TASK)),
        ("branches", CloseBranches()),
        ("child", CancelChild(child_id=CHILD, child_group="other")),
        ("approval", ClearTimer(token="1")),
        ("task retry", ClearTimer(token="1.2")),
        ("handler retry", ClearTimer(token="1")),
        ("sleep", ClearTimer(token="1")),
        ("signal", ClearTimer(token="1")),
    ],
)
def test_a_forced_end_closes_what_was_open(  # R8, R21
    which: str, closed: Command | None
) -> None:
    job = JOBS[which]()

    by_cancel = cancelled(job)
    by_poison = step(job, JobSetAside(at=LATER, reason="poison"), RULES)

    ends(by_cancel, JobStatus.CANCELLED, "Cancelled by request.")
    assert facts(by_cancel) == ["job_cancelled", "job_completed"]
    ends(by_poison, JobStatus.QUARANTINED, "poison")
    kinds = (CloseTask, CloseBranches, CancelChild, ClearTimer)
    for result in (by_cancel, by_poison):
        found = [command for command in result.commands if isinstance(command, kinds)]
        assert found == ([] if closed is None else [closed])


def test_a_job_that_has_not_started_can_be_cancelled() -> None:
    ends(
        cancelled(new_job(JobId("job-1"), an_origin())),
        JobStatus.CANCELLED,
        "Cancelled by request.",
    )


@pytest.mark.parametrize(
    ("job", "closed"),
    [
        (waiting_for_task(transitions={"cancelled": "tidy"}), CloseTask(task_id=TASK)),
        (
            step(waiting_for_task(transitions={"cancelled": "tidy"}), failed(), RULES).job,
            ClearTimer(token="1.2"),
        ),
        (
            waiting_for_child(cancelled="tidy"),
            CancelChild(child_id=CHILD, child_group="other"),
        ),
        (waiting_for_approval(5.0, cancelled="tidy"), ClearTimer(token="1")),
        (waiting_for_signal(5.0, cancelled="tidy"), ClearTimer(token="1")),
    ],
)
def test_a_cancelled_wait_goes_where_cancelled_leads(job: Job, closed: Command) -> None:
    result = cancelled(job)

    goes_to(result, "tidy", before=marked(job))
    assert closed in result.commands
    assert facts(result) == ["job_cancelled"]
    assert step(result.job, CancelRequested(at=LATER), RULES).job is result.job


def test_a_poisoned_cancel_does_not_strand_the_job() -> None:
    result = step(marked(a_job()), JobSetAside(at=LATER, reason="poison"), RULES)

    ends(result, JobStatus.QUARANTINED, "poison")


def test_waits_of_one_job_never_share_a_token() -> None:
    job = a_job()
    seen: list[str] = []
    for _ in range(3):
        resting = step(job, raised(job), RULES).job
        seen.append(token_of(resting))
        job = step(resting, fired(resting), RULES).job
        asked = step(job, ask_approval(job, 5.0, yes="work"), RULES).job
        seen.append(token_of(asked))
        job = step(asked, ApprovalDecided(at=NOON, token=seen[-1], decision="yes"), RULES).job
        job = waiting_for_task(job)
        for _ in range(2):
            resting = step(job, failed(), RULES).job
            seen.append(token_of(resting))
            job = step(resting, fired(resting, fresh_id=TASK), RULES).job
        job = step(job, succeeded(), RULES).job
        waiting = step(job, start_child(job), RULES).job
        assert isinstance(waiting.head.wait, ChildWait)
        seen.append(token_of(waiting))
        job = step(waiting, child_finished(waiting), RULES).job

    assert len(set(seen)) == len(seen)
