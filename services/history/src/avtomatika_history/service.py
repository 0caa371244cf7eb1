"""Archive facts: read a batch, insert its rows once, then acknowledge it.

What was inserted but not acknowledged is read again and found to be there. Facts that cannot be
written wait in their stream; nothing is lost while the database is away.
"""

import asyncio
import sqlite3
from collections.abc import Sequence

import msgspec

from avtomatika_common import ids
from avtomatika_common.backend.ports import Backend, StoreUnavailable, StreamEntry
from avtomatika_common.history import sqlite_path
from avtomatika_common.logs import get_logger
from avtomatika_common.records import unpack_fact
from avtomatika_history.rows import Row, rows_of
from avtomatika_history.settings import Settings

log = get_logger()

_BACK_OFF_SECONDS = 1.0
_DRAIN_READ_SECONDS = 0.2


class HistoryService:
    name = "history"

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._stream = backend.facts
        self._path = None if settings.uri is None else sqlite_path(settings.uri)
        self.instance = f"{settings.instance}-{ids.new_id()[:8]}"

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        if self._path is None:
            log.info("history is off: HISTORY_DATABASE_URI is not set")
            ready.set()
            await stop.wait()
            return
        # Here and not at the top: without the extra `history` there is nothing to import.
        from avtomatika_history.sqlite import SqliteArchive  # noqa: PLC0415

        self._archive = SqliteArchive(self._path)
        self._writing = asyncio.Lock()
        try:
            async with self._backend.liveness.keep(self.instance), asyncio.TaskGroup() as tasks:
                archiving = tasks.create_task(self._archive_facts(), name="history archives")
                await self._look_at_archive()
                log.info("history serves", database=self._path, instance=self.instance)
                ready.set()
                await stop.wait()
                async with self._writing:  # a write is let end: its thread would outlive us
                    archiving.cancel()
            await self._drain()
        finally:
            await self._archive.close()

    async def _look_at_archive(self) -> None:
        """Say at the start what would else be found with the first fact."""
        try:
            async with self._writing:
                await self._archive.write([])
        except sqlite3.Error as error:
            log.error(
                "the archive cannot be opened, facts wait until it can",
                database=self._path,
                error=str(error),
            )

    async def _archive_facts(self) -> None:
        clock = self._backend.clock
        next_look = clock.now()
        failing = False
        while True:
            try:
                if clock.now() >= next_look:  # left by dead ones, or by a cut read of our own
                    entries = await self._stream.pending(self.instance)
                    entries += await self._stream.take_over(self.instance, self._settings.batch)
                    next_look = clock.now() + self._settings.look_seconds
                else:
                    entries = await self._stream.read(self.instance, self._settings.batch)
                await self._write(entries)
                failing = False
            except (StoreUnavailable, sqlite3.Error) as error:
                if not failing:
                    log.error("facts wait: they cannot be archived", error=str(error))
                failing = True
                next_look = clock.now()
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _drain(self) -> None:
        """Archive what is there before the process ends."""
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout_seconds):
                await self._write(await self._stream.pending(self.instance))
                while await self._stream.length():
                    async with asyncio.timeout(_DRAIN_READ_SECONDS):
                        entries = await self._stream.read(self.instance, self._settings.batch)
                    await self._write(entries)
        except (TimeoutError, StoreUnavailable, sqlite3.Error) as error:
            log.info("facts left for the next start", reason=str(error) or "another one has them")

    async def _write(self, entries: Sequence[StreamEntry]) -> None:
        if not entries:
            return
        rows: list[Row] = []
        for entry in entries:
            try:
                rows += rows_of(unpack_fact(entry.payload))
            except msgspec.MsgspecError as error:
                log.error("fact unreadable", entry=entry.entry_id, error=str(error))
            except Exception:  # it would stand in the way of all behind it, at each start anew
                log.exception("fact cannot be archived", entry=entry.entry_id)
        async with self._writing:
            await self._archive.write(rows)
        await self._stream.acknowledge(entries)
