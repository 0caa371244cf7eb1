"""The line at the foot of a terminal."""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable

import pytest

from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.logs import LineHandler
from avtomatika_worker.progress_line import line_of
from avtomatika_worker.run import Status
from avtomatika_worker.testing import ScriptedOrchestrator
from tests.support import until


def a_status(
    running: int = 1,
    failed: int = 0,
    task_name: str | None = None,
    progress: float | None = None,
    message: str = "",
) -> Status:
    return Status(
        running=running,
        done=3,
        failed=failed,
        task_name=task_name,
        progress=progress,
        message=message,
    )


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (a_status(running=0), ""),
        (a_status(), "1 running · 3 done"),
        (a_status(failed=2), "1 running · 3 done · 2 failed"),
        (a_status(task_name="resize", progress=0.5), "1 running · 3 done · resize 50%"),
        (
            a_status(task_name="resize", progress=0.256, message="page 3\r\x1b[Kof 9"),
            "1 running · 3 done · resize 26% page 3  [Kof 9",
        ),
    ],
)
def test_the_line_says_what_goes_on_and_nothing_while_nothing_does(
    status: Status, line: str
) -> None:
    assert line_of(status, columns=80) == line


def test_the_line_is_never_wider_than_the_terminal() -> None:
    line = line_of(a_status(task_name="resize", progress=0.5, message="x" * 100), columns=20)

    assert len(line) == 19
    assert line.endswith("…")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_a_worker_draws_while_a_task_runs_below_what_it_prints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    worker = Worker(config=WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "s"}))
    orchestrator = ScriptedOrchestrator("w")
    go_on = asyncio.Event()

    @worker.task("resize")
    async def resize(send_progress: Callable[..., Awaitable[None]]) -> None:
        await send_progress(0.5, "half")
        await go_on.wait()
        print("done")  # noqa: T201 - as users do

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            worker.work_for([({"url": "o"}, orchestrator)], line=LineHandler(terminal))
        )
        given = orchestrator.give("resize")
        await until(lambda: "1 running · 0 done · resize 50% half" in terminal.getvalue())
        go_on.set()
        await given.ended()
        worker.stop()

    assert "half\r\x1b[Kdone\n1 running" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert sys.stdout is terminal
