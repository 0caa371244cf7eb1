"""POST `/_worker/tasks/progress`: how far a task is, and what its next attempt should know."""

from typing import Any

import msgspec
import orjson
import pytest

import rxon
from rxon.utils import to_dict
from tests.interop.conftest import MAX_BODY
from tests.interop.door import NO_JOB, Answer, Door
from tests.support import until

PATH = "/_worker/tasks/progress"
OK = {"status": "ok"}


def reason(answer: Answer) -> str:
    """Why it was ignored; the answer may also name tasks to stop."""
    document = answer.json
    assert (answer.status, document["status"]) == (200, "ignored"), document
    assert set(document) <= {"status", "reason", "message", "cancel_task_ids"}
    assert isinstance(document["message"], str)
    told: str = document["reason"]
    return told


async def test_progress_is_shown_in_the_job(door: Door) -> None:
    task = await door.held("w1")

    answers = [
        await door.progress(task, "w1", progress=0.25, message="first"),
        await door.progress(task, "w1", progress=0.5, message="ещё"),
    ]
    document = await door.document(task["job_id"])

    assert [(answer.status, answer.json) for answer in answers] == [(200, OK)] * 2
    assert answers[0].headers["X-RXON-Version"] == "1.0b2"
    assert (document["progress"], document["progress_message"]) == (0.5, "ещё")
    updates = document["state_history"]["progress_updates"]
    assert [(update["progress"], update["message"]) for update in updates] == [
        (0.25, "first"),
        (0.5, "ещё"),
    ]
    assert {update["task_id"] for update in updates} == {task["task_id"]}
    assert all("T" in update["timestamp"] for update in updates)


async def test_progress_is_kept_between_nothing_and_all(door: Door) -> None:
    task = await door.held("w1")

    for share in (-3, 7):
        await door.progress(task, "w1", progress=share, message="m")
    await door.progress(task, "w1")
    document = await door.document(task["job_id"])

    updates = document["state_history"]["progress_updates"]
    assert [(update["progress"], update["message"]) for update in updates] == [
        (0, "m"),
        (1, "m"),
        (0, ""),
    ]


async def test_progress_does_not_end_the_task(door: Door) -> None:
    task = await door.held("w1")

    await door.progress(task, "w1", progress=1, message="done?")

    assert (await door.done(task, "w1", data={"out": 1})).json == OK
    document = await door.ended(task["job_id"])
    assert document["status"] == "finished"
    assert document["state_history"]["out"] == 1


async def test_progress_counts_only_from_the_holder(door: Door) -> None:
    """R39."""
    task = await door.held("w1")
    await door.register("w2")
    before = await door.document_bytes(task["job_id"])

    foreign = await door.progress(task, "w2", progress=0.9, checkpoint={"n": 1})
    invented = await door.progress({**task, "task_id": "invented"}, "w1", progress=0.9)

    assert reason(foreign) == "worker_mismatch"
    assert reason(invented) == "stale_task"
    assert await door.document_bytes(task["job_id"]) == before


async def test_progress_of_a_job_nobody_knows_is_told_so(door: Door) -> None:
    """R39."""
    await door.register("w1")

    answer = await door.progress({"job_id": NO_JOB, "task_id": "t"}, "w1", progress=0.5)

    assert answer.error == (404, "Job not found")
    assert (await door.ask("GET", f"/jobs/{NO_JOB}")).status == 404


async def test_where_the_token_is_everybodys_the_task_says_whose_progress_it_is(door: Door) -> None:
    task = await door.held("w1")
    body = {"job_id": task["job_id"], "task_id": task["task_id"], "progress": 0.5}

    answer = await door.call("POST", PATH, body)

    assert answer.json == OK
    assert (await door.document(task["job_id"]))["progress"] == 0.5


async def test_progress_after_a_cancel_names_the_task_to_stop(door: Door) -> None:
    """R40."""
    task = await door.held("w1")
    await door.cancel(task["job_id"])
    await door.ended(task["job_id"])

    answer = await door.progress(task, "w1", progress=0.5)

    assert reason(answer) == "job_cancelled"
    assert answer.json["cancel_task_ids"] == [task["task_id"]]


async def test_good_progress_names_other_tasks_to_stop(door: Door) -> None:
    """R40."""
    task, other = await door.held("w1"), await door.held("w1")
    await door.cancel(other["job_id"])
    await door.ended(other["job_id"])

    answer = await door.progress(task, "w1", progress=0.5)

    assert answer.json == {**OK, "cancel_task_ids": [other["task_id"]]}


async def test_progress_of_a_task_that_ended_changes_nothing(door: Door) -> None:
    """R15."""
    task = await door.held("w1")
    await door.done(task, "w1")
    await door.ended(task["job_id"])
    before = await door.document_bytes(task["job_id"])

    answer = await door.progress(task, "w1", progress=0.5)

    assert reason(answer) == "job_already_terminated"
    assert await door.document_bytes(task["job_id"]) == before


async def test_progress_after_the_deadline_changes_nothing(door: Door) -> None:
    task = await door.held("w1", result_timeout_seconds=0.2)
    await door.register("w2")
    await door.task("w2")  # the time is over: it was offered anew
    before = await door.document_bytes(task["job_id"])

    answer = await door.progress(task, "w1", progress=0.5)

    assert reason(answer) == "deadline_exceeded"
    assert await door.document_bytes(task["job_id"]) == before


async def test_the_last_checkpoint_goes_to_the_next_attempt(door: Door) -> None:
    task = await door.held("w1")
    for page in (1, 2):
        answer = await door.progress(task, "w1", progress=0.1, checkpoint={"page": page, "é": None})
        assert answer.json == OK
    await door.progress(task, "w1", progress=0.2, message="without one")
    await door.done(task, "w1", status="failure", error="once more")

    (again,) = await door.tasks("w1", 1)

    assert (again["attempt"], again["checkpoint"]) == (2, {"page": 2, "é": None})
    assert (await door.done(again, "w1")).json == OK
    assert (await door.ended(task["job_id"]))["status"] == "finished"


async def test_a_checkpoint_survives_the_worker_that_made_it(door: Door) -> None:
    task = await door.held("w1")
    await door.progress(task, "w1", progress=0.1, checkpoint={"page": 7})
    await door.register("w1")  # it began anew: its tasks are lost

    (again,) = await door.tasks("w1", 1)

    assert (again["attempt"], again["checkpoint"]) == (2, {"page": 7})


async def test_a_checkpoint_may_come_over_the_socket_too(door: Door) -> None:
    task = await door.held("w1")
    event: dict[str, Any] = {"event": "progress_update", "progress": 0.1, "message": "m"}
    async with door.socket("w1") as socket:
        await socket.send_json(
            {**event, "job_id": task["job_id"], "task_id": task["task_id"], "checkpoint": {"p": 3}}
        )

        async def is_there() -> bool:
            return (await door.document(task["job_id"])).get("progress_message") == "m"

        await until(is_there, message="the progress did not arrive")
    await door.done(task, "w1", status="failure", error="once more")

    (again,) = await door.tasks("w1", 1)

    assert again["checkpoint"] == {"p": 3}


async def test_a_plain_poll_says_nothing_of_checkpoints(door: Door) -> None:
    task = await door.held("w1")
    await door.progress(task, "w1", progress=0.1, checkpoint={"page": 7})
    await door.done(task, "w1", status="failure", error="once more")

    again = await door.task("w1")

    assert len(again) == 6
    assert "checkpoint" not in again


async def test_progress_has_to_say_what_it_is_of(door: Door) -> None:
    """R37."""
    task = await door.held("w1")
    named = {"X-Worker-ID": "w1"}

    for missing in ("job_id", "task_id"):
        body = {"job_id": task["job_id"], "task_id": task["task_id"], "progress": 0.5}
        del body[missing]
        answer = await door.call("POST", PATH, body, headers=named)
        assert answer.error == (400, "job_id and task_id are required")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job_id", 5),
        ("task_id", []),
        ("progress", "half"),
        ("progress", [0.5]),
        ("message", 5),
        ("checkpoint", "page 7"),
        ("checkpoint", [1]),
    ],
)
async def test_a_field_of_another_type_is_refused_and_changes_nothing(
    door: Door, field: str, value: object
) -> None:
    """R37."""
    task = await door.held("w1")
    before = await door.document_bytes(task["job_id"])

    answer = await door.progress({**task}, "w1", **{"progress": 0.5, field: value})

    assert answer.error[0] == 400
    assert await door.document_bytes(task["job_id"]) == before


async def test_progress_that_is_no_json_object_is_refused(door: Door) -> None:
    """R37."""
    named = {"X-Worker-ID": "w1"}

    for body in (b"", b"{", b'{"progress": NaN}', b"\xff"):
        answer = await door.call("POST", PATH, body, headers=named)
        assert answer.error == (400, "Invalid JSON body"), body
    for body in (b"null", b"[]", b"0.5"):
        assert (await door.call("POST", PATH, body, headers=named)).error[0] == 400, body


async def test_progress_needs_a_token_and_has_the_limit_of_every_body(door: Door) -> None:
    """R37."""
    task = await door.held("w1")

    missing = await door.call("POST", PATH, task, token=None)
    huge = await door.progress(task, "w1", message="x" * MAX_BODY)

    assert missing.error == (401, "Missing X-Worker-Token header or client certificate")
    assert huge.error == (413, f"Request body is larger than {MAX_BODY} bytes.")


async def test_the_servers_real_answers_are_the_messages_of_the_wire(door: Door) -> None:
    task = await door.held("w1")
    good = await door.progress(task, "w1", progress=0.5)
    await door.cancel(task["job_id"])
    await door.ended(task["job_id"])
    late = await door.progress(task, "w1", progress=0.5)

    told = msgspec.json.decode(late.body, type=rxon.ProgressAnswer)
    assert good.body == b'{"status":"ok"}'
    assert (told.reason, told.cancel_task_ids) == ("job_cancelled", (task["task_id"],))
    assert orjson.dumps(to_dict(told)) == late.body
