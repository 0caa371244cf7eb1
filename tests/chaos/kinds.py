"""What each blueprint of the load may do: its edges, and the ends a job of it may have."""

from typing import Final

EDGES: Final[dict[str, dict[str, set[str]]]] = {
    "chain": {
        "s0": {"s1"},
        "s1": {"s2"},
        "s2": {"s3"},
        "s3": {"s4"},
        "s4": {"end"},
        "end": set(),
    },
    "tasks": {
        "first": {"second", "undone"},
        "second": {"end", "undone"},
        "end": set(),
        "undone": set(),
    },
    "orphans": {"start": {"undone"}, "undone": set()},
    "fans": {"start": {"join"}, "join": {"end"}, "end": set()},
    "parents": {"start": {"end", "undone"}, "end": set(), "undone": set()},
    "children": {
        "start": {"work"},
        "work": {"end", "undone"},
        "end": set(),
        "undone": set(),
    },
    "approvals": {
        "ask": {"end", "undone", "late"},
        "end": set(),
        "undone": set(),
        "late": set(),
    },
    "naps": {"nap": {"woke"}, "woke": {"nap", "end"}, "end": set()},
    "signals": {
        "start": {"wait"},
        "wait": {"took", "undone"},
        "took": {"wait", "end"},
        "end": set(),
        "undone": set(),
    },
    "endless": {"start": {"over"}, "over": set()},
    "ticks": {"start": {"end"}, "end": set()},
}
"""From each state of a blueprint to those that may follow; the first one is its start."""

TERMINAL: Final = frozenset({"finished", "failed", "quarantined", "cancelled"})
FINISHED: Final = ("finished", "end")
UNDONE: Final = ("failed", "undone")
ENDS: Final[dict[str, set[tuple[str, str]]]] = {
    "chain": {FINISHED},
    "tasks": {FINISHED, UNDONE},
    "orphans": {UNDONE},
    "fans": {FINISHED},
    "parents": {FINISHED, UNDONE},
    "children": {FINISHED, UNDONE},
    "approvals": {FINISHED, UNDONE, ("failed", "late")},
    "naps": {FINISHED},
    "signals": {FINISHED},
    "endless": set(),
    "ticks": {FINISHED},
}
"""Status and state in which a job may end that nobody stopped."""


def start_of(blueprint: str) -> str:
    return next(iter(EDGES[blueprint]))
