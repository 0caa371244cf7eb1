"""The explorer itself, on a counter that is pushed to three."""

from collections.abc import Callable, Sequence

import pytest
from typing_extensions import override

from tests.model.explorer import Broken, Explored, Model, Move, Violation, explore


class _Counter(Model[int]):
    """Steps of one and of two; a step that leads past three is taken back."""

    def __init__(self, *, steps: Sequence[int] = (1, 2), forbidden: int | None = None) -> None:
        self._steps = steps
        self._forbidden = forbidden
        self._count = 0

    @override
    def first(self) -> int:
        return 0

    @override
    def enter(self, state: int) -> None:
        self._count = state

    @override
    def moves(self) -> Sequence[Move]:
        return [Move(self._adding(step)) for step in self._steps if 0 <= self._count + step <= 3]

    def _adding(self, step: int) -> Callable[[], str]:
        def add() -> str:
            self._count += step
            return f"add {step}"

        return add

    @override
    def leave(self) -> int:
        return self._count

    @override
    def key(self, state: int) -> bytes:
        return b"%d" % state

    @override
    def check(self, before: int) -> None:
        if self._count == self._forbidden:
            raise Violation(f"the count is {self._count}")

    @override
    def check_end(self) -> None:
        if self._count != 3:
            raise Violation(f"it ends at {self._count}")


def test_every_schedule_is_counted() -> None:
    explored = explore(_Counter(), most_states=10)

    assert explored == Explored(states=4, moves=5, schedules=3, longest=3)


def test_what_is_broken_comes_with_a_shortest_schedule() -> None:
    with pytest.raises(Broken) as broken:
        explore(_Counter(forbidden=2), most_states=10)

    assert broken.value.what == "the count is 2"
    assert broken.value.schedule == ["add 2"]


def test_an_end_that_is_not_allowed_is_found() -> None:
    with pytest.raises(Broken, match="it ends at 2"):
        explore(_Counter(steps=[2]), most_states=10)


def test_a_schedule_that_never_ends_is_found() -> None:
    with pytest.raises(Broken, match="in a circle"):
        explore(_Counter(steps=[1, -1]), most_states=10)
