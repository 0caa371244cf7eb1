"""A gateway on loopback over the memory backend, with the parts of other services a test needs."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import orjson

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Backend, CatalogueEntry, MatchAnswer, StoreOptions
from avtomatika_common.config import Config
from avtomatika_common.history import HistoryReader
from avtomatika_common.ids import new_id
from avtomatika_common.lifecycle import running
from avtomatika_core.events import HandlerRaised, HandlerReturned
from avtomatika_core.job import Job, JobStatus, WorkerId
from avtomatika_core.machine import step
from avtomatika_core.outcomes import Action, DispatchTask, Rules, TaskRequest
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.worker_events import OnWorkerEvent
from tests.support import match_one, until

CLIENT = {"X-Client-Token": "client-secret"}
WORKER = {"X-Worker-Token": "worker-secret"}
APPROVAL_SECRET = "the wait's own"
UNKNOWN = "00000000-0000-4000-8000-000000000000"

RULES = Rules()
A_TASK = DispatchTask(
    task=TaskRequest(
        type="resize",
        params={"width": 10},
        transitions={"success": "done", "failure": "failed"},
    )
)


class Answer(NamedTuple):
    status: int
    body: Any
    """As JSON, or the text where it is none."""
    headers: dict[str, str]


def an_entry(name: str = "images", **changes: Any) -> CatalogueEntry:
    described: dict[str, Any] = {
        "name": name,
        "group": "default",
        "start_state": "start",
        "api_endpoint": f"/jobs/{name}",
        "api_version": "v1",
        "dot": "digraph { start -> done }",
    }
    return CatalogueEntry(**{**described, **changes})


class Door:
    def __init__(
        self, backend: Backend, service: GatewayService, http: aiohttp.ClientSession
    ) -> None:
        self.backend = backend
        self.service = service
        self.http = http
        self.url = f"http://127.0.0.1:{service.port}"

    async def ask(self, method: str, path: str, **request: Any) -> Answer:
        async with self.http.request(method, self.url + path, **request) as response:
            body = await response.read()
            is_json = response.content_type == "application/json"
            return Answer(
                response.status,
                orjson.loads(body) if is_json else body.decode(),
                dict(response.headers),
            )

    async def client(self, method: str, path: str, **request: Any) -> Answer:
        """A request with the client's token."""
        headers = {**CLIENT, **request.pop("headers", {})}
        return await self.ask(method, path, headers=headers, **request)

    async def worker(self, method: str, path: str, **request: Any) -> Answer:
        """A request with the workers' token."""
        headers = {**WORKER, **request.pop("headers", {})}
        return await self.ask(method, path, headers=headers, **request)

    async def new_job(self, **body: Any) -> str:
        answer = await self.client("POST", "/api/v1/jobs/images", json=body)
        assert answer.status == 202, answer
        return str(answer.body["job_id"])

    async def handler_returns(self, action: Action | None) -> Job:
        """Be the executor: take the next inbox entry, and let the handler ask for `action`."""
        return await self._handle(action=action)

    async def handler_breaks(self) -> Job:
        """As `handler_returns`, for a handler that can never work: the job is quarantined."""
        return await self._handle(breaks=True)

    async def _handle(self, *, action: Action | None = None, breaks: bool = False) -> Job:
        jobs, now = self.backend.jobs, self.backend.clock.now()
        [delivery] = await self.backend.inbox.read("default", "executor", 1)
        assert delivery.event is not None
        stored = await jobs.load(delivery.job_id)
        assert stored is not None
        stored = await jobs.commit(stored, step(stored.job, delivery.event, RULES), delivery)
        if stored.job.status is not JobStatus.RUNNING:
            return stored.job
        run = stored.job.run
        event = (
            HandlerRaised(at=now, started_at=now, run=run, message="no", is_definition_error=True)
            if breaks
            else HandlerReturned(
                at=now,
                started_at=now,
                run=run,
                action=action,
                fresh_ids=(new_id(),),
                approval_secret=APPROVAL_SECRET,
                approval_secret_hash=hashlib.sha256(APPROVAL_SECRET.encode()).hexdigest(),
            )
        )
        stored = await jobs.commit(stored, step(stored.job, event, RULES), delivery)
        return stored.job

    async def job_with_task(self) -> Job:
        """A job whose task is on the board."""
        await self.new_job()
        return await self.handler_returns(A_TASK)

    async def register(self, worker_id: str, **document: Any) -> None:
        described = {"worker_id": worker_id, "supported_tasks": ["resize"], **document}
        answer = await self.worker("POST", "/_worker/workers/register", json=described)
        assert answer.status == 200, answer

    async def poll(self, worker_id: str) -> Answer:
        return await self.worker("GET", f"/_worker/workers/{worker_id}/tasks/next")

    async def match(self, worker_id: str) -> None:
        """Be the dispatcher: promise the first task to this worker, once it polls."""

        async def is_matched() -> bool:
            tasks = await self.backend.board.heads(0, 1)
            return bool(tasks) and (
                await match_one(self.backend.workers, WorkerId(worker_id), tasks[0])
                is MatchAnswer.MATCHED
            )

        await until(is_matched, message="no task, or no poll of the worker")

    async def is_certain(self) -> bool:
        """Whether the one task that was handed out has arrived: its result is waited for by now."""
        due = await self.backend.timers.next_due(0)
        return due is not None and due - self.backend.clock.now() > 60

    async def tasks_on_board(self) -> int:
        return await self.backend.board.length()


@asynccontextmanager
async def open_door(
    history: HistoryReader | None = None,
    on_worker_event: OnWorkerEvent | None = None,
    **environ: str,
) -> AsyncGenerator[Door, None]:
    """A running gateway that knows the blueprint `images`; `environ` are settings."""
    config = Config(
        {
            "API_HOST": "127.0.0.1",
            "API_PORT": "0",
            "CLIENT_TOKEN": "client-secret",
            "GLOBAL_WORKER_TOKEN": "worker-secret",
            "WORKER_POLL_TIMEOUT_SECONDS": "20",
            **environ,
        }
    )
    backend = MemoryStorage()
    async with AsyncExitStack() as stack:
        await backend.open(StoreOptions(block_seconds=0.05))
        stack.push_async_callback(backend.close)
        await backend.catalogue.publish([an_entry()])
        service = GatewayService(
            Settings.from_config(config), backend, history, on_worker_event=on_worker_event
        )
        await stack.enter_async_context(running(service))
        connector = aiohttp.TCPConnector(limit=0)
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        async with relaying(backend):
            yield Door(backend, service, http)


@asynccontextmanager
async def relaying(backend: Backend) -> AsyncGenerator[None, None]:
    """Carry what the partition decided to the workers, as the watcher does."""

    async def relay() -> None:
        while True:
            await backend.relay.run_once(0)

    async with asyncio.TaskGroup() as tasks:
        relayed = tasks.create_task(relay())
        yield
        relayed.cancel()
