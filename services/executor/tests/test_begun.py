"""A handler begins before the step that starts it is written."""

import asyncio
from typing import Any

import pytest
from services.executor.tests.faults import with_faults
from services.executor.tests.world import World, a_blueprint

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import LostClaim, StaleJob
from avtomatika_common.lifecycle import running
from avtomatika_core.events import CancelRequested
from avtomatika_core.job import JobStatus
from avtomatika_executor.begun import Begun
from tests.support import until


async def three() -> int:
    return 3


async def test_a_coroutine_that_does_not_wait_is_done_when_it_has_begun() -> None:
    assert Begun(three()).result == 3


async def test_one_that_waits_goes_on_where_it_waits() -> None:
    go_on = asyncio.Event()
    steps: list[str] = []

    async def work() -> str:
        steps.append("begun")
        await go_on.wait()
        await asyncio.sleep(0)
        steps.append("went on")
        return "done"

    begun = Begun(work())
    assert (steps, begun.result) == (["begun"], None)
    go_on.set()

    assert await begun == "done"
    assert steps == ["begun", "went on"]


async def test_what_is_raised_where_it_waits_reaches_it() -> None:
    async def work() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            return "too long"
        return "never"

    assert await Begun(work()) == "too long"


async def test_a_cancel_of_who_awaits_it_reaches_it() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    async def outer() -> None:
        await Begun(work())

    task = asyncio.ensure_future(outer())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended == ["cleaned up"]


async def test_what_it_raises_is_raised() -> None:
    async def work() -> None:
        raise KeyError("at once")

    with pytest.raises(KeyError, match="at once"):
        Begun(work())


# --- in the executor


async def test_a_handler_that_does_not_wait_is_written_with_the_step_that_starts_it(
    world: World,
) -> None:
    written: list[int] = []
    store = world.store

    async def commit(stored: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        written.append(len(step.in_order))
        return await store.jobs.commit(stored, step, *args, **kwargs)

    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {}, {"success": "after"})

    async def after(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["seen"] = dict(state_history)
        actions.transition_to("end")

    blueprint = a_blueprint({"start": start, "after": after})
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        job_id = await world.create(blueprint)
        await world.succeed(await world.take(), {"n": 1})
        job = await world.end_of(job_id)

    assert written == [2, 2, 1]
    assert job.data.state_history == {"n": 1, "seen": {"n": 1}}
    assert [fact.fact.kind for fact in await world.facts(job_id)] == [
        "job_created", "step", "task_finished", "step", "step", "job_completed",
    ]  # fmt: skip


async def test_a_handler_that_waits_is_seen_to_run(world: World) -> None:
    go_on = asyncio.Event()

    async def start(actions: ActionFactory) -> None:
        await go_on.wait()
        actions.transition_to("end")

    blueprint = a_blueprint({"start": start})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.RUNNING)
        go_on.set()

        assert (await world.end_of(job_id)).status is JobStatus.FINISHED


async def test_a_time_limit_of_the_handler_does_not_cut_the_commit(world: World) -> None:
    store = world.store
    may_commit, is_over = asyncio.Event(), asyncio.Event()

    async def commit(*args: Any, **kwargs: Any) -> Any:
        await may_commit.wait()
        return await store.jobs.commit(*args, **kwargs)

    async def start(actions: ActionFactory) -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            is_over.set()
        actions.transition_to("end")

    blueprint = a_blueprint({"start": start})
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)), asyncio.timeout(5):
        job_id = await world.create(blueprint)
        await is_over.wait()
        may_commit.set()

        job = await world.end_of(job_id)

    assert (job.status, job.head.transition_count) == (JobStatus.FINISHED, 1)


async def test_a_handler_whose_claim_is_lost_is_stopped(world: World) -> None:
    """R4."""
    stopped = asyncio.Event()

    async def commit(*_: Any, **__: Any) -> Any:
        raise LostClaim

    async def start() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    blueprint = a_blueprint({"start": start})
    backend = with_faults(world.store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)), asyncio.timeout(5):
        await world.create(blueprint)
        await stopped.wait()


async def test_the_outcome_of_a_handler_that_was_cancelled_meanwhile_is_dropped(
    world: World,
) -> None:
    """R40."""
    store = world.store
    refused: list[type[Exception]] = []

    async def commit(stored: Any, *args: Any, **kwargs: Any) -> Any:
        if not refused:
            event = CancelRequested(at=world.clock.now())
            await store.jobs.request_cancel(stored.job.id, event)
        try:
            return await store.jobs.commit(stored, *args, **kwargs)
        except StaleJob:
            refused.append(StaleJob)
            raise

    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {}, {"success": "end"})

    blueprint = a_blueprint({"start": start})
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        job = await world.end_of(await world.create(blueprint))
        await until(lambda: world.unread() == [])

    assert refused == [StaleJob]
    assert job.status is JobStatus.CANCELLED
    assert await world.board() == []
