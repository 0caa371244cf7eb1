"""Services as processes of their own, ended by their id when the test ends."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Process:
    """A service's process, and what it wrote to stderr."""

    def __init__(self, popen: subprocess.Popen[bytes], stderr: Path) -> None:
        self.popen = popen
        self._stderr = stderr

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def has_said(self, words: str) -> bool:
        return words in self.stderr

    def send(self, signal_number: int) -> None:
        os.kill(self.popen.pid, signal_number)

    def has_ended(self) -> bool:
        return self.popen.poll() is not None

    @property
    def exit_code(self) -> int | None:
        return self.popen.poll()


@contextmanager
def a_process(module: str, directory: Path, **settings: str) -> Generator[Process, None, None]:
    """`python -m module` with these settings, and no others from this process's environment."""
    number = len(list(directory.glob("stderr-*")))
    path = directory / f"stderr-{number}"
    environment = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), **settings}
    with path.open("wb") as stderr:
        popen = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=environment, stderr=stderr
        )
    try:
        yield Process(popen, path)
    finally:
        popen.kill()
        popen.wait()
