"""Starts a worker anew whenever a Python file below the current directory changes."""

import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

GRACE_SECONDS: Final = 5.0
"""How long the old worker may take for what it has in hand."""


class ReloadUnavailable(Exception):
    def __init__(self) -> None:
        super().__init__("--reload needs the package watchfiles: pip install watchfiles")


def run_with_reload(arguments: Sequence[str]) -> None:
    """Run `worker run` with these arguments in a process of its own, until SIGINT or SIGTERM.

    Raises `ReloadUnavailable` where watchfiles is not installed.
    """
    try:
        watchfiles: Any = importlib.import_module("watchfiles")
    except ModuleNotFoundError as error:
        raise ReloadUnavailable from error
    watchfiles.run_process(
        str(Path.cwd()),
        target=shlex.join([sys.executable, "-m", "avtomatika_worker", "run", *arguments]),
        target_type="command",
        watch_filter=watchfiles.PythonFilter(),
        sigint_timeout=GRACE_SECONDS,
        grace_period=0.2,
    )
