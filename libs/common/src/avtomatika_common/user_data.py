"""What handlers may leave in a job: values that JSON can carry, the same on every backend."""

import math
from collections.abc import Mapping
from typing import Any, cast

from avtomatika_common.codec import DEEPEST
from avtomatika_common.definitions import DefinitionError


def ensure_json(state: str, values: Mapping[str, object]) -> dict[str, Any]:
    """Plain copies of `values`: exact dict, list, str, int, float, bool and None all the way down.

    `values` has one entry per root (`state_history`, `initial_data`, `params` …), whose name
    begins the key path in the DefinitionError a value gets that JSON cannot carry. It is slow:
    ask an encoder first, and come here when that refuses.
    """
    for root, value in values.items():
        if problem := json_problem(value, root):
            raise DefinitionError(
                f"Handler for state '{state}' left {problem}, which JSON cannot carry."
            )
    return {root: _plain(value) for root, value in values.items()}


def json_problem(value: Any, path: str, *, _depth: int = 0) -> str | None:
    """`<key path> as <type>` of the first value that JSON cannot carry: `a.b[0].c as datetime`.

    Subclasses of the JSON types pass; integers have 64 bits, floats are finite, text is UTF-8.
    """
    match value:
        case None | bool():
            problem = None
        case int():
            fits = -(2**63) <= value < 2**64
            problem = None if fits else f"{path} as int of more than 64 bits"
        case float():
            problem = None if math.isfinite(value) else f"{path} as float {value}"
        case str():
            problem = None if _is_utf8(value) else f"{path} as str with a lone surrogate"
        case dict() | list() | tuple() if _depth == DEEPEST:
            problem = f"{path[:80]}… as a value nested over {DEEPEST} deep"
        case dict():
            problem = _dict_problem(cast("dict[object, object]", value), path, _depth + 1)
        case list() | tuple():
            items = enumerate(cast("list[object]", value))
            problems = (json_problem(v, f"{path}[{i}]", _depth=_depth + 1) for i, v in items)
            problem = next(filter(None, problems), None)
        case _:
            problem = f"{path} as {_type_name(value)}"
    return problem


def _dict_problem(items: dict[object, object], path: str, depth: int) -> str | None:
    for key, value in items.items():
        if not isinstance(key, str):
            return f"{path} as dict with a key of type {_type_name(key)}"
        if not _is_utf8(key):
            return f"{path} as dict with a key that has a lone surrogate"
        if problem := json_problem(value, f"{path}.{key}", _depth=depth):
            return problem
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case dict():
            items = cast("dict[str, Any]", value)
            return {str.__str__(key): _plain(item) for key, item in items.items()}
        case _:
            return [_plain(item) for item in value]


def _type_name(value: object) -> str:
    return type(value).__name__
