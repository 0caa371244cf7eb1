"""What the verdict is reached on: plain values, taken from outside when all is over."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tests.chaos.load import Entry
from tests.chaos.marks import Mark
from tests.chaos.webhooks import Webhook

Row = dict[str, Any]
"""Of the history, as the door shows it."""


class JobSeen(msgspec.Struct):
    """One job, and all that is known of it."""

    job_id: str
    blueprint: str
    entry: Entry | None = None
    """None: no client made it, but a schedule or a parent."""
    document: dict[str, Any] | None = None
    history: list[Row] = []
    closed: dict[str, str] = {}
    """Tasks that are over, and why, as Redis knows them."""
    webhooks: list[Webhook] = []

    @property
    def status(self) -> str:
        return "lost" if self.document is None else self.document["status"]

    @property
    def state(self) -> str:
        return "" if self.document is None else self.document["current_state"]

    @property
    def data(self) -> dict[str, Any]:
        return {} if self.document is None else self.document["state_history"]

    @property
    def steps(self) -> list[str]:
        return [state for state, _ in self.data.get("steps", ())]


class KeySeen(msgspec.Struct):
    """A key in Redis. `ttl_ms` is -1 for one that stays, `size` what it has of entries."""

    name: str
    ttl_ms: int
    size: int


class ConsumerSeen(msgspec.Struct):
    stream: str
    name: str
    pending: int
    is_alive: bool


class Evidence(msgspec.Struct):
    jobs: list[JobSeen] = []
    marks: list[Mark] = []
    keys: list[KeySeen] = []
    consumers: list[ConsumerSeen] = []
    counts: dict[str, int] = {}
    """Jobs by status, as Redis counts them."""
    retention_seconds: float = 0.0
    scheduled: list[str] = []
    """Ids of the jobs that the schedule should have made."""
    dead_events: list[dict[str, Any]] = []
    mended: list[str] = []
    """Log lines of the reconciler."""
    complaints: list[str] = []
    """What a process did that none should."""

    def marks_of(self, what: str) -> list[Mark]:
        return [mark for mark in self.marks if mark["what"] == what]


class Noted:
    """The marks, ordered for questions."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self.nonces: dict[str, tuple[str, str]] = {}
        """Of each run of a handler: its job and state."""
        self.jobs_of_key: defaultdict[str, set[str]] = defaultdict(set)
        self.children_of: defaultdict[str, set[str]] = defaultdict(set)
        self.raised: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.brought: dict[str, Mark] = {}
        self.tasks_of: defaultdict[str, list[Mark]] = defaultdict(list)
        self.counted_by: defaultdict[str, set[str]] = defaultdict(set)
        """Workers that were told that their result of a task counts."""
        self.answers: list[Mark] = []
        for mark in marks:
            self._take(mark)

    def _take(self, mark: Mark) -> None:
        match mark["what"]:
            case "handler":
                self.nonces[mark["nonce"]] = (mark["job"], mark["state"])
                self.jobs_of_key[mark["key"]].add(mark["job"])
                if "parent" in mark:
                    self.children_of[mark["parent"]].add(mark["job"])
            case "raised":
                self.raised[mark["job"], mark["state"]] += 1
            case "brought":
                self.brought[mark["nonce"]] = mark
            case "task":
                self.tasks_of[mark["job"]].append(mark)
            case "answered":
                self.answers.append(mark)
                answer: Mapping[str, Any] = mark.get("answer") or {}
                if answer.get("status") == "ok":
                    self.counted_by[mark["task"]].add(mark["worker"])
            case _:
                raise ValueError(mark["what"])
