"""Who is alive in this process: exactly who is in the block of `keep`."""

import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from avtomatika_common.backend.ports import Liveness


class MemoryLiveness(Liveness):
    def __init__(self, on_end: Callable[[str], None]) -> None:
        """`on_end` is told each instance that is alive no more."""
        self._alive: Counter[str] = Counter()
        self._on_end = on_end

    @asynccontextmanager
    async def keep(self, instance: str) -> AsyncGenerator[None, None]:
        self._alive[instance] += 1
        try:
            yield
        finally:
            self._alive[instance] -= 1
            if not self._alive[instance]:
                del self._alive[instance]
                self._on_end(instance)

    async def is_alive(self, instance: str) -> bool:
        return self.has(instance)

    def known_seconds(self) -> float:
        return math.inf

    def has(self, instance: str) -> bool:
        """`is_alive` for those who may not await."""
        return instance in self._alive
