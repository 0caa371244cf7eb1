"""What a worker's socket refuses, and what it says of that."""

import logging
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse
from services.gateway.tests.door import WORKER, Door

from tests.support import until


async def refusal_of(
    socket: ClientWebSocketResponse, message: Any, caplog: pytest.LogCaptureFixture
) -> logging.LogRecord:
    """The line that is logged once the message was read."""

    def lines() -> list[logging.LogRecord]:
        return [line for line in caplog.records if line.message.startswith("socket ")]

    caplog.clear()
    await socket.send_json(message)
    await until(lambda: bool(lines()), message="nothing is logged")
    [line] = lines()
    return line


@pytest.mark.parametrize("message", [{}, {"type": "progress"}, {"event": None}, {"event": 7}])
async def test_a_message_without_an_event_is_logged_with_what_is_known(
    door: Door, caplog: pytest.LogCaptureFixture, message: dict[str, Any]
) -> None:
    await door.register("w")

    async with door.http.ws_connect(f"{door.url}/_worker/ws/w", headers=WORKER) as socket:
        line = await refusal_of(socket, message, caplog)

    assert (line.levelno, line.message) == (logging.WARNING, "socket message refused")
    assert vars(line)["worker_id"] == "w"
    assert vars(line)["reason"] == "No event. Known events are: progress_update."


async def test_another_event_is_a_debug_line(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "avtomatika")
    await door.register("w")

    async with door.http.ws_connect(f"{door.url}/_worker/ws/w", headers=WORKER) as socket:
        line = await refusal_of(socket, {"event": "progress"}, caplog)

    assert (line.levelno, line.message) == (logging.DEBUG, "socket event ignored")
    assert vars(line)["reason"] == "Known events are: progress_update."


async def test_a_worker_that_never_registered_gets_no_socket(door: Door) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "c2l4dGVlbiBieXRlcyEhIQ==",
    }

    answer = await door.worker("GET", "/_worker/ws/never", headers=upgrade)

    assert (answer.status, answer.body) == (404, {"error": "Worker not found"})
