"""What a worker tells of while it does a task: from the holder only, and once."""

import asyncio

import pytest

from avtomatika_common import ids
from avtomatika_common.backend.ports import EventReport, Progress, ResultAnswer, StorageBackend
from avtomatika_core.events import WorkerEventArrived
from avtomatika_core.job import JobId, JobStatus, TaskId, WorkerId
from tests.contract.builders import (
    Claim,
    Executor,
    a_cancel,
    a_success,
    a_task,
    fire,
    parallel,
    relay_all,
    take,
)
from tests.contract.conftest import Bench, Open, PassTime

ME, OTHER = WorkerId("worker-1"), WorkerId("worker-2")
LEADS_ON = {"halfway": "next"}
ACCEPTED = EventReport(answer=ResultAnswer.APPLIED)
REPEATED = EventReport(answer=ResultAnswer.APPLIED, is_repeat=True)


async def tell(
    backend: StorageBackend,
    job_id: str,
    task_id: str,
    event_id: str = "e-1",
    *,
    worker: WorkerId = ME,
    leads_on: bool = True,
    notification: bytes | None = None,
) -> EventReport:
    event = WorkerEventArrived(
        at=backend.clock.now(),
        task_id=TaskId(task_id),
        worker_id=worker,
        event_id=event_id,
        event_type="halfway",
        payload={"pages": 7},
    )
    return await backend.board.report_event(
        JobId(job_id),
        event.task_id,
        worker,
        event_id,
        event=event if leads_on else None,
        notification=notification,
    )


async def test_the_holder_s_event_moves_its_job_on_and_ends_the_task(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    await backend.workers.register(ME, {}, 60.0)
    claim = await executor.dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)

    assert await tell(backend, claim.job.id, claim.task_id) == ACCEPTED
    moved = await executor.apply(await executor.read())

    assert (moved.job.status, moved.job.state) == (JobStatus.RUNNING, "next")
    assert moved.job.data.state_history == {"pages": 7}
    late = await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))
    assert late is ResultAnswer.STALE_TASK


async def test_the_holder_of_a_task_that_an_event_ended_is_told_to_stop(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    await backend.workers.register(ME, {}, 60.0)
    claim = await executor.dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)

    await tell(backend, claim.job.id, claim.task_id)
    await executor.apply(await executor.read())
    await relay_all(backend)

    beat = await backend.workers.beat(ME, None, 60.0)
    assert beat is not None
    assert beat.cancel_task_ids == [claim.task_id]


async def test_an_event_that_leads_nowhere_leaves_the_job_alone(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)

    answer = await tell(backend, claim.job.id, claim.task_id, leads_on=False)

    assert answer == ACCEPTED
    assert await executor.read_all() == []
    assert await backend.board.holder(claim.job.id, claim.task_id) == ME


async def test_a_branch_s_holder_may_tell_too(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), parallel(a_task()))
    leased = await take(backend)

    assert await tell(backend, claim.job.id, leased.task_id, leads_on=False) == ACCEPTED


async def test_a_repeated_event_counts_once(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)

    answers = await asyncio.gather(
        *(tell(backend, claim.job.id, claim.task_id, notification=b"told") for _ in range(5))
    )

    assert sorted(answer.is_repeat for answer in answers) == [False, True, True, True, True]
    assert len(await executor.read_all()) == 1
    assert await backend.notifications.length() == 1


async def test_a_repeat_is_known_after_the_task_and_the_job_have_ended(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)
    await tell(backend, claim.job.id, claim.task_id)
    moved = await executor.apply(await executor.read())
    after_the_task = await tell(backend, claim.job.id, claim.task_id)
    await executor.end(moved)

    assert after_the_task == REPEATED
    assert await tell(backend, claim.job.id, claim.task_id) == REPEATED
    of_another = await tell(backend, claim.job.id, claim.task_id, worker=OTHER)
    assert of_another.answer is ResultAnswer.JOB_TERMINATED


async def test_the_same_id_from_another_worker_is_another_event(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    first = await tell(backend, claim.job.id, claim.task_id, leads_on=False)
    await backend.board.return_leases(0, ME, 1, lost=False)
    await take(backend, OTHER)

    second = await tell(backend, claim.job.id, claim.task_id, worker=OTHER, leads_on=False)

    assert (first, second) == (ACCEPTED, ACCEPTED)


async def test_the_newest_thousand_events_of_a_job_are_known(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    await take(backend)
    for number in range(1001):
        await tell(backend, claim.job.id, claim.task_id, f"{number:04}", leads_on=False)

    second = await tell(backend, claim.job.id, claim.task_id, "0001", leads_on=False)
    first = await tell(backend, claim.job.id, claim.task_id, "0000", leads_on=False)

    assert (second, first) == (REPEATED, ACCEPTED)


async def test_the_notification_is_written_with_the_event(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    await take(backend)

    await tell(backend, claim.job.id, claim.task_id, notification=b"told", leads_on=False)

    [entry] = await backend.notifications.read("notifier", 10)
    assert entry.payload == b"told"


async def test_nothing_a_worker_told_outlives_its_job(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)
    said = Progress(progress=0.5, message="", at=backend.clock.now(), task_id=claim.task_id)
    await backend.board.record_progress(claim.task_id, claim.job.id, ME, said, {"page": 1})
    await tell(backend, claim.job.id, claim.task_id)
    await executor.end(await executor.apply(await executor.read()))

    await pass_time(1.1)

    assert [key for key in await bench.contents() if claim.job.id in key] == []
    report = await tell(backend, claim.job.id, claim.task_id)
    assert report.answer is ResultAnswer.JOB_NOT_FOUND


# --- what does not count


async def refused(backend: StorageBackend, claim: Claim, worker: WorkerId = ME) -> ResultAnswer:
    """The answer to an event that must have no effect."""
    before = await backend.get_job_state(claim.job.id)
    entries = await backend.inbox.length()
    report = await tell(backend, claim.job.id, claim.task_id, worker=worker, notification=b"told")
    assert not report.is_repeat
    assert await backend.get_job_state(claim.job.id) == before
    assert await backend.inbox.length() == entries
    assert await backend.notifications.length() == 0
    return report.answer


async def test_an_event_of_an_unknown_job_makes_nothing(
    backend: StorageBackend, bench: Bench
) -> None:
    """R39, R64."""
    before = await bench.contents()

    report = await tell(backend, ids.new_id(), ids.new_id(), notification=b"told")

    assert report == EventReport(answer=ResultAnswer.JOB_NOT_FOUND)
    assert await bench.contents() == before


async def test_only_the_holder_may_tell(backend: StorageBackend) -> None:
    """R39."""
    claim = await Executor(backend).dispatch(a_task(event_transitions=LEADS_ON))
    of_nobody = await refused(backend, claim)
    await take(backend)

    of_another = await refused(backend, claim, OTHER)

    assert (of_nobody, of_another) == (ResultAnswer.WORKER_MISMATCH,) * 2
    assert await tell(backend, claim.job.id, claim.task_id) == ACCEPTED


async def test_an_event_after_the_result_is_stale(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)
    await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))

    assert await refused(backend, claim) is ResultAnswer.STALE_TASK


async def test_an_event_after_the_result_deadline_is_refused(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    claim = await Executor(backend).dispatch(a_task(result_timeout_seconds=0.05))
    await take(backend)
    await pass_time(0.06)
    await fire(backend)

    assert await refused(backend, claim) is ResultAnswer.DEADLINE_EXCEEDED


async def test_an_event_of_a_cancelled_job_is_refused(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch(a_task(event_transitions=LEADS_ON))
    await take(backend)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    assert await refused(backend, claim) is ResultAnswer.JOB_CANCELLED


@pytest.mark.parametrize("first", ["event", "result"])
async def test_of_an_event_and_a_result_the_first_that_is_applied_counts(
    backend: StorageBackend, first: str
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(
        a_task(event_transitions={"halfway": "look"}, transitions={"success": "next"})
    )
    await take(backend)
    await tell(backend, claim.job.id, claim.task_id)
    await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))
    event, result = await executor.read_all()

    moved = await executor.apply(event if first == "event" else result)

    assert moved.job.state == ("look" if first == "event" else "next")
    with pytest.raises(AssertionError, match="the event changes nothing"):
        await executor.apply(result if first == "event" else event)
