"""The engine under load: a process that makes jobs and says how long they took."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from avtomatika import OrchestratorEngine, RedisStorage, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory
from avtomatika_common.backend.redis import keys
from avtomatika_common.process import calm_collector
from avtomatika_core.job import JobStatus
from tests.bench.children import Answer, serve

_STUCK_SECONDS = 60.0


class Engine:
    """An engine over Redis, and the jobs that run on it."""

    def __init__(self) -> None:
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._ended = 0

    async def start(self, redis: str, settings: dict[str, str]) -> Answer:
        config = Config(
            {
                "API_HOST": "127.0.0.1",
                "API_PORT": "0",
                "LOG_LEVEL": "ERROR",
                "WORKER_HEALTH_CHECK_INTERVAL_SECONDS": "600",
                **settings,
            }
        )
        self._redis = Redis.from_url(redis)
        self._engine = OrchestratorEngine(RedisStorage(self._redis), config)
        self._engine.register_blueprint(self._one_task())
        self._engine.register_blueprint(self._fan_out())
        await self._engine.start()
        calm_collector()  # as every process of ours does
        return {"port": self._engine.port}

    def _one_task(self) -> StateMachineBlueprint:
        blueprint = StateMachineBlueprint("one_task")

        @blueprint.handler_for("start", is_start=True)
        async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
            params = {"submitted": initial_data["submitted"], "dispatched": time.monotonic()}
            actions.dispatch_task(initial_data["type"], params, transitions={"success": "end"})

        blueprint.handler_for("end", is_end=True)(self._end)
        return blueprint

    def _fan_out(self) -> StateMachineBlueprint:
        blueprint = StateMachineBlueprint("fan_out")

        @blueprint.handler_for("start", is_start=True)
        async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
            task = {"type": "echo", "params": {}}
            actions.dispatch_parallel([task] * initial_data["branches"], aggregate_into="join")

        @blueprint.aggregator_for("join")
        async def join(
            initial_data: dict[str, Any],
            aggregation_results: dict[str, Any],
            actions: ActionFactory,
        ) -> None:
            assert len(aggregation_results) == initial_data["branches"]
            actions.transition_to("end")

        blueprint.handler_for("end", is_end=True)(self._end)
        return blueprint

    async def _end(self, job_id: str) -> None:
        self._end_of(job_id).set_result(None)

    def _end_of(self, job_id: str) -> asyncio.Future[None]:
        """The last handler may run before the call that made the job is back."""
        return self._ends.setdefault(job_id, asyncio.get_running_loop().create_future())

    async def _job(self, blueprint: str, **initial_data: Any) -> None:
        """Make a job and wait until its last handler runs."""
        data = {"submitted": time.monotonic(), **initial_data}
        job_id = await self._engine.create_background_job(blueprint, data)
        await self._end_of(job_id)
        del self._ends[job_id]
        self._ended += 1

    async def _all_committed(self) -> None:
        while True:
            counts = await self._engine.storage.jobs.count_by_status()
            if counts.get(JobStatus.FINISHED, 0) >= self._ended:
                return
            await asyncio.sleep(0.002)

    async def jobs(self, count: int, in_flight: int) -> Answer:
        """Run `count` jobs of one task each, `in_flight` of them at a time."""
        numbers = iter(range(count))

        async def lane() -> None:
            for _ in numbers:
                await self._job("one_task", type="echo")

        began = time.monotonic()
        cpu, redis_cpu = time.process_time(), await self._redis_cpu()
        async with asyncio.timeout(_STUCK_SECONDS + count / 50):
            await asyncio.gather(*(lane() for _ in range(in_flight)))
            await self._all_committed()
        return {
            "seconds": time.monotonic() - began,
            "cpu": time.process_time() - cpu,
            "redis_cpu": await self._redis_cpu() - redis_cpu,
        }

    async def _redis_cpu(self) -> float:
        told = await self._redis.info("cpu")
        return float(told["used_cpu_user"] + told["used_cpu_sys"])

    async def one_by_one(
        self, task_types: list[str], rest_seconds: float, worker_id: str | None = None
    ) -> Answer:
        """A job for each of these task types, the next when the one before has ended.

        In between it rests, and waits until the worker has parked a poll again if one is named.
        """
        for task_type in task_types:
            if worker_id is not None:
                while not await self._redis.zcard(f"{keys.WORKERS}cred:{worker_id}"):
                    pass
            await asyncio.sleep(rest_seconds)
            async with asyncio.timeout(_STUCK_SECONDS):
                await self._job("one_task", type=task_type)
        return {}

    async def fan_out(self, branches: int) -> Answer:
        """One job with so many branches."""
        began = time.monotonic()
        async with asyncio.timeout(_STUCK_SECONDS + branches / 50):
            await self._job("fan_out", branches=branches)
        return {"seconds": time.monotonic() - began}

    async def left(self) -> Answer:
        """How many open polls and how many tasks in hand the workers' directory knows of."""
        counts: dict[str, int] = {}
        for kind in ("cred", "hold"):
            pipe = self._redis.pipeline(transaction=False)
            async for key in self._redis.scan_iter(f"{keys.WORKERS}{kind}:*", count=1000):
                pipe.zcard(key)
            counts[kind] = sum(await pipe.execute())
        return {"credits": counts["cred"], "holds": counts["hold"]}

    async def round_trips(self, count: int, rest_seconds: float = 0.0) -> Answer:
        """Milliseconds of one bare EVALSHA at a time, while the engine has nothing to do."""
        sha = await self._redis.script_load("return ARGV[1]")
        took: list[float] = []
        for _ in range(count):
            if rest_seconds:
                await asyncio.sleep(rest_seconds)
            began = time.monotonic()
            await self._redis.execute_command("EVALSHA", sha, 0, "x" * 100)
            took.append(1000 * (time.monotonic() - began))
        return {"milliseconds": took}


if __name__ == "__main__":
    here = Engine()
    serve(
        start=here.start,
        jobs=here.jobs,
        one_by_one=here.one_by_one,
        fan_out=here.fan_out,
        left=here.left,
        round_trips=here.round_trips,
    )
