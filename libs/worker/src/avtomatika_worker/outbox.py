"""Brings results to one orchestrator: those that end together in one request, each until it is taken."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from avtomatika_worker.session import Drop, Park, Peer, Repeat, Session
from avtomatika_worker.spool import Spool
from rxon import BatchedResultAnswer, ResultAnswer, RxonError, Task, TaskResult, Transport

SENDERS: Final = 4
"""Requests with results that may be open at once; what ends meanwhile travels with the next."""
BATCH_MOST: Final = 100

log = logging.getLogger("avtomatika_worker")


@dataclass
class _Envelope:
    result: TaskResult
    answered: asyncio.Future[ResultAnswer | BatchedResultAnswer]

    def answer(self, answer: ResultAnswer | BatchedResultAnswer) -> None:
        if not self.answered.done():
            self.answered.set_result(answer)

    def refuse(self, error: RxonError) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)


class Outbox:
    """`reserve` says how many tasks may come back with results, and counts those places as asked
    for until `arrived` is called with what came."""

    def __init__(
        self,
        peer: Peer,
        transport: Transport,
        session: Session,
        spool: Spool,
        *,
        reserve: Callable[[Peer, Sequence[TaskResult]], int],
        arrived: Callable[[Peer, int, Sequence[Task]], None],
    ) -> None:
        self._peer = peer
        self._url = peer.orchestrator.url
        self._transport = transport
        self._session = session
        self._spool = spool
        self._reserve = reserve
        self._arrived = arrived
        self._waiting: list[_Envelope] = []
        self._has_waiting = asyncio.Event()
        self._undelivered: dict[str, TaskResult] = {}
        self._spooled: set[str] = set()
        self._parked: set[str] = set()
        self._resending = asyncio.Lock()

    @property
    def parked(self) -> frozenset[str]:
        """Ids of the tasks whose results wait for better times."""
        return frozenset(self._parked)

    @property
    def has_undelivered(self) -> bool:
        return bool(self._undelivered)

    def load(self, results: Sequence[TaskResult]) -> None:
        """Take over what an earlier run has left on disk."""
        for result in results:
            self._undelivered[result.task_id] = result
            self._spooled.add(result.task_id)
            self._parked.add(result.task_id)

    async def deliver(self, result: TaskResult) -> None:
        """Send a result, again and again where another try can help; then it is parked."""
        self._undelivered[result.task_id] = result
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = await self._send(result)
            except RxonError as error:
                match self._session.result_failed(error, attempt):
                    case Drop():
                        log.error("result refused", extra=self._about(result, error))
                        self._forget(result)
                        return
                    case Park():
                        log.error("result not delivered", extra=self._about(result, error))
                        await self._write(result)
                        self._parked.add(result.task_id)
                        return
                    case Repeat(after_seconds=pause):
                        log.warning("result not delivered yet", extra=self._about(result, error))
                        await self._write(result)
                        await asyncio.sleep(pause)
            else:
                self._delivered(result, answer)
                return

    async def resend(self) -> None:
        """Send the parked results, one try each; the first that fails ends it."""
        async with self._resending:
            for task_id in sorted(self._parked):
                result = self._undelivered[task_id]
                try:
                    answer = await self._send(result)
                except RxonError as error:
                    if not isinstance(self._session.result_failed(error, 1), Drop):
                        return
                    log.error("result refused", extra=self._about(result, error))
                    self._forget(result)
                else:
                    self._delivered(result, answer)

    async def write_undelivered(self) -> None:
        """Whatever has not arrived lies on disk after this."""
        for result in list(self._undelivered.values()):
            await self._write(result)

    def senders(self) -> Iterable[Coroutine[Any, Any, None]]:
        """To be run as long as anything is to be delivered."""
        return (self._send_what_waits() for _ in range(SENDERS))

    async def _send_what_waits(self) -> None:
        while True:
            while not self._waiting:
                self._has_waiting.clear()
                await self._has_waiting.wait()
            batch, self._waiting = self._waiting[:BATCH_MOST], self._waiting[BATCH_MOST:]
            try:
                await self._send_batch(batch)
            finally:
                for envelope in batch:
                    envelope.answered.cancel()  # no effect on those that have an answer

    async def _send(self, result: TaskResult) -> ResultAnswer | BatchedResultAnswer:
        if not self._peer.knows_batches:
            return await self._transport.send_result(result)
        envelope = _Envelope(result, asyncio.get_running_loop().create_future())
        self._waiting.append(envelope)
        self._has_waiting.set()
        answer = await envelope.answered
        if isinstance(answer, BatchedResultAnswer) and answer.status is None:
            # Refused among others: alone it gets the status code that says what to do.
            return await self._transport.send_result(result)
        return answer

    async def _send_batch(self, batch: Sequence[_Envelope]) -> None:
        results = [envelope.result for envelope in batch]
        most = self._reserve(self._peer, results)
        if len(batch) == 1 and most == 0:
            await self._send_alone(batch)
            return
        try:
            answer = await self._transport.send_results(results, most or None)
        except RxonError as error:
            self._arrived(self._peer, most, ())
            if self._session.batch_failed(self._peer, error):
                await self._send_alone(batch)
                return
            for envelope in batch:
                envelope.refuse(error)
        else:
            self._arrived(self._peer, most, answer.tasks)
            for envelope, one in zip(batch, answer.answers, strict=False):
                envelope.answer(one)
            await self._send_alone(batch[len(answer.answers) :])

    async def _send_alone(self, batch: Sequence[_Envelope]) -> None:
        async def send(envelope: _Envelope) -> None:
            try:
                envelope.answer(await self._transport.send_result(envelope.result))
            except RxonError as error:
                envelope.refuse(error)

        async with asyncio.TaskGroup() as sending:
            for envelope in batch:
                sending.create_task(send(envelope), name="result")

    def _delivered(self, result: TaskResult, answer: ResultAnswer | BatchedResultAnswer) -> None:
        log.info(
            "result delivered",
            extra={**self._about(result), "answer": answer.reason or answer.status or "ok"},
        )
        self._forget(result)

    async def _write(self, result: TaskResult) -> None:
        if result.task_id in self._spooled:
            return
        if await asyncio.to_thread(self._spool.keep, self._url, result):
            self._spooled.add(result.task_id)

    def _forget(self, result: TaskResult) -> None:
        self._undelivered.pop(result.task_id, None)
        self._parked.discard(result.task_id)
        if result.task_id in self._spooled:
            # Not in a thread: a stop that comes just now must not leave the file there.
            self._spooled.discard(result.task_id)
            self._spool.discard(self._url, result.task_id)

    def _about(self, result: TaskResult, error: RxonError | None = None) -> dict[str, str]:
        about = {"task_id": result.task_id, "job_id": result.job_id, "task_status": result.status}
        if result.error is not None:
            about["error_code"] = result.error.code
        if error is None:
            return about
        return {**about, "orchestrator": self._url, "error": str(error)}
