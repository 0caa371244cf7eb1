"""The small worlds that are explored: which jobs, who acts on them, and how much may go wrong."""

from collections.abc import Callable
from typing import Any, Final

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    Created,
    IdempotencyKey,
    JobIsTerminal,
    StoreUnavailable,
)
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_core.events import CancelRequested, SignalReceived
from avtomatika_core.job import TERMINAL, ApprovalWait, JobId, JobStatus, Origin, new_job
from avtomatika_core.retry_policy import RetryPolicy
from avtomatika_executor import Settings
from tests.model.activities import Call, ask
from tests.model.explorer import Violation
from tests.model.world import GROUP, Client, Scenario, World

_FINISHED: Final = (JobStatus.FINISHED,)


def _blueprint(name: str, **actions: Callable[[JobContext], None]) -> StateMachineBlueprint:
    """State -> what its handler does after it has left its trace. The first is where a job starts."""
    blueprint = StateMachineBlueprint(name, retry=RetryPolicy(attempts=2, delay_seconds=0))
    states = [*actions, "end"]

    def add(state: str, act: Callable[[JobContext], None] | None) -> None:
        async def handler(context: JobContext) -> None:
            context.state_history.setdefault("trace", []).append(state)
            if act is not None:
                act(context)

        is_start, is_end = state == states[0], act is None
        targets = [] if is_end else states
        blueprint.handler_for(state, is_start=is_start, is_end=is_end, targets=targets)(handler)

    for state in states:
        add(state, actions.get(state))
    blueprint.validate()
    return blueprint


def _go(state: str) -> Callable[[JobContext], None]:
    return lambda context: context.actions.transition_to(state)


def _task(context: JobContext) -> None:
    context.actions.dispatch_task(
        "t", {}, {"success": "after"}, dispatch_timeout_seconds=60, result_timeout_seconds=12
    )


def _approval(context: JobContext) -> None:
    context.actions.await_human_approval(
        "mail", "?", {"yes": "after", "timeout": "late"}, timeout_seconds=5
    )


def _signal(context: JobContext) -> None:
    context.actions.wait_for_signal(
        "paid", {"received": "after", "timeout": "late"}, timeout_seconds=5
    )


def _sleep(context: JobContext) -> None:
    context.actions.sleep(5, next_state="after")


def _child(context: JobContext) -> None:
    context.actions.run_blueprint("child", {}, {"success": "after", "cancelled": "after"})


# --- clients


def _creates(blueprint: StateMachineBlueprint, *, times: int, **origin: Any) -> Client:
    """Asks so many times with one key, and again where it hears nothing."""
    key = IdempotencyKey(client="c", key="k", fingerprint="f")
    start_state = blueprint.start_state or ""

    async def work(world: World) -> None:
        async def create() -> JobId:
            made = Origin(
                blueprint=blueprint.name,
                group=GROUP,
                start_state=start_state,
                created_at=world.clock.now(),
                **origin,
            )
            job = new_job(JobId(ids.new_id()), made)

            async def perform() -> Created:
                created = await world.store.jobs.create(job, idempotency=key)
                world.note(jobs=tuple(dict.fromkeys((*world.around.jobs, created.job_id))))
                return created

            return (await ask(Call("jobs.create", perform))).job_id

        if len({await _until_answered(create) for _ in range(times)}) > 1:
            raise Violation("a key that is used again makes a second job")

    return Client(work)


async def _until_answered(request: Callable[[], Any]) -> Any:
    while True:
        try:
            return await request()
        except StoreUnavailable:
            continue


def _has_job(world: World) -> bool:
    return bool(world.around.jobs)


def _cancels() -> Client:
    async def work(world: World) -> None:
        event = CancelRequested(at=0.0, reason="no longer wanted")
        [job_id] = world.around.jobs
        try:
            await _until_answered(lambda: world.backend.jobs.request_cancel(job_id, event))
        except JobIsTerminal:
            return

    return Client(work, _has_job)


def _approves() -> Client:
    def is_ready(world: World) -> bool:
        records = list(world.tables.jobs.values())
        return bool(records) and (records[0].wait is not None or records[0].status in TERMINAL)

    async def work(world: World) -> None:
        [job_id] = world.around.jobs
        stored = await world.backend.jobs.load(job_id)
        assert stored is not None
        wait = stored.job.head.wait
        if not isinstance(wait, ApprovalWait):
            return
        answers: list[bool] = []
        for _ in range(2):
            try:
                await world.backend.jobs.decide_approval(
                    job_id, token=wait.token, decision="yes", at=world.clock.now()
                )
                answers.append(True)
            except ApprovalNotOpen:
                answers.append(False)
        if answers[1]:
            raise Violation("one approval is decided twice")

    return Client(work, is_ready)


def _signals() -> Client:
    key = IdempotencyKey(client="c", key="s", fingerprint="f")

    async def work(world: World) -> None:
        [job_id] = world.around.jobs
        signal = SignalReceived(at=0.0, name="paid", data={})

        async def send() -> bool:
            try:
                await world.backend.jobs.send_signal(job_id, signal, idempotency=key)
            except JobIsTerminal:
                return False
            return True

        if await _until_answered(send) and not await _until_answered(send):
            raise Violation("the repeated signal is not answered as the first")

    return Client(work, _has_job)


# --- scenarios


def _scenario(blueprint: StateMachineBlueprint, **changes: Any) -> Scenario:
    """One job of it, created with a key."""
    times = 2 if blueprint is _CHAIN else 1
    clients = {"client": _creates(blueprint, times=times), **changes.pop("clients", {})}
    settings: dict[str, Any] = {"ends": _FINISHED, "blueprints": [blueprint], **changes}
    return Scenario(clients=clients, **settings)


_ANY_END: Final = (JobStatus.FINISHED, JobStatus.FAILED)
_CANCELLED_TOO: Final = (*_ANY_END, JobStatus.CANCELLED)

_CHAIN = _blueprint("chain", start=_go("middle"), middle=_go("end"))
_TASK = _blueprint("task", start=_task, after=_go("end"))
_APPROVAL = _blueprint("approval", start=_approval, after=_go("end"), late=_go("end"))
_SIGNAL = _blueprint("signal", start=_signal, after=_go("end"), late=_go("end"))
_SLEEP = _blueprint("sleep", start=_sleep, after=_go("end"))
_CHILD = _blueprint("child", start=_go("end"))
_PARENT = _blueprint("parent", start=_child, after=_go("end"))

_chain = _scenario(_CHAIN, executors=2)
_fair_chain = _chain._replace(settings=Settings(steps_per_claim=1))
"""Each job is queued anew after each step."""
_cancelled_chain = _scenario(
    _CHAIN, executors=2, clients={"canceller": _cancels()}, ends=_CANCELLED_TOO
)
_one_sleep = _scenario(_SLEEP, executors=2)
_one_approval = _scenario(_APPROVAL, clients={"approver": _approves()})
_one_signal = _scenario(_SIGNAL, clients={"payer": _signals()})
_parent = _scenario(_PARENT, executors=2, blueprints=[_PARENT, _CHILD])
_one_task = _scenario(_TASK, workers=1, ends=_ANY_END)
_two_workers = _scenario(_TASK, workers=2, ends=_ANY_END)
_cancelled_task = _scenario(
    _TASK, workers=1, clients={"canceller": _cancels()}, ends=_CANCELLED_TOO
)


def _with(scenario: Scenario, faults: int, hurries: int = 0) -> Scenario:
    return scenario._replace(faults=faults, hurries=hurries)


SMALL: Final = {
    "chain": _with(_chain, 1),
    "fair chain": _with(_fair_chain, 0),
    "cancelled chain": _with(_cancelled_chain, 0),
    "sleep": _with(_one_sleep, 1),
    "approval": _with(_one_approval, 1, 1),
    "signal": _with(_one_signal, 0, 1),
    "child": _with(_parent, 1),
    "task": _with(_one_task, 1),
    "late task": _with(_one_task, 0, 1),
    "two workers": _with(_two_workers, 0),
    "cancelled task": _with(_cancelled_task, 0),
}
"""Seconds, all together."""
LARGE: Final = {
    "chain": _with(_chain, 3),
    "fair chain": _with(_fair_chain, 2),
    "cancelled chain": _with(_cancelled_chain, 2),
    "sleep": _with(_one_sleep, 2, 1),
    "approval": _with(_one_approval, 2, 2),
    "signal": _with(_one_signal, 2, 1),
    "signal, two executors": _with(_one_signal, 0, 1)._replace(executors=2),
    "child": _with(_parent, 2),
    "task": _with(_one_task, 1, 1),
    "two workers": _with(_two_workers, 1),
    "two workers, late": _with(_two_workers, 0, 1),
    "cancelled task": _with(_cancelled_task, 1),
    "cancelled task, late": _with(_cancelled_task, 0, 1),
}
"""Minutes."""
