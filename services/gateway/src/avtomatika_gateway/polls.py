"""Parked polls: workers that wait here for tasks, and how a task reaches the one it was meant for.

A task leaves the board only for a poll that is open, and goes back to its place unless its answer
was written. Leasing runs in tasks of the service: a connection that drops cannot cut it in two.
"""

import asyncio
import math
from collections.abc import Coroutine, Sequence

import msgspec

from avtomatika_common.backend.ports import Backend, LeasedTask, Match, Promise, StoreUnavailable
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_core.job import WorkerId
from avtomatika_gateway.background import unhurried
from avtomatika_gateway.deliveries import Deliveries
from avtomatika_gateway.refusals import NotFound
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.skills import SkillContracts

_PART_OF_TTL = 0.75

log = get_logger()


class _Poll(msgspec.Struct, kw_only=True, eq=False):
    poll_id: str
    worker_id: WorkerId
    room: int
    until: float
    answer: asyncio.Future[Sequence[LeasedTask]]
    """The tasks to hand out; empty: nothing came."""
    is_matched: bool = False
    """Tasks are on their way to it: it waits for them."""
    is_over: bool = False
    """Its time was over while they were."""

    @property
    def tasks(self) -> Sequence[LeasedTask]:
        """Those that have reached it."""
        is_answered = self.answer.done() and not self.answer.cancelled()
        return self.answer.result() if is_answered else ()


class Polls:
    """All polls parked at one gateway."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        deliveries: Deliveries,
        contracts: SkillContracts,
    ) -> None:
        self._gateway = settings.instance_id
        # A poll keeps its worker alive by beginning: it must end before the registration does.
        self._timeout_seconds = min(
            settings.poll_timeout_seconds, _PART_OF_TTL * settings.registration_ttl_seconds
        )
        self._ttl_seconds = settings.registration_ttl_seconds
        self._clock = backend.clock
        self._workers = backend.workers
        self._board = backend.board
        self._deliveries = deliveries
        self._contracts = contracts
        self._open: dict[str, _Poll] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._is_closing = False

    @property
    def parked(self) -> int:
        return len(self._open)

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """Take polls from now on; what outlives one runs in `tasks`."""
        self._tasks, self._is_closing = tasks, False

    def close(self) -> None:
        """Answer every poll that is parked, and from now on every new one, with nothing."""
        self._is_closing = True
        for poll in self._open.values():
            self._settle(poll, ())

    async def wait(
        self, worker_id: WorkerId, *, room: int = 1, seconds: float | None = None
    ) -> Sequence[LeasedTask]:
        """Up to `room` tasks for this worker; none if none came in the time of a poll.

        `seconds`: wait no longer than that.

        Each is to be told to `Deliveries`: as written, or to be put back. Renews the
        registration; raises NotFound where there is none.
        """
        if self._is_closing:
            return ()
        loop = asyncio.get_running_loop()
        timeout = min(self._timeout_seconds, math.inf if seconds is None else seconds)
        poll = _Poll(
            poll_id=new_id(),
            worker_id=worker_id,
            room=room,
            until=self._clock.now() + timeout,
            answer=loop.create_future(),
        )
        self._open[poll.poll_id] = poll
        time_limit = loop.call_later(timeout, self._time_is_over, poll)
        try:
            if not await self._announce(poll):
                raise NotFound("Worker not found")
            return await poll.answer
        except BaseException:
            for task in poll.tasks:
                self._deliveries.put_back(task, worker_id)
            raise
        finally:
            time_limit.cancel()
            self._end(poll)

    def _time_is_over(self, poll: _Poll) -> None:
        poll.is_over = True
        if not poll.is_matched:
            self._settle(poll, ())

    def _end(self, poll: _Poll) -> None:
        """Nothing can reach the poll any more."""
        del self._open[poll.poll_id]
        if not poll.tasks:
            poll.answer.cancel()
            self._start(self._withdraw(poll))

    async def _withdraw(self, poll: _Poll) -> None:
        await self._workers.withdraw_credit(poll.worker_id, poll.poll_id)

    async def _announce(self, poll: _Poll) -> bool:
        incarnation = await self._workers.announce_credit(
            poll.worker_id,
            poll.poll_id,
            self._gateway,
            poll.until,
            self._ttl_seconds,
            room=poll.room,
        )
        return incarnation is not None

    def matched(self, match: Match) -> None:
        """Lease the promised tasks for the poll; where one is gone, the other is given back."""
        poll = self._open.get(match.poll_id)
        if poll is None or poll.answer.done():
            self._start(self._decline_all(match))
        else:
            poll.is_matched = True
            self._start(self._hand_over(poll, match))

    async def _hand_over(self, poll: _Poll, match: Match) -> None:
        try:
            tasks = [task for task in await self._lease_all(match) if task is not None]
            if not tasks:
                poll.is_matched = False
                if not poll.is_over and await self._announce(poll):
                    return  # it waits for other tasks
        except StoreUnavailable:
            self._settle(poll, ())
            raise
        if not self._settle(poll, tasks):
            for task in tasks:
                self._deliveries.put_back(task, match.worker_id)

    async def _lease_all(self, match: Match) -> Sequence[LeasedTask | None]:
        if len(match.promises) == 1:  # as most do; a gathering would cost a task of its own
            return [await self._lease(match, match.promises[0])]
        return await asyncio.gather(*(self._lease(match, one) for one in match.promises))

    async def _decline_all(self, match: Match) -> None:
        await asyncio.gather(
            *(self._decline(match, one, can_be_matched=True) for one in match.promises)
        )

    async def _lease(self, match: Match, promise: Promise) -> LeasedTask | None:
        try:
            task = await self._board.lease(
                promise.task_id,
                promise.job_id,
                promise.offer_number,
                match.worker_id,
                match.incarnation,
                until=match.until,
            )
        except StoreUnavailable as reason:  # if it is leased, the board's delivery timer returns it
            log.warning("task not leased", task_id=promise.task_id, reason=str(reason))
            task = None
        if task is None:
            # It may stay on the board although nobody wants it any more: not to be matched at once.
            await self._decline(match, promise, can_be_matched=False)
            return None
        try:
            refusal = await self._contracts.refused_by_contract(
                task, match.worker_id, match.incarnation
            )
        except StoreUnavailable:
            self._deliveries.put_back(task, match.worker_id)
            return None
        if refusal is None:
            return task
        log.warning(
            "params violate the contract",
            job_id=task.job_id,
            task_id=task.task_id,
            worker_id=match.worker_id,
        )
        await self._board.end_lease(task.job_id, match.worker_id, refusal)
        return None

    async def _decline(self, match: Match, promise: Promise, *, can_be_matched: bool) -> None:
        try:
            await self._workers.end_hold(
                match.worker_id,
                promise.task_id,
                offer_number=promise.offer_number,
                can_be_matched=can_be_matched,
            )
        except StoreUnavailable as reason:  # the hold ends by itself
            log.warning("promise not ended", task_id=promise.task_id, reason=str(reason))

    @staticmethod
    def _settle(poll: _Poll, tasks: Sequence[LeasedTask]) -> bool:
        """Answer the poll; False: it has its answer, or is gone."""
        if poll.answer.done():
            return False
        poll.answer.set_result(tasks)
        return True

    def _start(self, operation: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None, "polls are answered while the service runs"
        self._tasks.create_task(unhurried(operation))
