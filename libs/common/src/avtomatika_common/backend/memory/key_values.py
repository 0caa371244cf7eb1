"""Data stores of blueprints, in memory."""

from avtomatika_common.backend.ports import KeyValues


class MemoryKeyValues(KeyValues):
    def __init__(self) -> None:
        self._values: dict[tuple[str, str], bytes] = {}

    def clear(self) -> None:
        self._values.clear()

    async def get(self, namespace: str, key: str) -> bytes | None:
        return self._values.get((namespace, key))

    async def set(self, namespace: str, key: str, value: bytes) -> None:
        self._values[namespace, key] = value
