"""Log lines of the worker: constant words, data as fields, as text or as JSON."""

import json
import logging
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final, TextIO

import orjson

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_COLOURS: Final = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_DIM: Final = "\x1b[2m"
_PLAIN: Final = "\x1b[0m"
_ERASE_LINE: Final = "\r\x1b[K"


def setup_logging(
    level: str = "INFO", log_format: str = "text", *, colours: bool | None = None
) -> None:
    """Write the lines of `avtomatika_worker` to stderr; the root logger is left alone.

    `log_format` is `text` or `json`; text is coloured on a terminal, unless `colours` says
    otherwise. Calling it again replaces the earlier set-up.
    """
    logger = logging.getLogger("avtomatika_worker")
    handler = LineHandler(sys.stderr)
    coloured = sys.stderr.isatty() if colours is None else colours
    handler.setFormatter(_JsonLines() if log_format.lower() == "json" else _TextLines(coloured))
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def line_of_logger() -> "LineHandler | None":
    """Where a line that is redrawn may stand: at a terminal to which only we write log lines."""
    logger = logging.getLogger("avtomatika_worker")
    if logger.propagate or len(logger.handlers) != 1:
        return None
    handler = logger.handlers[0]
    return handler if isinstance(handler, LineHandler) and handler.stream.isatty() else None


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes log lines, and keeps below them one line that is redrawn."""

    _line = ""
    _is_mid_line = False
    """Somebody has printed the beginning of a line: ours has no place until its end."""

    def emit(self, record: logging.LogRecord) -> None:  # called with the lock held
        if self._is_mid_line:
            self.stream.write("\n")
            self._is_mid_line = False
        else:
            self._erase()
        super().emit(record)
        self._draw()

    def show(self, line: str) -> None:
        """Show `line` instead of the last one; the empty one removes it."""
        with self._locked():
            if line != self._line:
                self._erase(even_none=True)
                self._line = line
                self._draw()

    def print_above(self, stream: TextIO, text: str) -> int:
        """Write to another stream of the same terminal."""
        with self._locked():
            self._erase()
            written = stream.write(text)
            stream.flush()
            if text:
                self._is_mid_line = not text.endswith("\n")
            self._draw()
            return written

    @contextmanager
    def _locked(self) -> Generator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _erase(self, *, even_none: bool = False) -> None:
        if (self._line or even_none) and not self._is_mid_line:
            self.stream.write(_ERASE_LINE)
            self.flush()

    def _draw(self) -> None:
        if self._line and not self._is_mid_line:
            self.stream.write(self._line)
        self.flush()


class Above:
    """Stands for a stream of the process whose terminal shows such a line."""

    def __init__(self, stream: TextIO, line: LineHandler) -> None:
        self._stream = stream
        self._line = line

    def write(self, text: str) -> int:
        return self._line.print_above(self._stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TextLines(logging.Formatter):
    def __init__(self, coloured: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")
        self._coloured = coloured

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = " ".join(f"{key}={_shown(value)}" for key, value in _fields(record).items())
        if self._coloured:
            colour = _COLOURS.get(record.levelno, "")
            level = f"{colour}{record.levelname:<7}{_PLAIN}"
            time, fields = f"{_DIM}{record.asctime}{_PLAIN}", fields and f"{_DIM}{fields}{_PLAIN}"
            return " ".join(filter(None, (time, level, record.message, fields)))
        return " ".join(filter(None, (super().formatMessage(record), fields)))


def _shown(value: object) -> str:
    """One word, or in quotes."""
    text = str(value)
    is_word = text.isprintable() and not set(text) & {" ", '"'}
    return text if is_word else json.dumps(text, ensure_ascii=False)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
