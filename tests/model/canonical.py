"""One text for all states that differ only in which ids and numbers were drawn."""

import re
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec

FIRST_NUMBER: Final = 5 * 10**12
"""The store's numbers begin here, so that they can be told from every other text."""

_LEFT_OUT: Final = frozenset(
    {"jitter", "secret_hash", "approval_secret", "stamp", "turns", "_heap"}
)
"""What nothing in the model depends on."""
_DRAWN: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[48][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|\b5\d{12}\b"
)
_RANKED: Final = re.compile(r"#(5\d{12})")
_decode: Final = msgspec.msgpack.Decoder().decode


def canonical(value: object) -> str:
    """Ids and texts of numbers by when they come first, numbers that are compared by their order."""
    text = text_of(value)
    ranks = {number: str(rank) for rank, number in enumerate(sorted(set(_RANKED.findall(text))))}
    text = _RANKED.sub(lambda found: f"#{ranks[found[1]]}", text)
    names: dict[str, str] = {}
    return _DRAWN.sub(lambda found: names.setdefault(found[0], f"@{len(names)}"), text)


def digest(value: object) -> bytes:
    """Of the canonical text."""
    return blake2b(canonical(value).encode(), digest_size=16).digest()


@lru_cache(maxsize=20_000)
def _packed_text(packed: bytes) -> str:
    return text_of(_decode(packed))


def text_of(value: object) -> str:
    """Before anything is renamed."""
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts)


def _write(value: Any, parts: list[str]) -> None:
    kind = type(value)
    if kind is str:
        parts.append(value)
    elif kind is int and value >= FIRST_NUMBER:
        parts.append(f"#{value}")
    elif value is None or kind in (int, float, bool):
        parts.append(repr(value))
    elif kind is bytes:
        parts.append(_packed_text(value))
    elif isinstance(value, dict):
        _write_pairs(value.items(), parts)
    elif isinstance(value, tuple | list | deque | set | frozenset):
        parts.append("[")
        for one in value:
            _write(one, parts)
            parts.append(",")
        parts.append("]")
    elif isinstance(value, str | int):  # of an enumeration
        parts.append(str(value))
    elif isinstance(value, BaseException):
        parts.append(type(value).__name__)
    else:
        parts.append(kind.__name__)
        _write_pairs(_attributes(value), parts)
    parts.append(";")


def _write_pairs(pairs: Iterable[tuple[Any, Any]], parts: list[str]) -> None:
    parts.append("{")
    for key, value in pairs:
        if key not in _LEFT_OUT:
            _write(key, parts)
            _write(value, parts)
    parts.append("}")


def _attributes(value: Any) -> list[tuple[str, Any]]:
    names = getattr(value, "__struct_fields__", None) or getattr(value, "__slots__", None)
    return list(vars(value).items()) if names is None else [(n, getattr(value, n)) for n in names]
