"""Taking up what executors of the group left behind when they died."""

import asyncio
from collections.abc import Callable

from avtomatika_common.backend.ports import Delivery, Inbox, Liveness, StoreUnavailable
from avtomatika_common.clock import Clock
from avtomatika_common.logs import get_logger

log = get_logger()

_LOOK_SECONDS = 1.0
_CALM_SECONDS = 5.0


class TakeOver:
    """Looks at the group's consumers each second.

    One is dead when it was not alive on two looks. After a gap of our own (an outage, a stopped
    process), or when the store is another one, everybody gets time to be seen alive again first.
    """

    def __init__(
        self,
        inbox: Inbox,
        liveness: Liveness,
        clock: Clock,
        group: str,
        instance: str,
        room: Callable[[], int],
        start: Callable[[Delivery], None],
    ) -> None:
        self._inbox = inbox
        self._liveness = liveness
        self._clock = clock
        self._group = group
        self._instance = instance
        self._room = room
        self._start = start

    async def run(self) -> None:
        suspects: set[str] = set()
        last_look = self._clock.now()
        calm_since = last_look
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = self._clock.now()
            if now - last_look > 3 * _LOOK_SECONDS:
                calm_since = now
            last_look = now
            try:
                consumers = await self._inbox.consumers(self._group)
                dead = {
                    consumer.name
                    for consumer in consumers
                    if not consumer.is_alive
                    and consumer.pending
                    and consumer.name != self._instance
                }
                calm_seconds = min(now - calm_since, self._liveness.known_seconds())
                if calm_seconds >= _CALM_SECONDS:
                    for name in sorted(dead & suspects):
                        await self._take_over(name)
                suspects = dead
            except StoreUnavailable:
                suspects = set()
                calm_since = self._clock.now()

    async def _take_over(self, name: str) -> None:
        # At least one, also when all slots are taken: else new jobs would always be first.
        room = max(1, self._room())
        entries = await self._inbox.take_over(self._group, name, self._instance, room)
        if entries:
            log.warning("took over from a dead executor", executor=name, entries=len(entries))
        for delivery in entries:
            self._start(delivery)
