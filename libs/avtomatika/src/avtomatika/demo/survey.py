"""What a survey counts: one file's figures, and the figures of many files together."""

import ast
import heapq
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

LEFT_OUT: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
"""Directories that are not looked into: what is in them was installed, not written."""
LARGEST_FILES: Final = 10

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


class LongestFunction(msgspec.Struct, frozen=True, kw_only=True):
    """`lines` counts from `def` to the last line of the body."""

    name: str
    file: str
    lines: int


class FileSurvey(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one file; `file` is its path below the directory that is surveyed."""

    file: str
    lines: int = 0
    functions: int = 0
    """Methods and nested functions too."""
    classes: int = 0
    longest_function: LongestFunction | None = None
    problem: str | None = None
    """Why it cannot be read or parsed; then at most its lines are counted."""


class LargestFile(msgspec.Struct, frozen=True, kw_only=True):
    file: str
    lines: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of all files together."""

    files: int
    unparsed: int
    """Files that cannot be read or parsed."""
    failed_tasks: int
    """Files no worker gave an answer for."""
    lines: int
    functions: int
    classes: int
    longest_function: LongestFunction | None
    largest_files: tuple[LargestFile, ...]


def python_files(directory: Path) -> list[str]:
    """The `*.py` files below `directory`, sorted, as paths relative to it.

    A name that is not text in the machine's encoding is left out: JSON could not carry it.
    """
    return sorted(_walk(directory))


def _walk(directory: Path) -> Iterator[str]:
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in LEFT_OUT]
        for name in names:
            path = Path(parent, name)
            if name.endswith(".py") and path.is_file() and _is_text(str(path)):
                yield str(path.relative_to(directory))


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def survey_file(directory: Path, file: str) -> FileSurvey:
    """Read and count one file; a file that is no Python is a result like any other."""
    try:
        source = (directory / file).read_bytes()
    except OSError as error:
        return FileSurvey(file=file, problem=error.strerror or type(error).__name__)
    return survey_source(file, source)


def survey_source(file: str, source: bytes) -> FileSurvey:
    """Count lines, functions and classes; the source's own encoding declaration is obeyed."""
    lines = source.count(b"\n") + (not source.endswith(b"\n") and bool(source))
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # Null bytes are a ValueError; nesting too deep for the parser is one of the last two.
        problem = getattr(error, "msg", None) or str(error) or type(error).__name__
        return FileSurvey(file=file, lines=lines, problem=str(problem))
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, _FUNCTIONS)]
    longest = max(functions, key=_length, default=None)
    return FileSurvey(
        file=file,
        lines=lines,
        functions=len(functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        longest_function=None
        if longest is None
        else LongestFunction(name=longest.name, file=file, lines=_length(longest)),
    )


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def summarize(surveys: Iterable[FileSurvey], failed_tasks: int = 0) -> Summary:
    """Add up. Of equals the first by name wins, so the order of `surveys` does not matter."""
    all_files = sorted(surveys, key=lambda survey: survey.file)
    longest = [survey.longest_function for survey in all_files if survey.longest_function]
    largest = heapq.nlargest(LARGEST_FILES, all_files, key=lambda survey: survey.lines)
    return Summary(
        files=len(all_files) + failed_tasks,
        unparsed=sum(survey.problem is not None for survey in all_files),
        failed_tasks=failed_tasks,
        lines=sum(survey.lines for survey in all_files),
        functions=sum(survey.functions for survey in all_files),
        classes=sum(survey.classes for survey in all_files),
        longest_function=max(longest, key=lambda function: function.lines, default=None),
        largest_files=tuple(LargestFile(file=s.file, lines=s.lines) for s in largest),
    )
