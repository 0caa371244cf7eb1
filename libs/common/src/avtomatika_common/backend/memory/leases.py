"""Leases in memory."""

from collections import Counter

from avtomatika_common.backend.ports import Lease, Leases, LostLease
from avtomatika_common.clock import Clock


class MemoryLeases(Leases):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[Lease, float]] = {}
        self._tokens: Counter[str] = Counter()

    def clear(self) -> None:
        self._held.clear()
        self._tokens.clear()

    def _holds(self, lease: Lease) -> bool:
        held, until = self._held.get(lease.name, (None, 0.0))
        return held == lease and self._clock.now() < until

    def check(self, lease: Lease) -> None:
        """Raises LostLease."""
        if not self._holds(lease):
            raise LostLease

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        now = self._clock.now()
        held, until = self._held.get(name, (None, 0.0))
        if held is None or until <= now:
            self._tokens[name] += 1
            held = Lease(name=name, holder=holder, token=self._tokens[name])
        elif held.holder != holder:
            return None
        self._held[name] = (held, now + seconds)
        return held

    async def renew(self, lease: Lease, seconds: float) -> None:
        self.check(lease)
        self._held[lease.name] = (lease, self._clock.now() + seconds)

    async def release(self, lease: Lease) -> None:
        if self._holds(lease):
            del self._held[lease.name]
