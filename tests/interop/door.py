"""An engine's HTTP door, and what stands before it: a client, workers, bare sockets.

Written from the published contract alone: nothing here knows how the server is built.
"""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy

from tests.support import until

WORKER_TOKEN = "the-global-worker-token"
CLIENT_TOKEN = "a-client-token"
TERMINAL = {"finished", "failed", "error", "quarantined", "cancelled"}
NO_JOB = "00000000-0000-4000-8000-000000000000"
"""An id as jobs have them, of no job."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and text of an error, which is an object of this one key."""
        document = self.json
        assert list(document) == ["error"], document
        assert self.headers["Content-Type"].startswith("application/json")
        return self.status, document["error"]


class Door:
    def __init__(
        self,
        session: aiohttp.ClientSession,
        port: int,
        stop: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.session = session
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.stop = stop
        self._known: set[str] = set()

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = WORKER_TOKEN,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """A worker's request. Bytes are sent as they are, anything else as JSON; None: no body."""
        sent = CIMultiDict(headers or {})
        if token is not None:
            sent["X-Worker-Token"] = token
        data = None
        if body is not None:
            data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
            sent.setdefault("Content-Type", "application/json")
        async with self.session.request(
            method, self.url + path, data=data, headers=sent, allow_redirects=False
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    # -- as a worker

    async def register(self, worker_id: str, *task_types: str, **fields: Any) -> None:
        document = {
            "worker_id": worker_id,
            "supported_tasks": list(task_types) or ["resize"],
            "resources": {"max_concurrent_tasks": 10, "cpu_cores": 1, "gpu_info": None},
            **fields,
        }
        answer = await self.call("POST", "/_worker/workers/register", document)
        assert answer.status == 200, answer
        self._known.add(worker_id)

    async def poll(self, worker_id: str) -> Answer:
        return await self.call("GET", f"/_worker/workers/{worker_id}/tasks/next")

    async def task(self, worker_id: str) -> dict[str, Any]:
        """The task that a poll of this worker brings."""
        answer = await self.poll(worker_id)
        assert answer.status == 200, answer
        task: dict[str, Any] = answer.json
        return task

    async def tasks(self, worker_id: str, most: int) -> list[dict[str, Any]]:
        """The tasks that a poll of this worker for several brings."""
        answer = await self.call("GET", f"/_worker/workers/{worker_id}/tasks/next?max={most}")
        assert answer.status == 200, answer
        assert list(answer.json) == ["tasks"]
        tasks: list[dict[str, Any]] = answer.json["tasks"]
        return tasks

    async def progress(self, task: Mapping[str, Any], worker_id: str, /, **fields: Any) -> Answer:
        """Progress of this task by HTTP; the worker is named in the header."""
        body = {"job_id": task["job_id"], "task_id": task["task_id"], **fields}
        return await self.call(
            "POST", "/_worker/tasks/progress", body, headers={"X-Worker-ID": worker_id}
        )

    async def heartbeat(self, worker_id: str, body: object = None) -> Answer:
        return await self.call("PATCH", f"/_worker/workers/{worker_id}", body)

    async def result(self, body: object, **options: Any) -> Answer:
        return await self.call("POST", "/_worker/tasks/result", body, **options)

    async def done(self, task: Mapping[str, Any], worker_id: str, /, **fields: Any) -> Answer:
        """A result of this task, `success` unless `fields` say else."""
        return await self.result(result_of(task, worker_id, **fields))

    # -- as a client

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        headers = {"X-Client-Token": CLIENT_TOKEN}
        return await self.call(method, f"/api/v1{path}", body, token=None, headers=headers)

    async def create(self, blueprint: str = "one_task", **initial_data: Any) -> str:
        answer = await self.ask("POST", f"/jobs/{blueprint}", {"initial_data": initial_data})
        assert answer.status == 202, answer
        job_id: str = answer.json["job_id"]
        return job_id

    async def offered(self, blueprint: str = "one_task", **initial_data: Any) -> str:
        """A new job whose task waits for a worker by now."""
        job_id = await self.create(blueprint, **initial_data)

        async def waits() -> bool:
            return (await self.document(job_id))["status"] == "waiting_for_worker"

        await until(waits, message=f"job {job_id} does not wait for a worker")
        return job_id

    async def document_bytes(self, job_id: str) -> bytes:
        answer = await self.ask("GET", f"/jobs/{job_id}")
        assert answer.status == 200, answer
        return answer.body

    async def document(self, job_id: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(await self.document_bytes(job_id))
        return document

    async def ended(self, job_id: str) -> dict[str, Any]:
        """The job's document once its status is terminal."""

        async def is_terminal() -> bool:
            return (await self.document(job_id))["status"] in TERMINAL

        await until(is_terminal, 10, f"job {job_id} did not end")
        return await self.document(job_id)

    async def cancel(self, job_id: str) -> Answer:
        answer = await self.ask("POST", f"/jobs/{job_id}/cancel")
        assert answer.status == 200, answer
        return answer

    async def held(self, worker_id: str = "w1", **initial_data: Any) -> dict[str, Any]:
        """A task of a new job, in the hands of this worker, which is registered if it was not."""
        if worker_id not in self._known:
            await self.register(worker_id)
        job_id = await self.create(**initial_data)
        task = await self.task(worker_id)
        assert task["job_id"] == job_id
        return task

    # -- as a WebSocket

    @asynccontextmanager
    async def socket(
        self, worker_id: str | None = None, token: str = WORKER_TOKEN
    ) -> AsyncGenerator[aiohttp.ClientWebSocketResponse, None]:
        """The worker's socket; without an id, one that is nobody's yet."""
        path = "/_worker/ws" if worker_id is None else f"/_worker/ws/{worker_id}"
        async with self.session.ws_connect(
            self.url + path, headers={"X-Worker-Token": token}
        ) as socket:
            yield socket

    # -- as a bare socket

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator["Connection", None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()

    async def exchange(self, sent: bytes) -> Answer:
        """What the server answers to these bytes."""
        async with self.connection() as connection:
            connection.send(sent)
            return await connection.answer()


class Connection:
    """One TCP connection with the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(10):
            head = await self._reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("ascii").split("\r\n")
            headers: CIMultiDict[str] = CIMultiDict()
            for line in filter(None, lines):
                name, _, value = line.partition(":")
                headers.add(name, value.strip())
            body = await self._reader.readexactly(int(headers.get("Content-Length", "0")))
        return Answer(int(first.split()[1]), CIMultiDictProxy(headers), body)

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(10):
            return await self._reader.read()


def result_of(task: Mapping[str, Any], worker_id: str, /, **fields: Any) -> dict[str, Any]:
    """The flat result as the SDK sends it."""
    return {
        "job_id": task["job_id"],
        "task_id": task["task_id"],
        "worker_id": worker_id,
        "status": "success",
        "data": None,
        "error": None,
        "data_metadata": None,
        **fields,
    }


def ignored(answer: Answer) -> str:
    """The reason why a result was ignored; the answer is a 200 of three keys."""
    assert answer.status == 200, answer
    document = answer.json
    assert set(document) == {"status", "reason", "message"}, document
    assert document["status"] == "ignored"
    assert isinstance(document["message"], str)
    reason: str = document["reason"]
    return reason
