"""The HTTP transport's later additions: batches, progress, events, the socket, leaving."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from rxon import (
    BatchedResultAnswer,
    ProgressAnswer,
    ProgressUpdatePayload,
    ResultBatchAnswer,
    RxonAuthError,
    RxonNetworkError,
    Task,
    TaskResult,
    Transport,
    WorkerCommand,
    WorkerEvent,
    create_transport,
)
from rxon.exceptions import RequestRefused
from rxon.testing import MockTransport
from tests.support import until

TASK = {"job_id": "j", "task_id": "t", "type": "resize", "params": {"n": 1}}


def a_result(task_id: str = "t") -> TaskResult:
    return TaskResult(job_id="j", task_id=task_id, worker_id="w", status="success")


def a_progress(checkpoint: dict[str, object] | None = None) -> ProgressUpdatePayload:
    progress = ProgressUpdatePayload(task_id="t", job_id="j", progress=0.5, message="half")
    if checkpoint is None:
        return progress
    return ProgressUpdatePayload(
        task_id="t", job_id="j", progress=0.5, message="half", checkpoint=checkpoint
    )


@dataclass
class Orchestrator:
    """Answers each path as told, and keeps what it was asked and told over the socket."""

    answers: dict[str, object] = field(default_factory=dict[str, object])
    """By path; None is an empty 204, what is not here a 404."""
    asked: list[tuple[str, str, Any]] = field(default_factory=list[tuple[str, str, Any]])
    said: list[str] = field(default_factory=list[str])
    sockets: list[web.WebSocketResponse] = field(default_factory=list[web.WebSocketResponse])
    socket_headers: dict[str, str] = field(default_factory=dict[str, str])
    refuses_sockets: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body: object = await request.json() if request.can_read_body else None
        self.asked.append((request.method, request.path_qs, body))
        if request.path not in self.answers:
            return web.json_response({"error": "Nope"}, status=404)
        answer = self.answers[request.path]
        return web.Response(status=204) if answer is None else web.json_response(answer)

    async def socket(self, request: web.Request) -> web.StreamResponse:
        if self.refuses_sockets:
            return web.json_response({"error": "Unauthorized"}, status=self.refuses_sockets)
        self.socket_headers = dict(request.headers)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        await socket.send_json({"command": "welcome"})
        async for message in socket:
            assert message.type is WSMsgType.TEXT
            self.said.append(message.data)
        return socket


@asynccontextmanager
async def talking_to(orchestrator: Orchestrator) -> AsyncGenerator[Transport]:
    app = web.Application()
    app.router.add_get("/_worker/ws/w", orchestrator.socket)
    app.router.add_route("*", "/{rest:.*}", orchestrator.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0).start()
    transport = create_transport(f"http://localhost:{runner.addresses[0][1]}", "w", "secret")
    await transport.connect()
    try:
        yield transport
    finally:
        await transport.close()
        await runner.cleanup()


@asynccontextmanager
async def listening(transport: Transport) -> AsyncGenerator[list[WorkerCommand]]:
    commands: list[WorkerCommand] = []

    async def listen() -> None:
        async for command in transport.listen_for_commands():
            commands.append(command)  # noqa: PERF401 - it never ends by itself

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(listen())
        await until(lambda: commands == [WorkerCommand(command="welcome")])
        commands.clear()
        yield commands
        task.cancel()


async def test_a_poll_for_several_brings_several() -> None:
    path = "/_worker/workers/w/tasks/next"
    several = {"tasks": [{**TASK, "attempt": 2, "checkpoint": {"page": 3}}, TASK]}
    orchestrator = Orchestrator({path: several})

    async with talking_to(orchestrator) as transport:
        tasks = await transport.poll_tasks(1, most=5)

    assert orchestrator.asked == [("GET", f"{path}?max=5", None)]
    assert tasks == (
        Task(
            job_id="j",
            task_id="t",
            type="resize",
            params={"n": 1},
            attempt=2,
            checkpoint={"page": 3},
        ),
        Task(job_id="j", task_id="t", type="resize", params={"n": 1}),
    )


@pytest.mark.parametrize(
    ("answer", "tasks"),
    [
        (None, ()),
        (TASK, (Task(job_id="j", task_id="t", type="resize", params={"n": 1}),)),
    ],
)
async def test_a_poll_for_several_may_bring_none_or_a_plain_one(
    answer: object, tasks: tuple[Task, ...]
) -> None:
    orchestrator = Orchestrator({"/_worker/workers/w/tasks/next": answer})

    async with talking_to(orchestrator) as transport:
        assert tuple(await transport.poll_tasks(1, most=5)) == tasks


async def test_results_go_together_and_tasks_come_back() -> None:
    path = "/_worker/tasks/results"
    answer = {
        "answers": [{"status": "ok"}, {"error": "Job not found"}],
        "tasks": [{**TASK, "deadline": 9.5}],
    }
    orchestrator = Orchestrator({path: answer})

    async with talking_to(orchestrator) as transport:
        answered = await transport.send_results([a_result("t-1"), a_result("t-2")], most=2)
        await transport.send_results([a_result("t-3")])

    (_, _, first), (_, _, second) = orchestrator.asked
    assert [one["task_id"] for one in first["results"]] == ["t-1", "t-2"]
    assert first["max"] == 2
    assert "max" not in second
    assert answered == ResultBatchAnswer(
        answers=(BatchedResultAnswer(status="ok"), BatchedResultAnswer(error="Job not found")),
        tasks=(Task(job_id="j", task_id="t", type="resize", params={"n": 1}, deadline=9.5),),
    )


async def test_an_orchestrator_without_batches_says_so() -> None:
    async with talking_to(Orchestrator()) as transport:
        with pytest.raises(RequestRefused) as refused:
            await transport.send_results([a_result()])

    assert refused.value.status == 404


async def test_progress_goes_by_http_where_there_is_no_socket() -> None:
    path = "/_worker/tasks/progress"
    answer = {"status": "ok", "cancel_task_ids": ["t"]}
    orchestrator = Orchestrator({path: answer})

    async with talking_to(orchestrator) as transport:
        answered = await transport.send_progress(a_progress({"page": 3}))
        await transport.send_progress(a_progress())

    assert answered == ProgressAnswer(status="ok", cancel_task_ids=("t",))
    with_checkpoint, without = (body for _, _, body in orchestrator.asked)
    assert with_checkpoint == {
        "event": "progress_update",
        "task_id": "t",
        "job_id": "j",
        "progress": 0.5,
        "message": "half",
        "checkpoint": {"page": 3},
    }
    assert "checkpoint" not in without


async def test_an_event_is_told() -> None:
    path = "/_worker/events"
    orchestrator = Orchestrator({path: {"status": "event_accepted"}})
    event = WorkerEvent(
        event_id="e",
        worker_id="w",
        origin_worker_id="w",
        event_type="page_done",
        payload={"page": 3},
        origin_task_id="t",
        target_job_id="j",
        target_task_id="t",
    )

    async with talking_to(orchestrator) as transport:
        answer = await transport.send_event(event)

    assert answer.status == "event_accepted"
    ((method, asked, body),) = orchestrator.asked
    assert (method, asked) == ("POST", path)
    assert (body["event_id"], body["payload"], body["target_job_id"]) == ("e", {"page": 3}, "j")


async def test_a_worker_that_leaves_is_deleted() -> None:
    path = "/_worker/workers/w"
    orchestrator = Orchestrator({path: {"status": "unregistered"}})

    async with talking_to(orchestrator) as transport:
        await transport.leave()

    assert orchestrator.asked == [("DELETE", path, None)]


async def test_commands_come_over_the_socket_and_nonsense_is_passed_over() -> None:
    orchestrator = Orchestrator()

    async with talking_to(orchestrator) as transport, listening(transport) as commands:
        for text in ("{", '{"no": "command"}', "[]"):
            await orchestrator.sockets[0].send_str(text)
        await orchestrator.sockets[0].send_bytes(b"\xff")
        await orchestrator.sockets[0].send_json(
            {"command": "cancel_task", "task_id": "t", "job_id": "j", "new": 1}
        )
        await until(lambda: commands)

    assert commands == [WorkerCommand(command="cancel_task", task_id="t", job_id="j")]
    assert orchestrator.socket_headers["X-Worker-Token"] == "secret"
    assert orchestrator.socket_headers["X-RXON-Version"] == "1.0b2"
    assert orchestrator.socket_headers["X-Worker-ID"] == "w"


async def test_progress_goes_over_the_socket_while_one_is_open() -> None:
    """As text: what an older orchestrator reads."""
    orchestrator = Orchestrator({"/_worker/tasks/progress": {"status": "ok"}})

    async with talking_to(orchestrator) as transport:
        async with listening(transport):
            await transport.send_progress(a_progress())
            await until(lambda: orchestrator.said)
        await transport.send_progress(a_progress())

    assert orchestrator.said == [
        '{"task_id":"t","job_id":"j","progress":0.5,"message":"half","event":"progress_update"}'
    ]
    assert [path for _, path, _ in orchestrator.asked] == ["/_worker/tasks/progress"]


async def test_a_checkpoint_goes_by_http_and_over_the_socket_only_where_that_is_unknown() -> None:
    orchestrator = Orchestrator()

    async with talking_to(orchestrator) as transport, listening(transport):
        await transport.send_progress(a_progress({"page": 3}))
        await until(lambda: orchestrator.said)

    assert [path for _, path, _ in orchestrator.asked] == ["/_worker/tasks/progress"]
    assert '"checkpoint":{"page":3}' in orchestrator.said[0]


async def test_a_socket_that_is_closed_ends_the_commands() -> None:
    orchestrator = Orchestrator()

    async with talking_to(orchestrator) as transport, asyncio.timeout(5):
        listened = [command async for command in _closed_at_once(transport, orchestrator)]

    assert [command.command for command in listened] == ["welcome"]


async def _closed_at_once(
    transport: Transport, orchestrator: Orchestrator
) -> AsyncGenerator[WorkerCommand]:
    async def close() -> None:
        await until(lambda: orchestrator.sockets)
        await orchestrator.sockets[0].close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(close())
        async for command in transport.listen_for_commands():
            yield command


@pytest.mark.parametrize(("status", "error"), [(401, RxonAuthError), (404, RequestRefused)])
async def test_a_socket_that_is_refused_says_why(status: int, error: type[Exception]) -> None:
    async with talking_to(Orchestrator(refuses_sockets=status)) as transport:
        with pytest.raises(error):
            await anext(transport.listen_for_commands())


async def test_no_socket_where_nobody_is_there() -> None:
    transport = create_transport("http://localhost:1", "w", "secret")
    await transport.connect()
    try:
        with pytest.raises(RxonNetworkError):
            await anext(transport.listen_for_commands())
    finally:
        await transport.close()


async def test_the_mock_hands_out_what_fits_and_keeps_what_comes() -> None:
    mock = MockTransport("w", "secret")
    for number in range(3):
        mock.push_task(Task(job_id="j", task_id=f"t-{number}", type="resize"))
    mock.push_command(WorkerCommand(command="cancel_task", task_id="t-0"))

    first = await mock.poll_tasks(0.01, most=2)
    answer = await mock.send_results([a_result("t-0"), a_result("t-1")], most=5)
    none = await mock.poll_tasks(0.01, most=1)
    command = await anext(mock.listen_for_commands())
    await mock.leave()

    assert [task.task_id for task in first] == ["t-0", "t-1"]
    assert [task.task_id for task in answer.tasks] == ["t-2"]
    assert [one.status for one in answer.answers] == ["ok", "ok"]
    assert none == ()
    assert command.task_id == "t-0"
    assert mock.has_left
