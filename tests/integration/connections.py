"""Bare connections of workers, whose ends a test can ill-treat."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from tests.interop.door import WORKER_TOKEN
from tests.support import until


def poll_request(worker_id: str = "w1", query: str = "") -> bytes:
    return (
        f"GET /_worker/workers/{worker_id}/tasks/next{query} HTTP/1.1\r\n"
        f"Host: here\r\nX-Worker-Token: {WORKER_TOKEN}\r\n\r\n"
    ).encode()


@asynccontextmanager
async def a_connection(port: int, keeps: int | None = None) -> AsyncGenerator[socket.socket, None]:
    """A bare connection; the kernel `keeps` about so many bytes that were not read from it."""
    with socket.socket() as connection:
        if keeps is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, keeps)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        yield connection


async def send(connection: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, data)


async def read(connection: socket.socket, count: int) -> bytes:
    """Exactly so many bytes."""
    data = b""
    async with asyncio.timeout(10):
        while len(data) < count:
            more = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
            assert more, "the server closed the connection"
            data += more
    return data


async def unread(connection: socket.socket) -> bytes:
    """The whole answer, which stays in the kernel."""
    answers: list[bytes] = []

    def is_whole() -> bool:
        try:
            answers[:] = [connection.recv(65536, socket.MSG_PEEK)]
        except BlockingIOError:
            return False
        head, _, body = answers[0].partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        return length is not None and len(body) == int(length[1])

    await until(is_whole, message="no answer")
    return answers[0]


def body_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def impatient_poll(port: int, worker_id: str, patience: float) -> dict[str, Any] | None:
    """A task; None: the worker lost patience before an answer came, and left."""
    async with a_connection(port) as connection:
        await send(connection, poll_request(worker_id))
        if not await _is_readable(connection, patience):
            return None
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    task: dict[str, Any] = body_of(answer)
    return task


async def _is_readable(connection: socket.socket, patience: float) -> bool:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(patience):
            await readable.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(connection)
    return True
