"""Blocking reads of the memory store: a reader sleeps until what it reads may have changed."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from avtomatika_common.backend.ports import StoreUnavailable

T = TypeVar("T")


class Signals:
    """Wake-ups by topic. Only topics somebody waits for take room."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._is_closed = False

    def notify(self, topic: str) -> None:
        """Something of this topic changed."""
        for waiter in self._waiters.pop(topic, ()):
            if not waiter.done():
                waiter.set_result(None)

    def open(self) -> None:
        self._is_closed = False

    def close(self) -> None:
        """End all waits."""
        self._is_closed = True
        for topic in list(self._waiters):
            self.notify(topic)

    async def wait_for(self, topic: str, read: Callable[[], T], seconds: float) -> T:
        """What `read` finds as soon as it finds something, at the latest after `seconds`.

        The loop gets its turn in any case, as it does where a read goes over the network. Raises
        StoreUnavailable when the store was closed before.
        """
        if self._is_closed:
            raise StoreUnavailable("the storage is closed")
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(seconds):
                while not ((found := read()) or self._is_closed):
                    await self._next(topic)
                return found
        except TimeoutError:
            return read()

    async def _next(self, topic: str) -> None:
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(topic, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(topic) is waiters:
                del self._waiters[topic]
