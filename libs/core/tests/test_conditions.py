from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtomatika_core.conditions import parse_condition

ORDER: dict[str, Any] = {
    "type": "urgent",
    "n": 3,
    "price": 2.5,
    "flag": True,
    "off": False,
    "nothing": None,
    "code": "3",
    "size": "New York",
    "tags": ["a", "b"],
    "content-type": "text",
    "user": {"address": {"city": "Paris"}, "plan": SimpleNamespace(name="gold")},
}
CONTEXT = SimpleNamespace(
    initial_data=ORDER, state_history={"step": 1}, client=SimpleNamespace(plan="pro")
)


def holds(text: str, context: object = CONTEXT) -> bool:
    return parse_condition(text).evaluate(context)


@pytest.mark.parametrize(
    "text",
    [
        "context.initial_data.type == 'urgent'",
        'context.initial_data.type == "urgent"',
        "context.initial_data.type=='urgent'",
        "  context.initial_data.type   ==   urgent  ",
        "context.initial_data.type == urgent",
        "context.initial_data.size == New York",
        "context.initial_data.size == 'New York'",
        "context.initial_data.type != 'slow'",
        "context.initial_data.n == 3",
        "context.initial_data.n == 3.0",
        "context.initial_data.n == +3",
        "context.initial_data.n > -1",
        "context.initial_data.n>-1",
        "context.initial_data.n >= 3",
        "context.initial_data.n < 3.5e0",
        "context.initial_data.n <= 3",
        "context.initial_data.price == 2.5",
        "context.initial_data.type < 'v'",
        "context.state_history.step == 1",
        "context.client.plan == 'pro'",
        "context.initial_data.content-type == text",
    ],
)
def test_a_simple_comparison_holds(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "context.initial_data.flag == True",
        "context.initial_data.flag == true",
        "context.initial_data.off == FALSE",
        "context.initial_data.flag != false",
        "context.initial_data.nothing == None",
        "context.initial_data.nothing == null",
        "context.initial_data.type != none",
        "context.initial_data.code == '3'",
        "context.initial_data.user.address.city == 'Paris'",
        "context.initial_data.user.plan.name == 'gold'",
        "context.initial_data.tags == [a, 'b']",
    ],
)
def test_booleans_none_quoted_numbers_and_nested_fields_are_understood(text: str) -> None:  # R57
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "context.initial_data.type > 3",
        "context.initial_data.code == 3",
        "context.initial_data.n == '3'",
        "context.initial_data.n == true",
        "context.initial_data.flag == 1",
        "context.initial_data.flag > 0",
        "context.initial_data.nothing < 1",
        "context.initial_data.nothing >= none",
        "context.initial_data.nothing == false",
        "context.initial_data.tags > [a]",
        "context.initial_data.n in 123",
        "context.initial_data.n in '123'",
        "context.initial_data.n not in '123'",
    ],
)
def test_types_that_cannot_be_compared_make_the_comparison_false(text: str) -> None:  # R57
    assert not holds(text)


@pytest.mark.parametrize("value", ["'x'", "3", "none", "false", "[x]"])
@pytest.mark.parametrize("operator", ["==", "!=", "<", "in", "not in"])
@pytest.mark.parametrize("path", ["initial_data.absent", "initial_data.n.deeper", "absent.x"])
def test_a_missing_part_makes_every_comparison_false(path: str, operator: str, value: str) -> None:
    assert not holds(f"context.{path} {operator} {value}")


@pytest.mark.parametrize(
    "text", ["context.initial_data.n != '3'", "context.initial_data.flag != 1"]
)
def test_values_of_different_types_are_different(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("context.initial_data.type in [slow, urgent]", True),
        ("context.initial_data.type in ['slow']", False),
        ("context.initial_data.type not in ['slow']", True),
        ("context.initial_data.type not   in [urgent]", False),
        ("context.initial_data.n in [1, 2, 3]", True),
        ("context.initial_data.n in ['3', true]", False),
        ("context.initial_data.n in []", False),
        ("context.initial_data.nothing in [1, none]", True),
        ("context.initial_data.type in 'most urgent'", True),
        ("context.initial_data.type not in 'slow'", True),
        ("context.initial_data.tags in [[a, b], [c]]", True),
    ],
)
def test_membership(text: str, expected: bool) -> None:
    assert holds(text) is expected


T = "context.initial_data.n == 3"
F = "context.initial_data.n == 4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{T} and {T}", True),
        (f"{T} and {F}", False),
        (f"{F} or {T}", True),
        (f"{F} or {F}", False),
        (f"not {F}", True),
        (f"not not {T}", True),
        (f"{T} or {F} and {F}", True),
        (f"({T} or {F}) and {F}", False),
        (f"not {F} and {F}", False),
        (f"not ({F} and {F})", True),
        (f"(({T}))and({T})", True),
        (f"{T}\n  and {T}", True),
        ("not context.initial_data.absent == 1", True),
        ("context.initial_data.type == urgent and context.initial_data.n == 3", True),
        ("context.initial_data.type == 'urgent' or context.initial_data.n == 4", True),
    ],
)
def test_comparisons_join(text: str, expected: bool) -> None:
    assert holds(text) is expected


def test_words_of_the_language_may_stand_inside_text() -> None:
    song = SimpleNamespace(
        initial_data={"kind": "rock and roll", "state": "or", "place": "orlando in may"}
    )

    assert holds("context.initial_data.kind == 'rock and roll'", song)
    assert holds("context.initial_data.state == or", song)
    assert holds("context.initial_data.place == orlando in may", song)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "context",
        "context.initial_data == 3",
        "context.initial_data.n",
        "context.initial_data.n ==",
        "context.initial_data.n == 'open",
        "context.initial_data.n in [1, 2",
        "context.initial_data.n in [1 2,]",
        "context.initial_data.n == 3 and",
        "context.initial_data.n == 3 and context",
        "(context.initial_data.n == 3",
        "context.initial_data.n == 3)",
        "context.initial_data.n and context.initial_data.flag",
        "context.initial_data.n. == 3",
        "context.initial_data.n == 'a' 'b'",
        "initial_data.n == 3",
        "1 < context.initial_data.n",
        "context.initial_data.n < 5 < 6",
        "__import__('os').system('true')",
    ],
)
def test_text_that_is_no_condition_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_condition(text)

    assert str(refused.value) == f"Invalid condition string format: {text}"


@pytest.mark.parametrize("operator", ["=", "===", "<>", "=~", "is", "like", "contains", "not"])
def test_an_operator_that_does_not_exist_is_named(operator: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_condition(f"context.initial_data.n {operator} 3")

    assert str(refused.value) == f"Unsupported operator: {operator}"


class Hostile:
    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = None  # type: ignore[assignment]


def test_an_object_that_raises_when_looked_at_makes_the_comparison_false() -> None:
    assert not holds("context.initial_data.x == 1", SimpleNamespace(initial_data=Hostile()))
    assert not holds("context.initial_data.x == 1", SimpleNamespace(initial_data={"x": Hostile()}))


WORDS = st.sampled_from(
    ["context.a.b", "context.a.b.c", "==", "!=", "<", "in", "not", "and", "or", "(", ")", "[", "]",
     ",", "1", "-2.5", "'x'", "true", "null", "word"]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(Hostile)
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.text() | st.lists(WORDS, max_size=12).map(" ".join))
def test_any_text_is_a_condition_or_refused_with_a_reason(text: str) -> None:
    reason = ""
    try:
        answer = parse_condition(text).evaluate(CONTEXT)
    except ValueError as refused:
        answer, reason = None, str(refused)

    assert answer in {True, False} or reason.startswith(
        ("Invalid condition string format: ", "Unsupported operator: ")
    )


@given(
    VALUES,
    st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not in"]),
    st.sampled_from(["1", "-2.5", "'x'", "''", "true", "null", "[]", "[1, x, [none]]"]),
    st.sampled_from(["a.b", "a.b.c", "a.c"]),
)
def test_a_condition_never_raises_whatever_the_context_holds(
    data: object, operator: str, value: str, path: str
) -> None:
    condition = parse_condition(f"context.{path} {operator} {value}")

    assert condition.evaluate(SimpleNamespace(a=data)) in {True, False}
    assert condition.evaluate(data) in {True, False}
