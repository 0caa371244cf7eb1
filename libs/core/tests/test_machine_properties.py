"""A job in a small world of workers, timers, children and people, where anything may come late,
twice or in any order: it is never lost, never ends twice and never waits for nothing."""

from functools import partial
from typing import Any, Literal

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from avtomatika_core.branches import offer_again, settle
from avtomatika_core.commands import (
    CancelChild,
    ClearDeadline,
    ClearTimer,
    CloseBranches,
    CloseTask,
    Command,
    CreateChild,
    NextAttempt,
    Notify,
    OfferTask,
    RecordFact,
    ResumeParent,
    SetTimer,
    StartBranches,
)
from avtomatika_core.errors import IllegalTransition
from avtomatika_core.events import (
    ApprovalDecided,
    BranchesDone,
    CancelRequested,
    ChildFinished,
    Continue,
    Event,
    HandlerRaised,
    HandlerReturned,
    JobCreated,
    JobSetAside,
    JobTimedOut,
    SignalReceived,
    TaskCancelled,
    TaskEvent,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
    WorkerEventArrived,
)
from avtomatika_core.job import (
    REDRIVABLE,
    ApprovalWait,
    Branch,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    JobId,
    JobStatus,
    Origin,
    Parent,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
    WorkerId,
    is_beside,
    new_job,
)
from avtomatika_core.machine import step
from avtomatika_core.outcomes import (
    Action,
    AwaitApproval,
    DispatchParallel,
    DispatchTask,
    EndOutcome,
    Rules,
    RunBlueprint,
    Sleep,
    TaskRequest,
    TransitionTo,
    WaitForSignal,
)
from avtomatika_core.retry_policy import RetryPolicy

STATES = st.sampled_from(["a", "b", "c", "end", "broken"])


def transitions(*keys: str) -> st.SearchStrategy[dict[str, str]]:
    every_key = st.fixed_dictionaries(dict.fromkeys(keys, STATES))
    return every_key | every_key | st.dictionaries(st.sampled_from(keys), STATES)


def tasks(*keys: str) -> st.SearchStrategy[TaskRequest]:
    return st.builds(
        TaskRequest,
        type=st.just("t"),
        transitions=transitions(*keys),
        event_transitions=st.dictionaries(st.just("halfway"), STATES),
        dispatch_timeout_seconds=st.sampled_from([None, 0.0, 5.0]),
        retry=st.sampled_from(
            [None, None, RetryPolicy(attempts=1), RetryPolicy(attempts=9, never=("ODD",))]
        ),
    )


ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(TransitionTo, state=STATES, error_message=st.sampled_from([None, "odd"])),
    st.builds(DispatchTask, task=tasks("success", "custom", "failure", "timeout", "cancelled")),
    st.builds(
        DispatchParallel,
        tasks=st.lists(tasks("success"), min_size=0, max_size=3),
        aggregate_into=STATES,
    ),
    st.builds(
        RunBlueprint,
        blueprint=st.just("sub"),
        initial_data=st.just({}),
        transitions=transitions("success", "failure", "cancelled"),
    ),
    st.builds(
        AwaitApproval,
        integration=st.just("mail"),
        message=st.just("?"),
        transitions=transitions("yes", "no", "timeout", "cancelled"),
        timeout_seconds=st.sampled_from([None, 60.0]),
    ),
    st.builds(Sleep, next_state=STATES, seconds=st.sampled_from([0.0, 60.0])),
    st.builds(Sleep, next_state=STATES, until=st.sampled_from([1.0, 1e9])),
    st.builds(
        WaitForSignal,
        name=st.sampled_from(["x", "y"]),
        transitions=st.fixed_dictionaries(
            {"received": STATES}, optional={"timeout": STATES, "cancelled": STATES}
        ),
        timeout_seconds=st.sampled_from([None, 60.0]),
    ),
)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


class Chance(msgspec.Struct, frozen=True, kw_only=True):
    """What happens next, as far as chance decides it: cheap to draw, easy to shrink."""

    kind: str = "go on"
    way: int = 0
    turn: int = 0

    @property
    def how(self) -> str:
        return HOW_TASKS_END[self.turn % len(HOW_TASKS_END)]

    @property
    def code(self) -> str:
        return CODES[self.turn % len(CODES)]

    @property
    def leaves(self) -> bool:
        return self.turn % 3 == 0

    @property
    def event_type(self) -> str:
        return "halfway" if self.turn % 2 else "odd"

    @property
    def child_status(self) -> str:
        return HOW_CHILDREN_END[self.turn % len(HOW_CHILDREN_END)]

    @property
    def signal(self) -> str:
        return "xyz"[self.turn % 3]


HOW_TASKS_END = [
    "success", "failure", "result", "failure", "custom", "failure", "cancelled", "dispatch",
]  # fmt: skip
HOW_CHILDREN_END = ["finished", "failed", "quarantined", "cancelled"]
CODES = ["TRANSIENT_ERROR", "ODD", "INTERNAL_ERROR", "TIMEOUT_ERROR", "PERMANENT_ERROR"]
KINDS = [
    *["go on"] * 40,
    *["raise"] * 5,
    *["noise"] * 3,
    *["cancel"] * 6,
    *["signal"] * 6,
    *["deadline"] * 2,
    *["ask for nothing", "set aside"],
]
CHANCES = st.builds(
    Chance, kind=st.sampled_from(KINDS), way=st.integers(0, 30), turn=st.integers(0, 139)
)
RULES = st.builds(
    Rules,
    end_states=st.just({"end": EndOutcome.SUCCESS, "broken": EndOutcome.FAILURE}),
    has_failed_state=st.booleans(),
    max_retries=st.integers(0, 3),
    retry=st.sampled_from([RetryPolicy(), RetryPolicy(), RetryPolicy(attempts=2)]),
    max_transitions=st.sampled_from([0, 0, 5]),
    max_depth=st.sampled_from([10, 10, 0]),
)


class World:
    """Keeps what the commands of a job make, as a store would, and gives back what comes of it."""

    def __init__(self, rules: Rules, *, has_deadline: bool) -> None:
        self.rules = rules
        self.has_deadline = has_deadline
        self.now = 1000.0
        self.ids = 0
        origin = Origin(
            blueprint="b",
            group="g",
            start_state="a",
            created_at=self.now,
            timeout_seconds=99.0 if has_deadline else None,
            parent=Parent(job_id=JobId("parent"), group="g", token="1"),
        )
        self.job = new_job(JobId("job"), origin)
        self.inbox: list[Event] = [JobCreated(at=self.now)]
        self.seen: list[Event] = []
        self.applied_runs: set[int] = set()
        self.returned_runs: set[int] = set()
        self.board: set[TaskId] = set()
        self.timers: set[str] = set()
        self.fired_timers: set[str] = set()
        self.used_tokens: set[str] = set()
        self.branches: dict[TaskId, Branch] = {}
        self.results: list[int] = []
        self.children: dict[JobId, str] = {}
        self.decided: set[str] = set()
        self.signals = 0
        """How many were sent."""
        self.left: dict[int | None, dict[str, Any]] = {}
        """Branch (None: the task the job waits for) -> the last checkpoint its attempts have left."""
        self.ends: list[Command] = []

    # --- The commit

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    def fresh_id(self) -> TaskId:
        self.ids += 1
        return TaskId(f"id-{self.ids}")

    def apply(self, event: Event) -> None:
        before = self.job
        result = step(before, event, self.rules)
        if result.job is before:
            assert result.commands == ()
            return
        assert not before.is_terminal or is_beside(before, result.job)
        assert not before.cancelled or isinstance(
            event, CancelRequested | JobSetAside | JobTimedOut | SignalReceived
        )
        assert result.job.run >= before.run
        if isinstance(event, HandlerReturned | HandlerRaised):
            assert event.run == before.run
            assert event.run not in self.applied_runs
            self.applied_runs.add(event.run)
        if isinstance(event, HandlerReturned):
            self.returned_runs.add(event.run)
        is_taken = result.job.signals.taken > before.signals.taken
        if isinstance(event, SignalReceived) and not is_taken:
            assert is_beside(before, result.job)
            assert result.commands == ()
            assert result.job.cancelled == before.cancelled
        if isinstance(event, HandlerRaised):
            assert result.job.data is before.data
        if isinstance(event, BranchesDone) and isinstance(before.head.wait, BranchesWait):
            assert sorted(self.results) == list(range(before.head.wait.count))
        self.note_checkpoint(None, event)
        self.job = result.job
        for command in result.commands:
            self.carry_out(command)
        again = step(self.job, event, self.rules)
        assert again.job is self.job, "an event applied twice changed the job twice"

    def carry_out(self, command: Command) -> None:  # noqa: C901 - one case per command
        match command:
            case OfferTask():
                assert command.task_id not in self.board
                if command.attempt == 1:
                    self.left.pop(None, None)
                assert command.checkpoint == self.left.get(None)
                self.board.add(command.task_id)
            case StartBranches():
                assert not self.branches
                self.results = []
                self.left.clear()
                for task, branch in zip(command.offers, command.branches, strict=True):
                    self.branches[task.task_id] = branch
            case SetTimer():
                assert command.token not in self.used_tokens
                self.used_tokens.add(command.token)
                self.timers.add(command.token)
            case ClearTimer():
                assert command.token in self.timers | self.fired_timers
                self.timers.discard(command.token)
            case ClearDeadline():
                assert self.job.is_terminal
                assert self.job.origin.timeout_seconds is not None
                self.has_deadline = False
            case CloseTask():
                self.board.discard(command.task_id)
            case CloseBranches():
                self.branches.clear()
            case CreateChild():
                parent = command.child.origin.parent
                assert parent is not None
                assert parent.token not in self.used_tokens
                self.used_tokens.add(parent.token)
                self.children[command.child.id] = parent.token
            case CancelChild():
                if command.child_id in self.children:
                    self.end_child(command.child_id, "cancelled")
            case Notify():
                if command.event not in {"approval_requested", "worker_event"}:
                    self.ends.append(command)
            case ResumeParent():
                self.ends.append(command)
            case RecordFact():
                if command.kind == "job_completed":
                    self.ends.append(command)

    def is_coming(self, kind: type[Event]) -> bool:
        return any(isinstance(event, kind) for event in self.inbox)

    # --- What comes of it

    def deliver(self, index: int) -> None:
        event = self.inbox.pop(index % len(self.inbox))
        self.seen.append(event)
        self.receive(event)

    def receive(self, event: Event) -> None:
        if isinstance(event, TaskEvent) and event.task_id in self.branches:
            self.settle_branch(event)
        elif isinstance(event, TimerFired) and event.token in self.branches:
            if not self.job.cancelled:
                branch = self.branches.pop(TaskId(event.token))
                self.keep(
                    offer_again(
                        branch,
                        event,
                        self.rules,
                        job_id=self.job.id,
                        origin=self.job.origin,
                        data_metadata={},
                    )
                )
        else:
            self.apply(event)

    def settle_branch(self, event: TaskEvent) -> None:
        if self.job.cancelled:
            return
        branch = self.branches.pop(event.task_id)
        self.note_checkpoint(branch.index, event)
        settled = settle(branch, event, self.rules, job_id=self.job.id)
        if isinstance(settled, NextAttempt):
            self.keep(settled)
            return
        self.results.append(settled.index)
        if not self.branches:
            self.inbox.append(BranchesDone(at=self.now, token=branch.token))

    def keep(self, attempt: NextAttempt) -> None:
        assert (attempt.due is None) != (attempt.offer is None)
        assert attempt.branch.is_waiting == (attempt.offer is None)
        assert attempt.task_id not in self.branches
        if attempt.offer is not None:
            assert attempt.offer.checkpoint == self.left.get(attempt.branch.index)
        self.branches[attempt.task_id] = attempt.branch

    def note_checkpoint(self, branch: int | None, event: Event) -> None:
        left = event.checkpoint if isinstance(event, TaskFailed | TaskTimedOut) else None
        if left is not None:
            self.left[branch] = left

    def end_task(self, task_id: TaskId, how: str, code: str, *, leaves: bool) -> None:
        """The worker answers, is lost or is late: whoever closes the gate first."""
        self.board.discard(task_id)
        common: dict[str, Any] = {
            "at": self.tick(),
            "task_id": task_id,
            "fresh_id": self.fresh_id(),
        }
        checkpoint = {"at": self.now} if leaves else None
        timeout: Literal["dispatch", "result"] = "dispatch" if how == "dispatch" else "result"
        match how:
            case "failure":
                event: Event = TaskFailed(**common, code=code, checkpoint=checkpoint)
            case "cancelled":
                event = TaskCancelled(**common)
            case "dispatch" | "result":
                event = TaskTimedOut(**common, timeout=timeout, checkpoint=checkpoint)
            case _:
                event = TaskSucceeded(**common, status=how, data={how: 1})
        self.inbox.append(event)

    def tell(self, task_id: TaskId, event_type: str) -> None:
        """The worker tells of something, as often as it likes."""
        self.inbox.append(
            WorkerEventArrived(
                at=self.tick(),
                task_id=task_id,
                worker_id=WorkerId("w"),
                event_id=self.fresh_id(),
                event_type=event_type,
                payload={event_type: 1},
            )
        )

    def open_tasks(self) -> list[TaskId]:
        ended = {event.task_id for event in self.inbox if isinstance(event, TaskEvent)}
        branches = [key for key, branch in self.branches.items() if not branch.is_waiting]
        return sorted(self.board | set(branches) - ended)

    def open_timers(self) -> list[str]:
        fired = {event.token for event in self.inbox if isinstance(event, TimerFired)}
        waiting = {str(key) for key, branch in self.branches.items() if branch.is_waiting}
        return sorted((self.timers | waiting) - fired)

    def fire_timer(self, token: str) -> None:
        self.timers.discard(token)
        self.fired_timers.add(token)
        self.inbox.append(TimerFired(at=self.tick(), token=token, fresh_id=self.fresh_id()))

    def end_child(self, child_id: JobId, status: str) -> None:
        token = self.children.pop(child_id)
        self.inbox.append(
            ChildFinished(
                at=self.tick(), token=token, child_id=child_id, status=status, final_state="x"
            )
        )

    def open_approval(self) -> ApprovalWait | None:
        wait = self.job.head.wait
        if not isinstance(wait, ApprovalWait) or wait.token in self.decided:
            return None
        return None if self.job.cancelled else wait

    def decide(self, wait: ApprovalWait, decision: str) -> None:
        self.decided.add(wait.token)
        self.inbox.append(ApprovalDecided(at=self.tick(), token=wait.token, decision=decision))

    def returned(self, run: int, action: Action | None) -> HandlerReturned:
        return HandlerReturned(
            at=self.tick(),
            run=run,
            action=action,
            started_at=self.now,
            context_updates={f"run {run}": True},
            fresh_ids=tuple(self.fresh_id() for _ in range(ids_of(action))),
            child_group="g",
            child_start_state="start",
            approval_secret_hash="hash",
        )

    def run_handler(self, action: Action | None) -> None:
        self.receive_again_later(self.returned(self.job.run, action))

    def raise_in_handler(self, *, is_definition_error: bool) -> None:
        self.receive_again_later(
            HandlerRaised(
                at=self.tick(),
                run=self.job.run,
                message="boom",
                is_definition_error=is_definition_error,
                started_at=self.now,
            )
        )

    def receive_again_later(self, event: Event) -> None:
        self.seen.append(event)
        self.apply(event)

    def is_answered(self, token: str) -> bool:
        """Whether the event that ends the wait with this token is on its way."""
        return any(
            token in (getattr(event, "task_id", None), getattr(event, "token", None))
            for event in self.inbox
        )

    def ask_cancel(self) -> None:
        self.mark()
        self.inbox.append(CancelRequested(at=self.tick()))

    def mark(self) -> None:
        if not self.job.cancelled:
            self.job = replace(self.job, cancelled=True, run=self.job.run + 1)

    def pass_deadline(self) -> None:
        self.has_deadline = False
        self.mark()
        self.inbox.append(JobTimedOut(at=self.tick()))

    def signal(self, name: str) -> None:
        self.signals += 1
        event = SignalReceived(
            at=self.tick(), number=self.signals, name=name, data={f"signal {self.signals}": True}
        )
        self.inbox.append(event)

    def awaited_signal(self) -> str | None:
        """The name of the one the job waits for, if it is not on its way."""
        wait = self.job.head.wait
        if not isinstance(wait, SignalWait) or self.job.cancelled:
            return None
        return None if self.is_signalled(wait.name) else wait.name

    def is_signalled(self, name: str) -> bool:
        return any(isinstance(one, SignalReceived) and one.name == name for one in self.inbox)


def ids_of(action: Action | None) -> int:
    match action:
        case DispatchTask() | RunBlueprint():
            return 1
        case DispatchParallel():
            return len(action.tasks)
        case TransitionTo() | AwaitApproval() | Sleep() | WaitForSignal() | None:
            return 0


def make(world: World, chance: Chance, actions: list[Action]) -> None:
    """One thing happens; what cannot happen now gives way to something that can."""
    job = world.job
    is_wanted = job.status is JobStatus.RUNNING and not job.cancelled
    match chance.kind:
        case "cancel" if not (job.cancelled or job.is_terminal):
            world.ask_cancel()
        case "signal" if not job.is_terminal:
            world.signal(chance.signal)
        case "deadline" if world.has_deadline:
            world.pass_deadline()
        case "set aside":
            world.apply(JobSetAside(at=world.tick(), reason="poison"))
        case "ask for nothing" if is_wanted:
            world.run_handler(None)
        case "raise" if is_wanted:
            world.raise_in_handler(is_definition_error=chance.turn % 10 == 9)
        case "noise":
            send_noise(world, chance.way)
        case _:
            go_on(world, chance, actions[chance.turn % len(actions)])


def go_on(world: World, chance: Chance, action: Action | None) -> bool:
    """One of the things that are under way comes about; False when there is none."""
    job, wait = world.job, world.open_approval()
    ways = [
        *(partial(world.deliver, index) for index in range(len(world.inbox))),
        *(
            partial(world.end_task, task, chance.how, chance.code, leaves=chance.leaves)
            for task in world.open_tasks()
        ),
        *(partial(world.tell, task, chance.event_type) for task in world.open_tasks()),
        *(partial(world.fire_timer, token) for token in world.open_timers()),
        *(partial(world.end_child, child, chance.child_status) for child in world.children),
    ]
    if wait is not None and wait.transitions:
        decisions = sorted(wait.transitions)
        ways.append(partial(world.decide, wait, decisions[chance.turn % len(decisions)]))
    elif wait is not None:
        ways.append(partial(world.ask_cancel))
    if (name := world.awaited_signal()) is not None:
        ways.append(partial(world.signal, name))
    if job.status is JobStatus.RUNNING and not job.cancelled:
        ways.append(partial(world.run_handler, action))
    if ways:
        ways[chance.way % len(ways)]()
    return bool(ways)


def send_noise(world: World, pick: int) -> None:
    """What is late, repeated, for somebody else or impossible: nothing comes of it."""
    before, now, run = world.job, world.now, world.job.run
    token = ["0", "0.2", "id-0", "other"][pick % 4]
    task: dict[str, Any] = {"at": now, "task_id": token, "fresh_id": "never"}
    wait = before.head.wait
    of_the_wait = wait.token if isinstance(wait, ChildWait) else token
    strays: list[Event] = [
        Continue(at=now),
        HandlerReturned(at=now, run=run - 1, started_at=now, action=TransitionTo(state="b")),
        HandlerRaised(at=now, run=run + 1, started_at=now, message="boom"),
        TaskSucceeded(**task),
        TaskFailed(**task),
        TaskCancelled(**task),
        TaskTimedOut(**task, timeout="result"),
        WorkerEventArrived(
            at=now, task_id=TaskId(token), worker_id=WorkerId("w"), event_id="e", event_type="odd"
        ),
        BranchesDone(at=now, token=token),
        ChildFinished(at=now, token=token, child_id=JobId("x"), status="failed", final_state="x"),
        ChildFinished(
            at=now, token=of_the_wait, child_id=JobId("x"), status="failed", final_state="x"
        ),
        ApprovalDecided(at=now, token=token, decision="yes"),
        TimerFired(at=now, token=token, fresh_id=TaskId("never")),
    ]
    for event in (*world.seen, *strays):
        if before.cancelled and isinstance(event, CancelRequested):
            continue  # an earlier request does for a later one: what counts is the mark
        world.receive(event)
        assert world.job is before, event
    send_what_cannot_be(world)


def send_what_cannot_be(world: World) -> None:
    job, wait = world.job, world.open_approval()
    event: Event = HandlerReturned(
        at=world.now,
        run=job.run,
        action=DispatchTask(task=TaskRequest(type="t")),
        started_at=world.now,
    )
    is_wanted = job.status is JobStatus.RUNNING and not job.cancelled
    if wait is not None:
        event = ApprovalDecided(at=world.now, token=wait.token, decision="never offered")
        is_wanted = True
    try:
        result = step(job, event, world.rules)
    except IllegalTransition:
        assert is_wanted
    else:
        assert not is_wanted
        assert result.job is job


# --- What holds at every moment


def check(world: World) -> None:
    check_that_it_waits_for_something_that_can_come(world)
    check_that_nothing_outlives_its_wait(world)
    check_that_each_signal_counts_once(world)
    kinds = sorted(type(command).__name__ for command in world.ends)
    assert kinds == (["Notify", "RecordFact", "ResumeParent"] if world.job.is_terminal else [])
    head, history = world.job.head, world.job.data.state_history
    if head.status is JobStatus.FINISHED:
        assert head.error_message is None
        assert head.last_error is None
    runs = {int(key.removeprefix("run ")) for key in history if key.startswith("run ")}
    assert runs == world.returned_runs, "data of a run that did not count, or none of one that did"


def check_that_it_waits_for_something_that_can_come(world: World) -> None:
    job = world.job
    wait = job.head.wait
    if job.is_terminal:
        assert wait is None
        return
    if job.cancelled:
        assert world.is_coming(CancelRequested) or world.is_coming(JobTimedOut)
        return
    match wait:
        case None if job.status is JobStatus.PENDING:
            assert world.is_coming(JobCreated)
        case None:
            assert job.status is JobStatus.RUNNING
            assert job.run not in world.applied_runs
        case TaskWait():
            assert job.status is JobStatus.WAITING_FOR_WORKER
            assert wait.task_id in world.board or world.is_answered(wait.task_id)
        case TaskRetryWait() | HandlerRetryWait():
            assert job.status is JobStatus.AWAITING_RETRY
            assert wait.token in world.timers or world.is_answered(wait.token)
        case BranchesWait():
            assert job.status is JobStatus.WAITING_FOR_PARALLEL_TASKS
            assert world.branches or world.is_answered(wait.token)
        case ChildWait():
            assert job.status is JobStatus.WAITING_FOR_SUB_JOB
            assert wait.child_id in world.children or world.is_answered(wait.token)
        case ApprovalWait():
            assert job.status is JobStatus.WAITING_FOR_HUMAN
            assert wait.token not in world.decided or world.is_answered(wait.token)
            assert (
                wait.deadline is None or wait.token in world.timers or world.is_answered(wait.token)
            )
        case SleepWait():
            assert job.status is JobStatus.SLEEPING
            assert wait.token in world.timers or world.is_answered(wait.token)
        case SignalWait():
            assert job.status is JobStatus.WAITING_FOR_SIGNAL
            assert job.signals.oldest(wait.name) is None, "it waits for what it has"
            assert (
                wait.deadline is None or wait.token in world.timers or world.is_answered(wait.token)
            )


def check_that_each_signal_counts_once(world: World) -> None:
    job = world.job
    coming = [event.number for event in world.inbox if isinstance(event, SignalReceived)]
    kept = [signal.number for signal in job.signals.kept]
    told = (key for key in job.data.state_history if key.startswith("signal "))
    taken = [int(key.removeprefix("signal ")) for key in told]
    assert kept == sorted(kept)
    assert len(taken) == job.signals.taken
    if not job.is_terminal or job.status in REDRIVABLE:
        assert sorted([*coming, *kept, *taken]) == list(range(1, world.signals + 1))


def check_that_nothing_outlives_its_wait(world: World) -> None:
    wait = world.job.head.wait
    is_timed = isinstance(
        wait, TaskRetryWait | HandlerRetryWait | ApprovalWait | SleepWait | SignalWait
    )
    assert world.timers <= ({wait.token} if is_timed else set())
    assert world.board <= ({wait.task_id} if isinstance(wait, TaskWait) else set())
    assert not (world.has_deadline and world.job.is_terminal)
    assert not world.branches or isinstance(wait, BranchesWait)
    assert set(world.children) <= ({wait.child_id} if isinstance(wait, ChildWait) else set())


@settings(max_examples=400, deadline=None, suppress_health_check=SLOW)
@given(
    rules=RULES,
    actions=st.lists(ACTIONS, min_size=3, max_size=8),
    chances=st.lists(CHANCES, min_size=20, max_size=60),
    has_deadline=st.booleans(),
)
def test_a_job_is_never_lost_never_ends_twice_and_never_waits_for_nothing(
    rules: Rules, actions: list[Action], chances: list[Chance], has_deadline: bool
) -> None:
    world = World(rules, has_deadline=has_deadline)
    check(world)

    for chance in chances:
        make(world, chance, actions)
        check(world)
        if world.job.is_terminal and not world.inbox:
            break

    for _ in range(300):
        is_end = world.job.state in rules.end_states
        if not go_on(world, Chance(), None if is_end else TransitionTo(state="end")):
            break
        check(world)
    assert world.job.is_terminal
    assert not world.inbox
    send_noise(world, 0)
