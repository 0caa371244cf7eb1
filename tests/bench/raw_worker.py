"""Workers that cost little: HTTP/1.1 spoken on the socket, so that the server gets the CPU.

One connection is one place of a worker: it polls, answers each task at once, and polls again. All
connections live in this one process. `finish` says how many tasks were done, and how long each
was under way.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.bench.children import Answer, serve

_TOKEN = "secure-worker-token"
_OPENING_AT_ONCE = 64


class Params(msgspec.Struct):
    """What tasks of the benchmark carry: moments of the clock that all processes share."""

    submitted: float = 0.0
    dispatched: float = 0.0


class Task(msgspec.Struct):
    job_id: str
    task_id: str
    params: Params


class Answered(msgspec.Struct):
    status: str = ""


class Tasks(msgspec.Struct):
    tasks: list[Task]
    answers: list[Answered] = []


_task = msgspec.json.Decoder(Task).decode
_tasks = msgspec.json.Decoder(Tasks).decode


class UnexpectedAnswer(Exception):
    """The server answered something that no worker can go on from."""


class Tally:
    """What all connections together did."""

    def __init__(self) -> None:
        self.done = 0
        self.refused = 0
        self.since_submit: list[float] = []
        self.since_dispatch: list[float] = []
        self.failure: Exception | None = None

    def got(self, task: Task) -> None:
        now = time.monotonic()
        self.since_submit.append(1000 * (now - task.params.submitted))
        self.since_dispatch.append(1000 * (now - task.params.dispatched))


def request(method: str, path: str, worker_id: str, body: bytes | None = None) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"X-Worker-Token: {_TOKEN}\r\nX-Worker-ID: {worker_id}\r\n"
    )
    if body is None:
        return f"{head}\r\n".encode()
    return (
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def result_of(task: Task, worker_id: str) -> str:
    return (
        f'{{"job_id":"{task.job_id}","task_id":"{task.task_id}","worker_id":"{worker_id}",'
        '"status":"success","data":{"said":"hello"},"error":null,"data_metadata":null}'
    )


class Connection(asyncio.Protocol):
    """Sends a request, waits for its answer, sends the next."""

    def __init__(self, worker_id: str, tally: Tally, registration: bytes | None) -> None:
        self.is_registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._registration = registration
        self._worker_id = worker_id
        self._tally = tally
        self._transport: Any = None
        self._buffer = b""
        self._is_closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._registration is None:
            self.is_registered.set_result(None)
            self.poll()
        else:
            self._transport.write(self._registration)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = buffer
            return
        status, length = buffer[9:12], 0
        if status != b"204":
            at = buffer.find(b"Content-Length: ", 0, end + 2) + 16
            length = int(buffer[at : buffer.find(b"\r\n", at)])
        if len(buffer) < end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        body = buffer[end + 4 :]
        try:
            if self.is_registered.done():
                self.answered(status, body)
            elif status == b"200":
                self.is_registered.set_result(None)
                self.poll()
            else:
                raise UnexpectedAnswer(f"registration: {status.decode()} {body.decode()}")
        except Exception as failure:  # noqa: BLE001 - a protocol cannot raise; `finish` does
            sys.stderr.write(f"{self._worker_id}: {failure!r}\n")
            self._tally.failure = failure
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_closing:
            self._tally.failure = self._tally.failure or ConnectionError(f"closed: {exc}")
        if not self.is_registered.done():
            self.is_registered.set_exception(self._tally.failure or ConnectionError("closed"))

    def close(self) -> None:
        self._is_closing = True
        self._transport.close()

    def poll(self) -> None:
        raise NotImplementedError

    def answered(self, status: bytes, body: bytes) -> None:
        raise NotImplementedError


class PlainConnection(Connection):
    """One task per poll, one result per request."""

    def __init__(
        self, worker_id: str, prefix: str, tally: Tally, registration: bytes | None
    ) -> None:
        super().__init__(worker_id, tally, registration)
        self._poll = request("GET", f"{prefix}/workers/{worker_id}/tasks/next", worker_id)
        self._result_path = f"{prefix}/tasks/result"
        self._has_task = False

    def poll(self) -> None:
        self._has_task = False
        self._transport.write(self._poll)

    def answered(self, status: bytes, body: bytes) -> None:
        if self._has_task:
            if status != b"200":
                raise UnexpectedAnswer(f"result: {status.decode()} {body.decode()}")
            if b'"ok"' in body:
                self._tally.done += 1
            else:
                self._tally.refused += 1
            self.poll()
        elif status == b"200":
            task = _task(body)
            self._tally.got(task)
            self._has_task = True
            result = result_of(task, self._worker_id).encode()
            self._transport.write(request("POST", self._result_path, self._worker_id, result))
        elif status == b"204":
            self.poll()
        else:
            raise UnexpectedAnswer(f"poll: {status.decode()} {body.decode()}")


class BatchConnection(Connection):
    """Up to `batch` tasks per poll, all results in one request, whose answer has further tasks."""

    def __init__(
        self, worker_id: str, prefix: str, tally: Tally, registration: bytes | None, batch: int
    ) -> None:
        super().__init__(worker_id, tally, registration)
        path = f"{prefix}/workers/{worker_id}/tasks/next?max={batch}"
        self._poll = request("GET", path, worker_id)
        self._results_path = f"{prefix}/tasks/results"
        self._batch = batch

    def poll(self) -> None:
        self._transport.write(self._poll)

    def answered(self, status: bytes, body: bytes) -> None:
        if status == b"204":
            self.poll()
            return
        if status != b"200":
            raise UnexpectedAnswer(f"{status.decode()} {body.decode()}")
        answer = _tasks(body)
        for judged in answer.answers:
            if judged.status == "ok":
                self._tally.done += 1
            else:
                self._tally.refused += 1
        if not answer.tasks:
            self.poll()
            return
        for task in answer.tasks:
            self._tally.got(task)
        results = ",".join(result_of(task, self._worker_id) for task in answer.tasks)
        sent = f'{{"results":[{results}],"max":{self._batch}}}'.encode()
        self._transport.write(request("POST", self._results_path, self._worker_id, sent))


async def ask_once(port: int, sent: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        at = head.find(b"Content-Length: ") + 16
        length = int(head[at : head.find(b"\r\n", at)])
        return int(head[9:12]), await reader.readexactly(length)
    finally:
        writer.close()


def registration(prefix: str, worker_id: str, task_types: Sequence[str], places: int) -> bytes:
    document = {
        "worker_id": worker_id,
        "worker_type": "bench",
        "supported_tasks": task_types,
        "resources": {"max_concurrent_tasks": places, "cpu_cores": 1, "gpu_info": None},
        "installed_software": {},
        "installed_models": [],
        "capabilities": {"hostname": "bench", "ip_address": "127.0.0.1", "cost_per_skill": {}},
    }
    path = f"{prefix}/workers/register"
    return request("POST", path, worker_id, msgspec.json.encode(document))


class Workers:
    """The workers of this process, from `work` to `finish`."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._connections: list[Connection] = []
        self._began = 0.0
        self._cpu = 0.0

    async def work(
        self,
        port: int,
        workers: int,
        connections: int,
        batch: int = 0,
        prefix: str = "/_worker",
        task_types: Sequence[str] = ("echo",),
    ) -> Answer:
        """`workers` workers of so many connections each; a batch of 0 is the plain protocol.

        `{n}` in a task type becomes the worker's number.
        """
        self._tally = tally = Tally()
        self._connections = []
        gate = asyncio.Semaphore(_OPENING_AT_ONCE)
        loop = asyncio.get_running_loop()

        async def open_one(worker_id: str, first: bytes | None) -> None:
            def make() -> Connection:
                if batch:
                    return BatchConnection(worker_id, prefix, tally, first, batch)
                return PlainConnection(worker_id, prefix, tally, first)

            _, made = await loop.create_connection(make, "127.0.0.1", port)
            self._connections.append(made)
            await made.is_registered

        async def open_all(number: int) -> None:
            worker_id = f"bench-{number}"
            types = [task_type.format(n=number) for task_type in task_types]
            first = registration(prefix, worker_id, types, connections * max(batch, 1))
            async with gate:
                await open_one(worker_id, first)
                for _ in range(1, connections):
                    await open_one(worker_id, None)

        self._began, self._cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(open_all(number) for number in range(workers)))
        return {"connections": len(self._connections)}

    async def finish(self) -> Answer:
        """Close every connection and say what was done."""
        took = time.monotonic() - self._began
        for connection in self._connections:
            connection.close()
        self._connections = []
        tally = self._tally
        if tally.failure is not None:
            raise tally.failure
        return {
            "done": tally.done,
            "refused": tally.refused,
            "seconds": took,
            "cpu": time.process_time() - self._cpu,
            "since_submit": tally.since_submit,
            "since_dispatch": tally.since_dispatch,
        }

    async def so_far(self) -> Answer:
        """How long the tasks that came until now were under way."""
        return {"since_submit": self._tally.since_submit}

    async def has_batches(self, port: int) -> Answer:
        """Whether the server knows the endpoint for several results; else what it answered."""
        await ask_once(port, registration("/_worker", "bench-probe", ["none"], 1))
        path = "/_worker/tasks/results"
        status, body = await ask_once(port, request("POST", path, "bench-probe", b'{"results":[]}'))
        return {"is_there": status == 200, "answer": f"{status} {body.decode()[:80]}"}


async def round_trips(port: int, count: int) -> Answer:
    """Milliseconds of one result at a time over a connection that is kept."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = request("POST", "/_worker/tasks/result", "bench", b"{}")
    took: list[float] = []
    for _ in range(count):
        began = time.monotonic()
        writer.write(sent)
        await reader.readuntil(b"}")
        took.append(1000 * (time.monotonic() - began))
    writer.close()
    return {"milliseconds": took}


if __name__ == "__main__":
    here = Workers()
    serve(
        work=here.work,
        finish=here.finish,
        so_far=here.so_far,
        has_batches=here.has_batches,
        round_trips=round_trips,
    )
