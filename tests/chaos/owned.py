"""Every key in Redis has a time to live or an owner that deletes it: the table, and who breaks it."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from tests.chaos.evidence import Evidence, KeySeen
from tests.chaos.kinds import TERMINAL
from tests.chaos.violations import Violation

_LIVENESS_MS: Final = 5_000
_MINUTE_MS: Final = 60_000
_WEEK_MS: Final = 7 * 24 * 3_600_000
_MOST_HINTS: Final = 1_200
"""`MAXLEN ~ 1000`: whole nodes of a stream go."""


class Rule(msgspec.Struct, frozen=True):
    """What may be left of keys of this name when no job is open and no worker is there."""

    names: str
    owner: str
    """Who deletes it, or what bounds it; `""`: its time to live."""
    most_ms: int | None = None
    """It has a time to live of at most so much; 0: of the retention."""
    most: int | None = None
    """It has at most so many entries."""


_P: Final = r"\{p\d\d\}:"
_W: Final = r"\{w00\}:"
_ID: Final = r"[0-9a-f-]{36}"
RULES: Final = (
    Rule("meta", "the storage, as long as there are data"),
    Rule("mended", "one number for each kind"),
    Rule(r"\{cat\}:entries", "the operator, who removes a blueprint"),
    Rule(r"\{cat\}:log", "its only entry is the version", most=1),
    Rule(r"\{sched\}:names", "the scheduler's file"),
    Rule(r"\{sched\}:log", "its only entry is the version", most=1),
    Rule(r"\{sched\}:s:tick", "the scheduler's file"),
    Rule(r"\{sched\}:lease:scheduler", "", most_ms=_LIVENESS_MS),
    Rule(r"\{sched\}:lease:scheduler:fence", "counts the holders of a lease"),
    # of a partition: jobs that have ended, and nothing of those that are open
    Rule(_P + rf"j:{_ID}(:br|:st|:res|:prog|:ev|:sig|:done)?", "", most_ms=0),
    Rule(_P + r"idem:.*", "", most_ms=_WEEK_MS),
    Rule(_P + rf"made:{_ID}", "", most_ms=_WEEK_MS),
    Rule(_P + r"(new|in):default", "executors, who delete what they have answered", most=0),
    Rule(_P + r"facts", "the history service, which deletes what it has written", most=0),
    Rule(_P + r"notify", "the notifier, which deletes what it has sent", most=0),
    Rule(_P + r"out", "the watcher, which deletes what it has passed on", most=0),
    Rule(_P + r"hint", "bounded by its script", most=_MOST_HINTS),
    Rule(_P + r"count", "one number for each status and client"),
    Rule(_P + r"quar", "the operator, who takes jobs off the list"),
    Rule(_P + r"seq", "numbers the tasks"),
    Rule(_P + r"alive:.*", "", most_ms=_LIVENESS_MS),
    Rule(_P + r"lease:p\d+/(watcher|dispatcher|workers)", "", most_ms=_LIVENESS_MS),
    Rule(_P + r"lease:p\d+/(watcher|dispatcher|workers):fence", "counts the holders of a lease"),
    Rule(_P + r"gone:.*", "", most_ms=_MINUTE_MS),
    Rule(_P + r"replayed:.*", "", most_ms=_MINUTE_MS),
    # of workers: they have all signed off
    Rule(_W + r"gone", "the watcher, which deletes what it has passed on", most=0),
    Rule(_W + r"hint", "bounded by its script", most=_MOST_HINTS),
    Rule(_W + r"inc", "numbers the registrations"),
    Rule(_W + r"relayed:\d+", "how far the watcher's relay is, one for each partition"),
    Rule(_W + r"mail:.*", "", most_ms=_MINUTE_MS),
    Rule(_W + r"sock:.*", "", most_ms=_MINUTE_MS),
    Rule(_W + r"alive:.*", "", most_ms=_LIVENESS_MS),
)
PREFIX: Final = "avtomatika:"


def rule_of(name: str) -> Rule | None:
    for rule in RULES:
        if re.fullmatch(PREFIX + rule.names, name):
            return rule
    return None


def ownership_violations(evidence: Evidence) -> Iterator[Violation]:
    for key in evidence.keys:
        if problem := _problem(key, evidence.retention_seconds):
            yield Violation("key", "", f"{key.name} {problem}")
    for consumer in evidence.consumers:
        if consumer.pending:
            yield Violation("pending", "", f"{consumer}")
        if not consumer.is_alive:
            yield Violation("consumer of nobody", "", f"{consumer}")
    for status, count in evidence.counts.items():
        if status not in TERMINAL and count != 0:
            yield Violation("count", "", f"{count} jobs count as {status}")


def _problem(key: KeySeen, retention_seconds: float) -> str:
    rule = rule_of(key.name)
    if rule is None:
        return "should be gone"
    if rule.most_ms is not None:
        most_ms = rule.most_ms or retention_seconds * 1000
        if key.ttl_ms < 0:
            return "stays for ever"
        if key.ttl_ms > most_ms:
            return f"stays for {key.ttl_ms} ms"
    if rule.most is not None and key.size > rule.most:
        return f"has {key.size} entries"
    return ""
