"""Leading ends when it is told to, whatever happens at that moment."""

import asyncio

import pytest

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Lease, LostLease, StoreUnavailable
from avtomatika_common.clock import ManualClock
from avtomatika_common.leadership import Contact, lead
from tests.support import until


@pytest.mark.parametrize("fault", [StoreUnavailable, LostLease, RuntimeError])
@pytest.mark.parametrize("turns", range(8))
async def test_a_stop_in_the_moment_of_a_fault_is_not_lost(
    fault: type[Exception], turns: int
) -> None:
    clock = ManualClock()
    leases = MemoryStorage(clock).leases
    has_begun, breaks = asyncio.Event(), asyncio.Event()

    async def work(_lease: Lease) -> None:
        has_begun.set()
        await breaks.wait()
        raise fault

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        leading = group.create_task(
            lead("l", "me", work, leases=leases, clock=clock, contact=Contact(clock))
        )
        await has_begun.wait()
        breaks.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        leading.cancel()

    assert leading.cancelled()


async def test_who_lost_the_lease_tries_again() -> None:
    clock = ManualClock()
    leases = MemoryStorage(clock).leases
    tokens: list[int] = []

    async def work(lease: Lease) -> None:
        tokens.append(lease.token)
        raise LostLease

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        leading = group.create_task(
            lead("l", "me", work, leases=leases, clock=clock, contact=Contact(clock))
        )
        await until(lambda: len(tokens) >= 3)
        leading.cancel()

    assert tokens[:3] == [1, 2, 3]
