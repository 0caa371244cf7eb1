"""Waiting tasks find workers that are free now; what cannot be placed waits and says why."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import (
    Matched,
    StoreOptions,
    StoreUnavailable,
    WaitingTask,
)
from avtomatika_common.clock import ManualClock
from avtomatika_common.ids import new_id, new_id_in_partition
from avtomatika_common.lifecycle import running
from avtomatika_core.commands import OfferTask, Step
from avtomatika_core.events import CancelRequested
from avtomatika_core.job import JobId, JobStatus, Origin, TaskId, TaskWait, WorkerId, new_job
from avtomatika_core.outcomes import TaskRequest
from avtomatika_dispatcher import DispatcherService, Settings
from avtomatika_dispatcher.service import (
    EXPLAIN_SECONDS,
    PROMISE_OVER_SECONDS,
    REREAD_SECONDS,
)
from tests.support import Promised, promised, until

GATEWAY = "gateway"
TTL = 120.0
W = WorkerId("w")


class World:
    """A memory store with a gateway, and a dispatcher when the test starts one."""

    def __init__(self, partitions: int) -> None:
        self.clock = ManualClock()
        self.store = MemoryStorage(self.clock)
        self.partitions = partitions
        self.matches: list[Promised] = []
        self._position = "0"
        self._jobs: dict[TaskId, JobId] = {}
        self._polls: list[tuple[WorkerId, str]] = []

    def dispatcher(self, name: str = "d") -> DispatcherService:
        return DispatcherService(Settings(instance_id=name), self.store)

    async def offer(self, task_type: str = "t", partition: int = 0, **wishes: Any) -> TaskId:
        """A job comes to wait for one task."""
        store = self.store
        job_id = JobId(new_id_in_partition(partition, self.partitions))
        task_id = TaskId(new_id())
        now = self.clock.now()
        origin = Origin(blueprint="b", group="default", start_state="s", created_at=now)
        await store.jobs.create(new_job(job_id, origin))
        (delivery,) = await store.inbox.read("default", "executor", 1)
        stored = await store.jobs.load(job_id)
        assert stored is not None
        request = TaskRequest(type=task_type, **wishes)
        wait = TaskWait(
            task_id=task_id, request=request, attempt=1, dispatched_at=now, result_timeout_seconds=9
        )
        head = replace(stored.job.head, status=JobStatus.WAITING_FOR_WORKER, wait=wait)
        offer = OfferTask(
            task_id=task_id,
            type=task_type,
            params={},
            resource_requirements=request.resource_requirements,
            max_cost=request.max_cost,
            strategy=request.strategy,
            priority=request.priority,
            dispatch_deadline=None,
            result_timeout_seconds=9,
            tracing_context={},
            params_metadata=None,
            attempt=1,
        )
        await store.jobs.commit(stored, Step(replace(stored.job, head=head), (offer,)), delivery)
        self._jobs[task_id] = job_id
        return task_id

    async def register(self, name: str, tasks: Sequence[str] = ("t",), **said: Any) -> WorkerId:
        worker_id = WorkerId(name)
        document = {"supported_tasks": list(tasks), **said}
        await self.store.workers.register(worker_id, document, TTL)
        return worker_id

    async def poll(self, name: str, gateway: str = GATEWAY, room: int = 1) -> None:
        poll_id, until_then = new_id(), self.clock.now() + 100
        self._polls.append((WorkerId(name), poll_id))
        await self.store.workers.announce_credit(
            WorkerId(name), poll_id, gateway, until_then, TTL, room=room
        )

    async def end_polls(self, name: str) -> None:
        for worker_id, poll_id in self._polls:
            if worker_id == name:
                await self.store.workers.withdraw_credit(worker_id, poll_id)

    async def cancel(self, task_id: TaskId) -> None:
        event = CancelRequested(at=self.clock.now())
        await self.store.jobs.request_cancel(self._jobs[task_id], event)

    async def next_match(self) -> Promised:
        """What the gateway is told next."""
        while not self.matches:
            self._position, mail = await self.store.mailbox.read(GATEWAY, self._position)
            self.matches = promised(mail)
        return self.matches.pop(0)

    async def has_mail(self) -> bool:
        """Within the store's block time."""
        _, mail = await self.store.mailbox.read(GATEWAY, self._position)
        return bool(mail or self.matches)

    async def hand_out(self, match: Promised) -> None:
        leased = await self.store.board.lease(
            match.task_id, match.job_id, match.offer_number, match.worker_id, match.incarnation
        )
        assert leased is not None

    async def reason(self, task_id: TaskId) -> str | None:
        view = await self.store.jobs.view(self._jobs[task_id])
        assert view is not None
        assert view.task is not None
        return view.task.waiting_reason


@asynccontextmanager
async def a_world(partitions: int = 1) -> AsyncGenerator[World, None]:
    world = World(partitions)
    await world.store.open(StoreOptions(partitions=partitions, block_seconds=0.05))
    async with world.store.liveness.keep(GATEWAY):
        yield world
    await world.store.close()


async def test_a_task_waits_for_a_worker_and_goes_to_the_first_that_polls() -> None:
    """R7."""
    async with a_world() as world, running(world.dispatcher()):
        task = await world.offer()
        await world.register("w")
        await world.poll("w")

        match = await world.next_match()

    assert (match.task_id, match.worker_id) == (task, "w")


async def test_what_waited_before_the_dispatcher_started_is_matched_too() -> None:
    async with a_world() as world:
        task = await world.offer()
        await world.register("w")
        await world.poll("w")

        async with running(world.dispatcher()):
            assert (await world.next_match()).task_id == task


async def test_a_hundred_equal_tasks_are_handed_out_in_order() -> None:
    """R51."""
    async with a_world() as world:
        offered = [await world.offer() for _ in range(100)]
        await world.register("w")
        done = list[TaskId]()
        async with running(world.dispatcher()):
            for _ in offered:
                await world.poll("w")
                match = await world.next_match()
                await world.hand_out(match)
                done.append(match.task_id)

    assert done == offered


async def test_many_polls_empty_a_long_board_although_nothing_has_left_it_yet() -> None:
    async with a_world() as world:
        offered = {await world.offer() for _ in range(300)}
        for number in range(300):
            await world.register(f"w{number}")
            await world.poll(f"w{number}")

        async with running(world.dispatcher()):
            matched = {(await world.next_match()).task_id for _ in range(300)}

    assert matched == offered


async def test_higher_priority_goes_first_over_all_shapes_and_partitions() -> None:
    async with a_world(partitions=2) as world:
        low = await world.offer("t", partition=0, priority=1)
        high = await world.offer("u", partition=1, priority=5)
        middle = await world.offer("t", partition=1, priority=3)
        await world.register("w", ["t", "u"])
        async with running(world.dispatcher()):
            await until(lambda: world.clock.sleepers >= 3)
            for _ in range(3):
                await world.poll("w")
            order = [(await world.next_match()).task_id for _ in range(3)]

    assert order == [high, middle, low]


async def test_a_worker_of_low_reputation_gets_a_task_when_the_better_one_is_gone() -> None:
    async with a_world() as world, running(world.dispatcher()):
        await world.register("good", reputation=0.3)
        await world.register("poor", reputation=0.2)
        await world.poll("poor")
        task = await world.offer()
        await until(lambda: _is_busy(world, task), message="nobody said why the task waits")
        assert not await world.has_mail()

        await world.store.workers.leave(WorkerId("good"))
        match = await world.next_match()

    assert (match.task_id, match.worker_id) == (task, "poor")


async def _is_busy(world: World, task: TaskId) -> bool:
    world.clock.advance(EXPLAIN_SECONDS)
    return "are busy" in (await world.reason(task) or "")


async def test_a_shape_without_a_worker_blocks_no_other() -> None:
    async with a_world() as world, running(world.dispatcher()):
        for _ in range(100):
            await world.offer("t", resource_requirements={"gpu": {"model": "H100"}}, priority=9)
        plain = await world.offer("t")
        await world.register("cpu")
        await world.poll("cpu")

        match = await world.next_match()

    assert match.task_id == plain


async def test_a_worker_never_holds_more_than_it_has_places() -> None:
    """R47."""
    limits = {"max_concurrent_tasks": 2}
    async with a_world() as world, running(world.dispatcher()):
        for name in ("a", "b"):
            await world.register(name, resources=limits)
            for _ in range(5):
                await world.poll(name)
        for _ in range(10):
            await world.offer()

        matched = [(await world.next_match()) for _ in range(4)]
        held = Counter(match.worker_id for match in matched)

        assert held == {"a": 2, "b": 2}
        assert not await world.has_mail()
        await world.hand_out(matched[0])
        await world.store.workers.end_hold(matched[0].worker_id, matched[0].task_id)
        assert (await world.next_match()).worker_id == matched[0].worker_id


async def test_a_worker_that_registers_without_a_type_gets_none_of_it_any_more() -> None:
    """R48."""
    async with a_world() as world, running(world.dispatcher()):
        await world.register("w", ["t", "u"])
        await world.register("w", ["u"])
        await world.poll("w")
        await world.offer("t")
        wanted = await world.offer("u")

        match = await world.next_match()

    assert match.task_id == wanted


@pytest.mark.timeout(120)
async def test_round_robin_is_fair_over_dispatchers_that_follow_each_other() -> None:
    """R52."""
    turns = Counter[WorkerId]()
    async with a_world() as world:
        for name in ("a", "b", "c"):
            await world.register(name)
            await world.poll(name)
        for instance in range(3):
            async with running(world.dispatcher(f"d{instance}")):
                for _ in range(100):
                    world.clock.advance(0.01)
                    await world.offer(strategy="round_robin")
                    match = await world.next_match()
                    await world.hand_out(match)
                    turns[match.worker_id] += 1
                    await world.store.workers.end_hold(match.worker_id, match.task_id)
                    await world.poll(match.worker_id)

    assert all(95 <= turns[WorkerId(name)] <= 105 for name in "abc")


async def test_a_waiting_task_says_why_and_says_so_anew_when_that_changes() -> None:
    async with a_world() as world, running(world.dispatcher()):
        task = await world.offer("t", resource_requirements={"cpu_cores": 4}, max_cost=1.0)

        async def says(text: str) -> None:
            async def does() -> bool:
                world.clock.advance(EXPLAIN_SECONDS)
                return await world.reason(task) == text

            await until(does, message=f"{text}, not {await world.reason(task)}")

        await says("No suitable workers for task type 't'")
        await world.register("small")
        await says("No worker satisfies the resource requirements for task 't'")
        await world.register("dear", resources={"cpu_cores": 4}, cost=2)
        await says("No worker meets the maximum cost (1) for task 't'")
        await world.register("fit", resources={"cpu_cores": 4}, cost=1)
        await says("All suitable workers for task type 't' are busy")
        await world.store.workers.leave(WorkerId("fit"))
        await says("No worker meets the maximum cost (1) for task 't'")


async def test_a_match_nobody_acted_on_is_made_again() -> None:
    async with a_world() as world, running(world.dispatcher()):
        await world.register("w")
        await world.poll("w")
        task = await world.offer()
        first = await world.next_match()  # its gateway dies with it
        await world.register("other")
        await world.poll("other")
        assert not await world.has_mail()

        world.clock.advance(4)
        again = await world.next_match()

    assert (first.task_id, again.task_id) == (task, task)
    assert again.worker_id == "other"


async def test_a_task_that_could_not_be_delivered_is_matched_again_at_once() -> None:
    async with a_world() as world, running(world.dispatcher()):
        await world.register("w")
        await world.poll("w")
        task = await world.offer()
        match = await world.next_match()
        await world.hand_out(match)

        await world.store.board.undeliver(task, match.job_id, match.worker_id)
        await world.poll("w")
        again = await world.next_match()

    assert (again.task_id, again.offer_number) == (task, 2)


async def test_a_refused_worker_is_passed_over_for_the_next_one() -> None:
    async with a_world() as world:
        await world.register("hot", hot_skills=["t"])
        await world.register("cold")
        async with AsyncExitStack() as dying:
            await dying.enter_async_context(world.store.liveness.keep("dying"))
            await world.poll("hot", gateway="dying")
            await world.poll("cold")
            async with running(world.dispatcher()):
                await until(lambda: world.clock.sleepers >= 2)
                await dying.aclose()  # its polls are worth nothing now, and nobody says so
                await world.offer()

                match = await world.next_match()

    assert match.worker_id == "cold"


async def test_another_dispatcher_takes_over_when_the_first_is_gone() -> None:
    async with a_world() as world:
        assert await world.store.leases.acquire("p0/dispatcher", "killed", 5)
        await world.register("w")
        await world.poll("w")
        task = await world.offer()
        async with running(world.dispatcher()):
            await until(lambda: world.clock.sleepers >= 1)
            assert not await world.has_mail()

            world.clock.advance(5)

            assert (await world.next_match()).task_id == task


async def test_only_one_of_two_dispatchers_matches_a_partition() -> None:
    async with a_world() as world, running(world.dispatcher("a"), world.dispatcher("b")):
        await until(lambda: world.clock.sleepers >= 3)

        assert await world.store.leases.acquire("p0/dispatcher", "c", 5) is None


async def test_it_goes_on_when_the_store_answers_again() -> None:
    async with a_world() as world:
        await world.register("w")
        await world.poll("w")
        offered = await world.offer()
        match, failures = world.store.workers.match, 2

        async def failing(matches: Sequence[tuple[WorkerId, WaitingTask]]) -> Matched:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise StoreUnavailable("gone")
            return await match(matches)

        world.store.workers.match = failing
        async with running(world.dispatcher()):
            for left in (1, 0):
                await until(lambda left=left: failures == left and world.clock.sleepers >= 2)
                world.clock.advance(1)

            assert (await world.next_match()).task_id == offered


async def test_promised_tasks_that_hide_others_do_not_keep_it_busy_for_ever() -> None:
    async with a_world() as world:
        for _ in range(700):
            await world.offer()
        for number in range(600):
            await world.register(f"w{number}")
            await world.poll(f"w{number}")
        async with running(world.dispatcher()), asyncio.timeout(20):
            promised_to: set[WorkerId] = set()
            while len(promised_to) < 600:
                match = await world.next_match()
                promised_to.add(match.worker_id)
                await world.hand_out(match)
                world.clock.advance(REREAD_SECONDS / 100)


async def test_a_task_nobody_wants_any_more_does_not_keep_others_from_a_worker() -> None:
    async with a_world() as world:
        cancelled, wanted = await world.offer(), await world.offer()
        await world.cancel(cancelled)
        await world.register("w")
        await world.poll("w")
        async with running(world.dispatcher()), asyncio.timeout(5):
            refused = await world.next_match()
            workers = world.store.workers
            await workers.end_hold(W, refused.task_id, offer_number=refused.offer_number)
            await world.poll("w")

            match = await world.next_match()

    assert (refused.task_id, match.task_id) == (cancelled, wanted)


async def test_a_worker_that_polls_again_just_after_it_was_refused_gets_the_task() -> None:
    async with a_world() as world:
        await world.register("w")
        await world.poll("w")
        workers = world.store.workers
        match, matches_asked = workers.match, 0

        async def too_late(matches: Sequence[tuple[WorkerId, WaitingTask]]) -> Matched:
            nonlocal matches_asked
            matches_asked += 1
            if matches_asked > 1:
                return await match(matches)
            await world.end_polls("w")
            answer = await match(matches)
            await world.poll("w")
            return answer

        workers.match = too_late
        async with running(world.dispatcher()), asyncio.timeout(5):
            task = await world.offer()

            assert (await world.next_match()).task_id == task


async def test_one_poll_may_bring_more_than_a_usual_list() -> None:
    room = 200
    async with a_world() as world:
        for _ in range(room):
            await world.offer()
        await world.register("w")
        await world.poll("w", room=room)
        async with running(world.dispatcher()), asyncio.timeout(5):
            await world.next_match()

            assert len(world.matches) == room - 1


async def test_the_place_of_a_promise_nobody_keeps_is_free_again_when_it_is_over() -> None:
    """Its gateway died, and the worker polls through another."""
    async with a_world() as world:
        await world.register("w", resources={"max_concurrent_tasks": 1})
        await world.poll("w")
        async with running(world.dispatcher()), asyncio.timeout(5):
            task = await world.offer()
            lost = await world.next_match()
            await world.poll("w")
            for _ in range(round(PROMISE_OVER_SECONDS) + 1):  # less than until all is read again
                world.clock.advance(1)
                await asyncio.sleep(0)

            again = await world.next_match()

    assert (lost.task_id, again.task_id) == (task, task)
