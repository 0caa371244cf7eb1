"""Contracts as JSON Schema: what is refused as a schema, and what is told of values."""

import time
from typing import Any

import pytest

from avtomatika_common.schemas import InvalidSchema, Schema, compiled

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
}


def test_a_value_that_keeps_to_the_schema_has_no_problem() -> None:
    assert Schema(PERSON).problem({"name": "a", "tags": ["b"], "more": None}) is None


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, '"name" is a required property'),
        ({"name": 1}, 'the value is not of type "string" - at `$.name`'),
        ({"name": "a", "tags": ["b", 2]}, 'the value is not of type "string" - at `$.tags[1]`'),
        ([], 'the value is not of type "object"'),
    ],
)
def test_the_first_problem_is_told_with_its_place(value: object, problem: str) -> None:
    assert Schema(PERSON).problem(value) == problem


def test_a_long_value_is_not_told_whole() -> None:
    problem = Schema(PERSON).problem({"name": ["x" * 100_000]})

    assert problem is not None
    assert len(problem) < 400
    assert problem.endswith("at `$.name`")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "objekt"}, '"objekt" is not valid'),
        ({"properties": {"a": {"minimum": "x"}}}, "at `$.properties.a.minimum`"),
        ({"$ref": "#/$defs/nowhere"}, "does not exist"),
        ({"$ref": "http://127.0.0.1:1/schema"}, "a schema elsewhere is not loaded"),
        ({"$ref": "file:///etc/hostname"}, "a schema elsewhere is not loaded"),
        ({"$schema": "https://example.org/own"}, "Unknown meta-schema"),
        ({"pattern": "(?=a)"}, 'is not a "regex"'),
        ({"pattern": "((a{1000}){1000}){1000}"}, 'is not a "regex"'),
    ],
)
def test_what_is_no_schema_is_refused_with_the_reason(schema: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidSchema) as refused:
        Schema(schema)

    assert text in str(refused.value)


def test_a_schema_nested_beyond_reason_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"properties": {"a": schema}}

    with pytest.raises(InvalidSchema, match="Recursion"):
        Schema(schema)


def test_a_pattern_cannot_be_made_to_take_long() -> None:
    schema = Schema({"pattern": "^(a+)+$"})
    started = time.perf_counter()

    assert schema.problem("a" * 100_000 + "b") is not None

    assert time.perf_counter() - started < 5.0


def test_equal_schemas_are_compiled_once() -> None:
    assert compiled(dict(PERSON)) is compiled(dict(PERSON))
