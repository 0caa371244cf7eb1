"""Tasks whose answer was written: confirmed, or put back where the worker's end refused to read it.

What was written may still be lost on its way: who gave up a poll just then never reads it. So it counts
once the connection has not been reset for a moment, or once the task's result has come.
"""

import asyncio
from collections import deque
from typing import Final

import msgspec

from avtomatika_common.backend.ports import LeasedTask, TaskBoard
from avtomatika_common.logs import get_logger
from avtomatika_core.job import WorkerId
from avtomatika_gateway.background import unhurried

RESET_SECONDS: Final = 0.2
"""Well below the board's delivery timeout."""
_TOGETHER_SECONDS: Final = 0.05
"""What falls due within it is confirmed together."""

log = get_logger()


class _Written(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    task: LeasedTask
    worker_id: WorkerId
    connection: object


class Deliveries:
    """All answers of one gateway that are not certain yet."""

    def __init__(self, board: TaskBoard) -> None:
        self._board = board
        self._by_task: dict[str, list[_Written]] = {}
        """More than one where a task went back and was handed out again meanwhile."""
        self._due: deque[tuple[float, _Written]] = deque()
        self._by_connection: dict[object, list[_Written]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._has_some = asyncio.Event()

    async def serve(self, tasks: asyncio.TaskGroup) -> None:
        """Confirm what has become certain, until cancelled; what goes back does so in `tasks`."""
        self._tasks = tasks
        loop = asyncio.get_running_loop()
        while True:
            await self._has_some.wait()
            await asyncio.sleep(max(0.0, self._due[0][0] - loop.time()) + _TOGETHER_SECONDS)
            await unhurried(self.confirm_until(loop.time()))
            if not self._due:
                self._has_some.clear()

    async def confirm_until(self, due: float) -> None:
        """Confirm what was due by then (the loop's time) and whose result has not come."""
        certain: list[_Written] = []
        while self._due and self._due[0][0] <= due:
            written = self._due.popleft()[1]
            if self._forget(written):
                certain.append(written)
        # Each for itself; of one that fails the delivery timer of the board decides.
        await asyncio.gather(*(unhurried(self._confirm(written)) for written in certain))

    async def _confirm(self, written: _Written) -> None:
        task = written.task
        await self._board.confirm(
            task.task_id, task.job_id, written.worker_id, offer_number=task.offer_number
        )

    def written(self, task: LeasedTask, worker_id: WorkerId, connection: object) -> None:
        """The answer with this task was written to the worker's connection."""
        written = _Written(task=task, worker_id=worker_id, connection=connection)
        self._by_task.setdefault(task.task_id, []).append(written)
        self._by_connection.setdefault(connection, []).append(written)
        self._due.append((asyncio.get_running_loop().time() + RESET_SECONDS, written))
        self._has_some.set()

    def settled(self, task_id: str, worker_id: WorkerId) -> None:
        """The worker has the task: it sent a result."""
        for written in list(self._by_task.get(task_id, ())):
            if written.worker_id == worker_id:
                self._forget(written)

    def connection_reset(self, connection: object) -> None:
        """The worker's end refused what was sent to it: those tasks go back to the board."""
        for written in list(self._by_connection.get(connection, ())):
            self._forget(written)
            self.put_back(written.task, written.worker_id)

    def put_back(self, task: LeasedTask, worker_id: WorkerId) -> None:
        """The worker did not get the task: back to its place on the board."""
        assert self._tasks is not None, "tasks are handed out while the service runs"
        self._tasks.create_task(unhurried(self._return(task, worker_id)))

    async def _return(self, task: LeasedTask, worker_id: WorkerId) -> None:
        log.info("task not taken", job_id=task.job_id, task_id=task.task_id, worker_id=worker_id)
        await self._board.undeliver(
            task.task_id, task.job_id, worker_id, offer_number=task.offer_number
        )

    def _forget(self, written: _Written) -> bool:
        """False: it was settled or put back before."""
        of_task = self._by_task.get(written.task.task_id, [])
        if written not in of_task:
            return False
        of_connection = self._by_connection[written.connection]
        of_task.remove(written)
        of_connection.remove(written)
        if not of_task:
            del self._by_task[written.task.task_id]
        if not of_connection:
            del self._by_connection[written.connection]
        return True
