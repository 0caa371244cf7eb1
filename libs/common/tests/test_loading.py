"""Blueprints are found by name or in a directory; what cannot be had is told in one line."""

import logging
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.loading import blueprints_of, in_directory

FLOW = """
from avtomatika_common.blueprint import StateMachineBlueprint

{variable} = StateMachineBlueprint("{name}")

@{variable}.handler_for("start", is_start=True, is_end=True)
async def start(job_id):
    pass
"""


def flow(name: str, variable: str = "flow") -> str:
    return FLOW.format(name=name, variable=variable)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """A directory whose modules can be imported; they are forgotten again."""
    monkeypatch.syspath_prepend(str(tmp_path))  # pyright: ignore[reportUnknownMemberType]
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def found(**environ: str) -> list[str]:
    return [blueprint.name for blueprint in blueprints_of(Config(environ))]


def test_a_module_gives_every_blueprint_in_it(modules: Path) -> None:
    (modules / "flows_a.py").write_text(flow("one", "one") + flow("two", "two") + "again = one\n")

    assert found(AVTOMATIKA_BLUEPRINTS="flows_a") == ["one", "two"]


def test_an_attribute_is_a_blueprint_or_a_list_of_them(modules: Path) -> None:
    (modules / "flows_b.py").write_text(
        flow("one", "one") + flow("two", "two") + "both = [two, one]\n"
    )

    assert found(AVTOMATIKA_BLUEPRINTS="flows_b:one") == ["one"]
    assert found(AVTOMATIKA_BLUEPRINTS="flows_b:both") == ["two", "one"]


def test_names_are_separated_by_commas_and_may_repeat_a_blueprint(modules: Path) -> None:
    (modules / "flows_c.py").write_text(flow("one", "one") + flow("two", "two"))
    (modules / "flows_d.py").write_text(flow("three"))

    names = found(AVTOMATIKA_BLUEPRINTS=" flows_c:two , flows_d,, flows_c ")

    assert names == ["two", "three", "one"]


def test_modules_of_the_working_directory_are_found(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "flows_of_cwd.py").write_text(flow("local"))
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    assert found(AVTOMATIKA_BLUEPRINTS="flows_of_cwd") == ["local"]


@pytest.mark.parametrize(
    ("source", "name", "reason"),
    [
        (None, "flows_x", "ModuleNotFoundError: No module named 'flows_x'"),
        ("", "flows_x", "ValueError: module 'flows_x' has no blueprint"),
        ("", "flows_x:flow", "AttributeError: module 'flows_x' has no attribute 'flow'"),
        ("flow = 3", "flows_x:flow", "ValueError: it is neither a blueprint nor a list"),
        ("flow = []", "flows_x:flow", "ValueError: it is neither a blueprint nor a list"),
        (flow("a") + "all = [flow, 3]", "flows_x:all", "it is neither a blueprint nor a list"),
        ("1 / 0", "flows_x", "ZeroDivisionError: division by zero"),
        ("def (", "flows_x", "SyntaxError"),
        (
            "import avtomatika\nflow = avtomatika.StateMachineBlueprint('empty')",
            "flows_x",
            "must have exactly one start state",
        ),
    ],
)
def test_a_name_that_cannot_be_had_stops_the_start(
    modules: Path, source: str | None, name: str, reason: str
) -> None:
    if source is not None:
        (modules / "flows_x.py").write_text(source)

    with pytest.raises(StartupError) as refused:
        found(AVTOMATIKA_BLUEPRINTS=name)

    text = str(refused.value)
    assert text.startswith(f"AVTOMATIKA_BLUEPRINTS names '{name}', which cannot be loaded: ")
    assert reason in text


def test_a_directory_gives_the_blueprints_of_its_files(modules: Path) -> None:
    (modules / "b.py").write_text(flow("second"))
    (modules / "a.py").write_text(flow("first"))
    (modules / "notes.txt").write_text("not Python")

    assert found(BLUEPRINTS_DIR=str(modules)) == ["first", "second"]


def test_a_bad_file_of_the_directory_is_logged_and_the_others_go_on(
    modules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (modules / "bad.py").write_text("1 / 0")
    (modules / "good.py").write_text(flow("good"))

    with caplog.at_level(logging.ERROR, "avtomatika"):
        names = found(BLUEPRINTS_DIR=str(modules))

    assert names == ["good"]
    [record] = caplog.records
    assert record.getMessage() == "blueprint file cannot be loaded"
    assert vars(record)["path"] == str(modules / "bad.py")
    assert "avtomatika_user_bad" not in sys.modules


def test_a_file_without_a_blueprint_is_no_fault(
    modules: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (modules / "__init__.py").write_text("")
    (modules / "good.py").write_text(flow("good"))

    names = found(BLUEPRINTS_DIR=str(modules))

    assert (names, caplog.records) == (["good"], [])


def test_no_directory_is_meant_by_an_empty_name() -> None:
    assert list(in_directory("")) == []


def test_a_directory_that_is_none_stops_the_start(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")

    with pytest.raises(StartupError, match=f"BLUEPRINTS_DIR is '{missing}', which is not a dir"):
        found(BLUEPRINTS_DIR=missing)


def test_two_blueprints_of_one_name_stop_the_start(modules: Path) -> None:
    (modules / "a.py").write_text(flow("same"))
    (modules / "b.py").write_text(flow("same"))

    with pytest.raises(StartupError, match="Two blueprints are named 'same'; rename one of them"):
        found(BLUEPRINTS_DIR=str(modules))


def test_a_process_without_any_blueprint_does_not_start() -> None:
    with pytest.raises(StartupError, match="There is no blueprint to run: set AVTOMATIKA_BLUEPR"):
        found()
