"""What cannot be handled comes five times, then is set aside with its reason, and can be replayed."""

# pyright: reportPrivateUsage=false

from collections.abc import Callable
from typing import Any

import pytest
from services.executor.tests.faults import with_faults
from services.executor.tests.world import World, a_blueprint, dispatch, go_to, noop

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import DeadEvent, Delivery
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobId, JobStatus
from tests.blueprints import counting_chain
from tests.support import until

GARBAGE = b"\xc1 no msgpack"
PAUSE = 5.0


async def deliveries(world: World, count: int) -> None:
    """The entry comes this many times more, each after its pause."""
    for _ in range(count):
        assert await world.fire_next() == pytest.approx(PAUSE)


async def the_dead_event(world: World) -> DeadEvent:
    [dead] = await world.store.dead_events.newest(10)
    return dead


async def test_an_event_nobody_can_read_comes_five_times_and_is_set_aside(world: World) -> None:
    """R3."""
    blueprint = counting_chain(2)
    job_id = await world.create(blueprint)
    [entry] = world.tables.entries.values()
    entry.event = GARBAGE
    async with running(world.executor(blueprint)):
        await deliveries(world, 3)
        await until(lambda: world.tables.deferred)
        before = await world.job(job_id)
        await deliveries(world, 1)
        job = await world.end_of(job_id)

    assert before.status is JobStatus.PENDING
    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == "An event of the job could not be read."
    dead = await the_dead_event(world)
    assert (dead.job_id, dead.reason, dead.event) == (job_id, job.head.error_message, None)
    assert world.unread() == []


async def test_a_replayed_event_goes_on_where_the_job_was(world: World) -> None:
    blueprint = counting_chain(2)
    job_id = await world.create(blueprint)
    [entry] = world.tables.entries.values()
    event, entry.event = entry.event, GARBAGE
    async with running(world.executor(blueprint, max_tries=1)):
        await world.end_of(job_id)
        entry.event = event  # what a newer version can read
        replayed = await world.store.dead_events.replay((await the_dead_event(world)).dead_id)
        job = await world.until_status(job_id, JobStatus.FINISHED)

    assert replayed
    assert job.data.state_history == {"steps": [0, 1]}
    assert await world.store.dead_events.newest(10) == []
    assert await world.store.jobs.quarantined() == []
    assert await world.store.jobs.count_by_status() == {JobStatus.FINISHED: 1}


async def test_a_task_s_result_nobody_can_read_is_replayed_to_the_job_that_waits_for_it(
    world: World,
) -> None:
    blueprint = a_blueprint({"a": dispatch({"success": "end"})})
    async with running(world.executor(blueprint, max_tries=2)):
        job_id = await world.create(blueprint)
        task = await world.take()
        await world.until_status(job_id, JobStatus.WAITING_FOR_WORKER)
        await world.until_all_is_answered()
        reads = world.store.inbox._take  # so that it is not read before it is broken
        world.store.inbox._take = lambda *_: []  # type: ignore[method-assign]
        await world.succeed(task, {"n": 1})
        [entry] = world.tables.entries.values()
        event, entry.event = entry.event, GARBAGE
        world.store.inbox._take = reads  # type: ignore[method-assign]
        await deliveries(world, 1)
        await world.until_status(job_id, JobStatus.QUARANTINED)
        entry.event = event
        await world.store.dead_events.replay((await the_dead_event(world)).dead_id)
        job = await world.until_status(job_id, JobStatus.FINISHED)

    assert job.data.state_history == {"n": 1}


async def test_a_job_that_cannot_be_read_comes_five_times_and_the_others_go_on(
    world: World,
) -> None:
    blueprint = counting_chain(2)
    broken = await world.create(blueprint)
    world.record(broken).head = GARBAGE
    async with running(world.executor(blueprint)):
        good = await world.end_of(await world.create(blueprint))
        await deliveries(world, 4)
        await until(lambda: world.record(broken).status is JobStatus.QUARANTINED)
    bad = await world.job(broken)

    assert good.status is JobStatus.FINISHED
    assert (bad.status, bad.state) == (JobStatus.QUARANTINED, "s0")
    assert (bad.head.error_message or "").startswith("The job's document could not be read: ")
    assert (await the_dead_event(world)).reason == bad.head.error_message
    assert world.unread() == []


async def test_a_job_that_a_newer_version_can_read_goes_on_there(world: World) -> None:
    blueprint = counting_chain(2)
    broken = await world.create(blueprint)
    head = world.record(broken).head
    world.record(broken).head = GARBAGE
    async with running(world.executor(blueprint)):
        await until(lambda: world.tables.deferred)
        world.record(broken).head = head
        await deliveries(world, 1)
        mended = await world.end_of(broken)

    assert mended.status is JobStatus.FINISHED
    assert world.unread() == []


async def test_a_replay_gives_back_the_document_that_could_not_be_read(world: World) -> None:
    blueprint = counting_chain(2)
    broken = await world.create(blueprint)
    record = world.record(broken)
    head, data, origin = record.head, record.data, record.origin
    record.head = record.data = record.origin = GARBAGE
    async with running(world.executor(blueprint, max_tries=1)):
        await until(lambda: record.status is JobStatus.QUARANTINED)
        shown = await world.store.jobs.view(broken)
    await world.store.dead_events.replay((await the_dead_event(world)).dead_id)

    assert shown is not None
    assert shown.job.origin.blueprint == ""
    assert record.head == record.data == record.origin == GARBAGE
    record.head, record.data, record.origin = head, data, origin
    async with running(world.executor(blueprint)):
        assert (await world.end_of(broken)).status is JobStatus.FINISHED


async def test_a_commit_between_two_deliveries_begins_the_count_anew(world: World) -> None:
    blueprint = a_blueprint({"a": go_to("b"), "b": go_to("end")})
    store, failures = world.store, 0

    async def commit(stored: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        if step.job.state == "end" and failures < 4:
            failures += 1
            raise ZeroDivisionError
        return await store.jobs.commit(stored, step, *args, **kwargs)

    job_id = await world.create(blueprint)
    world.record(job_id).tries = 3
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        await deliveries(world, 4)
        job = await world.end_of(job_id)

    assert failures == 4
    assert job.status is JobStatus.FINISHED


async def test_an_error_nobody_thought_of_costs_one_job_only(world: World) -> None:
    store = world.store
    broken = JobId("")

    async def commit(stored: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        if stored.job.id == broken and not step.job.is_terminal:
            raise ZeroDivisionError
        return await store.jobs.commit(stored, step, *args, **kwargs)

    blueprint = counting_chain(2)
    broken = await world.create(blueprint)
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        good = await world.end_of(await world.create(blueprint))
        await deliveries(world, 4)
        bad = await world.end_of(broken)

    assert (bad.status, good.status) == (JobStatus.QUARANTINED, JobStatus.FINISHED)
    dead = await the_dead_event(world)
    assert dead.reason == "The executor could not handle it; see its log."
    assert dead.event is not None
    assert dead.event["event"] == "job_created"


async def test_a_store_that_refuses_everything_for_a_job_does_not_end_the_executor(
    world: World,
) -> None:
    store, refusals = world.store, 0

    def refusing(method: Callable[..., Any]) -> Callable[..., Any]:
        async def refused(*args: Any, **kwargs: Any) -> Any:
            nonlocal refusals
            if refusals < 6:
                refusals += 1
                raise RuntimeError("MISCONF")
            return await method(*args, **kwargs)

        return refused

    blueprint = counting_chain(2)
    backend = with_faults(store, "jobs", commit=refusing(store.jobs.commit))
    backend = with_faults(backend, "inbox", defer=refusing(store.inbox.defer))
    async with running(world.executor(blueprint, backend=backend)):
        job = await world.end_of(await world.create(blueprint))  # the audit comes back to it

    assert refusals == 6
    assert job.status is JobStatus.FINISHED


async def test_a_branch_s_event_nobody_can_handle_ends_the_job_after_five_tries(
    world: World,
) -> None:
    store, settled = world.store, 0

    async def settle_branch(delivery: Delivery, *args: Any, **kwargs: Any) -> None:
        nonlocal settled
        settled += 1
        if settled > 1:
            raise ZeroDivisionError
        await store.jobs.settle_branch(delivery, *args, **kwargs)

    def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "t"}, {"type": "t"}], aggregate_into="join")

    def join(context: JobContext) -> None:
        context.actions.transition_to("end")

    blueprint = StateMachineBlueprint("b")
    blueprint.handler_for("a", is_start=True, targets=["join"])(spread)
    blueprint.aggregator_for("join", targets=["end"])(join)
    blueprint.handler_for("end", is_end=True)(noop)
    backend = with_faults(store, "jobs", settle_branch=settle_branch)
    async with running(world.executor(blueprint, backend=backend)):
        job_id = await world.create(blueprint)
        await world.succeed(await world.take())
        await until(lambda: settled == 1)
        await world.succeed(await world.take())
        await deliveries(world, 4)
        job = await world.until_status(job_id, JobStatus.QUARANTINED)

    assert settled == 6
    assert (await the_dead_event(world)).job_id == job.id


async def test_an_unreadable_event_of_a_job_that_is_gone_is_set_aside_at_once(
    world: World,
) -> None:
    blueprint = counting_chain(2)
    world.tables.append("default", JobId("gone"), GARBAGE)
    async with running(world.executor(blueprint)):
        await until(lambda: world.tables.dead)

    assert (await the_dead_event(world)).job_id == "gone"
    assert world.unread() == []
