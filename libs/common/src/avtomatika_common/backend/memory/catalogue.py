"""The blueprints executors host, in memory."""

from collections.abc import Sequence

from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.ports import Catalogue, CatalogueEntry


class MemoryCatalogue(Catalogue):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._entries: dict[str, CatalogueEntry] = {}
        self._version = 0

    def clear(self) -> None:
        self._entries.clear()
        self._changed()

    def _changed(self) -> None:
        self._version += 1
        self._tables.signals.notify("catalogue")

    async def publish(self, entries: Sequence[CatalogueEntry]) -> None:
        news = {entry.name: entry for entry in entries if self._entries.get(entry.name) != entry}
        if news:
            self._entries |= news
            self._changed()

    async def entries(self) -> tuple[str, list[CatalogueEntry]]:
        return str(self._version), [self._entries[name] for name in sorted(self._entries)]

    async def changed(self, version: str) -> None:
        await self._tables.signals.wait_for(
            "catalogue", lambda: str(self._version) != version, self._tables.options.block_seconds
        )
