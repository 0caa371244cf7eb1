"""What the demo shows."""

from datetime import UTC, datetime
from io import BytesIO, StringIO, TextIOWrapper

import pytest

from avtomatika.demo.screen import (
    HistoryRow,
    Screen,
    moments_of,
    progress_bar,
    summary_lines,
    timeline_lines,
)
from avtomatika.demo.survey import FileSurvey, LongestFunction, summarize


def a_row(event_type: str, second: float, **columns: object) -> HistoryRow:
    at = datetime.fromtimestamp(1_700_000_000 + second, UTC)
    return HistoryRow(event_type=event_type, timestamp=at, **columns)  # pyright: ignore[reportArgumentType]


def test_figures_have_thousands_separators_and_stand_in_a_column() -> None:
    summary = summarize([FileSurvey(file="a.py", lines=1_234_567, functions=3, classes=12_345)])

    lines = summary_lines(summary)

    assert "  lines                1,234,567" in lines
    assert len({len(line) for line in lines}) == 1


def test_the_longest_function_is_named_with_its_file() -> None:
    longest = LongestFunction(name="run", file="a.py", lines=1200)

    lines = summary_lines(summarize([FileSurvey(file="a.py", longest_function=longest)]))

    assert lines[-1].split() == ["longest", "function", "1,200", "lines:", "run", "in", "a.py"]


@pytest.mark.parametrize("columns", [0, 10, 40, 60, 200])
def test_a_progress_bar_fits_the_terminal(columns: int) -> None:
    assert len(progress_bar(500, 1000, 2.0, columns)) <= max(columns - 1, 0)


def test_a_progress_bar_says_how_far_and_how_fast() -> None:
    bar = progress_bar(500, 1000, 2.0, 80)

    assert bar.count("█") == bar.count("░") > 0
    assert "500 / 1,000 files" in bar
    assert "250 files/s" in bar


def test_a_terminal_has_one_line_of_progress() -> None:
    out = StringIO()
    screen = Screen(out, is_terminal=True)

    screen.progress(1, 4, 1.0)
    screen.progress(2, 4, 2.0)
    screen.line("done")

    shown = out.getvalue()
    assert shown.count("\r") == 2
    assert shown.endswith("\x1b[K\ndone\n")


def test_a_file_has_a_line_for_each_tenth_and_no_escape_codes() -> None:
    out = StringIO()
    screen = Screen(out, is_terminal=False)

    for done in range(101):
        screen.progress(done, 100, 1.0)
    screen.heading("Summary")

    shown = out.getvalue()
    assert shown.count(" files/s\n") == 11
    assert "\x1b" not in shown
    assert "\r" not in shown


def test_what_a_terminal_cannot_show_is_replaced() -> None:
    out = TextIOWrapper(BytesIO(), encoding="ascii")

    Screen(out, is_terminal=False).line("ä.py \udcff.py")

    out.seek(0)
    assert out.read() == "?.py ?.py\n"


def test_a_timeline_condenses_the_tasks() -> None:
    rows = [
        a_row("job_created", 0),
        a_row("state_started", 0.001, state="list_files"),
        *(a_row("task_dispatched", 0.1) for _ in range(3)),
        a_row("task_finished", 1, worker_id="w2"),
        a_row("task_finished", 2, worker_id="w1"),
        a_row("task_finished", 3, worker_id="w2"),
        a_row("state_finished", 3.25, state="summarize", next_state="finished"),
        a_row("job_completed", 3.5),
    ]

    lines = timeline_lines(moments_of(rows))

    assert [" ".join(line.split()) for line in lines] == [
        "0.000 s job created",
        "0.001 s state started list_files",
        "0.100 s task dispatched all 3",
        "1.000 s task finished the first",
        "3.000 s task finished the last of 3, by w1 and w2",
        "3.250 s state finished summarize → finished",
        "3.500 s job completed",
    ]


def test_a_timeline_of_nothing_is_empty() -> None:
    assert timeline_lines(moments_of([])) == []
