"""What the jobs of the load do. Each run of a handler is noted in the job and outside of it.

`state_history["steps"]` has what counted: `[state, nonce]` in order. The marks have every run. `key`
is the name the client gave the job, so that jobs are known whose answer it never saw.
"""

import asyncio
import os
import random
import time
from typing import Any

from avtomatika_common.actions import ActionFactory
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_core.retry_policy import RetryPolicy
from tests.chaos.marks import mark

TASK_RETRY = RetryPolicy(attempts=4, delay_seconds=0.2, factor=1.5)
RESULT_TIMEOUT_SECONDS = 4.0


def a_blueprint(name: str) -> StateMachineBlueprint:
    return StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")


def note(job_id: str, key: str, state: str, state_history: dict[str, Any], **fields: Any) -> None:
    """This state's handler runs: it counts if its step is committed."""
    nonce = os.urandom(6).hex()
    mark("handler", job=job_id, key=key, state=state, nonce=nonce, **fields)
    state_history.setdefault("steps", []).append([state, nonce])


class HandlerFailed(Exception):
    """Now and then a handler does."""


# --- steps only: some are slow, some block the loop, some raise

chain = a_blueprint("chain")


def _add_to_chain(state: str, following: str) -> None:
    @chain.handler_for(state, is_start=state == "s0", targets=[following])
    async def handler(
        job_id: str,
        key: str,
        state_history: dict[str, Any],
        actions: ActionFactory,
        slow: float = 0.0,
        raises: float = 0.0,
    ) -> None:
        note(job_id, key, state, state_history)
        luck = random.random()
        if luck < raises:
            mark("raised", job=job_id, key=key, state=state)
            raise HandlerFailed(state)
        if luck > 0.95:
            time.sleep(slow)  # noqa: ASYNC251 - what should not be done, and is
        else:
            await asyncio.sleep(luck * slow)
        actions.transition_to(following)


for _state, _following in (("s0", "s1"), ("s1", "s2"), ("s2", "s3"), ("s3", "s4"), ("s4", "end")):
    _add_to_chain(_state, _following)


async def _end(job_id: str, key: str, state_history: dict[str, Any]) -> None:
    note(job_id, key, "end", state_history)


async def _undone(job_id: str, key: str, state_history: dict[str, Any]) -> None:
    note(job_id, key, "undone", state_history)


def _add_ends(blueprint: StateMachineBlueprint) -> None:
    blueprint.handler_for("end", is_end=True)(_end)
    blueprint.handler_for("undone", is_end=True, outcome="failure")(_undone)


chain.handler_for("end", is_end=True)(_end)

# --- two tasks, one after the other

tasks = a_blueprint("tasks")


def _add_task(state: str, following: str) -> None:
    @tasks.handler_for(state, is_start=state == "first", targets=[following, "undone"])
    async def handler(
        job_id: str, key: str, state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        note(job_id, key, state, state_history)
        actions.dispatch_task(
            "work",
            {"key": key, "name": state},
            {"success": following, "failure": "undone"},
            retry=TASK_RETRY,
            result_timeout_seconds=RESULT_TIMEOUT_SECONDS,
            heartbeat_timeout_seconds=None if state == "first" else 3.0,
        )


_add_task("first", "second")
_add_task("second", "end")
_add_ends(tasks)

# --- a task that nobody does

orphans = a_blueprint("orphans")


@orphans.handler_for("start", is_start=True)
async def start_orphan(
    job_id: str, key: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history)
    actions.dispatch_task(
        "nobody_does_this", {}, {"timeout": "undone"}, dispatch_timeout_seconds=2.0
    )


orphans.handler_for("undone", is_end=True, outcome="failure")(_undone)

# --- a fan-out

fans = a_blueprint("fans")


@fans.handler_for("start", is_start=True)
async def start_fan(
    job_id: str, key: str, branches: int, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history)
    task = {"type": "work", "retry": TASK_RETRY, "result_timeout_seconds": RESULT_TIMEOUT_SECONDS}
    actions.dispatch_parallel(
        [{**task, "params": {"key": key, "name": str(number)}} for number in range(branches)],
        aggregate_into="join",
    )


@fans.aggregator_for("join")
async def join(
    job_id: str,
    key: str,
    aggregation_results: dict[str, Any],
    state_history: dict[str, Any],
    actions: ActionFactory,
) -> None:
    note(job_id, key, "join", state_history)
    state_history["joined"] = {
        task_id: {"status": result["status"], "data": result["data"]}
        for task_id, result in aggregation_results.items()
    }
    actions.transition_to("end")


fans.handler_for("end", is_end=True)(_end)

# --- a parent, and the sub-job it waits for

parents = a_blueprint("parents")
children = StateMachineBlueprint("children")


@parents.handler_for("start", is_start=True)
async def start_parent(
    job_id: str, key: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history)
    actions.run_blueprint(
        "children",
        {"key": f"{key}/child", "parent": job_id},
        {"success": "end", "failure": "undone", "cancelled": "undone"},
    )


_add_ends(parents)


@children.handler_for("start", is_start=True)
async def start_child(
    job_id: str, key: str, parent: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history, parent=parent)
    actions.sleep(random.random(), next_state="work")


@children.handler_for("work")
async def child_work(
    job_id: str, key: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "work", state_history)
    actions.dispatch_task(
        "work",
        {"key": key, "name": "work"},
        {"success": "end", "failure": "undone"},
        retry=TASK_RETRY,
        result_timeout_seconds=RESULT_TIMEOUT_SECONDS,
    )


_add_ends(children)

# --- a person decides

approvals = a_blueprint("approvals")


@approvals.handler_for("ask", is_start=True)
async def ask(
    job_id: str,
    key: str,
    patience: float,
    state_history: dict[str, Any],
    actions: ActionFactory,
) -> None:
    note(job_id, key, "ask", state_history)
    actions.await_human_approval(
        "chaos",
        "May it go on?",
        {"approved": "end", "rejected": "undone", "timeout": "late"},
        timeout_seconds=patience,
    )


_add_ends(approvals)


@approvals.handler_for("late", is_end=True, outcome="failure")
async def late_approval(job_id: str, key: str, state_history: dict[str, Any]) -> None:
    note(job_id, key, "late", state_history)


# --- sleeps, again and again

naps = a_blueprint("naps")


@naps.handler_for("nap", is_start=True)
async def nap(
    job_id: str,
    key: str,
    seconds: float,
    state_history: dict[str, Any],
    actions: ActionFactory,
) -> None:
    note(job_id, key, "nap", state_history)
    until = time.time() + seconds  # noqa: TID251 - handlers of users do so
    state_history["wakes_at"] = until
    actions.sleep(until=until, next_state="woke")


@naps.handler_for("woke", targets=["nap", "end"])
async def woke(
    job_id: str,
    key: str,
    times: int,
    wakes_at: float,
    state_history: dict[str, Any],
    actions: ActionFactory,
) -> None:
    note(job_id, key, "woke", state_history)
    now = time.time()  # noqa: TID251 - handlers of users do so
    state_history.setdefault("late_by", []).append(now - wakes_at)
    actions.transition_to("nap" if len(state_history["late_by"]) < times else "end")


naps.handler_for("end", is_end=True)(_end)

# --- signals: some come before they are waited for

signals = a_blueprint("signals")


@signals.handler_for("start", is_start=True)
async def start_signals(
    job_id: str, key: str, seconds: float, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history)
    actions.sleep(seconds, next_state="wait")


@signals.handler_for("wait")
async def wait(
    job_id: str, key: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "wait", state_history)
    actions.wait_for_signal("go", {"received": "took", "timeout": "undone"}, timeout_seconds=300)


@signals.handler_for("took", targets=["wait", "end"])
async def took(
    job_id: str,
    key: str,
    count: int,
    number: int,
    state_history: dict[str, Any],
    actions: ActionFactory,
) -> None:
    note(job_id, key, "took", state_history)
    state_history.setdefault("taken", []).append(number)
    actions.transition_to("wait" if len(state_history["taken"]) < count else "end")


_add_ends(signals)

# --- what never ends by itself: in each way of waiting

endless = a_blueprint("endless")


@endless.handler_for("start", is_start=True, targets=["over"])
async def start_endless(
    job_id: str, key: str, way: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history)
    match way:
        case "sleep":
            actions.sleep(36_000, next_state="over")
        case "signal":
            actions.wait_for_signal("never", {"received": "over"})
        case "approval":
            actions.await_human_approval("chaos", "?", {"approved": "over"})
        case "task":
            actions.dispatch_task("nobody_does_this", {}, {"success": "over"})
        case "fan":
            actions.dispatch_parallel([{"type": "nobody_does_this"}] * 5, aggregate_into="over")
        case "child":
            actions.run_blueprint(
                "endless",
                {"key": f"{key}/child", "parent": job_id, "way": "sleep"},
                {"success": "over", "failure": "over"},
            )
        case _:
            await asyncio.sleep(36_000)
            actions.transition_to("over")


@endless.handler_for("over", is_end=True)
async def over(job_id: str, key: str, state_history: dict[str, Any]) -> None:
    note(job_id, key, "over", state_history)


# --- what a schedule makes

ticks = a_blueprint("ticks")


@ticks.handler_for("start", is_start=True)
async def start_tick(
    job_id: str, key: str, state_history: dict[str, Any], actions: ActionFactory
) -> None:
    note(job_id, key, "start", state_history)
    actions.transition_to("end")


ticks.handler_for("end", is_end=True)(_end)
