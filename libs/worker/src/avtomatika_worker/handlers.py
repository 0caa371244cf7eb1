"""The functions that do a worker's tasks: what each takes, and how it is called."""

import asyncio
import contextvars
import dataclasses
import inspect
import logging
import threading
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from avtomatika_worker.outcome import Outcome, outcome_of, outcome_of_exception
from rxon.exceptions import ParamValidationError

HandlerFunction = Callable[..., Any]

SUPPLIED: Final = frozenset(
    {
        "params",
        "task_id",
        "job_id",
        "tracing_context",
        "priority",
        "add_to_hot_cache",
        "remove_from_hot_cache",
    }
)

log = logging.getLogger("avtomatika_worker")

_Value = TypeVar("_Value")


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    task_type: str | None
    """Its class of concurrency, for `task_type_limits`."""
    function: HandlerFunction
    in_thread: bool
    takes: frozenset[str]
    params_type: Any


def read_handler(name: str, task_type: str | None, function: HandlerFunction) -> Handler:
    """Look at the signature once. Raises TypeError for an argument that nobody could supply."""
    takes: set[str] = set()
    for parameter in inspect.signature(function).parameters.values():
        match parameter.kind:
            case inspect.Parameter.VAR_KEYWORD:
                takes |= SUPPLIED
            case inspect.Parameter.VAR_POSITIONAL:
                pass
            case _ if (
                parameter.name in SUPPLIED and parameter.kind is not parameter.POSITIONAL_ONLY
            ):
                takes.add(parameter.name)
            case _ if parameter.default is parameter.empty:
                raise TypeError(
                    f"The handler of task '{name}' takes '{parameter.name}', which cannot be "
                    f"supplied by name. It may take: {', '.join(sorted(SUPPLIED))}."
                )
            case _:
                pass
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )
    return Handler(
        name=name,
        task_type=task_type,
        function=function,
        in_thread=not is_async,
        takes=frozenset(takes),
        params_type=_annotation_of_params(function),
    )


async def execute(handler: Handler, supplied: Mapping[str, object]) -> Outcome:
    """Run the handler; whatever becomes of it is an outcome.

    If the caller is cancelled, an `async` handler is cancelled with it and decides what its outcome
    is; a thread cannot be stopped, so this raises CancelledError and leaves the thread alone.
    """
    if handler.in_thread:
        return await _in_thread(lambda: _called(handler, supplied), name=f"task {handler.name}")
    try:
        return outcome_of(await handler.function(**_arguments(handler, supplied)))
    except (asyncio.CancelledError, Exception, SystemExit) as error:  # noqa: BLE001 - a user's code
        return _raised(handler, error)


def _called(handler: Handler, supplied: Mapping[str, object]) -> Outcome:
    try:
        return outcome_of(handler.function(**_arguments(handler, supplied)))
    except BaseException as error:  # noqa: BLE001 - a user's code, and nobody else hears of it
        return _raised(handler, error)


def _raised(handler: Handler, error: BaseException) -> Outcome:
    if not isinstance(error, asyncio.CancelledError):
        log.warning("handler raised", exc_info=error, extra={"task_name": handler.name})
    return outcome_of_exception(error)


def _arguments(handler: Handler, supplied: Mapping[str, object]) -> dict[str, object]:
    arguments = {name: supplied[name] for name in handler.takes}
    if "params" in arguments:
        arguments["params"] = convert_params(arguments["params"], handler.params_type)
    return arguments


def convert_params(params: object, wanted: Any) -> object:
    """`params` as the handler's annotation wants them: a dataclass, a pydantic model or a dict.

    Raises `ParamValidationError` where they do not fit.
    """
    if not isinstance(params, dict):
        return params
    given = typing.cast("dict[str, object]", params)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        known = {field.name for field in dataclasses.fields(wanted) if field.init}
        try:
            return wanted(**{key: value for key, value in given.items() if key in known})
        except (TypeError, ValueError) as error:
            raise ParamValidationError(f"params: {error}") from error
    # Pydantic is used where it is installed, so it is known by its method and never imported.
    validate = getattr(wanted, "model_validate", None)
    if callable(validate):
        try:
            return validate(given)
        except ValueError as error:
            raise ParamValidationError(f"params: {error}") from error
    return given


def _annotation_of_params(function: HandlerFunction) -> Any:
    try:
        return typing.get_type_hints(function).get("params")
    except (NameError, TypeError):  # a name only the type checker can see: then it is a dict
        return None


async def _in_thread(work: Callable[[], _Value], name: str) -> _Value:
    """Run `work`, which must not raise, in a thread of its own.

    A thread per task and not the loop's pool: the pool has fewer places than a worker may have,
    and a process that ends waits for its pool, however long a task takes.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Value] = loop.create_future()

    def settle(value: _Value) -> None:
        if not done.done():
            done.set_result(value)

    def body() -> None:
        value = work()
        with suppress(RuntimeError):  # the loop has ended, and with it all interest in the value
            loop.call_soon_threadsafe(settle, value)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(body,), name=name, daemon=True).start()
    return await done
