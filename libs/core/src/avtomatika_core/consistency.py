"""What must stand beside a live job for it ever to go on, and what mends it where that is missing.

A job that runs has the entry that carries it; one that waits has what it waits for, or an event is on
its way that says how that ended. Commits keep it so. A fail-over of parts of a store, or a hand in it,
may not: then the job would wait for ever.
"""

from enum import StrEnum
from typing import Literal, assert_never

import msgspec

from avtomatika_core.events import (
    BranchesDone,
    CancelRequested,
    ChildFinished,
    Continue,
    InboxEvent,
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
    JobStatus,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
)


class _Value(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class FlawKind(StrEnum):
    CLAIM = "claim"
    """Nothing carries a job that is to run, or to be cancelled."""
    TASK = "task"
    """The task it waits for is gone."""
    BRANCH = "branch"
    """The task of an open branch is gone."""
    BOARD = "board"
    """A task that waits for a worker is not on the board."""
    LEASE = "lease"
    """A task with a worker is not among those the worker holds."""
    TASK_TIMER = "task_timer"
    """Nothing would act on a task's deadline."""
    TIMER = "timer"
    """Nothing would end the wait."""
    DEADLINE = "deadline"
    """Nothing would end the job when its own time is over."""
    APPROVAL = "approval"
    """It was decided, and the job does not know."""
    BRANCHES = "branches"
    """The number of open branches is not theirs."""
    OFFERS = "offers"
    """Nothing would offer the rest of a large fan-out."""
    CHILD = "child"
    """The sub-job has ended or is gone."""
    LIVE = "live"
    """It is listed as live, and is not."""


class Flaw(_Value, frozen=True, kw_only=True):
    """Something that is missing beside a job."""

    kind: FlawKind
    subject: str = ""
    """The task or token it is about."""
    unless_event: bool = False
    """It is none while an event of the job is on its way."""


class TaskAround(_Value, frozen=True, kw_only=True):
    """An open task, as the board knows it."""

    task_id: TaskId
    state: Literal["absent", "board", "leased"]
    is_placed: bool = True
    """It stands on the board, or among what its holder holds."""
    has_timer: bool = True
    """What acts on its deadline is set, or it has none."""


class Around(_Value, frozen=True, kw_only=True):
    """What stands beside a job at one moment."""

    has_claim: bool = True
    has_deadline: bool = True
    """What acts on the job's own deadline is set, or it has none."""
    is_late: bool = False
    """Its own deadline has passed."""
    has_timer: bool = True
    """Of the wait's token."""
    is_open: bool = True
    """The approval has not been decided."""
    tasks: tuple[TaskAround, ...] = ()
    """The task it waits for, or those of the branches that were looked at; of these only some."""
    open: int = 0
    """How many branches are said to be open."""
    branches: int = 0
    """How many there are."""
    is_staged: bool = False
    """Some branches are not on offer yet."""
    child: Literal["live", "ended", "absent"] = "live"


class Repair(_Value, frozen=True, kw_only=True):
    """Put back what can be told from the rest."""

    kind: FlawKind
    subject: str = ""
    due: float = 0.0
    event: BranchesDone | None = None
    """Appended where no branch is open."""


class Append(_Value, frozen=True, kw_only=True):
    """Let the job go on by an event."""

    event: InboxEvent
    is_branch: bool = False
    is_claim: bool = False


Mend = Repair | Append


def flaws(head: Head, around: Around, *, cancelled: bool) -> list[Flaw]:
    """What is missing beside a job that is listed as live."""
    if head.status in TERMINAL:
        return [Flaw(kind=FlawKind.LIVE)]
    found = _of_what_is_next(head, around, cancelled=cancelled)
    if around.has_deadline:
        return found
    if not around.is_late:
        return [Flaw(kind=FlawKind.DEADLINE), *found]
    # What ends the job is perhaps on its way, and ends all the rest; if so it carries a marked job.
    is_carried = Flaw(kind=FlawKind.CLAIM) not in found
    return [Flaw(kind=FlawKind.DEADLINE, unless_event=is_carried)]


def _of_what_is_next(head: Head, around: Around, *, cancelled: bool) -> list[Flaw]:
    if cancelled or head.status in {JobStatus.PENDING, JobStatus.RUNNING}:
        return [] if around.has_claim else [Flaw(kind=FlawKind.CLAIM)]
    wait = head.wait
    match wait:
        case TaskWait():
            return [flaw for task in around.tasks for flaw in _of_task(task, FlawKind.TASK)]
        case TaskRetryWait() | HandlerRetryWait() | SleepWait():
            return [] if around.has_timer else [_timer(wait.token, unless_event=True)]
        case SignalWait():
            if wait.deadline is None or around.has_timer:
                return []
            return [_timer(wait.token, unless_event=True)]
        case ApprovalWait():
            return _of_approval(wait, around)
        case BranchesWait():
            return _of_branches(around)
        case ChildWait():
            is_over = around.child != "live"
            return [Flaw(kind=FlawKind.CHILD, unless_event=True)] if is_over else []
        case None:
            return []
        case _:
            assert_never(wait)


def _timer(token: str, *, unless_event: bool) -> Flaw:
    return Flaw(kind=FlawKind.TIMER, subject=token, unless_event=unless_event)


def _of_task(task: TaskAround, absent: FlawKind) -> list[Flaw]:
    if task.state == "absent":
        return [Flaw(kind=absent, subject=task.task_id, unless_event=True)]
    found: list[Flaw] = []
    if not task.is_placed:
        place = FlawKind.BOARD if task.state == "board" else FlawKind.LEASE
        found.append(Flaw(kind=place, subject=task.task_id))
    if not task.has_timer:
        found.append(Flaw(kind=FlawKind.TASK_TIMER, subject=task.task_id))
    return found


def _of_approval(wait: ApprovalWait, around: Around) -> list[Flaw]:
    if not around.is_open:
        return [Flaw(kind=FlawKind.APPROVAL, subject=wait.token, unless_event=True)]
    if wait.deadline is None or around.has_timer:
        return []
    return [_timer(wait.token, unless_event=False)]


def _of_branches(around: Around) -> list[Flaw]:
    if around.is_staged:  # some of the branches have no task yet
        return [] if around.has_timer else [Flaw(kind=FlawKind.OFFERS)]
    if around.open != around.branches:
        return [Flaw(kind=FlawKind.BRANCHES)]
    if not around.branches:  # the last one ended, so the event that says so was written with it
        return [Flaw(kind=FlawKind.BRANCHES, unless_event=True)]
    return [flaw for task in around.tasks for flaw in _of_task(task, FlawKind.BRANCH)]


def mend(
    flaw: Flaw,
    head: Head | None,
    *,
    cancelled: bool,
    child: Job | None,
    at: float,
    fresh_id: TaskId,
) -> Mend:
    """What makes good for `flaw`. `child`: the sub-job, if there is one; `at`: now."""
    if head is None or flaw.kind is FlawKind.LIVE:
        return Repair(kind=FlawKind.LIVE)
    match flaw.kind:
        case FlawKind.CLAIM:
            return Append(event=_carrier(head, cancelled=cancelled, at=at), is_claim=True)
        case FlawKind.TASK | FlawKind.BRANCH:
            event = TaskFailed(
                at=at,
                task_id=TaskId(flaw.subject),
                fresh_id=fresh_id,
                message="The task was lost by the store.",
            )
            return Append(event=event, is_branch=flaw.kind is FlawKind.BRANCH)
        case FlawKind.CHILD:
            assert isinstance(head.wait, ChildWait), "only such a wait has a child"
            return Append(event=_end_of(child, head.wait, at))
        case FlawKind.BRANCHES:
            assert isinstance(head.wait, BranchesWait), "only such a wait has branches"
            done = BranchesDone(at=at, token=head.wait.token)
            return Repair(kind=flaw.kind, event=done)
        case FlawKind.TIMER:
            return Repair(kind=flaw.kind, subject=flaw.subject, due=_due(head, at))
        case (
            FlawKind.BOARD
            | FlawKind.LEASE
            | FlawKind.TASK_TIMER
            | FlawKind.APPROVAL
            | FlawKind.OFFERS
            | FlawKind.DEADLINE
        ):
            return Repair(kind=flaw.kind, subject=flaw.subject)
        case _:
            assert_never(flaw.kind)


def _carrier(head: Head, *, cancelled: bool, at: float) -> InboxEvent:
    if cancelled:
        return CancelRequested(at=at)
    return JobCreated(at=at) if head.status is JobStatus.PENDING else Continue(at=at)


def _end_of(child: Job | None, wait: ChildWait, at: float) -> ChildFinished:
    if child is None:
        return ChildFinished(
            at=at,
            token=wait.token,
            child_id=wait.child_id,
            status=JobStatus.FAILED,
            final_state="",
            error_message="The sub-job was lost by the store.",
        )
    return ChildFinished(
        at=at,
        token=wait.token,
        child_id=wait.child_id,
        status=child.status,
        final_state=child.state,
        error_message=child.head.error_message,
        result=child.data.state_history,
    )


def _due(head: Head, at: float) -> float:
    match head.wait:
        case TaskRetryWait(due=due) | HandlerRetryWait(due=due) | SleepWait(due=due):
            return due
        case ApprovalWait(deadline=float(deadline)) | SignalWait(deadline=float(deadline)):
            return deadline
        case _:
            return at
