"""The archive's tables in SQLite: one writer, write-ahead log, rows inserted once."""

import asyncio
import sqlite3
from collections.abc import Iterable
from contextlib import closing

import aiosqlite

from avtomatika_common.history import COLUMNS
from avtomatika_history.rows import Row

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS job_history (
    event_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    timestamp REAL NOT NULL,
    state TEXT,
    event_type TEXT NOT NULL,
    duration_ms INTEGER,
    previous_state TEXT,
    next_state TEXT,
    worker_id TEXT,
    attempt_number INTEGER,
    context_snapshot TEXT,
    client_name TEXT,
    place INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS job_history_by_job ON job_history (job_id, timestamp, place);
CREATE INDEX IF NOT EXISTS job_history_by_client ON job_history (client_name, timestamp);
"""
_INSERT = (
    f"INSERT OR IGNORE INTO job_history ({', '.join(COLUMNS)}, place) "  # noqa: S608
    f"VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
)


_BUSY_SECONDS = 10.0


def _make_tables(path: str) -> None:
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as database:
        database.executescript(_SCHEMA)


class SqliteArchive:
    """Raises aiosqlite.Error where the file cannot be written."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._database: aiosqlite.Connection | None = None

    async def write(self, rows: Iterable[Row]) -> None:
        """Insert rows in one transaction; a row whose event_id is there already is left as it is."""
        database = self._database or await self._open()
        try:
            await database.executemany(_INSERT, rows)
            await database.commit()
        except aiosqlite.Error:
            await self.close()  # and with it the half transaction
            raise

    async def _open(self) -> aiosqlite.Connection:
        # What fails here leaves no thread behind; one of aiosqlite's outlives its failed connect.
        await asyncio.to_thread(_make_tables, self._path)
        self._database = await aiosqlite.connect(self._path, timeout=_BUSY_SECONDS)
        return self._database

    async def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            await database.close()
