"""Log lines: their fields, their two forms, and what an application keeps."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from avtomatika_common.config import Config
from avtomatika_common.logs import LOGGER_NAME, configure_logging, get_logger

log = get_logger()
logger = logging.getLogger(LOGGER_NAME)


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    root = logging.getLogger()
    level = root.level
    _forget_what_was_configured()
    yield
    root.setLevel(level)
    _forget_what_was_configured()


def _forget_what_was_configured() -> None:
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.handlers.clear()


def configured(form: str = "json", *, alone: bool = True, **environ: str) -> io.StringIO:
    """What is written from now on. `alone`: nobody else has set up logging (pytest has)."""
    stream = io.StringIO()
    root = logging.getLogger()
    pytest_handlers = root.handlers
    if alone:
        root.handlers = []
    configure_logging(Config({"LOG_FORMAT": form, **environ}), stream)
    root.handlers = pytest_handlers
    return stream


def test_a_json_line_has_the_fields_and_the_data() -> None:
    stream = configured()

    log.bind(job_id="j-1").info("task offered", task_id="t-1", waited_ms=3)

    line = json.loads(stream.getvalue())
    assert list(line)[:6] == ["asctime", "name", "levelname", "message", "pathname", "lineno"]
    assert (line["name"], line["levelname"]) == ("avtomatika", "INFO")
    assert line["message"] == "task offered"
    assert line["pathname"] == __file__
    assert (line["job_id"], line["task_id"], line["waited_ms"]) == ("j-1", "t-1", 3)


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "exception"])
def test_a_line_says_where_it_was_written(level: str) -> None:
    stream = configured(LOG_LEVEL="DEBUG")

    getattr(log, level)("here")

    line = json.loads(stream.getvalue())
    assert line["pathname"] == __file__
    assert line["levelname"] == ("ERROR" if level == "exception" else level.upper())


def test_a_text_line_carries_the_data_too() -> None:
    stream = configured("text")

    log.warning("odd thing", job_id="j-1", reason="two words", empty="", forged="a\nb=c")

    line = stream.getvalue()
    assert " - avtomatika - WARNING - odd thing job_id=j-1" in line
    assert line.endswith('reason="two words" empty="" forged="a\\nb=c"\n')


def test_times_are_iso_in_the_configured_zone() -> None:
    stream = configured(TZ="Asia/Kolkata")

    log.info("now")

    assert json.loads(stream.getvalue())["asctime"].endswith("+05:30")


def test_an_exception_is_one_json_line_with_its_traceback() -> None:
    stream = configured()

    try:
        {}["gone"]
    except KeyError:
        log.exception("not found", job_id="j-1")

    assert stream.getvalue().count("\n") == 1
    assert "KeyError: 'gone'" in json.loads(stream.getvalue())["exc_info"]


def test_a_field_may_have_any_name_and_any_value() -> None:
    stream = configured()

    log.info("strange", name="executor", message=1, args={(1, 2): object}, event="e", words=2)

    line = json.loads(stream.getvalue())
    assert (line["name"], line["name_"], line["message_"]) == ("avtomatika", "executor", 1)
    assert (line["event"], line["words"]) == ("e", 2)


def test_percent_signs_in_words_are_only_words() -> None:
    stream = configured()

    log.info("100 % done %s")

    assert json.loads(stream.getvalue())["message"] == "100 % done %s"


def test_context_variables_are_added() -> None:
    stream = configured()

    with structlog.contextvars.bound_contextvars(worker_id="w"):
        log.info("inside")

    assert json.loads(stream.getvalue())["worker_id"] == "w"


def test_the_level_is_the_configured_one() -> None:
    stream = configured(LOG_LEVEL="WARNING")

    log.info("hidden")
    log.warning("shown")

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["shown"]


def test_configuring_again_replaces_our_handler() -> None:
    first = configured()
    second = configured("text", LOG_LEVEL="DEBUG")

    log.debug("once")

    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
    assert len(logger.handlers) == 1


def test_without_configuring_records_reach_the_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        log.info("step committed", job_id="j-1")

    (record,) = caplog.records
    assert record.getMessage() == "step committed"
    assert vars(record)["job_id"] == "j-1"


@pytest.mark.parametrize("name", [None, LOGGER_NAME])
def test_an_application_that_configured_logging_keeps_it(name: str | None) -> None:  # R69
    root, theirs = logging.getLogger(), logging.getLogger(name)
    handler = logging.NullHandler()
    theirs.addHandler(handler)
    theirs.setLevel(logging.ERROR)
    before = (root.level, root.handlers[:], logger.handlers[:], logger.propagate)

    stream = configured(alone=False, LOG_LEVEL="DEBUG")
    log.error("for the application")
    after = (root.level, root.handlers[:], logger.handlers[:], logger.propagate)
    theirs.removeHandler(handler)

    assert after == before
    assert theirs.level == logging.ERROR
    assert stream.getvalue() == ""
