"""Workers: who is registered, what they may be given, and what becomes of it."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    PROMISE_SECONDS,
    Match,
    MatchAnswer,
    Promise,
    ResultAnswer,
    StorageBackend,
    WaitingTask,
)
from avtomatika_core.events import TaskFailed
from avtomatika_core.job import JobId, TaskId, WorkerId
from tests.contract.builders import (
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    fire,
    lease,
    relay_all,
    take,
    the_waiting_task,
    waiting_tasks,
)
from tests.contract.conftest import Open, PassTime
from tests.support import match_one, promised

ME, OTHER = WorkerId("worker-1"), WorkerId("worker-2")
GATEWAY = "gateway-1"
TTL = 60.0


def a_document(**changes: Any) -> dict[str, Any]:
    return {"worker_type": "cpu", "supported_tasks": ["t"], **changes}


def with_places(places: int) -> dict[str, Any]:
    return a_document(resources={"max_concurrent_tasks": places})


def some_task(task_type: str = "t", offer_number: int = 1) -> WaitingTask:
    return WaitingTask(
        task_id=TaskId(ids.new_id()),
        job_id=JobId(ids.new_id()),
        type=task_type,
        resource_requirements=None,
        max_cost=None,
        strategy="default",
        priority=0.0,
        offer_number=offer_number,
    )


async def poll(backend: StorageBackend, poll_id: str = "poll-1", worker: WorkerId = ME) -> int:
    until = backend.clock.now() + 30.0
    incarnation = await backend.workers.announce_credit(worker, poll_id, GATEWAY, until, TTL)
    assert incarnation is not None
    return incarnation


async def held_by(backend: StorageBackend, worker: WorkerId = ME) -> int:
    found = await backend.workers.get(worker)
    assert found is not None
    return found.places.held


# --- registrations


async def test_a_registered_worker_is_live(backend: StorageBackend) -> None:
    document = a_document(extra={"x": [1, None]})

    registered = await backend.workers.register(ME, document, TTL)

    worker = await backend.workers.get(ME)
    assert registered.replaced is None
    assert worker is not None
    assert worker.document == document
    assert worker.places.incarnation == registered.incarnation
    assert (worker.places.room, worker.places.held, worker.turns) == (0, 0, {})
    assert await backend.workers.live() == [worker]
    assert await backend.workers.count() == await backend.get_active_worker_count() == 1
    assert await backend.get_worker_info(ME) == document
    assert await backend.get_available_workers() == [document]


async def test_a_worker_s_document_is_a_copy(backend: StorageBackend) -> None:  # R63
    document = a_document()
    await backend.workers.register(ME, document, TTL)

    document["supported_tasks"].append("mine")
    read = await backend.get_worker_info(ME)
    assert read is not None
    read["supported_tasks"].append("theirs")

    assert await backend.get_worker_info(ME) == a_document()


async def test_a_registration_replaces_the_earlier_one(backend: StorageBackend) -> None:
    first = await backend.workers.register(ME, a_document(only="first"), TTL)
    await poll_alive(backend)

    second = await backend.workers.register(ME, a_document(), TTL)

    assert second.incarnation > first.incarnation
    assert second.replaced == a_document(only="first")
    worker = await backend.workers.get(ME)
    assert worker is not None
    assert worker.document == a_document()
    assert worker.places.room == 0
    assert await backend.workers.count() == 1


async def poll_alive(backend: StorageBackend) -> None:
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)


async def test_of_registrations_at_once_the_newest_counts(backend: StorageBackend) -> None:
    answers = await asyncio.gather(
        *(backend.workers.register(ME, a_document(n=n), TTL) for n in range(8))
    )

    newest = max(range(8), key=lambda n: answers[n].incarnation)
    worker = await backend.workers.get(ME)
    assert worker is not None
    assert worker.document["n"] == newest
    assert len({answer.incarnation for answer in answers}) == 8


async def test_a_registration_ends_with_its_time(
    backend: StorageBackend, pass_time: PassTime
) -> None:  # R49
    await backend.workers.register(ME, a_document(), 0.1)
    await backend.workers.register(OTHER, a_document(), TTL)
    assert await backend.workers.next_expiry() == pytest.approx(backend.clock.now() + 0.1, abs=0.05)

    await pass_time(0.11)

    assert await backend.workers.get(ME) is None
    assert [worker.worker_id for worker in await backend.workers.live()] == [OTHER]
    assert await backend.workers.count() == 1
    assert (await backend.workers.register(ME, a_document(), TTL)).replaced is None


async def test_a_registration_that_ended_is_not_renewed(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await backend.workers.register(ME, a_document(), 0.05)
    await pass_time(0.06)
    assert await backend.workers.expire() == 1

    assert await backend.workers.beat(ME, None, TTL) is None
    assert await backend.workers.announce_credit(ME, "p", GATEWAY, 1e12, TTL) is None
    assert not await backend.workers.leave(ME)


@pytest.mark.parametrize("sign", ["heartbeat", "poll"])
async def test_who_is_late_goes_on_as_before_if_nobody_has_acted_on_it(
    backend: StorageBackend, pass_time: PassTime, sign: str
) -> None:
    """After an outage of everybody all workers are late, and none is lost."""
    registered = await backend.workers.register(ME, a_document(), 0.05)
    claim = await Executor(backend).dispatch()
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)

    if sign == "poll":
        await poll(backend)
    else:
        beat = await backend.workers.beat(ME, None, TTL)
        assert beat is not None

    worker = await backend.workers.get(ME)
    assert worker is not None
    assert worker.places.incarnation == registered.incarnation
    assert await backend.workers.expire() == 0
    assert await backend.relay.return_lost() == 0
    assert await backend.board.holder(claim.job.id, claim.task_id) == ME


@pytest.mark.parametrize("change", ["keep_hold", "stop"])
async def test_what_is_decided_about_a_late_worker_s_task_reaches_it(
    backend: StorageBackend, pass_time: PassTime, change: str
) -> None:
    """Nobody has acted on its lateness: it has the task, and hears of it when it is back."""
    executor = Executor(backend)
    registered = await backend.workers.register(ME, with_places(1), 0.05)
    claim = await executor.dispatch()
    await take(backend, incarnation=registered.incarnation)
    if change == "stop":
        await relay_all(backend)
        await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
        await executor.apply(await executor.read())
    await pass_time(0.06)

    await relay_all(backend)  # while it is late

    beat = await backend.workers.beat(ME, None, TTL)
    assert beat is not None
    if change == "stop":
        assert list(beat.cancel_task_ids) == [claim.task_id]
        return
    assert await held_by(backend) == 1
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)
        assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.FULL


async def test_whoever_matches_hears_of_one_who_is_late(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await backend.workers.register(ME, a_document(), 0.05)
    await pass_time(0.06)
    position = await backend.hints.position("w")

    await backend.workers.beat(ME, None, TTL)

    _, hints, _ = await backend.hints.wait("w", position, 0.05)
    assert [(hint.value, hint.places) for hint in hints] == [(ME, None)]


async def test_who_leaves_late_gives_back_its_tasks_uncounted(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    registered = await backend.workers.register(ME, a_document(), 0.05)
    await Executor(backend).dispatch()
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)

    assert await backend.workers.leave(ME)
    await backend.relay.return_lost()

    assert await backend.board.length() == 1


async def test_the_lease_of_one_who_is_late_keeps_its_place(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    registered = await backend.workers.register(ME, with_places(1), 0.05)
    await Executor(backend).dispatch()
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)

    await relay_all(backend)
    await backend.workers.beat(ME, None, TTL)

    assert await held_by(backend) == 1


async def test_one_who_is_late_is_told_to_stop_when_it_is_heard_of_again(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    registered = await backend.workers.register(ME, a_document(), 0.05)
    claim = await executor.dispatch()
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)

    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    await executor.apply(await executor.read())
    await relay_all(backend)

    beat = await backend.workers.beat(ME, None, TTL)
    assert beat is not None
    assert list(beat.cancel_task_ids) == [claim.task_id]


async def test_a_heartbeat_and_a_poll_renew_it(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await backend.workers.register(ME, a_document(), 0.1)
    await backend.workers.register(OTHER, a_document(), 0.1)
    await backend.workers.beat(ME, None, TTL)
    await poll(backend, worker=OTHER)

    await pass_time(0.11)

    assert await backend.workers.count() == 2
    assert await backend.workers.expire() == 0


async def test_a_heartbeat_changes_what_it_names(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(load=0.1, reputation=1.0), TTL)

    beat = await backend.workers.beat(
        ME, {"load": 0.9, "new": {"a": 1}, "worker_id": "x", "reputation": 9.0}, TTL
    )

    assert beat is not None
    assert beat.document == a_document(load=0.9, new={"a": 1}, reputation=1.0)
    assert list(beat.cancel_task_ids) == []
    assert await backend.get_worker_info(ME) == beat.document


async def test_an_unknown_worker_is_none_everywhere(backend: StorageBackend) -> None:  # R64
    assert await backend.workers.get(ME) is None
    assert await backend.workers.beat(ME, {"load": 1}, TTL) is None
    assert await backend.workers.announce_credit(ME, "p", GATEWAY, 1e12, TTL) is None
    assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.GONE
    assert not await backend.workers.leave(ME)
    assert await backend.workers.next_expiry() is None
    assert await backend.workers.count() == 0


# --- workers that are gone


async def test_an_expired_worker_s_tasks_are_lost(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    registered = await backend.workers.register(ME, a_document(), 0.05)
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)

    assert await backend.workers.expire() == 1
    assert await backend.workers.expire() == 0
    assert await backend.relay.return_lost() == 1
    assert await backend.relay.return_lost() == 0

    [delivery] = await executor.read_all()
    assert isinstance(delivery.event, TaskFailed)
    assert delivery.event.task_id == claim.task_id
    assert await backend.board.length() == 0


async def test_until_its_loss_was_acted_on_an_expired_worker_may_deliver(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    registered = await backend.workers.register(ME, a_document(), 0.05)
    claim = await Executor(backend).dispatch()
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)
    await backend.workers.expire()

    event = a_success(backend, claim.task_id)
    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED

    assert await backend.relay.return_lost() == 1
    assert await backend.inbox.length() == 1


async def test_tasks_of_an_earlier_registration_are_lost(backend: StorageBackend) -> None:
    first = await backend.workers.register(ME, a_document(), TTL)
    executor = Executor(backend)
    await executor.dispatch()
    await take(backend, incarnation=first.incarnation)

    second = await backend.workers.register(ME, a_document(), TTL)
    await executor.dispatch()
    await take(backend, incarnation=second.incarnation)
    assert await backend.relay.return_lost() == 1

    assert [type(d.event) for d in await executor.read_all()] == [TaskFailed]


async def test_tasks_of_a_worker_that_leaves_go_back_uncounted(backend: StorageBackend) -> None:
    registered = await backend.workers.register(ME, a_document(), TTL)
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend, incarnation=registered.incarnation)

    assert await backend.workers.leave(ME)
    assert not await backend.workers.leave(ME)
    assert await backend.relay.return_lost() == 1

    assert await backend.workers.get(ME) is None
    assert (await the_waiting_task(backend)).task_id == claim.task_id
    assert await executor.read_all() == []


async def test_leases_in_every_partition_are_returned(open_backend: Open) -> None:
    backend = await open_backend(partitions=3)
    registered = await backend.workers.register(ME, a_document(), TTL)
    executor = Executor(backend)
    for partition in range(3):
        await executor.dispatch(job=a_job(backend, partition=partition))
    for task in await waiting_tasks(backend):
        await lease(backend, task, incarnation=registered.incarnation)
    await backend.workers.leave(ME)

    assert await backend.relay.return_lost() == 1

    assert await backend.board.length() == 3


# --- matching


async def test_a_match_takes_the_credit_and_tells_the_gateway(backend: StorageBackend) -> None:
    registered = await backend.workers.register(ME, a_document(), TTL)
    task = some_task()
    async with backend.liveness.keep(GATEWAY):
        assert await poll(backend) == registered.incarnation

        assert await match_one(backend.workers, ME, task) is MatchAnswer.MATCHED

        position, mail = await backend.mailbox.read(GATEWAY, "0")
        held_until = mail[0].until if isinstance(mail[0], Match) else 0.0
        assert held_until == pytest.approx(backend.clock.now() + PROMISE_SECONDS, abs=5)
        assert mail == [
            Match(
                poll_id="poll-1",
                worker_id=ME,
                incarnation=registered.incarnation,
                until=held_until,
                promises=[Promise(task_id=task.task_id, job_id=task.job_id, offer_number=1)],
            )
        ]
        assert await backend.mailbox.read(GATEWAY, position) == (position, [])
        worker = await backend.workers.get(ME)
        assert worker is not None
        assert (worker.places.room, worker.places.held) == (0, 1)
        assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.NO_CREDIT


async def test_repeating_a_match_takes_no_second_credit(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    task = some_task()
    async with backend.liveness.keep(GATEWAY):
        for number in range(2):
            await poll(backend, f"poll-{number}")

        answers = [await match_one(backend.workers, ME, task) for _ in range(2)]

        assert answers == [MatchAnswer.MATCHED] * 2
        worker = await backend.workers.get(ME)
        assert worker is not None
        assert (worker.places.room, worker.places.held) == (1, 1)
        assert len((await backend.mailbox.read(GATEWAY, "0"))[1]) == 1


async def test_a_worker_is_never_given_more_than_it_has_room_for(backend: StorageBackend) -> None:
    await backend.workers.register(ME, with_places(2), TTL)  # R47
    async with backend.liveness.keep(GATEWAY):
        for number in range(10):
            await poll(backend, f"poll-{number}")

        answers = await asyncio.gather(
            *(match_one(backend.workers, ME, some_task()) for _ in range(10))
        )

        assert answers.count(MatchAnswer.MATCHED) == 2
        assert answers.count(MatchAnswer.FULL) == 8
        assert await held_by(backend) == 2


async def test_a_draining_worker_gets_nothing(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)
        await backend.workers.beat(ME, {"status": "draining"}, TTL)

        assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.GONE

        await backend.workers.beat(ME, {"status": "idle"}, TTL)
        assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.MATCHED


async def test_polls_of_a_dead_gateway_do_not_count(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)

    worker = await backend.workers.get(ME)
    assert worker is not None
    assert worker.places.room == 0
    assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.NO_CREDIT


async def test_a_withdrawn_or_overdue_poll_is_no_credit(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "poll-1")
        soon = backend.clock.now() + 0.05
        await backend.workers.announce_credit(ME, "poll-2", GATEWAY, soon, TTL)

        await backend.workers.withdraw_credit(ME, "poll-1")
        await pass_time(0.06)

        assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.NO_CREDIT


async def test_turns_tell_when_a_worker_last_got_a_task_of_a_type(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep(GATEWAY):
        for task_type in ("a", "b"):
            await poll(backend, f"poll-{task_type}")
            await match_one(backend.workers, ME, some_task(task_type))
            await pass_time(0.01)

    await backend.workers.register(ME, a_document(), TTL)

    worker = await backend.workers.get(ME)
    assert worker is not None
    assert worker.turns.keys() == {"a", "b"}
    assert worker.turns["a"] < worker.turns["b"] <= backend.clock.now()


# --- what became of a promise


async def test_a_place_is_free_again_after_the_result(backend: StorageBackend) -> None:
    registered = await backend.workers.register(ME, with_places(1), TTL)
    claim = await Executor(backend).dispatch()
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)
        task = await the_waiting_task(backend)
        assert await match_one(backend.workers, ME, task) is MatchAnswer.MATCHED
        await take(backend, incarnation=registered.incarnation)
        await relay_all(backend)
        assert await held_by(backend) == 1

        event = a_success(backend, claim.task_id)
        await backend.board.end_lease(claim.job.id, ME, event)
        await relay_all(backend)

        assert await held_by(backend) == 0
        await poll(backend)
        assert await match_one(backend.workers, ME, some_task()) is MatchAnswer.MATCHED


async def test_a_promise_that_came_to_nothing_is_ended(backend: StorageBackend) -> None:
    await backend.workers.register(ME, with_places(1), TTL)
    task = some_task()
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)
        await match_one(backend.workers, ME, task)

        await backend.workers.end_hold(ME, task.task_id)

        assert await held_by(backend) == 0
        beat = await backend.workers.beat(ME, None, TTL)
        assert beat is not None
        assert list(beat.cancel_task_ids) == []


async def test_the_end_of_an_earlier_offer_does_not_free_the_place_of_a_later_one(
    backend: StorageBackend,
) -> None:
    registered = await backend.workers.register(ME, with_places(1), TTL)
    await Executor(backend).dispatch()
    task = await the_waiting_task(backend)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend)
        await match_one(backend.workers, ME, task)
        await lease(backend, task, incarnation=registered.incarnation)
        await backend.board.undeliver(task.task_id, task.job_id, ME)
        await poll(backend)
        again = await the_waiting_task(backend)
        assert again == replace(task, offer_number=2)
        assert await match_one(backend.workers, ME, again) is MatchAnswer.MATCHED

        await relay_all(backend)  # only now the end of the first offer takes effect

        assert await held_by(backend) == 1


async def test_a_worker_is_told_to_stop_until_it_stops_naming_the_task(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    registered = await backend.workers.register(ME, a_document(), TTL)
    claim = await Executor(backend).dispatch(a_task(result_timeout_seconds=0.05))
    await take(backend, incarnation=registered.incarnation)
    await pass_time(0.06)
    await fire(backend)
    await relay_all(backend)

    async def beat(*current: str) -> list[TaskId]:
        answer = await backend.workers.beat(ME, {"current_tasks": list(current)}, TTL)
        assert answer is not None
        return list(answer.cancel_task_ids)

    assert await beat(claim.task_id, "other") == [claim.task_id]
    assert await beat(claim.task_id) == [claim.task_id]
    assert await beat("other") == []
    assert await beat(claim.task_id) == []


async def test_a_late_result_ends_the_order_to_stop(backend: StorageBackend) -> None:
    executor = Executor(backend)
    registered = await backend.workers.register(ME, a_document(), TTL)
    claim = await executor.dispatch()
    await take(backend, incarnation=registered.incarnation)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    await executor.apply(await executor.read())
    await relay_all(backend)
    told = await backend.workers.beat(ME, None, TTL)

    await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))
    await relay_all(backend)

    after = await backend.workers.beat(ME, None, TTL)
    assert told is not None
    assert after is not None
    assert (list(told.cancel_task_ids), list(after.cancel_task_ids)) == ([claim.task_id], [])


# --- mail and hints


async def test_mail_comes_in_order_and_wakes_the_gateway(open_backend: Open) -> None:
    backend = await open_backend(block_seconds=30)
    await backend.workers.register(ME, a_document(), TTL)
    tasks = [some_task() for _ in range(5)]
    async with backend.liveness.keep(GATEWAY), asyncio.timeout(10), asyncio.TaskGroup() as group:
        first = group.create_task(backend.mailbox.read(GATEWAY, "0"))
        await asyncio.sleep(0)
        for number, task in enumerate(tasks):
            await poll(backend, f"poll-{number}")
            await match_one(backend.workers, ME, task)
        position, mail = await first
        while len(mail) < 5:
            position, more = await backend.mailbox.read(GATEWAY, position)
            mail = [*mail, *more]

    assert [match.task_id for match in promised(mail)] == [task.task_id for task in tasks]


async def test_what_changes_for_a_worker_is_hinted(backend: StorageBackend) -> None:
    position = await backend.hints.position("w")
    await backend.workers.register(ME, a_document(), TTL)
    await poll(backend)

    _, hints, lost = await backend.hints.wait("w", position, 5.0)

    assert {(hint.kind, hint.value) for hint in hints} == {("worker", ME)}
    assert not lost


async def test_a_heartbeat_that_changes_nothing_is_not_hinted(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    position = await backend.hints.position("w")

    await backend.workers.beat(ME, a_document(current_tasks=["x"]), TTL)

    assert (await backend.hints.wait("w", position, 0.05))[1] == []
