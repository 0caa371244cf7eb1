"""Dead events: an entry that was set aside can be seen, replayed and forgotten."""

import pytest

from avtomatika_common.backend.ports import DEAD_EVENTS_KEPT, DeadEvent, LostClaim, StorageBackend
from avtomatika_core.events import JobSetAside, TaskSucceeded
from avtomatika_core.job import JobId, JobStatus, WorkerId
from avtomatika_core.machine import step
from tests.contract.builders import (
    RULES,
    TO_NEXT,
    Claim,
    Executor,
    a_job,
    a_success,
    a_task,
    fire,
    next_due,
    parallel,
    take,
)
from tests.contract.conftest import Open, PassTime


async def quarantine(backend: StorageBackend, claim: Claim, reason: str = "why") -> Claim:
    """The entry is set aside, and its job ends in quarantine."""
    at = backend.clock.now()
    made = step(claim.job, JobSetAside(at=at, reason=reason), RULES)
    stored = await backend.jobs.commit(claim.stored, made, claim.delivery, set_aside=reason)
    return Claim(stored, claim.delivery)


async def the_dead_event(backend: StorageBackend) -> DeadEvent:
    [dead] = await backend.dead_events.newest(10)
    return dead


async def a_branch_done(executor: Executor) -> tuple[JobId, TaskSucceeded]:
    """A job with two branches, and the result of one, which is on its way to it."""
    backend = executor.backend
    waiting = await executor.run(await executor.start(), parallel(a_task(), a_task()))
    task = (await backend.board.heads(0, 1))[0]
    await backend.board.lease(task.task_id, task.job_id, 1, WorkerId("worker-1"), 1)
    event = a_success(backend, task.task_id)
    await backend.board.end_lease(task.job_id, WorkerId("worker-1"), event)
    return waiting.job.id, event


async def test_an_entry_set_aside_is_among_the_dead_events(backend: StorageBackend) -> None:
    executor = Executor(backend)
    job = a_job(backend)
    await backend.jobs.create(job)
    before = backend.clock.now()

    await backend.inbox.set_aside(await executor.read(), "undecodable")

    dead = await the_dead_event(backend)
    assert (dead.job_id, dead.reason) == (job.id, "undecodable")
    assert dead.event == {"event": "job_created", "at": job.origin.created_at}
    assert before - 1 < dead.at < backend.clock.now() + 1


async def test_a_replayed_entry_comes_again(backend: StorageBackend) -> None:
    """R62."""
    executor = Executor(backend)
    await backend.jobs.create(a_job(backend))
    first = await executor.read()
    await backend.inbox.set_aside(first, "no")

    assert await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    again = await executor.read()
    assert (again.job_id, again.event, again.lane) == (first.job_id, first.event, first.lane)
    assert await backend.dead_events.newest(10) == []


async def test_a_deleted_dead_event_is_gone(backend: StorageBackend) -> None:
    executor = Executor(backend)
    await backend.jobs.create(a_job(backend))
    await backend.inbox.set_aside(await executor.read(), "no")
    dead = await the_dead_event(backend)

    assert await backend.dead_events.delete(dead.dead_id)

    assert not await backend.dead_events.delete(dead.dead_id)
    assert not await backend.dead_events.replay(dead.dead_id)
    assert await executor.read_all() == []


@pytest.mark.parametrize(
    "dead_id", ["", "x", "0-1", "0-1-2", "7-1-2", "0-1-2-3", "0-99999999999999999999-0"]
)
async def test_what_is_no_dead_event_is_not_replayed(backend: StorageBackend, dead_id: str) -> None:
    assert not await backend.dead_events.replay(dead_id)
    assert not await backend.dead_events.delete(dead_id)


async def test_the_newest_come_first_from_all_partitions(open_backend: Open) -> None:
    backend = await open_backend(partitions=2)
    executor = Executor(backend)
    jobs = [a_job(backend, partition=number % 2) for number in range(5)]
    for job in jobs:
        await backend.jobs.create(job)
        await backend.inbox.set_aside(await executor.read(), "no")

    dead = await backend.dead_events.newest(3)

    assert {one.job_id for one in dead} <= {job.id for job in jobs}
    assert len(dead) == 3
    assert len(await backend.dead_events.newest(10)) == 5


async def test_only_so_many_are_kept(backend: StorageBackend) -> None:
    """R62."""
    executor = Executor(backend)
    for _ in range(DEAD_EVENTS_KEPT + 5):
        await backend.jobs.create(a_job(backend))
    deliveries = await executor.read_all()
    while len(deliveries) < DEAD_EVENTS_KEPT + 5:
        deliveries += await executor.read_all()
    for delivery in deliveries:
        await backend.inbox.set_aside(delivery, "no")

    dead = await backend.dead_events.newest(DEAD_EVENTS_KEPT + 5)

    assert len(dead) == DEAD_EVENTS_KEPT
    assert dead[0].job_id == deliveries[-1].job_id


# --- with their jobs


async def test_a_job_quarantined_with_its_entry_is_on_the_list_and_answers_it(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    ended = await quarantine(backend, claim)

    assert ended.job.status is JobStatus.QUARANTINED
    assert await backend.jobs.quarantined() == [claim.job.id]
    assert await executor.pending() == []
    assert (await the_dead_event(backend)).job_id == claim.job.id


async def test_who_lost_its_claim_sets_nothing_aside(backend: StorageBackend) -> None:
    claim = await Executor(backend, "dead").start()
    await backend.inbox.take_over("default", "dead", "other", 10)

    with pytest.raises(LostClaim):
        await quarantine(backend, claim)

    assert await backend.dead_events.newest(10) == []


async def test_a_quarantine_that_is_repeated_sets_aside_once(backend: StorageBackend) -> None:
    claim = await Executor(backend).start()

    await quarantine(backend, claim)
    await quarantine(backend, claim)

    assert len(await backend.dead_events.newest(10)) == 1


async def test_replay_makes_a_running_job_run_on_under_the_entry(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    await quarantine(backend, claim)

    await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    delivery = await executor.read()
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job == claim.job
    assert stored.claim == delivery.entry_id
    assert await backend.jobs.quarantined() == []
    assert await backend.jobs.count_by_status() == {JobStatus.RUNNING: 1}
    ended = await executor.end(Claim(stored, delivery))
    assert ended.job.status is JobStatus.FINISHED


async def test_replay_gives_a_job_the_deadline_it_had(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start(a_job(backend, timeout_seconds=60.0))
    deadline = await next_due(backend)
    assert deadline is not None
    await quarantine(backend, claim)
    assert await next_due(backend) is None

    await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    assert await next_due(backend) == pytest.approx(deadline, abs=0.002)


async def test_replay_of_a_result_finds_the_job_waiting_for_it(backend: StorageBackend) -> None:
    executor = Executor(backend)
    waiting = await executor.dispatch()
    await take(backend)
    event = a_success(backend, waiting.task_id)
    await backend.board.end_lease(waiting.job.id, WorkerId("worker-1"), event)
    delivery = await executor.read()
    stored = await backend.jobs.load(waiting.job.id)
    assert stored is not None
    await quarantine(backend, Claim(stored, delivery))

    await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    after = await executor.apply(await executor.read())
    assert (after.job.status, after.job.state) == (JobStatus.RUNNING, "next")


async def test_a_restored_job_does_not_end_with_the_retention_of_its_quarantine(
    open_backend: Open, pass_time: object
) -> None:
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    claim = await executor.start()
    await quarantine(backend, claim)
    await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    await pass_time(1.1)  # type: ignore[operator]

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert (await executor.run(Claim(stored, await executor.read()), TO_NEXT)).job.state == "next"


async def test_replay_leaves_a_job_alone_whose_branches_were_closed(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    job_id, _ = await a_branch_done(executor)
    stored = await backend.jobs.load(job_id)
    assert stored is not None
    await quarantine(backend, Claim(stored, await executor.read()))

    assert await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    after = await backend.jobs.load(job_id)
    assert after is not None
    assert after.job.status is JobStatus.QUARANTINED


async def test_tries_of_deferred_entries_are_counted(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    await backend.inbox.defer(claim.delivery, 1.0, failed=True)

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.tries == 1


async def test_an_event_of_a_branch_counts_its_own_tries_and_begins_anew_when_replayed(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    job_id, event = await a_branch_done(executor)
    tries: list[int] = []
    for _ in range(2):
        delivery = await executor.read()
        tries.append(delivery.tries)
        await backend.inbox.defer(delivery, 0.02, failed=True)
        await pass_time(0.03)
        await fire(backend)
    failed = await executor.read()
    await backend.inbox.set_aside(failed, "no")
    await backend.dead_events.replay((await the_dead_event(backend)).dead_id)

    replayed = await executor.read()

    stored = await backend.jobs.load(job_id)
    assert stored is not None
    assert stored.tries == 0
    assert [*tries, failed.tries, replayed.tries] == [0, 1, 2, 0]
    assert isinstance(replayed.event, TaskSucceeded)
    assert (replayed.event.task_id, replayed.event.data) == (event.task_id, event.data)
    assert replayed.is_branch
