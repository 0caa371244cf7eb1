"""Acts on what did not happen in time: due timers, silent workers; relays; clears away and mends.

It sleeps on the clock until the next moment something is due; a hint of an earlier one wakes it.
"""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, Final

from avtomatika_common.backend.ports import Backend, Lease
from avtomatika_common.ids import new_id
from avtomatika_common.leadership import Contact, Work, lead
from avtomatika_common.logs import get_logger
from avtomatika_watcher.reconciler import Reconciler
from avtomatika_watcher.settings import Settings

WORKERS_LEASE: Final = "p0/workers"
EARLY_SECONDS: Final = 0.01
"""Pause when the store's clock has not quite reached what ours calls due."""
HINTS_SECONDS: Final = 0.05
"""Hints at workers that come within this time are answered together."""

log = get_logger()


class WatcherService:
    name = "watcher"

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._contact = Contact(backend.clock)
        self._reconciler = Reconciler(settings, backend)
        self._holder = f"{settings.instance_id}-{new_id()}"

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._lead(WORKERS_LEASE, self._watch_workers))]
            tasks += [
                group.create_task(self._lead(f"p{partition}/watcher", self._watcher_of(partition)))
                for partition in range(self._backend.partitions)
            ]
            ready.set()
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def _lead(self, name: str, work: Work) -> None:
        await lead(
            name,
            self._holder,
            work,
            leases=self._backend.leases,
            clock=self._backend.clock,
            contact=self._contact,
        )

    # --- a partition ------------------------------------------------------------------------------

    def _watcher_of(self, partition: int) -> Work:
        async def watch(lease: Lease) -> None:
            alarm = _Alarm()
            position = await self._backend.hints.position(f"p{partition}")
            await _together(
                self._fire_timers(partition, lease, alarm),
                self._hear_of_timers(f"p{partition}", position, alarm),
                self._relay(partition),
                self._reconciler.watch(partition),
            )

        return watch

    async def _fire_timers(self, partition: int, lease: Lease, alarm: "_Alarm") -> None:
        clock, timers = self._backend.clock, self._backend.timers
        while True:
            alarm.wake.clear()
            alarm.due = math.inf  # what is set while we look may not be seen: then we look again
            due = await timers.next_due(partition)
            if due is not None and due <= clock.now():
                if fired := await timers.fire(partition, lease):
                    log.debug("timers fired", partition=partition, count=fired)
                    continue
                due = clock.now() + EARLY_SECONDS
            latest = clock.now() + self._settings.interval_seconds
            alarm.due = latest if due is None else min(due, latest)
            await clock.wait_until(alarm.due, alarm.wake)

    async def _hear_of_timers(self, source: str, position: str, alarm: "_Alarm") -> None:
        while True:
            position, hints, some_lost = await self._backend.hints.wait(
                source, position, self._settings.block_seconds
            )
            dues = [float(hint.value) for hint in hints if hint.kind == "timer"]
            if some_lost or min(dues, default=math.inf) < alarm.due:
                alarm.wake.set()

    async def _relay(self, partition: int) -> None:
        while True:
            await self._backend.relay.run_once(partition)

    # --- workers and consumers, of all partitions -------------------------------------------------

    async def _watch_workers(self, _lease: Lease) -> None:
        position = await self._backend.hints.position("w")
        await _together(
            self._expire_workers(),
            self._return_leases(position),
            self._remove_consumers(),
            self._reconciler.watch_places(),
        )

    async def _expire_workers(self) -> None:
        clock, workers = self._backend.clock, self._backend.workers
        never = asyncio.Event()
        while True:
            known_since = clock.now() - self._backend.liveness.known_seconds()
            steady_since = max(self._contact.steady_since(), known_since)
            grace_ends = steady_since + self._settings.heartbeat_seconds
            if clock.now() < grace_ends:  # they could not be heard of, or we could not hear
                await clock.wait_until(grace_ends, never)
                continue
            if expired := await workers.expire():
                log.warning("workers lost", count=expired)
            due = await workers.next_expiry()
            latest = clock.now() + self._settings.interval_seconds
            due = latest if due is None else min(due, latest)
            await clock.wait_until(max(due, clock.now() + EARLY_SECONDS), never)

    async def _return_leases(self, position: str) -> None:
        """A registration that ended hints at its worker; so does much else."""
        clock, never = self._backend.clock, asyncio.Event()
        while True:
            while returned := await self._backend.relay.return_lost():
                log.info("leases returned", workers=returned)
            await clock.wait_until(clock.now() + HINTS_SECONDS, never)
            position, _, _ = await self._backend.hints.wait(
                "w", position, self._settings.block_seconds
            )

    async def _remove_consumers(self) -> None:
        clock, inbox = self._backend.clock, self._backend.inbox
        while True:
            _, blueprints = await self._backend.catalogue.entries()
            for group in sorted({blueprint.group for blueprint in blueprints}):
                for consumer in await inbox.consumers(group):
                    is_idle = not consumer.is_alive and not consumer.pending
                    if is_idle and await inbox.remove_consumer(group, consumer.name):
                        log.info("consumer removed", group=group, consumer=consumer.name)
            await clock.wait_until(clock.now() + self._settings.interval_seconds, asyncio.Event())


class _Alarm:
    """When the timers of a partition are looked at next, and what wakes earlier."""

    def __init__(self) -> None:
        self.due = -math.inf
        self.wake = asyncio.Event()


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(part)
