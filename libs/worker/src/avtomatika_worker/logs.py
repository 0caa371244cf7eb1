"""Log lines of the worker: constant words, data as fields, as text or as JSON."""

import logging
from typing import Final

import orjson

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(level: str = "INFO", log_format: str = "text") -> None:
    """Write the lines of `avtomatika_worker` to stderr; the root logger is left alone.

    `log_format` is `text` or `json`. Calling it again replaces the earlier set-up.
    """
    logger = logging.getLogger("avtomatika_worker")
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if log_format.lower() == "json" else _TextLines())
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = (f"{key}={value}" for key, value in _fields(record).items())
        return " ".join((super().formatMessage(record), *fields))


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
