"""What a worker says while it does a task: its progress, and checkpoints for the next attempt."""

from collections.abc import Mapping
from typing import Any

import pytest

from avtomatika_common import ids
from avtomatika_common.backend.ports import LeasedTask, Progress, ResultAnswer, StorageBackend
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_core.outcomes import DispatchTask
from tests.contract.builders import (
    Claim,
    Executor,
    a_cancel,
    a_failure,
    a_success,
    a_task,
    fire,
    parallel,
    take,
)
from tests.contract.conftest import Bench, PassTime

ME, OTHER = WorkerId("worker-1"), WorkerId("worker-2")


async def report(
    backend: StorageBackend,
    job_id: str,
    task_id: str,
    progress: float = 0.5,
    *,
    worker: WorkerId = ME,
    message: str = "on it",
    checkpoint: Mapping[str, Any] | None = None,
) -> ResultAnswer:
    said = Progress(
        progress=progress, message=message, at=backend.clock.now(), task_id=TaskId(task_id)
    )
    return await backend.board.record_progress(
        said.task_id, JobId(job_id), worker, said, checkpoint
    )


async def end_attempt(
    backend: StorageBackend, leased: LeasedTask, how: str, pass_time: PassTime
) -> None:
    """The attempt ends so that there will be another one."""
    match how:
        case "failed":
            event = a_failure(backend, leased.task_id)
            await backend.board.end_lease(leased.job_id, ME, event)
        case "lost":
            await backend.board.return_leases(0, ME, 1, lost=True)
        case _:
            await pass_time(0.11)
            assert await fire(backend) == 1


async def next_attempt(executor: Executor, pass_time: PassTime) -> LeasedTask:
    """The retry delay passes, and the task is handed out again."""
    await executor.apply(await executor.read())
    await pass_time(0.13)
    assert await fire(executor.backend) == 1
    await executor.apply(await executor.read())
    return await take(executor.backend, incarnation=2)


async def next_attempt_of_branch(executor: Executor, pass_time: PassTime) -> LeasedTask:
    await executor.settle(await executor.read())
    await pass_time(0.13)
    assert await fire(executor.backend) == 1
    await executor.settle(await executor.read())
    return await take(executor.backend, incarnation=2)


# --- the task as it is handed out


async def test_a_leased_task_says_which_attempt_it_is_and_until_when_it_has_time(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    await executor.dispatch(a_task(result_timeout_seconds=60.0))
    before = backend.clock.now()

    first = await take(backend)
    await end_attempt(backend, first, "failed", pass_time)
    second = await next_attempt(executor, pass_time)

    assert (first.attempt, second.attempt) == (1, 2)
    assert first.leased_at == pytest.approx(before, abs=0.5)
    assert first.deadline == pytest.approx((first.leased_at or 0) + 60, abs=0.001)
    assert first.checkpoint is None


async def test_the_holder_of_a_task_is_who_has_it_now(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    waiting = await backend.board.holder(claim.job.id, claim.task_id)
    await take(backend)

    held = await backend.board.holder(claim.job.id, claim.task_id)
    of_another_job = await backend.board.holder(JobId(ids.new_id()), claim.task_id)
    await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))

    assert (waiting, held, of_another_job) == (None, ME, None)
    assert await backend.board.holder(claim.job.id, claim.task_id) is None


# --- checkpoints


@pytest.mark.parametrize("how", ["failed", "lost", "timed out"])
async def test_the_next_attempt_starts_with_the_last_checkpoint(
    backend: StorageBackend, pass_time: PassTime, how: str
) -> None:
    executor = Executor(backend)
    await executor.dispatch(a_task(result_timeout_seconds=0.1))
    first = await take(backend)
    await report(backend, first.job_id, first.task_id, checkpoint={"page": 1})
    await report(backend, first.job_id, first.task_id, checkpoint={"page": 2, "seen": [1, 2]})
    await report(backend, first.job_id, first.task_id)

    await end_attempt(backend, first, how, pass_time)
    second = await next_attempt(executor, pass_time)

    assert second.checkpoint == {"page": 2, "seen": [1, 2]}


@pytest.mark.parametrize("how", ["failed", "lost", "timed out"])
async def test_the_next_attempt_of_a_branch_starts_with_the_last_checkpoint(
    backend: StorageBackend, pass_time: PassTime, how: str
) -> None:
    executor = Executor(backend)
    await executor.run(await executor.start(), parallel(a_task(result_timeout_seconds=0.1)))
    first = await take(backend)
    await report(backend, first.job_id, first.task_id, checkpoint={"page": 2})
    await end_attempt(backend, first, how, pass_time)

    second = await next_attempt_of_branch(executor, pass_time)

    assert (second.attempt, second.checkpoint) == (2, {"page": 2})


async def test_an_attempt_that_leaves_no_checkpoint_passes_on_the_earlier_one(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    await executor.dispatch()
    first = await take(backend)
    await report(backend, first.job_id, first.task_id, checkpoint={"page": 2})
    await end_attempt(backend, first, "failed", pass_time)
    second = await next_attempt(executor, pass_time)

    await end_attempt(backend, second, "failed", pass_time)
    third = await next_attempt(executor, pass_time)

    assert (third.attempt, third.checkpoint) == (3, {"page": 2})


async def test_a_task_that_comes_back_uncounted_keeps_its_checkpoint(
    backend: StorageBackend,
) -> None:
    await Executor(backend).dispatch()
    first = await take(backend)
    await report(backend, first.job_id, first.task_id, checkpoint={"page": 2})

    await backend.board.return_leases(0, ME, 1, lost=False)
    again = await take(backend, incarnation=2)

    assert (again.task_id, again.attempt, again.checkpoint) == (first.task_id, 1, {"page": 2})


async def test_the_job_s_next_task_starts_without_a_checkpoint(backend: StorageBackend) -> None:
    executor = Executor(backend)
    await executor.dispatch()
    first = await take(backend)
    await report(backend, first.job_id, first.task_id, checkpoint={"page": 2})
    await backend.board.end_lease(first.job_id, ME, a_success(backend, first.task_id))
    claim = await executor.apply(await executor.read())
    await executor.run(claim, DispatchTask(task=a_task()))

    assert (await take(backend)).checkpoint is None


# --- progress


async def test_readers_see_progress_of_the_holder(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    await take(backend)

    answers = [
        await report(backend, claim.job.id, claim.task_id, 0.1, message="begun"),
        await report(backend, claim.job.id, claim.task_id, 0.7, message="most of it"),
    ]

    assert answers == [ResultAnswer.APPLIED] * 2
    document = await backend.get_job_state(claim.job.id)
    assert document is not None
    assert (document["progress"], document["progress_message"]) == (0.7, "most of it")
    updates = document["state_history"]["progress_updates"]
    assert [(u["progress"], u["message"], u["task_id"]) for u in updates] == [
        (0.1, "begun", claim.task_id),
        (0.7, "most of it", claim.task_id),
    ]


async def test_the_last_hundred_updates_are_kept(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    await take(backend)

    for number in range(103):
        await report(backend, claim.job.id, claim.task_id, number / 103, message=str(number))

    view = await backend.jobs.view(claim.job.id)
    assert view is not None
    assert [p.message for p in view.progress] == [str(number) for number in range(3, 103)]


async def test_progress_that_is_sent_twice_is_shown_once(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    await take(backend)
    said = Progress(progress=0.5, message="", at=backend.clock.now(), task_id=claim.task_id)

    answers = [
        await backend.board.record_progress(claim.task_id, claim.job.id, ME, said, {"page": 1})
        for _ in range(2)
    ]

    assert answers == [ResultAnswer.APPLIED] * 2
    view = await backend.jobs.view(claim.job.id)
    assert view is not None
    assert list(view.progress) == [said]


async def test_progress_makes_no_event_and_no_step(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    before = await backend.jobs.load(claim.job.id)

    await report(backend, claim.job.id, claim.task_id, checkpoint={"page": 1})

    after = await backend.jobs.load(claim.job.id)
    assert before is not None
    assert after is not None
    assert (after.fence, after.job) == (before.fence, before.job)
    assert await executor.read_all() == []


async def test_progress_of_an_unknown_job_makes_nothing(
    backend: StorageBackend, bench: Bench
) -> None:
    """R39, R64."""
    before = await bench.contents()

    answer = await report(backend, ids.new_id(), ids.new_id(), checkpoint={"page": 1})

    assert answer is ResultAnswer.JOB_NOT_FOUND
    assert await bench.contents() == before


async def refused(backend: StorageBackend, claim: Claim, worker: WorkerId = ME) -> ResultAnswer:
    """The answer to progress that must leave the job as it is."""
    before = await backend.get_job_state(claim.job.id)
    answer = await report(
        backend, claim.job.id, claim.task_id, worker=worker, checkpoint={"forged": True}
    )
    assert await backend.get_job_state(claim.job.id) == before
    return answer


async def test_only_the_holder_s_progress_counts(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R39."""
    executor = Executor(backend)
    claim = await executor.dispatch()
    of_nobody = await refused(backend, claim)
    leased = await take(backend)

    of_another = await refused(backend, claim, OTHER)

    assert (of_nobody, of_another) == (ResultAnswer.WORKER_MISMATCH,) * 2
    await end_attempt(backend, leased, "failed", pass_time)
    assert (await next_attempt(executor, pass_time)).checkpoint is None


async def test_progress_after_the_result_is_stale(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))

    assert await refused(backend, claim) is ResultAnswer.STALE_TASK


async def test_progress_after_the_result_deadline_is_refused(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    claim = await Executor(backend).dispatch(a_task(result_timeout_seconds=0.05))
    await take(backend)
    await pass_time(0.06)
    await fire(backend)

    assert await refused(backend, claim) is ResultAnswer.DEADLINE_EXCEEDED


async def test_progress_for_a_cancelled_job_is_refused(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    await take(backend)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    assert await refused(backend, claim) is ResultAnswer.JOB_CANCELLED


async def test_progress_for_a_job_that_has_ended_is_refused(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(transitions={"success": "end"}))
    await take(backend)
    await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))
    await executor.run(await executor.apply(await executor.read()), None)

    assert await refused(backend, claim) is ResultAnswer.JOB_TERMINATED
