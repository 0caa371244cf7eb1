"""Gives every waiting task, by priority and then first in, first out, to a worker that is free now.

Hints wake it; what it knows of workers and boards it has read. Two dispatchers of one partition
would only lose races: the store takes a worker's open poll once and leases a task once.
"""

import asyncio
import math
import random
from collections.abc import Callable
from typing import Final

from avtomatika_common.backend.ports import (
    Backend,
    Lease,
    MatchAnswer,
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

FULL_READ_SECONDS: Final = 30.0
"""Hints are not the truth: so often it is read as a whole."""
MATCH_MEMORY_SECONDS: Final = 3.0
"""How long a matched task is left alone: its gateway is about to take it off the board."""
FEW_HEADS: Final = 32
"""A board that lists fewer tasks has no more."""
HEADS: Final = 64
MOST_HEADS: Final = 512
FEW_CHANGED: Final = 64
"""So many workers are read one by one."""

log = get_logger()


class _Board:
    """The first waiting tasks of one partition that may be matched."""

    def __init__(self) -> None:
        self.heads: list[tuple[WaitingTask, Demand]] = []
        self.is_stale = True
        self.has_more = False
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
        self._workers = FreeWorkers(settings.soft_limit, draw)
        self._boards: dict[int, _Board] = {}
        self._changed: set[WorkerId] = set()
        self._must_read_all = True
        self._next_full_read = -math.inf
        self._matched: dict[tuple[TaskId, int], float] = {}
        self._next_forgetting = math.inf
        self._reasons: dict[TaskId, str] = {}
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
                if some_lost or any(hint.kind == "task" for hint in hints):
                    board.is_stale = True
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
                self._changed.update(WorkerId(hint.value) for hint in hints)
                self._wake.set()

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
        while self._must_read_all or self._changed or self._is_stale():
            await self._read_workers()
            for partition, board in list(self._boards.items()):
                if board.is_stale:
                    await self._read_board(partition, board)
            await self._match_heads()
        await self._explain_waiting()
        return min(self._next_full_read, self._next_forgetting)

    def _is_stale(self) -> bool:
        return any(board.is_stale for board in self._boards.values())

    def _mark_boards_stale(self) -> None:
        for board in self._boards.values():
            board.is_stale = True

    def _forget_matches(self, now: float) -> None:
        """A match nobody acted on (its gateway died) is made again."""
        self._matched = {
            offer: at for offer, at in self._matched.items() if now - at < MATCH_MEMORY_SECONDS
        }
        self._next_forgetting = now + MATCH_MEMORY_SECONDS if self._matched else math.inf
        self._mark_boards_stale()

    async def _read_workers(self) -> None:
        changed, self._changed = self._changed, set()
        if self._must_read_all or len(changed) > max(FEW_CHANGED, len(self._workers) // 4):
            self._must_read_all = False
            self._workers.replace_all(await self._backend.workers.live())
        else:
            for worker_id in changed:
                await self._read_worker(worker_id)

    async def _read_worker(self, worker_id: WorkerId) -> None:
        worker = await self._backend.workers.get(worker_id)
        if worker is None:
            self._workers.remove(worker_id)
        else:
            self._workers.replace(worker)

    async def _read_board(self, partition: int, board: _Board) -> None:
        board.is_stale = False
        listed = _with_demands(await self._backend.board.heads(partition, board.room))
        board.heads = [head for head in listed if _offer(head[0]) not in self._matched]
        board.has_more = len(listed) >= FEW_HEADS
        for demand in {demand for _, demand in listed}:
            self._warn_of(demand)
        hidden = {demand for _, demand in listed} - {demand for _, demand in board.heads}
        if not hidden or not board.has_more:
            board.room = HEADS
        elif board.room < MOST_HEADS:  # behind those that are about to go there may be others
            board.room *= 2
            board.is_stale = True

    async def _match_heads(self) -> None:
        heads = [head for board in self._boards.values() for head in board.heads]
        heads.sort(key=lambda head: -head[0].priority)
        without_worker, matched = set[Demand](), set[Demand]()
        for task, demand in heads:
            if demand in without_worker:
                continue
            if await self._match(task, demand):
                matched.add(demand)
            else:
                without_worker.add(demand)
        if not matched:
            return
        for board in self._boards.values():
            board.heads = [head for head in board.heads if _offer(head[0]) not in self._matched]
            if board.has_more and not matched <= {demand for _, demand in board.heads}:
                board.is_stale = True

    async def _match(self, task: WaitingTask, demand: Demand) -> bool:
        while (worker_id := self._workers.best_for(demand)) is not None:
            answer = await self._backend.workers.match(worker_id, task)
            if answer is MatchAnswer.MATCHED:
                now = self._backend.clock.now()
                self._workers.take(worker_id, task.type, now)
                self._matched[_offer(task)] = now
                self._next_forgetting = min(self._next_forgetting, now + MATCH_MEMORY_SECONDS)
                log.debug("task matched", task_id=task.task_id, worker_id=worker_id)
                return True
            await self._read_worker(worker_id)
            self._workers.hold_back(worker_id)
        return False

    # --- what people are told ---------------------------------------------------------------------

    async def _explain_waiting(self) -> None:
        """Note why the tasks that are left wait, one at least, the rest unless there is work."""
        told, self._reasons = self._reasons, {}
        has_told = False
        for task, demand in [head for board in self._boards.values() for head in board.heads]:
            reason = self._workers.reason(demand)
            if told.get(task.task_id) != reason:
                if has_told and self._wake.is_set():
                    continue
                await self._backend.board.explain(task, reason)
                has_told = True
            self._reasons[task.task_id] = reason

    def _warn_of(self, demand: Demand) -> None:
        names = demand.ignored + demand.unreadable
        if not names or (demand.type, names) in self._warned:
            return
        self._warned.add((demand.type, names))
        log.warning(
            "resource requirements are not understood",
            task_type=demand.type,
            ignored=demand.ignored,
            never_met=demand.unreadable,
        )


def _offer(task: WaitingTask) -> tuple[TaskId, int]:
    return task.task_id, task.offer_number


def _with_demands(tasks: list[WaitingTask]) -> list[tuple[WaitingTask, Demand]]:
    demands: dict[str, Demand] = {}
    heads: list[tuple[WaitingTask, Demand]] = []
    for task in tasks:
        parts = task.type, task.resource_requirements, task.max_cost, task.strategy
        shape = shape_of(*parts)
        if shape not in demands:
            demands[shape] = demand_of(*parts)
        heads.append((task, demands[shape]))
    return heads
