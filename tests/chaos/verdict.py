"""Whether everything that was promised was kept: each rule is a function of the evidence.

Nothing here asks anybody: what a rule needs to know stands in `Evidence`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, Final

from tests.chaos.evidence import Evidence, JobSeen, Noted
from tests.chaos.kinds import EDGES, ENDS, TERMINAL, start_of
from tests.chaos.owned import ownership_violations
from tests.chaos.violations import Violation

_TIMED_OUT: Final = re.compile(r"Job timed out after .* seconds\.")
_ATTEMPTS_OF_HANDLERS: Final = 4
_EARLIEST_SECONDS: Final = 0.02
"""Clocks of processes follow that of Redis, and may differ by so much."""
_RESULT: Final = "result|"

Found = Iterator[Violation]
JobRule = Callable[[JobSeen, Noted], Found]


def verdict(evidence: Evidence) -> list[Violation]:
    """All violations; none: everything held."""
    noted = Noted(evidence.marks)
    found = [
        violation for job in evidence.jobs for rule in _JOB_RULES for violation in rule(job, noted)
    ]
    found += _answers_of_workers(evidence, noted)
    found += _one_fire_per_slot(evidence, noted)
    found += ownership_violations(evidence)
    found += [Violation("mended", "", line) for line in evidence.mended]
    found += [
        Violation("dead event", event["job_id"], str(event)) for event in evidence.dead_events
    ]
    found += [Violation("process", "", text) for text in evidence.complaints]
    return found


# --- what clients were told


def _accepted(job: JobSeen, noted: Noted) -> Found:
    """What a client was told is so: one job for one key, no answer that cannot be."""
    entry = job.entry
    if entry is None:
        return
    created = entry.acts_of("create")
    if any(act.status != 202 for act in created):
        yield Violation("refused", job.job_id, f"{entry.key}: {created}")
    ids = {act.answer["job_id"] for act in created if act.status == 202}
    made = noted.jobs_of_key[entry.key]
    if len(ids | made) > 1:
        yield Violation("one job per key", job.job_id, f"{entry.key}: told {ids}, made {made}")
    for act in entry.acts:
        if 500 in act.statuses:
            yield Violation("answered 500", job.job_id, f"{act}")
    may_have_ended = "cancel" in {act.what for act in entry.acts}
    for act in entry.acts_of("signal"):
        if act.status != 202 and not (act.status == 409 and may_have_ended):
            yield Violation("signal refused", job.job_id, f"{act}")
    for act in (*entry.acts_of("cancel"), *entry.acts_of("decide")):
        if act.status not in {200, 409}:
            yield Violation("refused", job.job_id, f"{act}")
    for act in entry.acts_of("get"):
        yield Violation("lost", job.job_id, f"{act}")


def _ended_as_it_may(job: JobSeen, noted: Noted) -> Found:
    """One terminal state, and one that this job may have."""
    if job.document is None:
        yield Violation("lost", job.job_id, "the door does not know it")
        return
    if job.status not in TERMINAL:
        yield Violation("not ended", job.job_id, f"is {job.status} in {job.state}")
        return
    if not _may_end_so(job, noted):
        error = job.document["error_message"]
        yield Violation("wrong end", job.job_id, f"{job.status} in {job.state}: {error}")
    cancels = [] if job.entry is None else job.entry.acts_of("cancel")
    if any(act.status == 200 for act in cancels) and not (
        job.status == "cancelled" or _has_timed_out(job) or _is_led_on_by_cancel(job)
    ):
        yield Violation("cancel", job.job_id, f"was cancelled and ended {job.status}")


def _may_end_so(job: JobSeen, noted: Noted) -> bool:
    if job.status == "cancelled":
        return _may_be_cancelled(job)
    if _has_timed_out(job):
        return job.entry is not None and job.entry.timeout_seconds is not None
    if job.status == "quarantined":
        return noted.raised[job.job_id, job.state] >= _ATTEMPTS_OF_HANDLERS
    return (job.status, job.state) in ENDS[job.blueprint]


def _may_be_cancelled(job: JobSeen) -> bool:
    if job.entry is None:  # with its parent
        return job.blueprint != "ticks"
    cancels = job.entry.acts_of("cancel")
    return any(act.status == 200 or not act.is_certain for act in cancels)


def _has_timed_out(job: JobSeen) -> bool:
    error = None if job.document is None else job.document["error_message"]
    return job.status == "failed" and _TIMED_OUT.fullmatch(error or "") is not None


def _is_led_on_by_cancel(job: JobSeen) -> bool:
    """A parent's wait has a transition for it."""
    return job.blueprint == "parents" and job.state == "undone"


def _was_stopped(job: JobSeen) -> bool:
    return job.status == "cancelled" or _has_timed_out(job)


# --- what handlers did


def _steps_count_once(job: JobSeen, noted: Noted) -> Found:
    """What is in the job's data was done by a run of its handler, in a legal order, each once."""
    nonces = [nonce for _, nonce in job.data.get("steps", ())]
    if len(set(nonces)) != len(nonces):
        yield Violation("step twice", job.job_id, f"{job.data['steps']}")
    for state, nonce in job.data.get("steps", ()):
        if noted.nonces.get(nonce) != (job.job_id, state):
            yield Violation("step of nobody", job.job_id, f"{state} {nonce}")
    if problem := _illegal_path(job.blueprint, job.steps):
        yield Violation("illegal path", job.job_id, f"{problem} in {job.steps}")
    ended_in = job.steps[-1] if job.steps else ""
    if job.status in {"finished", "failed"} and not _was_stopped(job) and ended_in != job.state:
        yield Violation("illegal path", job.job_id, f"ended in {job.state} after {job.steps}")


def _illegal_path(blueprint: str, states: list[str]) -> str:
    if states and states[0] != start_of(blueprint):
        return f"begins with {states[0]}"
    for one, next_one in pairwise(states):
        if next_one not in EDGES[blueprint][one]:
            return f"{one} → {next_one}"
    return ""


def _one_child(job: JobSeen, noted: Noted) -> Found:
    children = noted.children_of.get(job.job_id, set())
    if len(children) > 1:
        yield Violation("one child", job.job_id, f"has {children}")
    results = [name for name in job.data if name.startswith("sub_job_")]
    was_cancelled = job.entry is not None and bool(job.entry.acts_of("cancel"))
    least = 0 if was_cancelled else 1
    if job.blueprint == "parents" and len(job.steps) > 1 and not least <= len(results) <= 1:
        yield Violation("one child", job.job_id, f"went on with {results}")


def _signals_count_once(job: JobSeen, noted: Noted) -> Found:
    if job.blueprint != "signals" or job.status != "finished" or job.entry is None:
        return
    taken = sorted(job.data["taken"])
    if taken != list(range(job.entry.initial_data["count"])):
        yield Violation("signals", job.job_id, f"took {job.data['taken']}")


def _one_decision(job: JobSeen, noted: Noted) -> Found:
    if job.blueprint != "approvals" or job.entry is None:
        return
    acts = job.entry.acts_of("decide")
    told = {act.about for act in acts if act.status == 200}
    if len(told) > 1:
        yield Violation("one decision", job.job_id, f"both were told: {acts}")
    counted = {"end": "approved", "undone": "rejected"}.get(job.state)
    if counted is None:
        if told and not _was_stopped(job):
            yield Violation("one decision", job.job_id, f"told {told}, ended in {job.state}")
        return
    if told and told != {counted}:
        yield Violation("one decision", job.job_id, f"told {told}, went to {job.state}")
    if counted not in told and all(act.is_certain for act in acts if act.about == counted):
        yield Violation("one decision", job.job_id, f"{counted} counts, told was {acts}")


def _never_early(job: JobSeen, noted: Noted) -> Found:
    early = [late for late in job.data.get("late_by", ()) if late < -_EARLIEST_SECONDS]
    if early:
        yield Violation("early", job.job_id, f"woke {early} s before its time")


# --- what workers did


def _results_count_once(job: JobSeen, noted: Noted) -> Found:
    """Each result in the job's data was brought by the one worker whose result closed the task."""
    for name, result in _results_in(job):
        told = noted.brought.get(result["nonce"])
        if told is None or told["task"] != result["task"]:
            yield Violation("result of nobody", job.job_id, f"{name}: {result}")
        why = job.closed.get(result["task"], "")
        if not why.startswith(_RESULT):
            yield Violation("result of nobody", job.job_id, f"{name}: {result} closed by {why!r}")
    rows = Counter(
        _task_of(row)
        for row in job.history
        if row["event_type"] in {"task_finished", "task_timed_out"}
    )
    for task, count in rows.items():
        if count > 1:
            yield Violation("result twice", job.job_id, f"task {task} ended {count} times")
    counted = {
        task
        for task, why in job.closed.items()
        if why.startswith(_RESULT) and not _was_stopped(job)
    }
    for task in counted - set(rows):
        yield Violation("result lost", job.job_id, f"task {task}: {job.closed[task]}")


def _results_in(job: JobSeen) -> Iterator[tuple[str, dict[str, Any]]]:
    joined: dict[str, Any] = job.data.get("joined", {})
    for data in (job.data, *(result["data"] for result in joined.values())):
        for name, value in (data or {}).items():
            if name.startswith("result_"):
                yield name, value


def _task_of(row: dict[str, Any]) -> str:
    snapshot = row["context_snapshot"] or {}
    task_id: str = snapshot.get("result", {}).get("task_id", "")
    return task_id


def _fan_out_is_whole(job: JobSeen, noted: Noted) -> Found:
    if job.blueprint != "fans" or "joined" not in job.data or job.entry is None:
        return
    joined, wanted = job.data["joined"], job.entry.initial_data["branches"]
    if len(joined) != wanted:
        yield Violation("fan-out", job.job_id, f"{len(joined)} of {wanted} branches were joined")
    names = [name for name, _ in _results_in(job)]
    if len(names) != len(set(names)):
        yield Violation("fan-out", job.job_id, f"a branch was joined twice: {names}")


def _attempts_are_real(job: JobSeen, noted: Noted) -> Found:
    """Every task a worker has seen was an attempt of this job, with the number it was told."""
    numbers = {_task_of(row): row["attempt_number"] for row in job.history if _task_of(row)}
    for mark in noted.tasks_of.get(job.job_id, ()):
        task = mark["task"]
        if task not in job.closed:
            yield Violation("attempt of nobody", job.job_id, f"{mark}")
        if "attempt" in mark and numbers.get(task, mark["attempt"]) != mark["attempt"]:
            yield Violation("attempt", job.job_id, f"{mark} is number {numbers[task]}")


def _answers_of_workers(evidence: Evidence, noted: Noted) -> Found:
    """One worker at most is told that its result counts, and it does."""
    closed = {task: (job, why) for job in evidence.jobs for task, why in job.closed.items()}
    for task, workers in noted.counted_by.items():
        job, why = closed.get(task, (None, ""))
        subject = "" if job is None else job.job_id
        if len(workers) > 1:
            yield Violation("two holders", subject, f"task {task}: {workers} were told ok")
        elif why != f"{_RESULT}{next(iter(workers))}":
            yield Violation("result lost", subject, f"task {task}: {workers} told ok, is {why!r}")
    for mark in noted.answers:
        if mark["status"] != 200:
            yield Violation("worker refused", mark.get("job", ""), f"{mark}")


# --- what was told of it


def _history_is_a_legal_path(job: JobSeen, noted: Noted) -> Found:
    if job.document is None or job.status not in TERMINAL:
        return
    rows = job.history
    kinds = [row["event_type"] for row in rows]
    if not rows or kinds[0] != "job_created" or kinds[-1] != "job_completed":
        yield Violation("history", job.job_id, f"is {kinds}")
        return
    for once in ("job_created", "job_completed"):
        if kinds.count(once) != 1:
            yield Violation("history", job.job_id, f"{kinds.count(once)} times {once}")
    if len({row["event_id"] for row in rows}) != len(rows):
        yield Violation("history", job.job_id, "two rows have one id")
    if rows[-1]["context_snapshot"]["status"] != job.status:
        yield Violation("history", job.job_id, f"ends {rows[-1]['context_snapshot']['status']}")
    if problem := _illegal_path(job.blueprint, _states_of(rows)):
        yield Violation("history", job.job_id, f"illegal path: {problem}")
    if (told := _committed_runs(rows)) != job.steps:
        yield Violation("history", job.job_id, f"tells {told}, the job says {job.steps}")


def _states_of(rows: list[dict[str, Any]]) -> list[str]:
    """The states it went through: a row in another state than the one before has entered it."""
    states: list[str] = []
    before = ""
    for row in rows:
        if row["event_type"] == "state_started" or row["state"] != before:
            again = row["state"] == before and states
            if not again:
                states.append(row["state"])
        before = row["state"]
    return states


def _committed_runs(rows: list[dict[str, Any]]) -> list[str]:
    """States whose handler came back, in order."""
    own = [row for row in rows if row["event_type"] in {"state_started", "state_failed"}]
    failed = {number - 1 for number, row in enumerate(own) if row["event_type"] == "state_failed"}
    return [
        row["state"]
        for number, row in enumerate(own)
        if row["event_type"] == "state_started" and number not in failed
    ]


def _one_terminal_webhook(job: JobSeen, noted: Noted) -> Found:
    if job.entry is None or job.status not in TERMINAL:
        return
    ends = [webhook for webhook in job.webhooks if webhook.event.startswith("job_")]
    ids = {webhook.event_id for webhook in ends}
    if len(ids) != 1:
        yield Violation("one webhook", job.job_id, f"{len(ids)} ids: {ends}")
    for webhook in ends:
        if webhook.status != job.status or webhook.event != f"job_{job.status}":
            yield Violation("one webhook", job.job_id, f"{webhook}, and it is {job.status}")


# --- schedules


def _one_fire_per_slot(evidence: Evidence, noted: Noted) -> Found:
    made, wanted = noted.jobs_of_key.get("tick", set()), set(evidence.scheduled)
    if too_many := made - wanted:
        yield Violation("schedule", "", f"made for no time: {too_many}")
    if missing := wanted - made:
        yield Violation("schedule", "", f"never made: {missing}")


_JOB_RULES: Final[tuple[JobRule, ...]] = (
    _accepted,
    _ended_as_it_may,
    _steps_count_once,
    _one_child,
    _signals_count_once,
    _one_decision,
    _never_early,
    _results_count_once,
    _fan_out_is_whole,
    _attempts_are_real,
    _history_is_a_legal_path,
    _one_terminal_webhook,
)
