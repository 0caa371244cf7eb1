"""A job's own time, and the heartbeat of a task."""

import asyncio

import pytest

from avtomatika_common.backend.ports import (
    DropAnswer,
    JobIsTerminal,
    Progress,
    ResultAnswer,
    StaleJob,
    StorageBackend,
)
from avtomatika_core.events import CancelRequested, JobTimedOut, TaskTimedOut
from avtomatika_core.job import JobId, JobStatus, TaskId, WorkerId
from avtomatika_core.outcomes import DispatchTask, RunBlueprint, Sleep
from tests.contract.builders import (
    TO_NEXT,
    WAIT,
    Claim,
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    fire,
    lease,
    next_due,
    parallel,
    take,
)
from tests.contract.conftest import Open, PassTime

ME, OTHER = WorkerId("worker-1"), WorkerId("worker-2")


async def start_with(backend: StorageBackend, seconds: float) -> tuple[Executor, Claim]:
    executor = Executor(backend)
    return executor, await executor.start(a_job(backend, timeout_seconds=seconds))


async def time_passes(backend: StorageBackend, pass_time: PassTime, seconds: float) -> None:
    await pass_time(seconds)
    assert await fire(backend) == 1


# --- the job's own time


async def test_a_job_has_its_deadline_from_its_creation_on(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    job = a_job(backend, timeout_seconds=0.1)
    await backend.jobs.create(job)
    assert await next_due(backend) == pytest.approx(job.origin.created_at + 0.1, abs=0.002)

    await time_passes(backend, pass_time, 0.11)

    executor = Executor(backend)
    late, created = sorted(await executor.read_all(), key=lambda delivery: delivery.lane)
    assert isinstance(late.event, JobTimedOut)
    ended = await executor.apply(late)
    assert ended.job.status is JobStatus.FAILED
    assert ended.job.head.error_message == "Job timed out after 0.1 seconds."
    assert await backend.inbox.drop(created) is DropAnswer.DROPPED
    assert await next_due(backend) is None


async def test_an_earlier_deadline_wakes_the_watcher(backend: StorageBackend) -> None:
    position = await backend.hints.position("p0")

    await backend.jobs.create(a_job(backend, timeout_seconds=60.0))
    await backend.jobs.create(a_job(backend, timeout_seconds=90.0))

    _, hints, _ = await backend.hints.wait("p0", position, 5.0)
    assert [hint.kind for hint in hints] == ["timer"]


async def test_only_a_time_limit_sets_a_deadline_of_an_id_that_makes_one_job(
    backend: StorageBackend,
) -> None:
    await backend.jobs.create(a_job(backend), once=True)
    assert await next_due(backend) is None

    job = a_job(backend, timeout_seconds=60.0)
    first = await backend.jobs.create(job, once=True)
    again = await backend.jobs.create(job, once=True)

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert await next_due(backend) == pytest.approx(job.origin.created_at + 60.0, abs=0.002)


async def test_a_job_is_created_once_with_one_deadline(backend: StorageBackend) -> None:
    job = a_job(backend, timeout_seconds=60.0)
    await backend.jobs.create(job)
    due = await next_due(backend)

    await backend.jobs.create(job)

    assert await next_due(backend) == due


async def test_a_handler_that_runs_at_the_deadline_writes_nothing(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor, claim = await start_with(backend, 0.1)

    await time_passes(backend, pass_time, 0.11)

    assert not await backend.jobs.is_wanted(claim.job.id, claim.job.run)
    with pytest.raises(StaleJob):
        await executor.run(claim, TO_NEXT)
    assert await backend.inbox.drop(claim.delivery) is DropAnswer.DROPPED
    ended = await executor.apply(await executor.read())
    assert ended.job.status is JobStatus.FAILED
    assert await backend.inbox.length() == 0


async def test_a_task_is_not_handed_out_after_the_deadline(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor, claim = await start_with(backend, 0.1)
    await executor.run(claim, DispatchTask(task=a_task(dispatch_timeout_seconds=0.0)))

    await time_passes(backend, pass_time, 0.11)

    assert await lease(backend) is None
    await executor.apply(await executor.read())
    assert await backend.board.length() == 0


async def test_a_result_after_the_deadline_changes_nothing(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R15."""
    executor, claim = await start_with(backend, 0.1)
    claim = await executor.run(claim, DispatchTask(task=a_task(dispatch_timeout_seconds=0.0)))
    await take(backend)

    await time_passes(backend, pass_time, 0.11)
    result = a_success(backend, claim.task_id)
    marked = await backend.board.end_lease(claim.job.id, ME, result)
    await executor.apply(await executor.read())
    ended = await backend.board.end_lease(claim.job.id, ME, result)

    assert (marked, ended) == (ResultAnswer.JOB_CANCELLED, ResultAnswer.JOB_TERMINATED)
    assert await next_due(backend) is None
    assert await backend.inbox.length() == 0


async def test_of_a_result_and_the_deadline_at_once_the_job_ends_once(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R16."""
    executor, claim = await start_with(backend, 0.1)
    claim = await executor.run(claim, DispatchTask(task=a_task(dispatch_timeout_seconds=0.0)))
    await take(backend)
    await pass_time(0.11)

    await asyncio.gather(
        backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id)),
        fire(backend),
    )

    *results, late = sorted(
        await executor.read_all(), key=lambda delivery: isinstance(delivery.event, JobTimedOut)
    )
    assert (await executor.apply(late)).job.status is JobStatus.FAILED
    for delivery in results:
        assert await backend.inbox.drop(delivery) is DropAnswer.DROPPED
    assert await next_due(backend) is None


async def test_a_job_that_ends_in_time_leaves_no_timer(backend: StorageBackend) -> None:
    """R8."""
    """R8."""
    executor, claim = await start_with(backend, 60.0)
    assert await next_due(backend) is not None

    await executor.end(claim)

    assert await next_due(backend) is None


async def test_a_cancel_under_way_does_not_hold_the_deadline_back(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor, claim = await start_with(backend, 0.1)
    wait = WAIT.transitions | {"cancelled": "tidy"}
    await executor.run(claim, type(WAIT)(name="paid", transitions=wait))
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    await time_passes(backend, pass_time, 0.11)

    cancel, late = await executor.read_all()
    assert isinstance(cancel.event, CancelRequested)
    tidying = await executor.apply(cancel)
    ended = await executor.apply(late)

    assert (tidying.job.state, tidying.job.status) == ("tidy", JobStatus.RUNNING)
    assert ended.job.head.error_message == "Job timed out after 0.1 seconds."
    assert not await backend.jobs.is_wanted(claim.job.id, tidying.job.run)
    assert await backend.inbox.drop(tidying.delivery) is DropAnswer.DROPPED


async def test_a_job_past_its_deadline_cannot_be_cancelled_away(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor, claim = await start_with(backend, 0.1)
    await time_passes(backend, pass_time, 0.11)

    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    ended = await executor.apply(await executor.read())
    assert ended.job.status is JobStatus.FAILED
    with pytest.raises(JobIsTerminal):
        await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))


async def test_a_sub_job_ends_with_its_parent(backend: StorageBackend, pass_time: PassTime) -> None:
    executor, claim = await start_with(backend, 0.1)
    child = RunBlueprint(blueprint="b", initial_data={}, transitions={})
    await executor.run(claim, child)
    await executor.apply(await executor.read())

    await time_passes(backend, pass_time, 0.11)
    ended = await executor.apply(await executor.read())
    child_ended = await executor.apply(await executor.read())

    assert ended.job.status is JobStatus.FAILED
    assert child_ended.job.status is JobStatus.CANCELLED
    assert await next_due(backend) is None


async def test_partitions_have_deadlines_of_their_own(open_backend: Open) -> None:
    backend = await open_backend(partitions=2)

    await backend.jobs.create(a_job(backend, partition=1, timeout_seconds=60.0))

    assert await backend.timers.next_due(0) is None
    assert await backend.timers.next_due(1) is not None


# --- sleep


async def test_a_sleeping_job_is_woken_by_its_timer(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), Sleep(seconds=0.05, next_state="next"))
    assert claim.job.status is JobStatus.SLEEPING
    assert await backend.inbox.length() == 0

    await time_passes(backend, pass_time, 0.06)

    woken = await executor.apply(await executor.read())
    assert (woken.job.status, woken.job.state) == (JobStatus.RUNNING, "next")
    assert (await backend.jobs.count_by_status())[JobStatus.RUNNING] == 1


# --- the heartbeat of a task


async def progress(
    backend: StorageBackend, job_id: str, task_id: str, worker: WorkerId = ME
) -> ResultAnswer:
    said = Progress(progress=0.5, message="", at=backend.clock.now(), task_id=TaskId(task_id))
    return await backend.board.record_progress(said.task_id, JobId(job_id), worker, said, None)


@pytest.mark.parametrize("is_branch", [False, True])
async def test_a_holder_that_sends_no_progress_is_late(
    backend: StorageBackend, pass_time: PassTime, is_branch: bool
) -> None:
    executor = Executor(backend)
    task = a_task(heartbeat_timeout_seconds=0.1)
    action = parallel(task) if is_branch else DispatchTask(task=task)
    await executor.run(await executor.start(), action)
    leased = await take(backend)
    assert await next_due(backend) == pytest.approx((leased.leased_at or 0) + 0.1, abs=0.002)

    await time_passes(backend, pass_time, 0.11)

    delivery = await executor.read()
    assert isinstance(delivery.event, TaskTimedOut)
    assert (delivery.event.timeout, delivery.event.worker_id) == ("result", ME)
    answer = await backend.board.end_lease(leased.job_id, ME, a_success(backend, leased.task_id))
    assert answer is ResultAnswer.DEADLINE_EXCEEDED


async def test_progress_gives_its_holder_the_time_anew(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await Executor(backend).dispatch(a_task(heartbeat_timeout_seconds=0.2))
    leased = await take(backend)
    for _ in range(3):
        await pass_time(0.1)
        await progress(backend, leased.job_id, leased.task_id)
        assert await fire(backend) == 0

    await time_passes(backend, pass_time, 0.21)


async def test_progress_of_another_worker_gives_no_time(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await Executor(backend).dispatch(a_task(heartbeat_timeout_seconds=0.1))
    leased = await take(backend)
    due = await next_due(backend)

    await pass_time(0.05)
    answer = await progress(backend, leased.job_id, leased.task_id, OTHER)

    assert answer is ResultAnswer.WORKER_MISMATCH
    assert await next_due(backend) == due


async def test_progress_does_not_put_off_the_result_timeout(backend: StorageBackend) -> None:
    task = a_task(heartbeat_timeout_seconds=50.0, result_timeout_seconds=60.0)
    await Executor(backend).dispatch(task)
    leased = await take(backend)
    assert await next_due(backend) == pytest.approx((leased.leased_at or 0) + 50, abs=0.002)

    short = a_task(heartbeat_timeout_seconds=70.0, result_timeout_seconds=10.0)
    await Executor(backend).dispatch(short)
    other = await take(backend)
    await progress(backend, other.job_id, other.task_id)

    assert await next_due(backend) == pytest.approx((other.leased_at or 0) + 10, abs=0.002)


async def test_progress_of_a_task_without_a_heartbeat_timeout_moves_no_timer(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await Executor(backend).dispatch()
    leased = await take(backend)
    due = await next_due(backend)
    await pass_time(0.05)

    await progress(backend, leased.job_id, leased.task_id)

    assert await next_due(backend) == due


async def test_progress_shows_that_a_task_was_delivered(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """Its confirmation is still on the way."""
    await Executor(backend).dispatch(a_task(heartbeat_timeout_seconds=60.0))
    leased = await lease(backend)
    assert leased is not None

    await progress(backend, leased.job_id, leased.task_id)
    await pass_time(0.15)
    assert await fire(backend) == 0
    await backend.board.confirm(leased.task_id, leased.job_id, ME)

    assert await backend.board.holder(leased.job_id, leased.task_id) == ME
    assert await next_due(backend) is not None


async def test_of_a_result_and_a_missed_heartbeat_at_once_one_counts(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R16."""
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(heartbeat_timeout_seconds=0.05))
    await take(backend)
    await pass_time(0.06)

    answer, fired = await asyncio.gather(
        backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id)),
        fire(backend),
    )

    assert (answer is ResultAnswer.APPLIED) + fired == 1
    assert len(await executor.read_all()) == 1
    assert await next_due(backend) is None


async def test_each_attempt_of_a_branch_has_the_heartbeat_timeout(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R14."""
    executor = Executor(backend)
    task = a_task(heartbeat_timeout_seconds=0.1)
    await executor.run(await executor.start(), parallel(task))
    await take(backend)
    await time_passes(backend, pass_time, 0.11)
    await executor.settle(await executor.read())
    await time_passes(backend, pass_time, 0.07)
    await executor.settle(await executor.read())

    leased = await take(backend)

    assert leased.attempt == 2
    assert await next_due(backend) == pytest.approx((leased.leased_at or 0) + 0.1, abs=0.002)


async def test_branches_of_a_large_fan_out_have_their_heartbeat_timeouts(
    backend: StorageBackend,
) -> None:
    """R14."""
    executor = Executor(backend)
    tasks = [a_task(heartbeat_timeout_seconds=5.0) for _ in range(300)]
    await executor.run(await executor.start(), parallel(*tasks))
    while await backend.board.length() < 300:
        assert await fire(backend)
    head = (await backend.board.heads(0, 1))[0]
    leased = await lease(backend, head)
    assert leased is not None

    await backend.board.confirm(leased.task_id, leased.job_id, ME)

    assert await next_due(backend) == pytest.approx((leased.leased_at or 0) + 5, abs=0.002)
