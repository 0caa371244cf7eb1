"""Sub-jobs: made by the parent's commit, in its partition; their end resumes it once."""

import asyncio

import pytest
from msgspec.structs import replace

from avtomatika_common.backend.ports import Delivery, StaleJob, StorageBackend
from avtomatika_core.events import CancelRequested, ChildFinished, JobCreated, JobSetAside
from avtomatika_core.job import ChildWait, JobId, JobStatus
from avtomatika_core.machine import step
from avtomatika_core.outcomes import RunBlueprint
from tests.contract.builders import (
    RULES,
    TO_END,
    TO_NEXT,
    Claim,
    Executor,
    a_cancel,
    a_job,
)
from tests.contract.conftest import Open

CHILD = RunBlueprint(blueprint="c", initial_data={"n": 1}, transitions={"success": "done"})


def child_of(claim: Claim) -> JobId:
    wait = claim.job.head.wait
    assert isinstance(wait, ChildWait)
    return wait.child_id


async def with_child(backend: StorageBackend, executor: Executor) -> tuple[Claim, Delivery]:
    """A parent that waits, and its child's first event."""
    parent = await executor.run(await executor.start(a_job(backend, client="ann")), CHILD)
    return parent, await executor.read()


async def test_a_child_is_made_by_its_parent_s_commit(backend: StorageBackend) -> None:
    executor = Executor(backend)

    parent, delivery = await with_child(backend, executor)

    child = await backend.jobs.load(child_of(parent))
    assert child is not None
    assert delivery.job_id == child.job.id
    assert isinstance(delivery.event, JobCreated)
    assert delivery.lane == "new"
    assert child.job.initial_data == {"n": 1}
    assert child.job.origin.client.name == "ann"
    assert await backend.jobs.count_by_status("ann") == {
        JobStatus.WAITING_FOR_SUB_JOB: 1,
        JobStatus.PENDING: 1,
    }


async def test_a_child_lies_in_its_parent_s_partition(open_backend: Open) -> None:
    backend = await open_backend(partitions=4)
    executor = Executor(backend)
    for partition in range(4):
        claim = await executor.start(a_job(backend, partition=partition))

        await executor.run(claim, CHILD)

        assert (await executor.read()).partition == partition


async def test_a_refused_commit_makes_no_child(backend: StorageBackend) -> None:
    executor = Executor(backend)  # R21
    claim = await executor.start()
    late = await backend.jobs.load(claim.job.id)
    assert late is not None
    await executor.run(claim, TO_NEXT)

    with pytest.raises(StaleJob):
        await executor.run(Claim(late, claim.delivery), CHILD)

    assert await executor.read_all() == []
    assert await backend.jobs.count_by_status() == {JobStatus.RUNNING: 1}


async def test_a_child_s_end_resumes_its_parent_once(backend: StorageBackend) -> None:
    executor = Executor(backend)  # R21
    parent, delivery = await with_child(backend, executor)
    child = await executor.run(await executor.apply(delivery), TO_END)
    last = step(child.job, executor.returned(child, None, context_updates={"r": 1}), RULES)

    for _ in range(2):  # the first answer was lost
        await backend.jobs.commit(child.stored, last, child.delivery)

    [finished] = await executor.read_all()
    assert finished.job_id == parent.job.id
    assert isinstance(finished.event, ChildFinished)
    assert (finished.event.status, finished.event.result) == ("finished", {"r": 1})
    after = await executor.apply(finished)
    assert after.job.state == "done"


@pytest.mark.parametrize("way", ["raises", "is cancelled", "is set aside"])
async def test_a_child_that_ends_badly_resumes_its_parent(
    backend: StorageBackend, way: str
) -> None:  # R17
    executor = Executor(backend)
    parent, delivery = await with_child(backend, executor)
    if way == "raises":
        await executor.raised(await executor.apply(delivery), is_final=True)
    elif way == "is set aside":
        child = await executor.apply(delivery)
        made = step(child.job, JobSetAside(at=backend.clock.now(), reason="why"), RULES)
        await backend.jobs.commit(child.stored, made, delivery, set_aside="why")
    else:
        await backend.jobs.request_cancel(child_of(parent), a_cancel(backend))
        await backend.inbox.drop(delivery)
        await executor.apply(await executor.read())

    event = (await executor.read()).event

    assert isinstance(event, ChildFinished)
    assert event.status == ("cancelled" if way == "is cancelled" else "quarantined")


async def test_cancelling_a_parent_cancels_its_child(backend: StorageBackend) -> None:
    executor = Executor(backend)  # R21
    parent, delivery = await with_child(backend, executor)
    child = await executor.apply(delivery)
    await backend.jobs.request_cancel(parent.job.id, a_cancel(backend))

    ended = await executor.apply(await executor.read())

    assert ended.job.status is JobStatus.CANCELLED
    with pytest.raises(StaleJob):
        await executor.run(child, TO_NEXT)
    told = await executor.read()
    assert told.job_id == child_of(parent)
    assert isinstance(told.event, CancelRequested)
    stored = await backend.jobs.load(told.job_id)
    assert stored is not None
    assert stored.claim == told.entry_id
    assert (await executor.apply(told)).job.status is JobStatus.CANCELLED


async def test_a_child_that_has_ended_is_not_cancelled_any_more(backend: StorageBackend) -> None:
    executor = Executor(backend)
    parent, delivery = await with_child(backend, executor)
    await executor.end(await executor.apply(delivery))
    finished = await executor.read()
    await backend.jobs.request_cancel(parent.job.id, a_cancel(backend))

    await executor.apply(await executor.read())

    assert await executor.read_all() == []
    child = await backend.jobs.load(child_of(parent))
    assert child is not None
    assert child.job.status is JobStatus.FINISHED
    await backend.inbox.drop(finished)
    assert await backend.inbox.length() == 0


async def test_a_hundred_children_resume_a_hundred_parents(backend: StorageBackend) -> None:
    executor = Executor(backend)
    parents = [a_job(backend) for _ in range(100)]
    for parent in parents:
        await backend.jobs.create(parent)
    for delivery in await read_many(executor, 100):
        await executor.run(await executor.apply(delivery), CHILD)
    children = await read_many(executor, 100)

    async def finish(delivery: Delivery) -> None:
        await executor.end(await executor.apply(delivery))

    await asyncio.gather(*(finish(delivery) for delivery in children))

    finished = await read_many(executor, 100)
    assert {delivery.job_id for delivery in finished} == {parent.id for parent in parents}
    assert {type(delivery.event) for delivery in finished} == {ChildFinished}
    assert await executor.read_all() == []


async def read_many(executor: Executor, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    while len(found) < count:
        news = await executor.read_all()
        assert news, f"only {len(found)} came"
        found += news
    return found


async def test_the_end_of_a_child_whose_parent_is_forgotten_goes_nowhere(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    parent, delivery = await with_child(backend, executor)
    child = await executor.run(await executor.apply(delivery), TO_END)
    origin = child.job.origin
    assert origin.parent is not None
    lost = replace(origin.parent, job_id=a_job(backend).id)
    orphan = replace(child.job, origin=replace(origin, parent=lost))

    await executor.run(Claim(replace(child.stored, job=orphan), child.delivery), None)

    assert await executor.read_all() == []
    assert await backend.jobs.is_wanted(parent.job.id, parent.job.run)
