"""POST `/_worker/tasks/result`: what became of a task."""

import pytest

from avtomatika.config import Config
from tests.interop.conftest import MAX_BODY, OpenDoor
from tests.interop.door import NO_JOB, Door, result_of

OK = {"status": "ok"}
REQUIRED = (400, "job_id and task_id are required")
FILE = {"uri": "s3://bucket/key", "size": 3, "etag": "abc"}


async def test_a_success_ends_the_task_and_its_data_is_kept(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.done(
        task, "w1", data={"out": [1, {"é": None}]}, data_metadata={"a.b[0]": FILE}
    )
    document = await door.ended(task["job_id"])

    assert (answer.status, answer.json) == (200, OK)
    assert document["status"] == "finished"
    assert document["state_history"]["out"] == [1, {"é": None}]
    assert document["data_metadata"] == {"a.b[0]": FILE}


async def test_a_nested_result_means_the_same(door: Door) -> None:
    task = await door.held("w1")
    flat = result_of(task, "w1", data={"out": 1}, data_metadata={"out": FILE})
    inner = {key: flat.pop(key) for key in ("status", "data", "error", "data_metadata")}

    answer = await door.result({**flat, "result": inner})
    document = await door.ended(task["job_id"])

    assert answer.json == OK
    assert document["state_history"]["out"] == 1
    assert document["data_metadata"] == {"out": FILE}


async def test_a_nested_failure_means_the_same(door: Door) -> None:
    task = await door.held("w1")
    error = {"code": "INVALID_INPUT_ERROR", "message": "no such file", "details": {"n": 1}}

    answer = await door.result(
        {
            "job_id": task["job_id"],
            "task_id": task["task_id"],
            "worker_id": "w1",
            "result": {"status": "failure", "error": error},
        }
    )
    document = await door.ended(task["job_id"])

    assert answer.json == OK
    assert document["status"] == "failed"
    assert document["error_message"] == "Task failed due to invalid input: no such file"


async def test_a_result_without_a_status_is_a_success(door: Door) -> None:
    task = await door.held("w1")
    bare = {"job_id": task["job_id"], "task_id": task["task_id"], "worker_id": "w1"}

    assert (await door.result(bare)).json == OK
    assert (await door.ended(task["job_id"]))["status"] == "finished"


async def test_keys_nobody_knows_do_no_harm(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.done(task, "w1", from_the_future={"a": [1]}, timestamp=5, ключ="значение")

    assert answer.json == OK
    assert (await door.ended(task["job_id"]))["status"] == "finished"


async def test_a_status_of_the_blueprints_own_leads_to_its_state(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.done(task, "w1", status="needs_review", data={"doubt": 0.5})
    document = await door.ended(task["job_id"])

    assert answer.json == OK
    assert document["current_state"] == "reviewed"
    assert document["state_history"]["doubt"] == 0.5


async def test_a_status_the_blueprint_does_not_know_fails_the_job(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.done(task, "w1", status="странно")
    document = await door.ended(task["job_id"])

    assert answer.json == OK
    assert document["status"] == "failed"
    assert document["error_message"] == "Worker returned unhandled status: странно"


async def test_a_permanent_error_quarantines_the_job(door: Door) -> None:
    task = await door.held("w1")
    error = {"code": "PERMANENT_ERROR", "message": "broken", "details": None}

    answer = await door.done(task, "w1", status="failure", error=error)
    document = await door.ended(task["job_id"])

    assert answer.json == OK
    assert document["status"] == "quarantined"
    assert document["error_message"] == "Task failed with permanent error (PERMANENT_ERROR): broken"


async def test_an_error_may_be_a_string_with_its_code_beside_it(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.done(
        task, "w1", status="failure", error="too wide", error_type="INVALID_INPUT_ERROR"
    )
    document = await door.ended(task["job_id"])

    assert answer.json == OK
    assert document["error_message"] == "Task failed due to invalid input: too wide"


@pytest.mark.parametrize(
    "error",
    ["out of luck", None, {"code": "TRANSIENT_ERROR", "message": "m"}, {"code": "ODD"}, {}],
    ids=["string", "none", "transient", "unknown", "empty"],
)
async def test_any_other_error_is_tried_again_as_a_new_task(door: Door, error: object) -> None:
    task = await door.held("w1")

    answer = await door.done(task, "w1", status="failure", error=error)
    again = await door.task("w1")

    assert answer.json == OK
    assert again["job_id"] == task["job_id"]
    assert again["task_id"] != task["task_id"]
    assert again["params"] == task["params"]
    assert (await door.done(again, "w1")).json == OK
    assert (await door.ended(task["job_id"]))["error_message"] is None


async def test_a_cancelled_task_cancels_the_job(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.done(task, "w1", status="cancelled")

    assert answer.json == OK
    assert (await door.ended(task["job_id"]))["status"] == "cancelled"


async def test_branches_are_tasks_of_their_own(door: Door) -> None:
    await door.register("w1")
    job_id = await door.create("branches")
    first, second = await door.task("w1"), await door.task("w1")

    answers = [
        (await door.done(first, "w1", data={"n": 1})).json,
        (await door.done(second, "w1", status="failure", error="no", error_type="PERMANENT_ERROR")),
    ]
    document = await door.ended(job_id)

    joined = document["state_history"]["joined"]
    assert answers[0] == OK
    assert answers[1].json == OK
    assert set(joined) == {first["task_id"], second["task_id"]}
    assert joined[first["task_id"]]["data"] == {"n": 1}
    assert joined[second["task_id"]]["error"]["code"] == "PERMANENT_ERROR"


async def test_a_result_has_to_say_what_it_is_of(door: Door) -> None:
    """R37."""
    task = await door.held("w1")
    before = await door.document_bytes(task["job_id"])

    for missing in ("job_id", "task_id"):
        body = result_of(task, "w1")
        for value in (None, ""):
            assert (await door.result({**body, missing: value})).error == REQUIRED
        del body[missing]
        assert (await door.result(body)).error == REQUIRED
    assert await door.document_bytes(task["job_id"]) == before


async def test_a_field_of_another_type_is_refused_and_changes_nothing(door: Door) -> None:
    """R37."""
    task = await door.held("w1")
    before = await door.document_bytes(task["job_id"])
    wrong: list[tuple[str, object]] = [
        ("job_id", 5),
        ("job_id", {}),
        ("task_id", 5),
        ("task_id", ["t"]),
        ("status", 5),
        ("status", ["success"]),
        ("error", 5),
        ("error", ["no"]),
        ("error", {"code": 5, "message": "m"}),
        ("error", {"code": "c", "message": ["m"]}),
        ("data_metadata", "none"),
        ("data_metadata", {"a": "s3://b/k"}),
        ("data_metadata", {"a": {"uri": 5, "size": 1}}),
        ("data_metadata", {"a": {"uri": "s3://b/k", "size": "big"}}),
        ("worker_id", 5),
        ("worker_id", ["w1"]),
    ]

    for field, value in wrong:
        status, text = (await door.done(task, "w1", **{field: value})).error

        assert (status, bool(text)) == (400, True), (field, value)
    assert await door.document_bytes(task["job_id"]) == before
    assert (await door.done(task, "w1")).json == OK


async def test_a_result_that_is_no_json_object_is_refused(door: Door) -> None:
    """R37."""
    named = {"X-Worker-ID": "w1"}

    for body in (b"", b"{", b'{"job_id": NaN}', b"\xff\xfe"):
        assert (await door.result(body, headers=named)).error == (400, "Invalid JSON body"), body
    for body in (b"null", b"[]", b'"ok"', b"1"):
        assert (await door.result(body, headers=named)).error[0] == 400, body


async def test_a_job_nobody_knows_is_not_found(door: Door) -> None:
    """R15, R37."""
    await door.register("w1")

    for job_id in (NO_JOB, "nonsense", "../../x", "ж", "a" * 1000):
        answer = await door.done({"job_id": job_id, "task_id": "t"}, "w1")

        assert answer.error == (404, "Job not found"), job_id


async def test_a_result_over_the_limit_is_refused_and_may_come_smaller(door: Door) -> None:
    """R43."""
    task = await door.held("w1")

    large = await door.done(task, "w1", data={"out": "x" * MAX_BODY})
    small = await door.done(task, "w1", data={"out": "x"})

    assert large.error == (413, f"Request body is larger than {MAX_BODY} bytes.")
    assert small.json == OK


async def test_five_megabytes_are_no_trouble_by_default(open_door: OpenDoor) -> None:
    """R43."""
    door = await open_door(MAX_REQUEST_BODY_BYTES=str(Config({}).MAX_REQUEST_BODY_BYTES))
    task = await door.held("w1")
    out = "x" * 5_000_000

    answer = await door.done(task, "w1", data={"out": out})

    assert answer.json == OK
    assert (await door.ended(task["job_id"]))["state_history"]["out"] == out
