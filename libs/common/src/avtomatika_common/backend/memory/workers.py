"""The workers in memory: who is registered, which polls are open, what was promised to whom."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from avtomatika_common import codec
from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.tables import HoldChange, Tables
from avtomatika_common.backend.ports import (
    Hint,
    Mailbox,
    Match,
    MatchAnswer,
    Registered,
    WaitingTask,
    Worker,
    WorkerDirectory,
)
from avtomatika_core.job import TaskId, WorkerId

_PROMISE_SECONDS: Final = 10.0
_MAIL_KEPT: Final = 10_000
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


class _Hold(NamedTuple):
    """A place of the worker, taken until then by this offer of a task."""

    offer_number: int
    until: float


class _Mail:
    """Matches for one gateway, numbered."""

    def __init__(self) -> None:
        self.last = 0
        self.kept: deque[tuple[int, Match]] = deque(maxlen=_MAIL_KEPT)


class _Registration:
    def __init__(self, incarnation: int, document: Mapping[str, Any], expires_at: float) -> None:
        self.incarnation = incarnation
        self.expires_at = expires_at
        self.turns: dict[str, float] = {}
        self.credits: dict[str, _Credit] = {}
        self.holds: dict[TaskId, _Hold] = {}
        self.stops: dict[TaskId, None] = {}
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
    def __init__(self, tables: Tables, liveness: MemoryLiveness) -> None:
        self._tables = tables
        self._liveness = liveness
        self._incarnations = 0
        self._registrations: dict[WorkerId, _Registration] = {}
        self._mail: dict[str, _Mail] = {}
        self.gone: deque[Gone] = deque()
        """Registrations that ended and whose leases are not yet returned."""

    def clear(self) -> None:
        self._registrations.clear()
        self._mail.clear()
        self.gone.clear()

    def _live(self, worker_id: WorkerId) -> _Registration | None:
        found = self._registrations.get(worker_id)
        return found if found is not None and found.expires_at > self._now() else None

    def _now(self) -> float:
        return self._tables.clock.now()

    def _hint(self, worker_id: WorkerId) -> None:
        self._tables.hint("w", Hint(kind="worker", value=worker_id))

    # --- registrations

    async def register(
        self, worker_id: WorkerId, document: Mapping[str, Any], ttl_seconds: float
    ) -> Registered:
        live = self._live(worker_id)
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
    ) -> tuple[Mapping[str, Any], Sequence[TaskId]] | None:
        live = self._live(worker_id)
        if live is None:
            return None
        live.expires_at = self._now() + ttl_seconds
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
        return live.document, list(live.stops)

    async def leave(self, worker_id: WorkerId) -> bool:
        was_live = self._live(worker_id) is not None
        self._end(worker_id, lost=not was_live)
        return was_live

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
        now = self._now()
        return Worker(
            worker_id=worker_id,
            document=known.document,
            incarnation=known.incarnation,
            open_polls=sum(self._counts(credit, now) for credit in known.credits.values()),
            held=sum(hold.until > now for hold in known.holds.values()),
            turns=dict(known.turns),
        )

    def _counts(self, credit: _Credit, now: float) -> bool:
        return credit.until > now and self._liveness.has(credit.gateway)

    # --- polls, matches, holds

    async def announce_credit(
        self, worker_id: WorkerId, poll_id: str, gateway: str, until: float, ttl_seconds: float
    ) -> int | None:
        live = self._live(worker_id)
        if live is None:
            return None
        now = self._now()
        live.expires_at = now + ttl_seconds
        live.credits = {p: credit for p, credit in live.credits.items() if credit.until > now}
        live.credits[poll_id] = _Credit(gateway, until)
        self._hint(worker_id)
        return live.incarnation

    async def withdraw_credit(self, worker_id: WorkerId, poll_id: str) -> None:
        known = self._registrations.get(worker_id)
        if known is not None:
            known.credits.pop(poll_id, None)

    async def match(self, worker_id: WorkerId, task: WaitingTask) -> MatchAnswer:
        live = self._live(worker_id)
        if live is None or live.is_draining:
            return MatchAnswer.GONE
        now = self._now()
        live.holds = {task_id: hold for task_id, hold in live.holds.items() if hold.until > now}
        promised = live.holds.get(task.task_id)
        if promised is not None and promised.offer_number >= task.offer_number:
            return MatchAnswer.MATCHED
        usable = [poll for poll, credit in live.credits.items() if self._counts(credit, now)]
        if not usable:
            return MatchAnswer.NO_CREDIT
        if len(live.holds) - (promised is not None) >= live.most_at_once:
            return MatchAnswer.FULL
        poll_id = max(usable, key=lambda poll: live.credits[poll].until)
        gateway = live.credits.pop(poll_id).gateway
        live.holds[task.task_id] = _Hold(task.offer_number, now + _PROMISE_SECONDS)
        live.turns[task.type] = now
        match = Match(
            poll_id=poll_id,
            worker_id=worker_id,
            incarnation=live.incarnation,
            task_id=task.task_id,
            job_id=task.job_id,
            offer_number=task.offer_number,
        )
        self._send(gateway, match)
        return MatchAnswer.MATCHED

    async def end_hold(
        self,
        worker_id: WorkerId,
        task_id: TaskId,
        *,
        stop: bool = False,
        offer_number: int | None = None,
    ) -> None:
        self.change_hold("stop" if stop else "end_hold", worker_id, task_id, offer_number)

    def change_hold(
        self, change: HoldChange, worker_id: WorkerId, task_id: TaskId, offer_number: int | None
    ) -> None:
        """What became of a promised task. About an earlier offer than the one promised: no hold changes."""
        known = self._registrations.get(worker_id)
        if known is None:
            return
        hold = known.holds.get(task_id)
        is_current = hold is not None and (
            offer_number is None or hold.offer_number <= offer_number
        )
        if change == "keep_hold":
            if hold is not None and is_current:
                known.holds[task_id] = hold._replace(until=math.inf)
            return
        if is_current:
            del known.holds[task_id]
            self._hint(worker_id)
        if change == "end_hold":
            known.stops.pop(task_id, None)
        elif known.expires_at > self._now():
            known.stops[task_id] = None
            if len(known.stops) > _STOPS_KEPT:
                del known.stops[next(iter(known.stops))]

    # --- mail

    def _send(self, gateway: str, match: Match) -> None:
        mail = self._mail.setdefault(gateway, _Mail())
        mail.last += 1
        mail.kept.append((mail.last, match))
        self._tables.signals.notify(f"mail {gateway}")

    def mail_behind(self, gateway: str, position: int) -> list[tuple[int, Match]]:
        """Matches behind a position, which are numbered; those before it are forgotten."""
        mail = self._mail.get(gateway)
        if mail is None:
            return []
        while mail.kept and mail.kept[0][0] <= position:
            mail.kept.popleft()
        return list(mail.kept)

    def forget_gateway(self, gateway: str) -> None:
        """A gateway that is gone reads no mail."""
        self._mail.pop(gateway, None)


class MemoryMailbox(Mailbox):
    def __init__(self, tables: Tables, workers: MemoryWorkers) -> None:
        self._tables = tables
        self._workers = workers

    async def read(self, gateway: str, after: str) -> tuple[str, list[Match]]:
        def news() -> list[tuple[int, Match]]:
            return self._workers.mail_behind(gateway, int(after))

        seconds = self._tables.options.block_seconds
        found = await self._tables.signals.wait_for(f"mail {gateway}", news, seconds)
        position = str(found[-1][0]) if found else after
        return position, [match for _, match in found]


def _most_at_once(document: Mapping[str, Any]) -> float:
    match document.get("resources"):
        case {"max_concurrent_tasks": bool()}:
            return math.inf
        case {"max_concurrent_tasks": int() | float() as most}:
            return most
        case _:
            return math.inf
