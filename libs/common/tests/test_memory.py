"""What only the memory store does; what it shares with Redis is in `tests/contract`."""

import asyncio
import random

import pytest

from avtomatika_common import ids
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.memory.timetable import Timer, Timetable
from avtomatika_common.backend.ports import (
    IdempotencyKey,
    MatchAnswer,
    StoreOptions,
    StoreUnavailable,
)
from avtomatika_common.clock import ManualClock
from avtomatika_core.commands import OfferTask, Step
from avtomatika_core.events import HandlerReturned
from avtomatika_core.job import Job, JobId, Origin, TaskId, WorkerId, new_job
from avtomatika_core.machine import step
from avtomatika_core.outcomes import Rules, TransitionTo
from tests.contract.builders import Executor
from tests.support import match_one

WORKER, GATEWAY = WorkerId("worker-1"), "gateway-1"


def a_job(at: float = 0.0) -> Job:
    origin = Origin(blueprint="b", group="default", start_state="start", created_at=at)
    return new_job(JobId(ids.new_id()), origin)


async def test_closing_ends_every_wait() -> None:
    storage = MemoryStorage()
    await storage.open(StoreOptions(block_seconds=30))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waits = [
            group.create_task(storage.inbox.read("default", "executor-1", 1)),
            group.create_task(storage.mailbox.read(GATEWAY, "0")),
            group.create_task(storage.hints.wait("p0", "0", 30.0)),
            group.create_task(storage.relay.run_once(0)),
            group.create_task(storage.catalogue.changed("0")),
            group.create_task(storage.facts.read("history-1", 1)),
        ]
        await asyncio.sleep(0)
        await storage.close()

    assert all(wait.done() for wait in waits)


async def test_nothing_waits_in_a_closed_store_but_all_can_be_read() -> None:
    storage = MemoryStorage()
    job = a_job()
    await storage.jobs.create(job)
    await storage.close()

    with pytest.raises(StoreUnavailable):
        await storage.inbox.read("default", "executor-1", 1)
    assert await storage.get_job_state(job.id) is not None

    await storage.open(StoreOptions())
    assert len(await storage.inbox.read("default", "executor-1", 1)) == 1


async def test_a_wait_that_is_cancelled_takes_nothing_with_it() -> None:
    storage = MemoryStorage()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(storage.inbox.read("default", "executor-1", 1))
        await asyncio.sleep(0)
        waiting.cancel()

    await storage.jobs.create(a_job())

    assert len(await storage.inbox.read("default", "executor-2", 1)) == 1
    assert await storage.inbox.pending("default", "executor-1") == []


async def test_a_long_chain_lets_others_run() -> None:
    storage = MemoryStorage()
    await storage.jobs.create(a_job())
    [delivery] = await storage.inbox.read("default", "executor-1", 1)
    stored = await storage.jobs.load(delivery.job_id)
    assert stored is not None
    assert delivery.event is not None
    rules = Rules()
    stored = await storage.jobs.commit(stored, step(stored.job, delivery.event, rules), delivery)
    turns = 0
    done = False

    async def others() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(others())
        for _ in range(1000):
            event = HandlerReturned(
                at=0.0, run=stored.job.run, action=TransitionTo(state="next"), started_at=0.0
            )
            stored = await storage.jobs.commit(stored, step(stored.job, event, rules), delivery)
        done = True

    assert turns >= 10


def a_task(task_id: str) -> OfferTask:
    return OfferTask(
        task_id=TaskId(task_id),
        type="t",
        params={},
        resource_requirements=None,
        max_cost=None,
        strategy="default",
        priority=0.0,
        dispatch_deadline=None,
        result_timeout_seconds=60.0,
        tracing_context={},
        params_metadata=None,
        attempt=1,
    )


@pytest.mark.parametrize("kept", [False, True])
async def test_a_promise_ends_by_itself_unless_the_task_was_leased(kept: bool) -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    await storage.open(StoreOptions(block_seconds=0.01))
    job = a_job()
    await storage.jobs.create(job)
    [delivery] = await storage.inbox.read("default", "executor-1", 1)
    stored = await storage.jobs.load(job.id)
    assert stored is not None
    offers = (a_task("first"), a_task("second"))
    await storage.jobs.commit(stored, Step(job, offers), delivery)
    document = {"resources": {"max_concurrent_tasks": 1}}
    await storage.workers.register(WORKER, document, 60.0)
    first, second = await storage.board.heads(0, 2)
    async with storage.liveness.keep(GATEWAY):
        for number in range(2):
            until = clock.now() + 60.0
            await storage.workers.announce_credit(WORKER, f"p{number}", GATEWAY, until, 60.0)
        assert await match_one(storage.workers, WORKER, first) is MatchAnswer.MATCHED
        assert await match_one(storage.workers, WORKER, second) is MatchAnswer.FULL
        if kept:
            await storage.board.lease(first.task_id, job.id, 1, WORKER, 1)
            await storage.relay.run_once(0)

        clock.advance(10.1)

        worker = await storage.workers.get(WORKER)
        assert worker is not None
        assert worker.places.held == (1 if kept else 0)
        answer = MatchAnswer.FULL if kept else MatchAnswer.MATCHED
        assert await match_one(storage.workers, WORKER, second) is answer


async def test_idempotency_keys_are_forgotten_a_week_after_their_job() -> None:
    clock = ManualClock()
    storage = MemoryStorage(clock)
    await storage.open(StoreOptions(retention_seconds=60))
    key = IdempotencyKey(client="ann", key="k", fingerprint="f")
    executor = Executor(storage)
    first = await storage.jobs.create(a_job(), idempotency=key)
    claim = await executor.apply(await executor.read())

    clock.advance(30 * 86_400)
    while_it_runs = await storage.jobs.create(a_job(), idempotency=key)
    await executor.end(claim)
    clock.advance(6 * 86_400)
    within = await storage.jobs.create(a_job(), idempotency=key)
    clock.advance(86_401)
    after = await storage.jobs.create(a_job(), idempotency=key)

    assert while_it_runs.job_id == within.job_id == first.job_id
    assert after.job_id != first.job_id
    assert not after.is_repeat


def test_a_timetable_gives_what_is_due_in_order_whatever_was_changed() -> None:
    chance = random.Random(7)
    table = Timetable()
    expected: dict[Timer, float] = {}
    for _ in range(20_000):
        timer: Timer = ("wait", JobId("j"), str(chance.randrange(50)))
        if chance.random() < 0.4:
            assert table.clear(timer) == (expected.pop(timer, None) is not None)
        else:
            due = float(chance.randrange(100))
            expected[timer] = due
            table.set(timer, due)
        assert table.next_due() == min(expected.values(), default=None)
        assert len(table) == len(expected)

    fired: list[Timer] = []
    while (timer_due := table.pop_due(60.0)) is not None:
        fired.append(timer_due)

    assert fired == sorted(
        (timer for timer, due in expected.items() if due <= 60.0),
        key=lambda timer: (expected[timer], timer),
    )
    assert table.next_due() == min(due for due in expected.values() if due > 60.0)
