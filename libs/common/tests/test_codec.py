"""User data is JSON on every backend: what JSON cannot carry is refused before it is stored."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from avtomatika_common.codec import (
    NotJson,
    as_json,
    check_json,
    json_bytes,
    pack_data,
    unpack_data,
)
from avtomatika_core.job import JobData, LastError


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


NOT_JSON: list[object] = [
    b"bytes",
    {1, 2},
    datetime(2026, 1, 1, tzinfo=UTC),
    {1: "a key of type int"},
    {None: "a key of type None"},
    2**64,
    -(2**63) - 1,
    math.nan,
    math.inf,
    -math.inf,
    "a lone surrogate \ud800",
    {"\ud800": "as a key"},
    object(),
    LastError(code="C", message="m"),
    nested(300),
    nested(210),  # an encoder could, but not with what stands around it in an answer or a row
]


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda value: type(value).__name__)
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(NotJson):
        check_json({"deep": [None, {"in": value}]})


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("part", ["state_history", "initial_data", "data_metadata"])
def test_job_data_with_it_cannot_be_packed(part: str, value: object) -> None:
    data = JobData(**{part: {"value": value}})

    with pytest.raises(NotJson):
        pack_data(data)


def test_job_data_comes_back_as_it_was() -> None:
    values: dict[str, Any] = {
        "n": 2**64 - 1,
        "m": -(2**63),
        "x": 1.5,
        "t": "ü\x00",
        "no": None,
        "yes": [True, {}],
    }
    data = JobData(state_history=values, initial_data={"a": [None]}, data_metadata=None)

    assert unpack_data(pack_data(data)) == data


def test_the_word_null_is_a_text_like_any_other() -> None:
    data = JobData(state_history={"null": "null", "none": None, "text": "NaN"})

    assert unpack_data(pack_data(data)) == data


def test_tuples_come_back_as_lists() -> None:
    packed = pack_data(JobData(state_history={"pair": (1, (2, 3))}))

    assert unpack_data(packed).state_history == {"pair": [1, [2, 3]]}


def test_our_own_values_are_shown_as_objects() -> None:
    error = LastError(code="C", message="m")

    assert json_bytes({"error": error}) == b'{"error":{"code":"C","message":"m"}}'
    assert as_json({"error": error}) == {"error": {"code": "C", "message": "m"}}
