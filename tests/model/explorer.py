"""Walks through every state a model can reach, breadth first: what it finds has a shortest schedule."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

S = TypeVar("S")


class Move(NamedTuple):
    """One action that is possible in a state. `is_fault`: what must be endured, and never has to come."""

    perform: Callable[[], str]
    """Changes the model and says what happened."""
    is_fault: bool = False


class Model(Protocol[S]):
    def first(self) -> S: ...

    def enter(self, state: S) -> None:
        """Make `state` the present one."""
        ...

    def moves(self) -> Sequence[Move]:
        """What may happen now. They may be performed in any state equal to the present one."""
        ...

    def leave(self) -> S:
        """The present state."""
        ...

    def key(self, state: S) -> bytes:
        """The same for states from which the same may happen."""
        ...

    def check(self, before: S) -> None:
        """Raises Violation: what holds in the present state, and since the one before it."""
        ...

    def check_end(self) -> None:
        """Raises Violation: what holds in the present state, where nothing has to come any more."""
        ...


class Violation(Exception):
    """A promise that a schedule breaks."""


class Broken(AssertionError):
    def __init__(self, what: str, schedule: Sequence[str]) -> None:
        lines = "".join(f"\n  {number}. {line}" for number, line in enumerate(schedule, 1))
        super().__init__(f"{what}\nafter a shortest schedule:{lines}")
        self.what = what
        self.schedule = schedule


class Explored(NamedTuple):
    states: int
    moves: int
    schedules: int
    """How many ways lead from the first state to one where nothing has to come."""
    longest: int


_Key = bytes
_Reached = dict[_Key, tuple[_Key, str] | None]
"""State -> from where, and by what, it was reached first."""


def explore(model: Model[Any], most_states: int) -> Explored:
    """Raises Broken with the first violation; `most_states` is more than there are."""
    first = model.first()
    origin = model.key(first)
    reached: _Reached = {origin: None}
    follow: dict[_Key, list[_Key]] = {}
    waiting = deque([(origin, first)])
    while waiting:
        here, state = waiting.popleft()
        follow[here] = []
        model.enter(state)
        moves = model.moves()
        if all(move.is_fault for move in moves):
            _checked(model.check_end, _schedule(reached, here))
        for move in moves:
            model.enter(state)
            last: list[str] = []
            try:
                last.append(said := move.perform())
                after = model.leave()
                model.check(state)
            except Violation as violation:
                raise Broken(str(violation), [*_schedule(reached, here), *last]) from violation
            there = model.key(after)
            follow[here].append(there)
            if there not in reached:
                reached[there] = here, said
                waiting.append((there, after))
        assert len(reached) <= most_states, f"more than {most_states} states"
    return _counted(origin, follow, reached)


def _checked(check: Callable[[], None], schedule: Sequence[str]) -> None:
    try:
        check()
    except Violation as violation:
        raise Broken(str(violation), schedule) from violation


def _schedule(reached: _Reached, key: _Key) -> list[str]:
    schedule: list[str] = []
    while (step := reached[key]) is not None:
        key, said = step
        schedule.append(said)
    return schedule[::-1]


def _counted(origin: _Key, follow: dict[_Key, list[_Key]], reached: _Reached) -> Explored:
    """Also raises Broken where a schedule comes back to where it was: it need never end."""
    left = dict.fromkeys(follow, 0)
    for ends in follow.values():
        for there in ends:
            left[there] += 1
    ways, depth = dict.fromkeys(follow, 0), dict.fromkeys(follow, 0)
    ways[origin] = 1
    free = [key for key, count in left.items() if not count]
    done, schedules = 0, 0
    while free:
        here = free.pop()
        done += 1
        if not follow[here]:
            schedules += ways[here]
        for there in follow[here]:
            ways[there] += ways[here]
            depth[there] = max(depth[there], depth[here] + 1)
            left[there] -= 1
            if not left[there]:
                free.append(there)
    if done < len(follow):
        circle = next(key for key in follow if left[key])
        raise Broken("a schedule goes round in a circle", _schedule(reached, circle))
    moves = sum(map(len, follow.values()))
    return Explored(len(follow), moves, schedules, max(depth.values()))
