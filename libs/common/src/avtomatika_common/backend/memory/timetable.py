"""Timers of one partition, in the order in which they are due."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Literal

from avtomatika_core.job import JobId

Kind = Literal["wait", "branch", "entry", "dispatch", "delivery", "result", "job"]
Timer = tuple[Kind, JobId, str]
"""What it is for, whose it is, and its token: a wait's, a task's id, an entry's id; a job has none."""

_MOST_STALE = 1024


class Timetable:
    def __init__(self) -> None:
        self._due: dict[Timer, float] = {}
        self._heap: list[tuple[float, Timer]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, timer: Timer) -> bool:
        return timer in self._due

    def due(self, timer: Timer) -> float | None:
        return self._due.get(timer)

    def __iter__(self) -> Iterator[Timer]:
        return iter(self._due)

    def set(self, timer: Timer, due: float) -> bool:
        """Whether it is now the first to come."""
        self._due[timer] = due
        heappush(self._heap, (due, timer))
        self._drop_stale()
        return self._heap[0] == (due, timer)

    def clear(self, timer: Timer) -> bool:
        """Whether there was one."""
        return self._due.pop(timer, None) is not None

    def next_due(self) -> float | None:
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> Timer | None:
        due = self.next_due()
        if due is None or due > now:
            return None
        timer = heappop(self._heap)[1]
        del self._due[timer]
        return timer

    def _drop_stale(self) -> None:
        """Cleared timers stay in the heap until they reach its top or are too many."""
        if len(self._heap) > 2 * len(self._due) + _MOST_STALE:
            self._heap = [(due, timer) for timer, due in self._due.items()]
            heapify(self._heap)
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
