"""Polls: a task reaches a worker, or stays on the board; nothing in between."""

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import orjson
from services.gateway.tests.door import WORKER, Answer, Door, open_door

from avtomatika_common.backend.ports import MatchAnswer, Worker
from avtomatika_core.job import TaskId, WorkerId
from tests.support import match_one, until

W = WorkerId("w")


async def the_worker(door: Door) -> Worker:
    worker = await door.backend.workers.get(W)
    assert worker is not None
    return worker


async def wait_for_polls(door: Door, count: int) -> None:
    async def has_them() -> bool:
        return (await the_worker(door)).places.room == count

    await until(has_them, message=f"not {count} open polls")


async def wait_until_free(door: Door) -> None:
    async def is_free() -> bool:
        return (await the_worker(door)).places.held == 0

    await until(is_free, message="the worker still holds a task")


async def wait_for_board(door: Door, count: int) -> None:
    async def has_them() -> bool:
        return await door.tasks_on_board() == count

    await until(has_them, message=f"not {count} tasks on the board")


async def polled_and_matched(door: Door) -> Answer:
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await door.match("w")
    return poll.result()


async def test_a_poll_nobody_needs_ends_with_204_and_leaves_no_credit() -> None:
    async with open_door(WORKER_POLL_TIMEOUT_SECONDS="0.1") as door:
        await door.register("w")

        answer = await door.poll("w")

        assert (answer.status, answer.body) == (204, "")
        await wait_for_polls(door, 0)


async def test_a_dropped_poll_leaves_no_credit(door: Door) -> None:
    await door.register("w")
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await wait_for_polls(door, 1)

        poll.cancel()

    await wait_for_polls(door, 0)


async def test_a_poll_keeps_its_worker_alive() -> None:
    """R54."""
    async with open_door(
        WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.2", WORKER_POLL_TIMEOUT_SECONDS="0.15"
    ) as door:
        await door.register("w")

        answers = [(await door.poll("w")).status for _ in range(5)]

        assert answers == [204] * 5


async def test_polls_of_one_worker_get_a_task_each(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    await door.job_with_task()

    async with asyncio.TaskGroup() as tasks:
        polls = [tasks.create_task(door.poll("w")) for _ in range(2)]
        await wait_for_polls(door, 2)
        await door.match("w")
        await wait_for_board(door, 1)
        await door.match("w")

    assert len({poll.result().body["task_id"] for poll in polls}) == 2


async def test_a_match_whose_poll_is_gone_frees_the_worker_and_keeps_the_task(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    gateway = door.service.instance_id
    until_time = door.backend.clock.now() + 60
    await door.backend.workers.announce_credit(W, "a poll that ended", gateway, until_time, 60)

    await door.match("w")

    await wait_until_free(door)
    assert await door.tasks_on_board() == 1
    assert (await polled_and_matched(door)).status == 200


async def test_a_match_whose_task_is_gone_keeps_the_poll(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await wait_for_polls(door, 1)
        [task] = await door.backend.board.heads(0, 1)
        taken = msgspec.structs.replace(task, task_id=TaskId("taken by another"))
        assert await match_one(door.backend.workers, W, taken) is MatchAnswer.MATCHED
        await wait_for_polls(door, 1)

        await door.match("w")

    assert poll.result().status == 200
    assert poll.result().body["task_id"] == task.task_id
    assert (await the_worker(door)).places.held == 1


async def test_a_delivered_task_stays_with_its_worker(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()

    task = (await polled_and_matched(door)).body

    await until(door.is_certain, message="the hand-out was not confirmed")
    view = (await door.client("GET", f"/api/jobs/{task['job_id']}")).body
    assert view["task_worker_id"] == "w"


@asynccontextmanager
async def a_raw_poll(door: Door, name: str = "w") -> AsyncGenerator[socket.socket, None]:
    """A poll on a connection whose end a test can ill-treat."""
    with socket.socket() as connection:
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", door.service.port))
        request = f"GET /_worker/workers/{name}/tasks/next HTTP/1.1\r\nHost: h\r\n"
        token = f"X-Worker-Token: {WORKER['X-Worker-Token']}\r\n\r\n"
        await loop.sock_sendall(connection, (request + token).encode())
        yield connection


async def test_an_answer_to_a_worker_that_just_left_puts_the_task_back(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    [task] = await door.backend.board.heads(0, 1)
    async with a_raw_poll(door) as connection:
        await wait_for_polls(door, 1)
        # In one turn of the loop: the gateway has the match before it can read that the worker left.
        matching = door.backend.workers.match([(W, task)])
        connection.close()
        assert (await matching).answers == [MatchAnswer.MATCHED]

    await wait_until_free(door)
    await wait_for_board(door, 1)
    assert (await polled_and_matched(door)).body["task_id"] == task.task_id


async def test_an_answer_the_worker_never_read_puts_the_task_back(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    [task] = await door.backend.board.heads(0, 1)
    async with a_raw_poll(door) as connection:
        await door.match("w")
        await until(lambda: has_data(connection))

        connection.close()  # with the answer unread: the kernel resets the connection

    await wait_for_board(door, 1)
    await wait_until_free(door)
    assert (await polled_and_matched(door)).body["task_id"] == task.task_id


def has_data(connection: socket.socket) -> bool:
    with suppress(BlockingIOError):
        return bool(connection.recv(1, socket.MSG_PEEK))
    return False


async def test_a_worker_that_closes_after_reading_keeps_its_task(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    async with a_raw_poll(door) as connection:
        await door.match("w")
        await until(lambda: has_data(connection))
        answer = connection.recv(65536)

    assert answer.startswith(b"HTTP/1.1 200")
    await until(door.is_certain)
    assert await door.tasks_on_board() == 0


async def dispatch_until(door: Door, is_done: Callable[[], bool]) -> None:
    """Promise whatever waits to whoever polls."""
    workers, hints = door.backend.workers, door.backend.hints
    position = await hints.position("w")
    while not is_done():
        for task in await door.backend.board.heads(0, 100):
            for worker in await workers.live():
                if await match_one(workers, worker.worker_id, task) is MatchAnswer.MATCHED:
                    break
        position, _, _ = await hints.wait("w", position, 0.005)


async def test_workers_that_drop_every_poll_lose_no_task(door: Door) -> None:
    """R5."""
    jobs = [await door.job_with_task() for _ in range(40)]
    names = ["a", "b", "c", "d"]
    for name in names:
        await door.register(name)
    dropped = 0
    delivered: set[str] = set()

    async def work(name: str) -> None:
        nonlocal dropped
        while len(delivered) < len(jobs):
            task = await an_impatient_poll(door, name, random.uniform(0, 0.03))
            if task is None:
                dropped += 1
            else:
                ids = {key: task[key] for key in ("job_id", "task_id")}
                result = {**ids, "worker_id": name}
                told = await door.worker("POST", "/_worker/tasks/result", json=result)
                assert told.body == {"status": "ok"}
                delivered.add(task["job_id"])

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(work(name))
        await until(lambda: dropped > len(names))
        await tasks.create_task(dispatch_until(door, lambda: len(delivered) == len(jobs)))

    assert delivered == {job.id for job in jobs}


async def an_impatient_poll(door: Door, name: str, patience: float) -> dict[str, str] | None:
    """A task's payload; None: the worker lost patience before there was an answer, and left."""
    async with a_raw_poll(door, name) as connection:
        # What was read is never thrown away: then the worker would have left content.
        with suppress(AssertionError):
            await until(lambda: has_data(connection), patience)
        if not has_data(connection):
            return None
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    payload: dict[str, str] = orjson.loads(body)
    return payload


async def test_a_match_that_races_with_the_end_of_its_poll_loses_no_task() -> None:
    async with open_door(WORKER_POLL_TIMEOUT_SECONDS="0.003") as door:
        await door.register("w")
        delivered: list[str] = []

        async def work() -> None:
            while len(delivered) < 40:
                await door.job_with_task()
                while (answer := await door.poll("w")).status == 204:
                    pass
                delivered.append(answer.body["task_id"])

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(work())
            tasks.create_task(dispatch_until(door, lambda: len(delivered) == 40))

        assert len(set(delivered)) == 40


async def test_a_poll_ends_before_the_registration_it_keeps_alive() -> None:
    """R54."""
    async with (
        open_door(
            WORKER_POLL_TIMEOUT_SECONDS="20", WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.2"
        ) as door,
        asyncio.timeout(10),
    ):
        await door.register("w")

        polls = [await door.poll("w") for _ in range(3)]

    assert [poll.status for poll in polls] == [204, 204, 204]
