"""One fact of a step becomes the rows that tell it, the same ones at every repeat."""

from typing import Any

import orjson
import pytest

from avtomatika_common.history import COLUMNS
from avtomatika_common.records import Fact, pack_branch_fact, pack_fact, unpack_fact
from avtomatika_core.commands import RecordFact
from avtomatika_core.job import Client, Job, JobId, JobStatus, Origin, TaskId, WorkerId, new_job
from avtomatika_history.rows import rows_of

SECRET = "the wait's own"


def a_job() -> Job:
    origin = Origin(
        blueprint="images",
        group="default",
        start_state="start",
        client=Client(name="ada"),
        created_at=100.0,
    )
    return new_job(JobId("j"), origin)


def a_fact(**changes: Any) -> Fact:
    described: dict[str, Any] = {"kind": "step", "at": 110.5, "state": "start", **changes}
    command = RecordFact(**described)
    return unpack_fact(pack_fact(a_job(), command, "3:nonce", 1))


def told(fact: Fact) -> list[dict[str, Any]]:
    """The rows, without what is the same in all of them; of the snapshot what is not the job's."""
    rows: list[dict[str, Any]] = []
    for values in rows_of(fact):
        row: dict[str, Any] = dict(zip(COLUMNS, values, strict=False))
        assert (row.pop("job_id"), row.pop("client_name")) == ("j", "ada")
        row.pop("event_id")
        snapshot = row.pop("context_snapshot")
        row = {key: value for key, value in row.items() if value is not None}
        if snapshot is not None:
            document = orjson.loads(snapshot)
            assert document["status"] == JobStatus.PENDING
            row["added"] = {k: v for k, v in document.items() if k not in fact.snapshot}
        rows.append(row)
    return rows


STARTED = {"timestamp": 110.0, "state": "start", "event_type": "state_started", "attempt_number": 2}


@pytest.mark.parametrize(
    ("followed_by", "event_type", "next_state", "details"),
    [
        ("transition", "state_finished", "work", None),
        ("end", "state_finished", None, None),
        ("failure", "state_finished", None, None),
        ("task", "task_dispatched", None, {"task_info": {"type": "resize"}}),
        ("blueprint", "sub_blueprint_started", "child", {"child_job_id": "c"}),
        ("approval", "approval_requested", None, {"approval": {"decisions": ["yes"]}}),
        ("sleep", "state_finished", "work", None),
        ("signal", "state_finished", None, None),
    ],
)
def test_a_step_tells_that_its_handler_started_and_what_followed(
    followed_by: str, event_type: str, next_state: str | None, details: dict[str, Any] | None
) -> None:
    fact = a_fact(
        started_at=110.0, followed_by=followed_by, next_state=next_state, attempt=2, details=details
    )

    followed = {
        "timestamp": 110.5,
        "state": "start",
        "event_type": event_type,
        "previous_state": "start",
        "duration_ms": 500,
        "added": details or {},
    }
    if next_state is not None:
        followed["next_state"] = next_state
    assert told(fact) == [STARTED, followed]


def test_a_fan_out_tells_of_each_of_its_tasks() -> None:
    tasks = [{"task_id": f"t{number}", "type": "resize"} for number in range(3)]
    fact = a_fact(started_at=110.0, followed_by="parallel", attempt=2, details={"tasks": tasks})

    dispatched = {"timestamp": 110.5, "state": "start", "event_type": "task_dispatched"}
    assert told(fact) == [
        STARTED,
        *({**dispatched, "added": {"task_info": task}} for task in tasks),
    ]


def test_a_handler_that_raised_tells_its_attempt_duration_and_error() -> None:
    fact = a_fact(
        kind="step_failed", started_at=110.0, attempt=2, details={"error_message": "boom"}
    )

    started, failed = told(fact)
    assert started == STARTED
    assert failed == {
        "timestamp": 110.5,
        "state": "start",
        "event_type": "state_failed",
        "attempt_number": 2,
        "duration_ms": 500,
        "added": {},
    }
    snapshot = orjson.loads(str(list(rows_of(fact))[1][COLUMNS.index("context_snapshot")]))
    assert snapshot["error_message"] == "boom"


@pytest.mark.parametrize(
    ("changes", "told_of_it"),
    [
        ({"kind": "job_created"}, {}),
        ({"kind": "job_completed", "started_at": 100.5}, {"duration_ms": 10_000}),
        ({"kind": "job_cancelled", "details": {"reason": "r"}}, {"added": {"reason": "r"}}),
        (
            {
                "kind": "task_finished",
                "started_at": 110.25,
                "worker_id": WorkerId("w"),
                "attempt": 1,
                "details": {"result": {"status": "success"}},
            },
            {
                "duration_ms": 250,
                "worker_id": "w",
                "attempt_number": 1,
                "added": {"result": {"status": "success"}},
            },
        ),
        ({"kind": "task_timed_out", "attempt": 3}, {"attempt_number": 3}),
        (
            {"kind": "approval_received", "next_state": "go", "details": {"decision": "yes"}},
            {"next_state": "go", "added": {"decision": "yes"}},
        ),
        (
            {
                "kind": "signal_received",
                "next_state": "go",
                "details": {"signal": {"name": "paid", "data": {}}},
            },
            {"next_state": "go", "added": {"signal": {"name": "paid", "data": {}}}},
        ),
    ],
)
def test_every_other_fact_is_one_row(changes: dict[str, Any], told_of_it: dict[str, Any]) -> None:
    assert told(a_fact(**changes)) == [
        {
            "timestamp": 110.5,
            "state": "start",
            "event_type": changes["kind"],
            "added": {},
            **told_of_it,
        }
    ]


def test_what_a_branch_did_is_a_row_without_the_job() -> None:
    job = a_job()
    command = RecordFact(
        kind="task_finished", at=1.0, state="start", details={"result": {"status": "success"}}
    )

    [row] = rows_of(unpack_fact(pack_branch_fact(job.id, job.origin, 3, command, TaskId("t"))))

    assert orjson.loads(str(row[COLUMNS.index("context_snapshot")])) == {
        "result": {"status": "success"}
    }


def test_a_repeat_gives_the_same_rows() -> None:
    step = {"started_at": 110.0, "followed_by": "transition", "next_state": "x", "attempt": 1}

    rows = list(rows_of(a_fact(**step)))

    assert rows == list(rows_of(a_fact(**step)))
    assert len({row[0] for row in rows}) == 2


def test_a_clock_that_was_set_back_gives_no_negative_duration() -> None:
    """R26."""
    [_, finished] = rows_of(a_fact(started_at=200.0, followed_by="end"))

    assert finished[COLUMNS.index("duration_ms")] == 0


def test_rows_of_a_large_fan_out_stand_before_those_of_the_next_commit() -> None:
    tasks = [{"task_id": str(number)} for number in range(10_000)]
    fan_out = a_fact(started_at=1.0, followed_by="parallel", details={"tasks": tasks})
    after = unpack_fact(
        pack_fact(a_job(), RecordFact(kind="job_completed", at=2.0, state="s"), "4:nonce", 0)
    )

    places = [row[-1] for fact in (fan_out, after) for row in rows_of(fact)]

    assert places == sorted(places, key=lambda place: int(str(place)))
    assert len(set(places)) == 10_002


def test_an_event_of_a_worker_that_led_on_is_a_row() -> None:
    event = {"event_id": "e", "event_type": "halfway", "payload": {"pages": 7}}

    rows = told(
        a_fact(
            kind="worker_event",
            worker_id=WorkerId("w"),
            next_state="look",
            details={"worker_event": event},
        )
    )

    assert rows == [
        {
            "timestamp": 110.5,
            "state": "start",
            "event_type": "worker_event",
            "worker_id": "w",
            "next_state": "look",
            "added": {"worker_event": event},
        }
    ]
