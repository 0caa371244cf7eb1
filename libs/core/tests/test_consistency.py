"""What must stand beside a job of each status, and what mends it where it is missing."""

from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika_core.consistency import (
    Append,
    Around,
    Flaw,
    FlawKind,
    Repair,
    TaskAround,
    flaws,
    mend,
)
from avtomatika_core.events import (
    BranchesDone,
    CancelRequested,
    ChildFinished,
    Continue,
    JobCreated,
    TaskFailed,
)
from avtomatika_core.job import (
    TERMINAL,
    ApprovalWait,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    Head,
    Job,
    JobId,
    JobStatus,
    Origin,
    TaskId,
    TaskRetryWait,
    TaskWait,
    Wait,
)
from avtomatika_core.outcomes import TaskRequest

TASK = TaskId("t1")
CHILD = JobId("c1")
REQUEST = TaskRequest(type="t")
NOTHING_MISSING = Around(tasks=(TaskAround(task_id=TASK, state="board"),), open=1, branches=1)
WAITS: dict[JobStatus, Wait] = {
    JobStatus.WAITING_FOR_WORKER: TaskWait(
        task_id=TASK, request=REQUEST, attempt=1, dispatched_at=0, result_timeout_seconds=9
    ),
    JobStatus.AWAITING_RETRY: HandlerRetryWait(token="7", due=50.0),
    JobStatus.WAITING_FOR_PARALLEL_TASKS: BranchesWait(token="7", aggregate_into="join", count=1),
    JobStatus.WAITING_FOR_SUB_JOB: ChildWait(
        token="7", child_id=CHILD, child_group="g", blueprint="b", transitions={}
    ),
    JobStatus.WAITING_FOR_HUMAN: ApprovalWait(
        token="7",
        secret_hash="",
        integration="mail",
        message="?",
        transitions={},
        requested_at=0,
        deadline=60.0,
    ),
}


def a_head(status: JobStatus, wait: Wait | None = None) -> Head:
    return Head(status=status, state="s", wait=wait or WAITS.get(status), updated_at=0)


def found(status: JobStatus, around: Around, *, cancelled: bool = False) -> list[Flaw]:
    return flaws(a_head(status), around, cancelled=cancelled)


def mended(flaw: Flaw, status: JobStatus, child: Job | None = None, **changes: Any) -> Any:
    return mend(
        flaw,
        a_head(status),
        child=child,
        at=100.0,
        fresh_id=TaskId("new"),
        **{"cancelled": False, **changes},
    )


@pytest.mark.parametrize("status", sorted(set(JobStatus) - TERMINAL))
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_whole_job_has_no_flaw(status: JobStatus, cancelled: bool) -> None:
    assert found(status, NOTHING_MISSING, cancelled=cancelled) == []


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_job_that_ended_is_not_live(status: JobStatus) -> None:
    [flaw] = found(status, NOTHING_MISSING)

    assert flaw == Flaw(kind=FlawKind.LIVE)
    assert mended(flaw, status) == Repair(kind=FlawKind.LIVE)


@pytest.mark.parametrize(
    ("status", "cancelled", "event"),
    [
        (JobStatus.PENDING, False, JobCreated(at=100.0)),
        (JobStatus.RUNNING, False, Continue(at=100.0)),
        (JobStatus.RUNNING, True, CancelRequested(at=100.0)),
        (JobStatus.WAITING_FOR_HUMAN, True, CancelRequested(at=100.0)),
    ],
)
def test_what_is_to_run_needs_an_entry_that_carries_it(
    status: JobStatus, cancelled: bool, event: Any
) -> None:
    [flaw] = found(status, Around(has_claim=False), cancelled=cancelled)

    assert flaw == Flaw(kind=FlawKind.CLAIM)
    assert mended(flaw, status, cancelled=cancelled) == Append(event=event, is_claim=True)


@pytest.mark.parametrize(
    ("status", "kind", "is_branch"),
    [
        (JobStatus.WAITING_FOR_WORKER, FlawKind.TASK, False),
        (JobStatus.WAITING_FOR_PARALLEL_TASKS, FlawKind.BRANCH, True),
    ],
)
def test_a_task_that_is_gone_has_failed_unless_its_end_is_on_the_way(
    status: JobStatus, kind: FlawKind, is_branch: bool
) -> None:
    gone = TaskAround(task_id=TASK, state="absent", is_placed=False, has_timer=False)
    [flaw] = found(status, Around(tasks=(gone,), open=1, branches=1))

    assert flaw == Flaw(kind=kind, subject=TASK, unless_event=True)
    failed = TaskFailed(
        at=100.0, task_id=TASK, fresh_id=TaskId("new"), message="The task was lost by the store."
    )
    assert mended(flaw, status) == Append(event=failed, is_branch=is_branch)


@pytest.mark.parametrize(
    ("task", "kinds"),
    [
        (TaskAround(task_id=TASK, state="board", is_placed=False), [FlawKind.BOARD]),
        (TaskAround(task_id=TASK, state="leased", is_placed=False), [FlawKind.LEASE]),
        (TaskAround(task_id=TASK, state="leased", has_timer=False), [FlawKind.TASK_TIMER]),
        (
            TaskAround(task_id=TASK, state="board", is_placed=False, has_timer=False),
            [FlawKind.BOARD, FlawKind.TASK_TIMER],
        ),
    ],
)
def test_an_open_task_has_its_place_and_its_timer(task: TaskAround, kinds: list[FlawKind]) -> None:
    for status in (JobStatus.WAITING_FOR_WORKER, JobStatus.WAITING_FOR_PARALLEL_TASKS):
        seen = found(status, Around(tasks=(task,), open=1, branches=1))

        assert seen == [Flaw(kind=kind, subject=TASK) for kind in kinds]
        assert mended(seen[0], status) == Repair(kind=kinds[0], subject=TASK)


def test_a_retry_needs_its_timer_unless_it_has_fired() -> None:
    for wait in (
        HandlerRetryWait(token="7", due=50.0),
        TaskRetryWait(token="7", request=REQUEST, attempt=2, due=50.0),
    ):
        head = a_head(JobStatus.AWAITING_RETRY, wait)
        [flaw] = flaws(head, Around(has_timer=False), cancelled=False)

        assert flaw == Flaw(kind=FlawKind.TIMER, subject="7", unless_event=True)
        made = mend(flaw, head, cancelled=False, child=None, at=100.0, fresh_id=TASK)
        assert made == Repair(kind=FlawKind.TIMER, subject="7", due=50.0)


def test_an_open_approval_needs_the_timer_of_its_deadline() -> None:
    [flaw] = found(JobStatus.WAITING_FOR_HUMAN, Around(has_timer=False))

    assert flaw == Flaw(kind=FlawKind.TIMER, subject="7")
    assert mended(flaw, JobStatus.WAITING_FOR_HUMAN) == Repair(
        kind=FlawKind.TIMER, subject="7", due=60.0
    )


def test_an_approval_that_was_decided_is_open_again_if_the_decision_is_lost() -> None:
    [flaw] = found(JobStatus.WAITING_FOR_HUMAN, Around(is_open=False, has_timer=False))

    assert flaw == Flaw(kind=FlawKind.APPROVAL, subject="7", unless_event=True)
    assert mended(flaw, JobStatus.WAITING_FOR_HUMAN) == Repair(kind=FlawKind.APPROVAL, subject="7")


@pytest.mark.parametrize("status", sorted(set(JobStatus) - TERMINAL))
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_job_with_a_deadline_needs_its_timer_until_then(
    status: JobStatus, cancelled: bool
) -> None:
    lost = replace(NOTHING_MISSING, has_deadline=False)

    [flaw] = found(status, lost, cancelled=cancelled)

    assert flaw == Flaw(kind=FlawKind.DEADLINE)
    assert mended(flaw, status) == Repair(kind=FlawKind.DEADLINE)


def test_what_else_is_missing_before_the_deadline_is_found_too() -> None:
    lost = Around(has_deadline=False, has_claim=False)

    kinds = [flaw.kind for flaw in found(JobStatus.RUNNING, lost)]

    assert kinds == [FlawKind.DEADLINE, FlawKind.CLAIM]


def test_of_a_late_job_only_its_end_is_missed_and_that_only_if_it_is_not_on_its_way() -> None:
    late = Around(has_deadline=False, is_late=True, has_timer=False)

    assert found(JobStatus.AWAITING_RETRY, late) == [
        Flaw(kind=FlawKind.DEADLINE, unless_event=True)
    ]


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_end_of_a_late_job_that_nothing_carries_is_not_on_its_way(cancelled: bool) -> None:
    lost = Around(has_deadline=False, is_late=True, has_claim=False)

    assert found(JobStatus.RUNNING, lost, cancelled=cancelled) == [Flaw(kind=FlawKind.DEADLINE)]


@pytest.mark.parametrize(
    ("around", "unless_event"),
    [(Around(open=2, branches=1), False), (Around(open=0, branches=0), True)],
)
def test_open_branches_are_counted_right_and_their_end_is_told(
    around: Around, unless_event: bool
) -> None:
    [flaw] = found(JobStatus.WAITING_FOR_PARALLEL_TASKS, around)

    assert flaw == Flaw(kind=FlawKind.BRANCHES, unless_event=unless_event)
    assert mended(flaw, JobStatus.WAITING_FOR_PARALLEL_TASKS) == Repair(
        kind=FlawKind.BRANCHES, event=BranchesDone(at=100.0, token="7")
    )


def test_branches_that_are_not_on_offer_need_what_offers_them_and_nothing_else() -> None:
    status = JobStatus.WAITING_FOR_PARALLEL_TASKS
    staged = Around(is_staged=True, open=9, branches=9)

    assert found(status, staged) == []
    assert found(status, Around(is_staged=True, has_timer=False)) == [Flaw(kind=FlawKind.OFFERS)]


@pytest.mark.parametrize("state", ["ended", "absent"])
def test_a_sub_job_that_is_over_is_told_of_unless_that_is_on_the_way(state: Any) -> None:
    [flaw] = found(JobStatus.WAITING_FOR_SUB_JOB, Around(child=state))

    assert flaw == Flaw(kind=FlawKind.CHILD, unless_event=True)


def test_what_a_sub_job_has_left_reaches_its_parent() -> None:
    origin = Origin(blueprint="b", group="g", start_state="s", created_at=0)
    head = Head(status=JobStatus.FINISHED, state="end", updated_at=0)
    child = Job(id=CHILD, origin=origin, head=head)
    flaw = Flaw(kind=FlawKind.CHILD, unless_event=True)

    made = mended(flaw, JobStatus.WAITING_FOR_SUB_JOB, child)
    lost = mended(flaw, JobStatus.WAITING_FOR_SUB_JOB)

    assert made.event == ChildFinished(
        at=100.0, token="7", child_id=CHILD, status="finished", final_state="end"
    )
    assert (lost.event.status, lost.event.error_message) == (
        "failed",
        "The sub-job was lost by the store.",
    )
