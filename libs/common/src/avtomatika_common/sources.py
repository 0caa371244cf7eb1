"""Where a handler may lead its job, found in its source: the handler is read, never run."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

_TARGET_ARGUMENTS: Final = {
    "transition_to": (0, "state"),
    "go_to": (0, "state"),
    "dispatch_parallel": (1, "aggregate_into"),
    "dispatch_task": (2, "transitions"),
    "await_human_approval": (2, "transitions"),
    "run_blueprint": (2, "transitions"),
    "wait_for_signal": (1, "transitions"),
}
"""Action -> position and name of the argument that says where it leads."""
_FURTHER_TARGETS: Final = "event_transitions"
"""Argument of `dispatch_task` that may say where else it leads."""
_SLEEP: Final = "sleep"
"""An action whose name others have too, `asyncio.sleep` before all; its `next_state` is named."""


class Targets(msgspec.Struct, frozen=True):
    """The states a handler leads to, in the order of its source."""

    states: tuple[str, ...] = ()
    is_complete: bool = False
    """False: it may lead elsewhere too, by a computed target or in code that was not read."""


def read_targets(handler: Callable[..., object]) -> Targets:
    """What the source of `handler` says. Without source nothing is known."""
    body = _parse(handler)
    if body is None:
        return Targets()
    nodes = [node for part in body for node in ast.walk(part)]
    found = [state for call in _action_calls(nodes) for state in _targets_of(call)]
    states = dict.fromkeys(state for state in found if state is not None)
    return Targets(tuple(states), None not in found and not _lets_actions_go(nodes))


def _parse(handler: Callable[..., object]) -> list[ast.stmt] | list[ast.expr] | None:
    """The body of the handler; its decorators and annotations are not its own code."""
    try:
        source = inspect.getsource(inspect.unwrap(handler))
        tree = ast.parse(textwrap.dedent(source))
    except (OSError, TypeError, SyntaxError):
        return None
    first = tree.body[0] if tree.body else None
    if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef):
        return first.body
    lambdas = [node.body for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
    return lambdas if len(lambdas) == 1 else None


def _action_calls(nodes: list[ast.AST]) -> list[ast.Call]:
    calls = [
        node
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr in _TARGET_ARGUMENTS or _puts_to_sleep(node))
    ]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))


def _puts_to_sleep(call: ast.Call) -> bool:
    """Whether it is the action, not a function that waits."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr == _SLEEP
        and (
            _is_actions(call.func.value)
            or any(keyword.arg == "next_state" for keyword in call.keywords)
        )
    )


def _targets_of(call: ast.Call) -> list[str | None]:
    """The states one action leads to; None stands for those that cannot be read."""
    further = [
        state
        for keyword in call.keywords
        if keyword.arg == _FURTHER_TARGETS and not _is_none(keyword.value)
        for state in _constants(keyword.value)
    ]
    return [*_first_targets_of(call), *further]


def _first_targets_of(call: ast.Call) -> list[str | None]:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr == _SLEEP:
        named = [keyword.value for keyword in call.keywords if keyword.arg == "next_state"]
        return [state for value in named for state in _constants(value)] or [None]
    position, name = _TARGET_ARGUMENTS[call.func.attr]
    for keyword in call.keywords:
        if keyword.arg == name:
            return list(_constants(keyword.value))
    before = call.args[: position + 1]
    if len(before) <= position or any(isinstance(argument, ast.Starred) for argument in before):
        return [None]
    return list(_constants(before[position]))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _constants(node: ast.expr) -> Iterator[str | None]:
    match node:
        case ast.Constant(value=str(state)):
            yield state
        case ast.IfExp():
            yield from _constants(node.body)
            yield from _constants(node.orelse)
        case ast.Dict():
            for value in node.values:
                yield from _constants(value)
        case _:
            yield None


def _lets_actions_go(nodes: list[ast.AST]) -> bool:
    """Whether code that is not read may get hold of the actions: as an argument, by another name."""
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    asked = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    return any(
        (_is_actions(node) and id(node) not in asked)
        or (
            isinstance(node, ast.Attribute)
            and (
                node.attr in _TARGET_ARGUMENTS or (node.attr == _SLEEP and _is_actions(node.value))
            )
            and id(node) not in called
        )
        for node in nodes
    )


def _is_actions(node: ast.AST) -> bool:
    match node:
        case ast.Name(id="actions" | "context"):
            return True
        case ast.Attribute(value=ast.Name(id="context"), attr="actions"):
            return True
        case _:
            return False
