"""Engines on loopback, and what a client asks of them."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from avtomatika import ActionFactory, OrchestratorEngine, StateMachineBlueprint, StorageBackend
from avtomatika.config import Config
from tests.support import until

TOKEN = "a-client"


def a_config(**environ: str) -> Config:
    """On any free port; `environ` are settings."""
    here = {"API_HOST": "127.0.0.1", "API_PORT": "0", "CLIENT_TOKEN": TOKEN, "INSTANCE_ID": "test"}
    return Config({**here, "GLOBAL_WORKER_TOKEN": "a-worker", **environ})


def an_engine(
    *blueprints: StateMachineBlueprint, storage: StorageBackend | None = None, **environ: str
) -> OrchestratorEngine:
    engine = OrchestratorEngine(storage, a_config(**environ))
    for blueprint in blueprints:
        engine.register_blueprint(blueprint)
    return engine


@asynccontextmanager
async def started(engine: OrchestratorEngine) -> AsyncGenerator[OrchestratorEngine, None]:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ask(
    engine: OrchestratorEngine, method: str, path: str, body: object = None, token: str = TOKEN
) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{engine.port}{path}"
    async with (
        aiohttp.ClientSession(headers={"X-Client-Token": token} if token else {}) as session,
        session.request(method, url, json=body) as response,
    ):
        return response.status, await response.json()


class RawWorker:
    """A worker `w` that speaks the protocol by hand."""

    def __init__(self, engine: OrchestratorEngine, session: aiohttp.ClientSession) -> None:
        self._base = f"http://127.0.0.1:{engine.port}"
        self._session = session

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with self._session.request(method, self._base + path, json=body) as response:
            return response.status, await response.json()

    async def poll(self) -> dict[str, Any]:
        status, task = await self.ask("GET", "/_worker/workers/w/tasks/next")
        assert status == 200, task
        return dict(task)


@asynccontextmanager
async def a_worker(engine: OrchestratorEngine, *tasks: str) -> AsyncGenerator[RawWorker, None]:
    headers = {"X-Worker-Token": "a-worker", "X-Worker-ID": "w"}
    async with aiohttp.ClientSession(headers=headers) as session:
        worker = RawWorker(engine, session)
        described = {"worker_id": "w", "supported_tasks": tasks}
        status, _ = await worker.ask("POST", "/_worker/workers/register", described)
        assert status == 200
        yield worker


async def ended(engine: OrchestratorEngine, job_id: str) -> dict[str, Any]:
    """The document of the job once it is terminal."""
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        nonlocal found
        found = await engine.storage.get_job_state(job_id) or {}
        return found["finished_at"] is not None

    await until(has_ended, 10, f"job {job_id} did not end")
    return found


def greeting(name: str = "greeting") -> StateMachineBlueprint:
    """start -> end, leaving `{"said": "Hello, <name>"}`."""
    blueprint = StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")

    @blueprint.handler_for("start", is_start=True)
    async def start(
        state_history: dict[str, Any], actions: ActionFactory, name: str = "nobody"
    ) -> None:
        state_history["said"] = f"Hello, {name}"
        actions.transition_to("end")

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


def permission(name: str = "permission") -> StateMachineBlueprint:
    """Waits for a person, who says `yes` or `no`."""
    blueprint = StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")

    @blueprint.handler_for("ask", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.await_human_approval("chat", "May I?", {"yes": "granted", "no": "refused"})

    for state in ("granted", "refused"):

        @blueprint.handler_for(state, is_end=True)
        async def end(job_id: str) -> None:
            pass

    return blueprint
