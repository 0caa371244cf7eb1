"""The workers in memory: who is registered, which polls are open, what was promised to whom."""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from avtomatika_common import codec
from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.mail import MemoryMailbox
from avtomatika_common.backend.memory.sockets import Sockets
from avtomatika_common.backend.memory.tables import HoldChange, Tables
from avtomatika_common.backend.ports import (
    PROMISE_SECONDS,
    Beat,
    Hint,
    Match,
    MatchAnswer,
    Matched,
    Places,
    Promise,
    Registered,
    StopTask,
    WaitingTask,
    Worker,
    WorkerDirectory,
)
from avtomatika_core.job import JobId, TaskId, WorkerId

_STOPS_KEPT: Final = 1000
_NOT_THE_WORKERS: Final = frozenset({"worker_id", "reputation"})
"""Keys a heartbeat does not change."""


class Gone(NamedTuple):
    """A registration that ended."""

    worker_id: WorkerId
    incarnation: int
    lost: bool


class _Credit(NamedTuple):
    gateway: str
    until: float
    room: int


class _Hold(NamedTuple):
    """A place of the worker, taken until then by this offer of a task."""

    offer_number: int
    until: float


class _Registration:
    def __init__(self, incarnation: int, document: Mapping[str, Any], expires_at: float) -> None:
        self.incarnation = incarnation
        self.expires_at = expires_at
        self.turns: dict[str, float] = {}
        self.credits: dict[str, _Credit] = {}
        self.holds: dict[TaskId, _Hold] = {}
        self.stops: dict[TaskId, None] = {}
        self.stamp = 0
        self.describe(document)

    def describe(self, document: Mapping[str, Any]) -> None:
        self.packed = codec.pack(document)
        self.most_at_once = _most_at_once(document)
        self.is_draining = document.get("status") == "draining"

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = codec.unpack(self.packed)
        return document


class MemoryWorkers(WorkerDirectory):
    def __init__(
        self,
        tables: Tables,
        liveness: MemoryLiveness,
        mailbox: MemoryMailbox,
        sockets: Sockets,
    ) -> None:
        self._tables = tables
        self._liveness = liveness
        self._mailbox = mailbox
        self._sockets = sockets
        self._incarnations = 0
        self._registrations: dict[WorkerId, _Registration] = {}
        self.gone: deque[Gone] = deque()
        """Registrations that ended and whose leases are not yet returned."""

    def clear(self) -> None:
        self._registrations.clear()
        self.gone.clear()

    def _live(self, worker_id: WorkerId) -> _Registration | None:
        found = self._registrations.get(worker_id)
        return found if found is not None and found.expires_at > self._now() else None

    def _now(self) -> float:
        return self._tables.clock.now()

    def _hint(self, worker_id: WorkerId) -> None:
        self._tables.hint("w", Hint(kind="worker", value=worker_id))

    def _hint_places(self, worker_id: WorkerId, known: _Registration) -> None:
        """Its places changed, nothing else of it."""
        known.stamp += 1
        hint = Hint(kind="worker", value=worker_id, places=self._places(known))
        self._tables.hint("w", hint)

    def _hint_turns(self, worker_id: WorkerId, places: Places, turns: Mapping[str, float]) -> None:
        """Several dispatchers match at a time: each tells the others whose turn it was."""
        hint = Hint(kind="worker", value=worker_id, places=places, turns=dict(turns))
        self._tables.hint("w", hint)

    def _places(self, known: _Registration) -> Places:
        now = self._now()
        return Places(
            incarnation=known.incarnation,
            room=sum(one.room for one in known.credits.values() if self._counts(one, now)),
            held=sum(hold.until > now for hold in known.holds.values()),
            stamp=known.stamp,
        )

    def registered(self) -> list[WorkerId]:
        return list(self._registrations)

    def kept_places(self, worker_id: WorkerId) -> list[tuple[TaskId, int]]:
        """Task and number of its offer for each place of a worker whose lease is known here."""
        known = self._registrations.get(worker_id)
        return [
            (task_id, hold.offer_number)
            for task_id, hold in (known.holds.items() if known else ())
            if hold.until == math.inf
        ]

    # --- registrations

    async def register(
        self, worker_id: WorkerId, document: Mapping[str, Any], ttl_seconds: float
    ) -> Registered:
        live = self._live(worker_id)
        if live is not None:
            self._sockets.close(worker_id)
        earlier = self._end(worker_id, lost=True)
        self._incarnations += 1
        new = _Registration(self._incarnations, document, self._now() + ttl_seconds)
        if earlier is not None:
            new.turns = earlier.turns
        self._registrations[worker_id] = new
        self._hint(worker_id)
        return Registered(
            incarnation=new.incarnation, replaced=None if live is None else live.document
        )

    def _end(self, worker_id: WorkerId, *, lost: bool) -> _Registration | None:
        ended = self._registrations.pop(worker_id, None)
        if ended is not None:
            self.gone.append(Gone(worker_id, ended.incarnation, lost))
            self._hint(worker_id)
        return ended

    async def beat(
        self, worker_id: WorkerId, changes: Mapping[str, Any] | None, ttl_seconds: float
    ) -> Beat | None:
        live = self._renewed(worker_id, ttl_seconds)
        if live is None:
            return None
        document = live.document
        changed = {
            key: value
            for key, value in (changes or {}).items()
            if key not in _NOT_THE_WORKERS and (key not in document or document[key] != value)
        }
        if changed:
            live.describe(document | changed)
            if changed.keys() != {"current_tasks"}:
                self._hint(worker_id)
        current = (changes or {}).get("current_tasks")
        if isinstance(current, list):
            live.stops = {task_id: None for task_id in live.stops if task_id in current}
        return Beat(
            document=live.document,
            cancel_task_ids=list(live.stops),
            held=self._places(live).held,
        )

    def _renewed(self, worker_id: WorkerId, ttl_seconds: float) -> _Registration | None:
        """Also one whose time is over and that nobody has ended."""
        known, now = self._registrations.get(worker_id), self._now()
        if known is not None:
            if known.expires_at <= now:
                self._hint(worker_id)
            known.expires_at = now + ttl_seconds
        return known

    async def leave(self, worker_id: WorkerId) -> bool:
        return self._end(worker_id, lost=False) is not None

    async def expire(self) -> int:
        now = self._now()
        over = [w for w, known in self._registrations.items() if known.expires_at <= now]
        for worker_id in over:
            self._end(worker_id, lost=True)
        return len(over)

    async def next_expiry(self) -> float | None:
        return min((known.expires_at for known in self._registrations.values()), default=None)

    # --- looking at them

    async def get(self, worker_id: WorkerId) -> Worker | None:
        live = self._live(worker_id)
        return None if live is None else self._worker(worker_id, live)

    async def get_all(self, worker_ids: Collection[WorkerId]) -> list[Worker]:
        found = [(worker_id, self._live(worker_id)) for worker_id in worker_ids]
        return [self._worker(worker_id, live) for worker_id, live in found if live is not None]

    async def live(self) -> list[Worker]:
        now = self._now()
        return [
            self._worker(worker_id, known)
            for worker_id, known in self._registrations.items()
            if known.expires_at > now
        ]

    async def count(self) -> int:
        now = self._now()
        return sum(known.expires_at > now for known in self._registrations.values())

    def _worker(self, worker_id: WorkerId, known: _Registration) -> Worker:
        return Worker(
            worker_id=worker_id,
            document=known.document,
            places=self._places(known),
            turns=dict(known.turns),
        )

    def _counts(self, credit: _Credit, now: float) -> bool:
        return credit.until > now and self._liveness.has(credit.gateway)

    # --- polls, matches, holds

    async def announce_credit(
        self,
        worker_id: WorkerId,
        poll_id: str,
        gateway: str,
        until: float,
        ttl_seconds: float,
        *,
        room: int = 1,
    ) -> int | None:
        live = self._renewed(worker_id, ttl_seconds)
        if live is None:
            return None
        now = self._now()
        live.credits = {p: credit for p, credit in live.credits.items() if credit.until > now}
        live.credits[poll_id] = _Credit(gateway, until, room)
        self._hint_places(worker_id, live)
        return live.incarnation

    async def withdraw_credit(self, worker_id: WorkerId, poll_id: str) -> None:
        known = self._registrations.get(worker_id)
        if known is not None and known.credits.pop(poll_id, None) is not None:
            self._hint_places(worker_id, known)

    async def match(self, matches: Sequence[tuple[WorkerId, WaitingTask]]) -> Matched:
        opened: dict[WorkerId, _Opened] = {}
        answers = [self._promise(worker_id, task, opened) for worker_id, task in matches]
        for one in opened.values():
            for gateway, match in one.mail:
                self._mailbox.send(gateway, match)
        places: dict[WorkerId, Places] = {}
        for worker_id in dict.fromkeys(worker_id for worker_id, _ in matches):
            if (live := self._live(worker_id)) is not None and not live.is_draining:
                live.stamp += 1
                places[worker_id] = self._places(live)
                if self._tables.options.partitions > 1 and opened.get(worker_id):
                    self._hint_turns(worker_id, places[worker_id], opened[worker_id].turns)
        return Matched(answers=answers, places=places)

    def _promise(
        self, worker_id: WorkerId, task: WaitingTask, opened: dict[WorkerId, "_Opened"]
    ) -> MatchAnswer:
        live = self._live(worker_id)
        if live is None or live.is_draining:
            return MatchAnswer.GONE
        now = self._now()
        live.holds = {task_id: hold for task_id, hold in live.holds.items() if hold.until > now}
        promised = live.holds.get(task.task_id)
        if promised is not None and promised.offer_number >= task.offer_number:
            return MatchAnswer.MATCHED
        credit = opened.setdefault(worker_id, _Opened())
        usable = [poll for poll, one in live.credits.items() if self._counts(one, now)]
        if not (credit.left or usable):
            return MatchAnswer.NO_CREDIT
        if len(live.holds) - (promised is not None) >= live.most_at_once:
            return MatchAnswer.FULL
        if not credit.left:
            poll_id = max(usable, key=lambda poll: live.credits[poll].until)
            gateway, _, credit.left = live.credits.pop(poll_id)
            credit.promises = []
            match = Match(
                poll_id=poll_id,
                worker_id=worker_id,
                incarnation=live.incarnation,
                until=now + PROMISE_SECONDS,
                promises=credit.promises,
            )
            credit.mail.append((gateway, match))
        credit.left -= 1
        credit.promises.append(
            Promise(task_id=task.task_id, job_id=task.job_id, offer_number=task.offer_number)
        )
        live.holds[task.task_id] = _Hold(task.offer_number, now + PROMISE_SECONDS)
        live.turns[task.type] = credit.turns[task.type] = now
        return MatchAnswer.MATCHED

    async def end_hold(
        self,
        worker_id: WorkerId,
        task_id: TaskId,
        *,
        stop: bool = False,
        offer_number: int | None = None,
        can_be_matched: bool = False,
    ) -> None:
        change: HoldChange = "stop" if stop else "unmatched" if can_be_matched else "end_hold"
        self.change_hold(change, worker_id, task_id, offer_number, JobId(""))

    def change_hold(
        self,
        change: HoldChange,
        worker_id: WorkerId,
        task_id: TaskId,
        offer_number: int | None,
        job_id: JobId,
    ) -> None:
        """What became of a promised task. About an earlier offer than the one promised: no hold changes."""
        if change == "unmatched":
            self._tables.hint("w", Hint(kind="unmatched", value=f"{offer_number}:{task_id}"))
        known = self._registrations.get(worker_id)
        if known is None:
            return
        hold = known.holds.get(task_id)
        is_current = hold is not None and (
            offer_number is None or hold.offer_number <= offer_number
        )
        if change == "keep_hold":
            # Also when the promise has run out meanwhile: the worker does hold the task.
            if hold is None or is_current:
                known.holds[task_id] = _Hold(offer_number or 0, math.inf)
            return
        if is_current:
            del known.holds[task_id]
            self._hint_places(worker_id, known)
        if change != "stop":
            known.stops.pop(task_id, None)
        else:
            self._stop(worker_id, known, task_id, job_id)

    async def stop_task(self, worker_id: WorkerId, task_id: TaskId, job_id: JobId) -> bool:
        live = self._live(worker_id)
        return live is not None and self._stop(worker_id, live, task_id, job_id)

    def _stop(
        self, worker_id: WorkerId, known: _Registration, task_id: TaskId, job_id: JobId
    ) -> bool:
        """Heartbeats tell it until it has, its socket once. Whether a socket does."""
        is_new = task_id not in known.stops
        known.stops[task_id] = None
        if len(known.stops) > _STOPS_KEPT:
            del known.stops[next(iter(known.stops))]
        socket = self._sockets.live(worker_id)
        if socket is not None and is_new:
            stop = StopTask(
                worker_id=worker_id,
                connection=socket.connection,
                task_id=task_id,
                job_id=job_id,
            )
            self._mailbox.send(socket.gateway, stop)
        return socket is not None

    async def to_stop(self, worker_id: WorkerId) -> list[TaskId]:
        live = self._live(worker_id)
        return [] if live is None else list(live.stops)

    # --- sockets

    async def claim_socket(self, worker_id: WorkerId, gateway: str, connection: str) -> None:
        self._sockets.claim(worker_id, gateway, connection)

    async def renew_sockets(
        self, gateway: str, sockets: Sequence[tuple[WorkerId, str]]
    ) -> list[tuple[WorkerId, str]]:
        return self._sockets.renew(gateway, sockets)

    async def release_socket(self, worker_id: WorkerId, connection: str) -> None:
        self._sockets.release(worker_id, connection)


class _Opened:
    """The credit of one worker that a list of matches has opened, and the mail that goes out."""

    def __init__(self) -> None:
        self.left = 0
        self.promises: list[Promise] = []
        self.mail: list[tuple[str, Match]] = []
        self.turns: dict[str, float] = {}


def _most_at_once(document: Mapping[str, Any]) -> float:
    match document.get("resources"):
        case {"max_concurrent_tasks": bool()}:
            return math.inf
        case {"max_concurrent_tasks": int() | float() as most}:
            return most
        case _:
            return math.inf
