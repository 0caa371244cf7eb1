"""Deadlines are acted on when due, silent workers are given up, and dead consumers cleared away."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from msgspec.structs import replace

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import (
    CatalogueEntry,
    Delivery,
    Hint,
    Lease,
    LostLease,
    MatchAnswer,
    StoreOptions,
    StoreUnavailable,
)
from avtomatika_common.clock import ManualClock
from avtomatika_common.ids import new_id, new_id_in_partition
from avtomatika_common.lifecycle import running
from avtomatika_core.commands import OfferTask, SetTimer, Step
from avtomatika_core.events import TaskFailed, TaskSucceeded, TimerFired
from avtomatika_core.job import JobId, JobStatus, Origin, TaskId, TaskWait, WorkerId, new_job
from avtomatika_core.outcomes import TaskRequest
from avtomatika_watcher import Settings, WatcherService
from tests.support import match_one, until

TTL = 120.0
HEARTBEAT = 60.0
W = WorkerId("w")


class World:
    def __init__(self, partitions: int) -> None:
        self.clock = ManualClock()
        self.store = MemoryStorage(self.clock)
        self.partitions = partitions
        self.sleepers = 3 * partitions + 4
        """Of a watcher that has nothing to do: in each partition it renews its lease, waits for
        timers and to look at jobs; for all workers it renews, and waits to look at expiries, at
        consumers and at their places."""

    def watcher(self, name: str = "w") -> WatcherService:
        return WatcherService(Settings(instance_id=name, heartbeat_seconds=HEARTBEAT), self.store)

    async def new_delivery(self, partition: int = 0) -> Delivery:
        """The entry of a new job, read by the executor."""
        job_id = JobId(new_id_in_partition(partition, self.partitions))
        now = self.clock.now()
        origin = Origin(blueprint="b", group="default", start_state="s", created_at=now)
        await self.store.jobs.create(new_job(job_id, origin))
        return await self.next_event()

    async def next_event(self) -> Delivery:
        while not (found := await self.store.inbox.read("default", "executor", 1)):
            pass
        return found[0]

    async def events(self) -> int:
        return await self.store.inbox.length()

    async def set_timer(self, seconds: float, partition: int = 0) -> JobId:
        delivery = await self.new_delivery(partition)
        stored = await self.store.jobs.load(delivery.job_id)
        assert stored is not None
        head = replace(stored.job.head, status=JobStatus.AWAITING_RETRY)
        timer = SetTimer(token="t", due=self.clock.now() + seconds)
        await self.store.jobs.commit(
            stored, Step(replace(stored.job, head=head), (timer,)), delivery
        )
        return delivery.job_id

    async def offer_task(self) -> TaskId:
        """A job comes to wait for a task of type `t`."""
        delivery = await self.new_delivery()
        stored = await self.store.jobs.load(delivery.job_id)
        assert stored is not None
        task_id, now = TaskId(new_id()), self.clock.now()
        wait = TaskWait(
            task_id=task_id,
            request=TaskRequest(type="t"),
            attempt=1,
            dispatched_at=now,
            result_timeout_seconds=9999,
        )
        head = replace(stored.job.head, status=JobStatus.WAITING_FOR_WORKER, wait=wait)
        offer = OfferTask(
            task_id=task_id, type="t", params={}, resource_requirements=None, max_cost=None,
            strategy="default", priority=0, dispatch_deadline=None, result_timeout_seconds=9999,
            tracing_context={}, params_metadata=None, attempt=1,
        )  # fmt: skip
        step = Step(replace(stored.job, head=head), (offer,))
        await self.store.jobs.commit(stored, step, delivery)
        return task_id

    async def lease_task(self) -> TaskId:
        """The worker `w` registers and gets a task."""
        registered = await self.store.workers.register(W, {"supported_tasks": ["t"]}, TTL)
        task_id = await self.offer_task()
        (task,) = await self.store.board.heads(0, 1)
        assert await self.store.board.lease(task_id, task.job_id, 1, W, registered.incarnation)
        await self.store.board.confirm(task_id, task.job_id, W)
        return task_id

    async def let_pass(self, seconds: float) -> None:
        """As time does pass: in steps that everybody wakes from."""
        ends = self.clock.now() + seconds
        while self.clock.now() < ends:
            self.clock.advance(min(1.0, ends - self.clock.now()))
            await self.asleep()

    async def asleep(self) -> None:
        """The watcher has done what there was to do."""
        await until(lambda: self.clock.sleepers >= self.sleepers)

    async def has_events(self, count: int) -> None:
        async def has() -> bool:
            return await self.store.inbox.length() == count

        await until(has)


@asynccontextmanager
async def a_world(partitions: int = 1) -> AsyncGenerator[World, None]:
    world = World(partitions)
    await world.store.open(StoreOptions(partitions=partitions, block_seconds=0.05))
    yield world
    await world.store.close()


async def test_a_timer_that_is_set_while_the_watcher_looks_fires_when_it_is_due() -> None:
    async with a_world() as world:
        next_due, wait = world.store.timers.next_due, world.store.hints.wait
        looked, heard, answer = asyncio.Event(), asyncio.Event(), asyncio.Event()
        start = await world.store.hints.position("p0")

        async def slow(partition: int) -> float | None:
            due = await next_due(partition)
            if not looked.is_set():
                looked.set()
                await answer.wait()
            return due

        async def hearing(
            source: str, after: str, timeout_seconds: float
        ) -> tuple[str, list[Hint], bool]:
            if source == "p0" and after != start:
                heard.set()
            return await wait(source, after, timeout_seconds)

        world.store.timers.next_due = slow
        world.store.hints.wait = hearing
        async with running(world.watcher()), asyncio.timeout(5):
            await looked.wait()
            await world.set_timer(5)
            await heard.wait()
            answer.set()
            await world.let_pass(5)

            await world.has_events(1)


@asynccontextmanager
async def watched(world: World) -> AsyncGenerator[None, None]:
    """A watcher runs, and is asleep."""
    async with running(world.watcher()):
        await world.asleep()
        yield


async def test_a_timer_fires_when_it_is_due_and_not_before() -> None:
    async with a_world(partitions=2) as world, watched(world):
        job_id = await world.set_timer(3, partition=1)
        await world.let_pass(2.99)
        assert await world.events() == 0

        await world.let_pass(0.01)
        fired = await world.next_event()

    assert fired.job_id == job_id
    assert isinstance(fired.event, TimerFired)
    assert fired.event.at == world.clock.now()


async def test_an_earlier_timer_wakes_the_watcher_that_sleeps_for_a_later_one() -> None:
    async with a_world() as world, watched(world):
        await world.set_timer(15)
        await world.let_pass(1)
        early = await world.set_timer(2)

        await world.let_pass(2)

        assert (await world.next_event()).job_id == early
        assert await world.events() == 1


async def test_a_thousand_due_timers_fire_together() -> None:
    async with a_world() as world, watched(world):
        for _ in range(1000):
            await world.set_timer(1)

        world.clock.advance(1)

        await world.has_events(1000)


async def test_two_watchers_fire_a_timer_once() -> None:  # R65
    async with a_world() as world, watched(world), running(world.watcher("other")):
        for _ in range(20):
            await world.set_timer(30)

        await world.let_pass(90)

        await world.has_events(20)
        await world.let_pass(30)
        assert await world.events() == 20


async def test_a_second_watcher_takes_over_within_seconds_when_the_first_is_killed() -> None:
    async with a_world() as world:
        assert await world.store.leases.acquire("p0/watcher", "killed", 5)
        job_id = await world.set_timer(1)
        world.sleepers = 5  # it stands by
        async with running(world.watcher()):
            await world.asleep()
            await world.let_pass(3)
            assert await world.events() == 0

            await world.let_pass(3)

            assert (await world.next_event()).job_id == job_id


async def test_a_watcher_that_lost_its_lease_fires_nothing_until_it_has_it_again() -> None:
    async with a_world() as world, watched(world):
        await world.set_timer(30)
        world.clock.advance(6)  # too long asleep: the lease is over
        thief = await world.store.leases.acquire("p0/watcher", "thief", 60)
        assert thief is not None
        world.clock.advance(25)
        await until(lambda: world.clock.sleepers >= 3)
        assert await world.events() == 0

        await world.store.leases.release(thief)
        world.clock.advance(1)

        assert isinstance((await world.next_event()).event, TimerFired)


async def test_the_tasks_of_a_worker_that_expired_are_given_up_at_once() -> None:  # R6
    async with a_world() as world, watched(world):
        task = await world.lease_task()
        await world.let_pass(TTL - 0.01)
        assert await world.events() == 0

        await world.let_pass(0.1)
        event = (await world.next_event()).event

        assert isinstance(event, TaskFailed)
        assert (event.task_id, event.message) == (task, "Worker 'w' was lost.")


async def test_a_worker_that_beats_is_kept() -> None:
    async with a_world() as world, watched(world):
        await world.lease_task()
        for _ in range(5):
            await world.let_pass(HEARTBEAT)
            assert await world.store.workers.beat(W, None, TTL)

        assert await world.events() == 0


async def test_the_tasks_of_a_worker_that_left_are_offered_again_at_once() -> None:
    async with a_world() as world, watched(world):
        task = await world.lease_task()
        await world.let_pass(0.1)

        await world.store.workers.leave(W)
        await world.let_pass(0.1)

        async def is_offered() -> bool:
            return [head.task_id for head in await world.store.board.heads(0, 9)] == [task]

        await until(is_offered)


async def test_after_a_gap_workers_get_a_heartbeats_time_before_they_are_called_lost() -> None:
    async with a_world() as world, watched(world):
        await world.lease_task()
        world.clock.advance(TTL + 10)  # nobody was heard of: the whole machine slept
        await world.asleep()

        await world.let_pass(HEARTBEAT - 1)
        assert await world.store.workers.next_expiry() is not None
        await world.let_pass(2)

        assert isinstance((await world.next_event()).event, TaskFailed)


async def test_a_watcher_that_starts_calls_nobody_lost_at_first() -> None:
    async with a_world() as world:
        await world.lease_task()
        world.clock.advance(TTL + 10)
        async with watched(world):
            await world.let_pass(HEARTBEAT - 1)
            assert await world.store.workers.next_expiry() is not None

            await world.let_pass(2)

            assert isinstance((await world.next_event()).event, TaskFailed)


async def test_what_a_partition_decided_about_places_is_carried_to_the_workers() -> None:
    async with a_world() as world, watched(world), world.store.liveness.keep("gateway"):
        workers = world.store.workers
        task_id = await world.offer_task()
        (task,) = await world.store.board.heads(0, 1)
        incarnation = (await workers.register(W, {"supported_tasks": ["t"]}, TTL)).incarnation
        await workers.announce_credit(W, "poll", "gateway", world.clock.now() + 30, TTL)
        assert await match_one(workers, W, task) is MatchAnswer.MATCHED
        assert await world.store.board.lease(task_id, task.job_id, 1, W, incarnation)

        result = TaskSucceeded(
            at=world.clock.now(), task_id=task_id, worker_id=W, fresh_id=TaskId(new_id())
        )
        await world.store.board.end_lease(task.job_id, W, result)

        async def is_free() -> bool:
            worker = await workers.get(W)
            return worker is not None and worker.places.held == 0

        await until(is_free)


async def test_consumers_that_are_dead_and_empty_are_removed_and_no_others() -> None:
    entry = CatalogueEntry(
        name="b", group="default", start_state="s", api_endpoint=None, api_version=None, dot=""
    )
    async with a_world() as world:
        await world.store.catalogue.publish([entry])
        await world.new_delivery()  # is pending for "executor", which is dead
        await world.store.inbox.read("default", "empty", 1)
        async with world.store.liveness.keep("living"):
            await world.store.inbox.read("default", "living", 1)
            async with watched(world):

                async def names() -> bool:
                    left = await world.store.inbox.consumers("default")
                    return {consumer.name for consumer in left} == {"executor", "living"}

                await until(names)


async def test_it_goes_on_when_the_store_answers_again() -> None:
    async with a_world() as world:
        fire, failures = world.store.timers.fire, 2

        async def failing(partition: int, lease: Lease, limit: int = 512) -> int:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StoreUnavailable("gone") if failures else LostLease
            return await fire(partition, lease, limit)

        world.store.timers.fire = failing
        async with watched(world):
            job_id = await world.set_timer(1)

            async def has_fired() -> bool:
                world.clock.advance(0.5)
                return await world.events() == 1

            await until(has_fired)

        assert (await world.next_event()).job_id == job_id
        assert failures < 0
