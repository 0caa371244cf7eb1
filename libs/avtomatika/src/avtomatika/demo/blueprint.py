"""The demo's blueprint: survey a directory of Python files, one task per file."""

import sysconfig
from pathlib import Path
from typing import Any, Final

import msgspec

from avtomatika.demo.survey import FileSurvey, python_files, summarize
from avtomatika_common.actions import ActionFactory
from avtomatika_common.blueprint import StateMachineBlueprint

STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib")

code_survey = StateMachineBlueprint(
    name="code_survey", api_version="v1", api_endpoint="/jobs/code_survey"
)


@code_survey.handler_for("list_files", is_start=True)
def list_files(
    initial_data: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
) -> None:
    """A plain function: it runs in a thread, where walking a directory holds nobody up."""
    directory = initial_data.get("directory", STANDARD_LIBRARY)
    if not isinstance(directory, str) or not Path(directory).is_dir():
        actions.transition_to("failed", error_message=f"There is no directory {directory!r}.")
        return
    files = python_files(Path(directory))
    if not files:
        actions.transition_to("failed", error_message=f"No *.py file is below {directory!r}.")
        return
    state_history |= {"directory": directory, "files": len(files)}
    actions.dispatch_parallel(
        [
            {"type": "analyze_file", "params": {"directory": directory, "file": file}}
            for file in files
        ],
        aggregate_into="summarize",
    )


@code_survey.aggregator_for("summarize")
async def add_up(
    aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
) -> None:
    """Every task has ended; one that failed for good is counted, it does not fail the job."""
    answers = list(aggregation_results.values())
    surveys = [
        msgspec.convert(answer["data"], FileSurvey)
        for answer in answers
        if answer["status"] == "success"
    ]
    summary = summarize(surveys, failed_tasks=len(answers) - len(surveys))
    state_history["summary"] = msgspec.to_builtins(summary)
    actions.transition_to("finished")


@code_survey.handler_for("finished", is_end=True)
async def finished() -> None:
    """The summary is in `state_history`."""


@code_survey.handler_for("failed", is_end=True)
async def failed() -> None:
    """`error_message` says what was wrong with the directory."""
