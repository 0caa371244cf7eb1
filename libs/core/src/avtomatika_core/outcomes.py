"""What a handler may ask for: the actions of one step, as values."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from avtomatika_core.retry_policy import RetryPolicy


class EndOutcome(StrEnum):
    """How a job that reached an end state ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class TaskRequest(_Value, frozen=True, kw_only=True):
    """One task for a worker, as the handler described it. Times in seconds."""

    type: str
    params: dict[str, Any] = {}
    transitions: dict[str, str] = {}
    """Task status -> next state. Empty for a branch of a fan-out."""
    event_transitions: dict[str, str] = {}
    """Type of a worker event -> next state; the event ends the task."""
    strategy: str = "default"
    resource_requirements: dict[str, Any] | None = None
    max_cost: float | None = None
    priority: float = 0.0
    dispatch_timeout_seconds: float | None = None
    """None: the job's, else the configured one. 0: wait for ever."""
    result_timeout_seconds: float | None = None
    """None: the job's, else the configured one."""
    heartbeat_timeout_seconds: float | None = None
    """How long its holder may send no progress. None: as long as it likes."""
    retry: RetryPolicy | None = None
    """None: the blueprint's."""

    def described(self) -> dict[str, Any]:
        """As documents and the archive show a task."""
        described: dict[str, Any] = {
            "type": self.type,
            "params": self.params,
            "transitions": self.transitions,
            "dispatch_strategy": self.strategy,
            "resource_requirements": self.resource_requirements,
            "timeout_seconds": self.result_timeout_seconds,
            "max_cost": self.max_cost,
            "priority": self.priority,
            "dispatch_timeout_seconds": self.dispatch_timeout_seconds,
            "result_timeout_seconds": self.result_timeout_seconds,
            "event_transitions": self.event_transitions or None,
        }
        if self.heartbeat_timeout_seconds is not None:
            described["heartbeat_timeout_seconds"] = self.heartbeat_timeout_seconds
        if self.retry is not None:
            described["retry"] = msgspec.structs.asdict(self.retry)
        return described


class TransitionTo(_Value, frozen=True, kw_only=True, tag_field="action", tag="transition"):
    state: str
    error_message: str | None = None


class DispatchTask(_Value, frozen=True, kw_only=True, tag_field="action", tag="task"):
    task: TaskRequest


class DispatchParallel(_Value, frozen=True, kw_only=True, tag_field="action", tag="parallel"):
    tasks: Sequence[TaskRequest]
    aggregate_into: str


class RunBlueprint(_Value, frozen=True, kw_only=True, tag_field="action", tag="blueprint"):
    blueprint: str
    initial_data: dict[str, Any]
    transitions: dict[str, str]
    dispatch_timeout: float | None = None
    result_timeout: float | None = None


class AwaitApproval(_Value, frozen=True, kw_only=True, tag_field="action", tag="approval"):
    integration: str
    message: str
    transitions: dict[str, str]
    timeout_seconds: float | None = None


class Sleep(_Value, frozen=True, kw_only=True, tag_field="action", tag="sleep"):
    """For `seconds`, or until a moment (Unix seconds): one of the two."""

    next_state: str
    seconds: float | None = None
    until: float | None = None


class WaitForSignal(_Value, frozen=True, kw_only=True, tag_field="action", tag="signal"):
    name: str
    transitions: dict[str, str]
    """`received`, and perhaps `timeout` and `cancelled` -> next state."""
    timeout_seconds: float | None = None


class SentEvent(_Value, frozen=True, kw_only=True):
    """An event that a handler sends with its step. Not an action."""

    event_type: str
    payload: dict[str, Any] = {}


Action = (
    TransitionTo
    | DispatchTask
    | DispatchParallel
    | RunBlueprint
    | AwaitApproval
    | Sleep
    | WaitForSignal
)

_FAILURE_WORDS = frozenset(
    {
        "failed", "failure", "fail", "error", "errored", "rejected", "aborted", "timeout",
        "quarantined",
    }
)  # fmt: skip
_CANCELLED_WORDS = frozenset({"cancelled", "canceled"})


def outcome_of_end_state(state: str) -> EndOutcome:
    """How an end state of this name ends its job when the blueprint does not say."""
    name = state.lower()
    for separator in "-.":
        name = name.replace(separator, "_")
    last = name.rsplit("_", 1)[-1]
    if last in _CANCELLED_WORDS:
        return EndOutcome.CANCELLED
    if last in _FAILURE_WORDS or name.endswith("timed_out"):
        return EndOutcome.FAILURE
    return EndOutcome.SUCCESS


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the blueprint and the configuration say, as far as `step` needs it. Times in seconds."""

    end_states: Mapping[str, EndOutcome] = {}
    has_failed_state: bool = False
    """An unhandled outcome goes to the state `failed` where the blueprint has one."""
    max_retries: int = 3
    """Repeats of one handler step or one task; the first attempt is not counted."""
    retry_delay_seconds: float = 1.0
    retry: RetryPolicy = RetryPolicy()
    """The blueprint's own policy, over the two above."""
    dispatch_timeout_seconds: float = 3600.0
    """0: a task waits for a worker for ever."""
    result_timeout_seconds: float = 300.0
    max_transitions: int = 10_000
    """State entries per job; 0: no limit."""
    max_depth: int = 10
    """Generations of sub-jobs under one root job."""
