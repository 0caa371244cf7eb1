"""Running a handler: what each of its parameters gets is settled once, before the first run."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextvars import copy_context
from operator import itemgetter
from types import UnionType
from typing import Any, Final, cast, get_origin, get_type_hints

import msgspec

from avtomatika_common.actions import ActionFactory
from avtomatika_common.context import ClientConfig, JobContext
from avtomatika_common.definitions import DefinitionError
from avtomatika_common.logs import get_logger

log = get_logger()

Handler = Callable[..., object]
"""A plain or async function of the user's. What it returns is ignored."""

_FIELDS: Final = {name: index for index, name in enumerate(JobContext._fields)}
_JOB_DATA: Final = frozenset({"initial_data", "state_history"})
_SURE_TYPES: Final[Mapping[str, type]] = {
    "job_id": str,
    "current_state": str,
    "initial_data": dict,
    "state_history": dict,
    "client": ClientConfig,
    "actions": ActionFactory,
    "context": JobContext,
}
"""Parameters whose type never needs a look at the value."""


class _Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """Where one argument comes from: the first of field, job data and default that there is."""

    name: str
    field: int | None
    """Place in the JobContext."""
    is_in_data: bool
    is_context: bool
    is_keyword_only: bool
    default: object
    """`inspect.Parameter.empty`: none."""


class CompiledHandler:
    """A handler and the plan of its arguments.

    `may_change_data` is False when nothing it is given reaches into `state_history` or
    `initial_data`: then these need neither be copied before a run nor compared after it.
    """

    def __init__(self, handler: Handler) -> None:
        self.function = handler
        self.name: str = getattr(handler, "__qualname__", type(handler).__qualname__)
        self.is_async = _is_async(handler)
        signature = inspect.signature(handler)
        takes_context = "context" in signature.parameters
        kinds = {p.kind for p in signature.parameters.values()}
        self._takes_the_rest = inspect.Parameter.VAR_KEYWORD in kinds and not takes_context
        self._parameters = [
            _plan(parameter, takes_context=takes_context)
            for parameter in signature.parameters.values()
            if parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        ]
        self._named = frozenset(parameter.name for parameter in self._parameters)
        self.may_change_data = self._takes_the_rest or any(
            p.is_context or p.is_in_data or p.name in _JOB_DATA for p in self._parameters
        )
        self._checks = _annotations_to_check(handler, self._parameters)
        self._pick = self._fast_plan()

    def run(self, context: JobContext, threads: Executor | None = None) -> Awaitable[object]:
        """Start one run; awaiting it waits for the end. A plain function runs in `threads`.

        Raises what the handler raises, and DefinitionError for a parameter that nothing supplies.
        A plain function cannot be interrupted: cancelling only stops waiting for it.
        """
        if self._pick is not None and self.is_async:
            return cast("Awaitable[object]", self.function(*self._pick(context)))
        positional, named = self.arguments(context)
        if self.is_async:
            return cast("Awaitable[object]", self.function(*positional, **named))
        return _run_in_thread(functools.partial(self.function, *positional, **named), threads)

    def arguments(self, context: JobContext) -> tuple[tuple[object, ...], dict[str, object]]:
        """What the handler is called with: positional and named arguments."""
        if self._pick is not None:
            return self._pick(context), {}
        positional: list[object] = []
        named: dict[str, object] = {}
        for parameter in self._parameters:
            value = self._value(parameter, context)
            if parameter.is_keyword_only:
                named[parameter.name] = value
            else:
                positional.append(value)
            if parameter.name in self._checks and value is not parameter.default:
                self._check_type(parameter.name, value, context)
        if self._takes_the_rest:
            rest = {**context.initial_data, **context.state_history}
            named |= {key: value for key, value in rest.items() if key not in self._named}
        return tuple(positional), named

    def _value(self, parameter: _Parameter, context: JobContext) -> object:
        if parameter.is_context:
            return context
        if parameter.field is not None:
            return context[parameter.field]
        name = parameter.name
        if parameter.is_in_data:
            if name in context.state_history:
                return context.state_history[name]
            if name in context.initial_data:
                return context.initial_data[name]
        if parameter.default is not inspect.Parameter.empty:
            return parameter.default
        remedy = (
            f"put '{name}' into initial_data or state_history before this state"
            if parameter.is_in_data
            else "take it from context instead: beside it only 'actions' and 'task_files' are given"
        )
        raise DefinitionError(
            f"Handler '{self.name}' for state '{context.current_state}' has a parameter '{name}' "
            f"that nothing supplies: give it a default, or {remedy}."
        )

    def _check_type(self, name: str, value: object, context: JobContext) -> None:
        wanted = self._checks[name]
        if isinstance(value, wanted) or (wanted is float and isinstance(value, int)):
            return
        log.warning(
            "handler argument is not of the annotated type",
            handler=self.name,
            state=context.current_state,
            parameter=name,
            annotated=wanted.__name__,
            got=type(value).__name__,
        )
        self._checks = {}  # once per handler
        self._pick = self._fast_plan()

    def _fast_plan(self) -> Callable[[JobContext], tuple[object, ...]] | None:
        """One C call that picks all arguments, where each is simply a field of the context."""
        fields = [p.field for p in self._parameters if p.field is not None]
        if (
            self._checks
            or self._takes_the_rest
            or len(fields) < len(self._parameters)
            or any(parameter.is_keyword_only for parameter in self._parameters)
        ):
            return None
        if len(fields) > 1:
            return cast("Callable[[JobContext], tuple[object, ...]]", itemgetter(*fields))
        # Of one index itemgetter makes a bare value, of a slice always a tuple.
        first = fields[0] if fields else 0
        return itemgetter(slice(first, first + len(fields)))


def _plan(parameter: inspect.Parameter, *, takes_context: bool) -> _Parameter:
    name = parameter.name
    given = {"actions", "task_files"} if takes_context else _FIELDS.keys()
    field = _FIELDS[name] if name in given else None
    return _Parameter(
        name=name,
        field=field,
        is_context=name == "context",
        is_in_data=field is None and not takes_context,
        is_keyword_only=parameter.kind is parameter.KEYWORD_ONLY,
        default=parameter.default,
    )


def _annotations_to_check(handler: Handler, parameters: list[_Parameter]) -> dict[str, type]:
    """The plain types that must be compared with the values of each run."""
    try:
        hints = get_type_hints(inspect.unwrap(handler))
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {}  # names known to a type checker only
    checks: dict[str, type] = {}
    for parameter in parameters:
        wanted = _plain_type(hints.get(parameter.name))
        sure = _SURE_TYPES.get(parameter.name)
        if wanted and not (sure and issubclass(sure, wanted)):
            checks[parameter.name] = wanted
    return checks


def _plain_type(hint: object) -> type | None:
    """The class isinstance can ask for; Any, unions, TypedDict and most protocols are none."""
    if not isinstance(hint, UnionType):
        hint = get_origin(hint) or hint
    if hint is Any or not isinstance(hint, type):
        return None
    try:
        isinstance(None, hint)
    except TypeError:
        return None
    return hint


def _is_async(handler: Handler) -> bool:
    while isinstance(handler, functools.partial):
        handler = cast("functools.partial[object]", handler).func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004  an object with an async __call__
    )


async def _run_in_thread(call: Callable[[], object], threads: Executor | None) -> object:
    variables = copy_context()

    def run() -> object:
        try:
            return variables.run(call)
        except StopIteration as error:
            # No future can carry it, and the job would wait for ever; a coroutine does the same.
            raise RuntimeError("handler raised StopIteration") from error

    result = await asyncio.get_running_loop().run_in_executor(threads, run)
    # A plain wrapper around a coroutine function hands back a coroutine.
    return await result if inspect.isawaitable(result) else result
