import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from avtomatika_common.actions import ActionFactory
from avtomatika_core.outcomes import (
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
from avtomatika_core.retry_policy import RetryPolicy


@pytest.fixture
def actions() -> ActionFactory:
    return ActionFactory("job-1")


def test_nothing_is_recorded_at_first(actions: ActionFactory) -> None:
    assert actions.job_id == "job-1"
    assert actions.action is None
    assert actions.next_state is None
    assert actions.task_to_dispatch is None
    assert actions.sub_blueprint_to_run is None
    assert actions.parallel_tasks_to_dispatch is None
    assert actions.context_updates == {}


def test_a_transition_names_the_next_state(actions: ActionFactory) -> None:
    actions.transition_to("end", error_message="late")

    assert actions.action == TransitionTo(state="end", error_message="late")
    assert actions.next_state == "end"


def test_a_task_is_recorded_with_every_option(actions: ActionFactory) -> None:
    actions.dispatch_task(
        "resize", {"w": 10}, {"success": "end"}, "cheapest", {"gpu": 1}, 60, 0.5, 2.0,
        dispatch_timeout_seconds=0, result_timeout_seconds=30,
        event_transitions={"halfway": "look"},
    )  # fmt: skip

    assert actions.action == DispatchTask(
        task=TaskRequest(
            type="resize",
            params={"w": 10},
            transitions={"success": "end"},
            strategy="cheapest",
            resource_requirements={"gpu": 1},
            max_cost=0.5,
            priority=2.0,
            dispatch_timeout_seconds=0,
            result_timeout_seconds=30,
            event_transitions={"halfway": "look"},
        )
    )
    assert actions.task_to_dispatch == {
        "type": "resize",
        "params": {"w": 10},
        "transitions": {"success": "end"},
        "dispatch_strategy": "cheapest",
        "resource_requirements": {"gpu": 1},
        "timeout_seconds": 60,
        "max_cost": 0.5,
        "priority": 2.0,
        "dispatch_timeout_seconds": 0,
        "result_timeout_seconds": 30,
        "event_transitions": {"halfway": "look"},
    }


def test_a_task_may_have_a_heartbeat_timeout_and_a_retry_policy(actions: ActionFactory) -> None:
    policy = RetryPolicy(attempts=2)

    actions.dispatch_task("t", {}, {}, heartbeat_timeout_seconds=5, retry=policy)

    assert actions.action == DispatchTask(
        task=TaskRequest(type="t", heartbeat_timeout_seconds=5, retry=policy)
    )
    assert actions.task_to_dispatch is not None
    assert actions.task_to_dispatch["heartbeat_timeout_seconds"] == 5
    assert actions.task_to_dispatch["retry"] is policy


def test_a_parallel_task_may_have_a_policy_as_a_mapping(actions: ActionFactory) -> None:
    task = {"type": "t", "heartbeat_timeout_seconds": 5, "retry": {"attempts": 2}}

    actions.dispatch_parallel([task], "join")

    assert isinstance(actions.action, DispatchParallel)
    assert actions.action.tasks == [
        TaskRequest(type="t", heartbeat_timeout_seconds=5, retry=RetryPolicy(attempts=2))
    ]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"heartbeat_timeout_seconds": 0}, ValueError, "heartbeat_timeout_seconds must be above 0"),
        ({"retry": 3}, TypeError, "retry must be a RetryPolicy or a mapping of its fields"),
        ({"retry": {"attempts": 0}}, ValueError, "retry.attempts must be 1 or more"),
        ({"retry": {"tries": 1}}, ValueError, "retry has no field 'tries'"),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused_by_name(
    actions: ActionFactory, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        actions.dispatch_task("t", {}, {}, **options)
    with pytest.raises(error, match=rf"tasks\[0\]: {text}"):
        actions.dispatch_parallel([{"type": "t", **options}], "join")

    assert actions.action is None


# --- sleep and signals

NOON = datetime(2027, 1, 15, 12, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("arguments", "options", "action"),
    [
        ((30,), {}, Sleep(seconds=30, next_state="b")),
        ((), {"seconds": 0}, Sleep(seconds=0, next_state="b")),
        ((), {"until": 1_800_000_000}, Sleep(until=1_800_000_000, next_state="b")),
        ((), {"until": NOON}, Sleep(until=NOON.timestamp(), next_state="b")),
    ],
)
def test_a_sleep_is_for_some_seconds_or_until_a_moment(
    actions: ActionFactory, arguments: tuple[float, ...], options: dict[str, Any], action: Sleep
) -> None:
    actions.sleep(*arguments, **options, next_state="b")

    assert actions.action == action
    assert actions.next_state is None


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, ValueError, "sleep takes either seconds or until"),
        ({"seconds": 1, "until": 2}, ValueError, "sleep takes either seconds or until"),
        ({"seconds": -1}, ValueError, "seconds must be 0 or more, not -1"),
        ({"seconds": "1"}, TypeError, "seconds must be a number, not str"),
        ({"until": float("nan")}, ValueError, "until must be a finite number"),
        ({"until": NOON.date()}, TypeError, "until must be a number, not date"),
        ({"until": NOON.replace(tzinfo=None)}, ValueError, "until must have a time zone"),
        ({"seconds": 1, "next_state": None}, TypeError, "next_state must be a string"),
    ],
)
def test_a_sleep_that_makes_no_sense_is_refused(
    actions: ActionFactory, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {"next_state": "b", **options}

    with pytest.raises(error, match=text):
        actions.sleep(**arguments)

    assert actions.action is None


def test_a_wait_for_a_signal_is_recorded(actions: ActionFactory) -> None:
    transitions = {"received": "b", "timeout": "c", "cancelled": "d"}

    actions.wait_for_signal("paid", transitions, 60)

    assert actions.action == WaitForSignal(name="paid", transitions=transitions, timeout_seconds=60)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", {"received": "b"}), ValueError, "1 to 255 printable characters"),
        ((3, {"received": "b"}), TypeError, "name must be a string"),
        (("paid", {"timeout": "b"}), ValueError, "must lead from 'received' to a state"),
        (("paid", {"received": "b", "late": "c"}), ValueError, "transitions leads from 'late'"),
        (("paid", {"received": 1}), TypeError, r"transitions\['received'\] must be a string"),
        (("paid", {"received": "b"}, 0), ValueError, "timeout_seconds must be above 0"),
    ],
)
def test_a_wait_for_a_signal_that_makes_no_sense_is_refused(
    actions: ActionFactory, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        actions.wait_for_signal(*arguments)

    assert actions.action is None


def test_sleep_and_signal_are_actions_as_the_others(actions: ActionFactory) -> None:
    actions.sleep(1, next_state="b")

    for second in (
        lambda: actions.sleep(1, next_state="b"),
        lambda: actions.wait_for_signal("paid", {"received": "b"}),
    ):
        with pytest.raises(RuntimeError, match="Cannot set multiple actions in the same step"):
            second()


def test_timeout_seconds_is_the_result_timeout_where_no_other_is_given(
    actions: ActionFactory,
) -> None:
    actions.dispatch_task(task_type="t", params={}, transitions={}, timeout_seconds=60)

    assert isinstance(actions.action, DispatchTask)
    assert actions.action.task == TaskRequest(type="t", result_timeout_seconds=60)


def test_an_approval_is_recorded_as_a_task_of_its_own_type(actions: ActionFactory) -> None:
    actions.await_human_approval("slack", "Ship it?", {"approved": "ship"}, timeout_seconds=5)

    assert actions.action == AwaitApproval(
        integration="slack", message="Ship it?", transitions={"approved": "ship"}, timeout_seconds=5
    )
    assert actions.task_to_dispatch == {
        "type": "human_approval",
        "integration": "slack",
        "message": "Ship it?",
        "transitions": {"approved": "ship"},
        "timeout_seconds": 5,
    }


def test_a_sub_blueprint_is_recorded(actions: ActionFactory) -> None:
    actions.run_blueprint("child", {"a": 1}, {"success": "end"}, dispatch_timeout=0)

    assert actions.action == RunBlueprint(
        blueprint="child", initial_data={"a": 1}, transitions={"success": "end"}, dispatch_timeout=0
    )
    assert actions.sub_blueprint_to_run == {
        "blueprint_name": "child",
        "initial_data": {"a": 1},
        "transitions": {"success": "end"},
        "dispatch_timeout": 0,
        "result_timeout": None,
    }


def test_parallel_tasks_take_either_spelling_of_the_type(actions: ActionFactory) -> None:
    actions.dispatch_parallel(
        [
            {"type": "a", "params": {"n": 1}, "priority": 3, "timeout_seconds": 9},
            {"task_type": "b", "result_timeout_seconds": 7, "max_cost": None},
        ],
        aggregate_into="join",
    )

    assert actions.action == DispatchParallel(
        tasks=[
            TaskRequest(type="a", params={"n": 1}, priority=3, result_timeout_seconds=9),
            TaskRequest(type="b", result_timeout_seconds=7),
        ],
        aggregate_into="join",
    )
    assert actions.parallel_tasks_to_dispatch == {
        "tasks": [
            {"type": "a", "params": {"n": 1}, "priority": 3, "timeout_seconds": 9},
            {"type": "b", "result_timeout_seconds": 7, "max_cost": None},
        ],
        "aggregate_into": "join",
    }


def test_a_fan_out_of_no_tasks_is_an_action_too(actions: ActionFactory) -> None:
    actions.dispatch_parallel([], "join")

    assert actions.action == DispatchParallel(tasks=[], aggregate_into="join")


def test_a_parallel_task_without_a_type_is_refused(actions: ActionFactory) -> None:
    with pytest.raises(ValueError, match=r"^Task info must include a 'type'$"):
        actions.dispatch_parallel([{"params": {}}], "join")

    assert actions.action is None


SECOND_ACTIONS: list[Callable[[ActionFactory], None]] = [
    lambda actions: actions.transition_to("b"),
    lambda actions: actions.dispatch_task("t", {}, {}),
    lambda actions: actions.dispatch_parallel([], "b"),
    lambda actions: actions.await_human_approval("i", "m", {}),
    lambda actions: actions.run_blueprint("c", {}, {}),
]


@pytest.mark.parametrize("second", SECOND_ACTIONS)
def test_a_second_action_is_refused_and_the_first_stays(
    actions: ActionFactory, second: Callable[[ActionFactory], None]
) -> None:
    actions.transition_to("a")

    with pytest.raises(RuntimeError) as refused:
        second(actions)

    assert str(refused.value) == (
        "Cannot set multiple actions in the same step. An action (transition, task, blueprint, "
        "or parallel) has already been defined."
    )
    assert actions.next_state == "a"


@pytest.mark.parametrize(
    ("method", "arguments", "expected", "named"),
    [
        ("transition_to", {"state": None}, TypeError, "state must be a string, not NoneType"),
        ("transition_to", {"state": "a", "error_message": 5}, TypeError, "error_message"),
        ("dispatch_task", {"task_type": 1}, TypeError, "task_type must be a string"),
        ("dispatch_task", {"params": [1]}, TypeError, "params must be a mapping, not list"),
        ("dispatch_task", {"transitions": None}, TypeError, "transitions must be a mapping"),
        ("dispatch_task", {"transitions": {"success": 1}}, TypeError, "transitions['success']"),
        ("dispatch_task", {"transitions": {1: "a"}}, TypeError, "every status in transitions"),
        ("dispatch_task", {"event_transitions": ["a"]}, TypeError, "event_transitions must be a"),
        ("dispatch_task", {"event_transitions": {1: "a"}}, TypeError, "every type in event_trans"),
        ("dispatch_task", {"event_transitions": {"e": 1}}, TypeError, "event_transitions['e']"),
        ("dispatch_task", {"dispatch_strategy": None}, TypeError, "dispatch_strategy"),
        ("dispatch_task", {"resource_requirements": "gpu"}, TypeError, "resource_requirements"),
        ("dispatch_task", {"timeout_seconds": "60"}, TypeError, "timeout_seconds must be a number"),
        ("dispatch_task", {"timeout_seconds": True}, TypeError, "timeout_seconds must be a number"),
        ("dispatch_task", {"timeout_seconds": 0}, ValueError, "timeout_seconds must be above 0"),
        ("dispatch_task", {"dispatch_timeout_seconds": -1}, ValueError, "must be 0 or more"),
        ("dispatch_task", {"priority": float("nan")}, ValueError, "priority must be a finite"),
        ("dispatch_task", {"max_cost": "1"}, TypeError, "max_cost must be a number"),
        ("dispatch_parallel", {"tasks": {"type": "a"}}, TypeError, "tasks must be a list"),
        ("dispatch_parallel", {"tasks": 3}, TypeError, "tasks must be a list"),
        ("dispatch_parallel", {"tasks": ["a"]}, TypeError, "tasks[0] must be a mapping"),
        ("dispatch_parallel", {"tasks": [{"type": "a"}, {"type": 2}]}, TypeError, "tasks[1]: "),
        ("dispatch_parallel", {"aggregate_into": None}, TypeError, "aggregate_into"),
        ("run_blueprint", {"blueprint_name": None}, TypeError, "blueprint_name"),
        ("run_blueprint", {"initial_data": None}, TypeError, "initial_data must be a mapping"),
        ("run_blueprint", {"result_timeout": 0}, ValueError, "result_timeout must be above 0"),
        ("await_human_approval", {"message": 1}, TypeError, "message must be a string"),
        ("await_human_approval", {"timeout_seconds": -1}, ValueError, "timeout_seconds"),
        ("update_context", {"updates": [1]}, TypeError, "updates must be a mapping"),
        ("send_event", {"event_type": 1}, TypeError, "event_type must be a string"),
        ("send_event", {"event_type": ""}, ValueError, "event_type must not be empty"),
        ("send_event", {"payload": [1]}, TypeError, "payload must be a mapping"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_recorded(
    actions: ActionFactory,
    method: str,
    arguments: dict[str, object],
    expected: type[Exception],
    named: str,
) -> None:
    valid: dict[str, dict[str, object]] = {
        "transition_to": {},
        "dispatch_task": {"task_type": "t", "params": {}, "transitions": {}},
        "dispatch_parallel": {"tasks": [], "aggregate_into": "join"},
        "run_blueprint": {"blueprint_name": "c", "initial_data": {}, "transitions": {}},
        "await_human_approval": {"integration": "i", "message": "m", "transitions": {}},
        "update_context": {},
        "send_event": {"event_type": "e"},
    }

    with pytest.raises(expected, match=re.escape(named)):
        getattr(actions, method)(**{**valid[method], **arguments})

    assert actions.action is None
    assert actions.task_to_dispatch is None
    assert actions.sent_events == ()


def test_events_gather_beside_the_action(actions: ActionFactory) -> None:
    actions.send_event("priced", {"total": 3})
    actions.transition_to("end")
    actions.send_event("done")

    assert actions.sent_events == (
        SentEvent(event_type="priced", payload={"total": 3}),
        SentEvent(event_type="done"),
    )
    assert actions.next_state == "end"


def test_context_updates_gather_beside_the_action(actions: ActionFactory) -> None:
    actions.update_context({"a": 1, "b": 1})
    actions.transition_to("end")
    actions.update_context({"b": 2})

    assert actions.context_updates == {"a": 1, "b": 2}
    assert actions.next_state == "end"
