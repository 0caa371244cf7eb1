"""What a task's params become, by the annotation of the handler."""

from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from avtomatika_worker.params import convert_params, schema_of
from avtomatika_worker.types import ParamValidationError


@dataclass
class Size:
    width: int
    height: int = 7
    tags: list[str] = field(default_factory=list[str])


@dataclass
class Positive:
    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be at least 1")


class SizeStruct(msgspec.Struct):
    width: int
    corners: list[tuple[int, int]] = []


class SizeDict(TypedDict):
    width: int
    colour: NotRequired[str]


class Corner(pydantic.BaseModel):
    x: int


class SizeModel(pydantic.BaseModel):
    width: int
    corners: list[Corner] = []


@pytest.mark.parametrize(
    ("wanted", "given", "params"),
    [
        (None, {"width": 1}, {"width": 1}),
        (dict, {"width": 1}, {"width": 1}),
        (dict[str, Any], {"width": 1}, {"width": 1}),
        (Size, {"width": 1, "unknown": 2}, Size(1)),
        (Size, {"width": "not checked"}, Size("not checked")),  # type: ignore[arg-type]
        (SizeStruct, {"width": 1, "corners": [[1, 2]]}, SizeStruct(1, [(1, 2)])),
        (SizeDict, {"width": 1, "unknown": 2}, {"width": 1, "unknown": 2}),
        (SizeModel, {"width": "1"}, SizeModel(width=1)),
    ],
)
def test_params_fit_the_annotation(wanted: object, given: object, params: object) -> None:
    assert convert_params(given, wanted) == params


@pytest.mark.parametrize(
    ("wanted", "given", "text"),
    [
        (Size, {}, "params.width: missing"),
        (Positive, {"width": 0}, "params: width must be at least 1"),
        (SizeStruct, {}, "params: Object missing required field `width`"),
        (SizeStruct, {"width": "1"}, "params.width: Expected `int`, got `str`"),
        (
            SizeStruct,
            {"width": 1, "corners": [[1, "x"]]},
            "params.corners[0][1]: Expected `int`, got `str`",
        ),
        (SizeDict, {"width": None}, "params.width: Expected `int`, got `null`"),
        (SizeDict, {"colour": "red"}, "params: Object missing required field `width`"),
        (SizeModel, {}, "params.width: Field required"),
        (
            SizeModel,
            {"width": "x", "corners": [{"y": 1}]},
            (
                "params.width: Input should be a valid integer, unable to parse string as an "
                "integer; params.corners.0.x: Field required"
            ),
        ),
    ],
)
def test_params_that_do_not_fit_are_refused_with_the_field_named(
    wanted: object, given: object, text: str
) -> None:
    with pytest.raises(ParamValidationError) as refused:
        convert_params(given, wanted)

    assert str(refused.value) == text


@pytest.mark.parametrize("wanted", [Size, SizeStruct, SizeDict, SizeModel])
def test_a_type_has_a_schema(wanted: object) -> None:
    schema = schema_of(wanted)

    assert schema is not None
    definitions: Any = schema.get("$defs", {})
    properties: Any = schema.get("properties") or definitions[wanted.__name__]["properties"]  # type: ignore[attr-defined]
    assert properties["width"]["type"] == "integer"


@pytest.mark.parametrize("wanted", [None, dict, dict[str, Any]])
def test_a_plain_dict_has_none(wanted: object) -> None:
    assert schema_of(wanted) is None
