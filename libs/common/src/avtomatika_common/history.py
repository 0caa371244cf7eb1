"""The reading half of the archive: what happened to jobs, and which database a URI means."""

from datetime import tzinfo
from importlib.util import find_spec
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from avtomatika_common.lifecycle import StartupError

COLUMNS: Final[tuple[str, ...]] = (
    "event_id", "job_id", "timestamp", "state", "event_type", "duration_ms", "previous_state",
    "next_state", "worker_id", "attempt_number", "context_snapshot", "client_name",
)  # fmt: skip
"""Of a history row, as it is stored and read."""


class HistoryReader(Protocol):
    """What happened to jobs. Rows are JSON objects with `COLUMNS`, timestamps ISO-8601 text.

    Raises StoreUnavailable where the archive cannot be read.
    """

    async def rows(self, job_id: str) -> list[dict[str, Any]]:
        """All rows of a job, oldest first."""
        ...

    async def latest(
        self, client_name: str | None, limit: int, offset: int
    ) -> list[dict[str, Any]]:
        """The newest row of each job of a client (None: of all), newest first."""
        ...


def sqlite_path(uri: str) -> str:
    """File of a `sqlite:` URI. Raises StartupError for one we cannot serve."""
    scheme = urlsplit(uri).scheme
    if scheme != "sqlite":
        raise StartupError(
            f"HISTORY_DATABASE_URI has the scheme '{scheme}'; this version archives to SQLite only:"
            " sqlite:///absolute/path.db or sqlite:relative.db."
        )
    if find_spec("aiosqlite") is None:
        raise StartupError("History needs the extra 'history': pip install 'avtomatika[history]'.")
    path = uri[len("sqlite:") :]
    path = f"/{path.lstrip('/')}" if path.startswith("//") else path
    if path in {"", "/"}:
        raise StartupError("HISTORY_DATABASE_URI names no file: sqlite:///absolute/path.db.")
    return path


def history_reader(uri: str | None, zone: tzinfo) -> HistoryReader | None:
    """None: nothing is archived."""
    if uri is None:
        return None
    path = sqlite_path(uri)
    # Here and not at the top: without the extra there is nothing to import.
    from avtomatika_common.history_sqlite import SqliteHistoryReader  # noqa: PLC0415

    return SqliteHistoryReader(path, zone)
