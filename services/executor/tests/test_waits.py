"""What a job waits for comes, fails, or is cancelled; and the job goes on or ends, once."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from services.executor.tests.world import World, a_blueprint, dispatch, go_to

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import ResultAnswer
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.events import TaskSucceeded
from avtomatika_core.job import Client, Job, JobId, JobStatus, TaskId, WorkerId
from tests.support import until


@asynccontextmanager
async def fast_workers(world: World, count: int = 4) -> AsyncGenerator[None, None]:
    """Workers that do every task at once."""

    async def one_after_another() -> None:
        number = 0
        while True:
            number += 1
            if not await world.board():
                await asyncio.sleep(0.001)
                continue
            worker = WorkerId(f"w{number % count}")
            task = await world.take(worker)
            await world.succeed(task, {"params": dict(task.params)}, worker=worker)

    async with asyncio.TaskGroup() as group:
        working = group.create_task(one_after_another())
        yield
        working.cancel()


# --- one task


async def test_a_task_waits_for_its_worker_and_the_handler_runs_once(world: World) -> None:
    """R7, R8, R10."""
    runs: list[str] = []

    def handler(job_id: str, actions: ActionFactory) -> None:
        runs.append(job_id)
        actions.dispatch_task("t", {"n": 1}, {"success": "end"}, dispatch_timeout_seconds=60)

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_WORKER)
        await world.pass_time(5.0)
        task = await world.take()
        await world.succeed(task, {"answer": 42})
        job = await world.end_of(job_id)

    assert runs == [job_id]
    assert task.params == {"n": 1}
    assert job.status is JobStatus.FINISHED
    assert job.data.state_history == {"answer": 42}
    assert await world.next_due() is None
    assert await world.store.inbox.length() == 0


async def test_a_task_nobody_takes_in_time_fails_the_job(world: World) -> None:
    """R8."""
    blueprint = a_blueprint({"a": dispatch({"success": "end"}, dispatch_timeout_seconds=3)})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        assert await world.fire_next() == pytest.approx(3.0)
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FAILED
    assert (job.head.error_message or "").startswith("No worker took the task within 3 seconds")
    assert await world.board() == []
    assert await world.next_due() is None


async def test_a_task_without_timeouts_is_repeated_until_it_succeeds(world: World) -> None:
    """R9: three attempts, each a task of its own."""
    blueprint = a_blueprint({"a": dispatch({"success": "end"})})
    attempts: list[TaskId] = []
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        for _ in range(2):
            task = await world.take()
            attempts.append(task.task_id)
            await world.fail(task)
            await world.until_status(job_id, JobStatus.AWAITING_RETRY)
            await world.fire_next()
        task = await world.take()
        await world.succeed(task)
        job = await world.end_of(job_id)

    assert len({*attempts, task.task_id}) == 3
    assert (job.status, job.head.error_message) == (JobStatus.FINISHED, None)


async def test_two_tasks_may_each_fail_twice(world: World) -> None:
    """R22."""
    blueprint = a_blueprint({"a": dispatch({"success": "b"}), "b": dispatch({"success": "end"})})
    async with running(world.executor(blueprint, max_retries=3)):
        job_id = await world.create(blueprint)
        for _ in range(2):
            for _ in range(2):
                await world.fail(await world.take())
                await world.until_status(job_id, JobStatus.AWAITING_RETRY)
                await world.fire_next()
            await world.succeed(await world.take())
        job = await world.end_of(job_id)

    assert (job.status, job.head.error_message) == (JobStatus.FINISHED, None)


async def test_a_task_that_fails_for_good_takes_its_failure_transition(world: World) -> None:
    """R18."""
    seen: list[dict[str, Any] | None] = []

    def mend(context: JobContext) -> None:
        seen.append(context.last_error)
        context.actions.transition_to("end")

    blueprint = a_blueprint({"a": dispatch({"success": "end", "failure": "mend"}), "mend": mend})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        task = await world.take()
        await world.fail(task, "INVALID_INPUT_ERROR", "bad csv")
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FINISHED
    assert seen == [
        {
            "code": "INVALID_INPUT_ERROR",
            "message": "bad csv",
            "details": None,
            "task_id": task.task_id,
            "worker_id": "w",
        }
    ]


async def test_an_unhandled_status_leads_to_the_state_failed(world: World) -> None:
    """R18."""
    blueprint = a_blueprint({"a": dispatch({"success": "end"})}, ends=("end", "failed"))
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.succeed(await world.take(), status="odd")
        job = await world.end_of(job_id)

    assert (job.status, job.state) == (JobStatus.FAILED, "failed")
    assert job.head.error_message == "Worker returned unhandled status: odd"


async def test_a_task_over_its_time_is_a_failure_of_the_worker(world: World) -> None:
    blueprint = a_blueprint(
        {"a": dispatch({"success": "end", "timeout": "late"}, result_timeout_seconds=4)},
        ends=("end", "late"),
    )
    async with running(world.executor(blueprint, max_retries=0)):
        job_id = await world.create(blueprint)
        task = await world.take()
        assert await world.fire_next() == pytest.approx(4.0)
        job = await world.end_of(job_id)
        answer = await world.succeed(task)

    assert (job.status, job.state) == (JobStatus.FINISHED, "late")
    assert answer is ResultAnswer.JOB_TERMINATED


# --- fan-outs


def fan_out(count: int, seen: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """Handlers of a fan-out whose aggregator notes the results."""

    def spread(actions: ActionFactory) -> None:
        tasks = [{"type": "t", "params": {"n": n}, **options} for n in range(count)]
        actions.dispatch_parallel(tasks, "join")

    def join(context: JobContext) -> None:
        assert context.aggregation_results is not None
        seen.append(context.aggregation_results)
        context.actions.transition_to("end")

    return {"spread": spread, "join": join}


async def test_a_fan_out_of_none_goes_to_its_aggregator_at_once(world: World) -> None:
    """R13."""
    seen: list[dict[str, Any]] = []
    blueprint = a_blueprint(fan_out(0, seen))
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FINISHED
    assert seen == [{}]


async def test_fan_outs_join_each_with_all_results(world: World) -> None:
    """R11."""
    seen: list[dict[str, Any]] = []
    blueprint = a_blueprint(fan_out(8, seen))
    async with running(world.executor(blueprint)), fast_workers(world):
        job_ids = [await world.create(blueprint) for _ in range(20)]
        jobs = [await world.end_of(job_id) for job_id in job_ids]

    assert [job.status for job in jobs] == [JobStatus.FINISHED] * 20
    assert len(seen) == 20
    for results in seen:
        assert [r["data"]["params"]["n"] for r in results.values()] == list(range(8))
        assert [r["task_id"] for r in results.values()] == list(results)
    assert all("params" not in job.data.state_history for job in jobs)


async def test_the_aggregator_decides_on_failed_late_and_retried_branches(world: World) -> None:
    """R14."""
    seen: list[dict[str, Any]] = []
    blueprint = a_blueprint(fan_out(3, seen, result_timeout_seconds=50))
    async with running(world.executor(blueprint, max_retries=1)):
        job_id = await world.create(blueprint)
        hangs, fails, recovers = [await world.take() for _ in range(3)]
        await world.fail(fails, "PERMANENT_ERROR", "broken")
        await world.fail(recovers, "TRANSIENT_ERROR")
        await world.until_all_is_answered()
        await world.fire_next()  # the retry delay of the third
        await world.succeed(await world.take(), {"late": True})
        await world.fire_next()  # the result timeout of the first …
        await world.until_all_is_answered()
        await world.fire_next()  # … its retry delay, and its second timeout
        await world.take()
        await world.fire_next()
        job = await world.end_of(job_id)

    [results] = seen
    errors = [r["error"]["code"] if r["error"] else None for r in results.values()]
    assert job.status is JobStatus.FINISHED
    assert errors == ["TIMEOUT_ERROR", "PERMANENT_ERROR", None]
    assert fails.task_id in results
    assert hangs.task_id not in results  # it was repeated under another id
    assert [r["data"] for r in results.values()] == [{}, {}, {"late": True}]
    assert await world.next_due() is None


async def test_an_event_of_an_earlier_fan_out_changes_nothing(world: World) -> None:
    handlers = fan_out(2, [])

    def again(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "t"}, {"type": "t"}], "last")

    blueprint = a_blueprint({**handlers, "join": again, "last": go_to("end")})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        first = [await world.take() for _ in range(2)]
        for task in first:
            await world.succeed(task)
        second = [await world.take() for _ in range(2)]
        await world.succeed(second[0])
        late = TaskSucceeded(
            at=world.clock.now(), task_id=first[0].task_id, fresh_id=TaskId("x"), data={"n": 9}
        )
        world.tables.append_event(job_id, late, is_branch=True)
        await world.until_all_is_answered()
        still_waiting = (await world.job(job_id)).status
        await world.succeed(second[1])
        job = await world.end_of(job_id)

    results = await world.store.jobs.branch_results(job_id)
    assert still_waiting is JobStatus.WAITING_FOR_PARALLEL_TASKS
    assert list(results) == [task.task_id for task in second]
    assert job.status is JobStatus.FINISHED


# --- sub-jobs

CHILD_ENDS = {"success": "well", "failure": "badly", "cancelled": "stopped"}
PARENT_ENDS = ("well", "badly", "stopped")


def run_child(context: JobContext) -> None:
    context.actions.run_blueprint("child", {"n": 1}, CHILD_ENDS)


async def fails_for_good(world: World, _child: JobId) -> None:
    await world.fail(await world.take(), "PERMANENT_ERROR")


async def reports_an_odd_status(world: World, _child: JobId) -> None:
    await world.succeed(await world.take(), status="odd")


async def is_cancelled(world: World, child: JobId) -> None:
    await world.cancel(child)


async def stops_as_cancelled(world: World, _child: JobId) -> None:
    await world.report_cancelled(await world.take())


async def is_never_taken(world: World, _child: JobId) -> None:
    await world.fire_next()


async def runs_out_of_attempts(world: World, _child: JobId) -> None:
    await world.fail(await world.take())
    await world.fire_next()
    await world.fail(await world.take())


async def succeeds(world: World, _child: JobId) -> None:
    await world.succeed(await world.take(), {"answer": 42})


@pytest.mark.parametrize(
    ("happens", "outcome"),
    [
        (succeeds, "well"),
        (fails_for_good, "badly"),
        (reports_an_odd_status, "badly"),
        (is_never_taken, "badly"),
        (runs_out_of_attempts, "badly"),
        (is_cancelled, "stopped"),
        (stops_as_cancelled, "stopped"),
    ],
)
async def test_however_a_child_ends_its_parent_goes_on(
    world: World, happens: Callable[[World, JobId], Any], outcome: str
) -> None:
    """R17."""
    child = a_blueprint({"c": dispatch({"success": "end"})}, name="child")
    parent = a_blueprint({"p": run_child}, ends=PARENT_ENDS, name="parent")
    async with running(world.executor(child, parent, max_retries=1)):
        parent_id = await world.create(parent)
        await until(world.board)
        [task] = await world.board()
        await happens(world, task.job_id)
        ended_child = await world.end_of(task.job_id)
        job = await world.end_of(parent_id)

    entry = job.data.state_history[f"sub_job_{ended_child.id}_result"]
    assert job.state == outcome
    assert entry["final_state"] == ended_child.state
    assert entry["error_message"] == ended_child.head.error_message
    assert entry["result"] == ended_child.data.state_history


async def test_a_child_starts_in_its_own_state_with_what_its_parent_has(world: World) -> None:
    """R21."""
    child = a_blueprint({"c": dispatch({"success": "end"})}, name="child")
    parent = a_blueprint({"p": run_child}, ends=PARENT_ENDS, name="parent")
    client = Client(name="acme", plan="gold", params={"k": 1})
    tracing = {"traceparent": "00-1"}
    async with running(world.executor(child, parent)):
        parent_id = await world.create_with(
            parent,
            client=client,
            tracing_context=tracing,
            dispatch_timeout=11.0,
            result_timeout=22.0,
        )
        task = await world.take()
        made = await world.job(task.job_id)
        waiting = await world.job(parent_id)
        await world.succeed(task)
        await world.end_of(parent_id)

    assert waiting.status is JobStatus.WAITING_FOR_SUB_JOB
    assert (made.origin.start_state, made.initial_data) == ("c", {"n": 1})
    assert made.origin.client == client
    assert made.origin.tracing_context == tracing
    assert (made.origin.dispatch_timeout, made.origin.result_timeout) == (11.0, 22.0)
    assert made.origin.depth == 1


async def test_as_many_children_that_end_at_once_as_parents_that_go_on(world: World) -> None:
    """R21."""
    child = a_blueprint({"c": go_to("end")}, name="child")
    parent = a_blueprint({"p": run_child}, ends=PARENT_ENDS, name="parent")
    async with running(world.executor(child, parent)):
        job_ids = [await world.create(parent) for _ in range(400)]
        jobs = [await world.end_of(job_id) for job_id in job_ids]

    assert {job.state for job in jobs} == {"well"}
    assert all(len(job.data.state_history) == 1 for job in jobs)
    assert await world.store.jobs.count_by_status() == {JobStatus.FINISHED: 800}


async def test_the_depth_of_sub_jobs_is_limited(world: World) -> None:
    """R21."""
    blueprint = a_blueprint({"p": run_child}, ends=PARENT_ENDS, name="child")
    async with running(world.executor(blueprint, max_depth=3)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FINISHED
    assert await world.store.jobs.count_by_status() == {
        JobStatus.FINISHED: 3,
        JobStatus.FAILED: 1,  # the fourth generation
    }


@pytest.mark.parametrize("declares", [False, True])
async def test_cancelling_a_parent_cancels_its_child(world: World, *, declares: bool) -> None:
    """R21."""

    def run(actions: ActionFactory) -> None:
        actions.run_blueprint("child", {}, {"cancelled": "tidy"} if declares else {})

    child = a_blueprint({"c": dispatch({"success": "end"})}, name="child")
    parent = a_blueprint({"p": run}, ends=("tidy",), name="parent")
    async with running(world.executor(child, parent)):
        parent_id = await world.create(parent)
        task = await world.take()
        await world.cancel(parent_id)
        ended_parent = await world.end_of(parent_id)
        ended_child = await world.end_of(task.job_id)
        answer = await world.succeed(task)
        await world.until_all_is_answered()

    assert ended_parent.status is (JobStatus.FINISHED if declares else JobStatus.CANCELLED)
    assert ended_child.status is JobStatus.CANCELLED
    assert answer is ResultAnswer.JOB_CANCELLED
    assert await world.job(parent_id) == ended_parent


# --- cancel


async def test_a_running_handler_is_stopped_and_its_outcome_refused(world: World) -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def handler(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["left"] = True
        actions.transition_to("end")
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await begun.wait()
        await world.cancel(job_id)
        job = await world.end_of(job_id)
        await until(stopped.is_set)
        await world.until_all_is_answered()

    assert job.status is JobStatus.CANCELLED
    assert job.head.error_message == "Cancelled by request."
    assert job.data.state_history == {}
    assert await world.job(job_id) == job


async def test_a_handler_that_will_not_be_stopped_is_refused_all_the_same(world: World) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    tried: list[str] = []

    async def handler(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["left"] = True
        actions.transition_to("end")
        begun.set()
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                tried.append("to stop it")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await begun.wait()
        await world.cancel(job_id)
        await until(lambda: tried)
        may_end.set()
        job = await world.end_of(job_id)
        await world.until_all_is_answered()

    assert (job.status, job.data.state_history) == (JobStatus.CANCELLED, {})
    assert await world.job(job_id) == job


async def test_cancelling_takes_a_waiting_task_off_the_board(world: World) -> None:
    blueprint = a_blueprint({"a": dispatch({"success": "end"})})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_WORKER)
        held = await world.cancel(job_id)
        job = await world.end_of(job_id)

    assert not held
    assert job.status is JobStatus.CANCELLED
    assert await world.board() == []
    assert await world.next_due() is None


async def test_a_declared_cancelled_transition_is_taken(world: World) -> None:
    blueprint = a_blueprint(
        {"a": dispatch({"success": "end", "cancelled": "tidy"}), "tidy": go_to("end")}
    )
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        task = await world.take()
        held = await world.cancel(job_id)
        job = await world.end_of(job_id)
        answer = await world.succeed(task)

    assert held
    assert (job.status, job.state) == (JobStatus.FINISHED, "end")
    assert answer in {ResultAnswer.STALE_TASK, ResultAnswer.JOB_TERMINATED}


async def test_cancelling_a_fan_out_closes_every_branch(world: World) -> None:
    seen: list[dict[str, Any]] = []
    blueprint = a_blueprint(fan_out(3, seen))
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        held = await world.take()
        await world.fail(await world.take())
        await world.cancel(job_id)
        job: Job = await world.end_of(job_id)
        answer = await world.succeed(held)
        await world.until_all_is_answered()

    assert job.status is JobStatus.CANCELLED
    assert answer is ResultAnswer.JOB_CANCELLED
    assert await world.board() == []
    assert await world.next_due() is None
    assert seen == []


async def test_cancelling_while_a_retry_is_due_ends_the_wait(world: World) -> None:
    def handler() -> None:
        raise ValueError("no")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.AWAITING_RETRY)
        await world.cancel(job_id)
        job = await world.end_of(job_id)

    assert job.status is JobStatus.CANCELLED
    assert await world.next_due() is None
