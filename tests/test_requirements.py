"""`docs/requirements.md` names tests for each requirement, and they are there and say so.

`docs/proof.md` names tests for each claim, and they are there.
"""

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


def claims() -> dict[str, list[str]]:
    """Claim -> its tests, as the tables of claims list them."""
    text = (ROOT / "docs" / "proof.md").read_text().partition("\n## Claims\n")[2]
    found: dict[str, list[str]] = {}
    for claim, tests in re.findall(r"^\| (.+) \| (`.+::.+`|) *\|$", text, re.MULTILINE):
        assert claim not in found, f"'{claim}' is there twice"
        found[claim] = re.findall(r"`([^`]+::\w+)`", tests)
    return found


def source_of(test: str) -> str:
    path, _, name = test.partition("::")
    source = (ROOT / path).read_text()
    functions = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    assert functions, f"there is no test {test}"
    return ast.get_source_segment(source, functions[0]) or ""


PROOFS = proofs()
CLAIMS = claims()
SPOKEN_OF = (
    "blocks its loop", "dead executor", "stopped for longer", "version", "outage", "full Redis",
    "reconciler", "append-only file", "CLIENT PAUSE", "30 s", "late or never", "scripts", "cut off",
    "backs off", "settings at start", "`strict`", "poison", "deadline in the queue",
    "deadline for its result", "approval", "a job has a deadline", "retry policy",
    "heartbeat timeout", "`sleep`", "`wait_for_signal`", "cron", "daylight saving",
    "short months", "Hypothesis", "`misfire`", "`overlap`", "`jitter`", "`input_data`",
    "one job for each time", "paused, resumed, run now",
)  # fmt: skip
"""What the claims have to be about."""


def test_every_requirement_of_durability_and_of_workers_is_listed() -> None:
    assert PROOFS.keys() >= {f"R{number}" for number in (*DURABILITY, *WORKERS)}


@pytest.mark.parametrize("requirement", PROOFS)
def test_a_requirement_has_tests_that_say_so(requirement: str) -> None:
    assert PROOFS[requirement], "no test"
    for test in PROOFS[requirement]:
        assert re.search(rf"\b{requirement}\b", source_of(test)), f"{test} is silent of it"


@pytest.mark.parametrize("topic", SPOKEN_OF)
def test_every_topic_has_a_claim(topic: str) -> None:
    assert any(topic in claim for claim in CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_claim_has_tests(claim: str) -> None:
    assert CLAIMS[claim], "no test"
    for test in CLAIMS[claim]:
        source_of(test)
