"""Log lines carry their fields, as text and as JSON, and leave other loggers alone."""

import io
import logging
import sys
from collections.abc import Generator

import orjson
import pytest

from avtomatika_worker import setup_logging
from avtomatika_worker.logs import Above, LineHandler, line_of_logger

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
def test_a_field_of_several_words_is_in_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO", "text")

    LOGGER.warning("poll failed", extra={"error": 'no "answer"\nin time', "next_try_seconds": 5.0})

    assert capsys.readouterr().err.endswith(
        'poll failed error="no \\"answer\\"\\nin time" next_try_seconds=5.0\n'
    )


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("untouched_logger")
def test_a_terminal_gets_colours_and_a_file_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, colours, coloured in (
        (Terminal(), None, True),
        (Terminal(), False, False),
        (io.StringIO(), None, False),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        setup_logging("INFO", "text", colours=colours)

        LOGGER.warning("poll failed", extra={"error": "away"})

        assert ("\x1b[33mWARNING\x1b[0m" in stream.getvalue()) is coloured
        assert "poll failed" in stream.getvalue()


@pytest.mark.usefixtures("untouched_logger")
def test_json_is_never_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    setup_logging("INFO", "json")

    LOGGER.warning("poll failed", extra={"error": "away"})

    assert orjson.loads(sys.stderr.getvalue())["error"] == "away"  # type: ignore[attr-defined]


def test_log_lines_go_above_the_line_that_is_redrawn() -> None:
    terminal = Terminal()
    handler = LineHandler(terminal)

    handler.show("1 running")
    handler.handle(logging.makeLogRecord({"msg": "registered"}))
    handler.show("2 running")
    handler.show("2 running")
    handler.show("")
    handler.handle(logging.makeLogRecord({"msg": "stopped"}))

    assert terminal.getvalue() == (
        "\r\x1b[K1 running\r\x1b[Kregistered\n1 running\r\x1b[K2 running\r\x1b[Kstopped\n"
    )


def test_what_is_printed_goes_above_the_line_once_it_is_a_whole_line() -> None:
    terminal = Terminal()
    handler = LineHandler(terminal)
    printed = Above(terminal, handler)

    handler.show("1 running")
    printed.write("page")
    handler.show("2 running")
    printed.writelines([" 1", "\n"])
    printed.write("half a line")
    handler.handle(logging.makeLogRecord({"msg": "result delivered"}))
    handler.show("")
    printed.write("the end")

    assert terminal.getvalue() == (
        "\r\x1b[K1 running"
        "\r\x1b[Kpage 1\n2 running"
        "\r\x1b[Khalf a line\nresult delivered\n2 running"
        "\r\x1b[Kthe end"
    )
    assert printed.isatty()


@pytest.mark.usefixtures("untouched_logger")
def test_the_line_stands_only_where_all_log_lines_are_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    setup_logging()
    assert line_of_logger() is LOGGER.handlers[0]

    LOGGER.addHandler(logging.StreamHandler(Terminal()))
    assert line_of_logger() is None

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    setup_logging()
    assert line_of_logger() is None
