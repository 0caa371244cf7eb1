"""Sleep, signals, deadlines and retry policies, as a running executor keeps them."""

import asyncio
from typing import Any

import pytest
from services.executor.tests.faults import with_faults
from services.executor.tests.world import World, a_blueprint, dispatch, go_to

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import ResultAnswer
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.job import ChildWait, Job, JobId, JobStatus
from avtomatika_core.retry_policy import RetryPolicy
from tests.support import until

Handlers = dict[str, Any]


def sleep_then_end(actions: ActionFactory) -> None:
    actions.sleep(60, next_state="end")


def wait_for(name: str, transitions: dict[str, str], timeout: float | None = None) -> Any:
    def handler(context: JobContext) -> None:
        context.actions.wait_for_signal(name, transitions, timeout)

    return handler


async def kept_signals(world: World, job_id: JobId, count: int) -> Job:
    async def are_kept() -> bool:
        return len((await world.job(job_id)).signals.kept) == count

    await until(are_kept, message="the signals are not kept")
    return await world.job(job_id)


# --- sleep


async def test_a_job_sleeps_and_wakes(world: World) -> None:
    blueprint = a_blueprint({"a": sleep_then_end})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.SLEEPING)
        await world.pass_time(59.0)
        still = (await world.job(job_id)).status
        await world.pass_time(1.0)
        job = await world.end_of(job_id)

    assert (still, job.status) == (JobStatus.SLEEPING, JobStatus.FINISHED)
    assert await world.next_due() is None
    facts = [(f.fact.kind, f.fact.followed_by) for f in await world.facts(job_id)]
    assert facts[1] == ("step", "sleep")


async def test_a_sleep_survives_the_executor_that_began_it(world: World) -> None:
    blueprint = a_blueprint({"a": sleep_then_end})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.SLEEPING)
    await world.pass_time(60.0)

    async with running(world.executor(blueprint)):
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FINISHED


async def test_a_sleep_until_a_moment_that_has_passed_goes_on_at_once(world: World) -> None:
    def start(actions: ActionFactory) -> None:
        actions.sleep(until=1.0, next_state="end")

    blueprint = a_blueprint({"a": start})
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FINISHED


async def test_a_sleeping_job_is_cancelled(world: World) -> None:
    """R8, R40."""
    blueprint = a_blueprint({"a": sleep_then_end})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.SLEEPING)
        await world.cancel(job_id)
        job = await world.end_of(job_id)

    assert job.status is JobStatus.CANCELLED
    assert await world.next_due() is None


# --- signals


async def test_a_signal_moves_the_job_on_with_its_data(world: World) -> None:
    blueprint = a_blueprint({"a": wait_for("paid", {"received": "end"})})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_SIGNAL)
        await world.send(job_id, amount=3)
        job = await world.end_of(job_id)

    assert (job.status, job.data.state_history) == (JobStatus.FINISHED, {"amount": 3})
    [fact] = [f.fact for f in await world.facts(job_id) if f.fact.kind == "signal_received"]
    assert fact.details == {"signal": {"name": "paid", "data": {"amount": 3}}}


async def test_signals_that_come_first_are_taken_oldest_first(world: World) -> None:
    seen: list[int] = []

    def again(state_history: dict[str, Any], actions: ActionFactory) -> None:
        seen.append(state_history["n"])
        if len(seen) < 3:
            actions.wait_for_signal("tick", {"received": "again"})
        else:
            actions.transition_to("end")

    blueprint = a_blueprint(
        {
            "a": dispatch({"success": "listen"}),
            "listen": wait_for("tick", {"received": "again"}),
            "again": again,
        }
    )
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        task = await world.take()
        for n in range(3):
            await world.send(job_id, "tick", n=n)
        waiting = await kept_signals(world, job_id, 3)
        await world.succeed(task)
        job = await world.end_of(job_id)

    assert waiting.status is JobStatus.WAITING_FOR_WORKER
    assert seen == [0, 1, 2]
    assert job.signals.taken == 3


@pytest.mark.parametrize("states", [["listen"], ["before", "listen"]])
async def test_a_kept_signal_and_the_handler_that_takes_it_both_leave_their_data(
    world: World, states: list[str]
) -> None:
    """As the first handler after an event, and as a later one."""

    async def listen(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["asked"] = True
        actions.wait_for_signal("paid", {"received": "end"})

    blueprint = a_blueprint(
        {"a": dispatch({"success": states[0]}), "before": go_to("listen"), "listen": listen}
    )
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        task = await world.take()
        await world.send(job_id, amount=3)
        await kept_signals(world, job_id, 1)
        await world.succeed(task)
        job = await world.end_of(job_id)

    assert job.data.state_history == {"asked": True, "amount": 3}


async def test_a_signal_beside_a_running_handler_does_not_run_it_again(world: World) -> None:
    runs: list[str] = []
    go_on = asyncio.Event()

    async def slow(job_id: str, actions: ActionFactory) -> None:
        runs.append(job_id)
        await go_on.wait()
        actions.wait_for_signal("paid", {"received": "end"})

    blueprint = a_blueprint({"a": slow})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await until(lambda: runs)
        await world.send(job_id, amount=3)
        beside = await kept_signals(world, job_id, 1)
        go_on.set()
        job = await world.end_of(job_id)
        await world.until_all_is_answered()

    assert beside.status is JobStatus.RUNNING
    assert runs == [job_id]
    assert (job.status, job.data.state_history) == (JobStatus.FINISHED, {"amount": 3})


async def test_two_signals_at_once_run_the_next_handler_once(world: World) -> None:
    runs: list[dict[str, Any]] = []

    def next_one(state_history: dict[str, Any], actions: ActionFactory) -> None:
        runs.append(dict(state_history))
        actions.sleep(5, next_state="end")

    blueprint = a_blueprint({"a": wait_for("paid", {"received": "b"}), "b": next_one})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_SIGNAL)
        await asyncio.gather(*(world.send(job_id, n=n) for n in range(5)))
        await kept_signals(world, job_id, 4)
        await world.until_status(job_id, JobStatus.SLEEPING)

    assert runs == [{"n": 0}]


async def test_a_signal_that_does_not_come_in_time_leads_to_timeout(world: World) -> None:
    blueprint = a_blueprint(
        {
            "a": wait_for("paid", {"received": "end", "timeout": "remind"}, 30),
            "remind": go_to("end"),
        }
    )
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_SIGNAL)
        assert await world.fire_next() == pytest.approx(30)
        job = await world.end_of(job_id)

    assert (job.status, job.head.transition_count) == (JobStatus.FINISHED, 2)


async def test_a_signal_that_does_not_come_in_time_else_fails_the_job(world: World) -> None:
    """R17."""
    blueprint = a_blueprint({"a": wait_for("paid", {"received": "end"}, 30)})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_SIGNAL)
        await world.fire_next()
        job = await world.end_of(job_id)

    assert (job.status, job.head.error_message) == (
        JobStatus.FAILED,
        "No signal 'paid' came within 30 seconds.",
    )


async def test_a_cancelled_wait_for_a_signal_goes_where_cancelled_leads(world: World) -> None:
    """R8, R40."""
    transitions = {"received": "end", "cancelled": "tidy"}
    blueprint = a_blueprint({"a": wait_for("paid", transitions, 30), "tidy": go_to("end")})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_SIGNAL)
        await world.cancel(job_id)
        job = await world.end_of(job_id)

    assert (job.status, job.head.transition_count) == (JobStatus.FINISHED, 2)
    assert await world.next_due() is None


async def test_a_signal_is_not_lost_with_the_executor_that_took_it(world: World) -> None:
    """R1."""
    blueprint = a_blueprint({"a": wait_for("paid", {"received": "end"})})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_SIGNAL)
    await world.send(job_id, n=1)

    async with running(world.executor(blueprint)):
        job = await world.end_of(job_id)

    assert job.data.state_history == {"n": 1}


# --- the job's own time


async def test_a_job_whose_time_is_over_fails_and_closes_its_task(world: World) -> None:
    """R8, R17."""
    blueprint = a_blueprint({"a": dispatch({"success": "end", "cancelled": "end"})})
    async with running(world.executor(blueprint)):
        job_id = await world.create_with(blueprint, timeout_seconds=90.0, webhook_url="http://x")
        task = await world.take()
        await world.pass_time(90.0)
        job = await world.end_of(job_id)
        answer = await world.succeed(task)

    assert (job.status, job.head.error_message) == (
        JobStatus.FAILED,
        "Job timed out after 90 seconds.",
    )
    assert answer is ResultAnswer.JOB_TERMINATED
    assert await world.next_due() is None
    assert [notice.event for notice in await world.notifications()] == ["job_failed"]
    assert [f.fact.kind for f in await world.facts(job_id)][-1] == "job_completed"


async def test_a_handler_that_runs_at_the_deadline_is_stopped_and_writes_nothing(
    world: World,
) -> None:
    runs: list[JobStatus] = []
    stopped = asyncio.Event()

    async def endless(state_history: dict[str, Any]) -> None:
        state_history["x"] = 1
        runs.append(JobStatus.RUNNING)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    blueprint = a_blueprint({"a": endless})
    async with running(world.executor(blueprint)), asyncio.timeout(10):
        job_id = await world.create_with(blueprint, timeout_seconds=90.0)
        await until(lambda: runs)
        await world.until_status(job_id, JobStatus.RUNNING)
        await world.pass_time(90.0)
        job = await world.end_of(job_id)
        await stopped.wait()
        await world.until_all_is_answered()

    assert (job.status, job.data.state_history) == (JobStatus.FAILED, {})
    assert await world.job(job_id) == job
    assert len(runs) == 1


async def test_an_outcome_that_comes_at_the_deadline_is_dropped(world: World) -> None:
    """R16."""
    store, late = world.store, False

    async def commit(*args: Any, **kwargs: Any) -> Any:
        nonlocal late
        if not late:
            late = True
            await world.pass_time(90.0)
        return await store.jobs.commit(*args, **kwargs)

    blueprint = a_blueprint({"a": go_to("end")})
    backend = with_faults(store, "jobs", commit=commit)
    async with running(world.executor(blueprint, backend=backend)):
        job = await world.end_of(await world.create_with(blueprint, timeout_seconds=90.0))
        await world.until_all_is_answered()

    assert (job.status, job.head.transition_count) == (JobStatus.FAILED, 0)


async def test_sub_jobs_end_with_a_parent_whose_time_is_over(world: World) -> None:
    """R21."""

    def start(actions: ActionFactory) -> None:
        actions.run_blueprint("child", {}, {"success": "end"})

    parent = a_blueprint({"a": start}, name="parent")
    child = a_blueprint({"a": sleep_then_end}, name="child")
    async with running(world.executor(parent, child)):
        job_id = await world.create_with(parent, timeout_seconds=30.0)
        waiting = await world.until_status(job_id, JobStatus.WAITING_FOR_SUB_JOB)
        assert isinstance(waiting.head.wait, ChildWait)
        child_id = waiting.head.wait.child_id
        await world.until_status(child_id, JobStatus.SLEEPING)
        await world.pass_time(30.0)
        job, of_child = await world.end_of(job_id), await world.end_of(child_id)

    assert (job.status, of_child.status) == (JobStatus.FAILED, JobStatus.CANCELLED)
    assert await world.next_due() is None


async def test_a_job_that_ends_in_time_knows_no_deadline(world: World) -> None:
    """R8."""
    blueprint = a_blueprint({"a": go_to("end")})
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create_with(blueprint, timeout_seconds=90.0))

    assert job.status is JobStatus.FINISHED
    assert await world.next_due() is None


# --- policies and heartbeats


async def test_a_task_is_repeated_as_its_own_policy_says(world: World) -> None:
    retry = RetryPolicy(attempts=2, delay_seconds=10, factor=1)
    blueprint = a_blueprint({"a": dispatch({"success": "end"}, retry=retry)})
    async with running(world.executor(blueprint, max_retries=9)):
        job_id = await world.create(blueprint)
        await world.fail(await world.take())
        await world.until_status(job_id, JobStatus.AWAITING_RETRY)
        assert 8 <= await world.fire_next() <= 12
        await world.fail(await world.take())
        job = await world.end_of(job_id)

    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == "Task failed after 2 attempts: oh"


async def test_a_blueprint_s_policy_is_that_of_its_handlers(world: World) -> None:
    """R23."""
    runs: list[int] = []

    def breaks() -> None:
        runs.append(1)
        raise ValueError("no")

    blueprint = a_blueprint({"a": breaks})
    blueprint.retry = RetryPolicy(attempts=2, delay_seconds=10)
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.AWAITING_RETRY)
        assert 8 <= await world.fire_next() <= 12
        job = await world.end_of(job_id)

    assert job.status is JobStatus.QUARANTINED
    assert len(runs) == 2


async def test_a_worker_that_sends_no_progress_loses_its_attempt(world: World) -> None:
    """R16."""
    task_options = {"heartbeat_timeout_seconds": 10, "result_timeout_seconds": 100}
    blueprint = a_blueprint({"a": dispatch({"success": "end"}, **task_options)})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        silent = await world.take()
        await world.pass_time(8.0)
        await world.report_progress(silent)
        await world.pass_time(8.0)
        told = (await world.job(job_id)).status
        await world.pass_time(2.0)
        job = await world.until_status(job_id, JobStatus.AWAITING_RETRY)
        await world.fire_next()
        await world.succeed(await world.take())
        ended = await world.end_of(job_id)

    assert told is JobStatus.WAITING_FOR_WORKER
    assert job.head.error_message == "Worker task timed out."
    assert ended.status is JobStatus.FINISHED
