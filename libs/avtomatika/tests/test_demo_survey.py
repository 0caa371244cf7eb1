"""The demo's counting."""

from pathlib import Path

import pytest

from avtomatika.demo.survey import (
    FileSurvey,
    LongestFunction,
    python_files,
    summarize,
    survey_file,
    survey_source,
)

SOURCE = b"""\
class Box:
    def open(self):
        def inner():
            pass

    async def close(self):
        pass
"""


def test_methods_async_and_nested_functions_are_counted() -> None:
    survey = survey_source("box.py", SOURCE)

    assert survey == FileSurvey(
        file="box.py",
        lines=7,
        functions=3,
        classes=1,
        longest_function=LongestFunction(name="open", file="box.py", lines=3),
    )


@pytest.mark.parametrize(
    ("source", "lines"), [(b"", 0), (b"x = 1", 1), (b"x = 1\n", 1), (b"x = 1\n\ny = 2", 3)]
)
def test_the_last_line_needs_no_newline(source: bytes, lines: int) -> None:
    assert survey_source("x.py", source).lines == lines


def test_a_declared_encoding_is_obeyed() -> None:
    source = "# -*- coding: latin-1 -*-\ndef straße(): pass\n".encode("latin-1")

    longest = survey_source("x.py", source).longest_function

    assert longest is not None
    assert longest.name == "straße"


@pytest.mark.parametrize(
    "source",
    [
        b"def broken(:\n",
        b"print 'two'\n",
        b"# coding: unheard-of\n",
        b"s = '\xff'\n",
        b"null = '\0'\n",
        b"(" * 5000,
        b"-" * 100_000 + b"1",
    ],
    ids=["syntax", "python 2", "encoding", "not utf-8", "null byte", "brackets", "depth"],
)
def test_what_does_not_parse_is_a_result_with_a_reason(source: bytes) -> None:
    survey = survey_source("bad.py", source)

    assert survey.problem
    assert (survey.functions, survey.lines) == (0, 1)


def test_a_file_that_vanished_is_a_result_with_a_reason(tmp_path: Path) -> None:
    survey = survey_file(tmp_path, "gone.py")

    assert survey == FileSurvey(file="gone.py", problem="No such file or directory")


def test_python_files_are_found_sorted_and_without_what_was_installed(tmp_path: Path) -> None:
    for file in ("b.py", "a/deep/c.py", "a.py", "notes.txt", "lib/site-packages/other.py"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "directory.py").mkdir()

    assert python_files(tmp_path) == ["a.py", "a/deep/c.py", "b.py"]


def test_a_summary_adds_up_and_does_not_depend_on_the_order() -> None:
    surveys = [
        survey_source("b.py", SOURCE),
        survey_source("a.py", SOURCE),
        survey_source("bad.py", b"def broken(:\n"),
    ]

    summary = summarize(surveys, failed_tasks=1)

    assert summary == summarize(reversed(surveys), failed_tasks=1)
    assert (summary.files, summary.unparsed, summary.failed_tasks) == (4, 1, 1)
    assert (summary.lines, summary.functions, summary.classes) == (15, 6, 2)
    assert summary.longest_function == LongestFunction(name="open", file="a.py", lines=3)
    assert [file.file for file in summary.largest_files] == ["a.py", "b.py", "bad.py"]


def test_only_the_ten_largest_files_are_named() -> None:
    summary = summarize(FileSurvey(file=f"{n:02}.py", lines=n) for n in range(30))

    assert [file.lines for file in summary.largest_files] == list(range(29, 19, -1))


def test_nothing_adds_up_to_nothing() -> None:
    summary = summarize([])

    assert (summary.files, summary.longest_function, summary.largest_files) == (0, None, ())
