"""The shape of a task: tasks of one shape fit the same workers, so only the first of each is looked at."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode


def shape_of(
    task_type: str,
    requirements: Mapping[str, Any] | None,
    max_cost: float | None,
    strategy: str,
) -> str:
    """A short name that is equal for equal type, requirements, cost limit and strategy."""
    cost = None if max_cost is None else float(max_cost)
    packed = _encode((task_type, requirements or None, cost, strategy))
    return hashlib.blake2b(packed, digest_size=10).hexdigest()
