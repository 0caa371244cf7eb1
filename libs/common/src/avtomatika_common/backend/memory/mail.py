"""Mail to gateways in memory: a box each, all letters numbered."""

from collections import deque
from typing import Final

from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.ports import Mail, Mailbox

_KEPT: Final = 10_000


class MemoryMailbox(Mailbox):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._boxes: dict[str, deque[tuple[int, Mail]]] = {}

    def clear(self) -> None:
        self._boxes.clear()

    def send(self, gateway: str, letter: Mail) -> None:
        number = self._tables.number()  # never again, so that readers keep their positions
        box = self._boxes.setdefault(gateway, deque(maxlen=_KEPT))
        box.append((number, letter))
        self._tables.signals.notify(f"mail {gateway}")

    async def read(self, gateway: str, after: str) -> tuple[str, list[Mail]]:
        seconds = self._tables.options.block_seconds
        found = await self._tables.signals.wait_for(
            f"mail {gateway}", lambda: self._behind(gateway, int(after)), seconds
        )
        position = str(found[-1][0]) if found else after
        return position, [letter for _, letter in found]

    def _behind(self, gateway: str, position: int) -> list[tuple[int, Mail]]:
        """Letters behind a position; those before it are forgotten."""
        box = self._boxes.get(gateway)
        if box is None:
            return []
        while box and box[0][0] <= position:
            box.popleft()
        return list(box)

    def forget(self, gateway: str) -> None:
        """A gateway that is gone reads no mail."""
        self._boxes.pop(gateway, None)
