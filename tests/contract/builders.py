"""Jobs, steps and hand-driven services for the suite."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    Delivery,
    Lease,
    LeasedTask,
    StorageBackend,
    Stored,
    WaitingTask,
)
from avtomatika_core.branches import offer_again, settle
from avtomatika_core.commands import NextAttempt
from avtomatika_core.events import (
    CancelRequested,
    Event,
    HandlerRaised,
    HandlerReturned,
    TaskCancelled,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
)
from avtomatika_core.job import (
    BranchResult,
    Client,
    Job,
    JobId,
    Origin,
    TaskId,
    TaskWait,
    WorkerId,
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
    TaskRequest,
    TransitionTo,
    WaitForSignal,
)

RULES = Rules(end_states={"end": EndOutcome.SUCCESS}, retry_delay_seconds=0.05)
APPROVAL = AwaitApproval(integration="mail", message="?", transitions={"yes": "go", "no": "stop"})
WAIT = WaitForSignal(name="paid", transitions={"received": "next", "timeout": "late"})
TO_NEXT = TransitionTo(state="next")
TO_END = TransitionTo(state="end")


def a_job(
    backend: StorageBackend,
    *,
    group: str = "default",
    client: str | None = None,
    webhook_url: str | None = None,
    initial_data: dict[str, Any] | None = None,
    partition: int = 0,
    timeout_seconds: float | None = None,
) -> Job:
    origin = Origin(
        blueprint="b",
        group=group,
        start_state="start",
        initial_data=initial_data or {},
        client=Client(name=client),
        created_at=backend.clock.now(),
        webhook_url=webhook_url,
        timeout_seconds=timeout_seconds,
    )
    return new_job(JobId(ids.new_id_in_partition(partition, backend.partitions)), origin)


def a_task(task_type: str = "t", **changes: Any) -> TaskRequest:
    return replace(
        TaskRequest(type=task_type, transitions={"success": "next"}, result_timeout_seconds=60.0),
        **changes,
    )


def parallel(*tasks: TaskRequest) -> DispatchParallel:
    return DispatchParallel(tasks=tasks, aggregate_into="join")


class Claim(NamedTuple):
    """A job as an executor holds it: read or written, and the entry that carries it."""

    stored: Stored
    delivery: Delivery

    @property
    def job(self) -> Job:
        return self.stored.job

    @property
    def task_id(self) -> TaskId:
        """Of the task it waits for."""
        wait = self.job.head.wait
        assert isinstance(wait, TaskWait)
        return wait.task_id


class Executor:
    """Does by hand what an executor does."""

    def __init__(
        self, backend: StorageBackend, name: str = "executor-1", group: str = "default"
    ) -> None:
        self.backend = backend
        self.name = name
        self.group = group
        self._read: list[Delivery] = []

    async def read(self) -> Delivery:
        """The next entry. A read may give one more than there was room for: that comes next time."""
        self._read = self._read or await self.backend.inbox.read(self.group, self.name, 1)
        assert self._read, "nothing came"
        return self._read.pop(0)

    async def read_all(self) -> list[Delivery]:
        """What there is now."""
        found, self._read = self._read, []
        return [*found, *await self.backend.inbox.read(self.group, self.name, 10_000)]

    async def pending(self) -> list[Delivery]:
        return await self.backend.inbox.pending(self.group, self.name)

    async def apply(self, delivery: Delivery, event: Event | None = None) -> Claim:
        """Commit what `event` (the delivered one) makes of the job."""
        stored = await self.backend.jobs.load(delivery.job_id)
        assert stored is not None
        return await self.commit(Claim(stored, delivery), event or delivery.event)

    async def commit(self, claim: Claim, event: Event | None, *, requeue: bool = False) -> Claim:
        assert event is not None
        made = step(claim.job, event, RULES)
        assert made.job is not claim.job, "the event changes nothing"
        stored = await self.backend.jobs.commit(claim.stored, made, claim.delivery, requeue=requeue)
        return Claim(stored, claim.delivery)

    async def start(self, job: Job | None = None) -> Claim:
        """A new job, or this one, whose first handler is to be run."""
        job = job or a_job(self.backend, group=self.group)
        await self.backend.jobs.create(job)
        return await self.apply(await self.read())

    async def run(self, claim: Claim, action: Action | None, **changes: Any) -> Claim:
        """The handler came back with `action`."""
        return await self.commit(claim, self.returned(claim, action, **changes))

    def returned(self, claim: Claim, action: Action | None, **changes: Any) -> HandlerReturned:
        at = self.backend.clock.now()
        event = HandlerReturned(
            at=at,
            run=claim.job.run,
            action=action,
            started_at=at,
            child_group=self.group,
            child_start_state="start",
            approval_secret="secret",
            approval_secret_hash="hash",
            fresh_ids=self._ids_for(claim, action),
        )
        return replace(event, **changes)

    def _ids_for(self, claim: Claim, action: Action | None) -> tuple[str, ...]:
        match action:
            case DispatchTask():
                return (ids.new_id(),)
            case DispatchParallel():
                return tuple(ids.new_id() for _ in action.tasks)
            case RunBlueprint():
                partitions = self.backend.partitions
                partition = ids.partition_of(claim.job.id, partitions)
                return (ids.new_id_in_partition(partition, partitions),)
            case _:
                return ()

    async def raised(self, claim: Claim, message: str = "no", *, is_final: bool = False) -> Claim:
        at = self.backend.clock.now()
        event = HandlerRaised(
            at=at, run=claim.job.run, message=message, is_definition_error=is_final, started_at=at
        )
        return await self.commit(claim, event)

    async def end(self, claim: Claim) -> Claim:
        return await self.run(await self.run(claim, TO_END), None)

    async def dispatch(self, task: TaskRequest | None = None, job: Job | None = None) -> Claim:
        """A new job that waits for a task on the board."""
        return await self.run(await self.start(job), DispatchTask(task=task or a_task()))

    async def fan_out(self, count: int, claim: Claim | None = None) -> Claim:
        tasks = [a_task(params={"number": number}) for number in range(count)]
        return await self.run(claim or await self.start(), parallel(*tasks))

    async def settle(self, delivery: Delivery) -> None:
        """The answer to an event of a branch."""
        event, job_id = delivery.event, delivery.job_id
        assert isinstance(
            event, TaskSucceeded | TaskFailed | TaskCancelled | TaskTimedOut | TimerFired
        )
        task_id = TaskId(event.token) if isinstance(event, TimerFired) else event.task_id
        branch = await self.backend.jobs.branch(job_id, task_id)
        assert branch is not None
        if isinstance(event, TimerFired):
            found = await self.backend.jobs.origin(job_id)
            assert found is not None
            origin, _ = found
            outcome: BranchResult | NextAttempt = offer_again(
                branch, event, RULES, job_id=job_id, origin=origin, data_metadata={}
            )
        else:
            outcome = settle(branch, event, RULES, job_id=job_id)
        await self.backend.jobs.settle_branch(delivery, task_id, outcome, token=branch.token)


async def waiting_tasks(backend: StorageBackend, per_shape: int = 1000) -> list[WaitingTask]:
    return [
        task
        for partition in range(backend.partitions)
        for task in await backend.board.heads(partition, per_shape)
    ]


async def the_waiting_task(backend: StorageBackend) -> WaitingTask:
    [task] = await waiting_tasks(backend)
    return task


async def lease(
    backend: StorageBackend,
    task: WaitingTask | None = None,
    worker: str = "worker-1",
    *,
    incarnation: int = 1,
) -> LeasedTask | None:
    """Hand `task`, or the only one that waits, to a worker."""
    task = task or await the_waiting_task(backend)
    return await backend.board.lease(
        task.task_id, task.job_id, task.offer_number, WorkerId(worker), incarnation
    )


async def take(
    backend: StorageBackend, worker: str = "worker-1", *, incarnation: int = 1
) -> LeasedTask:
    """The only waiting task is handed to a worker, and it has got it."""
    leased = await lease(backend, worker=worker, incarnation=incarnation)
    assert leased is not None
    await backend.board.confirm(leased.task_id, leased.job_id, WorkerId(worker))
    return leased


def a_success(backend: StorageBackend, task_id: str, worker: str = "worker-1") -> TaskSucceeded:
    return TaskSucceeded(
        at=backend.clock.now(),
        task_id=TaskId(task_id),
        worker_id=WorkerId(worker),
        fresh_id=TaskId(ids.new_id()),
        data={"done": True},
    )


def a_failure(backend: StorageBackend, task_id: str, worker: str = "worker-1") -> TaskFailed:
    return TaskFailed(
        at=backend.clock.now(),
        task_id=TaskId(task_id),
        worker_id=WorkerId(worker),
        fresh_id=TaskId(ids.new_id()),
    )


def a_cancel(backend: StorageBackend, reason: str = "Cancelled by request.") -> CancelRequested:
    return CancelRequested(at=backend.clock.now(), reason=reason)


async def watcher_lease(backend: StorageBackend, holder: str = "watcher-1") -> Lease:
    held = await backend.leases.acquire("p0/timers", holder, 60.0)
    assert held is not None
    return held


async def fire(backend: StorageBackend, lease: Lease | None = None) -> int:
    return await backend.timers.fire(0, lease or await watcher_lease(backend))


async def next_due(backend: StorageBackend) -> float | None:
    return await backend.timers.next_due(0)


async def relay_all(backend: StorageBackend) -> None:
    """What partitions decided takes effect for the workers."""
    for partition in range(backend.partitions):
        while await backend.relay.run_once(partition):
            pass


def errors(outcomes: Sequence[object]) -> list[type[BaseException]]:
    return [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)]
