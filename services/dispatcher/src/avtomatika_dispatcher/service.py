"""Gives every waiting task, by priority and then first in, first out, to a worker that is free now.

Hints wake it; what it knows of workers and boards it has read. Two dispatchers of one partition
would only lose races: the store takes a worker's open poll once and leases a task once.
"""

import asyncio
import math
import random
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from typing import Final

from avtomatika_common.backend.ports import (
    PROMISE_SECONDS,
    Backend,
    Hint,
    Lease,
    MatchAnswer,
    Places,
    StoreUnavailable,
    WaitingTask,
)
from avtomatika_common.backend.shapes import shape_of
from avtomatika_common.ids import new_id
from avtomatika_common.leadership import Contact, lead
from avtomatika_common.logs import get_logger
from avtomatika_core.job import TaskId, WorkerId
from avtomatika_core.routing import Demand, demand_of
from avtomatika_dispatcher.free_workers import FreeWorkers
from avtomatika_dispatcher.settings import Settings

PROMISE_OVER_SECONDS: Final = PROMISE_SECONDS + 1.0
"""By the store's clock too a promise made so long ago is over."""
FULL_READ_SECONDS: Final = 30.0
"""Hints are not the truth: so often it is read as a whole."""
MATCH_MEMORY_SECONDS: Final = 3.0
"""How long a matched task is left alone: its gateway is about to take it off the board."""
FORGETTING_SECONDS: Final = 0.5
"""Between two looks for such matches that were not acted on: the boards are read again each time."""
HEADS: Final = 64
MOST_HEADS: Final = 512
MOST_KNOWN: Final = 2048
"""Tasks of one partition that are kept in mind; with more the first ones are read again."""
FEW_CHANGED: Final = 64
"""So many workers are read by name, however few there are."""
MOST_MATCHES: Final = 512
"""In one operation of the store."""
REREAD_SECONDS: Final = 0.05
"""A board whose listed tasks are all promised is read again after so long."""
EXPLAIN_SECONDS: Final = 0.2
"""How long a task waits before somebody notes why; most are gone by then."""

log = get_logger()


_Head = tuple[WaitingTask, Demand]


class _Board:
    """The first waiting tasks of one partition that may be matched."""

    def __init__(self) -> None:
        self.heads: list[_Head] = []
        """In the order in which they are handed out."""
        self.arrived: list[WaitingTask] = []
        """Came to the board since it was read."""
        self.cut: set[Demand] = set()
        """Of these the board has more than are listed, behind those that are."""
        self.is_stale = True
        self.room = HEADS
        """How many tasks of each shape to ask for."""


class DispatcherService:
    """`draw` gives the random number that decides between equal workers."""

    name = "dispatcher"

    def __init__(
        self, settings: Settings, backend: Backend, draw: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._contact = Contact(backend.clock)
        self._holder = f"{settings.instance_id}-{new_id()}"
        self._workers = FreeWorkers(settings.soft_limit, draw, settings.min_reputation)
        self._boards: dict[int, _Board] = {}
        self._changed: set[WorkerId] = set()
        self._places: dict[WorkerId, tuple[Places, dict[str, float]]] = {}
        self._unmatched: list[tuple[TaskId, int]] = []
        self._must_read_all = True
        self._next_full_read = -math.inf
        self._demands: dict[object, Demand] = {}
        self._matched: dict[tuple[TaskId, int], float] = {}
        self._next_forgetting = math.inf
        self._promised: dict[WorkerId, float] = {}
        """When to read it again: nobody tells that a promise was over and not kept."""
        self._reasons: dict[TaskId, str] = {}
        self._next_explaining = math.inf
        self._next_rereading = math.inf
        self._warned: set[tuple[str, tuple[str, ...]]] = set()
        self._wake = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._watch_workers(), name="watch workers"),
                group.create_task(self._match_tasks(), name="match tasks"),
            ]
            tasks += [
                group.create_task(self._lead(partition), name=f"dispatch partition {partition}")
                for partition in range(self._backend.partitions)
            ]
            ready.set()
            await stop.wait()
            for task in tasks:
                task.cancel()

    # --- what wakes it ----------------------------------------------------------------------------

    async def _lead(self, partition: int) -> None:
        async def watch(_lease: Lease) -> None:
            await self._watch_board(partition)

        await lead(
            f"p{partition}/dispatcher",
            self._holder,
            watch,
            leases=self._backend.leases,
            clock=self._backend.clock,
            contact=self._contact,
        )

    async def _watch_board(self, partition: int) -> None:
        source = f"p{partition}"
        position = await self._backend.hints.position(source)
        board = self._boards[partition] = _Board()
        self._must_read_all = True  # without a partition nobody looked at the workers
        self._wake.set()
        try:
            while True:
                position, hints, some_lost = await self._backend.hints.wait(
                    source, position, self._settings.block_seconds
                )
                tasks = [hint.task for hint in hints if hint.kind == "task"]
                if not (some_lost or tasks):
                    continue
                board.is_stale |= some_lost or None in tasks
                board.arrived += [task for task in tasks if task is not None]
                self._wake.set()
        finally:
            del self._boards[partition]

    async def _watch_workers(self) -> None:
        while True:
            try:
                await self._collect_changed_workers()
            except StoreUnavailable as reason:
                self._contact.lost(reason)
                await self._contact.pause()

    async def _collect_changed_workers(self) -> None:
        position = await self._backend.hints.position("w")
        self._must_read_all = True
        self._wake.set()
        while True:
            position, hints, some_lost = await self._backend.hints.wait(
                "w", position, self._settings.block_seconds
            )
            if self._boards and (some_lost or hints):
                self._must_read_all |= some_lost
                for hint in hints:
                    self._note(hint)
                self._wake.set()

    def _note(self, hint: Hint) -> None:
        if hint.kind == "unmatched":
            offer_number, _, task_id = hint.value.partition(":")
            self._unmatched.append((TaskId(task_id), int(offer_number)))
        elif hint.places is None:
            self._changed.add(WorkerId(hint.value))
        else:
            worker_id = WorkerId(hint.value)
            earlier = self._places.get(worker_id)
            turns = {**earlier[1], **hint.turns} if earlier else dict(hint.turns)
            self._places[worker_id] = hint.places, turns

    # --- matching ---------------------------------------------------------------------------------

    async def _match_tasks(self) -> None:
        while True:
            self._wake.clear()
            try:
                next_look = await self._match_all()
            except StoreUnavailable as reason:
                self._contact.lost(reason)
            except Exception:
                log.exception("matching failed")
            else:
                await self._backend.clock.wait_until(next_look, self._wake)
                continue
            self._next_full_read = -math.inf
            await self._contact.pause()

    async def _match_all(self) -> float:
        """Match until nothing is left that can be; returns when to look again unwoken."""
        if not self._boards:
            return math.inf
        now = self._backend.clock.now()
        if now >= self._next_full_read:
            self._next_full_read = now + FULL_READ_SECONDS
            self._must_read_all = True
            self._mark_boards_stale()
        if now >= self._next_forgetting:
            self._forget_matches(now)
        if now >= self._next_rereading:
            self._next_rereading = math.inf
            self._mark_boards_stale()
        while self._promised and self._next_promise_over() <= now:
            worker_id = next(iter(self._promised))
            del self._promised[worker_id]
            self._changed.add(worker_id)
        while self._has_news():
            await asyncio.sleep(0)  # on memory nothing else would get its turn
            self._forget_unmatched()
            await self._read_workers()
            for partition, board in list(self._boards.items()):
                if board.is_stale or len(board.heads) + len(board.arrived) > MOST_KNOWN:
                    await self._read_board(partition, board)
                else:
                    self._take_in(board)
            await self._match_heads()
        await self._explain_waiting()
        return min(
            self._next_full_read,
            self._next_forgetting,
            self._next_explaining,
            self._next_rereading,
            self._next_promise_over(),
        )

    def _next_promise_over(self) -> float:
        return next(iter(self._promised.values()), math.inf)  # each as long: in order

    def _has_news(self) -> bool:
        return bool(
            self._must_read_all
            or self._changed
            or self._places
            or self._unmatched
            or any(board.is_stale or board.arrived for board in self._boards.values())
        )

    def _forget_unmatched(self) -> None:
        """Promises that were not kept: these tasks can be matched again."""
        unmatched, self._unmatched = self._unmatched, []
        for offer in unmatched:
            if self._matched.pop(offer, None) is not None:
                self._mark_boards_stale()

    def _mark_boards_stale(self) -> None:
        for board in self._boards.values():
            board.is_stale = True

    def _forget_matches(self, now: float) -> None:
        """A match nobody acted on (its gateway died) is made again."""

        def is_over(offer: tuple[TaskId, int]) -> bool:
            return now - self._matched[offer] >= MATCH_MEMORY_SECONDS

        for offer in list(takewhile(is_over, self._matched)):  # in the order they were made
            del self._matched[offer]
        oldest = next(iter(self._matched.values()), math.inf)
        self._next_forgetting = max(oldest + MATCH_MEMORY_SECONDS, now + FORGETTING_SECONDS)
        self._mark_boards_stale()

    async def _read_workers(self) -> None:
        places, self._places = self._places, {}
        for worker_id, (now, turns) in places.items():
            if not self._workers.update(worker_id, now, turns):
                self._changed.add(worker_id)
        changed, self._changed = self._changed, set()
        if self._must_read_all or len(changed) > max(FEW_CHANGED, len(self._workers) // 4):
            self._must_read_all = False
            self._workers.replace_all(await self._backend.workers.live())
        elif changed:
            await self._read_by_name(changed)

    async def _read_by_name(self, worker_ids: Collection[WorkerId]) -> None:
        found = await self._backend.workers.get_all(worker_ids)
        for worker in found:
            self._workers.replace(worker)
        for worker_id in set(worker_ids) - {worker.worker_id for worker in found}:
            self._workers.remove(worker_id)

    async def _read_board(self, partition: int, board: _Board) -> None:
        board.is_stale = False
        board.arrived.clear()
        wanted = max(HEADS, min(self._workers.largest_room, MOST_HEADS))
        board.room = max(board.room, wanted)
        listed = self._with_demands(await self._backend.board.heads(partition, board.room))
        board.heads = [head for head in listed if _offer(head[0]) not in self._matched]
        board.cut = {demand for task, demand in listed if task.has_more}
        hidden = board.cut - {demand for _, demand in board.heads}
        if not hidden:
            board.room = wanted
        elif board.room < MOST_HEADS:  # behind those that are about to go there may be others
            board.room = min(2 * board.room, MOST_HEADS)
            board.is_stale = True
        else:  # nothing to be seen until some of them have gone
            self._next_rereading = self._backend.clock.now() + REREAD_SECONDS

    def _take_in(self, board: _Board) -> None:
        """What came to the board, where it belongs; what is behind the listed ones is not listed."""
        arrived, board.arrived = self._with_demands(board.arrived), []
        if not arrived:
            return
        last = {demand: _order(task) for task, demand in board.heads}
        known = {_offer(task) for task, _ in board.heads}
        new = [
            (task, demand)
            for task, demand in arrived
            if _offer(task) not in known
            and _offer(task) not in self._matched
            and not (demand in board.cut and _order(task) > last.get(demand, _FIRST))
        ]
        board.heads = sorted(board.heads + new, key=lambda head: _order(head[0]))

    def _with_demands(self, tasks: Sequence[WaitingTask]) -> list[_Head]:
        heads: list[_Head] = []
        for task in tasks:
            demand = self._demand_of(task)
            self._warn_of(demand)
            heads.append((task, demand))
        return heads

    def _demand_of(self, task: WaitingTask) -> Demand:
        needs = task.resource_requirements
        parts = task.type, needs, task.max_cost, task.strategy
        key = (task.type, task.max_cost, task.strategy) if not needs else shape_of(*parts)
        demand = self._demands.get(key)
        if demand is None:
            if len(self._demands) >= MOST_KNOWN:
                self._demands.clear()
            demand = self._demands[key] = demand_of(*parts)
        return demand

    async def _match_heads(self) -> None:
        heads = [head for board in self._boards.values() for head in board.heads]
        if len(self._boards) > 1:
            heads.sort(key=lambda head: -head[0].priority)
        has_matched = False
        while heads and (chosen := self._choose(heads)):
            has_matched = True
            await self._match(chosen)
            heads = [head for head in heads if _offer(head[0]) not in self._matched]
        if not has_matched:
            return
        for board in self._boards.values():
            board.heads = [head for head in board.heads if _offer(head[0]) not in self._matched]
            if board.cut - {demand for _, demand in board.heads}:
                board.is_stale = True

    def _choose(self, heads: list[_Head]) -> list[tuple[WorkerId, WaitingTask]]:
        """For each task in turn the best worker that is free by then."""
        chosen: list[tuple[WorkerId, WaitingTask]] = []
        without_worker = set[Demand]()
        now = self._backend.clock.now()
        for task, demand in heads:
            if demand in without_worker:
                continue
            if (worker_id := self._workers.best_for(demand)) is None:
                without_worker.add(demand)
                continue
            self._workers.take(worker_id, task.type, now)
            chosen.append((worker_id, task))
            if len(chosen) == MOST_MATCHES:
                break
        return chosen

    async def _match(self, chosen: list[tuple[WorkerId, WaitingTask]]) -> None:
        matched = await self._backend.workers.match(chosen)
        now, refusing = self._backend.clock.now(), set[WorkerId]()
        for (worker_id, task), answer in zip(chosen, matched.answers, strict=True):
            if answer is MatchAnswer.MATCHED:
                self._matched[_offer(task)] = now
                self._promised.setdefault(worker_id, now + PROMISE_OVER_SECONDS)
                log.debug("task matched", task_id=task.task_id, worker_id=worker_id)
            else:
                refusing.add(worker_id)
        self._next_forgetting = min(self._next_forgetting, now + MATCH_MEMORY_SECONDS)
        for worker_id, places in matched.places.items():
            if not self._workers.update(worker_id, places):
                self._changed.add(worker_id)
        if refusing:  # they looked free and were not
            await self._read_by_name(refusing)
            for worker_id in refusing & matched.places.keys():
                self._workers.hold_back(worker_id, matched.places[worker_id].stamp)

    # --- what people are told ---------------------------------------------------------------------

    async def _explain_waiting(self) -> None:
        """Note why the tasks that are left wait, once they have done so for a moment."""
        heads = [head for board in self._boards.values() for head in board.heads]
        now = self._backend.clock.now()
        if not heads:
            self._next_explaining = math.inf
        elif self._next_explaining == math.inf:
            self._next_explaining = now + EXPLAIN_SECONDS
        if now < self._next_explaining or not heads:
            return
        self._next_explaining = math.inf
        told = self._reasons
        self._reasons = {task.task_id: self._workers.reason(demand) for task, demand in heads}
        await asyncio.gather(
            *(
                self._backend.board.explain(task, self._reasons[task.task_id])
                for task, _ in heads
                if told.get(task.task_id) != self._reasons[task.task_id]
            )
        )

    def _warn_of(self, demand: Demand) -> None:
        names = demand.ignored + demand.unreadable
        if not names or (demand.type, names) in self._warned:
            return
        if len(self._warned) >= MOST_KNOWN:
            self._warned.clear()
        self._warned.add((demand.type, names))
        log.warning(
            "resource requirements are not understood",
            task_type=demand.type,
            ignored=demand.ignored,
            never_met=demand.unreadable,
        )


_FIRST: Final = (-math.inf, 0)


def _order(task: WaitingTask) -> tuple[float, int]:
    """Its place in the queue of a partition."""
    return -task.priority, task.place


def _offer(task: WaitingTask) -> tuple[TaskId, int]:
    return task.task_id, task.offer_number
