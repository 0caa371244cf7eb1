"""Data stores of a blueprint: what its jobs share."""

from collections.abc import Mapping
from typing import Any

from avtomatika_common.backend.ports import KeyValues
from avtomatika_common.codec import json_bytes, parse_json
from avtomatika_common.user_data import json_problem


class AsyncDictStore:
    """A dictionary shared by all jobs of a blueprint, on every instance once it is bound.

    `initial_data` answers for keys that were never set. Until the engine binds the store to its
    storage backend, it lives in this process.
    """

    def __init__(self, initial_data: Mapping[str, Any]) -> None:
        self._initial = dict(initial_data)
        self._values: KeyValues | None = None
        self._namespace = ""

    def bind(self, values: KeyValues, namespace: str) -> None:
        """Keep values in `values` from now on."""
        self._values = values
        self._namespace = namespace

    async def get(self, key: str) -> Any:
        """The value, or None."""
        if self._values is not None:
            stored = await self._values.get(self._namespace, key)
            if stored is not None:
                return parse_json(stored)
        return self._initial.get(key)

    async def set(self, key: str, value: Any) -> None:
        """Store a JSON value. TypeError for any other."""
        if problem := json_problem(value, key):
            raise TypeError(f"A data store cannot keep {problem}: it must be a JSON value.")
        encoded = json_bytes(value)
        if self._values is None:
            self._initial[key] = parse_json(encoded)
        else:
            await self._values.set(self._namespace, key, encoded)
