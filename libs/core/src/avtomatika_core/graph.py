"""What can be wrong with a blueprint's state graph."""

from collections.abc import Collection, Mapping

import msgspec


class StateGraph(msgspec.Struct, frozen=True, kw_only=True):
    """The states of a blueprint and where they lead, as far as that is known."""

    states: Collection[str]
    start: str
    targets: Mapping[str, Collection[str]]
    """State -> the states it leads to. One that leads nowhere may be left out."""
    unread: Collection[str] = ()
    """States that may lead elsewhere too: their handlers could not be read."""
    entered_by_rule: Collection[str] = ()
    """States the orchestrator itself sends jobs to, so nothing need lead there."""


def check_graph(blueprint: str, graph: StateGraph) -> str | None:
    """Find what would leave a job stranded.

    ValueError for a target that does not exist, and for a state nothing leads to. While some
    handler is unread it may lead to the latter, so then it is only a warning: the text returned.
    """
    for state, targets in graph.targets.items():
        for target in targets:
            if target not in graph.states:
                raise ValueError(
                    f"Blueprint '{blueprint}' has a dangling transition: "
                    f"state '{state}' leads to non-existent state '{target}'."
                )
    unreachable = sorted(set(graph.states) - _reachable(graph))
    if not unreachable:
        return None
    problem = (
        f"Blueprint '{blueprint}' has unreachable states: {', '.join(unreachable)}. "
        "All states must be reachable from the start state."
    )
    if not graph.unread:
        raise ValueError(problem)
    return problem


def _reachable(graph: StateGraph) -> set[str]:
    reached: set[str] = set()
    ahead = [graph.start, *graph.entered_by_rule]
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead.extend(graph.targets.get(state, ()))
    return reached
