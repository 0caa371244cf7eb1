"""DELETE `/_worker/workers/{id}`: a worker goes."""

import asyncio

from tests.interop.door import Answer, Door, ignored

OK = {"status": "ok"}


async def leave(door: Door, worker_id: str, **options: None) -> Answer:
    return await door.call("DELETE", f"/_worker/workers/{worker_id}", **options)


async def test_a_worker_that_leaves_is_gone(door: Door) -> None:
    """R49."""
    await door.register("w1")

    answer = await leave(door, "w1")

    assert (answer.status, answer.json) == (200, {"status": "unregistered"})
    assert answer.headers["X-RXON-Version"] == "1.0b2"
    assert (await door.ask("GET", "/workers")).json == []
    assert (await door.poll("w1")).error == (404, "Worker not found")
    assert (await door.heartbeat("w1")).error == (404, "Worker not found")
    assert (await leave(door, "w1")).error == (404, "Worker not found")


async def test_who_was_never_here_cannot_leave(door: Door) -> None:
    assert (await leave(door, "nobody")).error == (404, "Worker not found")


async def test_leaving_needs_a_token(door: Door) -> None:
    await door.register("w1")

    answer = await leave(door, "w1", token=None)

    assert answer.error == (401, "Missing X-Worker-Token header or client certificate")
    assert (await door.heartbeat("w1")).status == 200


async def test_only_an_identifier_can_leave(door: Door) -> None:
    assert (await leave(door, "a%20b")).error == (
        400,
        "Invalid worker_id: 'a b'. Must be alphanumeric, underscores, or hyphens only.",
    )


async def test_the_tasks_of_one_that_left_go_to_others_as_the_same_attempt(door: Door) -> None:
    task = await door.held("w1")
    await door.register("w2")

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.task("w2"))
        await leave(door, "w1")
    again = poll.result()
    late = await door.done(task, "w1")

    assert again == task
    assert ignored(late) == "worker_mismatch"
    assert not (await door.document(task["job_id"])).get("task_retry_count")
    assert (await door.done(again, "w2")).json == OK
    assert (await door.ended(task["job_id"]))["status"] == "finished"


async def test_branches_of_one_that_left_go_to_others_too(door: Door) -> None:
    await door.register("w1")
    job_id = await door.create("branches")
    held = [await door.task("w1"), await door.task("w1")]
    await door.register("w2")
    await leave(door, "w1")

    offered = [await door.task("w2"), await door.task("w2")]

    assert sorted(task["task_id"] for task in offered) == sorted(task["task_id"] for task in held)
    for task in offered:
        assert (await door.done(task, "w2")).json == OK
    assert (await door.ended(job_id))["status"] == "finished"


async def test_who_left_may_come_again(door: Door) -> None:
    await door.register("w1")
    await leave(door, "w1")
    await door.register("w1")
    job_id = await door.create()

    assert (await door.task("w1"))["job_id"] == job_id


async def test_a_poll_of_one_that_left_gets_no_task(door: Door) -> None:
    await door.register("w1")
    await door.register("w2")

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w1"))
        await leave(door, "w1")
        await door.create()

    assert poll.result().status in {204, 404}
    assert (await door.poll("w2")).status == 200
