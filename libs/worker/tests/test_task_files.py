"""A task's files: below its directory only, and gone when the result has arrived."""

from pathlib import Path

import pytest

from avtomatika_worker import TaskFiles, Worker
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.task_files import TransferUnavailable, files_of_task
from avtomatika_worker.testing import orchestrated
from tests.support import until


@pytest.fixture
def files(tmp_path: Path) -> TaskFiles:
    return TaskFiles(tmp_path / "t-1")


async def test_what_is_written_can_be_read(files: TaskFiles) -> None:
    await files.write("a/text.txt", "grüße\n")
    await files.write("bytes", b"\x00\xff")
    await files.write("a/text.txt", "more\n", mode="a")
    await files.write_json("data.json", {"n": [1, None]})

    assert await files.read("a/text.txt") == "grüße\nmore\n"
    assert await files.read("bytes", "rb") == b"\x00\xff"
    assert await files.read_json("data.json") == {"n": [1, None]}
    assert await files.list() == ["a/text.txt", "bytes", "data.json"]
    assert await files.exists("bytes")
    assert not await files.exists("nothing")


async def test_a_file_is_opened_and_awaited(files: TaskFiles) -> None:
    async with files.open("lines", "w") as file:
        await file.write("one\ntwo\n")
        await file.flush()

    async with files.open("lines") as file:
        lines = [line async for line in file]
        position = await file.tell()
        await file.seek(0)
        first = await file.readline()

    assert (lines, position, first) == (["one\n", "two\n"], 8, "one\n")


async def test_paths_are_the_same_sync_and_async(files: TaskFiles, tmp_path: Path) -> None:
    assert await files.get_root() == files.get_root_sync() == tmp_path / "t-1"
    assert await files.path_to("a/b.png") == files.path_to_sync("a/b.png")
    assert files.path_to_sync("a/b.png") == tmp_path / "t-1" / "a" / "b.png"
    assert (tmp_path / "t-1" / "a").is_dir()


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "link/secret"])
async def test_no_name_leaves_the_directory(name: str, files: TaskFiles, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (files.get_root_sync() / "link").symlink_to(tmp_path)

    with pytest.raises(ValueError, match="leaves the directory of the task"):
        await files.read(name)
    with pytest.raises(ValueError, match="leaves the directory of the task"):
        files.path_to_sync(name)


async def test_an_empty_directory_has_no_files(files: TaskFiles) -> None:
    assert await files.list() == []


async def test_a_transfer_says_that_there_is_none(files: TaskFiles) -> None:
    with pytest.raises(TransferUnavailable, match=r"'a\.png' cannot be transferred"):
        await files.upload_file("a.png")
    with pytest.raises(TransferUnavailable):
        await files.upload_dir()
    with pytest.raises(TransferUnavailable, match="s3://b/k as a"):
        await files.download_file("s3://b/k", "a")


@pytest.mark.parametrize("task_id", ["../up", "..", "a/b", "x" * 300, ""])
async def test_a_task_id_chooses_no_other_directory(task_id: str, tmp_path: Path) -> None:
    assert files_of_task(tmp_path, task_id).get_root_sync().parent == tmp_path


async def test_the_directory_goes_with_the_result(tmp_path: Path) -> None:
    worker = Worker(config=WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "s"}))

    @worker.task("work")
    def work(files: TaskFiles, task_id: str) -> dict[str, object]:
        path = files.path_to_sync("a.txt")
        path.write_text("x")
        return {"name": path.parent.name, "task": task_id}

    async with orchestrated(worker, settings={"TASK_FILES_DIR": str(tmp_path)}) as orchestrator:
        ended = await orchestrator.run("work")
        await until(lambda: list(tmp_path.iterdir()) == [])

    assert ended.data["name"] == ended.data["task"]
