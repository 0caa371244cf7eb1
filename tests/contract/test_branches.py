"""Fan-outs: opened whole or not at all, joined once, whatever order the branches end in."""

import asyncio

import pytest

from avtomatika_common.backend.ports import Delivery, LostClaim, StaleJob, StorageBackend
from avtomatika_core.events import BranchesDone, TaskSucceeded, TimerFired
from avtomatika_core.job import BranchesWait, BranchResult, JobStatus, TaskId, WorkerId
from tests.contract.builders import (
    TO_NEXT,
    Claim,
    Executor,
    a_cancel,
    a_failure,
    a_success,
    a_task,
    fire,
    lease,
    next_due,
    parallel,
    waiting_tasks,
)
from tests.contract.conftest import PassTime

ME = WorkerId("worker-1")


async def finish_all(backend: StorageBackend, claim: Claim) -> list[TaskId]:
    """Every branch's task is done by a worker; their ids, last first."""
    tasks = list(reversed(await waiting_tasks(backend)))
    for task in tasks:
        await lease(backend, task)
        await backend.board.end_lease(claim.job.id, ME, a_success(backend, task.task_id))
    return [task.task_id for task in tasks]


async def test_a_fan_out_is_on_the_board_as_a_whole(backend: StorageBackend) -> None:
    claim = await Executor(backend).fan_out(8)

    tasks = await waiting_tasks(backend)
    view = await backend.jobs.view(claim.job.id)

    assert len(tasks) == 8
    assert view is not None
    assert view.branches == [task.task_id for task in tasks]
    assert view.job.status is JobStatus.WAITING_FOR_PARALLEL_TASKS
    first = await backend.jobs.branch(claim.job.id, tasks[0].task_id)
    assert first is not None
    assert first.request.params == {"number": 0}


async def test_a_refused_fan_out_leaves_nothing(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    late = await backend.jobs.load(claim.job.id)
    assert late is not None
    await executor.run(claim, TO_NEXT)

    with pytest.raises(StaleJob):
        await executor.fan_out(8, Claim(late, claim.delivery))

    view = await backend.jobs.view(claim.job.id)
    assert view is not None
    assert view.branches == []
    assert await waiting_tasks(backend) == []
    assert await next_due(backend) is None


async def test_branches_that_end_together_wake_the_job_once(backend: StorageBackend) -> None:
    """R11."""
    executors = [Executor(backend, f"executor-{number}") for number in range(4)]
    claim = await executors[0].fan_out(8)
    asked = [task.task_id for task in await waiting_tasks(backend)]
    await finish_all(backend, claim)
    reads = [
        (executor, delivery)
        for executor in executors
        for delivery in await backend.inbox.read("default", executor.name, 2)
    ]
    rest = [(executors[0], delivery) for delivery in await executors[0].read_all()]
    assert all(delivery.is_branch for _, delivery in reads + rest)

    await asyncio.gather(*(executor.settle(delivery) for executor, delivery in reads + rest))

    [done] = await executors[0].read_all()
    assert done.event == BranchesDone(at=done.event.at if done.event else 0, token=token_of(claim))
    assert not done.is_branch
    results = await backend.jobs.branch_results(claim.job.id)
    assert list(results) == asked
    assert [result.index for result in results.values()] == list(range(8))
    joined = await executors[0].apply(done)
    assert (joined.job.state, joined.job.head.aggregating) == ("join", True)
    assert await backend.inbox.length() == 1  # the claim of the aggregator


def token_of(claim: Claim) -> str:
    wait = claim.job.head.wait
    assert isinstance(wait, BranchesWait)
    return wait.token


async def read_branch_event(backend: StorageBackend, executor: Executor, claim: Claim) -> Delivery:
    """The first branch's task is done."""
    task = (await waiting_tasks(backend))[0]
    await lease(backend, task)
    await backend.board.end_lease(claim.job.id, ME, a_success(backend, task.task_id))
    return await executor.read()


async def test_a_branch_is_settled_once(backend: StorageBackend) -> None:
    """R15."""
    executor = Executor(backend)
    claim = await executor.fan_out(2)
    delivery = await read_branch_event(backend, executor, claim)
    assert isinstance(delivery.event, TaskSucceeded)
    task_id = delivery.event.task_id
    await executor.settle(delivery)
    assert await backend.jobs.branch(claim.job.id, task_id) is None

    with pytest.raises(LostClaim):  # its answer was lost: the entry is answered already
        await backend.jobs.settle_branch(
            delivery, task_id, BranchResult(index=0, result={}), token=token_of(claim)
        )

    view = await backend.jobs.view(claim.job.id)
    assert view is not None
    assert len(view.branches) == 1
    assert len(view.results) == 1
    assert await executor.read_all() == []


async def test_an_event_of_a_branch_that_is_not_open_is_answered(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.fan_out(2)
    delivery = await read_branch_event(backend, executor, claim)

    await backend.jobs.settle_branch(
        delivery,
        TaskId("not-a-branch"),
        BranchResult(index=0, result={}),
        token=token_of(claim),
    )

    view = await backend.jobs.view(claim.job.id)
    assert view is not None
    assert len(view.branches) == 2
    assert view.results == {}
    assert await executor.pending() == []


async def test_who_lost_the_entry_settles_nothing(backend: StorageBackend) -> None:
    dead = Executor(backend, "executor-dead")
    claim = await dead.fan_out(1)
    delivery = await read_branch_event(backend, dead, claim)
    [taken] = await backend.inbox.take_over("default", dead.name, "executor-1", 1)

    with pytest.raises(LostClaim):
        await dead.settle(delivery)

    assert await backend.jobs.branch_results(claim.job.id) == {}
    assert taken.is_branch
    executor = Executor(backend)
    await executor.settle(taken)
    assert isinstance((await executor.read()).event, BranchesDone)


async def test_a_failed_branch_is_tried_again_under_a_new_task(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.fan_out(1)
    [first] = await waiting_tasks(backend)
    await lease(backend, first)
    await backend.board.end_lease(claim.job.id, ME, a_failure(backend, first.task_id))

    await executor.settle(await executor.read())

    assert await waiting_tasks(backend) == []
    assert await backend.jobs.branch(claim.job.id, first.task_id) is None
    assert await next_due(backend) is not None
    await pass_time(0.07)
    assert await fire(backend) == 1
    due = await executor.read()
    assert isinstance(due.event, TimerFired)
    assert due.is_branch
    await executor.settle(due)

    [second] = await waiting_tasks(backend)
    branch = await backend.jobs.branch(claim.job.id, second.task_id)
    assert branch is not None
    assert (branch.index, branch.attempt, branch.is_waiting) == (0, 2, False)
    await finish_all(backend, claim)
    await executor.settle(await executor.read())
    assert isinstance((await executor.read()).event, BranchesDone)
    assert await next_due(backend) is None


async def test_a_cancelled_fan_out_leaves_nothing_open(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.fan_out(4)
    first, second, *_ = await waiting_tasks(backend)
    await lease(backend, first)
    await backend.board.end_lease(claim.job.id, ME, a_failure(backend, first.task_id))
    await executor.settle(await executor.read())  # one waits for its next attempt
    await lease(backend, second)  # one is with a worker

    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    ended = await executor.apply(await executor.read())

    assert ended.job.status is JobStatus.CANCELLED
    assert await waiting_tasks(backend) == []
    assert await next_due(backend) is None
    await pass_time(0.2)
    assert await fire(backend) == 0
    assert await executor.read_all() == []


async def test_a_branch_of_a_job_with_the_cancel_mark_is_not_settled(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.fan_out(1)
    delivery = await read_branch_event(backend, executor, claim)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    await executor.settle(delivery)

    events = [delivery.event for delivery in await executor.read_all()]
    assert [type(event).__name__ for event in events] == ["CancelRequested"]


async def test_a_branch_that_was_closed_meanwhile_is_not_settled(backend: StorageBackend) -> None:
    """R15: who settles it has read it while it was open."""
    executor = Executor(backend)
    claim = await executor.fan_out(2)
    delivery = await read_branch_event(backend, executor, claim)
    assert isinstance(delivery.event, TaskSucceeded)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    await executor.apply(await executor.read())
    before = await backend.jobs.view(claim.job.id)

    await backend.jobs.settle_branch(
        delivery, delivery.event.task_id, BranchResult(index=0, result={}), token=token_of(claim)
    )

    assert await backend.jobs.view(claim.job.id) == before
    assert await backend.jobs.branch_results(claim.job.id) == {}
    assert await backend.inbox.length() == 0


async def test_a_second_fan_out_forgets_the_first_one_s_results(backend: StorageBackend) -> None:
    """R11, R13."""
    executor = Executor(backend)
    claim = await executor.fan_out(3)
    first = await finish_all(backend, claim)
    for delivery in await executor.read_all():
        await executor.settle(delivery)
    joined = await executor.apply(await executor.read())
    assert set(await backend.jobs.branch_results(claim.job.id)) == set(first)

    again = await executor.run(joined, parallel(a_task()))

    assert await backend.jobs.branch_results(claim.job.id) == {}
    await finish_all(backend, again)
    await executor.settle(await executor.read())
    assert isinstance((await executor.read()).event, BranchesDone)
    assert len(await backend.jobs.branch_results(claim.job.id)) == 1
