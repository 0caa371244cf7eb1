"""Work streams in memory: entries shared by consumers, deleted when done."""

from collections.abc import Callable, Sequence

from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.tables import Tables, WorkEntry, WorkLog
from avtomatika_common.backend.ports import StreamEntry, WorkStream


class MemoryWorkStream(WorkStream):
    def __init__(
        self, tables: Tables, log: Callable[[Tables], WorkLog], liveness: MemoryLiveness
    ) -> None:
        """`log` picks the stream."""
        self._tables = tables
        self._pick = log
        self._liveness = liveness

    @property
    def _log(self) -> WorkLog:
        return self._pick(self._tables)

    async def read(self, consumer: str, room: int) -> list[StreamEntry]:
        def take() -> list[StreamEntry]:
            log = self._log
            count = min(room, len(log.unread))
            return [_give(log.unread.popleft(), consumer) for _ in range(count)]

        seconds = self._tables.options.block_seconds
        return await self._tables.signals.wait_for(self._log.topic, take, seconds)

    async def pending(self, consumer: str) -> list[StreamEntry]:
        return [_seen(entry) for entry in self._log.entries.values() if entry.consumer == consumer]

    async def acknowledge(self, entries: Sequence[StreamEntry]) -> None:
        for entry in entries:
            self._log.entries.pop(entry.entry_id, None)

    async def take_over(self, consumer: str, room: int) -> list[StreamEntry]:
        orphans = [
            entry
            for entry in self._log.entries.values()
            if entry.consumer not in {None, consumer} and not self._is_alive(entry.consumer)
        ]
        return [_give(entry, consumer) for entry in orphans[:room]]

    def _is_alive(self, consumer: str | None) -> bool:
        return consumer is not None and self._liveness.has(consumer)

    async def length(self) -> int:
        return len(self._log.entries)


def _give(entry: WorkEntry, consumer: str) -> StreamEntry:
    entry.consumer = consumer
    entry.deliveries += 1
    return _seen(entry)


def _seen(entry: WorkEntry) -> StreamEntry:
    return StreamEntry(
        entry_id=entry.entry_id,
        partition=entry.partition,
        payload=entry.payload,
        deliveries=entry.deliveries,
    )
