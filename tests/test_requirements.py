"""`docs/requirements.md` names tests for each requirement, and they are there and say so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DURABILITY = [*range(1, 27), 51, *range(62, 66), 70]
WORKERS = [5, 6, 15, *range(38, 41), *range(45, 50), 51, 52, 54]


def proofs() -> dict[str, list[str]]:
    """Requirement -> its tests, as the document lists them."""
    found: dict[str, list[str]] = {}
    tests: list[str] = []
    for line in (ROOT / "docs" / "requirements.md").read_text().splitlines():
        if heading := re.match(r"\*\*(R\d+)\*\* ", line):
            assert heading[1] not in found, f"{heading[1]} is there twice"
            tests = found[heading[1]] = []
        elif test := re.fullmatch(r"\* `(\S+::\S+)`", line):
            tests.append(test[1])
    return found


PROOFS = proofs()


def test_every_requirement_of_durability_and_of_workers_is_listed() -> None:
    assert PROOFS.keys() >= {f"R{number}" for number in (*DURABILITY, *WORKERS)}


@pytest.mark.parametrize("requirement", PROOFS)
def test_a_requirement_has_tests_that_say_so(requirement: str) -> None:
    assert PROOFS[requirement], "no test"
    for test in PROOFS[requirement]:
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text()
        functions = [
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        ]

        assert functions, f"there is no test {test}"
        segment = ast.get_source_segment(source, functions[0]) or ""
        assert re.search(rf"\b{requirement}\b", segment), f"{test} does not say {requirement}"
