"""One line at the foot of a terminal that says what the worker does right now."""

import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from typing import Final, TextIO, cast

from avtomatika_worker.logs import Above, LineHandler
from avtomatika_worker.run import Run, Status

SECONDS_BETWEEN_DRAWINGS: Final = 0.2


@asynccontextmanager
async def showing_progress(run: Run, line: LineHandler) -> AsyncGenerator[None]:
    """Keep the line true inside, and below whatever handlers print; afterwards it is gone."""
    async with asyncio.TaskGroup() as tasks:
        drawing = tasks.create_task(_draw(run, line), name="progress line")
        try:
            with _printing_above(line):
                yield
        finally:
            drawing.cancel()
            line.show("")


@contextmanager
def _printing_above(line: LineHandler) -> Generator[None]:
    with redirect_stdout(_above(line, sys.stdout)), redirect_stderr(_above(line, sys.stderr)):
        yield


def _above(line: LineHandler, stream: TextIO) -> TextIO:
    return cast("TextIO", Above(stream, line)) if stream.isatty() else stream


async def _draw(run: Run, line: LineHandler) -> None:
    while True:
        await run.changed.wait()
        run.changed.clear()
        line.show(line_of(run.status(), shutil.get_terminal_size().columns))
        await asyncio.sleep(SECONDS_BETWEEN_DRAWINGS)


def line_of(status: Status, columns: int) -> str:
    """Empty while no task runs; never longer than the terminal is wide."""
    if not status.running:
        return ""
    parts = [f"{status.running} running", f"{status.done} done"]
    if status.failed:
        parts.append(f"{status.failed} failed")
    if status.task_name is not None and status.progress is not None:
        spoken = f"{status.task_name} {status.progress:.0%} {status.message}"
        parts.append("".join(c if c.isprintable() else " " for c in spoken).rstrip())
    text = " · ".join(parts)
    return text if len(text) < columns else text[: max(0, columns - 2)] + "…"
