"""Reading the archive from the SQLite file the history service writes."""

import asyncio
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiosqlite

from avtomatika_common import codec
from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.history import COLUMNS, HistoryReader


class SqliteHistoryReader(HistoryReader):
    """Reads the file the history service writes; before there is one, there are no rows."""

    def __init__(self, path: str, zone: tzinfo) -> None:
        self._path = path
        self._zone = zone

    async def rows(self, job_id: str) -> list[dict[str, Any]]:
        # `place` says what came after what, whatever the clocks of the processes said; only the
        # branches of one fan-out share a place.
        return await self._select(
            f"SELECT {', '.join(COLUMNS)} FROM job_history WHERE job_id = ? "  # noqa: S608
            "ORDER BY place, timestamp, event_id",
            (job_id,),
        )

    async def latest(
        self, client_name: str | None, limit: int, offset: int
    ) -> list[dict[str, Any]]:
        return await self._select(
            f"SELECT {', '.join(COLUMNS)} FROM (SELECT *, row_number() OVER ("  # noqa: S608
            "  PARTITION BY job_id ORDER BY timestamp DESC, place DESC, event_id DESC) AS newest"
            "  FROM job_history WHERE ?1 IS NULL OR client_name = ?1) "
            "WHERE newest = 1 ORDER BY timestamp DESC, job_id LIMIT ?2 OFFSET ?3",
            (client_name, limit, offset),
        )

    async def _select(self, query: str, parameters: tuple[object, ...]) -> list[dict[str, Any]]:
        if not await asyncio.to_thread(Path(self._path).exists):
            return []
        try:
            async with (
                aiosqlite.connect(f"file:{quote(self._path)}?mode=ro", uri=True) as database,
                database.execute(query, parameters) as cursor,
            ):
                return [self._row(tuple(values)) for values in await cursor.fetchall()]
        except aiosqlite.Error as error:
            if "no such table" in str(error):  # the writer has not made it yet
                return []
            raise StoreUnavailable(
                f"the history in {self._path} cannot be read: {error}"
            ) from error

    def _row(self, values: tuple[Any, ...]) -> dict[str, Any]:
        row = dict(zip(COLUMNS, values, strict=True))
        row["timestamp"] = datetime.fromtimestamp(row["timestamp"], self._zone).isoformat()
        snapshot = row["context_snapshot"]
        row["context_snapshot"] = None if snapshot is None else codec.parse_json(snapshot)
        return row
