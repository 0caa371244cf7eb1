"""Events of a fan-out's branches: settled beside the job, which is not loaded for them."""

from collections.abc import Awaitable, Callable

from avtomatika_common.backend.ports import Delivery, Inbox, JobStore
from avtomatika_common.records import pack_branch_fact
from avtomatika_core.branches import branch_fact, offer_again, settle
from avtomatika_core.events import (
    InboxEvent,
    TaskCancelled,
    TaskFailed,
    TaskSucceeded,
    TaskTimedOut,
    TimerFired,
)
from avtomatika_core.job import TaskId
from avtomatika_core.outcomes import Rules

RulesFor = Callable[[Delivery, str], Awaitable[Rules | None]]
"""Rules of the blueprint of that name; None: the entry was handed on to whoever hosts it."""


async def settle_branch_event(
    jobs: JobStore, inbox: Inbox, rules_for: RulesFor, delivery: Delivery, event: InboxEvent
) -> None:
    """Write what the event makes of its branch; an event of no open branch is answered, no more."""
    match event:
        case TaskSucceeded() | TaskFailed() | TaskCancelled() | TaskTimedOut():
            task_id = event.task_id
        case TimerFired():
            task_id = TaskId(event.token)
        case _:
            await inbox.set_aside(delivery, f"{type(event).__name__} is no event of a branch.")
            return
    branch = await jobs.branch(delivery.job_id, task_id)
    found = None if branch is None else await jobs.origin(delivery.job_id)
    if branch is None or found is None:
        await inbox.drop(delivery)
        return
    origin, version = found
    rules = await rules_for(delivery, origin.blueprint)
    if rules is None:
        return
    if isinstance(event, TimerFired):
        outcome = offer_again(
            branch,
            event,
            rules,
            job_id=delivery.job_id,
            origin=origin,
            data_metadata=origin.data_metadata,
        )
        await jobs.settle_branch(delivery, task_id, outcome, token=branch.token)
        return
    ended = settle(branch, event, rules, job_id=delivery.job_id)
    fact = branch_fact(branch, event, delivery.job_id)
    packed = pack_branch_fact(delivery.job_id, origin, version, fact, task_id)
    await jobs.settle_branch(delivery, task_id, ended, token=branch.token, fact=packed)
