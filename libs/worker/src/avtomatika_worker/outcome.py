"""What a handler returned or raised, as the result the orchestrator will be told."""

import asyncio
from collections.abc import Mapping
from typing import Final, TypeGuard

import msgspec
import orjson

from rxon import TaskError, parse_error
from rxon.constants import (
    ERROR_CODE_INTEGRITY_MISMATCH,
    ERROR_CODE_INVALID_INPUT,
    ERROR_CODE_PERMANENT,
    ERROR_CODE_TRANSIENT,
    TASK_STATUS_CANCELLED,
    TASK_STATUS_FAILURE,
    TASK_STATUS_SUCCESS,
)
from rxon.exceptions import IntegrityError, InvalidField, ParamValidationError


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    data: dict[str, object] | None = None
    error: TaskError | None = None


CANCELLED: Final = Outcome(status=TASK_STATUS_CANCELLED)

_RESULT_KEYS: Final = frozenset({"status", "data", "error"})


def failure(code: str, message: str) -> Outcome:
    readable = message.encode("utf-8", "replace").decode()  # a file name may hold half a character
    return Outcome(status=TASK_STATUS_FAILURE, error=TaskError(code=code, message=readable))


def outcome_of(returned: object) -> Outcome:
    """The outcome of a handler that returned.

    A dict with `status`, `data` or `error` says it all; another dict is the data of a success,
    None a success without data, any other JSON value the `result` in the data of a success. A
    dataclass, a `msgspec.Struct` and a pydantic model count as the dict they stand for.
    What JSON cannot carry is a permanent failure: it would not be better the next time.
    """
    try:
        value: object = orjson.loads(orjson.dumps(returned, default=_plain))
    except TypeError as error:
        kind = type(returned).__name__
        return failure(
            ERROR_CODE_PERMANENT, f"The handler returned a {kind} that is not JSON: {error}"
        )
    if value is None:
        return Outcome(status=TASK_STATUS_SUCCESS)
    if not _is_object(value):
        return Outcome(status=TASK_STATUS_SUCCESS, data={"result": value})
    if _RESULT_KEYS.isdisjoint(value):
        return Outcome(status=TASK_STATUS_SUCCESS, data=value)
    return _outcome_of_parts(value)


def _outcome_of_parts(parts: Mapping[str, object]) -> Outcome:
    status = parts.get("status", TASK_STATUS_SUCCESS)
    data = parts.get("data", {})
    if not (isinstance(status, str) and status):
        return failure(ERROR_CODE_PERMANENT, "The handler returned a status that is no text.")
    if not (data is None or _is_object(data)):
        return failure(ERROR_CODE_PERMANENT, "The handler returned data that is no dict.")
    try:
        error = parse_error(parts.get("error"), parts.get("error_type"))
    except InvalidField as bad:
        return failure(ERROR_CODE_PERMANENT, f"The handler returned a wrong error: {bad}")
    return Outcome(status=status, data=data, error=error)


def outcome_of_exception(error: BaseException) -> Outcome:
    """The outcome of a handler that raised. Unless we know better, it may go well next time."""
    text = str(error) or type(error).__name__
    match error:
        case asyncio.CancelledError():
            return CANCELLED
        case ParamValidationError():
            return failure(ERROR_CODE_INVALID_INPUT, text)
        case IntegrityError():
            return failure(ERROR_CODE_INTEGRITY_MISMATCH, text)
        case _:
            return failure(ERROR_CODE_TRANSIENT, text)


def _plain(value: object) -> object:
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    dump = getattr(value, "model_dump", None)  # pydantic, where it is installed
    if callable(dump):
        return dump(mode="json")
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)
