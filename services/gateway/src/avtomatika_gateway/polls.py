"""Parked polls: workers that wait here for a task, and how a task reaches the one it was meant for.

A task leaves the board only for a poll that is open, and goes back to its place unless its answer
was written. Leasing runs in tasks of the service: a connection that drops cannot cut it in two.
"""

import asyncio
from collections.abc import Coroutine

import msgspec

from avtomatika_common.backend.ports import Backend, LeasedTask, Match, StoreUnavailable
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_core.job import WorkerId
from avtomatika_gateway.refusals import NotFound
from avtomatika_gateway.settings import Settings

_BACKOFF_SECONDS = 1.0
_RESET_SECONDS = 0.2  # well below the board's delivery timeout

log = get_logger()


class _Poll(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    poll_id: str
    worker_id: WorkerId
    until: float
    answer: asyncio.Future[LeasedTask | None]
    """The task to hand out; None: nothing came."""


class Polls:
    """All polls parked at one gateway."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._gateway = settings.instance_id
        self._timeout_seconds = settings.poll_timeout_seconds
        self._ttl_seconds = settings.registration_ttl_seconds
        self._clock = backend.clock
        self._workers = backend.workers
        self._board = backend.board
        self._mailbox = backend.mailbox
        self._open: dict[str, _Poll] = {}
        self._fresh: dict[object, asyncio.Event] = {}
        """Connections a task was just written to; set when one was reset."""
        self._tasks: asyncio.TaskGroup | None = None
        self._is_closing = False

    @property
    def parked(self) -> int:
        return len(self._open)

    async def serve(self, tasks: asyncio.TaskGroup) -> None:
        """Read this gateway's mail until cancelled; what it causes runs in `tasks`."""
        self._tasks, self._is_closing = tasks, False
        position = "0"
        while True:
            try:
                position, matches = await self._mailbox.read(self._gateway, position)
            except StoreUnavailable as reason:
                log.warning("mail not read", reason=str(reason))
                await asyncio.sleep(_BACKOFF_SECONDS)
                continue
            except Exception:
                log.exception("mail not read")
                await asyncio.sleep(_BACKOFF_SECONDS)
                continue
            for match in matches:
                self._in_background(self._hand_over(match))

    def close(self) -> None:
        """Answer every poll that is parked, and from now on every new one, with nothing."""
        self._is_closing = True
        for poll in self._open.values():
            if not poll.answer.done():
                poll.answer.set_result(None)

    async def wait(self, worker_id: WorkerId) -> LeasedTask | None:
        """A task for this worker, to be answered by `delivered` or `undelivered`; None: none came.

        Renews the registration. Raises NotFound where there is none.
        """
        if self._is_closing:
            return None
        poll = _Poll(
            poll_id=new_id(),
            worker_id=worker_id,
            until=self._clock.now() + self._timeout_seconds,
            answer=asyncio.get_running_loop().create_future(),
        )
        self._open[poll.poll_id] = poll
        is_taken = False
        try:
            if not await self._announce(poll):
                raise NotFound("Worker not found")
            await asyncio.wait([poll.answer], timeout=self._timeout_seconds)
            is_taken = True
        finally:
            task = self._end(poll)
            if task is not None and not is_taken:
                self.undelivered(task, worker_id)
        return task

    def delivered(self, task: LeasedTask, worker_id: WorkerId, connection: object) -> None:
        """The answer with this task was written to the worker's connection.

        It counts once the connection has not been reset for a moment: who gave up the poll as the
        answer was on its way never reads it.
        """
        reset = self._fresh[connection] = asyncio.Event()
        self._in_background(self._confirm(task, worker_id, connection, reset))

    def connection_reset(self, connection: object) -> None:
        """The worker's end refused what was sent to it."""
        if reset := self._fresh.get(connection):
            reset.set()

    async def _confirm(
        self, task: LeasedTask, worker_id: WorkerId, connection: object, reset: asyncio.Event
    ) -> None:
        try:
            async with asyncio.timeout(_RESET_SECONDS):
                await reset.wait()
        except TimeoutError:
            await self._board.confirm(
                task.task_id, task.job_id, worker_id, offer_number=task.offer_number
            )
        else:
            await self._put_back(task, worker_id)
        finally:
            if self._fresh.get(connection) is reset:
                del self._fresh[connection]

    def undelivered(self, task: LeasedTask, worker_id: WorkerId) -> None:
        """The answer could not be written: the task goes back to its place on the board."""
        self._in_background(self._put_back(task, worker_id))

    async def _put_back(self, task: LeasedTask, worker_id: WorkerId) -> None:
        log.info("task not taken", job_id=task.job_id, task_id=task.task_id, worker_id=worker_id)
        await self._board.undeliver(
            task.task_id, task.job_id, worker_id, offer_number=task.offer_number
        )

    def _end(self, poll: _Poll) -> LeasedTask | None:
        """Close the poll; the task that had reached it."""
        del self._open[poll.poll_id]
        task = poll.answer.result() if poll.answer.done() else None
        if task is None:
            poll.answer.cancel()
            self._in_background(self._workers.withdraw_credit(poll.worker_id, poll.poll_id))
        return task

    async def _announce(self, poll: _Poll) -> bool:
        incarnation = await self._workers.announce_credit(
            poll.worker_id, poll.poll_id, self._gateway, poll.until, self._ttl_seconds
        )
        return incarnation is not None

    async def _hand_over(self, match: Match) -> None:
        """Lease the matched task for the poll; where either is gone, give the other back."""
        poll = self._open.get(match.poll_id)
        if poll is None or poll.answer.done():
            await self._workers.end_hold(
                match.worker_id, match.task_id, offer_number=match.offer_number
            )
            return
        task = await self._board.lease(
            match.task_id, match.job_id, match.offer_number, match.worker_id, match.incarnation
        )
        if task is None:
            await self._workers.end_hold(
                match.worker_id, match.task_id, offer_number=match.offer_number
            )
            if not poll.answer.done() and not await self._announce(poll):
                self._settle(poll, None)
        elif not self._settle(poll, task):
            await self._put_back(task, match.worker_id)

    @staticmethod
    def _settle(poll: _Poll, task: LeasedTask | None) -> bool:
        """Answer the poll; False: it has its answer, or is gone."""
        if poll.answer.done():
            return False
        poll.answer.set_result(task)
        return True

    def _in_background(self, operation: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None, "polls are answered while the service runs"
        self._tasks.create_task(_unhurried(operation))


async def _unhurried(operation: Coroutine[None, None, None]) -> None:
    """Nobody waits for it: what fails here is mended by the timers of board, holds and credits."""
    try:
        await operation
    except StoreUnavailable as reason:
        log.warning("store unavailable", reason=str(reason))
    except Exception:
        log.exception("hand-out failed")
