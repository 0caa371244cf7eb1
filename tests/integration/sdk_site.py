"""Engines, and workers of the SDK at them: over HTTP or in process, on memory or on Redis."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from avtomatika import MemoryStorage, OrchestratorEngine, RedisStorage, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory
from avtomatika_core.job import WorkerId
from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from rxon import Transport, create_transport
from tests.support import until

WORKER_TOKEN = "the-global-worker-token"
HEARTBEAT_SECONDS = 0.3
RARELY = 30.0
"""Seconds between heartbeats where none shall come in time."""
CALM: Mapping[str, Any] = {"IDLE_POLL_DELAY": 0.5, "HEARTBEAT_DEBOUNCE_DELAY": RARELY}
"""A worker that makes no new connection when its engine stops over HTTP: Python 3.11 leaks one that is
made at the very moment a server closes."""

_ENGINE: Mapping[str, str] = {
    "API_HOST": "127.0.0.1",
    "API_PORT": "0",
    "GLOBAL_WORKER_TOKEN": WORKER_TOKEN,
    "RATE_LIMITING_ENABLED": "false",
    "REDIS_STREAM_BLOCK_MS": "100",
    "RETRY_DELAY_SECONDS": "0.05",
    "SHUTDOWN_TIMEOUT_SECONDS": "5",
    "WATCHER_INTERVAL_SECONDS": "0.2",
    "WORKER_POLL_TIMEOUT_SECONDS": "2",
}
_WORKER: Mapping[str, object] = {
    "HEARTBEAT_INTERVAL": HEARTBEAT_SECONDS,
    "HEARTBEAT_DEBOUNCE_DELAY": 0.01,
    "TASK_POLL_ERROR_DELAY": 0.05,
    "RESULT_RETRY_INITIAL_DELAY": 0.02,
    "SHUTDOWN_TIMEOUT": 2.0,
}


def one_task() -> StateMachineBlueprint:
    """Dispatches the task `task` with `params`; its `status` is where the job ends."""
    blueprint = StateMachineBlueprint("one_task", api_version="v1", api_endpoint="/jobs/one_task")

    @blueprint.handler_for("start", is_start=True, targets=["done", "noticed"])
    async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.dispatch_task(
            initial_data.get("task", "work"),
            initial_data.get("params", {}),
            transitions={"success": "done"},
            event_transitions={"page_done": "noticed"},
        )

    async def end() -> None:
        pass

    blueprint.handler_for("done", is_end=True)(end)
    blueprint.handler_for("noticed", is_end=True)(end)
    return blueprint


def fan_out() -> StateMachineBlueprint:
    """Dispatches `count` tasks `work` at once; `numbers` has what they brought."""
    blueprint = StateMachineBlueprint("fan_out", api_version="v1", api_endpoint="/jobs/fan_out")

    @blueprint.handler_for("start", is_start=True)
    async def start(count: int, actions: ActionFactory) -> None:
        tasks = [{"type": "work", "params": {"n": number}} for number in range(count)]
        actions.dispatch_parallel(tasks, aggregate_into="join")

    @blueprint.aggregator_for("join")
    async def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        results = aggregation_results.values()
        state_history["numbers"] = sorted(result["data"]["n"] for result in results)
        actions.transition_to("done")

    @blueprint.handler_for("done", is_end=True)
    async def done() -> None:
        pass

    return blueprint


class Site:
    """`way` is how its workers come in: "http" or "in-process"."""

    def __init__(self, way: str, redis_url: str | None, directory: Path) -> None:
        self.way = way
        self.redis_url = redis_url
        self.directory = directory

    @asynccontextmanager
    async def engine(self, **settings: str) -> AsyncGenerator[OrchestratorEngine, None]:
        """One that runs; on Redis all share what is there, unless `REDIS_DB` parts them."""
        async with AsyncExitStack() as stack:
            storage = MemoryStorage()
            if self.redis_url is not None:
                url = urlsplit(self.redis_url)._replace(path=f"/{settings.pop('REDIS_DB', '0')}")
                client = Redis.from_url(url.geturl())
                stack.push_async_callback(client.aclose)
                storage = RedisStorage(client)
            engine = OrchestratorEngine(storage, Config({**_ENGINE, **settings}))
            engine.register_blueprint(one_task())
            engine.register_blueprint(fan_out())
            await engine.start()
            stack.push_async_callback(engine.stop)
            yield engine

    def transport(self, engine: OrchestratorEngine, worker_id: str = "w") -> Transport:
        if self.way == "in-process":
            return engine.transport(worker_id)
        return create_transport(url_of(engine), worker_id, WORKER_TOKEN)

    def worker(
        self,
        *engines: OrchestratorEngine,
        worker_id: str = "w",
        places: int = 4,
        transport: Transport | None = None,
        entries: tuple[Mapping[str, object], ...] = (),
        announce_contracts: bool = False,
        limits: Mapping[str, int] | None = None,
        **settings: object,
    ) -> Worker:
        """A worker at these engines; `entries` is what it is told of each, beside its URL."""
        config = self.config(worker_id, **settings)
        lines = [transport] if transport else [self.transport(one, worker_id) for one in engines]
        told: tuple[Mapping[str, object], ...] = entries or ({},) * len(lines)
        return Worker(
            max_concurrent_tasks=places,
            task_type_limits=limits,
            config=config,
            clients=[
                ({"url": f"engine-{number}", **entry}, line)
                for number, (line, entry) in enumerate(zip(lines, told, strict=True))
            ],
            announce_contracts=announce_contracts,
        )

    def config(self, worker_id: str, **settings: object) -> WorkerConfig:
        config = WorkerConfig({"WORKER_ID": worker_id, "TASK_FILES_DIR": str(self.directory)})
        for name, value in {**_WORKER, **settings}.items():
            setattr(config, name, value)
        return config


def url_of(engine: OrchestratorEngine) -> str:
    return f"http://127.0.0.1:{engine.port}"


@asynccontextmanager
async def working(*workers: Worker) -> AsyncGenerator[None, None]:
    """They work inside, and stop gently afterwards."""
    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(worker.main(), name=worker.worker_id)
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()


async def create(engine: OrchestratorEngine, task: str = "work", **params: Any) -> str:
    """A job whose one task is this."""
    data = {"task": task, "params": params}
    return await engine.create_background_job("one_task", data)


async def document(engine: OrchestratorEngine, job_id: str) -> dict[str, Any]:
    found = await engine.storage.get_job_state(job_id)
    assert found is not None, f"job {job_id} is gone"
    return found


async def ended(engine: OrchestratorEngine, job_id: str, within: float = 10.0) -> dict[str, Any]:
    """The job's document, once it is terminal."""

    async def is_terminal() -> bool:
        return (await document(engine, job_id))["finished_at"] is not None

    await until(is_terminal, within, f"job {job_id} did not end")
    return await document(engine, job_id)


async def done(engine: OrchestratorEngine, task: str = "work", **params: Any) -> dict[str, Any]:
    """The document of a job like `create`'s, once it has ended."""
    return await ended(engine, await create(engine, task, **params))


async def is_registered(engine: OrchestratorEngine, worker_id: str = "w") -> bool:
    return await engine.storage.workers.get(WorkerId(worker_id)) is not None


async def is_parked(engine: OrchestratorEngine, worker_id: str = "w") -> bool:
    """Whether a poll of the worker is open."""
    worker = await engine.storage.workers.get(WorkerId(worker_id))
    return worker is not None and worker.places.room > 0
