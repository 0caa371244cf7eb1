"""A task's params, as the annotation of its handler wants them."""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from rxon.exceptions import ParamValidationError

_WHERE: Final = re.compile(r"(?P<what>.*) - at `\$(?P<where>.*)`", re.DOTALL)


def convert_params(params: object, wanted: Any) -> object:
    """`params` as a dataclass, pydantic model, `msgspec.Struct` or TypedDict; else as they came.

    Raises `ParamValidationError`, which names the field, where they do not fit.
    """
    if not isinstance(params, dict):
        return params
    given = typing.cast("dict[str, object]", params)
    if _is_dataclass(wanted):
        return _dataclass(given, wanted)
    # Pydantic is used where it is installed, so it is known by its method and never imported.
    validate = getattr(wanted, "model_validate", None)
    if callable(validate):
        return _validated(given, validate)
    if _is_struct(wanted):
        return _converted(given, wanted)
    if typing.is_typeddict(wanted):
        return {**given, **_converted(given, wanted)}
    return given


def schema_of(wanted: Any) -> dict[str, object] | None:
    """The JSON Schema of params of this type; None where the type says nothing.

    Raises TypeError for a type that JSON Schema cannot describe.
    """
    own_schema: Callable[[], dict[str, object]] | None = getattr(wanted, "model_json_schema", None)
    if callable(own_schema):
        return own_schema()
    if _is_dataclass(wanted) or _is_struct(wanted) or typing.is_typeddict(wanted):
        return msgspec.json.schema(wanted)
    return None


def _dataclass(given: Mapping[str, object], wanted: Any) -> object:
    """Keys it does not know are left out; types are for its author to check."""
    fields = [field for field in dataclasses.fields(wanted) if field.init]
    for field in fields:
        if field.name not in given and _is_required(field):
            raise ParamValidationError(f"params.{field.name}: missing")
    known = {field.name: given[field.name] for field in fields if field.name in given}
    try:
        return wanted(**known)
    except (TypeError, ValueError) as error:
        raise ParamValidationError(f"params: {error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _validated(given: dict[str, object], validate: Callable[[object], object]) -> object:
    try:
        return validate(given)
    except ValueError as error:
        raise ParamValidationError(_text_of_pydantic(error)) from error


def _text_of_pydantic(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if not callable(errors):
        return f"params: {error}"
    found = msgspec.convert(errors(include_url=False), list[dict[str, Any]])
    return "; ".join(
        f"{'.'.join(('params', *map(str, one['loc'])))}: {one['msg']}" for one in found
    )


def _converted(given: dict[str, object], wanted: Any) -> Any:
    try:
        return msgspec.convert(given, wanted)
    except msgspec.ValidationError as error:
        found = _WHERE.fullmatch(str(error))
        text = f"params{found['where']}: {found['what']}" if found else f"params: {error}"
        raise ParamValidationError(text) from error


def _is_dataclass(wanted: Any) -> bool:
    return isinstance(wanted, type) and dataclasses.is_dataclass(wanted)


def _is_struct(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)
