"""Log lines carry their fields, as text and as JSON, and leave other loggers alone."""

import logging
from collections.abc import Generator

import orjson
import pytest

from avtomatika_worker import setup_logging

LOGGER = logging.getLogger("avtomatika_worker")


@pytest.fixture
def untouched_logger() -> Generator[None]:
    before = (LOGGER.handlers, LOGGER.level, LOGGER.propagate)
    yield
    LOGGER.handlers, LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


def written(log_format: str, capsys: pytest.CaptureFixture[str]) -> str:
    setup_logging("INFO", log_format)
    setup_logging("INFO", log_format)  # again: still one line
    LOGGER.debug("not this one")
    LOGGER.info("result delivered", extra={"task_id": "t-1"})
    return capsys.readouterr().err


@pytest.mark.usefixtures("untouched_logger")
def test_a_text_line_ends_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert written("text", capsys).endswith("INFO    result delivered task_id=t-1\n")


@pytest.mark.usefixtures("untouched_logger")
def test_a_json_line_holds_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    line = orjson.loads(written("json", capsys))

    assert (line["event"], line["level"], line["task_id"]) == ("result delivered", "info", "t-1")


@pytest.mark.usefixtures("untouched_logger")
def test_the_root_logger_is_left_alone() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    setup_logging()

    assert (list(root.handlers), root.level) == before
