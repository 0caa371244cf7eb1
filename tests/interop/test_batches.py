"""Several tasks per poll, several results per request."""

import asyncio
import time
from typing import Any

import msgspec
import orjson
import pytest

import rxon
from rxon.utils import to_dict
from tests.interop.conftest import MAX_BODY
from tests.interop.door import NO_JOB, Answer, Door, result_of

PLAIN = {"job_id", "task_id", "type", "params", "tracing_context", "params_metadata"}
RESULTS = "/_worker/tasks/results"
OK = {"status": "ok"}


async def send(door: Door, *results: dict[str, Any], **fields: Any) -> Answer:
    return await door.call(
        "POST", RESULTS, {"results": list(results), **fields}, headers={"X-Worker-ID": "w1"}
    )


async def test_a_poll_for_several_gets_what_is_ready_and_no_more_than_asked(door: Door) -> None:
    await door.register("w1")
    job_ids = [await door.offered(params={"n": number}) for number in range(5)]

    first, rest = await door.tasks("w1", 3), await door.tasks("w1", 100)

    assert [task["job_id"] for task in first] == job_ids[:3]
    assert [task["job_id"] for task in rest] == job_ids[3:]


async def test_a_task_of_several_says_also_which_attempt_it_is_and_until_when(door: Door) -> None:
    await door.register("w1")
    await door.offered(params={"n": 1}, result_timeout_seconds=60)

    (task,) = await door.tasks("w1", 1)

    assert set(task) == PLAIN | {"attempt", "deadline", "checkpoint"}
    assert (task["attempt"], task["checkpoint"], task["params"]) == (1, None, {"n": 1})
    assert task["deadline"] - time.time() == pytest.approx(60, abs=5)  # noqa: TID251 - of the wire


async def test_the_next_attempt_says_that_it_is_the_second(door: Door) -> None:
    task = await door.held("w1")
    await door.done(task, "w1", status="failure", error="once more")

    (again,) = await door.tasks("w1", 1)

    assert (again["attempt"], again["job_id"]) == (2, task["job_id"])


async def test_a_poll_for_several_gets_no_more_than_the_worker_has_places(door: Door) -> None:
    await door.register("w1", resources={"max_concurrent_tasks": 2})
    for _ in range(4):
        await door.offered()

    first = await door.tasks("w1", 10)
    none = await door.call("GET", "/_worker/workers/w1/tasks/next?max=10")
    await door.done(first[0], "w1")
    one = await door.tasks("w1", 10)

    assert (len(first), none.status, len(one)) == (2, 204, 1)


async def test_a_poll_for_several_waits_for_the_first_one(door: Door) -> None:
    await door.register("w1")

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.tasks("w1", 4))
        job_id = await door.create()

    assert [task["job_id"] for task in poll.result()] == [job_id]


async def test_a_poll_for_several_that_gets_none_is_empty_as_ever(door: Door) -> None:
    await door.register("w1")

    answer = await door.call("GET", "/_worker/workers/w1/tasks/next?max=4")

    assert (answer.status, answer.body) == (204, b"")


async def test_a_poll_for_no_number_of_tasks_is_refused(door: Door) -> None:
    """R37."""
    await door.register("w1")
    await door.offered()

    for most in ("0", "-1", "x", "", "1.5", "1e3"):
        answer = await door.call("GET", f"/_worker/workers/w1/tasks/next?max={most}")

        assert answer.error[0] == 400, most


async def test_a_poll_that_says_no_number_keeps_its_six_keys(door: Door) -> None:
    await door.register("w1")
    await door.offered()

    assert set(await door.task("w1")) == PLAIN


async def test_several_results_are_each_applied(door: Door) -> None:
    await door.register("w1")
    job_ids = [await door.offered() for _ in range(3)]
    tasks = await door.tasks("w1", 3)

    answer = await send(door, *(result_of(task, "w1") for task in tasks))

    assert (answer.status, answer.json) == (200, {"answers": [OK] * 3, "tasks": []})
    assert answer.headers["X-RXON-Version"] == "1.0b2"
    for job_id in job_ids:
        assert (await door.ended(job_id))["status"] == "finished"


async def test_each_result_is_judged_alone_and_answered_in_its_place(door: Door) -> None:
    """R15."""
    good, foreign = await door.held("w1"), await door.held("w2")
    bare = {"job_id": good["job_id"], "task_id": good["task_id"]}
    before = await door.document_bytes(foreign["job_id"])

    answer = await send(
        door,
        result_of({**good, "task_id": "invented"}, "w1"),
        {"job_id": good["job_id"]},
        result_of({"job_id": NO_JOB, "task_id": "t"}, "w1"),
        result_of(foreign, "w1"),
        {**bare, "status": 5},
        {**bare, "result": {"status": "success"}},
        result_of(good, "w1"),
        result_of(foreign, "w2"),
    )

    answers = answer.json["answers"]
    assert answer.status == 200
    assert [document.get("reason") for document in answers[:1] + answers[3:4]] == [
        "stale_task",
        "worker_mismatch",
    ]
    assert answers[1] == {"error": "job_id and task_id are required"}
    assert answers[2] == {"error": "Job not found"}
    assert list(answers[4]) == ["error"]
    assert answers[5:7] == [OK, OK]  # the second is a repeat
    assert answers[7] == {
        "error": "Forbidden: Authenticated worker 'w1' cannot submit results"
        " for another worker 'w2'."
    }
    assert await door.document_bytes(foreign["job_id"]) == before
    assert (await door.ended(good["job_id"]))["status"] == "finished"


async def test_every_spelling_of_a_result_is_taken_in_a_batch_too(door: Door) -> None:
    tasks = [await door.held("w1") for _ in range(3)]
    bare = [{"job_id": task["job_id"], "task_id": task["task_id"]} for task in tasks]

    answer = await send(
        door,
        {**bare[0], "data": {"out": 0}},
        {**bare[1], "result": {"status": "needs_review", "data": {"out": 1}}, "unknown": 1},
        {**bare[2], "status": "failure", "error": "no", "error_type": "INVALID_INPUT_ERROR"},
    )
    documents = [await door.ended(task["job_id"]) for task in tasks]

    assert answer.json["answers"] == [OK] * 3
    assert [document["current_state"] for document in documents][1] == "reviewed"
    assert [document["status"] for document in documents] == ["finished", "finished", "failed"]
    assert documents[2]["error_message"] == "Task failed due to invalid input: no"


async def test_the_workers_name_may_stand_in_the_results_alone(door: Door) -> None:
    task = await door.held("w1")

    answer = await door.call("POST", RESULTS, {"results": [result_of(task, "w1")]})

    assert answer.json == {"answers": [OK], "tasks": []}


async def test_with_its_results_a_worker_gets_the_next_tasks(door: Door) -> None:
    await door.register("w1")
    first = await door.offered()
    (task,) = await door.tasks("w1", 1)
    others = [await door.offered() for _ in range(3)]

    answer = await send(door, result_of(task, "w1"), max=2)

    assert answer.json["answers"] == [OK]
    assert [task["job_id"] for task in answer.json["tasks"]] == others[:2]
    assert set(answer.json["tasks"][0]) == PLAIN | {"attempt", "deadline", "checkpoint"}
    for task in answer.json["tasks"]:
        assert (await door.done(task, "w1")).json == OK
    assert (await door.ended(first))["status"] == "finished"


async def test_who_asks_for_tasks_with_its_results_does_not_wait_for_them(door: Door) -> None:
    task = await door.held("w1")
    clock = asyncio.get_running_loop()
    began = clock.time()

    answer = await send(door, result_of(task, "w1"), max=4)

    assert answer.json == {"answers": [OK], "tasks": []}
    assert clock.time() - began < 0.5  # a poll would be held for a second


async def test_without_results_a_worker_may_ask_for_tasks_all_the_same(door: Door) -> None:
    await door.register("w1")
    job_id = await door.offered()

    empty, asked = await send(door), await send(door, max=1)

    assert empty.json == {"answers": [], "tasks": []}
    assert asked.json["answers"] == []
    assert [task["job_id"] for task in asked.json["tasks"]] == [job_id]


async def test_a_batch_that_is_none_is_refused(door: Door) -> None:
    """R37."""
    named = {"X-Worker-ID": "w1"}
    await door.register("w1")

    for body in (b"", b"{", b"\xff"):
        answer = await door.call("POST", RESULTS, body, headers=named)
        assert answer.error == (400, "Invalid JSON body"), body
    for wrong in ([], {}, {"results": None}, {"results": {}}, {"results": [], "max": "many"}):
        assert (await door.call("POST", RESULTS, wrong, headers=named)).error[0] == 400, wrong


async def test_a_batch_needs_a_token_and_has_the_limit_of_every_body(door: Door) -> None:
    """R37."""
    missing = await door.call("POST", RESULTS, {"results": []}, token=None)
    huge = await send(door, padding="x" * MAX_BODY)

    assert missing.error == (401, "Missing X-Worker-Token header or client certificate")
    assert huge.error == (413, f"Request body is larger than {MAX_BODY} bytes.")


async def test_something_in_a_batch_that_is_no_result_hurts_no_other(door: Door) -> None:
    """R37."""
    task = await door.held("w1")

    answer = await door.call(
        "POST",
        RESULTS,
        {"results": [None, 5, "x", [], result_of(task, "w1")]},
        headers={"X-Worker-ID": "w1"},
    )

    assert [list(each) for each in answer.json["answers"][:4]] == [["error"]] * 4
    assert answer.json["answers"][4] == OK


async def test_the_servers_real_answers_are_the_messages_of_the_wire(door: Door) -> None:
    await door.register("w1")
    for _ in range(3):
        await door.offered(params={"é": [1, None]})
    polled = await door.call("GET", "/_worker/workers/w1/tasks/next?max=2")
    tasks = msgspec.json.decode(polled.body, type=rxon.TaskBatch)
    answer = await send(
        door,
        result_of(polled.json["tasks"][0], "w1"),
        result_of({"job_id": NO_JOB, "task_id": "t"}, "w1"),
        max=1,
    )
    answered = msgspec.json.decode(answer.body, type=rxon.ResultBatchAnswer)

    assert (len(tasks.tasks), len(answered.answers), len(answered.tasks)) == (2, 2, 1)
    assert orjson.dumps(to_dict(tasks)) == polled.body
    assert orjson.dumps(to_dict(answered)) == answer.body
