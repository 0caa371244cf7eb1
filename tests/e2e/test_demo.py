"""The demo, as `make demo` runs it."""

import signal
from pathlib import Path

import pytest

from tests.e2e.programs import program, said_in
from tests.support import until

pytestmark = pytest.mark.e2e

DEMO = ("-m", "avtomatika", "demo", "--directory")


async def run_demo(directory: Path, log: Path) -> tuple[int, str]:
    async with program(*DEMO, str(directory), variables={}, log=log) as process:
        code = await process.wait()
    return code, said_in(log)


async def test_the_demo_counts_what_is_in_a_directory(tmp_path: Path) -> None:
    code_directory = tmp_path / "code"
    code_directory.mkdir()
    (code_directory / "box.py").write_text(
        "class Box:\n    def open(self):\n        a = 1\n        return a\n"
    )
    (code_directory / "lid.py").write_text("def close(): pass\n")
    (code_directory / "broken.py").write_text("def broken(:\n")
    (code_directory / "latin.py").write_bytes("# coding: latin-1\ndef ä(): 'ö'\n".encode("latin-1"))

    code, said = await run_demo(code_directory, tmp_path / "log")

    assert code == 0, said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for line in ("files 4", "do not parse 1", "lines 8", "functions 3", "classes 1"):
        assert line in lines, said
    assert "longest function 3 lines: open in box.py" in lines
    assert "1 box.py 4" in lines
    assert "task finished    the last of 4, by demo-worker-" in said
    assert "job completed" in said
    assert "\x1b" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("exists", [True, False])
async def test_nothing_to_survey_is_a_failed_job_with_a_reason(
    tmp_path: Path, exists: bool
) -> None:
    directory = tmp_path / "code"
    if exists:
        directory.mkdir()

    code, said = await run_demo(directory, tmp_path / "log")

    assert code == 1
    assert "The job ended as failed" in said
    reason = "No *.py file is below" if exists else "There is no directory"
    assert f"{reason} '{directory}'." in said
    assert "Traceback" not in said


async def test_an_interrupted_demo_stops_cleanly(tmp_path: Path) -> None:
    code_directory = tmp_path / "code"
    code_directory.mkdir()
    for number in range(2000):
        (code_directory / f"module_{number}.py").write_text("def f():\n    pass\n" * 200)
    log = tmp_path / "log"

    async with program(*DEMO, str(code_directory), variables={}, log=log) as process:
        await until(lambda: process.returncode or said_in(log).count(" / 2,000 files") > 1, 20)
        process.send_signal(signal.SIGINT)
        code = await process.wait()

    said = said_in(log)
    assert code == 130, said
    assert said.endswith("Stopped.\n")
    assert "Traceback" not in said
