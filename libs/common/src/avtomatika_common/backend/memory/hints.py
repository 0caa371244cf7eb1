"""Hints in memory: the last of each source, by number."""

from itertools import islice

from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.ports import Hint, Hints


class MemoryHints(Hints):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def position(self, source: str) -> str:
        return str(self._tables.hint_log(source).last)

    async def wait(
        self, source: str, after: str, timeout_seconds: float
    ) -> tuple[str, list[Hint], bool]:
        log, position = self._tables.hint_log(source), int(after)

        def news() -> int:
            return max(0, log.last - position)

        missed = await self._tables.signals.wait_for(f"hints {source}", news, timeout_seconds)
        kept = min(missed, len(log.kept))
        hints = list(islice(log.kept, len(log.kept) - kept, None))
        return str(position + missed), hints, kept < missed
