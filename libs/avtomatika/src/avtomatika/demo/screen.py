"""What the demo shows: a live progress line, the figures, and the timeline of the job."""

import shutil
from collections.abc import Iterable
from datetime import datetime
from typing import Final, TextIO

import msgspec

from avtomatika.demo.survey import Summary

_BAR_WIDTH: Final = 28
_NARROWEST_BAR: Final = 8
_LABEL_WIDTH: Final = 18
_FIGURE_WIDTH: Final = 12


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a timeline; `at` in Unix seconds."""

    at: float
    what: str
    detail: str = ""


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of a history row that a timeline shows."""

    event_type: str
    timestamp: datetime
    state: str | None = None
    next_state: str | None = None
    worker_id: str | None = None


class Screen:
    """Writes to `out`; colours and redrawn lines only where `is_terminal`."""

    def __init__(self, out: TextIO, *, is_terminal: bool) -> None:
        self._out = out
        self._encoding = out.encoding or "utf-8"
        self._is_terminal = is_terminal
        self._tenths_shown = -1
        self._line_is_open = False

    def heading(self, text: str) -> None:
        self.line()
        self.line(f"\x1b[1m{text}\x1b[0m" if self._is_terminal else text)

    def line(self, text: str = "") -> None:
        self.end_progress()
        self._write(f"{text}\n")

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def progress(self, done: int, total: int, seconds: float) -> None:
        """On a terminal the same line again; elsewhere a line for each further tenth."""
        if self._is_terminal:
            width = shutil.get_terminal_size().columns
            self._write(f"\r{progress_bar(done, total, seconds, width)}\x1b[K")
            self._line_is_open = True
        elif (tenths := done * 10 // total) > self._tenths_shown:
            self._tenths_shown = tenths
            self.line(f"  {_pace(done, total, seconds)}")

    def end_progress(self) -> None:
        """Leave the progress line as it stands; what follows is written below it."""
        if self._line_is_open:
            self._line_is_open = False
            self._write("\n")

    def _write(self, text: str) -> None:
        """A terminal may lack what a file is called, or what a bar is made of."""
        self._out.write(text.encode(self._encoding, "replace").decode(self._encoding))
        self._out.flush()


def progress_bar(done: int, total: int, seconds: float, columns: int) -> str:
    """One line that fits into `columns`; a narrow terminal gets a shorter bar, or none."""
    pace = _pace(done, total, seconds)
    room = min(_BAR_WIDTH, columns - len(pace) - 5)
    if room < _NARROWEST_BAR:
        return f"  {pace}"[: max(columns - 1, 0)]
    filled = room * done // total
    return f"  {'█' * filled}{'░' * (room - filled)}  {pace}"


def _pace(done: int, total: int, seconds: float) -> str:
    whole = f"{total:,}"
    rate = done / seconds if seconds > 0 else 0.0
    return f"{done:>{len(whole)},} / {whole} files  {rate:>6,.0f} files/s"


def summary_lines(summary: Summary) -> list[str]:
    """The figures of a survey as a table."""
    figures = {
        "files": summary.files,
        "do not parse": summary.unparsed,
        "lines": summary.lines,
        "functions": summary.functions,
        "classes": summary.classes,
    }
    if summary.failed_tasks:
        figures["not analysed"] = summary.failed_tasks
    lines = [
        f"  {name:<{_LABEL_WIDTH}}{figure:>{_FIGURE_WIDTH},}" for name, figure in figures.items()
    ]
    if longest := summary.longest_function:
        label = f"  {'longest function':<{_LABEL_WIDTH}}{longest.lines:>{_FIGURE_WIDTH},} lines"
        lines.append(f"{label}: {longest.name} in {longest.file}")
    return lines


def largest_files_lines(summary: Summary) -> list[str]:
    """The files with most lines, numbered."""
    widest = max((len(file.file) for file in summary.largest_files), default=0)
    width = max(widest, _LABEL_WIDTH + _FIGURE_WIDTH - 12)
    return [
        f"  {number:>2}  {file.file:<{width}}  {file.lines:>6,}"
        for number, file in enumerate(summary.largest_files, start=1)
    ]


def moments_of(rows: Iterable[HistoryRow]) -> list[Moment]:
    """History as a timeline: each event of the job, but of many tasks the first and the last."""
    moments: list[Moment] = []
    tasks: dict[str, list[HistoryRow]] = {}
    for row in rows:
        if row.event_type.startswith("task_"):
            tasks.setdefault(row.event_type, []).append(row)
        else:
            moments.append(_moment(row, _detail(row)))
    for same in tasks.values():
        workers = sorted({row.worker_id for row in same if row.worker_id})
        by = f", by {' and '.join(workers)}" if workers else ""
        if same[0].timestamp == same[-1].timestamp:
            moments.append(_moment(same[0], f"all {len(same):,}{by}"))
        else:
            moments.append(_moment(same[0], "the first"))
            moments.append(_moment(same[-1], f"the last of {len(same):,}{by}"))
    return sorted(moments, key=lambda moment: moment.at)


def timeline_lines(moments: list[Moment]) -> list[str]:
    """Seconds since the first moment, and what happened."""
    start = moments[0].at if moments else 0.0
    width = max((len(moment.what) for moment in moments), default=0)
    return [
        f"  {moment.at - start:>9.3f} s  {moment.what:<{width}}  {moment.detail}".rstrip()
        for moment in moments
    ]


def _moment(row: HistoryRow, detail: str) -> Moment:
    what = row.event_type.replace("_", " ")
    return Moment(at=row.timestamp.timestamp(), what=what, detail=detail)


def _detail(row: HistoryRow) -> str:
    if not row.event_type.startswith("state_"):
        return ""
    state = row.state or ""
    return f"{state} → {row.next_state}" if row.next_state else state
