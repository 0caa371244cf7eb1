"""How log lines are made: structlog in front of the standard library's logger `avtomatika`.

Data is never in the words: `log.info("task offered", task_id=task.id)`. Every field is an
attribute of the LogRecord, so an application that set up logging keeps its set-up and still
finds the ids. Only the logger `avtomatika` is ever touched, and only by `configure_logging`.
"""

import json
import logging
from collections.abc import MutableMapping
from datetime import datetime, tzinfo
from typing import Any, TextIO

import structlog
from typing_extensions import override

from avtomatika_common.config import Config

LOGGER_NAME = "avtomatika"

_RECORD_KEYS = frozenset(logging.makeLogRecord({}).__dict__) | {"asctime", "message", "taskName"}


class Log(structlog.BoundLoggerBase):
    """Constant words and fields; `log.bind(job_id=...)` gives a log that adds them to each line.

    structlog's context variables are added too. A line below the level costs one comparison.
    """

    def debug(self, words: str, /, **fields: object) -> None:
        self._write(logging.DEBUG, words, fields)

    def info(self, words: str, /, **fields: object) -> None:
        self._write(logging.INFO, words, fields)

    def warning(self, words: str, /, **fields: object) -> None:
        self._write(logging.WARNING, words, fields)

    def error(self, words: str, /, **fields: object) -> None:
        self._write(logging.ERROR, words, fields)

    def exception(self, words: str, /, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._write(logging.ERROR, words, fields, exc_info=True)

    def _write(
        self, level: int, words: str, fields: dict[str, object], *, exc_info: bool = False
    ) -> None:
        logger: logging.Logger = self._logger
        if logger.isEnabledFor(level):
            _, record = self._process_event("", None, fields)
            logger.log(level, words, extra=record, exc_info=exc_info, stacklevel=3)


def get_logger() -> Log:
    """The log of a module: `log = get_logger()`."""
    return Log(
        logging.getLogger(LOGGER_NAME), [structlog.contextvars.merge_contextvars, _as_record], {}
    )


def _as_record(
    _logger: object, _level: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The fields as attributes of a LogRecord; one that would hide another gets a `_` behind it."""
    return {f"{key}_" if key in _RECORD_KEYS else key: value for key, value in fields.items()}


def configure_logging(config: Config, stream: TextIO | None = None) -> None:
    """Give the logger `avtomatika` the level and, unless the application logs already, a handler.

    An application that has a handler on the root logger or on `avtomatika` keeps its own set-up:
    then only a level that nobody chose is set. Writes to `stream`, by default stderr.
    """
    logger = logging.getLogger(LOGGER_NAME)
    ours = [handler for handler in logger.handlers if isinstance(handler, _Handler)]
    for handler in ours:
        logger.removeHandler(handler)
        logger.propagate = True
    if ours or logger.level == logging.NOTSET:
        logger.setLevel(config.LOG_LEVEL)
    if logger.hasHandlers():
        return
    handler = _Handler(stream)
    zone = config.timezone()
    handler.setFormatter(_JsonLine(zone) if config.LOG_FORMAT == "json" else _TextLine(zone))
    logger.addHandler(handler)
    logger.propagate = False


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be told from an application's."""


class _Line(logging.Formatter):
    def __init__(self, zone: tzinfo, layout: str | None = None) -> None:
        super().__init__(layout)
        self._zone = zone

    @override
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, self._zone).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _RECORD_KEYS}


class _JsonLine(_Line):
    @override
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "asctime": self.formatTime(record),
            "name": record.name,
            "levelname": record.levelname,
            "message": record.getMessage(),
            "pathname": record.pathname,
            "lineno": record.lineno,
            **_fields(record),
        }
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, skipkeys=True, ensure_ascii=False)


class _TextLine(_Line):
    def __init__(self, zone: tzinfo) -> None:
        super().__init__(zone, "%(asctime)s - %(name)s - %(levelname)s - %(message)s")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = (f" {key}={_shown(value)}" for key, value in _fields(record).items())
        return super().formatMessage(record) + "".join(fields)


def _shown(value: object) -> str:
    """A field's value on a line of text: quoted when it could be taken for more than one word."""
    shown = str(value)
    plain = shown.isprintable() and not any(character in ' "=' for character in shown)
    return shown if plain and shown else json.dumps(shown, ensure_ascii=False)
