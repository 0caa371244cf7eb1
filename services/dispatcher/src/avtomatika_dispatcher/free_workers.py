"""The dispatcher's view of the live workers: for every demand, the best one that is free now.

Looking for a worker costs the same with a hundred as with ten thousand: each demand in use has a
heap of its own, and a worker that changed is put on the heaps of its task types anew.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from avtomatika_common.backend.ports import Places, Worker
from avtomatika_core.job import WorkerId
from avtomatika_core.routing import (
    NEVER,
    Candidate,
    Demand,
    Unfit,
    WorkerProfile,
    preference,
    profile_of,
    unfitness,
    waiting_reason,
)

_MOST_DEMANDS: Final = 200
"""Of one task type: each keeps a heap of its workers up to date."""


class _Known(msgspec.Struct, kw_only=True):
    """A live worker; counts what was matched since it was read."""

    document: Mapping[str, Any]
    profile: WorkerProfile
    incarnation: int
    stamp: int
    room: int
    held: int
    turns: dict[str, float]
    version: int = 0

    @property
    def is_free(self) -> bool:
        limit = self.profile.max_concurrent_tasks
        return self.room > 0 and (limit is None or self.held < limit)


class _Queue:
    """The workers that fit one demand."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.verdicts: dict[WorkerId, Unfit | None] = {}
        self.count: Counter[Unfit | None] = Counter()
        self.heap: list[tuple[tuple[float, ...], int, WorkerId]] = []
        """Places of the free ones; those of too low a reputation stand behind all others."""
        self.is_used = True


class FreeWorkers:
    """`draw` gives a random number for ties; `soft_limit` is the one of strategy `overflow`.

    Workers with less than `min_reputation` count only where no better one is fit.
    """

    def __init__(
        self, soft_limit: int, draw: Callable[[], float], min_reputation: float = 0.0
    ) -> None:
        self._soft_limit = soft_limit
        self._draw = draw
        self._min_reputation = min_reputation
        self._known: dict[WorkerId, _Known] = {}
        self._by_type: dict[str, set[WorkerId]] = {}
        self._queues: dict[str, dict[Demand, _Queue]] = {}
        self._version = 0
        self._age = 0.0
        self.largest_room = 1
        """The most tasks that polls of one worker asked for since all were read."""

    def __len__(self) -> int:
        return len(self._known)

    def replace_all(self, workers: Iterable[Worker]) -> None:
        """These and no others are alive. Forgets the heaps that nobody asked for since last time."""
        self.largest_room = 1
        gone = set(self._known)
        for worker in workers:
            gone.discard(worker.worker_id)
            self.replace(worker)
        for worker_id in gone:
            self.remove(worker_id)
        for task_type, queues in list(self._queues.items()):
            for queue in [queue for queue in queues.values() if not queue.is_used]:
                del queues[queue.demand]
            for queue in queues.values():
                queue.is_used = False
            if not queues:
                del self._queues[task_type]

    def replace(self, worker: Worker) -> None:
        """Take over what the store says of a worker."""
        before = self._known.get(worker.worker_id)
        if before is not None and before.document == worker.document:
            profile = before.profile
        else:
            profile = profile_of(worker.worker_id, worker.document)
            self._move(
                worker.worker_id,
                before.profile.supported_tasks if before else frozenset(),
                profile.supported_tasks,
            )
        places = worker.places
        self.largest_room = max(self.largest_room, places.room)
        known = self._known[worker.worker_id] = _Known(
            document=worker.document,
            profile=profile,
            incarnation=places.incarnation,
            stamp=places.stamp,
            room=places.room,
            held=places.held,
            turns=dict(worker.turns),
        )
        self._requeue(known)

    def update(
        self, worker_id: WorkerId, places: Places, turns: Mapping[str, float] | None = None
    ) -> bool:
        """Take over what became of its places, and turns it had besides.

        False: it must be read, this is not the one known.
        """
        known = self._known.get(worker_id)
        if known is None or known.incarnation != places.incarnation:
            return False
        for task_type, at in (turns or {}).items():
            known.turns[task_type] = max(at, known.turns.get(task_type, NEVER))
        is_later = known.stamp < places.stamp
        if is_later:
            known.stamp, known.room, known.held = places.stamp, places.room, places.held
            self.largest_room = max(self.largest_room, places.room)
        if is_later or turns:
            self._requeue(known)
        return True

    def remove(self, worker_id: WorkerId) -> None:
        if (known := self._known.pop(worker_id, None)) is not None:
            self._move(worker_id, known.profile.supported_tasks, frozenset())

    def take(self, worker_id: WorkerId, task_type: str, now: float) -> None:
        """It was matched with a task."""
        known = self._known[worker_id]
        known.room -= 1
        known.held += 1
        known.turns[task_type] = now
        self._requeue(known)

    def hold_back(self, worker_id: WorkerId, stamp: int) -> None:
        """Ask it no more until its places change: the store refused what looked possible.

        `stamp`: of its places when it was refused; with later ones it may be asked.
        """
        known = self._known.get(worker_id)
        if known is not None and known.stamp <= stamp:
            known.room = 0
            self._requeue(known)

    def best_for(self, demand: Demand) -> WorkerId | None:
        """The free worker the demand's strategy prefers."""
        queue = self._queue(demand)
        while queue.heap:
            (is_low, *_), version, worker_id = queue.heap[0]
            if self._is_current(worker_id, version):
                return None if is_low and queue.count[None] else worker_id
            heapq.heappop(queue.heap)
        return None

    def reason(self, demand: Demand) -> str:
        """Why a task with this demand waits when `best_for` it is nobody."""
        count = self._queue(demand).count
        return waiting_reason(demand, [verdict for verdict, n in count.items() if n])

    def _is_current(self, worker_id: WorkerId, version: int) -> bool:
        known = self._known.get(worker_id)
        return known is not None and known.version == version and known.is_free

    def _move(self, worker_id: WorkerId, before: frozenset[str], now: frozenset[str]) -> None:
        """It did tasks of the types `before` and does those of `now`."""
        for task_type in now - before:
            self._by_type.setdefault(task_type, set()).add(worker_id)
        for task_type in before - now:
            self._by_type[task_type].discard(worker_id)
            if not self._by_type[task_type]:
                del self._by_type[task_type]
            for queue in self._queues.get(task_type, {}).values():
                queue.count[queue.verdicts.pop(worker_id)] -= 1

    def _queue(self, demand: Demand) -> _Queue:
        queues = self._queues.setdefault(demand.type, {})
        queue = queues.pop(demand, None)
        if queue is None:
            if len(queues) >= _MOST_DEMANDS:  # the one nobody asked for longest
                del queues[next(iter(queues))]
            queue = _Queue(demand)
            for worker_id in self._by_type.get(demand.type, ()):
                self._enter(queue, self._known[worker_id])
        queues[demand] = queue
        queue.is_used = True
        return queue

    def _requeue(self, known: _Known) -> None:
        """Put a worker that changed where it now belongs; its earlier places count no more."""
        self._version += 1
        self._age += 1 / len(self._known)
        known.version = self._version
        for task_type in known.profile.supported_tasks & self._queues.keys():
            for queue in self._queues[task_type].values():
                self._enter(queue, known)

    def _enter(self, queue: _Queue, known: _Known) -> None:
        worker_id = known.profile.worker_id
        verdict = unfitness(queue.demand, known.profile, self._min_reputation)
        if worker_id in queue.verdicts:
            queue.count[queue.verdicts[worker_id]] -= 1
        queue.verdicts[worker_id] = verdict
        queue.count[verdict] += 1
        is_low = verdict is Unfit.REPUTATION
        if not known.is_free or not (is_low or verdict is None):
            return
        candidate = Candidate(
            profile=known.profile,
            held=known.held,
            last_turn=known.turns.get(queue.demand.type, NEVER),
            draw=self._age + self._draw(),  # so that nobody is unlucky for ever
        )
        place = (is_low, *preference(queue.demand, candidate, self._soft_limit))
        heapq.heappush(queue.heap, (place, known.version, worker_id))
        if len(queue.heap) > 2 * len(queue.verdicts) + 64:  # mostly places that count no more
            queue.heap = [entry for entry in queue.heap if self._is_current(entry[2], entry[1])]
            heapq.heapify(queue.heap)
