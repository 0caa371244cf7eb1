"""What workers can take: polls for several tasks, matches that travel together, and who is told."""

from typing import Any

from avtomatika_common.backend.ports import (
    Hint,
    Match,
    MatchAnswer,
    Places,
    StorageBackend,
    WaitingTask,
)
from avtomatika_common.ids import new_id
from avtomatika_core.job import JobId, TaskId, WorkerId
from tests.contract.builders import Executor, lease, take, the_waiting_task
from tests.contract.builders import a_task as a_request
from tests.contract.conftest import Open
from tests.support import promised

GATEWAY = "gateway"
ME, OTHER = WorkerId("me"), WorkerId("other")
TTL = 60.0


def a_task(task_type: str = "t") -> WaitingTask:
    return WaitingTask(
        task_id=TaskId(new_id()),
        job_id=JobId(new_id()),
        type=task_type,
        resource_requirements=None,
        max_cost=None,
        strategy="default",
        priority=0.0,
        offer_number=1,
    )


async def register(backend: StorageBackend, worker_id: WorkerId = ME, **said: Any) -> int:
    document = {"supported_tasks": ["t"], **said}
    return (await backend.workers.register(worker_id, document, TTL)).incarnation


async def poll(
    backend: StorageBackend, poll_id: str, room: int, worker_id: WorkerId = ME, later: float = 0.0
) -> None:
    until = backend.clock.now() + 50 + later
    await backend.workers.announce_credit(worker_id, poll_id, GATEWAY, until, TTL, room=room)


async def places(backend: StorageBackend, worker_id: WorkerId = ME) -> tuple[int, int]:
    worker = await backend.workers.get(worker_id)
    assert worker is not None
    return worker.places.room, worker.places.held


async def mail(backend: StorageBackend) -> list[Match]:
    _, letters = await backend.mailbox.read(GATEWAY, "0")
    return [letter for letter in letters if isinstance(letter, Match)]


async def test_tasks_for_one_poll_travel_together(backend: StorageBackend) -> None:
    incarnation = await register(backend)
    tasks = [a_task() for _ in range(3)]
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "for five", room=5)

        matched = await backend.workers.match([(ME, task) for task in tasks])

        assert matched.answers == [MatchAnswer.MATCHED] * 3
        [match] = await mail(backend)
    assert (match.poll_id, match.incarnation) == ("for five", incarnation)
    assert [one.task_id for one in match.promises] == [task.task_id for task in tasks]


async def test_a_poll_is_used_up_by_the_tasks_it_got_however_few(backend: StorageBackend) -> None:
    await register(backend)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "for five", room=5)
        assert await places(backend) == (5, 0)

        matched = await backend.workers.match([(ME, a_task())])

        assert (matched.places[ME].room, matched.places[ME].held) == (0, 1)
        assert await places(backend) == (0, 1)
        again = await backend.workers.match([(ME, a_task())])
    assert again.answers == [MatchAnswer.NO_CREDIT]


async def test_further_tasks_take_further_polls_the_latest_first(backend: StorageBackend) -> None:
    await register(backend)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "early", room=2)
        await poll(backend, "late", room=2, later=1)

        matched = await backend.workers.match([(ME, a_task()) for _ in range(5)])

        sent = [(match.poll_id, len(match.promises)) for match in await mail(backend)]
    assert matched.answers == [MatchAnswer.MATCHED] * 4 + [MatchAnswer.NO_CREDIT]
    assert sent == [("late", 2), ("early", 2)]


async def test_a_list_of_matches_never_takes_more_places_than_a_worker_has(
    backend: StorageBackend,
) -> None:
    """R47."""
    await register(backend, resources={"max_concurrent_tasks": 2})
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "for five", room=5)

        matched = await backend.workers.match([(ME, a_task()) for _ in range(3)])

    assert matched.answers == [MatchAnswer.MATCHED, MatchAnswer.MATCHED, MatchAnswer.FULL]


async def test_each_match_of_a_list_is_judged_alone(backend: StorageBackend) -> None:
    await register(backend)
    mine, nobodys = a_task(), a_task()
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "p", room=1)

        matched = await backend.workers.match([(OTHER, nobodys), (ME, mine)])

        assert matched.answers == [MatchAnswer.GONE, MatchAnswer.MATCHED]
        assert set(matched.places) == {ME}
        assert [one.task_id for one in promised(await mail(backend))] == [mine.task_id]


async def test_a_list_of_matches_that_is_repeated_changes_nothing(backend: StorageBackend) -> None:
    await register(backend)
    matches = [(ME, a_task()), (ME, a_task())]
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "a", room=1)
        await poll(backend, "b", room=5)

        first = await backend.workers.match(matches)
        second = await backend.workers.match(matches)

        assert second.answers == first.answers == [MatchAnswer.MATCHED] * 2
        assert len(promised(await mail(backend))) == 2
        assert (await places(backend))[1] == 2


async def news(backend: StorageBackend, position: str) -> list[Hint]:
    _, hints, _ = await backend.hints.wait("w", position, 0.05)
    return hints


async def test_a_change_of_places_is_told_with_the_places(backend: StorageBackend) -> None:
    incarnation = await register(backend)
    async with backend.liveness.keep(GATEWAY):
        position = await backend.hints.position("w")
        await poll(backend, "p", room=3)
        await backend.workers.withdraw_credit(ME, "p")

        told = [hint.places for hint in await news(backend, position)]

    assert [one and (one.incarnation, one.room, one.held) for one in told] == [
        (incarnation, 3, 0),
        (incarnation, 0, 0),
    ]


async def test_the_later_of_two_statements_of_places_has_the_higher_stamp(
    backend: StorageBackend,
) -> None:
    await register(backend)
    seen: list[Places] = []
    async with backend.liveness.keep(GATEWAY):
        position = await backend.hints.position("w")
        await poll(backend, "p", room=1)
        [hint] = await news(backend, position)
        assert hint.places is not None
        seen.append(hint.places)
        seen.append((await backend.workers.match([(ME, a_task())])).places[ME])
        worker = await backend.workers.get(ME)
        assert worker is not None
        assert worker.places == seen[-1]

    assert seen[0].stamp < seen[1].stamp


async def test_a_promise_that_is_not_kept_can_be_matched_again_at_once(
    backend: StorageBackend,
) -> None:
    await register(backend)
    task = a_task()
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "p", room=1)
        await backend.workers.match([(ME, task)])
        position = await backend.hints.position("w")

        await backend.workers.end_hold(ME, task.task_id, offer_number=1, can_be_matched=True)

        hints = await news(backend, position)
        await poll(backend, "q", room=1)
        again = await backend.workers.match([(ME, task)])
        assert len(promised(await mail(backend))) == 2
    assert f"1:{task.task_id}" in [hint.value for hint in hints if hint.kind == "unmatched"]
    assert again.answers == [MatchAnswer.MATCHED]


async def test_workers_are_read_by_name(backend: StorageBackend) -> None:
    await register(backend)
    await register(backend, OTHER)

    found = await backend.workers.get_all([ME, WorkerId("nobody"), OTHER])

    assert {worker.worker_id for worker in found} == {ME, OTHER}
    assert await backend.workers.get_all([]) == []


async def test_a_task_that_comes_to_the_board_is_told_as_it_is_listed(
    backend: StorageBackend,
) -> None:
    position = await backend.hints.position("p0")
    await Executor(backend).dispatch(
        a_request(priority=2.5, resource_requirements={"cpu_cores": 2})
    )

    _, hints, _ = await backend.hints.wait("p0", position, 0.05)

    assert [hint.task for hint in hints if hint.kind == "task"] == await backend.board.heads(0, 5)


async def test_a_task_that_comes_back_is_told_as_its_next_offer(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    leased = await lease(backend, await the_waiting_task(backend))
    assert leased is not None
    position = await backend.hints.position("p0")

    await backend.board.undeliver(leased.task_id, leased.job_id, WorkerId("worker-1"))

    _, hints, _ = await backend.hints.wait("p0", position, 0.05)
    [told] = [hint.task for hint in hints if hint.task is not None]
    assert (told.task_id, told.offer_number) == (claim.task_id, 2)


async def test_a_list_that_was_cut_says_so(backend: StorageBackend) -> None:
    executor = Executor(backend)
    for _ in range(3):
        await executor.dispatch()
    await executor.dispatch(a_request(type="other"))

    listed = await backend.board.heads(0, 2)

    assert [(task.type, task.has_more) for task in listed] == [
        ("t", True),
        ("t", True),
        ("other", False),
    ]
    assert not any(task.has_more for task in await backend.board.heads(0, 3))


async def test_whether_anything_waits_at_all_can_be_asked(backend: StorageBackend) -> None:
    assert not await backend.board.has_waiting()

    await Executor(backend).dispatch()
    assert await backend.board.has_waiting()

    await take(backend)
    assert not await backend.board.has_waiting()


async def test_who_matches_beside_others_tells_them_whose_turn_it_was(open_backend: Open) -> None:
    """R52."""
    backend = await open_backend(partitions=2)
    await register(backend)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "p", room=1)
        position = await backend.hints.position("w")
        began = backend.clock.now()

        matched = await backend.workers.match([(ME, a_task("paint"))])

        [hint] = await news(backend, position)
    assert hint.places == matched.places[ME]
    assert list(hint.turns) == ["paint"]
    assert began - 0.01 <= hint.turns["paint"] <= backend.clock.now() + 0.01


async def test_who_matches_alone_tells_nobody(backend: StorageBackend) -> None:
    await register(backend)
    async with backend.liveness.keep(GATEWAY):
        await poll(backend, "p", room=1)
        position = await backend.hints.position("w")

        await backend.workers.match([(ME, a_task())])

        assert await news(backend, position) == []
