"""Who holds a job's entry writes; who lost it does not; what nobody can handle is set aside."""

import asyncio
from typing import Any

import pytest
from services.executor.tests.faults import with_faults
from services.executor.tests.world import (
    World,
    a_blueprint,
    dispatch,
    go_to,
    until_draining,
    until_idle,
)

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Delivery, StoreUnavailable
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.clock import SystemClock
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobId, JobStatus
from tests.blueprints import counting_chain
from tests.support import until


class Gate:
    """A handler that waits until it is let go, and counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.may_end = asyncio.Event()

    async def wait(self) -> None:
        self.runs += 1
        await self.may_end.wait()

    def blueprint(self) -> StateMachineBlueprint:
        async def handler(state_history: dict[str, Any], actions: ActionFactory) -> None:
            await self.wait()
            state_history["run"] = self.runs
            actions.transition_to("end")

        return a_blueprint({"a": handler})


# --- commits


async def test_a_stale_commit_is_decided_again_and_the_handler_not_run_again(world: World) -> None:
    gate = Gate()
    blueprint = gate.blueprint()
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await until(lambda: gate.runs)
        world.record(job_id).renew_fence("somebody-else")
        gate.may_end.set()
        job = await world.end_of(job_id)

    assert gate.runs == 1
    assert (job.status, job.data.state_history) == (JobStatus.FINISHED, {"run": 1})


@pytest.mark.parametrize("happened", [True, False])
async def test_a_commit_without_an_answer_is_repeated_and_applied_once(
    world: World, *, happened: bool
) -> None:
    """R3: every commit fails once, some after they took place."""
    failed: set[str] = set()
    store = world.store

    async def commit(stored: Any, *args: Any, **kwargs: Any) -> Any:
        if stored.next_nonce in failed:
            return await store.jobs.commit(stored, *args, **kwargs)
        failed.add(stored.next_nonce)
        if happened:
            await store.jobs.commit(stored, *args, **kwargs)
        raise StoreUnavailable("cut")

    blueprint = counting_chain(5)
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        job = await world.end_of(await world.create(blueprint))

    assert len(failed) == 6  # the start with the first transition, four more, the end
    assert job.data.state_history["steps"] == [0, 1, 2, 3, 4]
    assert job.head.transition_count == 5
    assert [f.fact.kind for f in await world.facts(job.id)] == [
        "job_created",
        *["step"] * 6,
        "job_completed",
    ]
    assert world.unread() == []


@pytest.mark.parametrize("happened", [True, False])
async def test_a_fan_out_whose_commit_fails_once_is_there_once(
    world: World, *, happened: bool
) -> None:
    """R12."""
    store = world.store
    boards: list[int] = []

    async def commit(stored: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        if not boards and step.job.status is JobStatus.WAITING_FOR_PARALLEL_TASKS:
            if happened:
                await store.jobs.commit(stored, step, *args, **kwargs)
            boards.append(len(await world.board()))
            raise StoreUnavailable("cut")
        return await store.jobs.commit(stored, step, *args, **kwargs)

    def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "t"}] * 8, "join")

    seen: list[int] = []

    def join(context: JobContext) -> None:
        seen.append(len(context.aggregation_results or {}))
        context.actions.transition_to("end")

    blueprint = a_blueprint({"spread": spread, "join": join})
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        job_id = await world.create(blueprint)
        for _ in range(8):
            await world.succeed(await world.take())
        await world.end_of(job_id)

    assert boards == [8 if happened else 0]
    assert seen == [8]


async def test_a_store_that_fails_before_the_handler_runs_costs_no_attempt(world: World) -> None:
    """The results of a fan-out cannot be read at first: no error of the handler's."""
    store, failures = world.store, 3

    async def branch_results(job_id: JobId) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailable("cut")
        return await store.jobs.branch_results(job_id)

    def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([], "join")

    blueprint = a_blueprint({"spread": spread, "join": go_to("end")})
    backend = with_faults(store, "jobs", branch_results=branch_results)
    async with running(world.executor(blueprint, backend=backend)):
        job = await world.end_of(await world.create(blueprint))

    assert failures == 0
    assert job.status is JobStatus.FINISHED
    assert "step_failed" not in [f.fact.kind for f in await world.facts(job.id)]


async def test_an_entry_whose_read_was_cut_is_found(world: World) -> None:
    """The store has handed it out, the answer is lost: nobody else would ever take it."""
    store, cuts = world.store, 0

    async def read(group: str, consumer: str, room: int) -> list[Delivery]:
        nonlocal cuts
        found = await store.inbox.read(group, consumer, room)
        if found and not cuts:
            cuts += 1
            raise StoreUnavailable("cut")
        return found

    blueprint = counting_chain(2)
    backend = with_faults(store, "inbox", read=read)
    async with running(world.executor(blueprint, backend=backend)):
        job = await world.end_of(await world.create(blueprint))

    assert cuts == 1
    assert job.data.state_history["steps"] == [0, 1]


# --- claims


async def test_who_lost_its_claim_writes_nothing(world: World) -> None:
    """R4."""
    gate = Gate()
    blueprint = gate.blueprint()
    executor = world.executor(blueprint)
    async with running(executor):
        job_id = await world.create(blueprint)
        await until(lambda: gate.runs)
        world.seems_dead(executor)
        [taken] = await world.store.inbox.take_over("default", executor.instance, "other", 10)
        world.seems_alive(executor)
        before = world.record(job_id).fence
        gate.may_end.set()
        await until_idle(executor)

        assert (await world.job(job_id)).status is JobStatus.RUNNING
        assert world.record(job_id).fence == before
        assert await world.store.inbox.pending("default", "other") == [taken]


async def test_what_a_dead_executor_left_is_taken_over_once() -> None:
    """R4: the one that seemed dead comes back and is refused."""
    world = World(MemoryStorage(SystemClock()))
    gates = [Gate(), Gate()]
    first, second = (world.executor(gate.blueprint()) for gate in gates)
    gates[1].may_end.set()
    async with running(first):
        job_id = await world.create(gates[0].blueprint())
        await until(lambda: gates[0].runs)
        async with running(second):
            world.seems_dead(first)
            job = await world.end_of(job_id)
            world.seems_alive(first)
            gates[0].may_end.set()
            await until_idle(first)

    assert (gates[0].runs, gates[1].runs) == (1, 1)
    assert (job.status, job.head.transition_count) == (JobStatus.FINISHED, 1)
    assert await world.job(job_id) == job
    assert world.unread() == []


async def test_an_executor_that_lives_keeps_its_jobs() -> None:
    """R4: however long the handler takes."""
    world = World(MemoryStorage(SystemClock()))
    gates = [Gate(), Gate()]
    first, second = (world.executor(gate.blueprint()) for gate in gates)
    looks = 0
    store = world.store

    async def consumers(group: str) -> Any:
        nonlocal looks
        looks += 1
        return await store.inbox.consumers(group)

    second = world.executor(
        gates[1].blueprint(), backend=with_faults(store, "inbox", consumers=consumers)
    )
    async with running(first):
        job_id = await world.create(gates[0].blueprint())
        await until(lambda: gates[0].runs)
        async with running(second):
            await until(lambda: looks > 15)  # calm is over after five
            gates[0].may_end.set()
            await world.end_of(job_id)

    assert (gates[0].runs, gates[1].runs) == (1, 0)


# --- what cannot be handled


async def test_a_job_delivered_too_often_without_a_commit_is_quarantined(world: World) -> None:
    blueprint = counting_chain(2)
    job_id = await world.create(blueprint)
    world.record(job_id).tries = 6
    async with running(world.executor(blueprint)):
        job = await world.end_of(job_id)

    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == ("An event of the job was delivered 5 times without a commit.")
    assert job.data.state_history == {}
    assert world.unread() == []


async def test_a_job_that_no_executor_outlives_is_given_up() -> None:
    """Its handler is begun by one after the other and never comes to an end."""
    world = World(MemoryStorage(SystemClock()))
    begun: list[str] = []

    async def handler(job_id: str) -> None:
        begun.append(job_id)
        await asyncio.Event().wait()

    blueprint = a_blueprint({"a": handler})
    job_id = await world.create(blueprint)
    for number in range(1, 7):
        async with running(world.executor(blueprint, shutdown_timeout_seconds=0.0)):
            await until(lambda number=number: len(begun) == number)
    async with running(world.executor(blueprint)):
        job = await world.end_of(job_id)

    assert len(begun) == 6
    assert job.status is JobStatus.QUARANTINED
    assert world.unread() == []


async def test_five_deliveries_are_not_too_many(world: World) -> None:
    blueprint = counting_chain(2)
    job_id = await world.create(blueprint)
    world.record(job_id).tries = 5
    async with running(world.executor(blueprint)):
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FINISHED


# --- groups


async def test_a_job_is_handed_to_the_group_that_hosts_its_blueprint(world: World) -> None:
    moved = a_blueprint({"a": dispatch({"success": "end"})}, name="moved")
    other = a_blueprint({"a": go_to("end")}, name="other")
    there = world.executor(moved, group="blue")
    here = world.executor(other)
    async with running(there, here):
        job_id = await world.create(moved)  # for the group `default`
        await world.succeed(await world.take())
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FINISHED
    assert world.record(job_id).group == "blue"
    assert world.unread() == []


async def test_a_job_waits_for_the_executor_of_its_group_that_has_the_new_code(
    world: World,
) -> None:
    """A rolling upgrade: the old version may see jobs of the new one first."""
    new = a_blueprint({"a": go_to("end")}, name="new")
    old = a_blueprint({"a": go_to("end")}, name="old")
    async with running(world.executor(new)):
        pass  # the catalogue knows it now
    job_id = await world.create(new)
    async with running(world.executor(old)):
        for _ in range(8):
            assert await world.fire_next() == pytest.approx(2.0)
            await until(world.next_due)
    waited = await world.job(job_id)
    async with running(world.executor(new)):
        await world.fire_next()
        job = await world.end_of(job_id)

    assert waited.status is JobStatus.PENDING
    assert job.status is JobStatus.FINISHED


# --- stop


async def test_a_stop_lets_handlers_finish_and_hands_their_chains_over(world: World) -> None:
    """R70."""
    gate = Gate()

    async def first(state_history: dict[str, Any], actions: ActionFactory) -> None:
        await gate.wait()
        state_history["first"] = gate.runs
        actions.transition_to("second")

    ran: list[str] = []

    async def second(job_id: str, actions: ActionFactory) -> None:
        ran.append(job_id)
        actions.transition_to("end")

    blueprint = a_blueprint({"first": first, "second": second})
    executor = world.executor(blueprint)
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        service = group.create_task(executor.run(ready, stop))
        await ready.wait()
        job_id = await world.create(blueprint)
        await until(lambda: gate.runs)
        stop.set()
        await until_draining(executor)
        late = await world.create(blueprint)
        assert not service.done()
        gate.may_end.set()

    stopped = await world.job(job_id)
    assert (stopped.status, stopped.state, ran) == (JobStatus.RUNNING, "second", [])
    assert (await world.job(late)).status is JobStatus.PENDING
    assert world.tables.groups["default"].consumers[executor.instance] == {}

    async with running(world.executor(blueprint)):
        jobs = [await world.end_of(job_id), await world.end_of(late)]

    assert ran == [job_id, late]
    assert [job.data.state_history for job in jobs] == [{"first": 1}, {"first": 2}]


async def test_a_handler_that_outlasts_the_stop_is_run_again_by_another() -> None:
    """R70."""
    world = World(MemoryStorage(SystemClock()))
    gates = [Gate(), Gate()]
    gates[1].may_end.set()
    async with running(world.executor(gates[0].blueprint(), shutdown_timeout_seconds=0.05)):
        job_id = await world.create(gates[0].blueprint())
        await until(lambda: gates[0].runs)
    async with running(world.executor(gates[1].blueprint())):
        job = await world.end_of(job_id)

    assert (gates[0].runs, gates[1].runs) == (1, 1)
    assert job.data.state_history == {"run": 1}
