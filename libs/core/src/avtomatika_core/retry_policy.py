"""How often something that failed is tried again, and how long it waits for that."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import msgspec

_JITTER: Final = 0.2


class RetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Of a task, or of all handlers and tasks of a blueprint; the nearest one counts whole.

    TypeError for a field of the wrong type, ValueError for one of an impossible value.
    """

    attempts: int | None = None
    """The first one counts too. None: `JOB_MAX_RETRIES` and one."""
    delay_seconds: float | None = None
    """Before the second attempt. None: `RETRY_DELAY_SECONDS`."""
    factor: float = 2.0
    """Each further delay is so many times the one before."""
    max_delay_seconds: float = 60.0
    never: tuple[str, ...] = ()
    """Error codes of tasks after which no other attempt is made."""

    def __post_init__(self) -> None:
        if self.attempts is not None:
            _check_attempts(self.attempts)
        if self.delay_seconds is not None:
            _check_number("delay_seconds", self.delay_seconds, 0)
        _check_number("factor", self.factor, 1)
        _check_number("max_delay_seconds", self.max_delay_seconds, 0)
        if self.delay_seconds is not None and self.delay_seconds > self.max_delay_seconds:
            raise ValueError(
                f"retry.delay_seconds ({self.delay_seconds}) is above max_delay_seconds "
                f"({self.max_delay_seconds}): raise max_delay_seconds too."
            )
        msgspec.structs.force_setattr(self, "never", _codes(self.never))

    def delay(self, repeat: int, jitter: float, usual_seconds: float) -> float:
        """Seconds before repeat number `repeat` (from 1); `jitter` (-1..1) spreads it by 20 %."""
        first = usual_seconds if self.delay_seconds is None else self.delay_seconds
        try:
            grown = first * self.factor ** (repeat - 1)
        except OverflowError:
            grown = math.inf if first else 0.0
        return min(grown, self.max_delay_seconds) * (1.0 + _JITTER * jitter)


def retry_policy(value: object) -> RetryPolicy:
    """`value`, a policy or a mapping of its fields. TypeError, ValueError: what is wrong with it."""
    if isinstance(value, RetryPolicy):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"retry must be a RetryPolicy or a mapping of its fields, not {type(value).__name__}."
        )
    fields = dict(cast("Mapping[str, Any]", value))
    known = RetryPolicy.__struct_fields__
    for name in fields:
        if name not in known:
            raise ValueError(f"retry has no field {name!r}: its fields are {', '.join(known)}.")
    return RetryPolicy(**fields)


def _check_attempts(attempts: object) -> None:
    if isinstance(attempts, bool) or not isinstance(attempts, int):
        raise TypeError(f"retry.attempts must be an integer, not {type(attempts).__name__}.")
    if attempts < 1:
        raise ValueError(f"retry.attempts must be 1 or more, not {attempts}: the first one counts.")


def _check_number(name: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"retry.{name} must be a number, not {type(value).__name__}.")
    if not math.isfinite(value) or value < lowest:
        raise ValueError(f"retry.{name} must be a finite number from {lowest} on, not {value}.")


def _codes(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"retry.never must be a list of error codes, not {type(value).__name__}.")
    codes = tuple(cast("Iterable[object]", value))
    for code in codes:
        if not isinstance(code, str):
            raise TypeError(f"retry.never must hold strings, not {type(code).__name__}.")
    return cast("tuple[str, ...]", codes)
