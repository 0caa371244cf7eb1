"""What a blueprint asks of the initial data of its jobs, read from annotations of its handlers."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

import msgspec
from typing_extensions import is_typeddict

from avtomatika_common.handlers import Handler
from avtomatika_common.schemas import InvalidSchema, compiled


class UnusableContract(ValueError):
    """An annotation says more than a contract can; the text says what."""


def contract_of(start_handlers: Iterable[Handler]) -> dict[str, Any] | None:
    """JSON Schema of the TypedDict that every start handler annotates `initial_data` with.

    None: one of them takes any data, or they differ; which handler runs is not known before.
    Raises UnusableContract.
    """
    annotated = [_annotation(handler) for handler in start_handlers]
    if not annotated or not is_typeddict(annotated[0]):
        return None
    if any(other is not annotated[0] for other in annotated):
        return None
    try:
        schema = msgspec.json.schema(annotated[0])
        compiled(schema)
    except (TypeError, NameError, InvalidSchema) as error:
        raise UnusableContract(str(error)) from error
    return schema


def _annotation(handler: Handler) -> Any:
    try:
        return get_type_hints(inspect.unwrap(handler)).get("initial_data")
    except (NameError, TypeError, AttributeError, SyntaxError):
        return None  # names known to a type checker only


def input_problem(
    blueprint: str, contract: Mapping[str, Any] | None, initial_data: Mapping[str, Any]
) -> str | None:
    """What is wrong with a new job's data, as its maker is told; None: nothing."""
    problem = None if contract is None else compiled(contract).problem(initial_data)
    if problem is None:
        return None
    return f"Input validation failed for blueprint '{blueprint}': {problem}"
