"""Processes of a benchmark, asked one thing at a time: a line of JSON each way."""

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvloop

ROOT = Path(__file__).parents[2]

Answer = dict[str, Any]


class ChildFailed(Exception):
    """A process ended instead of answering; what it wrote to stderr stands above."""


class Child:
    """A process that runs `serve`."""

    def __init__(self, name: str, popen: subprocess.Popen[str]) -> None:
        self._name = name
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ask(self, do: str, **arguments: Any) -> Answer:
        """Have it do this; blocks until it answers."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._popen.stdin.flush()
        line = self._popen.stdout.readline()
        if not line:
            raise ChildFailed(f"{self._name} ended instead of answering `{do}`")
        answer: Answer = json.loads(line)
        return answer


@contextmanager
def a_child(module: str) -> Generator[Child, None, None]:
    """`python -m module`, gone when the block ends."""
    popen = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Child(module, popen)
    finally:
        popen.kill()
        popen.communicate()


def serve(**answers: Callable[..., Awaitable[Answer]]) -> None:
    """Answer what is asked on stdin until it is closed, on uvloop and with little to say."""
    logging.getLogger("avtomatika").setLevel(logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

    async def main() -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            answer = await answers[asked.pop("do")](**asked)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    uvloop.run(main())
