"""JSON Schema: compiled once, and what does not keep to it is told in a sentence.

Schemas come from outside. They load nothing from other places, and their patterns take linear time:
those that cannot (look-around, back references) are no patterns here.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NoReturn

import jsonschema_rs

from avtomatika_common import codec
from avtomatika_core.errors import AvtomatikaError

_LONGEST_TOLD: Final = 300
_PATTERNS: Final = jsonschema_rs.RegexOptions(size_limit=1_000_000)


class InvalidSchema(AvtomatikaError, ValueError):
    """It is no JSON Schema, or one that is not taken; the text says why."""


class Schema:
    """A compiled schema. Raises InvalidSchema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        try:
            _validator(schema)  # which shows what of the schema is wrong
            # Values are not shown: what is told is logged, and kept with jobs.
            self._validator = _validator(schema, mask="the value")
        except (ValueError, jsonschema_rs.ReferencingError) as error:
            raise InvalidSchema(_told(error)) from error

    def problem(self, value: object) -> str | None:
        """The first thing in `value` that does not keep to the schema; None: all does."""
        try:
            self._validator.validate(value)
        except ValueError as error:
            return _told(error)
        return None


def compiled(schema: Mapping[str, Any]) -> Schema:
    """The schema ready for use; equal ones are compiled once. Raises InvalidSchema."""
    return _compiled(codec.pack(schema))


@lru_cache(maxsize=1024)
def _compiled(packed: bytes) -> Schema:
    return Schema(codec.unpack(packed))


def _validator(schema: Mapping[str, Any], mask: str | None = None) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        dict(schema), mask=mask, retriever=_refuse_to_load, pattern_options=_PATTERNS
    )


def _refuse_to_load(uri: str) -> NoReturn:
    raise ValueError(f"a schema elsewhere is not loaded: {uri}")


def _told(error: Exception) -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return _short(str(error))
    place = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.instance_path
    )
    return f"{_short(error.message)} - at `${_short(place)}`" if place else _short(error.message)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TOLD else f"{text[: _LONGEST_TOLD - 1]}…"
