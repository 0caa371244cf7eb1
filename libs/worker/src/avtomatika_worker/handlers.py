"""The functions that do a worker's tasks: what each takes, and how it is called."""

import asyncio
import difflib
import functools
import inspect
import logging
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from avtomatika_worker.outcome import Outcome, outcome_of, outcome_of_exception
from avtomatika_worker.params import convert_params
from avtomatika_worker.task_files import TaskFiles
from avtomatika_worker.threads import in_thread
from avtomatika_worker.tracebacks import of_user
from avtomatika_worker.types import Middleware
from rxon.exceptions import ParamValidationError

HandlerFunction = Callable[..., Any]

SUPPLIED: Final = frozenset(
    {
        "params",
        "task_id",
        "job_id",
        "tracing_context",
        "priority",
        "checkpoint",
        "cancellation",
        "send_progress",
        "send_event",
        "add_to_hot_cache",
        "remove_from_hot_cache",
    }
)

log = logging.getLogger("avtomatika_worker")


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    task_type: str | None
    """Its class of concurrency, for `task_type_limits`."""
    function: HandlerFunction
    in_thread: bool
    takes: frozenset[str]
    """Of what we supply."""
    takes_files: frozenset[str]
    """The arguments that want the task's files."""
    accepts: frozenset[str] | None
    """All arguments it could be called with, by name; None: any."""
    params_type: Any
    description: str | None = None
    output_statuses: tuple[str, ...] | None = None


def read_handler(
    name: str,
    task_type: str | None,
    function: HandlerFunction,
    *,
    description: str | None = None,
    output_statuses: Sequence[str] | None = None,
) -> Handler:
    """Look at the signature once. Raises TypeError for an argument that nobody could supply."""
    takes: set[str] = set()
    takes_files: set[str] = set()
    accepts: set[str] | None = set()
    params_type: Any = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes |= SUPPLIED
            accepts = None
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        annotation = _annotation(function, parameter)
        by_name = parameter.kind is not parameter.POSITIONAL_ONLY
        if by_name and accepts is not None:
            accepts.add(parameter.name)
        if by_name and _wants_files(annotation):
            takes_files.add(parameter.name)
        elif by_name and parameter.name in SUPPLIED:
            takes.add(parameter.name)
            params_type = annotation if parameter.name == "params" else params_type
        elif parameter.default is parameter.empty:
            raise TypeError(
                f"The handler of task '{name}' takes '{parameter.name}', which cannot be "
                f"supplied by name.{_suggestion(parameter.name)}"
                f" It may take: {', '.join(sorted(SUPPLIED))}, and an argument"
                " annotated TaskFiles. What a middleware adds needs a default."
            )
    return Handler(
        name=name,
        task_type=task_type,
        function=function,
        in_thread=not _is_async(function),
        takes=frozenset(takes),
        takes_files=frozenset(takes_files),
        accepts=None if accepts is None else frozenset(accepts),
        params_type=params_type,
        description=description,
        output_statuses=None if output_statuses is None else tuple(output_statuses),
    )


async def execute(
    handler: Handler,
    supplied: Mapping[str, object],
    files: TaskFiles,
    middlewares: Sequence[Middleware] = (),
) -> Outcome:
    """Run the handler inside the middlewares; whatever becomes of it is an outcome.

    If the caller is cancelled, an `async` handler is cancelled with it and decides what its outcome
    is; a thread cannot be stopped, so it is left alone.
    """
    arguments = {name: supplied[name] for name in handler.takes}
    context: dict[str, Any] = {
        "task_id": supplied["task_id"],
        "job_id": supplied["job_id"],
        "task_name": handler.name,
        "params": supplied["params"],
        "handler_kwargs": arguments | dict.fromkeys(handler.takes_files, files),
    }
    try:
        return outcome_of(await _through(middlewares, handler, context))
    except (asyncio.CancelledError, Exception, SystemExit) as error:  # noqa: BLE001 - a user's code
        about = {"task_name": handler.name, "task_id": context["task_id"]}
        _log_raised(error, {**about, "job_id": context["job_id"]})
        return outcome_of_exception(error)


async def _through(
    middlewares: Sequence[Middleware], handler: Handler, context: dict[str, Any]
) -> object:
    if not middlewares:
        return await _call(handler, context["handler_kwargs"])

    async def following(_: object = None) -> object:
        return await _through(middlewares[1:], handler, context)

    return await middlewares[0](context, following)


async def _call(handler: Handler, arguments: Mapping[str, object]) -> object:
    """Only with what it takes, whatever the middlewares have added for others."""

    def called() -> Any:
        taken = {
            name: value
            for name, value in arguments.items()
            if handler.accepts is None or name in handler.accepts
        }
        if "params" in taken:
            taken["params"] = convert_params(taken["params"], handler.params_type)
        return handler.function(**taken)

    if handler.in_thread:
        return await in_thread(called, name=f"task {handler.name}")
    return await cast("Awaitable[object]", called())


def _log_raised(error: BaseException, about: Mapping[str, object]) -> None:
    match error:
        case asyncio.CancelledError():
            pass
        case ParamValidationError():
            log.warning("params refused", extra={**about, "error": str(error)})
        case _:
            # Where the user's own code is in it, ours above it says nothing.
            shown = error.with_traceback(of_user(error.__traceback__) or error.__traceback__)
            log.warning("handler raised", exc_info=shown, extra=about)


def _suggestion(name: str) -> str:
    near = next(iter(difflib.get_close_matches(name, SUPPLIED, n=1)), name)
    return "" if near == name else f" Did you mean '{near}'?"


def _is_async(function: HandlerFunction) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )


def _annotation(function: HandlerFunction, parameter: inspect.Parameter) -> Any:
    """The annotation itself, each on its own: one that cannot be read does not spoil the rest."""
    if parameter.annotation is parameter.empty:
        return None
    code: Any = inspect.unwrap(function)
    while isinstance(code, functools.partial):
        code = code.func
    if not inspect.isroutine(code):
        code = type(code).__call__
    alone = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    try:
        return typing.get_type_hints(alone, getattr(code, "__globals__", {}))["it"]
    except (NameError, TypeError):  # a name only the type checker can see
        log.warning(
            "annotation cannot be read",
            extra={"argument": parameter.name, "annotation": str(parameter.annotation)},
        )
        return None


def _wants_files(annotation: Any) -> bool:
    return annotation is TaskFiles or TaskFiles in typing.get_args(annotation)
