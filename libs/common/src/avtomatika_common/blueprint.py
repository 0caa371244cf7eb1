"""Blueprints: the state machines users write, as handlers of named states."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast, overload

import graphviz
import msgspec

from avtomatika_common.backend.ports import KeyValues
from avtomatika_common.codec import check_json
from avtomatika_common.context import JobContext
from avtomatika_common.contracts import UnusableContract, contract_of
from avtomatika_common.datastore import AsyncDictStore
from avtomatika_common.definitions import DefinitionError
from avtomatika_common.handlers import CompiledHandler, Handler
from avtomatika_common.logs import get_logger
from avtomatika_common.schemas import compiled
from avtomatika_common.sources import Targets, read_targets
from avtomatika_core.conditions import Condition, parse_condition
from avtomatika_core.graph import StateGraph, check_graph
from avtomatika_core.outcomes import EndOutcome, outcome_of_end_state
from avtomatika_core.retry_policy import RetryPolicy, retry_policy

log = get_logger()

H = TypeVar("H", bound=Handler)

FAILED_STATE: Final = "failed"
"""Where the orchestrator sends a job whose outcome nobody handles, if the blueprint has it."""


class ConditionalHandler(msgspec.Struct, frozen=True, kw_only=True):
    """A handler that is taken only where its condition holds."""

    state: str
    function: Handler
    condition: Condition | Callable[[JobContext], object]

    def matches(self, context: JobContext) -> bool:
        """Condition strings never raise; a callable's exception is the handler's."""
        if isinstance(self.condition, Condition):
            return self.condition.evaluate(context)
        return bool(self.condition(context))


class _Registered(msgspec.Struct, frozen=True):
    state: str
    function: Handler
    targets: tuple[str, ...] | None
    """As declared; None: to be read from the source."""


class _Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What `handler_for` was told of a handler to come."""

    state: str | None
    """None: the handler's own name."""
    is_start: bool
    is_end: bool
    outcome: EndOutcome | None
    targets: tuple[str, ...] | None
    condition: Condition | Callable[[JobContext], object] | None = None


class HandlerDecorator:
    """What `handler_for` gives: call it with the handler, or narrow it with `when` first."""

    def __init__(self, add: Callable[[_Declared, Handler], None], declared: _Declared) -> None:
        self._add = add
        self._declared = declared

    def when(self, condition: str | Callable[[JobContext], object]) -> "HandlerDecorator":
        """Take the handler only where `condition` holds: a string, or a function of the context.

        ValueError if the string is no condition.
        """
        parsed = parse_condition(condition) if isinstance(condition, str) else condition
        return HandlerDecorator(
            self._add, msgspec.structs.replace(self._declared, condition=parsed)
        )

    def __call__(self, function: H) -> H:
        self._add(self._declared, function)
        return function


class StateMachineBlueprint:
    """A named state machine; `api_endpoint` is where clients create jobs of it, if they may.

    `retry`: how often and when its handlers, and tasks without a policy of their own, are tried again.
    """

    def __init__(
        self,
        name: str,
        api_endpoint: str | None = None,
        api_version: str | None = None,
        data_stores: Mapping[str, object] | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.retry = None if retry is None else retry_policy(retry)
        self.api_endpoint = api_endpoint
        self.api_version = api_version
        self.handlers: dict[str, Handler] = {}
        self.aggregator_handlers: dict[str, Handler] = {}
        self.conditional_handlers: list[ConditionalHandler] = []
        self.start_state: str | None = None
        self.end_states: set[str] = set()
        self.input_schema: dict[str, Any] | None = None
        """JSON Schema of the initial data, known once validated; None: any object."""
        self.events: dict[str, dict[str, Any] | None] = {}
        """Declared event types, and the schemas of their payloads."""
        self.stores = SimpleNamespace()
        """What handlers get as `data_stores`."""
        self.data_stores: dict[str, object] = vars(self.stores)
        self._declared_outcomes: dict[str, EndOutcome] = {}
        self._registered: list[_Registered] = []
        self._compiled: dict[Handler, CompiledHandler] = {}
        for store, initial_data in (data_stores or {}).items():
            self.add_data_store(store, initial_data)

    # --- what users declare

    def handler_for(
        self,
        state: str,
        is_start: bool = False,
        is_end: bool = False,
        outcome: str | None = None,
        targets: Iterable[str] | None = None,
    ) -> "HandlerDecorator":
        """Decorate the handler of `state`; `.when(condition)` makes it a conditional one.

        `outcome` (`success`, `failure`, `cancelled`) says how a job ends in an end state, else its
        name does. `targets` declares states the handler leads to that its source does not show.
        """
        declared = _declare(state, is_start, is_end, outcome, targets)
        return HandlerDecorator(self._add_handler, declared)

    @overload
    def handler(self, state: H, /) -> H: ...
    @overload
    def handler(
        self,
        state: str | None = None,
        is_start: bool = False,
        is_end: bool = False,
        outcome: str | None = None,
        targets: Iterable[str] | None = None,
    ) -> "HandlerDecorator": ...
    def handler(
        self,
        state: str | Handler | None = None,
        is_start: bool = False,
        is_end: bool = False,
        outcome: str | None = None,
        targets: Iterable[str] | None = None,
    ) -> object:
        """`handler_for` whose state is the function's name if left out; `@bp.handler` alone too."""
        name = state if isinstance(state, str) else None
        declared = _declare(name, is_start, is_end, outcome, targets)
        decorator = HandlerDecorator(self._add_handler, declared)
        return decorator(state) if callable(state) else decorator

    def aggregator_for(self, state: str, targets: Iterable[str] | None = None) -> Callable[[H], H]:
        """Decorate the handler that `state` has when the job arrives there from a fan-out."""

        def register(function: H) -> H:
            if state in self.aggregator_handlers:
                raise ValueError(f"Aggregator for state '{state}' is already registered.")
            self.aggregator_handlers[state] = function
            declared = None if targets is None else tuple(targets)
            self._registered.append(_Registered(state, function, declared))
            return function

        return register

    aggregator = aggregator_for  # see aliases.py

    def event(self, name: str, schema: Mapping[str, Any] | None = None) -> None:
        """Declare an event that workers may send about the tasks of this blueprint's jobs.

        `schema`: JSON Schema of its payload; None: any object. Where one event is declared, others
        are refused (`STRICT_EVENT_VALIDATION`). ValueError if it cannot be.
        """
        if name in self.events:
            raise ValueError(f"Event '{name}' is already declared.")
        if schema is not None:
            try:
                check_json(schema)
                compiled(schema)
            except (TypeError, ValueError) as error:
                raise ValueError(f"Schema of event '{name}': {error}.") from None
        self.events[name] = None if schema is None else dict(schema)

    def add_data_store(self, name: str, initial_data: object) -> None:
        """Give handlers `data_stores.<name>`: a mapping becomes a shared AsyncDictStore."""
        if name in self.data_stores:
            raise ValueError(f"Data store with name '{name}' already exists.")
        if isinstance(initial_data, Mapping):
            initial_data = AsyncDictStore(cast("Mapping[str, Any]", initial_data))
        self.data_stores[name] = initial_data

    # --- what is checked before the first job

    def validate(self) -> None:
        """Make the blueprint ready to run. ValueError says what stands in the way."""
        if self.start_state is None:
            raise ValueError(f"Blueprint '{self.name}' must have exactly one start state.")
        self.validate_integrity()
        self.input_schema = self._read_contract()
        for registered in self._registered:
            self._compile(registered.function)

    def validate_integrity(self) -> None:
        """ValueError for targets that do not exist and for states that cannot be reached.

        What cannot be read in a handler's source is only warned about.
        """
        if self.start_state is None:
            raise ValueError(f"Blueprint '{self.name}' must have exactly one start state.")
        targets, unread = self._read_targets()
        for registered in unread:
            log.warning(
                "not every target of a handler can be read; declare them with targets=[...]",
                blueprint=self.name,
                state=registered.state,
                handler=getattr(registered.function, "__qualname__", repr(registered.function)),
            )
        graph = StateGraph(
            states=self.states,
            start=self.start_state,
            targets=targets,
            unread=[registered.state for registered in unread],
            entered_by_rule=[FAILED_STATE] if self.has_failed_state else [],
        )
        if warning := check_graph(self.name, graph):
            log.warning("states may be unreachable", blueprint=self.name, problem=warning)

    # --- what the orchestrator asks

    @property
    def states(self) -> tuple[str, ...]:
        """Every state with a handler, in order of registration."""
        return tuple(dict.fromkeys(registered.state for registered in self._registered))

    @property
    def end_outcomes(self) -> dict[str, EndOutcome]:
        """How a job ends in each end state."""
        return {
            state: self._declared_outcomes.get(state) or outcome_of_end_state(state)
            for state in self.states
            if state in self.end_states
        }

    @property
    def has_failed_state(self) -> bool:
        return FAILED_STATE in self.states

    def find_handler(self, state: str, context: JobContext) -> Handler:
        """The handler of `state`: after a fan-out its aggregator, else the first whose condition
        holds, else the default. DefinitionError, a ValueError, if there is none.
        """
        if context.aggregation_results is not None and state in self.aggregator_handlers:
            return self.aggregator_handlers[state]
        for conditional in self.conditional_handlers:
            if conditional.state == state and conditional.matches(context):
                return conditional.function
        if state in self.handlers:
            return self.handlers[state]
        raise DefinitionError(
            f"No suitable handler found for state '{state}' in blueprint '{self.name}' "
            "for the given context."
        )

    def handler_to_run(self, context: JobContext) -> CompiledHandler:
        """`find_handler` for the current state, ready to run."""
        return self._compile(self.find_handler(context.current_state, context))

    def get_handler_params(self, func: Handler) -> tuple[str, ...]:
        """The names of the handler's parameters."""
        return tuple(inspect.signature(func).parameters)

    def bind_data_stores(self, values: KeyValues) -> None:
        """Keep the values of the dict-like data stores in the storage backend from now on."""
        for name, store in self.data_stores.items():
            if isinstance(store, AsyncDictStore):
                store.bind(values, f"{self.name}/{name}")

    def render_graph(
        self,
        output_filename: str | None = None,
        output_format: str = "png",
        *,
        format: str | None = None,  # noqa: A002  a second name of output_format
    ) -> str:
        """The state graph as DOT text; with a file name, drawn by `dot` into a file whose path it is.

        The file is `<output_filename>.<output_format>`.
        """
        graph: Any = graphviz.Digraph(comment=f"State Machine for {self.name}")
        graph.attr("node", shape="box", style="rounded")
        for state in self.states:
            graph.node(_node(state))
        targets, _ = self._read_targets()
        for state in self.states:
            for target in targets[state]:
                graph.edge(_node(state), _node(target))
        if output_filename is None:
            return str(graph.source)
        drawn = graph.render(output_filename, format=format or output_format, cleanup=True)
        return str(drawn)

    # --- inside

    def _add_handler(self, declared: _Declared, function: Handler) -> None:
        state = declared.state or getattr(function, "__name__", "")
        if not state:
            raise ValueError(f"Blueprint '{self.name}': name the state of {function!r}.")
        if declared.condition is None and state in self.handlers:
            raise ValueError(f"Default handler for state '{state}' is already registered.")
        if declared.is_start and self.start_state not in {None, state}:
            raise ValueError(
                f"Blueprint '{self.name}' already has a start state: '{self.start_state}'."
            )
        if declared.outcome is not None:
            self._declare_outcome(state, declared.outcome)
        if declared.is_start:
            self.start_state = state
        if declared.is_end:
            self.end_states.add(state)
        if declared.condition is None:
            self.handlers[state] = function
        else:
            self.conditional_handlers.append(
                ConditionalHandler(state=state, function=function, condition=declared.condition)
            )
        self._registered.append(_Registered(state, function, declared.targets))

    def _declare_outcome(self, state: str, outcome: EndOutcome) -> None:
        if self._declared_outcomes.setdefault(state, outcome) is not outcome:
            raise ValueError(
                f"Outcome of state '{state}' is already declared: "
                f"'{self._declared_outcomes[state]}'."
            )

    def _read_targets(self) -> tuple[dict[str, list[str]], list[_Registered]]:
        """State -> where it leads, and the handlers that may lead elsewhere too."""
        targets: dict[str, list[str]] = {state: [] for state in self.states}
        unread: list[_Registered] = []
        for registered in self._registered:
            found = read_targets(registered.function)
            if registered.targets is not None:
                found = Targets((*found.states, *registered.targets), is_complete=True)
            if not found.is_complete:
                unread.append(registered)
            known = targets[registered.state]
            known.extend(target for target in dict.fromkeys(found.states) if target not in known)
        return targets, unread

    def _read_contract(self) -> dict[str, Any] | None:
        start = self.start_state
        handlers = [one.function for one in self.conditional_handlers if one.state == start]
        handlers += [function for state, function in self.handlers.items() if state == start]
        try:
            return contract_of(handlers)
        except UnusableContract as reason:
            log.warning(
                "the annotation of initial_data is no contract; any object is taken",
                blueprint=self.name,
                reason=str(reason),
            )
            return None

    def _compile(self, function: Handler) -> CompiledHandler:
        compiled = self._compiled.get(function)
        if compiled is None:
            compiled = self._compiled[function] = CompiledHandler(function)
        return compiled


def _declare(
    state: str | None,
    is_start: bool,
    is_end: bool,
    outcome: str | None,
    targets: Iterable[str] | None,
) -> _Declared:
    if outcome is not None and outcome not in set(EndOutcome):
        raise ValueError(f"outcome must be success, failure or cancelled, not {outcome!r}.")
    if outcome is not None and not is_end:
        raise ValueError(f"outcome={outcome!r} says how a job ends: it needs is_end=True.")
    if isinstance(targets, str):
        raise TypeError("targets must be a list of states, not a string.")
    return _Declared(
        state=state,
        is_start=is_start,
        is_end=is_end,
        outcome=None if outcome is None else EndOutcome(outcome),
        targets=None if targets is None else tuple(targets),
    )


def _node(state: str) -> str:
    """DOT takes what follows a colon for a port of the node; the entity is shown as a colon."""
    return state.replace(":", "&#58;")
