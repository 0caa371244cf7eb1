"""The archive is read by job and by client; what is not there yet is nothing, not an error."""

import sqlite3
from contextlib import closing
from datetime import UTC, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.config import Config
from avtomatika_common.history import COLUMNS, HistoryReader, history_reader, sqlite_path
from avtomatika_common.lifecycle import StartupError

# Job, client, event type, Unix seconds, place.
Stored = tuple[str, str | None, str, float, int]


def reader_of(path: Path, zone: tzinfo = UTC) -> HistoryReader:
    reader = history_reader(f"sqlite:{path}", zone)
    assert reader is not None
    return reader


def write(path: Path, *rows: Stored) -> None:
    """Be the history service."""
    columns = ", ".join((*COLUMNS, "place"))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"CREATE TABLE job_history ({columns})")
        for number, (job_id, client, event_type, at, place) in enumerate(rows):
            values = (
                f"e{number}", job_id, at, "s", event_type, 5, None, "n", None, 1, '{"a": 1}',
                client, place,
            )  # fmt: skip
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO job_history VALUES ({marks})", values)  # noqa: S608


def kinds(rows: list[dict[str, object]]) -> list[object]:
    return [row["event_type"] for row in rows]


async def test_rows_of_a_job_are_objects_with_all_columns(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    write(path, ("j", "ada", "job_created", 0.25, 1), ("other", "ada", "job_created", 1.0, 1))

    rows = await reader_of(path, ZoneInfo("Asia/Tokyo")).rows("j")

    assert rows == [
        {
            "event_id": "e0",
            "job_id": "j",
            "timestamp": "1970-01-01T09:00:00.250000+09:00",
            "state": "s",
            "event_type": "job_created",
            "duration_ms": 5,
            "previous_state": None,
            "next_state": "n",
            "worker_id": None,
            "attempt_number": 1,
            "context_snapshot": {"a": 1},
            "client_name": "ada",
        }
    ]
    assert tuple(rows[0]) == COLUMNS


async def test_rows_stand_in_the_order_of_the_commits_whatever_the_clocks_said(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h.db"
    write(
        path,
        ("j", None, "job_completed", 13.0, 4000),
        ("j", None, "state_started", 9.9, 2001),  # by a process whose clock is behind
        ("j", None, "branch_last", 8.0, 2999),  # the same
        ("j", None, "job_created", 10.0, 1),
        ("j", None, "state_finished", 11.0, 2002),
        ("j", None, "branch_first", 7.5, 2999),
    )

    rows = await reader_of(path).rows("j")

    assert kinds(rows) == [
        "job_created", "state_started", "state_finished", "branch_first", "branch_last",
        "job_completed",
    ]  # fmt: skip


async def test_the_newest_row_of_each_job_is_listed_newest_first(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    write(
        path,
        ("a", "ada", "job_created", 1.0, 1),
        ("a", "ada", "job_completed", 9.0, 2),
        ("b", "ada", "job_created", 5.0, 1),
        ("b", "ada", "state_started", 5.0, 2),
        ("c", "bob", "job_created", 7.0, 1),
        ("d", None, "job_created", 3.0, 1),
    )
    reader = reader_of(path)

    of_ada = await reader.latest("ada", 10, 0)
    of_all = await reader.latest(None, 10, 0)

    assert [(row["job_id"], row["event_type"]) for row in of_ada] == [
        ("a", "job_completed"),
        ("b", "state_started"),
    ]
    assert [row["job_id"] for row in of_all] == ["a", "c", "b", "d"]
    assert [row["job_id"] for row in await reader.latest(None, 2, 1)] == ["c", "b"]
    assert await reader.latest("nobody", 10, 0) == []
    assert await reader.latest(None, 10, 4) == []


async def test_before_anything_was_archived_there_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "h.db"

    assert await reader_of(path).rows("j") == []
    assert await reader_of(path).latest(None, 10, 0) == []
    assert not path.parent.exists()


async def test_a_file_without_tables_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.touch()

    assert await reader_of(path).rows("j") == []


async def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    path.write_text("something else " * 100)

    with pytest.raises(StoreUnavailable, match=r"h\.db cannot be read: file is not a database"):
        await reader_of(path).rows("j")


async def test_a_path_may_hold_what_means_something_in_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "50%25 of #1?.db"
    write(path, ("j", None, "job_created", 1.0, 1))

    assert kinds(await reader_of(path).rows("j")) == ["job_created"]


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:relative.db", "relative.db"),
        ("sqlite:dir/relative.db", "dir/relative.db"),
        ("sqlite:/abs/h.db", "/abs/h.db"),
        ("sqlite:///abs/h.db", "/abs/h.db"),
        ("SQLITE:///abs/h.db", "/abs/h.db"),
    ],
)
def test_a_uri_names_a_file(uri: str, path: str) -> None:
    assert sqlite_path(uri) == path


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("postgresql://u:pw@h/db", "has the scheme 'postgresql'; this version archives to SQLite"),
        ("mysql://h/db", "has the scheme 'mysql'"),
        ("history.db", "has the scheme ''"),
        ("sqlite:", "names no file"),
        ("sqlite:///", "names no file"),
    ],
)
def test_another_uri_stops_the_start_without_telling_its_secrets(uri: str, reason: str) -> None:
    with pytest.raises(StartupError, match=f"HISTORY_DATABASE_URI {reason}") as refused:
        history_reader(uri, UTC)

    assert "pw" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_uri_means_no_archive() -> None:
    assert history_reader(Config({}).history_uri(), UTC) is None
