"""Cancel: the mark stands before the answer, whatever else happens at that moment."""

import asyncio

import pytest

from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    DropAnswer,
    JobIsTerminal,
    ResultAnswer,
    StaleJob,
    StorageBackend,
)
from avtomatika_common.records import unpack_fact
from avtomatika_core.events import CancelRequested, JobCreated
from avtomatika_core.job import JobStatus, WorkerId
from avtomatika_core.outcomes import DispatchTask
from tests.contract.builders import (
    APPROVAL,
    TO_NEXT,
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    lease,
    next_due,
    relay_all,
    take,
    the_waiting_task,
)
from tests.contract.conftest import Open


async def test_a_cancel_stops_the_running_handler_s_claim(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    assert not await backend.jobs.request_cancel(claim.job.id, a_cancel(backend, "why"))

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job.cancelled
    assert stored.job.run == claim.job.run + 1
    assert not await backend.jobs.is_wanted(claim.job.id, claim.job.run)
    assert not await backend.jobs.is_wanted(claim.job.id, stored.job.run)
    with pytest.raises(StaleJob):
        await executor.run(claim, TO_NEXT)
    assert await backend.inbox.drop(claim.delivery) is DropAnswer.DROPPED

    delivery = await executor.read()
    assert isinstance(delivery.event, CancelRequested)
    assert delivery.event.reason == "why"
    assert stored.claim == delivery.entry_id
    ended = await executor.apply(delivery)
    assert ended.job.status is JobStatus.CANCELLED
    assert await backend.inbox.length() == 0


async def test_cancelling_again_changes_nothing(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    marked = await backend.jobs.load(claim.job.id)

    await asyncio.gather(
        *(backend.jobs.request_cancel(claim.job.id, a_cancel(backend)) for _ in range(5))
    )

    again = await backend.jobs.load(claim.job.id)
    assert marked is not None
    assert again is not None
    assert again.fence == marked.fence
    assert len(await executor.read_all()) == 1


async def test_an_ended_job_cannot_be_cancelled(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.end(await executor.start())

    with pytest.raises(JobIsTerminal) as raised:
        await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    assert raised.value.status == "finished"
    assert await backend.inbox.length() == 0


async def test_a_job_that_has_not_begun_is_cancelled(backend: StorageBackend) -> None:
    executor = Executor(backend)
    job = a_job(backend)
    await backend.jobs.create(job)
    await backend.jobs.request_cancel(job.id, a_cancel(backend))

    cancel, created = await executor.read(), await executor.read()
    ended = await executor.apply(cancel)

    assert ended.job.status is JobStatus.CANCELLED
    assert isinstance(created.event, JobCreated)
    assert await backend.inbox.drop(created) is DropAnswer.DROPPED
    assert await backend.inbox.length() == 0


async def test_no_task_of_a_cancelled_job_is_handed_out(backend: StorageBackend) -> None:  # R40
    executor = Executor(backend)
    claim = await executor.dispatch()
    task = await the_waiting_task(backend)

    assert not await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    assert await lease(backend, task) is None
    await executor.apply(await executor.read())
    assert await backend.board.length() == 0
    assert await next_due(backend) is None


@pytest.mark.parametrize("has_answered", [False, True])
async def test_a_cancel_says_that_a_worker_has_the_task_and_stops_it(
    backend: StorageBackend, has_answered: bool
) -> None:
    """Whose result came first has nothing left to stop."""
    worker = WorkerId("worker-1")
    await backend.workers.register(worker, {}, 60.0)
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)

    assert await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    for _ in range(2 if has_answered else 0):
        event = a_success(backend, claim.task_id)
        answer = await backend.board.end_lease(claim.job.id, worker, event)
        assert answer is ResultAnswer.JOB_CANCELLED
    await executor.apply(await executor.read())
    assert await next_due(backend) is None
    await relay_all(backend)
    beat = await backend.workers.beat(worker, None, 60.0)
    assert beat is not None
    assert beat.cancel_task_ids == ([] if has_answered else [claim.task_id])
    assert beat.held == 0


@pytest.mark.parametrize("attempt", range(5))
async def test_either_the_cancel_or_the_offer_comes_first(
    backend: StorageBackend, attempt: int
) -> None:
    claim = await Executor(backend).dispatch()
    task = await the_waiting_task(backend)

    leased, *held = await asyncio.gather(
        lease(backend, task),
        *(backend.jobs.request_cancel(claim.job.id, a_cancel(backend)) for _ in range(attempt + 1)),
    )

    assert bool(held[-1]) == (leased is not None)


async def test_a_branch_with_a_worker_counts_as_held(backend: StorageBackend) -> None:
    claim = await Executor(backend).fan_out(3)
    first = (await backend.board.heads(0, 1))[0]
    await lease(backend, first)

    assert await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))


async def test_a_cancelled_approval_is_closed(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), APPROVAL)
    job_id, token = claim.job.id, str(claim.job.run)
    await backend.jobs.request_cancel(job_id, a_cancel(backend))

    with pytest.raises(ApprovalNotOpen):  # also before anybody has acted on the cancel
        await backend.jobs.decide_approval(job_id, token=token, decision="yes", at=1.0)

    ended = await executor.apply(await executor.read())
    assert ended.job.status is JobStatus.CANCELLED
    assert await executor.read_all() == []
    assert await next_due(backend) is None


async def test_a_job_that_goes_on_after_a_cancel_is_like_any_other(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(transitions={"cancelled": "clean-up"}))
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    cleaning = await executor.apply(await executor.read())

    assert cleaning.job.state == "clean-up"
    assert await backend.jobs.is_wanted(claim.job.id, cleaning.job.run)
    waiting = await executor.run(cleaning, DispatchTask(task=a_task()))
    assert await lease(backend) is not None
    assert await backend.jobs.request_cancel(waiting.job.id, a_cancel(backend))
    assert (await executor.apply(await executor.read())).job.status is JobStatus.CANCELLED


async def test_a_cancelled_job_s_facts_stay_in_order(open_backend: Open) -> None:
    backend = await open_backend(keep_facts=True)
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), TO_NEXT)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    await executor.apply(await executor.read())

    facts = [unpack_fact(entry.payload) for entry in await backend.facts.read("history-1", 100)]
    assert facts[-1].fact.kind == "job_completed"
    assert [fact.order for fact in facts] == sorted({fact.order for fact in facts})
