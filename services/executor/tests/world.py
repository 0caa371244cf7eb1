"""An executor on a memory store; workers, watcher and clients are done by hand."""

# pyright: reportPrivateUsage=false

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from avtomatika_common import ids
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.memory.tables import JobRecord, Tables
from avtomatika_common.backend.ports import (
    Backend,
    LeasedTask,
    Progress,
    ResultAnswer,
    StoreOptions,
    WaitingTask,
)
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.clock import ManualClock
from avtomatika_common.context import JobContext
from avtomatika_common.records import Fact, Notification, unpack_fact, unpack_notification
from avtomatika_core.events import (
    CancelRequested,
    SignalReceived,
    TaskCancelled,
    TaskFailed,
    TaskSucceeded,
)
from avtomatika_core.job import Job, JobId, JobStatus, Origin, TaskId, WorkerId, new_job
from avtomatika_executor import ExecutorService, Settings
from tests.jobs import create_job
from tests.support import until

WORKER = WorkerId("w")


def noop() -> None:
    """The handler of an end state."""


def a_blueprint(
    handlers: Mapping[str, Callable[..., object]],
    *,
    ends: tuple[str, ...] = ("end",),
    name: str = "b",
) -> StateMachineBlueprint:
    """The first of `handlers` is of the start state; `ends` are end states that do nothing."""
    blueprint = StateMachineBlueprint(name)
    for number, (state, handler) in enumerate(handlers.items()):
        blueprint.handler_for(state, is_start=number == 0, targets=[*handlers, *ends])(handler)
    for end in ends:
        blueprint.handler_for(end, is_end=True)(noop)
    blueprint.validate()
    return blueprint


def go_to(state: str) -> Callable[[JobContext], None]:
    def handler(context: JobContext) -> None:
        context.actions.transition_to(state)

    return handler


def dispatch(transitions: Mapping[str, str], **options: Any) -> Callable[[JobContext], None]:
    def handler(context: JobContext) -> None:
        context.actions.dispatch_task("t", {}, transitions, **options)

    return handler


class World:
    def __init__(self, store: MemoryStorage | None = None) -> None:
        self.clock = ManualClock()
        self.store = store or MemoryStorage(self.clock)

    def executor(
        self, *blueprints: StateMachineBlueprint, backend: Backend | None = None, **settings: Any
    ) -> ExecutorService:
        return ExecutorService(Settings(**settings), backend or self.store, blueprints)

    async def create(self, blueprint: StateMachineBlueprint, **initial_data: Any) -> JobId:
        return await create_job(self.store, blueprint, **initial_data)

    async def create_with(self, blueprint: StateMachineBlueprint, **origin: Any) -> JobId:
        """A job with more than initial data: client, webhook, timeouts …"""
        assert blueprint.start_state is not None
        made = Origin(
            blueprint=blueprint.name,
            group="default",
            start_state=blueprint.start_state,
            created_at=self.clock.now(),
            **origin,
        )
        return (await self.store.jobs.create(new_job(JobId(ids.new_id()), made))).job_id

    # --- looking

    async def job(self, job_id: JobId) -> Job:
        stored = await self.store.jobs.load(job_id)
        assert stored is not None
        return stored.job

    async def until_status(self, job_id: JobId, status: JobStatus) -> Job:
        async def is_there() -> bool:
            return (await self.job(job_id)).status is status

        await until(is_there, message=f"{job_id} is {(await self.job(job_id)).head}, not {status}")
        return await self.job(job_id)

    async def end_of(self, job_id: JobId) -> Job:
        async def has_ended() -> bool:
            return (await self.job(job_id)).is_terminal

        await until(has_ended, message=f"{job_id} did not end: {(await self.job(job_id)).head}")
        return await self.job(job_id)

    @property
    def tables(self) -> Tables:
        """What the store holds inside."""
        return self.store._tables

    def record(self, job_id: JobId) -> JobRecord:
        return self.tables.jobs[job_id]

    def unread(self) -> list[str]:
        """Entries of the inbox that nobody has answered."""
        return list(self.tables.entries)

    async def until_all_is_answered(self) -> None:
        await until(lambda: not self.tables.entries, message="inbox entries are left")

    async def next_due(self) -> float | None:
        return await self.store.timers.next_due(0)

    async def seconds_to_timer(self) -> float | None:
        due = await self.next_due()
        return None if due is None else due - self.clock.now()

    async def facts(self, job_id: JobId) -> list[Fact]:
        entries = await self.store.facts.read("archive", 10_000)
        await self.store.facts.acknowledge(entries)
        facts = [unpack_fact(entry.payload) for entry in entries]
        return sorted((f for f in facts if f.job_id == job_id), key=lambda fact: fact.order)

    async def notifications(self) -> list[Notification]:
        entries = await self.store.notifications.read("notifier", 10_000)
        await self.store.notifications.acknowledge(entries)
        return [unpack_notification(entry.payload) for entry in entries]

    async def board(self) -> list[WaitingTask]:
        return await self.store.board.heads(0, 10_000)

    # --- doing what others do

    def seems_dead(self, executor: ExecutorService) -> None:
        """Its liveness has run out, as if it were stopped; it knows nothing of it."""
        del self.store.liveness._alive[executor.instance]

    def seems_alive(self, executor: ExecutorService) -> None:
        self.store.liveness._alive[executor.instance] = 1

    async def pass_time(self, seconds: float) -> int:
        """The clock goes on, and what is due then happens; how much that was."""
        self.clock.advance(seconds)
        lease = await self.store.leases.acquire("p0/watcher", "watcher", 60.0)
        assert lease is not None
        fired = await self.store.timers.fire(0, lease)
        await self.store.leases.release(lease)
        return fired

    async def fire_next(self) -> float:
        """Wait for a timer, let the time pass until it is due; how long that was."""
        await until(self._has_timer, message="no timer is set")
        seconds = await self.seconds_to_timer()
        assert seconds is not None
        await self.pass_time(seconds)
        return seconds

    async def _has_timer(self) -> bool:
        return await self.next_due() is not None

    async def take(self, worker: WorkerId = WORKER) -> LeasedTask:
        """The next task from the board, once there is one."""
        await until(self.board, message="no task on the board")
        task = (await self.board())[0]
        leased = await self.store.board.lease(
            task.task_id, task.job_id, task.offer_number, worker, 1
        )
        assert leased is not None
        await self.store.board.confirm(task.task_id, task.job_id, worker)
        return leased

    async def succeed(
        self,
        task: LeasedTask,
        data: dict[str, Any] | None = None,
        *,
        status: str = "success",
        worker: WorkerId = WORKER,
    ) -> ResultAnswer:
        event = TaskSucceeded(
            at=self.clock.now(),
            task_id=task.task_id,
            worker_id=worker,
            fresh_id=TaskId(ids.new_id()),
            status=status,
            data=data,
        )
        return await self.store.board.end_lease(task.job_id, worker, event)

    async def fail(
        self, task: LeasedTask, code: str = "TRANSIENT_ERROR", message: str = "oh"
    ) -> ResultAnswer:
        event = TaskFailed(
            at=self.clock.now(),
            task_id=task.task_id,
            worker_id=WORKER,
            fresh_id=TaskId(ids.new_id()),
            code=code,
            message=message,
        )
        return await self.store.board.end_lease(task.job_id, WORKER, event)

    async def report_progress(self, task: LeasedTask) -> ResultAnswer:
        said = Progress(progress=0.5, message="", at=self.clock.now(), task_id=task.task_id)
        return await self.store.board.record_progress(task.task_id, task.job_id, WORKER, said, None)

    async def send(self, job_id: JobId, name: str = "paid", **data: Any) -> None:
        """A signal for the job."""
        signal = SignalReceived(at=self.clock.now(), name=name, data=data)
        await self.store.jobs.send_signal(job_id, signal)

    async def report_cancelled(self, task: LeasedTask) -> ResultAnswer:
        event = TaskCancelled(
            at=self.clock.now(),
            task_id=task.task_id,
            worker_id=WORKER,
            fresh_id=TaskId(ids.new_id()),
        )
        return await self.store.board.end_lease(task.job_id, WORKER, event)

    async def cancel(self, job_id: JobId) -> bool:
        """Whether a worker has a task of it."""
        event = CancelRequested(at=self.clock.now())
        return bool(await self.store.jobs.request_cancel(job_id, event))


async def until_idle(executor: ExecutorService) -> None:
    await until(lambda: not executor._in_hand, message="the executor has entries in hand")


async def until_draining(executor: ExecutorService) -> None:
    await until(lambda: executor._advances.draining, message="the executor does not drain")


@asynccontextmanager
async def a_world() -> AsyncGenerator[World, None]:
    world = World()
    await world.store.open(StoreOptions(block_seconds=0.05, keep_facts=True))
    yield world
    await world.store.close()
