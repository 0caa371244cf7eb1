"""Signals: what somebody outside tells a job by name, and those a job keeps until it waits for them."""

from typing import Any, Final

import msgspec
from msgspec.structs import replace

MOST_WAITING: Final = 100
"""Signals of one job that no wait has taken yet."""
LONGEST_NAME: Final = 255


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class Signal(_Value, frozen=True, kw_only=True):
    number: int
    """Place among all signals of its job, from 1."""
    name: str
    data: dict[str, Any] = {}


class Signals(_Value, frozen=True, kw_only=True):
    """What a job knows of its signals: kept beside its head, written only when it changed."""

    kept: tuple[Signal, ...] = ()
    """Those that came before their wait, oldest first."""
    taken: int = 0
    """How many waits have taken one."""
    applied_up_to: int = 0
    """All signals up to this number have come."""
    applied_beyond: tuple[int, ...] = ()
    """And these; some in between are still on their way."""

    def know(self, number: int) -> bool:
        """Whether this signal has come before."""
        return number <= self.applied_up_to or number in self.applied_beyond

    def oldest(self, name: str) -> Signal | None:
        return next((signal for signal in self.kept if signal.name == name), None)

    def keeping(self, signal: Signal) -> "Signals":
        """After `signal` came before its wait."""
        kept = sorted((*self.kept, signal), key=lambda one: one.number)
        return replace(self._knowing(signal.number), kept=tuple(kept))

    def taking(self, signal: Signal) -> "Signals":
        """After a wait took `signal`: one that was kept, or one that just came."""
        kept = tuple(one for one in self.kept if one.number != signal.number)
        return replace(self._knowing(signal.number), kept=kept, taken=self.taken + 1)

    def _knowing(self, number: int) -> "Signals":
        if self.know(number):
            return self
        up_to, beyond = self.applied_up_to, sorted((*self.applied_beyond, number))
        while beyond and beyond[0] == up_to + 1:
            up_to = beyond.pop(0)
        return replace(self, applied_up_to=up_to, applied_beyond=tuple(beyond))


NO_SIGNALS: Final = Signals()


def check_signal_name(name: str) -> str:
    """`name`, if a signal can have it; else ValueError."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(
            f"A signal's name has 1 to {LONGEST_NAME} printable characters; this one has not."
        )
    return name
