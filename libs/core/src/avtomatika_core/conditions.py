"""The small language of `.when("…")`: text in, a frozen tree out, and an answer for any context.

condition  := conjunction ("or" conjunction)*
conjunction:= negation ("and" negation)*
negation   := "not" negation | "(" condition ")" | comparison
comparison := "context" "." area ("." field)+ operator value
operator   := == != > < >= <= | "in" | "not" "in"
value      := 'text' | "text" | [value, …] | number | true | false | none | null | bare text
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, cast

import msgspec

Scalar = str | int | float | bool | None
Value = Scalar | tuple["Value", ...]

OPERATORS: Final = frozenset({"==", "!=", ">", "<", ">=", "<=", "in", "not in"})


class Comparison(msgspec.Struct, frozen=True):
    """One field of the context against a constant."""

    path: tuple[str, ...]
    operator: str
    value: Value

    def evaluate(self, context: object) -> bool:
        """False where a part is missing or the types cannot be compared. Never raises."""
        try:
            found = context
            for name in self.path:
                found = _part(found, name)
            return _compare(found, self.operator, self.value)
        except Exception:  # noqa: BLE001  an object of the user's may raise anything when looked at
            return False


class AllOf(msgspec.Struct, frozen=True):
    parts: tuple["Condition", ...]

    def evaluate(self, context: object) -> bool:
        return all(part.evaluate(context) for part in self.parts)


class AnyOf(msgspec.Struct, frozen=True):
    parts: tuple["Condition", ...]

    def evaluate(self, context: object) -> bool:
        return any(part.evaluate(context) for part in self.parts)


class Not(msgspec.Struct, frozen=True):
    part: "Condition"

    def evaluate(self, context: object) -> bool:
        return not self.part.evaluate(context)


Condition = Comparison | AllOf | AnyOf | Not


def parse_condition(text: str) -> Condition:
    """The condition `text` describes. ValueError if it describes none."""
    parser = _Parser(text)
    condition = parser.condition()
    if not parser.is_at_end():
        raise parser.invalid()
    return condition


def _part(holder: object, name: str) -> object:
    """The key or attribute `name`. LookupError or AttributeError if there is none."""
    if isinstance(holder, Mapping):
        return cast("Mapping[str, object]", holder)[name]
    return getattr(holder, name)


def _compare(found: object, operator: str, value: Value) -> bool:
    match operator:
        case "==":
            return _equal(found, value)
        case "!=":
            return not _equal(found, value)
        case "in" | "not in":
            is_in = _is_in(found, value)
            return is_in is not None and is_in is (operator == "in")
        case _:
            return _ordered(found, operator, value)


def _equal(found: object, value: Value) -> bool:
    """Equal and of one kind: `True` is not 1, `"3"` is not 3."""
    if isinstance(value, tuple):
        if not isinstance(found, list | tuple):
            return False
        items = cast("Sequence[object]", found)
        return len(items) == len(value) and all(map(_equal, items, value))
    return _kind(found) is _kind(value) and found == value


def _is_in(found: object, value: Value) -> bool | None:
    """None: `value` is nothing `found` could be in."""
    if isinstance(value, tuple):
        return any(_equal(found, item) for item in value)
    if isinstance(value, str) and isinstance(found, str):
        return found in value
    return None


def _ordered(found: object, operator: str, value: Value) -> bool:
    kind = _kind(found)
    if kind is not _kind(value) or kind not in {float, str}:
        return False
    left, right = cast("float", found), cast("float", value)
    match operator:
        case ">":
            return left > right
        case "<":
            return left < right
        case ">=":
            return left >= right
        case _:
            return left <= right


def _kind(value: object) -> type:
    """What a value can be compared with: integers and floats are one kind, booleans another."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, int | float):
        return float
    return str if isinstance(value, str) else type(value)


_PATH: Final = re.compile(r"context((?:\.[\w-]+){2,})(?![\w.-])")
_SYMBOLS: Final = re.compile(r"[=<>!~&|^%]+")
_WORD_OPERATOR: Final = re.compile(r"not\s+in\b|(?!(?:and|or)\b)[A-Za-z_]+")
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
_WORD: Final = r"[^\s()\[\],'\"=<>!]+"
_BARE: Final = re.compile(rf"{_WORD}(?:\s+(?!(?:and|or)(?:[\s(]|$)){_WORD})*")
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_FLOAT: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPACE: Final = re.compile(r"\s*")
_OR: Final = re.compile(r"or\b")
_AND: Final = re.compile(r"and\b")
_NOT: Final = re.compile(r"not\b")
_OPEN: Final = re.compile(r"\(")
_CLOSE: Final = re.compile(r"\)")
_OPEN_LIST: Final = re.compile(r"\[")
_CLOSE_LIST: Final = re.compile(r"\]")
_COMMA: Final = re.compile(r",")
_CONSTANTS: Final[Mapping[str, bool | None]] = {
    "true": True,
    "false": False,
    "none": None,
    "null": None,
}


class _Parser:
    """Recursive descent, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def condition(self) -> Condition:
        parts = [self._conjunction()]
        while self._take(_OR):
            parts.append(self._conjunction())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def is_at_end(self) -> bool:
        return not self._text[self._at :].strip()

    def invalid(self) -> ValueError:
        return ValueError(f"Invalid condition string format: {self._text}")

    def _conjunction(self) -> Condition:
        parts = [self._negation()]
        while self._take(_AND):
            parts.append(self._negation())
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _negation(self) -> Condition:
        if self._take(_NOT):
            return Not(self._negation())
        if self._take(_OPEN):
            condition = self.condition()
            self._demand(_CLOSE)
            return condition
        return self._comparison()

    def _comparison(self) -> Comparison:
        path = self._demand(_PATH).split(".")[1:]
        return Comparison(tuple(path), self._operator(), self._value())

    def _operator(self) -> str:
        found = self._take(_SYMBOLS) or self._demand(_WORD_OPERATOR)
        operator = " ".join(found.split())
        if operator not in OPERATORS:
            raise ValueError(f"Unsupported operator: {operator}")
        return operator

    def _value(self) -> Value:
        if self._take(_OPEN_LIST):
            return self._list()
        if quoted := self._take(_QUOTED):
            return quoted[1:-1]
        return _constant(self._demand(_BARE))

    def _list(self) -> tuple[Value, ...]:
        items: list[Value] = []
        if self._take(_CLOSE_LIST):
            return ()
        items.append(self._value())
        while self._take(_COMMA):
            items.append(self._value())
        self._demand(_CLOSE_LIST)
        return tuple(items)

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        """The text that `pattern` matches here, past white space; None leaves the place as it is."""
        space = _SPACE.match(self._text, self._at)
        found = pattern.match(self._text, space.end() if space else self._at)
        if found is None:
            return None
        self._at = found.end()
        return found.group()

    def _demand(self, pattern: re.Pattern[str]) -> str:
        found = self._take(pattern)
        if found is None:
            raise self.invalid()
        return found


def _constant(text: str) -> Scalar:
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
