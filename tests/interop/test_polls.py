"""GET `/_worker/workers/{id}/tasks/next`: a worker asks for a task."""

import asyncio

from tests.interop.conftest import OpenDoor
from tests.interop.door import WORKER_TOKEN, Door


def poll_request(worker_id: str) -> bytes:
    return (
        f"GET /_worker/workers/{worker_id}/tasks/next HTTP/1.1\r\n"
        f"Host: here\r\nX-Worker-Token: {WORKER_TOKEN}\r\n\r\n"
    ).encode()


async def test_a_task_has_exactly_six_keys(door: Door) -> None:
    await door.register("w1")
    job_id = await door.create(params={"width": 10, "deep": {"list": [1, None, "é"]}})

    task = await door.task("w1")

    assert task == {
        "job_id": job_id,
        "task_id": task["task_id"],
        "type": "resize",
        "params": {"width": 10, "deep": {"list": [1, None, "é"]}},
        "tracing_context": {},
        "params_metadata": None,
    }
    assert isinstance(task["task_id"], str)
    assert task["task_id"]


async def test_where_no_task_comes_the_poll_is_held_and_its_answer_is_empty(door: Door) -> None:
    await door.register("w1")
    clock = asyncio.get_running_loop()
    began = clock.time()

    async with door.connection() as connection:
        connection.send(poll_request("w1"))
        answer = await connection.answer()
        held = clock.time() - began
        connection.send(b"GET /_public/status HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        following = await connection.rest()

    assert (answer.status, answer.body) == (204, b"")
    assert "Transfer-Encoding" not in answer.headers
    assert answer.headers.get("Content-Length", "0") == "0"
    assert following.startswith(b"HTTP/1.1 200")  # not a byte of a body was between
    assert 0.9 < held < 5


async def test_a_parked_poll_gets_the_task_that_comes_later(door: Door) -> None:
    await door.register("w1")

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w1"))
        job_id = await door.create()

    assert poll.result().json["job_id"] == job_id


async def test_a_worker_that_is_not_registered_is_told(door: Door) -> None:
    """R38."""
    assert (await door.poll("nobody")).error == (404, "Worker not found")


async def test_a_workers_id_in_the_path_is_an_identifier(door: Door) -> None:
    for method, path in (
        ("GET", "/_worker/workers/a%20b/tasks/next"),
        ("PATCH", "/_worker/workers/a%20b"),
        ("PATCH", "/_worker/workers/a%20b/status"),
    ):
        assert (await door.call(method, path)).error == (
            400,
            "Invalid worker_id: 'a b'. Must be alphanumeric, underscores, or hyphens only.",
        )


async def test_polls_keep_their_worker(open_door: OpenDoor) -> None:
    """R54."""
    door = await open_door(
        WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.4", WORKER_POLL_TIMEOUT_SECONDS="0.5"
    )
    await door.register("w1")

    answers = [(await door.poll("w1")).status for _ in range(4)]  # 2 s; its time is 0.8 s

    assert answers == [204] * 4


async def test_several_polls_of_one_worker_each_get_a_task(door: Door) -> None:
    await door.register("w1")

    async with asyncio.TaskGroup() as tasks:
        polls = [tasks.create_task(door.poll("w1")) for _ in range(3)]
        job_ids = {await door.create() for _ in range(3)}

    assert {poll.result().json["job_id"] for poll in polls} == job_ids


async def test_a_worker_never_has_more_tasks_than_places(door: Door) -> None:
    """R47."""
    await door.register("w1", resources={"max_concurrent_tasks": 2})
    for _ in range(4):
        await door.create()

    async with asyncio.TaskGroup() as tasks:
        polls = [tasks.create_task(door.poll("w1")) for _ in range(4)]
    answers = [poll.result() for poll in polls]

    assert sorted(answer.status for answer in answers) == [200, 200, 204, 204]
    first = next(answer.json for answer in answers if answer.status == 200)
    await door.done(first, "w1")
    assert (await door.poll("w1")).status == 200


async def test_equal_tasks_come_in_the_order_they_were_made(door: Door) -> None:
    """R51."""
    await door.register("w1")
    job_ids = [await door.offered() for _ in range(8)]

    assert [(await door.task("w1"))["job_id"] for _ in range(8)] == job_ids


async def test_a_dropped_poll_takes_no_task_with_it(door: Door) -> None:
    """R5."""
    await door.register("w1")
    for _ in range(3):
        async with door.connection() as connection:
            connection.send(poll_request("w1"))
            await connection.writer.drain()
    await door.register("w2")
    job_id = await door.create()

    task = await door.task("w2")

    assert task["job_id"] == job_id


async def test_a_poll_cut_at_once_leaves_the_task_to_the_next_one(door: Door) -> None:
    """R5."""
    await door.register("w1")
    job_id = await door.create()
    async with door.connection() as connection:
        connection.send(poll_request("w1"))
        await connection.writer.drain()
        connection.writer.transport.abort()

    task = await door.task("w1")

    assert task["job_id"] == job_id
    assert (await door.done(task, "w1")).json == {"status": "ok"}
    assert (await door.ended(job_id))["status"] == "finished"


async def test_looking_with_head_takes_no_task(door: Door) -> None:
    await door.register("w1")
    job_id = await door.create()

    answer = await door.call("HEAD", "/_worker/workers/w1/tasks/next")

    assert answer.status == 405
    assert (await door.task("w1"))["job_id"] == job_id


async def test_a_cancelled_task_reaches_nobody(door: Door) -> None:
    """R40."""
    await door.register("w1")
    job_id = await door.create()
    await door.cancel(job_id)

    assert (await door.poll("w1")).status == 204
    assert (await door.ended(job_id))["status"] == "cancelled"
