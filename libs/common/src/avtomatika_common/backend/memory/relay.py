"""The relay in memory: what partitions decided about workers' places, and what became of workers."""

from avtomatika_common.backend.memory.board import MemoryBoard
from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.memory.workers import MemoryWorkers
from avtomatika_common.backend.ports import Relay


class MemoryRelay(Relay):
    def __init__(self, tables: Tables, board: MemoryBoard, workers: MemoryWorkers) -> None:
        self._tables = tables
        self._board = board
        self._workers = workers

    async def run_once(self, partition: int) -> int:
        seconds = self._tables.options.block_seconds
        return await self._tables.signals.wait_for(
            f"out {partition}", lambda: self._apply(partition), seconds
        )

    def _apply(self, partition: int) -> int:
        out = self._tables.partitions[partition].out
        applied = 0
        while out:
            self._workers.change_hold(*out.popleft())
            applied += 1
        return applied

    async def return_lost(self) -> int:
        returned = 0
        while self._workers.gone:
            gone = self._workers.gone[0]
            for number in range(self._tables.options.partitions):
                await self._board.return_leases(
                    number, gone.worker_id, gone.incarnation, lost=gone.lost
                )
            self._workers.gone.popleft()
            returned += 1
        return returned
