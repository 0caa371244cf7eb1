"""The inbox: every entry is answered by one consumer, whoever dies or loses a reply meanwhile."""

import asyncio

import pytest

from avtomatika_common.backend.ports import DropAnswer, LostClaim, StorageBackend
from avtomatika_core.events import JobCreated, TaskSucceeded
from avtomatika_core.job import JobStatus, WorkerId
from avtomatika_core.outcomes import DispatchTask
from tests.contract.builders import (
    TO_NEXT,
    Claim,
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    fire,
    next_due,
    take,
)
from tests.contract.conftest import Bench, Open, PassTime

DEAD, MINE = "executor-dead", "executor-1"


async def a_task_s_event(backend: StorageBackend, executor: Executor) -> Claim:
    """A job whose task ended; the event is in the inbox."""
    claim = await executor.dispatch()
    await take(backend)
    await backend.board.end_lease(
        claim.job.id, WorkerId("worker-1"), a_success(backend, claim.task_id)
    )
    return claim


# --- reading and answering


async def test_events_of_started_jobs_come_before_new_jobs(backend: StorageBackend) -> None:
    executor = Executor(backend)
    started = await a_task_s_event_behind_a_new_job(backend, executor)

    first, second = await executor.read(), await executor.read()

    assert first.job_id == started.job.id
    assert (first.lane, second.lane) == ("in", "new")


async def a_task_s_event_behind_a_new_job(backend: StorageBackend, executor: Executor) -> Claim:
    claim = await executor.dispatch()
    await take(backend)
    await backend.jobs.create(a_job(backend))
    await backend.board.end_lease(
        claim.job.id, WorkerId("worker-1"), a_success(backend, claim.task_id)
    )
    return claim


async def test_an_entry_is_pending_until_it_is_answered(backend: StorageBackend) -> None:
    """R3."""
    executor = Executor(backend)
    await a_task_s_event(backend, executor)

    delivery = await executor.read()
    assert [mine.entry_id for mine in await executor.pending()] == [delivery.entry_id]
    assert await executor.read_all() == []
    assert await backend.inbox.length() == 1

    assert await backend.inbox.drop(delivery) is DropAnswer.DROPPED
    assert await executor.pending() == []
    assert await backend.inbox.length() == 0
    assert await backend.inbox.drop(delivery) is DropAnswer.LOST


async def test_an_entry_whose_reply_was_lost_is_found_by_its_living_consumer(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    job = a_job(backend)
    await backend.jobs.create(job)
    await executor.read()  # and nothing of it arrived

    [found] = await executor.pending()

    assert found.job_id == job.id
    assert found.event == JobCreated(at=job.origin.created_at)
    assert (await executor.apply(found)).job.status is JobStatus.RUNNING


async def test_pending_entries_come_oldest_first(backend: StorageBackend) -> None:
    executor = Executor(backend)
    jobs = [a_job(backend) for _ in range(20)]
    for job in jobs:
        await backend.jobs.create(job)

    read = await executor.read_all()

    assert [delivery.job_id for delivery in read] == [job.id for job in jobs]
    assert [delivery.job_id for delivery in await executor.pending()] == [job.id for job in jobs]


async def test_consumers_share_what_comes(backend: StorageBackend) -> None:
    executors = [Executor(backend, f"executor-{number}") for number in range(4)]
    jobs = [a_job(backend) for _ in range(40)]
    for job in jobs:
        await backend.jobs.create(job)

    reads = await asyncio.gather(
        *(backend.inbox.read("default", executor.name, 10) for executor in executors)
    )
    found = [delivery.job_id for read in reads for delivery in read]

    assert len(found) == len(set(found))
    rest = await executors[0].read_all()
    assert {*found, *(delivery.job_id for delivery in rest)} == {job.id for job in jobs}


async def test_a_reader_is_given_at_most_one_entry_more_than_it_has_room_for(
    backend: StorageBackend,
) -> None:
    for _ in range(10):
        await backend.jobs.create(a_job(backend))

    read = await backend.inbox.read("default", MINE, 3)

    assert 1 <= len(read) <= 4


async def test_a_waiting_reader_wakes_when_a_job_is_created(open_backend: Open) -> None:
    backend = await open_backend(block_seconds=30)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        readers = [group.create_task(Executor(backend, f"e{n}").read()) for n in range(3)]
        await asyncio.sleep(0)
        for _ in readers:
            await backend.jobs.create(a_job(backend))

    assert len({reader.result().job_id for reader in readers}) == 3


async def test_a_reader_waits_only_so_long(backend: StorageBackend) -> None:
    async with asyncio.timeout(5):
        assert await backend.inbox.read("default", MINE, 1) == []


async def test_groups_have_inboxes_of_their_own(backend: StorageBackend) -> None:
    job = a_job(backend, group="gpu")
    await backend.jobs.create(job)

    assert await Executor(backend).read_all() == []
    assert (await Executor(backend, group="gpu").read()).job_id == job.id


# --- claims


async def test_the_claim_of_a_running_job_is_not_dropped(backend: StorageBackend) -> None:
    """R3."""
    executor = Executor(backend)
    claim = await executor.start()

    assert await backend.inbox.drop(claim.delivery) is DropAnswer.CARRIES

    assert (await executor.run(claim, TO_NEXT)).job.state == "next"


async def test_a_late_entry_of_a_running_job_is_dropped(backend: StorageBackend) -> None:
    executor = Executor(backend)
    transitions = {"success": "next", "cancelled": "clean-up"}
    claim = await executor.dispatch(a_task(transitions=transitions))
    await take(backend)
    event = a_success(backend, claim.task_id)
    await backend.board.end_lease(claim.job.id, WorkerId("worker-1"), event)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    late, cancel = await executor.read_all()
    running = await executor.apply(cancel)
    assert running.job.state == "clean-up"

    assert await backend.inbox.drop(late) is DropAnswer.DROPPED
    assert await backend.inbox.drop(cancel) is DropAnswer.CARRIES


async def test_a_dead_consumer_s_entries_are_taken_over(backend: StorageBackend) -> None:
    claim = await Executor(backend, DEAD).start()
    executor = Executor(backend, MINE)

    [taken] = await backend.inbox.take_over("default", DEAD, MINE, 10)

    assert taken.entry_id == claim.delivery.entry_id
    assert taken.consumer == MINE
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.claim == taken.entry_id
    assert stored.tries == 1
    after = await executor.run(Claim(stored, taken), TO_NEXT)
    assert after.job.state == "next"
    reloaded = await backend.jobs.load(claim.job.id)
    assert reloaded is not None
    assert reloaded.tries == 0


async def test_an_event_nobody_can_read_is_taken_over_with_the_others(
    backend: StorageBackend, bench: Bench
) -> None:
    dead = Executor(backend, DEAD)
    claim = await a_task_s_event(backend, dead)
    await bench.hands().spoil_events()
    other = a_job(backend)
    await backend.jobs.create(other)
    await dead.read_all()

    taken = await backend.inbox.take_over("default", DEAD, MINE, 10)

    assert {delivery.job_id: delivery.event is None for delivery in taken} == {
        claim.job.id: True,
        other.id: False,
    }
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.tries == 1
    assert await backend.inbox.pending("default", DEAD) == []


async def test_tries_count_up_while_nobody_commits(backend: StorageBackend) -> None:
    claim = await Executor(backend, "dead-0").start()

    for number in range(3):
        await backend.inbox.take_over("default", f"dead-{number}", f"dead-{number + 1}", 10)

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.tries == 3


async def test_nothing_is_taken_from_a_consumer_that_is_alive(backend: StorageBackend) -> None:
    async with backend.liveness.keep(DEAD):
        claim = await Executor(backend, DEAD).start()

        assert await backend.inbox.take_over("default", DEAD, MINE, 10) == []
        stored = await backend.jobs.load(claim.job.id)
        assert stored is not None
        assert stored.tries == 0

    assert len(await backend.inbox.take_over("default", DEAD, MINE, 10)) == 1


async def test_only_so_many_are_taken_over(backend: StorageBackend) -> None:
    dead = Executor(backend, DEAD)
    for _ in range(5):
        await backend.jobs.create(a_job(backend))
    await dead.read_all()

    first = await backend.inbox.take_over("default", DEAD, MINE, 3)
    second = await backend.inbox.take_over("default", DEAD, MINE, 3)

    assert (len(first), len(second)) == (3, 2)
    assert len({delivery.entry_id for delivery in first + second}) == 5


async def test_one_of_many_takes_over_each_entry(backend: StorageBackend) -> None:
    dead = Executor(backend, DEAD)
    for _ in range(10):
        await backend.jobs.create(a_job(backend))
    await dead.read_all()

    taken = await asyncio.gather(
        *(backend.inbox.take_over("default", DEAD, f"executor-{n}", 10) for n in range(5))
    )

    ids = [delivery.entry_id for mine in taken for delivery in mine]
    assert len(ids) == len(set(ids)) == 10


async def test_who_lost_its_claim_writes_nothing(backend: StorageBackend) -> None:
    """R4."""
    paused = Executor(backend, DEAD)
    claim = await paused.start()
    [taken] = await backend.inbox.take_over("default", DEAD, MINE, 10)

    with pytest.raises(LostClaim):
        await paused.run(claim, TO_NEXT)
    assert await backend.inbox.drop(claim.delivery) is DropAnswer.LOST
    for answer in (
        backend.inbox.defer(claim.delivery, 1.0),
        backend.inbox.forward(claim.delivery, "gpu"),
        backend.inbox.set_aside(claim.delivery, "why"),
    ):
        with pytest.raises(LostClaim):
            await answer

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job == claim.job
    assert (await Executor(backend, MINE).run(Claim(stored, taken), TO_NEXT)).job.state == "next"


async def test_the_lost_commit_of_a_dead_writer_is_not_applied_twice(
    backend: StorageBackend,
) -> None:
    """Killed between its commit and the next step: who takes over goes on, not back."""
    after = await Executor(backend, DEAD).run(await Executor(backend, DEAD).start(), TO_NEXT)

    [taken] = await backend.inbox.take_over("default", DEAD, MINE, 10)

    stored = await backend.jobs.load(taken.job_id)
    assert stored is not None
    assert stored.job == after.job
    assert stored.claim == taken.entry_id
    assert await backend.inbox.drop(taken) is DropAnswer.CARRIES


# --- consumers that are gone


async def test_a_consumer_with_pending_entries_is_not_removed(backend: StorageBackend) -> None:
    await Executor(backend, DEAD).start()

    assert not await backend.inbox.remove_consumer("default", DEAD)

    [consumer] = await backend.inbox.consumers("default")
    assert (consumer.name, consumer.pending, consumer.is_alive) == (DEAD, 1, False)
    assert len(await backend.inbox.take_over("default", DEAD, MINE, 10)) == 1
    assert await backend.inbox.remove_consumer("default", DEAD)
    assert [consumer.name for consumer in await backend.inbox.consumers("default")] == [MINE]


async def test_a_living_consumer_is_not_removed(backend: StorageBackend) -> None:
    async with backend.liveness.keep(MINE):
        executor = Executor(backend)
        await executor.end(await executor.start())  # Redis 7.0 knows who has read something

        assert not await backend.inbox.remove_consumer("default", MINE)

        [consumer] = await backend.inbox.consumers("default")
        assert consumer.is_alive


# --- handing on


async def test_a_forwarded_entry_reaches_the_other_group_and_the_claim_follows(
    backend: StorageBackend,
) -> None:
    executor, other = Executor(backend), Executor(backend, "gpu-1", "gpu")
    claim = await executor.start()

    await backend.inbox.forward(claim.delivery, "gpu")

    assert await executor.pending() == []
    delivery = await other.read()
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.claim == delivery.entry_id
    assert stored.tries == 0
    assert await backend.inbox.drop(delivery) is DropAnswer.CARRIES
    assert (await other.run(Claim(stored, delivery), TO_NEXT)).job.state == "next"


async def test_a_forwarded_job_s_later_events_go_to_its_new_group(backend: StorageBackend) -> None:
    executor, other = Executor(backend), Executor(backend, "gpu-1", "gpu")
    await backend.jobs.create(a_job(backend))
    await backend.inbox.forward(await executor.read(), "gpu")

    moved = await other.read()
    claim = await other.run(await other.apply(moved), a_dispatch())
    await take(backend)
    await backend.board.end_lease(
        claim.job.id, WorkerId("worker-1"), a_success(backend, claim.task_id)
    )

    assert isinstance((await other.read()).event, TaskSucceeded)
    assert await executor.read_all() == []


async def test_a_deferred_entry_comes_again_later_and_the_claim_follows(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R3."""
    executor = Executor(backend)
    claim = await executor.start()

    await backend.inbox.defer(claim.delivery, 0.05)

    assert await executor.pending() == []
    assert await fire(backend) == 0
    assert await next_due(backend) is not None
    await pass_time(0.06)
    assert await fire(backend) == 1
    delivery = await executor.read()
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.claim == delivery.entry_id
    assert stored.tries == 0
    assert delivery.event == claim.delivery.event
    assert (await executor.run(Claim(stored, delivery), TO_NEXT)).job.state == "next"


async def test_an_entry_set_aside_is_answered(backend: StorageBackend) -> None:
    executor = Executor(backend)
    await a_task_s_event(backend, executor)
    delivery = await executor.read()

    await backend.inbox.set_aside(delivery, "undecodable")

    assert await executor.pending() == []
    assert await backend.inbox.length() == 0


def a_dispatch() -> DispatchTask:
    return DispatchTask(task=a_task())
