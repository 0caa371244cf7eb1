"""The way of a task in Redis: board, match, lease, result; and what becomes of it when a worker does not."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any, cast

import pytest
import pytest_asyncio
from libs.common.tests.redis_ports import Ports, open_ports

from avtomatika_common import ids
from avtomatika_common.backend.ports import Mail, MatchAnswer, ResultAnswer, WaitingTask
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.scripts import Script, script
from avtomatika_core.events import TaskFailed, TaskSucceeded
from avtomatika_core.job import JobId, TaskId, WorkerId
from tests.servers import a_redis_server, redis_binaries, running_redis
from tests.support import match_one, promised, until

pytestmark = pytest.mark.integration

SERVERS = redis_binaries()
ANN = WorkerId("ann")
BOB = WorkerId("bob")
FAR = 4_000_000_000.0  # Unix seconds, long from now


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(request: pytest.FixtureRequest) -> Generator[str, None, None]:
    with running_redis(SERVERS[request.param]) as url:
        yield url


@pytest_asyncio.fixture
async def ports(server: str) -> AsyncGenerator[Ports, None]:
    async with open_ports(server, partitions=2) as opened, opened.liveness.keep("door"):
        yield opened


async def the_head(ports: Ports) -> WaitingTask:
    (task,) = await ports.board.heads(0, 10)
    return task


async def register(ports: Ports, worker_id: WorkerId = ANN, polls: int = 1, **document: Any) -> int:
    """A worker with open polls; its incarnation."""
    registered = await ports.workers.register(worker_id, document, 60)
    for _ in range(polls):
        await ports.workers.announce_credit(worker_id, ids.new_id(), "door", FAR, 60)
    return registered.incarnation


async def lease(ports: Ports, task: WaitingTask, worker_id: WorkerId, incarnation: int) -> None:
    leased = await ports.board.lease(
        task.task_id, task.job_id, task.offer_number, worker_id, incarnation
    )
    assert leased is not None


def success(task_id: TaskId) -> TaskSucceeded:
    return TaskSucceeded(at=1.0, task_id=task_id, fresh_id=TaskId("next"), data={"n": 1})


async def test_the_board_is_read_by_priority_then_first_in_first_out(ports: Ports) -> None:
    job = await ports.job()
    first = await ports.offer(job)
    second = await ports.offer(job)
    other_shape = await ports.offer(job, "print")
    urgent = await ports.offer(job, priority=5.0)

    everything = await ports.board.heads(0, 10)
    one_each = await ports.board.heads(0, 1)

    assert [task.task_id for task in everything] == [urgent, first, second, other_shape]
    assert [task.task_id for task in one_each] == [urgent, other_shape]
    assert (everything[0].type, everything[0].priority, everything[0].offer_number) == (
        "paint",
        5.0,
        1,
    )
    assert await ports.board.heads(1, 10) == []
    assert await ports.board.length() == 4


async def test_more_shapes_than_one_page_are_all_seen(ports: Ports) -> None:
    job = await ports.job()
    offered = {await ports.offer(job, f"type {number}") for number in range(700)}

    heads = await ports.board.heads(0, 2)

    assert {task.task_id for task in heads} == offered
    assert await ports.board.length() == 700


async def test_a_task_is_leased_by_one_of_many(ports: Ports) -> None:
    await ports.offer(await ports.job())
    task = await the_head(ports)

    answers = await asyncio.gather(
        *(
            ports.board.lease(task.task_id, task.job_id, 1, WorkerId(f"worker {number}"), 1)
            for number in range(20)
        )
    )

    assert [a.params for a in answers if a is not None] == [{"colour": "red"}]
    assert await ports.board.heads(0, 10) == []


async def test_a_lease_whose_answer_was_lost_is_given_again_but_not_to_a_second_poll(
    ports: Ports,
) -> None:
    job = await ports.job()
    task_id = await ports.offer(job)
    p = keys.partition(0)

    async def send(nonce: str) -> object:
        arguments = [p, 5000, task_id, job, 1, ANN, 1, "", nonce]
        [answer] = await ports.commands.script(
            script("lease_tasks"), [keys.task(p, task_id)], arguments
        )
        return answer

    first, repeated, other_poll = await send("n1"), await send("n1"), await send("n2")

    assert first is not None
    assert (repeated, other_poll) == (first, None)


async def test_the_lease_of_another_offer_or_of_an_unwanted_task_is_refused(ports: Ports) -> None:
    job = await ports.job()
    task_id = await ports.offer(job)

    wrong_offer = await ports.board.lease(task_id, job, 2, ANN, 1)
    await ports.set_job(job, "cancel", "1")
    unwanted = await ports.board.lease(task_id, job, 1, ANN, 1)

    assert (wrong_offer, unwanted) == (None, None)


async def test_a_lease_has_one_timer_at_a_time(ports: Ports) -> None:
    job = await ports.job()
    task_id = await ports.offer(job, dispatch_due=9_000_000_000_000)
    assert list(await ports.timers()) == [f"d {task_id}"]

    await lease(ports, await the_head(ports), ANN, 1)
    delivery = await ports.timers()
    await ports.board.confirm(task_id, job, ANN)
    result = await ports.timers()
    await ports.board.undeliver(task_id, job, ANN)

    assert list(delivery) == [f"c {task_id}"]
    assert list(result) == [f"r {task_id}"]
    assert result[f"r {task_id}"] - delivery[f"c {task_id}"] == 300_000 - 5_000
    assert await ports.timers() == result, "a confirmed delivery cannot be taken back"


async def test_an_undelivered_task_is_back_at_its_place_as_the_next_offer(ports: Ports) -> None:
    job = await ports.job()
    first = await ports.offer(job, dispatch_due=9_000_000_000_000)
    await ports.offer(job)
    await lease(ports, (await ports.board.heads(0, 1))[0], ANN, 1)

    await ports.board.undeliver(first, job, BOB)
    assert (await ports.board.heads(0, 1))[0].task_id != first, "not Bob's to give back"
    for _ in range(2):
        await ports.board.undeliver(first, job, ANN)

    head = (await ports.board.heads(0, 1))[0]
    assert (head.task_id, head.offer_number) == (first, 2)
    assert list(await ports.timers()) == [f"d {first}"]


async def test_a_result_counts_once_and_only_from_the_holder(ports: Ports) -> None:
    job = await ports.job()
    task_id = await ports.offer(job)
    nobody = await ports.board.end_lease(job, ANN, success(task_id))
    await lease(ports, await the_head(ports), ANN, 1)

    other = await ports.board.end_lease(job, BOB, success(task_id))
    answers = [await ports.board.end_lease(job, ANN, success(task_id)) for _ in range(3)]
    late = await ports.board.end_lease(job, BOB, success(task_id))

    assert (nobody, other) == (ResultAnswer.WORKER_MISMATCH, ResultAnswer.WORKER_MISMATCH)
    assert answers == [ResultAnswer.APPLIED] * 3
    assert late is ResultAnswer.STALE_TASK
    assert await ports.events() == [success(task_id)]
    assert await ports.timers() == {}
    leftovers = await ports.commands.command("EXISTS", keys.task(keys.partition(0), task_id))
    assert leftovers == 0


async def test_the_event_of_a_result_says_since_when_the_task_was_leased(ports: Ports) -> None:
    job = await ports.job()
    task_id = await ports.offer(job)
    await lease(ports, await the_head(ports), ANN, 1)
    due = (await ports.timers())[f"c {task_id}"]

    await ports.board.end_lease(job, ANN, success(task_id))

    stream = keys.lane(keys.partition(0), "in", "g1")
    ((_, fields),) = await ports.commands.command("XRANGE", stream, "-", "+")
    assert fields[-2:] == [b"l", b"%d" % (due - 5000)]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("cancel", "1", ResultAnswer.JOB_CANCELLED),
        ("status", "cancelled", ResultAnswer.JOB_CANCELLED),
        ("status", "finished", ResultAnswer.JOB_TERMINATED),
        ("status", "failed", ResultAnswer.JOB_TERMINATED),
        ("status", "quarantined", ResultAnswer.JOB_TERMINATED),
    ],
)
async def test_a_result_for_a_job_that_is_over_changes_nothing(
    ports: Ports, field: str, value: str, expected: ResultAnswer
) -> None:
    job = await ports.job()
    task_id = await ports.offer(job)
    await lease(ports, await the_head(ports), ANN, 1)
    await ports.set_job(job, field, value)

    answer = await ports.board.end_lease(job, ANN, success(task_id))

    assert answer is expected
    assert await ports.events() == []


async def test_results_of_unknown_jobs_and_timed_out_or_foreign_tasks_are_told_apart(
    ports: Ports,
) -> None:
    job, other_job = await ports.job(), await ports.job()
    foreign = await ports.offer(other_job)
    done = f"{keys.job(keys.partition(0), job)}:done"
    await ports.commands.command("HSET", done, "late", "deadline|")

    no_job = await ports.board.end_lease(JobId(ids.new_id()), ANN, success(foreign))
    timed_out = await ports.board.end_lease(job, ANN, success(TaskId("late")))
    stale = await ports.board.end_lease(job, ANN, success(foreign))

    assert no_job is ResultAnswer.JOB_NOT_FOUND
    assert timed_out is ResultAnswer.DEADLINE_EXCEEDED
    assert stale is ResultAnswer.STALE_TASK


async def test_a_task_that_is_gone_is_not_explained(ports: Ports) -> None:
    """Nobody would remove what that left."""
    incarnation = await register(ports)
    await ports.offer(await ports.job())
    task = await the_head(ports)
    await lease(ports, task, ANN, incarnation)
    await ports.board.end_lease(task.job_id, ANN, success(task.task_id))

    await ports.board.explain(task, "no worker for 'paint'")

    key = keys.task(keys.partition(0), task.task_id)
    assert await ports.commands.command("EXISTS", key) == 0


async def test_a_match_takes_one_poll_and_one_place_and_tells_the_gateway(ports: Ports) -> None:
    incarnation = await register(ports, resources={"max_concurrent_tasks": 1})
    first = await ports.offer(await ports.job())
    task = await the_head(ports)

    answers = [await match_one(ports.workers, ANN, task) for _ in range(2)]  # one, and its repeat
    worker = await ports.workers.get(ANN)
    position, mail = await ports.mailbox.read("door", "0")

    assert answers == [MatchAnswer.MATCHED] * 2
    assert worker is not None
    assert (worker.places.room, worker.places.held) == (0, 1)
    assert worker.turns["paint"] > 1_700_000_000
    assert [(m.task_id, m.offer_number, m.incarnation) for m in promised(mail)] == [
        (first, 1, incarnation)
    ]
    assert await ports.mailbox.read("door", position) == (position, [])


async def test_polls_that_open_together_tell_once_of_each_worker_and_all_its_places(
    ports: Ports,
) -> None:
    await register(ports, ANN, polls=0)
    await register(ports, BOB, polls=0)
    position = await ports.hints.position("w")

    await asyncio.gather(
        *(
            ports.workers.announce_credit(worker_id, ids.new_id(), "door", FAR, 60, room=2)
            for worker_id in [ANN, ANN, BOB, ANN]
        )
    )

    _, hints, _ = await ports.hints.wait("w", position, 5.0)
    rooms = {hint.value: hint.places.room for hint in hints if hint.places}
    assert len(hints) == 2
    assert rooms == {ANN: 6, BOB: 2}


async def test_a_worker_without_poll_or_place_gets_nothing(ports: Ports) -> None:
    job = await ports.job()
    for _ in range(2):
        await ports.offer(job)
    one, two = await ports.board.heads(0, 2)
    unknown = await match_one(ports.workers, ANN, one)
    await register(ports, polls=0, resources={"max_concurrent_tasks": 1})
    without_poll = await match_one(ports.workers, ANN, one)
    for poll in ("a", "b"):
        await ports.workers.announce_credit(ANN, poll, "door", FAR, 60)
    await match_one(ports.workers, ANN, one)

    full = await match_one(ports.workers, ANN, two)
    await ports.workers.end_hold(ANN, one.task_id)
    freed = await match_one(ports.workers, ANN, two)
    await ports.workers.beat(ANN, {"status": "draining"}, 60)
    draining = await match_one(ports.workers, ANN, one)

    assert (unknown, without_poll) == (MatchAnswer.GONE, MatchAnswer.NO_CREDIT)
    assert (full, freed, draining) == (MatchAnswer.FULL, MatchAnswer.MATCHED, MatchAnswer.GONE)


async def test_many_dispatchers_never_overfill_a_worker(ports: Ports) -> None:
    await register(ports, polls=30, resources={"max_concurrent_tasks": 7})
    job = await ports.job()
    for _ in range(30):
        await ports.offer(job)
    tasks = await ports.board.heads(0, 30)

    answers = await asyncio.gather(*(match_one(ports.workers, ANN, task) for task in tasks))

    assert answers.count(MatchAnswer.MATCHED) == 7
    assert answers.count(MatchAnswer.FULL) == 23


async def test_polls_of_a_dead_gateway_an_expired_or_a_withdrawn_one_do_not_count(
    ports: Ports,
) -> None:
    await register(ports, polls=0)
    await ports.offer(await ports.job())
    await ports.workers.announce_credit(ANN, "old", "door", 1.0, 60)
    await ports.workers.announce_credit(ANN, "lost", "dead gateway", FAR + 9, 60)
    await ports.workers.announce_credit(ANN, "over", "door", FAR, 60)
    await ports.workers.withdraw_credit(ANN, "over")
    task = await the_head(ports)

    before = await match_one(ports.workers, ANN, task)
    await ports.workers.announce_credit(ANN, "good", "door", FAR, 60)
    after = await match_one(ports.workers, ANN, task)

    assert (before, after) == (MatchAnswer.NO_CREDIT, MatchAnswer.MATCHED)
    _, mail = await ports.mailbox.read("door", "0")
    assert [match.poll_id for match in promised(mail)] == ["good"]


async def relayed(ports: Ports) -> None:
    while await ports.relay.run_once(0):
        pass


async def held(ports: Ports, worker_id: WorkerId = ANN) -> int:
    worker = await ports.workers.get(worker_id)
    assert worker is not None
    return worker.places.held


async def test_a_place_is_taken_from_the_match_until_the_result(ports: Ports) -> None:
    incarnation = await register(ports)
    job = await ports.job()
    task_id = await ports.offer(job)
    task = await the_head(ports)
    await match_one(ports.workers, ANN, task)
    await lease(ports, task, ANN, incarnation)
    await relayed(ports)
    hold = f"{keys.WORKERS}hold:{ANN}"
    until = await ports.commands.command("ZSCORE", hold, task_id)

    during = await held(ports)
    await ports.board.end_lease(job, ANN, success(task_id))
    await relayed(ports)

    assert (until, during) == (b"inf", 1)
    assert await held(ports) == 0
    assert await ports.commands.command("XLEN", f"{keys.partition(0)}out") == 0


async def test_what_a_relay_brings_too_late_changes_nothing(ports: Ports) -> None:
    """It stood still with entries in hand that another has applied meanwhile."""
    incarnation = await register(ports)
    job = await ports.job()
    task_id = await ports.offer(job)
    task = await the_head(ports)
    await match_one(ports.workers, ANN, task)
    await lease(ports, task, ANN, incarnation)
    [(entry_id, fields)] = cast(
        "list[tuple[bytes, list[bytes]]]",
        await ports.commands.command("XRANGE", f"{keys.partition(0)}out", "-", "+"),
    )
    change = dict(zip(fields[::2], fields[1::2], strict=True))
    await relayed(ports)
    await ports.board.end_lease(job, ANN, success(task_id))
    await relayed(ports)

    late = (change[b"k"], change[b"w"], change[b"t"], change[b"o"], b"", entry_id)
    await ports.workers.change_holds([late], 0)

    assert change[b"k"] == b"keep_hold"
    assert await held(ports) == 0


async def test_the_end_of_an_earlier_offer_leaves_the_new_promise_alone(ports: Ports) -> None:
    incarnation = await register(ports, polls=2)
    job = await ports.job()
    task_id = await ports.offer(job)
    first = await the_head(ports)
    await match_one(ports.workers, ANN, first)
    await lease(ports, first, ANN, incarnation)
    await ports.board.undeliver(task_id, job, ANN)

    again = await match_one(ports.workers, ANN, await the_head(ports))
    await relayed(ports)

    _, mail = await ports.mailbox.read("door", "0")
    assert again is MatchAnswer.MATCHED
    assert [match.offer_number for match in promised(mail)] == [1, 2]
    assert await held(ports) == 1


async def test_a_worker_is_told_to_stop_until_it_names_the_task_no_more(ports: Ports) -> None:
    await register(ports)
    await ports.workers.end_hold(ANN, TaskId("t"), stop=True)
    await ports.workers.end_hold(BOB, TaskId("t"), stop=True)

    told = [await ports.workers.beat(ANN, None, 60) for _ in range(2)]
    still = await ports.workers.beat(ANN, {"current_tasks": ["t", "u"]}, 60)
    over = await ports.workers.beat(ANN, {"current_tasks": ["u"]}, 60)

    assert [beat.cancel_task_ids for beat in (*told, still, over) if beat] == [
        ["t"],
        ["t"],
        ["t"],
        [],
    ]
    assert await ports.commands.command("EXISTS", f"{keys.WORKERS}cancel:{BOB}") == 0


async def test_a_result_nobody_wants_ends_the_order_to_stop(ports: Ports) -> None:
    incarnation = await register(ports)
    job = await ports.job()
    task_id = await ports.offer(job)
    await lease(ports, await the_head(ports), ANN, incarnation)
    await ports.workers.end_hold(ANN, task_id, stop=True)
    await ports.set_job(job, "cancel", "1")

    await ports.board.end_lease(job, ANN, success(task_id))
    await relayed(ports)

    assert await ports.workers.to_stop(ANN) == []


async def test_tasks_of_a_lost_worker_fail_and_those_of_one_that_left_are_offered_again(
    ports: Ports,
) -> None:
    job = await ports.job()
    lost_task, left_task = await ports.offer(job), await ports.offer(job)
    one, two = await ports.board.heads(0, 2)
    lost, left = await register(ports, ANN), await register(ports, BOB)
    await lease(ports, one, ANN, lost)
    await lease(ports, two, BOB, left)
    await ports.board.confirm(left_task, job, BOB)

    await register(ports, ANN, polls=0)  # takes over
    assert await ports.workers.leave(BOB)
    assert await ports.relay.return_lost() == 2

    (event,) = await ports.events()
    assert isinstance(event, TaskFailed)
    assert (event.task_id, event.worker_id) == (lost_task, ANN)
    assert (event.code, event.message) == ("TRANSIENT_ERROR", "Worker 'ann' was lost.")
    head = await the_head(ports)
    assert (head.task_id, head.offer_number) == (left_task, 2)
    assert await ports.timers() == {}
    assert await ports.relay.return_lost() == 0


async def test_all_leases_of_a_lost_worker_come_back_though_redis_starts_again_meanwhile() -> None:
    """Where a walk over a hash went on by the order it had before, it would pass some by."""
    lasting = ("--appendonly", "yes", "--appendfsync", "always")
    with a_redis_server(max(SERVERS.items())[1], *lasting) as server:
        async with open_ports(server.url) as ports:
            job = await ports.job()
            tasks = await asyncio.gather(*(ports.offer(job) for _ in range(1500)))
            incarnation = await register(ports, polls=0)
            await asyncio.gather(
                *(ports.board.lease(task, job, 1, ANN, incarnation) for task in tasks)
            )
            script, walks = ports.commands.script, 0

            def starts_again(called: Script, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
                nonlocal walks
                walks += called.name == "return_leases"
                if walks == 3:
                    server.kill()
                    server.start()
                return script(called, *args, **kwargs)

            ports.commands.script = starts_again  # type: ignore[method-assign]
            returned = await ports.board.return_leases(0, ANN, incarnation, lost=False)
            held = f"{keys.partition(0)}held:{ANN}"
            left = await ports.commands.command("HLEN", held)

    assert (returned, left) == (1500, 0)


async def test_leases_of_a_newer_registration_stay_and_none_of_an_older_is_given_later(
    ports: Ports,
) -> None:
    job = await ports.job()
    for _ in range(2):
        await ports.offer(job)
    one, two = await ports.board.heads(0, 2)
    old = await register(ports)
    new = await register(ports)
    await lease(ports, one, ANN, new)

    await ports.relay.return_lost()
    too_late = await ports.board.lease(two.task_id, job, 1, ANN, old)

    assert too_late is None
    assert await ports.events() == []
    assert await ports.board.end_lease(job, ANN, success(one.task_id)) is ResultAnswer.APPLIED


async def test_more_leases_than_one_script_handles_are_all_returned(ports: Ports) -> None:
    job = await ports.job()
    incarnation = await register(ports)
    tasks = [await ports.offer(job) for _ in range(600)]
    await asyncio.gather(*(ports.board.lease(task, job, 1, ANN, incarnation) for task in tasks))

    assert await ports.board.return_leases(0, ANN, incarnation, lost=True) == 600
    assert len(await ports.events()) == 600


async def test_a_reason_is_noted_only_while_the_task_waits(ports: Ports) -> None:
    task_id = await ports.offer(await ports.job())
    key = keys.task(keys.partition(0), task_id)
    task = await the_head(ports)
    await ports.board.explain(task, "No suitable workers")
    noted = await ports.commands.command("HGET", key, "reason")
    await ports.board.explain(task, None)
    forgotten = await ports.commands.command("HGET", key, "reason")
    await lease(ports, task, ANN, 1)
    await ports.board.end_lease(task.job_id, ANN, success(task_id))

    await ports.board.explain(task, "too late")

    assert (noted, forgotten) == (b"No suitable workers", None)
    assert await ports.commands.command("EXISTS", key) == 0


async def test_a_registration_over_a_live_one_replaces_all_its_data(ports: Ports) -> None:
    first = await ports.workers.register(ANN, {"host": "a", "load": 1.5}, 60)
    second = await ports.workers.register(ANN, {"host": "b"}, 60)

    worker = await ports.workers.get(ANN)

    assert (first.replaced, second.replaced) == (None, {"host": "a", "load": 1.5})
    assert second.incarnation > first.incarnation
    assert worker is not None
    assert (worker.document, worker.places.incarnation) == ({"host": "b"}, second.incarnation)


async def test_a_registration_whose_answer_was_lost_is_not_taken_for_another(ports: Ports) -> None:
    arguments = [keys.WORKERS, ANN, 60_000, "nonce", "max", "", "draining", "0"]

    answers = [
        await ports.commands.script(script("register"), [f"{keys.WORKERS}exp"], arguments)
        for _ in range(2)
    ]

    assert answers[0] == answers[1]
    assert await ports.relay.return_lost() == 0


async def test_a_heartbeat_merges_shallowly_but_not_what_is_ours(ports: Ports) -> None:
    await ports.workers.register(ANN, {"worker_id": "ann", "reputation": 1.0, "r": {"a": 1}}, 60)

    beat = await ports.workers.beat(
        ANN, {"worker_id": "bob", "reputation": 9.0, "r": {"b": 2}, "load": 0.5}, 60
    )
    unknown = await ports.workers.beat(BOB, {"load": 1}, 60)

    document = {"worker_id": "ann", "reputation": 1.0, "r": {"b": 2}, "load": 0.5}
    assert beat is not None
    assert (beat.document, beat.cancel_task_ids) == (document, [])
    assert unknown is None
    assert await ports.workers.get(BOB) is None


async def test_a_worker_whose_time_is_over_is_seen_nowhere_before_anybody_reaps_it(
    ports: Ports,
) -> None:
    incarnation = await register(ports)
    await ports.workers.register(BOB, {}, 0.05)
    await until(lambda: _is_unknown(ports, BOB))

    assert [worker.worker_id for worker in await ports.workers.live()] == [ANN]
    assert await ports.workers.count() == 1
    assert await ports.workers.expire() == 1
    assert await ports.workers.expire() == 0
    assert await ports.workers.beat(BOB, None, 60) is None
    assert await ports.workers.announce_credit(BOB, "p", "door", FAR, 60) is None
    assert await ports.workers.announce_credit(ANN, "p", "door", FAR, 60) == incarnation
    assert await ports.workers.next_expiry() is not None
    assert not await ports.workers.leave(BOB)


async def _is_unknown(ports: Ports, worker_id: WorkerId) -> bool:
    return await ports.workers.get(worker_id) is None


async def test_many_live_workers_are_read_in_pages(ports: Ports) -> None:
    names = {WorkerId(f"worker {number}") for number in range(1000)}
    await asyncio.gather(*(ports.workers.register(name, {"n": name}, 60) for name in names))

    workers = await ports.workers.live()

    assert {worker.worker_id for worker in workers} == names
    assert all(worker.document == {"n": worker.worker_id} for worker in workers)


async def test_nothing_of_a_worker_that_left_is_kept(ports: Ports) -> None:
    await register(ports, polls=2)
    await ports.offer(await ports.job())
    await match_one(ports.workers, ANN, await the_head(ports))
    await ports.workers.end_hold(ANN, TaskId("t"), stop=True)

    await ports.workers.leave(ANN)

    names = await ports.commands.command("KEYS", f"{keys.WORKERS}*:{ANN}")
    assert names == []


async def test_the_mailbox_waits_for_mail(ports: Ports) -> None:
    await register(ports)
    await ports.offer(await ports.job())
    task = await the_head(ports)

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(_mail(ports))
        await match_one(ports.workers, ANN, task)

    assert [match.task_id for match in promised(reading.result())] == [task.task_id]


async def _mail(ports: Ports) -> list[Mail]:
    position, mail = "0", list[Mail]()
    while not mail:
        position, mail = await ports.mailbox.read("door", position)
    return mail


async def test_a_worker_that_a_flush_has_half_removed_is_unknown(ports: Ports) -> None:
    """R38. It registers between two deletions: its time is there, its document is not."""
    await register(ports, ANN)
    await register(ports, BOB)
    await ports.commands.command("DEL", f"{keys.WORKERS}w:{ANN}")

    assert await ports.workers.beat(ANN, {"status": "busy"}, 60) is None
    assert await ports.workers.announce_credit(ANN, ids.new_id(), "door", FAR, 60) is None
    assert await ports.workers.get(ANN) is None
    assert [worker.worker_id for worker in await ports.workers.live()] == [BOB]
    await register(ports, ANN)
    assert {worker.worker_id for worker in await ports.workers.live()} == {ANN, BOB}
