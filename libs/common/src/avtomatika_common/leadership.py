"""Being the only one who does something: a lease, renewed while the work lasts, else standing by."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, cast

from avtomatika_common.backend.ports import Lease, Leases, LostLease, StoreUnavailable
from avtomatika_common.clock import Clock
from avtomatika_common.logs import get_logger
from avtomatika_core.errors import AvtomatikaError

LEASE_SECONDS: Final = 5.0
RENEW_SECONDS: Final = 1.5
STANDBY_SECONDS: Final = 1.0
"""Pause before the next look at somebody else's lease, and after the store did not answer."""

Work = Callable[[Lease], Awaitable[None]]

log = get_logger()


class Contact:
    """When the store last answered; says once that it does not, and once that it does again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard_at = self._steady_since = -math.inf
        self._is_lost = False

    def heard(self) -> None:
        self._steady_since = self.steady_since()
        self._heard_at = self._clock.now()
        if self._is_lost:
            self._is_lost = False
            log.info("the store answers again")

    def steady_since(self) -> float:
        """Since when it has answered without a gap as long as a lease; now, if it has not."""
        now = self._clock.now()
        return now if now - self._heard_at > LEASE_SECONDS else self._steady_since

    def lost(self, reason: object) -> None:
        if not self._is_lost:
            self._is_lost = True
            log.warning("the store does not answer", reason=str(reason))

    async def pause(self) -> None:
        """Before the next try."""
        await self._clock.wait_until(self._clock.now() + STANDBY_SECONDS, asyncio.Event())


async def lead(
    name: str, holder: str, work: Work, *, leases: Leases, clock: Clock, contact: Contact
) -> None:
    """Run `work(lease)` whenever the lease `name` is ours; for ever, until cancelled.

    `work` is cancelled when the lease or the store is lost, and begins anew with the next lease;
    so does work that raises.
    """
    while True:
        # In a task of its own: a task group that is failing swallows a cancellation, and so would
        # we, were we to await the task itself.
        async with asyncio.TaskGroup() as group:
            once = _lead_once(name, holder, work, leases, clock, contact)
            leading = group.create_task(once, name=f"lead {name}")
            await asyncio.wait([leading])
        if leading.result():
            await contact.pause()


async def _lead_once(
    name: str, holder: str, work: Work, leases: Leases, clock: Clock, contact: Contact
) -> bool:
    """Whether to pause before the next try."""
    stands_by = True
    try:
        lease = await leases.acquire(name, holder, LEASE_SECONDS)
        contact.heard()
        if lease is not None:
            log.info("lease taken", lease=name, token=lease.token)
            await _work_under(lease, work, leases, clock, contact)
    except* LostLease:
        log.info("lease lost", lease=name)
        stands_by = False
    except* StoreUnavailable as errors:
        contact.lost(_cause(errors))
    except* Exception:
        log.exception("work under a lease failed", lease=name)
    return stands_by


def _cause(error: BaseException) -> BaseException:
    if isinstance(error, BaseExceptionGroup):
        return _cause(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    return error


async def _work_under(
    lease: Lease, work: Work, leases: Leases, clock: Clock, contact: Contact
) -> None:
    never = asyncio.Event()

    async def renew() -> None:
        while True:
            await clock.wait_until(clock.now() + RENEW_SECONDS, never)
            await leases.renew(lease, LEASE_SECONDS)
            contact.heard()

    async def do_work() -> None:
        await work(lease)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(renew(), name=f"renew {lease.name}")
            group.create_task(do_work(), name=lease.name)
    finally:
        with suppress(AvtomatikaError):  # it runs out by itself
            await leases.release(lease)
