"""The demo's worker: `worker run --app avtomatika.demo.worker:worker`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from avtomatika.demo.survey import survey_file
from avtomatika_worker import Worker

worker = Worker(worker_type="code-surveyor")


@dataclass
class FileToSurvey:
    """The params of a task; the worker checks that they are there."""

    directory: str
    file: str


@worker.task("analyze_file")
def analyze_file(params: FileToSurvey) -> dict[str, Any]:
    """A plain function: it runs in a thread, so several files may be in hand at a time."""
    survey = survey_file(Path(params.directory), params.file)
    figures: dict[str, Any] = msgspec.to_builtins(survey)
    return figures
