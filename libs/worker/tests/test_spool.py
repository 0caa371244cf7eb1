"""Results on disk: whole, there after a restart, and no more of them than a disk can bear."""

import logging
import os
from pathlib import Path

import pytest

from avtomatika_worker.spool import Spool
from rxon import FileMetadata, TaskError, TaskResult

URL = "http://o"
NOW = 1_000_000_000.0


def a_result(task_id: str = "t-1", text: str = "x") -> TaskResult:
    return TaskResult(
        job_id="j-1",
        task_id=task_id,
        worker_id="w",
        status="failure",
        data={"text": text},
        error=TaskError(code="X", message="m", details={"n": 1}),
        data_metadata={"text": FileMetadata(uri="s3://b/k", size=3, etag="e")},
    )


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def written(path: Path, at: float) -> None:
    os.utime(path, (at, at))


def test_a_result_is_the_same_after_a_restart(tmp_path: Path) -> None:
    assert Spool(tmp_path, "w").keep(URL, a_result())

    (spooled,) = Spool(tmp_path, "w").load()

    assert (spooled.orchestrator, spooled.result) == (URL, a_result())


def test_what_has_arrived_is_not_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w")
    spool.keep(URL, a_result())

    spool.discard(URL, "t-1")
    spool.discard(URL, "t-2")  # was never there

    assert files(tmp_path) == []


def test_a_worker_finds_its_own_results_only(tmp_path: Path) -> None:
    Spool(tmp_path, "other").keep(URL, a_result())

    assert Spool(tmp_path, "w").load() == []


def test_no_task_id_reaches_another_folder(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", "w").keep(URL, a_result("../../escaped"))

    assert [path.parent for path in files(tmp_path)] == [tmp_path / "spool" / "w"]


def test_results_are_for_their_worker_alone_to_read(tmp_path: Path) -> None:
    Spool(tmp_path / "spool", "w").keep(URL, a_result())

    assert (tmp_path / "spool" / "w").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"orchestrator": "o"}', b'{"orchestrator": "o", "result": {}}', b"\xff"],
)
def test_a_file_that_is_broken_is_set_aside_and_said(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w")
    spool.keep(URL, a_result())
    (path,) = files(tmp_path)
    path.write_bytes(content)
    spool.keep(URL, a_result("t-2"))

    results = [one.result.task_id for one in spool.load()]

    assert results == ["t-2"]
    assert path.with_suffix(".corrupt").read_bytes() == content
    assert "spooled result set aside" in caplog.messages


def test_a_write_that_was_cut_short_leaves_no_result(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w")
    spool.keep(URL, a_result())
    (path,) = files(tmp_path)
    path.rename(path.with_suffix(".tmp"))

    assert spool.load() == []


def test_the_oldest_make_room_for_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w", max_bytes=3000)
    for number in range(3):
        known = set(files(tmp_path))
        spool.keep(URL, a_result(f"t-{number}", text="x" * 1000))
        (new,) = set(files(tmp_path)) - known
        written(new, at=NOW + number)

    assert [one.result.task_id for one in spool.load()] == ["t-1", "t-2"]
    assert "spool full: oldest result lost" in caplog.messages


def test_a_result_that_would_fill_the_spool_alone_is_not_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w", max_bytes=100)

    assert not spool.keep(URL, a_result())
    assert files(tmp_path) == []


def test_what_is_too_old_goes_whosever_it_was(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w", max_age_seconds=60, clock=lambda: NOW)
    Spool(tmp_path, "gone").keep(URL, a_result())
    (old,) = files(tmp_path)
    written(old, at=NOW - 61)
    spool.keep(URL, a_result("t-2"))
    (new,) = set(files(tmp_path)) - {old}
    written(new, at=NOW - 59)

    spool.sweep()

    assert files(tmp_path) == [new]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    foreign = [tmp_path / "w" / "notes.json", tmp_path / "photos" / "a.jpg"]
    for path in foreign:
        path.parent.mkdir()
        path.write_text("x" * 1000)
        written(path, at=0.0)
    spool = Spool(tmp_path, "w", max_bytes=500)

    spool.sweep()

    assert spool.keep(URL, a_result())
    assert len(spool.load()) == 1
    assert all(path.exists() for path in foreign)


def test_a_disk_that_takes_nothing_is_said_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").write_text("in the way")
    spool = Spool(tmp_path / "file", "w")

    assert not spool.keep(URL, a_result())
    assert spool.load() == []
    assert "result not spooled" in caplog.messages
