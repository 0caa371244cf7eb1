"""What handlers and workers did, told outside of the orchestrator: lines in a file of each process.

A line is written in one piece before its writer goes on, so it outlives the process that is killed next.
"""

import json
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "CHAOS_MARKS"
"""Names the directory of these files."""

Mark = dict[str, Any]


@cache
def _file() -> int:
    directory = os.environ[VARIABLE]  # noqa: TID251 - of the test's own processes
    name = Path(directory) / f"{os.getpid()}-{time.time_ns()}.jsonl"
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def mark(what: str, **fields: Any) -> None:
    at = time.time()  # noqa: TID251 - for people who read it
    line = json.dumps({"what": what, "at": at, "pid": os.getpid(), **fields})
    os.write(_file(), f"{line}\n".encode())


def read_marks(directory: Path) -> Iterator[Mark]:
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            yield json.loads(line)
