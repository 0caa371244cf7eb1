"""Answers that were written become certain each for itself, whatever became of the same task."""

import math

import pytest

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import LeasedTask
from avtomatika_core.job import WorkerId
from avtomatika_gateway.deliveries import Deliveries
from tests.contract.builders import Executor, lease

W1, W2 = WorkerId("w1"), WorkerId("w2")
MANY_SECONDS = 30.0
"""More than a delivery may take, less than a task has for its result."""


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


async def handed_out(storage: MemoryStorage, worker_id: WorkerId) -> LeasedTask:
    leased = await lease(storage, worker=worker_id)
    assert leased is not None
    return leased


async def is_confirmed(storage: MemoryStorage) -> bool:
    """The only timer gives time for a result."""
    due = await storage.timers.next_due(0)
    return due is not None and due > storage.clock.now() + MANY_SECONDS


async def test_what_was_written_is_confirmed_when_it_is_due(storage: MemoryStorage) -> None:
    deliveries = Deliveries(storage.board)
    await Executor(storage).dispatch()
    deliveries.written(await handed_out(storage, W1), W1, "a connection")

    await deliveries.confirm_until(-math.inf)
    assert not await is_confirmed(storage)

    await deliveries.confirm_until(math.inf)
    assert await is_confirmed(storage)


async def test_a_result_settles_only_what_its_own_worker_was_given(storage: MemoryStorage) -> None:
    deliveries = Deliveries(storage.board)
    await Executor(storage).dispatch()
    task = await handed_out(storage, W2)
    deliveries.written(task, W2, "a connection")

    deliveries.settled(task.task_id, W1)
    await deliveries.confirm_until(math.inf)

    assert await is_confirmed(storage)


async def test_an_earlier_offer_that_is_written_late_does_not_hide_the_later_one(
    storage: MemoryStorage,
) -> None:
    deliveries = Deliveries(storage.board)
    await Executor(storage).dispatch()
    first = await handed_out(storage, W1)
    await storage.board.undeliver(first.task_id, first.job_id, W1)
    second = await handed_out(storage, W2)

    deliveries.written(second, W2, "a connection")
    deliveries.written(first, W1, "another connection")
    await deliveries.confirm_until(math.inf)

    assert await is_confirmed(storage)


async def test_what_cannot_be_confirmed_ends_nothing_else(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a reply nobody expected")

    confirm = storage.board.confirm
    deliveries = Deliveries(storage.board)
    await Executor(storage).dispatch()
    task = await handed_out(storage, W1)
    monkeypatch.setattr(storage.board, "confirm", breaks)
    deliveries.written(task, W1, "a connection")
    await deliveries.confirm_until(math.inf)
    monkeypatch.setattr(storage.board, "confirm", confirm)
    deliveries.written(task, W1, "a connection")

    await deliveries.confirm_until(math.inf)

    assert await is_confirmed(storage)
