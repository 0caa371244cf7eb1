"""The contract of a blueprint, as the annotations of its start handlers say it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import msgspec
import pytest

from avtomatika_common.actions import ActionFactory
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_common.contracts import input_problem

if TYPE_CHECKING:
    from decimal import Decimal


class Address(TypedDict):
    street: str


class Order(TypedDict):
    item: str
    quantity: NotRequired[Annotated[int, msgspec.Meta(ge=1)]]
    to: NotRequired[Address]


class LookAhead(TypedDict):
    code: Annotated[str, msgspec.Meta(pattern="(?=a)")]


class Machine:
    """Of a kind that JSON has no schema for."""


class WithMachine(TypedDict):
    machine: Machine


@dataclass
class Parcel:
    item: str


async def takes_orders(initial_data: Order, actions: ActionFactory) -> None: ...


async def takes_orders_too(initial_data: Order) -> None: ...


async def takes_addresses(initial_data: Address) -> None: ...


async def takes_anything(actions: ActionFactory) -> None: ...


async def takes_objects(initial_data: dict[str, Any]) -> None: ...


async def takes_a_context(context: JobContext) -> None: ...


async def takes_parcels(initial_data: Parcel) -> None: ...


async def takes_unknown(initial_data: "Decimal") -> None: ...


async def takes_machines(initial_data: WithMachine) -> None: ...


async def takes_look_ahead(initial_data: LookAhead) -> None: ...


def the_contract(*start_handlers: Callable[..., object]) -> dict[str, Any] | None:
    """Of a blueprint whose last handler is the default one of its start state."""
    blueprint = StateMachineBlueprint("shop")
    for number, handler in enumerate(start_handlers, 1):
        declared = blueprint.handler_for("start", is_start=True, is_end=True)
        is_last = number == len(start_handlers)
        (declared if is_last else declared.when(f"context.initial_data.n == {number}"))(handler)
    blueprint.validate()
    return blueprint.input_schema


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"item": "book"}, None),
        ({"item": "book", "quantity": 2, "to": {"street": "High"}, "more": [1]}, None),
        ({}, '"item" is a required property'),
        (
            {"item": "book", "quantity": 0},
            "the value is less than the minimum of 1 - at `$.quantity`",
        ),
        ({"item": "book", "to": {}}, '"street" is a required property - at `$.to`'),
    ],
)
def test_a_typed_dict_is_the_contract_of_the_initial_data(
    data: dict[str, Any], problem: str | None
) -> None:
    contract = the_contract(takes_orders)

    told = input_problem("shop", contract, data)

    expected = f"Input validation failed for blueprint 'shop': {problem}"
    assert told == (None if problem is None else expected)


@pytest.mark.parametrize(
    "start_handler", [takes_anything, takes_objects, takes_a_context, takes_parcels, takes_unknown]
)
def test_any_other_annotation_takes_any_object(start_handler: Callable[..., object]) -> None:
    assert the_contract(start_handler) is None
    assert input_problem("shop", None, {"any": "thing"}) is None


def test_handlers_of_one_start_state_make_a_contract_only_where_they_agree() -> None:
    assert the_contract(takes_orders, takes_orders_too) == the_contract(takes_orders)
    assert the_contract(takes_orders, takes_addresses) is None
    assert the_contract(takes_orders, takes_anything) is None


def test_only_the_start_state_says_what_a_job_begins_with() -> None:
    blueprint = StateMachineBlueprint("shop")

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.transition_to("end")

    blueprint.handler_for("end", is_end=True)(takes_orders)
    blueprint.validate()

    assert blueprint.input_schema is None


@pytest.mark.parametrize("start_handler", [takes_machines, takes_look_ahead])
def test_an_annotation_no_schema_can_say_is_warned_of_and_takes_any_object(
    caplog: pytest.LogCaptureFixture, start_handler: Callable[..., object]
) -> None:
    with caplog.at_level(logging.WARNING, "avtomatika"):
        assert the_contract(start_handler) is None

    [line] = caplog.records
    assert line.getMessage() == "the annotation of initial_data is no contract; any object is taken"
