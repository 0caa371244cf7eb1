"""How a handler says what its job does next."""

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, cast

from avtomatika_core.outcomes import (
    Action,
    AwaitApproval,
    DispatchParallel,
    DispatchTask,
    RunBlueprint,
    SentEvent,
    Sleep,
    TaskRequest,
    TransitionTo,
    WaitForSignal,
)
from avtomatika_core.retry_policy import RetryPolicy, retry_policy
from avtomatika_core.signals import check_signal_name

_BRANCH_OPTIONS: Final = (
    "dispatch_strategy",
    "resource_requirements",
    "timeout_seconds",
    "max_cost",
    "priority",
    "dispatch_timeout_seconds",
    "result_timeout_seconds",
    "heartbeat_timeout_seconds",
    "retry",
)
_OF_A_SIGNAL: Final = frozenset({"received", "timeout", "cancelled"})
"""What the transitions of a wait for a signal may lead from."""


class ActionFactory:
    """Takes at most one action per step, and any number of context updates and events.

    A second action is a RuntimeError; an argument of the wrong type a TypeError and one of an
    impossible value a ValueError, both naming the argument. Then nothing is recorded.
    """

    __slots__ = ("_action", "_context_updates", "_job_id", "_recorded", "_sent_events")

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._action: Action | None = None
        self._recorded: dict[str, Any] | None = None
        self._context_updates: dict[str, Any] | None = None
        self._sent_events: tuple[SentEvent, ...] = ()

    @property
    def job_id(self) -> str:
        return self._job_id

    @property
    def action(self) -> Action | None:
        """What the handler asked for, if anything."""
        return self._action

    @property
    def sent_events(self) -> tuple[SentEvent, ...]:
        """What `send_event` gathered."""
        return self._sent_events

    @property
    def context_updates(self) -> dict[str, Any]:
        """What `update_context` gathered."""
        return self._context_updates or {}

    def transition_to(self, state: str, error_message: str | None = None) -> None:
        """Go to `state`. `error_message` becomes the job's."""
        self._demand_first()
        if not isinstance(state, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _wrong_type("state", "a string", state)
        if error_message is not None:
            _text("error_message", error_message)
        self._action = TransitionTo(state=state, error_message=error_message)

    go_to = transition_to  # see aliases.py

    def dispatch_task(
        self,
        task_type: str,
        params: Mapping[str, Any],
        transitions: Mapping[str, str],
        dispatch_strategy: str = "default",
        resource_requirements: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
        max_cost: float | None = None,
        priority: float = 0.0,
        *,
        dispatch_timeout_seconds: float | None = None,
        result_timeout_seconds: float | None = None,
        event_transitions: Mapping[str, str] | None = None,
        heartbeat_timeout_seconds: float | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
    ) -> None:
        """Give a task to a worker; `transitions` leads from the status it reports to a state.

        `event_transitions` leads from the type of an event the worker sends to a state: the job
        goes there at once, and the task is over.
        `dispatch_timeout_seconds`: how long it may wait for a worker (0: for ever).
        `result_timeout_seconds`, else `timeout_seconds`: how long the worker may take.
        Left out, both are the job's or the configured ones.
        `heartbeat_timeout_seconds`: how long the worker may send no progress; then the attempt ends
        as by its result timeout.
        `retry`: how often and when a failed attempt is repeated; left out, as the blueprint says.
        """
        self._demand_first()
        recorded: dict[str, Any] = {
            "type": task_type,
            "params": params,
            "transitions": _transitions(transitions),
            "dispatch_strategy": dispatch_strategy,
            "resource_requirements": resource_requirements,
            "timeout_seconds": timeout_seconds,
            "max_cost": max_cost,
            "priority": priority,
            "dispatch_timeout_seconds": dispatch_timeout_seconds,
            "result_timeout_seconds": result_timeout_seconds,
            "event_transitions": (
                None
                if event_transitions is None
                else _transitions(event_transitions, "event_transitions", "type")
            ),
        }
        later = {"heartbeat_timeout_seconds": heartbeat_timeout_seconds, "retry": retry}
        recorded |= {name: value for name, value in later.items() if value is not None}
        self._action = DispatchTask(task=_task_request(**recorded))
        self._recorded = recorded

    def dispatch_parallel(self, tasks: Iterable[Mapping[str, Any]], aggregate_into: str) -> None:
        """Give all `tasks` to workers at once; the job goes to `aggregate_into` after the last.

        A task is a mapping: `type`, and optionally `params` and the options of `dispatch_task`
        except `transitions`.
        """
        self._demand_first()
        _text("aggregate_into", aggregate_into)
        if isinstance(tasks, str | Mapping) or not isinstance(tasks, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _wrong_type("tasks", "a list of mappings", cast("object", tasks))
        given = [_branch(index, task) for index, task in enumerate(tasks)]
        requests = [_branch_request(index, task) for index, task in enumerate(given)]
        self._action = DispatchParallel(tasks=requests, aggregate_into=aggregate_into)
        self._recorded = {"tasks": given, "aggregate_into": aggregate_into}

    def await_human_approval(
        self,
        integration: str,
        message: str,
        transitions: Mapping[str, str],
        timeout_seconds: float | None = None,
    ) -> None:
        """Wait for a person's decision; `transitions` leads from the decision to a state.

        After `timeout_seconds` the job goes to `transitions["timeout"]`, else it fails.
        """
        self._demand_first()
        action = AwaitApproval(
            integration=_text("integration", integration),
            message=_text("message", message),
            transitions=_transitions(transitions),
            timeout_seconds=_seconds("timeout_seconds", timeout_seconds),
        )
        self._action = action
        self._recorded = {
            "type": "human_approval",
            "integration": integration,
            "message": message,
            "transitions": action.transitions,
            "timeout_seconds": timeout_seconds,
        }

    def run_blueprint(
        self,
        blueprint_name: str,
        initial_data: Mapping[str, Any],
        transitions: Mapping[str, str],
        dispatch_timeout: float | None = None,
        result_timeout: float | None = None,
    ) -> None:
        """Run another blueprint as a sub-job and wait for it.

        `transitions` leads from `success`, `failure` or `cancelled` to a state. The timeouts (in
        seconds) are for the sub-job's tasks; left out, they are this job's.
        """
        self._demand_first()
        action = RunBlueprint(
            blueprint=_text("blueprint_name", blueprint_name),
            initial_data=_mapping("initial_data", initial_data),
            transitions=_transitions(transitions),
            dispatch_timeout=_seconds("dispatch_timeout", dispatch_timeout, may_be_zero=True),
            result_timeout=_seconds("result_timeout", result_timeout),
        )
        self._action = action
        self._recorded = {
            "blueprint_name": blueprint_name,
            "initial_data": action.initial_data,
            "transitions": action.transitions,
            "dispatch_timeout": dispatch_timeout,
            "result_timeout": result_timeout,
        }

    def sleep(
        self,
        seconds: float | None = None,
        *,
        until: datetime | float | None = None,
        next_state: str,
    ) -> None:
        """Go to `next_state` after `seconds`, or at the moment `until`: a datetime with a time zone,
        or Unix seconds. A moment that has passed goes on at once."""
        self._demand_first()
        if (seconds is None) == (until is None):
            raise ValueError("sleep takes either seconds or until.")
        self._action = Sleep(
            next_state=_text("next_state", next_state),
            seconds=None if seconds is None else _seconds("seconds", seconds, may_be_zero=True),
            until=None if until is None else _moment("until", until),
        )

    def wait_for_signal(
        self, name: str, transitions: Mapping[str, str], timeout_seconds: float | None = None
    ) -> None:
        """Wait until somebody sends the job the signal `name`: then it goes to
        `transitions["received"]`, with the signal's data merged into `state_history`.

        One that came before is taken at once, the oldest first. After `timeout_seconds` the job
        goes to `transitions["timeout"]`, else it fails.
        """
        self._demand_first()
        self._action = WaitForSignal(
            name=check_signal_name(_text("name", name)),
            transitions=_signal_transitions(transitions),
            timeout_seconds=_seconds("timeout_seconds", timeout_seconds),
        )

    def update_context(self, updates: Mapping[str, Any]) -> None:
        """Merge `updates` into `state_history` with the step. Not an action."""
        merged = {**self.context_updates, **_mapping("updates", updates)}
        self._context_updates = merged

    def send_event(self, event_type: str, payload: Mapping[str, Any] | None = None) -> None:
        """Tell the outside of something with the step: webhook and callbacks. Not an action."""
        if not _text("event_type", event_type):
            raise ValueError("event_type must not be empty.")
        sent = SentEvent(
            event_type=event_type, payload=_mapping("payload", {} if payload is None else payload)
        )
        self._sent_events = (*self._sent_events, sent)

    @property
    def next_state(self) -> str | None:
        return self._action.state if isinstance(self._action, TransitionTo) else None

    @property
    def task_to_dispatch(self) -> dict[str, Any] | None:
        """The task or the approval, as it was asked for."""
        return self._recorded if isinstance(self._action, DispatchTask | AwaitApproval) else None

    @property
    def sub_blueprint_to_run(self) -> dict[str, Any] | None:
        return self._recorded if isinstance(self._action, RunBlueprint) else None

    @property
    def parallel_tasks_to_dispatch(self) -> dict[str, Any] | None:
        return self._recorded if isinstance(self._action, DispatchParallel) else None

    def _demand_first(self) -> None:
        if self._action is not None:
            raise RuntimeError(
                "Cannot set multiple actions in the same step. An action (transition, task, "
                "blueprint, or parallel) has already been defined."
            )


def _branch(index: int, task: object) -> dict[str, Any]:
    """A task of a fan-out under the first spelling of its type."""
    given = dict(_mapping(f"tasks[{index}]", task))
    task_type = given.pop("task_type", None)
    given["type"] = given.get("type") or task_type
    if not given["type"]:
        raise ValueError("Task info must include a 'type'")
    return given


def _branch_request(index: int, task: Mapping[str, Any]) -> TaskRequest:
    options = {name: task[name] for name in _BRANCH_OPTIONS if task.get(name) is not None}
    try:
        return _task_request(type=task["type"], params=task.get("params") or {}, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"tasks[{index}]: {error}") from None


def _task_request(
    *,
    type: object,  # noqa: A002  the recorded name
    params: object,
    transitions: dict[str, str] | None = None,
    dispatch_strategy: object = "default",
    resource_requirements: object = None,
    timeout_seconds: object = None,
    max_cost: object = None,
    priority: object = 0.0,
    dispatch_timeout_seconds: object = None,
    result_timeout_seconds: object = None,
    event_transitions: dict[str, str] | None = None,
    heartbeat_timeout_seconds: object = None,
    retry: object = None,
) -> TaskRequest:
    needs = resource_requirements
    timeout = _seconds("timeout_seconds", timeout_seconds)
    result_timeout = _seconds("result_timeout_seconds", result_timeout_seconds)
    return TaskRequest(
        type=_text("task_type", type),
        params=_mapping("params", params),
        transitions=transitions or {},
        event_transitions=event_transitions or {},
        strategy=_text("dispatch_strategy", dispatch_strategy),
        resource_requirements=(None if needs is None else _mapping("resource_requirements", needs)),
        max_cost=None if max_cost is None else _number("max_cost", max_cost),
        priority=_number("priority", priority),
        dispatch_timeout_seconds=_seconds(
            "dispatch_timeout_seconds", dispatch_timeout_seconds, may_be_zero=True
        ),
        result_timeout_seconds=timeout if result_timeout is None else result_timeout,
        heartbeat_timeout_seconds=_seconds("heartbeat_timeout_seconds", heartbeat_timeout_seconds),
        retry=None if retry is None else retry_policy(retry),
    )


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    return value


def _mapping(name: str, value: object) -> dict[str, Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    raise _wrong_type(name, "a mapping", value)


def _transitions(
    value: object, name: str = "transitions", of_keys: str = "status"
) -> dict[str, str]:
    transitions = dict(_mapping(name, value))
    for key, state in transitions.items():
        _text(f"every {of_keys} in {name}", key)
        _text(f"{name}['{key}']", state)
    return transitions


def _signal_transitions(value: object) -> dict[str, str]:
    transitions = _transitions(value, of_keys="outcome")
    if "received" not in transitions:
        raise ValueError("transitions must lead from 'received' to a state.")
    if odd := sorted(transitions.keys() - _OF_A_SIGNAL):
        raise ValueError(
            f"transitions leads from {odd[0]!r}, which does not happen to a wait for a signal: "
            "'received', 'timeout' and 'cancelled' do."
        )
    return transitions


def _moment(name: str, value: object) -> float:
    """Unix seconds."""
    if not isinstance(value, datetime):
        return _number(name, value)
    if value.utcoffset() is None:
        raise ValueError(
            f"{name} must have a time zone, as datetime.now(UTC) has: {value} has none."
        )
    return value.timestamp()


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, "a number", value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}.")
    return value


def _seconds(name: str, value: object, *, may_be_zero: bool = False) -> float | None:
    if value is None:
        return None
    seconds = _number(name, value)
    if seconds < 0 or (seconds == 0 and not may_be_zero):
        lowest = "0 or more" if may_be_zero else "above 0"
        raise ValueError(f"{name} must be {lowest}, not {seconds}.")
    return seconds


def _wrong_type(name: str, wanted: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {wanted}, not {type(value).__name__}.")
