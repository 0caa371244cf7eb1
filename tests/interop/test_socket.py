"""`/_worker/ws`: commands to a worker and progress from it over a WebSocket."""

import asyncio
import base64
import hashlib
import json
from typing import Any

import aiohttp
import pytest

from tests.interop.conftest import OpenDoor
from tests.interop.door import NO_JOB, WORKER_TOKEN, Door
from tests.support import until

KEY = base64.b64encode(b"sixteen bytes!!!").decode()
ACCEPTED = base64.b64encode(
    hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()  # noqa: S324
).decode()


def upgrade(path: str, token: str | None) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: here",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
    ]
    if token is not None:
        lines.append(f"X-Worker-Token: {token}")
    return "\r\n".join([*lines, "", ""]).encode()


def progress(task: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "event": "progress_update",
        "task_id": task["task_id"],
        "job_id": task["job_id"],
        **fields,
    }


async def close_of(socket: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
    """Code and reason with which the server closes it."""
    message = await socket.receive(timeout=10)
    assert message.type is aiohttp.WSMsgType.CLOSE, message
    return message.data, message.extra or ""


async def command_of(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message = await socket.receive(timeout=10)
    assert message.type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}, message
    command: dict[str, Any] = json.loads(message.data)
    return {key: value for key, value in command.items() if value is not None}


async def cancelled_over(
    door: Door, socket: aiohttp.ClientWebSocketResponse, task: dict[str, Any]
) -> None:
    """Cancel the task's job; this socket is told so."""
    answer = await door.cancel(task["job_id"])
    assert answer.json == {"status": "cancellation_request_sent"}
    assert await command_of(socket) == {
        "command": "cancel_task",
        "task_id": task["task_id"],
        "job_id": task["job_id"],
    }


async def seen(door: Door, task: dict[str, Any], message: str) -> dict[str, Any]:
    """The job's document once it has this progress."""

    async def is_there() -> bool:
        return (await door.document(task["job_id"])).get("progress_message") == message

    await until(is_there, message=f"no progress {message!r}")
    return await door.document(task["job_id"])


@pytest.mark.parametrize("path", ["/_worker/ws", "/_worker/ws/w1"])
async def test_who_is_known_gets_a_socket(door: Door, path: str) -> None:
    await door.register("w1")

    answer = await door.exchange(upgrade(path, WORKER_TOKEN))

    assert answer.status == 101
    assert answer.headers["Sec-WebSocket-Accept"] == ACCEPTED
    assert answer.headers["X-RXON-Version"] == "1.0b2"


@pytest.mark.parametrize(
    ("path", "token", "text"),
    [
        ("/_worker/ws", None, "Missing X-Worker-Token header or client certificate"),
        ("/_worker/ws/w1", None, "Missing X-Worker-Token header or client certificate"),
        ("/_worker/ws", "wrong", "Unauthorized: Invalid token or missing worker_id hint"),
        ("/_worker/ws/w1", "wrong", "Unauthorized: No valid token found"),
    ],
)
async def test_who_is_not_known_gets_a_plain_401(
    door: Door, path: str, token: str | None, text: str
) -> None:
    """R39."""
    await door.register("w1")

    async with door.connection() as connection:
        connection.send(upgrade(path, token))
        answer = await connection.answer()
        connection.send(b"GET /_public/status HTTP/1.1\r\nHost: here\r\n\r\n")
        following = await connection.answer()

    assert answer.error == (401, text)
    assert "Sec-WebSocket-Accept" not in answer.headers
    assert answer.headers["X-RXON-Version"] == "1.0b2"
    assert following.status == 200  # it is an HTTP connection still


async def test_who_is_refused_does_not_close_the_socket_of_another(door: Door) -> None:
    """R39."""
    task = await door.held("w1")
    async with door.socket("w1") as socket:
        refused = await door.exchange(upgrade("/_worker/ws/w1", "wrong"))

        assert refused.status == 401
        await cancelled_over(door, socket, task)


async def test_a_workers_newest_socket_closes_the_one_before(door: Door) -> None:
    """R39."""
    task = await door.held("w1")
    async with door.socket("w1") as old, door.socket("w1") as new:
        assert await close_of(old) == (1008, "New connection established")

        await old.close()
        await cancelled_over(door, new, task)


async def test_sockets_of_two_workers_both_stay(door: Door) -> None:
    """R39."""
    first, second = await door.held("w1"), await door.held("w2")
    async with door.socket("w1") as one, door.socket("w2") as two:
        await cancelled_over(door, one, first)
        await cancelled_over(door, two, second)


async def test_a_server_that_stops_says_so(door: Door) -> None:
    await door.register("w1")
    async with door.socket("w1") as socket, asyncio.TaskGroup() as tasks:
        closed = tasks.create_task(close_of(socket))
        tasks.create_task(door.stop())

    assert closed.result() == (1001, "Server shutdown")


async def test_who_registers_again_loses_the_socket_of_before(door: Door) -> None:
    await door.register("w1")
    async with door.socket("w1") as socket:
        await door.register("w1")

        assert (await close_of(socket))[0] >= 1000


async def test_without_a_socket_a_cancel_is_only_accepted(door: Door) -> None:
    await door.register("w1")
    async with door.socket("w1"):
        pass

    async def is_accepted() -> bool:
        answer = await door.cancel((await door.held("w1"))["job_id"])
        return bool(answer.json == {"status": "cancellation_request_accepted"})

    await until(is_accepted, message="the closed socket still counts")


async def test_a_task_out_of_time_is_told_to_stop(door: Door) -> None:
    await door.register("w1")
    async with door.socket("w1") as socket:
        await door.create(result_timeout_seconds=0.3)
        task = await door.task("w1")

        assert await command_of(socket) == {
            "command": "cancel_task",
            "task_id": task["task_id"],
            "job_id": task["job_id"],
        }


@pytest.mark.parametrize("as_text", [True, False], ids=["text", "binary"])
async def test_progress_of_the_holder_is_shown(door: Door, as_text: bool) -> None:
    task = await door.held("w1")
    async with door.socket("w1") as socket:
        for share, words in ((0.25, "first"), (0.5, "ещё")):
            message = json.dumps(progress(task, progress=share, message=words))
            if as_text:
                await socket.send_str(message)
            else:
                await socket.send_bytes(message.encode())

        document = await seen(door, task, "ещё")

    assert document["progress"] == 0.5
    updates = document["state_history"]["progress_updates"]
    assert [(update["progress"], update["message"]) for update in updates] == [
        (0.25, "first"),
        (0.5, "ещё"),
    ]
    for update in updates:
        assert set(update) == {"progress", "message", "timestamp", "task_id"}
        assert update["task_id"] == task["task_id"]
        assert "T" in update["timestamp"]


async def test_progress_is_kept_between_nothing_and_all(door: Door) -> None:
    task = await door.held("w1")
    async with door.socket("w1") as socket:
        for share in (-3, 0.5, 7):
            await socket.send_json(progress(task, progress=share, message="m"))
        await socket.send_json({**progress(task), "message": "no share"})
        document = await seen(door, task, "no share")
        await socket.send_json(progress(task, progress=1))
        last = await seen(door, task, "")

    shares = [update["progress"] for update in document["state_history"]["progress_updates"]]
    assert shares == [0, 0.5, 1, 0]
    assert last["progress"] == 1


async def test_the_last_hundred_entries_of_progress_are_kept(door: Door) -> None:
    """R76."""
    task = await door.held("w1")
    async with door.socket("w1") as socket:
        for number in range(130):
            await socket.send_json(progress(task, progress=number / 130, message=str(number)))
        document = await seen(door, task, "129")

    updates = document["state_history"]["progress_updates"]
    assert [update["message"] for update in updates] == [str(n) for n in range(30, 130)]


async def test_progress_of_a_task_that_another_holds_changes_nothing(door: Door) -> None:
    """R39."""
    mine, foreign = await door.held("w1"), await door.held("w2")
    before = await door.document_bytes(foreign["job_id"])
    async with door.socket("w1") as socket:
        await socket.send_json(progress(foreign, progress=0.9, message="mine!"))
        await socket.send_json(progress({**mine, "task_id": foreign["task_id"]}, message="mixed"))
        await socket.send_json(progress({**mine, "task_id": "invented"}, message="invented"))
        await socket.send_json(progress(mine, message="true"))
        document = await seen(door, mine, "true")

    assert len(document["state_history"]["progress_updates"]) == 1
    assert await door.document_bytes(foreign["job_id"]) == before


async def test_progress_of_a_job_nobody_knows_makes_none(door: Door) -> None:
    """R39."""
    task = await door.held("w1")
    async with door.socket("w1") as socket:
        await socket.send_json(progress({**task, "job_id": NO_JOB}, message="of nothing"))
        await socket.send_json(progress(task, message="true"))
        await seen(door, task, "true")

    assert (await door.ask("GET", f"/jobs/{NO_JOB}")).error == (404, "Job not found")


async def test_what_is_no_message_does_not_end_the_connection(door: Door) -> None:
    task = await door.held("w1")
    wrong: list[Any] = [
        {"event": "something_else", "a": 1},
        {},
        [],
        None,
        7,
        {"event": "progress_update"},
        progress(task, progress="half"),
        progress(task, message=["m"]),
        progress({"job_id": 5, "task_id": None}),
    ]
    async with door.socket("w1") as socket:
        for text in ("", "{", "plain words", '{"event": NaN}'):
            await socket.send_str(text)
        await socket.send_bytes(b"\xff\xfe")
        for message in wrong:
            await socket.send_str(json.dumps(message))
        await socket.send_json(progress(task, message="still here"))

        await seen(door, task, "still here")


async def test_a_socket_that_is_nobodys_becomes_that_of_the_first_progress(door: Door) -> None:
    """R39."""
    first, second = await door.held("w1"), await door.held("w2")
    async with door.socket() as one, door.socket() as two:
        await one.send_json(progress(first, message="first"))
        await two.send_json(progress(second, message="second"))
        await seen(door, first, "first")
        await seen(door, second, "second")

        await cancelled_over(door, two, second)
        await cancelled_over(door, one, first)


@pytest.mark.parametrize(
    "open_door", [pytest.param("redis", marks=pytest.mark.integration)], indirect=True
)
async def test_a_worker_has_one_socket_at_all_engines_together(open_door: OpenDoor) -> None:
    """R39."""
    here, there = await open_door(INSTANCE_ID="here"), await open_door(INSTANCE_ID="there")
    task = await here.held("w1")
    async with here.socket("w1") as old, there.socket("w1") as new:
        assert await close_of(old) == (1008, "New connection established")

        await old.close()
        await cancelled_over(here, new, task)
