"""What handlers return and raise, and what the orchestrator is told."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import msgspec
import pydantic
import pytest

from avtomatika_worker.outcome import Outcome, outcome_of, outcome_of_exception
from rxon import TaskError
from rxon.exceptions import IntegrityError, ParamValidationError


@dataclass
class Found:
    lines: int


class FoundStruct(msgspec.Struct):
    lines: int


class FoundModel(pydantic.BaseModel):
    lines: int


RETURNED: list[tuple[object, Outcome]] = [
    (None, Outcome(status="success", data=None)),
    ({}, Outcome(status="success", data={})),
    ({"lines": 3}, Outcome(status="success", data={"lines": 3})),
    (OrderedDict(lines=3), Outcome(status="success", data={"lines": 3})),
    ({"status": "needs_review"}, Outcome(status="needs_review", data={})),
    ({"data": {"n": 1}}, Outcome(status="success", data={"n": 1})),
    ({"status": "success", "data": None}, Outcome(status="success", data=None)),
    (Found(lines=3), Outcome(status="success", data={"lines": 3})),
    (FoundStruct(lines=3), Outcome(status="success", data={"lines": 3})),
    (FoundModel(lines=3), Outcome(status="success", data={"lines": 3})),
    ({"data": FoundModel(lines=3)}, Outcome(status="success", data={"lines": 3})),
    ("text", Outcome(status="success", data={"result": "text"})),
    ([1, 2], Outcome(status="success", data={"result": [1, 2]})),
    ((1, 2), Outcome(status="success", data={"result": [1, 2]})),
    (False, Outcome(status="success", data={"result": False})),
    (
        {"status": "failure", "error": {"code": "DEPENDENCY_ERROR", "message": "no disk"}},
        Outcome(
            status="failure",
            data={},
            error=TaskError(code="DEPENDENCY_ERROR", message="no disk"),
        ),
    ),
    (
        {"status": "failure", "error": {"code": "X", "message": "m", "details": {"n": 1}}},
        Outcome(
            status="failure",
            data={},
            error=TaskError(code="X", message="m", details={"n": 1}),
        ),
    ),
    (
        {"status": "failure", "error": "no disk"},
        Outcome(
            status="failure",
            data={},
            error=TaskError(code="TRANSIENT_ERROR", message="no disk"),
        ),
    ),
]


@pytest.mark.parametrize(("returned", "outcome"), RETURNED)
def test_what_a_handler_returns_becomes_its_result(returned: object, outcome: Outcome) -> None:
    assert outcome_of(returned) == outcome


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (object(), "The handler returned a object that is not JSON"),
        ({1, 2}, "The handler returned a set that is not JSON"),
        ({"data": {"when": object()}}, "The handler returned a dict that is not JSON"),
        ({1: "a"}, "Dict key must be str"),
        ("\ud800", "surrogates not allowed"),
        ({"status": 3}, "a status that is no text"),
        ({"status": ""}, "a status that is no text"),
        ({"data": [1]}, "data that is no dict"),
        ({"error": 3}, "a wrong error"),
    ],
)
def test_what_cannot_be_a_result_is_a_permanent_failure(returned: object, text: str) -> None:
    outcome = outcome_of(returned)

    assert outcome.status == "failure"
    assert outcome.error is not None
    assert outcome.error.code == "PERMANENT_ERROR"
    assert text in outcome.error.message


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ParamValidationError("no width"), "INVALID_INPUT_ERROR", "no width"),
        (IntegrityError("wrong size"), "INTEGRITY_MISMATCH_ERROR", "wrong size"),
        (ValueError("odd"), "TRANSIENT_ERROR", "odd"),
        (OSError(), "TRANSIENT_ERROR", "OSError"),
        (SystemExit(1), "TRANSIENT_ERROR", "1"),
        (RuntimeError("half \ud800"), "TRANSIENT_ERROR", "half ?"),
    ],
)
def test_what_a_handler_raises_becomes_a_failure(
    raised: BaseException, code: str, message: str
) -> None:
    outcome = outcome_of_exception(raised)

    assert outcome == Outcome(status="failure", error=TaskError(code=code, message=message))


def test_a_cancelled_handler_reports_cancelled() -> None:
    assert outcome_of_exception(asyncio.CancelledError()) == Outcome(status="cancelled")
