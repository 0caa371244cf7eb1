"""Tasks through the whole orchestrator: engine, HTTP, workers that answer at once."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from avtomatika import MemoryStorage, OrchestratorEngine, RedisStorage, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory
from tests.support import until

pytestmark = pytest.mark.integration

WORKERS = 4


def one_task() -> StateMachineBlueprint:
    blueprint = StateMachineBlueprint("one_task", api_version="v1", api_endpoint="/jobs/one_task")

    @blueprint.handler_for("start", is_start=True)
    async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.dispatch_task("echo", {"n": initial_data["n"]}, transitions={"success": "end"})

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


def eight_branches() -> StateMachineBlueprint:
    blueprint = StateMachineBlueprint("fan_out", api_version="v1", api_endpoint="/jobs/fan_out")

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        tasks = [{"type": "echo", "params": {"n": number}} for number in range(8)]
        actions.dispatch_parallel(tasks, aggregate_into="join")

    @blueprint.aggregator_for("join")
    async def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        joins = state_history.setdefault("joins", [])
        joins.append([result["data"]["n"] for result in aggregation_results.values()])
        actions.transition_to("end")

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


class Door:
    """The HTTP door of an engine, for clients and workers."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with self._session.request(method, self._url + path, json=body) as response:
            return response.status, await response.json() if response.status != 204 else None

    async def create(self, endpoint: str, **initial_data: Any) -> str:
        status, answer = await self.call("POST", endpoint, {"initial_data": initial_data})
        assert status == 202, answer
        return str(answer["job_id"])

    async def document(self, job_id: str) -> dict[str, Any]:
        status, answer = await self.call("GET", f"/api/v1/jobs/{job_id}")
        assert status == 200, answer
        return dict(answer)

    async def work(self, worker_id: str) -> None:
        """Register, then poll and answer at once, for ever."""
        document = {"worker_id": worker_id, "supported_tasks": ["echo"]}
        assert (await self.call("POST", "/_worker/workers/register", document))[0] == 200
        while True:
            status, task = await self.call("GET", f"/_worker/workers/{worker_id}/tasks/next")
            if status == 204:
                continue
            result = {
                "job_id": task["job_id"],
                "task_id": task["task_id"],
                "worker_id": worker_id,
                "status": "success",
                "data": task["params"],
            }
            answer = await self.call("POST", "/_worker/tasks/result", result)
            assert answer == (200, {"status": "ok"}), answer


@asynccontextmanager
async def working_engine(redis_url: str | None) -> AsyncGenerator[Door]:
    config = Config({"API_HOST": "127.0.0.1", "API_PORT": "0", "REDIS_STREAM_BLOCK_MS": "300"})
    client = None if redis_url is None else Redis.from_url(redis_url)
    engine = OrchestratorEngine(MemoryStorage() if client is None else RedisStorage(client), config)
    engine.register_blueprint(one_task())
    engine.register_blueprint(eight_branches())
    tokens = {
        "X-Client-Token": config.CLIENT_TOKEN,
        "X-Worker-Token": config.GLOBAL_WORKER_TOKEN,
    }
    await engine.start()
    try:
        async with aiohttp.ClientSession(headers=tokens) as session, asyncio.TaskGroup() as tasks:
            door = Door(session, f"http://127.0.0.1:{engine.port}")
            works = [tasks.create_task(door.work(f"worker-{n}")) for n in range(WORKERS)]
            yield door
            for work in works:
                work.cancel()
    finally:
        await engine.stop()
        if client is not None:
            await client.aclose()


async def ended(door: Door, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = {}

    async def has_ended() -> bool:
        document.update(await door.document(job_id))
        return document.get("finished_at") is not None

    await until(has_ended, timeout=30.0, message=f"{job_id} has not ended")
    return document


async def check_results_that_come_at_once(redis_url: str | None) -> None:
    async with working_engine(redis_url) as door:
        job_ids = [await door.create("/api/v1/jobs/one_task", n=number) for number in range(1000)]
        documents = [await ended(door, job_id) for job_id in job_ids]

    assert [document["status"] for document in documents] == ["finished"] * 1000
    assert [document["state_history"] for document in documents] == [
        {"n": number} for number in range(1000)
    ]


async def check_branches_that_end_together(redis_url: str | None) -> None:
    async with working_engine(redis_url) as door:
        job_ids = [await door.create("/api/v1/jobs/fan_out") for _ in range(20)]
        documents = [await ended(door, job_id) for job_id in job_ids]

    assert [document["status"] for document in documents] == ["finished"] * 20
    for document in documents:
        assert document["state_history"]["joins"] == [list(range(8))]


async def test_a_result_that_comes_at_once_is_not_overwritten_on_memory() -> None:
    """R10."""
    await check_results_that_come_at_once(None)


async def test_a_result_that_comes_at_once_is_not_overwritten_on_redis(redis_url: str) -> None:
    """R10."""
    await check_results_that_come_at_once(redis_url)


async def test_branches_that_end_together_join_once_on_memory() -> None:
    """R11."""
    await check_branches_that_end_together(None)


async def test_branches_that_end_together_join_once_on_redis(redis_url: str) -> None:
    """R11."""
    await check_branches_that_end_together(redis_url)
