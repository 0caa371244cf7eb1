"""What a worker says it has: what it does not name never reached it, and goes back uncounted."""

import pytest

from avtomatika_common import ids
from avtomatika_common.backend.ports import LeasedTask, OpenTask, ResultAnswer, StorageBackend
from avtomatika_core.job import TaskId, WorkerId
from tests.contract.builders import (
    Executor,
    a_job,
    a_success,
    a_task,
    fire,
    lease,
    next_due,
    parallel,
    relay_all,
    take,
    the_waiting_task,
    waiting_tasks,
)
from tests.contract.conftest import Open, PassTime

ME, OTHER = WorkerId("worker-1"), WorkerId("worker-2")


async def report(
    backend: StorageBackend,
    *named: str,
    worker: WorkerId = ME,
    name: str | None = None,
    began_at: float | None = None,
) -> int:
    """A report that begins after all that was handed out so far, unless it says when."""
    return await backend.board.report_held(
        worker,
        [TaskId(task_id) for task_id in named],
        began_at=backend.clock.now() + 1 if began_at is None else began_at,
        report=name or ids.new_id(),
    )


async def handed_out(backend: StorageBackend, *, is_confirmed: bool) -> LeasedTask:
    """The task of a new job, with worker-1."""
    await Executor(backend).dispatch()
    if is_confirmed:
        return await take(backend)
    leased = await lease(backend)
    assert leased is not None
    return leased


async def with_whom(backend: StorageBackend, leased: LeasedTask) -> WorkerId | None:
    return await backend.board.holder(leased.job_id, leased.task_id)


async def open_task(backend: StorageBackend, leased: LeasedTask) -> OpenTask:
    view = await backend.jobs.view(leased.job_id)
    assert view is not None
    assert view.job.head.task_retry_count == 0
    assert view.task is not None
    return view.task


# --- what it names


async def test_a_task_that_is_named_is_confirmed(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    leased = await handed_out(backend, is_confirmed=False)

    assert await report(backend, leased.task_id, "another") == 0

    assert await next_due(backend) == pytest.approx((leased.leased_at or 0) + 60, abs=0.01)
    await pass_time(0.11)  # the time of a delivery
    assert await fire(backend) == 0
    await backend.board.undeliver(leased.task_id, leased.job_id, ME)
    assert await with_whom(backend, leased) == ME


async def test_a_worker_cannot_confirm_what_another_holds(backend: StorageBackend) -> None:
    leased = await handed_out(backend, is_confirmed=False)
    due = await next_due(backend)

    assert await report(backend, leased.task_id, worker=OTHER) == 0

    assert await next_due(backend) == due
    assert await with_whom(backend, leased) == ME


async def test_what_waits_or_has_ended_is_not_changed_by_being_named(
    backend: StorageBackend,
) -> None:
    ended = await handed_out(backend, is_confirmed=True)
    event = a_success(backend, ended.task_id)
    await backend.board.end_lease(ended.job_id, ME, event)
    await Executor(backend).read_all()
    await Executor(backend).dispatch()
    waiting, due = await the_waiting_task(backend), await next_due(backend)

    for _ in range(3):
        assert await report(backend, ended.task_id, waiting.task_id) == 0

    assert await waiting_tasks(backend) == [waiting]
    assert await next_due(backend) == due
    assert await backend.board.end_lease(ended.job_id, ME, event) is ResultAnswer.APPLIED


# --- what it does not name


@pytest.mark.parametrize("is_confirmed", [False, True], ids=["unconfirmed", "confirmed"])
async def test_two_reports_in_a_row_without_a_task_bring_it_back(
    backend: StorageBackend, is_confirmed: bool
) -> None:
    leased = await handed_out(backend, is_confirmed=is_confirmed)

    assert await report(backend) == 0
    assert await with_whom(backend, leased) == ME
    assert await report(backend, "another") == 1

    again = await the_waiting_task(backend)
    assert (again.task_id, again.offer_number) == (leased.task_id, leased.offer_number + 1)
    assert (await open_task(backend, leased)).worker_id is None
    assert await Executor(backend).read_all() == []  # no attempt has ended
    assert (await take(backend, OTHER)).attempt == 1
    assert await report(backend) == 0


async def test_it_goes_back_to_the_place_it_had(backend: StorageBackend) -> None:
    executor = Executor(backend)
    asked = [(await executor.dispatch(a_task(priority=2.0))).task_id for _ in range(3)]
    first = (await waiting_tasks(backend))[0]
    await lease(backend, first)

    assert [await report(backend) for _ in range(2)] == [0, 1]

    assert [task.task_id for task in await waiting_tasks(backend)] == asked


async def test_it_has_its_dispatch_deadline_again(backend: StorageBackend) -> None:
    await Executor(backend).dispatch(a_task(dispatch_timeout_seconds=30.0))
    deadline = await next_due(backend)
    await take(backend)

    assert [await report(backend) for _ in range(2)] == [0, 1]

    assert await next_due(backend) == deadline


async def test_a_report_that_names_it_begins_the_count_anew(backend: StorageBackend) -> None:
    leased = await handed_out(backend, is_confirmed=True)

    assert await report(backend) == 0
    assert await report(backend, leased.task_id) == 0
    assert await report(backend) == 0
    assert await with_whom(backend, leased) == ME
    assert await report(backend) == 1


async def test_the_same_report_counts_once(backend: StorageBackend) -> None:
    leased = await handed_out(backend, is_confirmed=True)

    assert [await report(backend, name="first") for _ in range(3)] == [0, 0, 0]
    assert await with_whom(backend, leased) == ME

    assert await report(backend, name="second") == 1


async def test_what_was_handed_out_after_the_report_began_is_left_alone(
    backend: StorageBackend,
) -> None:
    leased = await handed_out(backend, is_confirmed=True)
    handed_out_at = leased.leased_at
    assert handed_out_at is not None

    for began_at in (handed_out_at - 5, handed_out_at, handed_out_at - 0.002):
        assert await report(backend, began_at=began_at) == 0

    assert await report(backend, began_at=handed_out_at + 0.002) == 0
    assert await report(backend, began_at=handed_out_at - 0.002) == 0
    assert await with_whom(backend, leased) == ME
    assert await report(backend, began_at=handed_out_at + 0.002) == 1


async def test_a_report_is_about_the_tasks_of_its_worker_only(backend: StorageBackend) -> None:
    mine = await handed_out(backend, is_confirmed=True)
    await Executor(backend).dispatch()
    theirs = await take(backend, OTHER)

    assert [await report(backend) for _ in range(2)] == [0, 1]

    assert (await the_waiting_task(backend)).task_id == mine.task_id
    assert await with_whom(backend, theirs) == OTHER


async def test_of_several_tasks_each_is_judged_alone(backend: StorageBackend) -> None:
    executor = Executor(backend)
    for _ in range(3):
        await executor.dispatch()
    kept, missed, late = [await lease(backend, task) for task in await waiting_tasks(backend)]
    assert kept
    assert missed
    assert late

    assert await report(backend, kept.task_id, late.task_id) == 0
    assert await report(backend, kept.task_id) == 1

    assert (await the_waiting_task(backend)).task_id == missed.task_id
    assert await with_whom(backend, kept) == await with_whom(backend, late) == ME
    assert await report(backend, kept.task_id) == 1
    assert [task.task_id for task in await waiting_tasks(backend)] == [
        missed.task_id,
        late.task_id,
    ]


async def test_one_that_went_back_otherwise_is_not_missed_any_more(
    backend: StorageBackend,
) -> None:
    leased = await handed_out(backend, is_confirmed=False)
    assert await report(backend) == 0
    await backend.board.undeliver(leased.task_id, leased.job_id, ME)
    await take(backend)

    assert await report(backend) == 0
    assert await with_whom(backend, leased) == ME
    assert await report(backend) == 1


async def test_a_branch_goes_back_too(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), parallel(a_task(), a_task()))
    first, second = await waiting_tasks(backend)
    for task in (first, second):
        await lease(backend, task)

    assert [await report(backend, second.task_id) for _ in range(2)] == [0, 1]

    assert [task.task_id for task in await waiting_tasks(backend)] == [first.task_id]
    branch = await backend.jobs.branch(claim.job.id, first.task_id)
    assert branch is not None
    again = await take(backend, OTHER)
    assert again.attempt == 1
    event = a_success(backend, again.task_id, OTHER)
    assert await backend.board.end_lease(claim.job.id, OTHER, event) is ResultAnswer.APPLIED


async def test_tasks_of_every_partition_go_back(open_backend: Open) -> None:
    backend = await open_backend(partitions=3)
    executor = Executor(backend)
    for partition in range(3):
        await executor.dispatch(job=a_job(backend, partition=partition))
    tasks = await waiting_tasks(backend)
    for task in tasks:
        await lease(backend, task)

    assert [await report(backend, tasks[0].task_id) for _ in range(2)] == [0, 2]

    assert {task.task_id for task in await waiting_tasks(backend)} == {
        task.task_id for task in tasks[1:]
    }


async def test_the_worker_has_its_place_again(backend: StorageBackend) -> None:
    registered = await backend.workers.register(ME, {}, 60.0)
    await Executor(backend).dispatch()
    task = await the_waiting_task(backend)
    async with backend.liveness.keep("gateway-1"):
        until = backend.clock.now() + 30.0
        await backend.workers.announce_credit(ME, "poll-1", "gateway-1", until, 60.0)
        await backend.workers.match([(ME, task)])
        await take(backend, incarnation=registered.incarnation)
        await relay_all(backend)
        assert await places_taken(backend) == 1

        assert [await report(backend) for _ in range(2)] == [0, 1]
        await relay_all(backend)

        assert await places_taken(backend) == 0
    beat = await backend.workers.beat(ME, None, 60.0)
    assert beat is not None
    assert list(beat.cancel_task_ids) == []


async def places_taken(backend: StorageBackend) -> int:
    worker = await backend.workers.get(ME)
    assert worker is not None
    return worker.places.held


async def test_the_result_of_who_never_got_it_does_not_count(backend: StorageBackend) -> None:
    """R15."""
    leased = await handed_out(backend, is_confirmed=True)
    assert [await report(backend) for _ in range(2)] == [0, 1]

    event = a_success(backend, leased.task_id)
    answer = await backend.board.end_lease(leased.job_id, ME, event)

    assert answer is ResultAnswer.WORKER_MISMATCH
    assert (await the_waiting_task(backend)).task_id == leased.task_id


async def test_a_report_is_about_all_tasks_however_many_they_are(backend: StorageBackend) -> None:
    await Executor(backend).fan_out(600)
    while await fire(backend):
        pass
    while waiting := await waiting_tasks(backend):
        for task in waiting:
            await lease(backend, task)

    missed = await report(backend)

    assert (missed, await report(backend)) == (0, 600)
    assert await backend.board.length() == 600
