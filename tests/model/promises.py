"""What must hold: for each answer of the store, in each state, and where all is over."""

# pyright: reportPrivateUsage=false

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from avtomatika_common import codec
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.memory.tables import JobRecord, Tables
from avtomatika_common.backend.ports import Delivery, LeasedTask, ResultAnswer, Stored
from avtomatika_core.job import TERMINAL, JobId, JobStatus, WorkerId
from tests.model.activities import Answer, Call
from tests.model.canonical import digest
from tests.model.explorer import Violation

Judge = Callable[[Answer], str | None]
"""What is wrong with the answer to a call; None: nothing."""


def judge_of(call: Call, tables: Tables, *, is_cancelled: bool) -> Judge:
    """Asked before the call is carried out. `is_cancelled`: a client was told so of its job."""
    match call:
        case Call("jobs.commit", arguments=(stored, _, delivery)):
            return _judge_of_commit(tables, stored, delivery)
        case Call("board.end_lease", arguments=(job_id, worker_id, event)):
            return _judge_of_result(tables, job_id, worker_id, event)
        case Call("board.lease", arguments=(_, job_id, *_)):
            return _judge_of_lease(tables, job_id, is_cancelled=is_cancelled)
        case _:
            return lambda _: None


def _judge_of_commit(tables: Tables, stored: Stored, delivery: Delivery) -> Judge:
    record = tables.jobs[stored.job.id]
    is_repeat = record.nonce == stored.next_nonce
    is_mine = tables.pending_entry(delivery.entry_id, delivery.consumer) is not None
    is_current = record.fence == stored.fence

    def judge(answer: Answer) -> str | None:
        if is_repeat:
            return "the repeat of a commit is refused" if answer.is_raised else None
        if answer.is_raised:
            return None
        if not is_mine:
            return "who lost the claim has written"
        return None if is_current else "a stale job was written"

    return judge


def _judge_of_result(tables: Tables, job_id: JobId, worker_id: WorkerId, event: Any) -> Judge:
    record, task = tables.jobs.get(job_id), tables.task(job_id, event.task_id)
    closed = None if record is None else record.closed.get(event.task_id)
    holder = None if task is None else task.worker_id

    def judge(answer: Answer) -> str | None:
        counts = answer.value is ResultAnswer.APPLIED
        if closed == ("result", worker_id):
            return None if counts else "a repeated result is answered otherwise"
        return (
            "a result counts that is not the holder's" if counts and holder != worker_id else None
        )

    return judge


def _judge_of_lease(tables: Tables, job_id: JobId, *, is_cancelled: bool) -> Judge:
    record = tables.jobs.get(job_id)
    is_wanted = record is not None and not record.cancelled and not is_cancelled

    def judge(answer: Answer) -> str | None:
        was_leased = isinstance(answer.value, LeasedTask)
        return "a task of a cancelled job is handed out" if was_leased and not is_wanted else None

    return judge


# --- in each state


def ends(tables: Tables) -> dict[JobId, str]:
    """Jobs that have ended -> how."""
    jobs = tables.jobs.items()
    return {job_id: _end(record) for job_id, record in jobs if record.status in TERMINAL}


def _end(record: JobRecord) -> str:
    return digest((record.head, record.data)).hex()


def check(tables: Tables, ended: Mapping[JobId, str]) -> None:
    """`ended`: before what has happened last. Raises Violation."""
    for job_id, record in tables.jobs.items():
        if job_id in ended and ended[job_id] != _end(record):
            raise Violation("a job that has ended was changed")
        _check_claim(tables, job_id, record)
        trace = codec.unpack_data(record.data).state_history.get("trace", [])
        if len(trace) != len(set(trace)):
            raise Violation(f"an outcome was committed twice: {trace}")
    _check_tasks(tables)


def _check_claim(tables: Tables, job_id: JobId, record: JobRecord) -> None:
    if record.status not in (JobStatus.PENDING, JobStatus.RUNNING):
        return
    entry = tables.entries.get(record.claim or "")
    if entry is None or entry.job_id != job_id:
        raise Violation("no entry carries a job that is to run")


def _check_tasks(tables: Tables) -> None:
    """Each open task is in one place, with the one timer that goes with it; no other task has one."""
    here = tables.partitions[0]
    for kind, _, token in here.timetable:
        if kind in ("dispatch", "delivery", "result") and token not in here.tasks:
            raise Violation(f"a task that is closed has a {kind} timer")
    for task_id, task in here.tasks.items():
        is_on_board = task.place in here.board.get(task.shape, [])
        is_held = task.worker_id is not None and task_id in here.held.get(task.worker_id, {})
        timers = [kind for kind, _, token in here.timetable if token == task_id]
        if is_on_board:
            is_well = task.worker_id is None and timers == ["dispatch"]
        else:
            is_well = is_held and timers in (["delivery"], ["result"])
        if not is_well:
            raise Violation(f"a task that {task.worker_id} has has the timers {timers}")


# --- in the end


def check_end(store: MemoryStorage, allowed: Collection[JobStatus]) -> None:
    """All jobs have ended as they may, and nothing of them is left. Raises Violation."""
    tables, here = store._tables, store._tables.partitions[0]
    for record in tables.jobs.values():
        if record.status not in allowed:
            raise Violation(f"a job stays {record.status}")
    places = [
        worker_id
        for worker_id, known in store.workers._registrations.items()
        if any(hold.until == math.inf for hold in known.holds.values())
    ]
    left = {
        "inbox entries": tables.entries,
        "deferred entries": tables.deferred,
        "dead events": tables.dead,
        "timers": list(here.timetable),
        "open tasks": here.tasks,
        "tasks on the board": here.board,
        "leases": here.held,
        "changes of places": here.out,
        "places taken": places,
        "branches": [record for record in tables.jobs.values() if record.open],
    }
    if remains := [name for name, value in left.items() if value]:
        raise Violation(f"after the end there are {', '.join(remains)}")


def check_word(tables: Tables, *, is_cancelled: bool, has_counted: bool) -> None:
    """What clients and workers were told has come true. Raises Violation."""
    for record in tables.jobs.values():
        trace = codec.unpack_data(record.data).state_history.get("trace", [])
        if is_cancelled and record.status is not JobStatus.CANCELLED:
            raise Violation(f"a job that was cancelled is {record.status}")
        if has_counted and not is_cancelled and "after" not in trace:
            raise Violation("what was accepted did not count")
