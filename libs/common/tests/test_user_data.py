from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtomatika_common.codec import pack, unpack
from avtomatika_common.definitions import DefinitionError
from avtomatika_common.user_data import ensure_json, json_problem


class Colour(StrEnum):
    RED = "red"


class History(dict[str, object]):
    pass


class Level(IntEnum):
    HIGH = 3


def test_a_value_json_cannot_carry_is_named_by_its_key_path() -> None:
    history = {"a": {"b": [{"c": datetime(2026, 1, 1, tzinfo=UTC)}]}}

    with pytest.raises(DefinitionError) as refused:
        ensure_json("work", {"initial_data": {}, "state_history": history})

    assert str(refused.value) == (
        "Handler for state 'work' left state_history.a.b[0].c as datetime, which JSON cannot carry."
    )


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({1, 2}, "x as set"),
        (b"raw", "x as bytes"),
        (object(), "x as object"),
        (float("nan"), "x as float nan"),
        (float("-inf"), "x as float -inf"),
        (2**64, "x as int of more than 64 bits"),
        (-(2**63) - 1, "x as int of more than 64 bits"),
        ("\ud800", "x as str with a lone surrogate"),
        ({"\ud800": 1}, "x as dict with a key that has a lone surrogate"),
        ({"k": {1: "a"}}, "x.k as dict with a key of type int"),
        ([1, [2, b""]], "x[1][1] as bytes"),
        ((1, {"k": b""}), "x[1].k as bytes"),
    ],
)
def test_what_json_cannot_carry(value: object, problem: str) -> None:
    assert json_problem(value, "x") == problem


def test_data_that_contains_itself_is_a_problem_and_not_a_crash() -> None:
    loop: list[Any] = []
    loop.append(loop)

    problem = json_problem(loop, "state_history.loop")

    assert problem is not None
    assert problem.startswith("state_history.loop[0][0]")
    assert problem.endswith("nested over 200 deep")


def test_subclasses_of_json_types_become_plain() -> None:
    given_values: dict[str, object] = {
        "state_history": History(colour=Colour.RED, level=Level.HIGH, pair=(1, 2))
    }

    plain = ensure_json("work", given_values)

    assert plain == {"state_history": {"colour": "red", "level": 3, "pair": [1, 2]}}
    assert type(plain["state_history"]["colour"]) is str
    assert type(plain["state_history"]["level"]) is int


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_json_values_have_no_problem_and_survive_storage(value: Any) -> None:
    assert json_problem(value, "x") is None
    assert unpack(pack(ensure_json("work", {"x": value}))) == {"x": value}
