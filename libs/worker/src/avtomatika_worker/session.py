"""What a worker does next: whom it asks for how many tasks, how long it waits, what it sends again.

No clock, no chance, no I/O: times and a `draw` of chance come in, decisions go out. `Run` carries
them out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import msgspec

from avtomatika_worker.orchestrators import Orchestrator, Turns
from rxon import RxonAuthError, RxonError, RxonNetworkError
from rxon.exceptions import RequestRefused

JITTER: Final = 0.2
"""The part of a pause that chance decides, so that many workers do not come back as one."""

_NOT_THERE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED})


@dataclass
class Peer:
    """One orchestrator as its answers let it appear."""

    orchestrator: Orchestrator
    registered: bool = False
    knows_batches: bool = True
    """Until it says otherwise: then it gets single results and polls until we register again."""
    resting_until: float = 0.0
    """No poll before this time."""
    is_asked: bool = False
    """A poll is open."""
    was_idle: bool = False
    """Its last poll brought nothing."""
    failed_calls: int = 0
    """In a row, of those that are repeated by themselves: register, heartbeat, poll."""


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    heartbeat_seconds: float
    pause_seconds: float
    """After the first call that failed; it doubles up to the time between heartbeats."""
    result_pause_seconds: float
    result_retries: int


class Ask(msgspec.Struct, frozen=True):
    """A poll to be made."""

    peer: Peer
    most: int


class Repeat(msgspec.Struct, frozen=True):
    after_seconds: float


class Park(msgspec.Struct, frozen=True):
    """Tries enough for now; it is sent again when the orchestrator has been heard."""


class Drop(msgspec.Struct, frozen=True):
    """Another try cannot help."""


class Session:
    """The worker's side of its talks with all orchestrators."""

    def __init__(
        self,
        orchestrators: Sequence[Orchestrator],
        *,
        places: int,
        rhythm: Rhythm,
        in_turn: bool,
        one_by_one: bool,
        draw: Callable[[], float],
    ) -> None:
        self.peers = tuple(Peer(orchestrator) for orchestrator in orchestrators)
        self.draining = False
        self.asked = 0
        """Places that open requests have asked tasks for."""
        self._places = places
        self._rhythm = rhythm
        self._turns = Turns() if in_turn else None
        self._one_by_one = one_by_one
        """What may come depends on what runs: it is said anew between one task and the next."""
        self._draw = draw

    # -- whom to ask, and for how many

    def next_poll(self, now: float, taken: int) -> Ask | None:
        """The poll to make while `taken` places are taken, if one is to be made now.

        In turn each orchestrator has a poll of its own; else, and where each task is taken with
        all others in sight, one is open at a time.
        """
        free = self._free(taken)
        waiting = [peer for peer in self._usable(now) if not peer.is_asked]
        if free < 1 or not waiting:
            return None
        if (self._turns is None or self._one_by_one) and any(peer.is_asked for peer in self.peers):
            return None
        if self._turns is None:
            return Ask(waiting[0], 1 if self._one_by_one else free)
        chosen = self._turns.choose([peer.orchestrator for peer in waiting])
        peer = next(peer for peer in waiting if peer.orchestrator is chosen)
        return Ask(peer, 1 if self._one_by_one else self._share(peer, free))

    def _share(self, peer: Peer, free: int) -> int:
        """By weight, but one place where more would lie idle: they are another's meanwhile."""
        answering = [one for one in self.peers if one is peer or not one.failed_calls]
        if len(answering) == 1:
            return free
        waiting = [one for one in answering if not one.is_asked]
        modest = [one for one in waiting if one.was_idle or not one.knows_batches]
        if peer in modest:
            return 1
        weights = sum(one.orchestrator.weight for one in waiting if one not in modest)
        return max(1, (free - len(modest)) * peer.orchestrator.weight // weights)

    def poll_began(self, ask: Ask) -> None:
        ask.peer.is_asked = True
        self.asked += ask.most

    def poll_ended(self, ask: Ask, brought: int | None) -> None:
        """With so many tasks; None: with an error."""
        ask.peer.is_asked = False
        ask.peer.was_idle = brought == 0
        self.asked -= ask.most

    def most_with_results(self, peer: Peer, now: float, taken: int) -> int:
        """How many tasks may come back with results for `peer`, `taken` counted without theirs.

        Only from whom we would ask anyway: not past an orchestrator that goes first, and not
        where several take turns.
        """
        usable = self._usable(now)
        if not usable or usable[0] is not peer or (self._turns and len(usable) > 1):
            return 0
        if self._one_by_one:
            return 0
        return self._free(taken)

    def first_rest_ends_at(self, now: float) -> float | None:
        return min((p.resting_until for p in self.peers if p.resting_until > now), default=None)

    def _free(self, taken: int) -> int:
        return 0 if self.draining else max(0, self._places - taken - self.asked)

    def _usable(self, now: float) -> list[Peer]:
        return [peer for peer in self.peers if peer.registered and peer.resting_until <= now]

    # -- what an answer means

    def registered(self, peer: Peer) -> None:
        peer.registered = True
        peer.knows_batches = True
        peer.resting_until = 0.0
        peer.failed_calls = 0

    def heard(self, peer: Peer) -> None:
        peer.failed_calls = 0

    def failed(self, peer: Peer, error: RxonError) -> float:
        """Seconds until the call that failed may be made again; 0 if we have to register first."""
        if peer.registered and _status(error) == HTTPStatus.NOT_FOUND:
            peer.registered = False
            peer.resting_until = 0.0
            return 0.0
        peer.failed_calls += 1
        asked_for = _retry_after(error)
        if asked_for is not None:
            return self._later(asked_for)
        longest = max(self._rhythm.heartbeat_seconds, self._rhythm.pause_seconds)
        doubled = self._rhythm.pause_seconds * 2 ** min(peer.failed_calls - 1, 16)
        return self._around(min(doubled, longest))

    def poll_failed(self, peer: Peer, error: RxonError, now: float) -> None:
        pause = self.failed(peer, error)
        peer.resting_until = now + pause if peer.registered else 0.0

    def batch_failed(self, peer: Peer, error: RxonError) -> bool:
        """Whether the results of a batch should be sent one by one instead.

        Where there is no such endpoint that holds for ever. Another refusal of the whole is none
        of each: it may have been too large.
        """
        if _status(error) in _NOT_THERE:
            peer.knows_batches = False
            return True
        return _is_final(error)

    def result_failed(self, error: RxonError, attempt: int) -> Repeat | Park | Drop:
        """What becomes of a result (or an event) after its `attempt`, counted from 1, failed."""
        if _is_final(error):
            return Drop()
        if attempt > self._rhythm.result_retries:
            return Park()
        asked_for = _retry_after(error)
        pause = self._rhythm.result_pause_seconds * 2.0 ** (attempt - 1)
        return Repeat(self._later(pause if asked_for is None else asked_for))

    # -- how long to wait

    def seconds_to_next_beat(self) -> float:
        """Never more than the interval: an orchestrator counts on it."""
        return self._rhythm.heartbeat_seconds * (1 - JITTER * self._draw())

    def seconds_to_reconnect(self, pause_seconds: float) -> float:
        return self._later(pause_seconds)

    def _later(self, seconds: float) -> float:
        return seconds * (1 + JITTER * self._draw())

    def _around(self, seconds: float) -> float:
        return seconds * (1 + JITTER * (2 * self._draw() - 1))


def is_not_there(error: RxonError) -> bool:
    """The orchestrator does not know this kind of request."""
    return _status(error) in _NOT_THERE


def hint_for(error: RxonError) -> str | None:
    """What a person may do about a registration that fails."""
    match error:
        case RxonAuthError():
            return "set WORKER_TOKEN to a token this orchestrator knows"
        case RxonNetworkError():
            return "check that it runs, and its URL"
        case RequestRefused() if is_not_there(error):
            return "no orchestrator takes workers there: check its URL"
        case _:
            return None


def _is_final(error: RxonError) -> bool:
    """The request will never be accepted as it is. A wrong token may be mended."""
    status = _status(error)
    return status is not None and status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS


def _status(error: RxonError) -> int | None:
    return error.status if isinstance(error, RequestRefused) else None


def _retry_after(error: RxonError) -> float | None:
    return error.retry_after if isinstance(error, RequestRefused) else None
