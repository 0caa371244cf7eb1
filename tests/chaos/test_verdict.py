"""The proof is worth something only if it finds what is wrong: each violation is planted once."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.evidence import ConsumerSeen, Evidence, JobSeen, KeySeen
from tests.chaos.kinds import EDGES, ENDS
from tests.chaos.load import Act, Entry
from tests.chaos.owned import RULES, rule_of
from tests.chaos.verdict import verdict
from tests.chaos.webhooks import Webhook

JOB, TASK, OTHER_TASK = "11111111-0000-4000-8000-000000000001", "t1", "t2"
TICK = "33333333-0000-8000-8000-000000000003"
P, W = "avtomatika:{p00}:", "avtomatika:{w00}:"
RETENTION_SECONDS = 600.0


def a_row(event_type: str, state: str, **fields: Any) -> dict[str, Any]:
    return {
        "event_id": f"{event_type}-{state}-{fields.get('n', '')}",
        "event_type": event_type,
        "state": state,
        "attempt_number": fields.get("attempt"),
        "context_snapshot": fields.get("snapshot", {}),
    }


def a_step(state: str, ended: str = "state_finished") -> list[dict[str, Any]]:
    return [a_row("state_started", state), a_row(ended, state)]


def a_task_row(task: str, state: str, attempt: int = 1, n: int = 0) -> dict[str, Any]:
    snapshot = {"result": {"task_id": task}}
    return a_row("task_finished", state, attempt=attempt, snapshot=snapshot, n=f"{task}{n}")


def handled(job: str, key: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"what": "handler", "job": job, "key": key, "state": state, "nonce": state, **fields}


def a_task_mark(task: str, worker: str = "w1", **fields: Any) -> dict[str, Any]:
    return {"what": "task", "job": JOB, "task": task, "key": "k", "worker": worker, **fields}


def brought(task: str, nonce: str) -> dict[str, Any]:
    return {"what": "brought", "task": task, "worker": "w1", "nonce": nonce}


def answered(task: str, worker: str, **fields: Any) -> dict[str, Any]:
    said = {"status": 200, "answer": {"status": "ok"}, **fields}
    return {"what": "answered", "job": JOB, "task": task, "worker": worker, **said}


def told(what: str, status: int, about: str = "", answer: Any = None) -> Act:
    return Act(what, about, [status], answer)


def finished(blueprint: str, data: dict[str, Any], states: list[str]) -> dict[str, Any]:
    return {
        "status": "finished",
        "current_state": states[-1],
        "blueprint_name": blueprint,
        "error_message": None,
        "state_history": {"steps": [[state, state] for state in states], **data},
    }


def a_job(blueprint: str, data: dict[str, Any], states: list[str], **initial_data: Any) -> JobSeen:
    """A job that a client made and that ended well."""
    entry = Entry("k", blueprint, {"key": "k", **initial_data}, job_id=JOB)
    entry.acts = [told("create", 202, answer={"job_id": JOB})]
    rows = [a_row("job_created", states[0])]
    for state in states:
        rows += a_step(state)
    rows.append(a_row("job_completed", states[-1], snapshot={"status": "finished"}))
    webhook = Webhook(JOB, "job_finished", "e1", "finished")
    return JobSeen(
        JOB,
        blueprint,
        entry,
        document=finished(blueprint, data, states),
        history=rows,
        webhooks=[webhook, webhook],
    )


def a_world(job: JobSeen) -> Evidence:
    """Evidence of that job, of a tick of the schedule, and of a Redis as it should be left."""
    marks = [handled(JOB, "k", state) for state in dict.fromkeys(job.steps)]
    tick = JobSeen(TICK, "ticks", document=finished("ticks", {}, ["start", "end"]))
    tick.document = finished("ticks", {"steps": [["start", "ts"], ["end", "te"]]}, ["end"])
    tick.history = [
        a_row("job_created", "start"),
        *a_step("start"),
        *a_step("end"),
        a_row("job_completed", "end", snapshot={"status": "finished"}),
    ]
    marks += [
        handled(TICK, "tick", "start", nonce="ts") | {"nonce": "ts"},
        handled(TICK, "tick", "end") | {"nonce": "te"},
    ]
    return Evidence(
        jobs=[job, tick],
        marks=marks,
        keys=[KeySeen(f"{P}j:{JOB}", 1000, 8), KeySeen(f"{P}in:default", -1, 0)],
        consumers=[ConsumerSeen("in:default", "executor-1", 0, is_alive=True)],
        counts={"finished": 2, "pending": 0},
        retention_seconds=RETENTION_SECONDS,
        scheduled=[TICK],
    )


def a_chain() -> Evidence:
    return a_world(a_job("chain", {}, ["s0", "s1", "s2", "s3", "s4", "end"]))


def two_tasks() -> Evidence:
    result = {"task": TASK, "worker": "w1", "nonce": "n1"}
    second = {"task": OTHER_TASK, "worker": "w1", "nonce": "n2"}
    job = a_job(
        "tasks",
        {"result_first": result, "result_second": second},
        ["first", "second", "end"],
    )
    job.closed = {TASK: "result|w1", OTHER_TASK: "result|w1"}
    job.history = [
        a_row("job_created", "first"),
        *a_step("first", "task_dispatched"),
        a_task_row(TASK, "first"),
        *a_step("second", "task_dispatched"),
        a_task_row(OTHER_TASK, "second"),
        *a_step("end"),
        a_row("job_completed", "end", snapshot={"status": "finished"}),
    ]
    world = a_world(job)
    world.marks += [
        a_task_mark(TASK, attempt=1),
        a_task_mark(OTHER_TASK),
        brought(TASK, "n1"),
        brought(OTHER_TASK, "n2"),
        answered(TASK, "w1"),
        answered(TASK, "w1"),
        answered(TASK, "w2", answer={"status": "ignored", "reason": "worker_mismatch"}),
    ]
    return world


def a_fan_out() -> Evidence:
    data = {"result_0": {"task": TASK, "worker": "w1", "nonce": "n1"}}
    job = a_job(
        "fans",
        {
            "joined": {
                TASK: {"status": "success", "data": data},
                OTHER_TASK: {"status": "failure", "data": {}},
            }
        },
        ["start", "join", "end"],
        branches=2,
    )
    job.closed = {TASK: "result|w1", OTHER_TASK: "deadline|"}
    job.history[2:3] = [
        a_row("task_dispatched", "start", n=1),
        a_row("task_dispatched", "start", n=2),
        a_task_row(TASK, "start"),
        a_task_row(OTHER_TASK, "start"),
    ]
    world = a_world(job)
    world.marks += [a_task_mark(TASK), brought(TASK, "n1")]
    return world


def an_approval() -> Evidence:
    job = a_job("approvals", {}, ["ask", "end"], patience=300.0)
    assert job.entry is not None
    job.entry.acts += [told("decide", 200, "approved"), told("decide", 409, "rejected")]
    return a_world(job)


def two_signals() -> Evidence:
    states = ["start", "wait", "took", "wait", "took", "end"]
    job = a_job("signals", {"taken": [1, 0]}, states, count=2)
    steps = [[state, f"{state}{number}"] for number, state in enumerate(states)]
    assert job.document is not None
    job.document["state_history"]["steps"] = steps
    for number, row in enumerate(job.history):
        row["event_id"] = str(number)
    world = a_world(job)
    world.marks += [handled(JOB, "k", state) | {"nonce": nonce} for state, nonce in steps]
    return world


def a_parent() -> Evidence:
    job = a_job("parents", {"sub_job_c_result": {"outcome": "success"}}, ["start", "end"])
    job.history[2] = a_row("sub_blueprint_started", "start")
    child = JobSeen("c", "children", document=finished("children", {}, ["start", "work", "end"]))
    assert child.document is not None
    states = ["start", "work", "end"]
    child.document["state_history"]["steps"] = [[state, f"c{state}"] for state in states]
    child.history = [
        a_row("job_created", "start"),
        *a_step("start"),
        *a_step("work", "task_dispatched"),
        *a_step("end"),
        a_row("job_completed", "end", snapshot={"status": "finished"}),
    ]
    world = a_world(job)
    world.jobs.append(child)
    world.marks += [
        handled("c", "k/child", "start", parent=JOB) | {"nonce": "cstart"},
        handled("c", "k/child", "work") | {"nonce": "cwork"},
        handled("c", "k/child", "end") | {"nonce": "cend"},
    ]
    return world


def a_nap() -> Evidence:
    return a_world(a_job("naps", {"late_by": [0.004]}, ["nap", "woke", "end"]))


WORLDS = (a_chain, two_tasks, a_fan_out, an_approval, two_signals, a_parent, a_nap)

Plant = Callable[[Evidence], object]


def the_job(world: Evidence) -> JobSeen:
    return world.jobs[0]


def acts(world: Evidence) -> list[Act]:
    entry = the_job(world).entry
    assert entry is not None
    return entry.acts


def document(world: Evidence) -> dict[str, Any]:
    found = the_job(world).document
    assert found is not None
    return found


def set_document(**fields: Any) -> Plant:
    return lambda world: document(world).update(fields)


def set_data(**fields: Any) -> Plant:
    return lambda world: document(world)["state_history"].update(fields)


def set_act(number: int, act: Act) -> Plant:
    return lambda world: acts(world).__setitem__(number, act)


def add_mark(mark: dict[str, Any]) -> Plant:
    return lambda world: world.marks.append(mark)


def add_key(name: str, ttl_ms: int = -1, size: int = 1) -> Plant:
    return lambda world: world.keys.append(KeySeen(name, ttl_ms, size))


def change_history(change: Callable[[list[dict[str, Any]]], object]) -> Plant:
    return lambda world: change(the_job(world).history)


PLANTED: list[tuple[str, Callable[[], Evidence], Plant]] = [
    # jobs
    ("lost", a_chain, lambda world: setattr(the_job(world), "document", None)),
    ("not ended", a_chain, set_document(status="running")),
    ("wrong end", a_chain, set_document(status="quarantined")),
    ("wrong end", a_chain, set_document(status="cancelled")),
    ("wrong end", a_chain, set_document(status="failed", error_message="Job timed out after 3 seconds.")),
    ("wrong end", an_approval, set_document(status="failed")),
    ("cancel", a_chain, lambda world: acts(world).append(told("cancel", 200))),
    ("refused", a_chain, set_act(0, told("create", 404))),
    ("refused", a_chain, lambda world: acts(world).append(told("cancel", 404))),
    ("answered 500", a_chain, set_act(0, Act("create", "", [500, 202], {"job_id": JOB}))),
    ("one job per key", a_chain, lambda world: acts(world).append(told("create", 202, answer={"job_id": "x"}))),
    ("one job per key", a_chain, add_mark(handled("x", "k", "s0") | {"nonce": "x"})),
    # handlers
    ("step twice", a_chain, lambda world: document(world)["state_history"]["steps"].append(["end", "end"])),
    ("step of nobody", a_chain, lambda world: world.marks.__delitem__(0)),
    ("illegal path", a_chain, lambda world: document(world)["state_history"]["steps"].__delitem__(2)),
    ("illegal path", a_chain, lambda world: document(world)["state_history"]["steps"].pop()),
    ("one child", a_parent, add_mark(handled("d", "k/child", "start", parent=JOB) | {"nonce": "d"})),
    ("one child", a_parent, set_data(sub_job_d_result={})),
    ("signals", two_signals, set_data(taken=[1, 1])),
    ("signals", two_signals, set_data(taken=[1])),
    ("signal refused", two_signals, lambda world: acts(world).append(told("signal", 404))),
    ("one decision", an_approval, set_act(2, told("decide", 200, "rejected"))),
    ("one decision", an_approval, set_act(1, told("decide", 409, "approved"))),
    ("one decision", an_approval, set_document(status="failed", current_state="undone")),
    ("early", a_nap, set_data(late_by=[-0.5])),
    # workers
    ("result of nobody", two_tasks, lambda world: world.marks.remove(brought(TASK, "n1"))),
    ("result of nobody", two_tasks, lambda world: the_job(world).closed.update({TASK: "deadline|"})),
    ("result twice", two_tasks, change_history(lambda rows: rows.insert(4, a_task_row(TASK, "first", n=2)))),
    ("result lost", two_tasks, change_history(lambda rows: rows.remove(a_task_row(TASK, "first")))),
    ("result lost", two_tasks, lambda world: the_job(world).closed.update({TASK: "result|w3"})),
    ("two holders", two_tasks, add_mark(answered(TASK, "w2"))),
    ("worker refused", two_tasks, add_mark(answered(TASK, "w1", status=500, answer=None))),
    ("attempt of nobody", two_tasks, add_mark(a_task_mark("invented"))),
    ("attempt", two_tasks, add_mark(a_task_mark(TASK, attempt=2))),
    ("fan-out", a_fan_out, lambda world: document(world)["state_history"]["joined"].pop(OTHER_TASK)),
    # history
    ("history", a_chain, change_history(lambda rows: rows.pop())),
    ("history", a_chain, change_history(lambda rows: rows.insert(1, rows[-1] | {"event_id": "x"}))),
    ("history", a_chain, change_history(lambda rows: rows.insert(1, rows[1]))),
    ("history", a_chain, change_history(lambda rows: rows.__setitem__(slice(3, 5), []))),
    ("history", a_chain, change_history(lambda rows: rows.insert(5, rows[1] | {"event_id": "x"}))),
    ("history", a_chain, change_history(lambda rows: rows[-1].update(context_snapshot={"status": "failed"}))),
    # webhooks
    ("one webhook", a_chain, lambda world: the_job(world).webhooks.clear()),
    ("one webhook", a_chain, lambda world: the_job(world).webhooks.append(Webhook(JOB, "job_finished", "e2", "finished"))),
    ("one webhook", a_chain, lambda world: the_job(world).webhooks.append(Webhook(JOB, "job_failed", "e1", "failed"))),
    # schedules
    ("schedule", a_chain, lambda world: world.scheduled.append("never-made")),
    ("schedule", a_chain, lambda world: world.scheduled.clear()),
    # Redis
    ("key", a_chain, add_key(f"{P}j:{JOB}:done")),
    ("key", a_chain, add_key(f"{P}j:{JOB}:done", ttl_ms=int(RETENTION_SECONDS * 1000) + 1)),
    ("key", a_chain, add_key(f"{P}in:default", size=3)),
    ("key", a_chain, add_key(f"{P}t:{TASK}")),
    ("key", a_chain, add_key(f"{P}live")),
    ("key", a_chain, add_key(f"{P}tm")),
    ("key", a_chain, add_key(f"{P}held:w1")),
    ("key", a_chain, add_key(f"{W}hold:w1")),
    ("key", a_chain, add_key(f"{W}cred:w1")),
    ("key", a_chain, add_key(f"{P}dead", size=0)),
    ("key", a_chain, add_key("somebody_elses")),
    ("pending", a_chain, lambda world: world.consumers.append(ConsumerSeen("facts", "h", 1, is_alive=True))),
    ("consumer of nobody", a_chain, lambda world: world.consumers.append(ConsumerSeen("facts", "h", 0, is_alive=False))),
    ("count", a_chain, lambda world: world.counts.update(running=1)),
    # what the suite itself noticed
    ("mended", a_chain, lambda world: world.mended.append("inconsistency mended")),
    ("dead event", a_chain, lambda world: world.dead_events.append({"job_id": JOB})),
    ("process", a_chain, lambda world: world.complaints.append("exited with 1")),
]  # fmt: skip


@pytest.mark.parametrize("make", WORLDS)
def test_a_world_where_all_went_well_has_no_violation(make: Callable[[], Evidence]) -> None:
    assert verdict(make()) == []


@pytest.mark.parametrize(
    ("rule", "make", "plant"), PLANTED, ids=[f"{n}-{rule}" for n, (rule, *_) in enumerate(PLANTED)]
)
def test_a_planted_violation_is_found(
    rule: str, make: Callable[[], Evidence], plant: Plant
) -> None:
    world = copy.deepcopy(make())

    plant(world)

    assert rule in {violation.rule for violation in verdict(world)}


def test_a_handler_that_raised_as_often_as_it_may_ends_in_quarantine() -> None:
    world = a_chain()
    job = the_job(world)
    document(world).update(status="quarantined", current_state="s1")
    document(world)["state_history"]["steps"] = [["s0", "s0"]]
    job.history = [
        a_row("job_created", "s0"),
        *a_step("s0"),
        *a_step("s1", "state_failed"),
        a_row("job_completed", "s1", snapshot={"status": "quarantined"}),
    ]
    job.webhooks = [Webhook(JOB, "job_quarantined", "e1", "quarantined")]
    world.marks += [{"what": "raised", "job": JOB, "key": "k", "state": "s1"}] * 4

    assert verdict(world) == []


def test_a_decision_whose_answer_was_lost_may_count() -> None:
    world = an_approval()
    acts(world)[1].statuses = [0, 409]

    assert verdict(world) == []


def test_every_blueprint_has_an_end_it_may_have() -> None:
    assert set(EDGES) == set(ENDS)
    for blueprint, ends in ENDS.items():
        assert {state for _, state in ends} <= set(EDGES[blueprint])


def test_every_key_that_may_stay_has_an_owner_or_a_time_to_live() -> None:
    assert all(rule.owner or rule.most_ms is not None for rule in RULES)
    assert rule_of(f"{P}j:{JOB}") is not None
    assert rule_of(f"{P}t:{TASK}") is None
