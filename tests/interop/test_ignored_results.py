"""Results that come too late, twice, or from the wrong one: answered 200, and nothing changes."""

import pytest

from tests.interop.conftest import OpenDoor
from tests.interop.door import Door, ignored, result_of
from tests.support import until

OK = {"status": "ok"}


async def test_a_repeat_is_answered_as_the_first_time_and_changes_nothing(door: Door) -> None:
    """R15."""
    await door.register("w1")
    job_id = await door.create("two_tasks")
    first = await door.task("w1")
    assert (await door.done(first, "w1", data={"n": 1})).json == OK
    second = await door.task("w1")
    before = await door.document_bytes(job_id)

    repeats = [(await door.done(first, "w1", data={"n": 1})).json for _ in range(3)]

    assert repeats == [OK] * 3
    assert await door.document_bytes(job_id) == before
    assert (await door.done(second, "w1")).json == OK
    await door.ended(job_id)
    at_end = await door.document_bytes(job_id)
    for task, data in ((first, {"n": 1}), (second, None)):
        assert (await door.done(task, "w1", data=data)).json == OK
    assert await door.document_bytes(job_id) == at_end


async def test_a_task_that_never_was_is_stale(door: Door) -> None:
    """R15."""
    task = await door.held("w1")
    before = await door.document_bytes(task["job_id"])

    answer = await door.done({**task, "task_id": "invented"}, "w1")

    assert ignored(answer) == "stale_task"
    assert await door.document_bytes(task["job_id"]) == before


async def test_a_task_that_was_retried_is_stale(door: Door) -> None:
    """R15."""
    first = await door.held("w1")
    await door.done(first, "w1", status="failure", error="once more")
    second = await door.task("w1")
    before = await door.document_bytes(first["job_id"])

    answer = await door.done(first, "w2")

    assert ignored(answer) == "stale_task"
    assert await door.document_bytes(first["job_id"]) == before
    assert (await door.done(second, "w1")).json == OK


async def test_a_task_of_another_job_is_stale(door: Door) -> None:
    """R15."""
    one = await door.held("w1")
    other = await door.held("w2")
    before = await door.document_bytes(one["job_id"])

    answer = await door.done({**one, "task_id": other["task_id"]}, "w1")

    assert ignored(answer) == "stale_task"
    assert await door.document_bytes(one["job_id"]) == before


async def test_a_task_that_another_holds_is_not_yours(door: Door) -> None:
    """R15."""
    task = await door.held("w1")
    await door.register("w2")
    before = await door.document_bytes(task["job_id"])

    answers = [await door.done(task, "w2"), await door.done(task, "stranger")]

    assert [ignored(answer) for answer in answers] == ["worker_mismatch"] * 2
    assert await door.document_bytes(task["job_id"]) == before
    assert (await door.done(task, "w1")).json == OK


async def test_a_task_that_nobody_holds_is_not_yours(door: Door) -> None:
    """R15."""
    job_id = await door.offered()

    async def is_explained() -> bool:  # that, too, changes the document
        return bool((await door.document(job_id)).get("waiting_reason"))

    await until(is_explained, message="nobody says why the task waits")
    task_id = (await door.document(job_id))["current_task_id"]
    before = await door.document_bytes(job_id)

    answer = await door.done({"job_id": job_id, "task_id": task_id}, "w1")

    assert ignored(answer) == "worker_mismatch"
    assert await door.document_bytes(job_id) == before


async def test_after_its_deadline_a_result_is_too_late(door: Door) -> None:
    """R15."""
    task = await door.held("w1", result_timeout_seconds=0.2)
    await door.register("w2")
    again = await door.task("w2")  # the time is over: it was offered anew
    before = await door.document_bytes(task["job_id"])

    answer = await door.done(task, "w1")

    assert ignored(answer) == "deadline_exceeded"
    assert await door.document_bytes(task["job_id"]) == before
    assert again["job_id"] == task["job_id"]


async def test_for_a_cancelled_job_no_result_counts(door: Door) -> None:
    """R15."""
    task = await door.held("w1")
    await door.cancel(task["job_id"])
    await door.ended(task["job_id"])
    before = await door.document_bytes(task["job_id"])

    answers = [await door.done(task, "w1"), await door.done(task, "w1", status="cancelled")]

    assert [ignored(answer) for answer in answers] == ["job_cancelled"] * 2
    assert await door.document_bytes(task["job_id"]) == before


async def test_for_a_job_that_ended_no_other_result_counts(door: Door) -> None:
    """R15."""
    task = await door.held("w1")
    await door.done(task, "w1")
    await door.ended(task["job_id"])
    before = await door.document_bytes(task["job_id"])

    invented = await door.done({**task, "task_id": "invented"}, "w1")
    foreign = await door.done(task, "w2")

    assert ignored(invented) == "job_already_terminated"
    assert ignored(foreign) == "job_already_terminated"
    assert await door.document_bytes(task["job_id"]) == before


@pytest.mark.parametrize(
    ("code", "status"),
    [("INVALID_INPUT_ERROR", "failed"), ("PERMANENT_ERROR", "quarantined")],
)
async def test_for_a_job_that_failed_no_other_result_counts(
    door: Door, code: str, status: str
) -> None:
    """R15."""
    task = await door.held("w1")
    failed = {"status": "failure", "error": {"code": code, "message": "oh"}}
    await door.done(task, "w1", **failed)
    assert (await door.ended(task["job_id"]))["status"] == status
    before = await door.document_bytes(task["job_id"])

    repeat = await door.done(task, "w1", **failed)
    invented = await door.done({**task, "task_id": "invented"}, "w1")
    foreign = await door.done(task, "w2")

    assert repeat.json == OK
    assert [ignored(invented), ignored(foreign)] == ["job_already_terminated"] * 2
    assert await door.document_bytes(task["job_id"]) == before


async def test_a_branch_that_was_tried_again_is_stale(door: Door) -> None:
    """R15."""
    await door.register("w1")
    job_id = await door.create("branches")
    tasks = [await door.task("w1") for _ in range(2)]
    await door.done(tasks[0], "w1", status="failure", error="once more")
    again = await door.task("w1")
    before = await door.document_bytes(job_id)

    answers = [await door.done(tasks[0], worker, data={"n": 0}) for worker in ("w2", "stranger")]

    assert [ignored(answer) for answer in answers] == ["stale_task"] * 2
    assert await door.document_bytes(job_id) == before
    for task in (tasks[1], again):
        assert (await door.done(task, "w1")).json == OK
    joined = (await door.ended(job_id))["state_history"]["joined"]
    assert joined.keys() == {tasks[1]["task_id"], again["task_id"]}


async def test_after_the_join_no_result_of_a_branch_counts(door: Door) -> None:
    """R15."""
    await door.register("w1")
    job_id = await door.create("branches")
    tasks = [await door.task("w1") for _ in range(2)]
    for task in tasks:
        await door.done(task, "w1", data={"n": 1})
    await door.ended(job_id)
    before = await door.document_bytes(job_id)

    repeats = [(await door.done(task, "w1", data={"n": 2})).json for task in tasks]
    foreign = await door.done(tasks[0], "w2")

    assert repeats == [OK] * 2
    assert ignored(foreign) == "job_already_terminated"
    assert await door.document_bytes(job_id) == before


async def test_a_branch_counts_once(door: Door) -> None:
    """R15."""
    await door.register("w1")
    job_id = await door.create("branches")
    first, second = await door.task("w1"), await door.task("w1")
    assert (await door.done(first, "w1", data={"n": 1})).json == OK

    async def is_counted() -> bool:
        return first["task_id"] in (await door.document(job_id)).get("aggregation_results", {})

    await until(is_counted, message="the branch's result is not there")
    before = await door.document_bytes(job_id)

    repeat = await door.done(first, "w1", data={"n": 1})
    foreign = await door.done(second, "w2")

    assert repeat.json == OK
    assert ignored(foreign) == "worker_mismatch"
    assert await door.document_bytes(job_id) == before


async def test_an_expired_worker_whose_task_went_on_has_lost_it(open_door: OpenDoor) -> None:
    """R6."""
    door = await open_door(WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.2")
    lost = await door.held("w1")
    offered: list[dict[str, object]] = []

    async def comes_to_the_other() -> bool:
        await door.register("w2")
        answer = await door.poll("w2")
        offered.extend([answer.json] if answer.status == 200 else [])
        return bool(offered)

    await until(comes_to_the_other, 10, "nobody got the lost worker's task")
    late = await door.result(result_of(lost, "w1"))

    assert offered[0]["job_id"] == lost["job_id"]
    assert ignored(late) == "stale_task"
