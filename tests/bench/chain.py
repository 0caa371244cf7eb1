"""Chains of handlers on one executor process, beside the floor measured in the same run.

`python tests/bench/chain.py` prints steps/s (one commit each) on Redis and on memory, the floor (the
bare commit script driven by a pipelined redis-py loop with the same bytes, no handlers), and the
latency of one step of a single job beside a bare EVALSHA round trip. It asserts no times.
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import structlog
import uvloop
from redis.asyncio import Redis

from avtomatika_common import codec, ids
from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Backend, StoreOptions
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument, own_pool
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.lifecycle import running
from avtomatika_core.job import Head, JobStatus
from avtomatika_executor import ExecutorService, Settings

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench.report import percentiles, row
from tests.jobs import create_job
from tests.servers import redis_binaries, running_redis

TRANSITIONS = 10
NOON = 1_767_268_800.0
STEPS = TRANSITIONS + 1  # the last handler ends the job


def chain_blueprint() -> StateMachineBlueprint:
    chain = StateMachineBlueprint("chain")

    def add(number: int) -> None:
        async def handler(
            job_id: str, initial_data: dict[str, int], actions: ActionFactory
        ) -> None:
            actions.transition_to(f"s{number + 1}")

        chain.handler_for(f"s{number}", is_start=number == 0, targets=[f"s{number + 1}"])(handler)

    for number in range(TRANSITIONS):
        add(number)

    @chain.handler_for(f"s{TRANSITIONS}", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return chain


def long_blueprint(length: int, stamps: list[float]) -> StateMachineBlueprint:
    """One job that enters the same state `length` times."""
    loop = StateMachineBlueprint("loop")

    @loop.handler_for("again", is_start=True, targets=["again", "end"])
    async def again(actions: ActionFactory) -> None:
        stamps.append(time.perf_counter())
        actions.transition_to("again" if len(stamps) < length else "end")

    @loop.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return loop


async def create(backend: Backend, blueprint: StateMachineBlueprint, jobs: int) -> None:
    for first in range(0, jobs, 500):
        some = range(first, min(first + 500, jobs))
        await asyncio.gather(*(create_job(backend, blueprint, n=1) for _ in some))


async def all_finished(backend: Backend, jobs: int) -> None:
    while (await backend.jobs.count_by_status()).get(JobStatus.FINISHED, 0) < jobs:
        await asyncio.sleep(0.01)


async def chains(backend: Backend, jobs: int) -> float:
    """Steps per second."""
    await backend.open(StoreOptions(retention_seconds=60))
    blueprint = chain_blueprint()
    blueprint.validate()
    await create(backend, blueprint, jobs)
    service = ExecutorService(Settings(max_concurrent_jobs=100), backend, [blueprint])
    started = time.perf_counter()
    async with running(service):
        await all_finished(backend, jobs)
        took = time.perf_counter() - started
    await backend.close()
    return jobs * STEPS / took


async def single_job(backend: Backend, length: int) -> list[float]:
    """Milliseconds from one handler run to the next."""
    await backend.open(StoreOptions(retention_seconds=60))
    stamps: list[float] = []
    blueprint = long_blueprint(length, stamps)
    blueprint.validate()
    await create(backend, blueprint, 1)
    async with running(ExecutorService(Settings(max_transitions=0), backend, [blueprint])):
        await all_finished(backend, 1)
    await backend.close()
    return [1000 * (after - before) for before, after in pairwise(stamps)]


class Floor:
    """The bare commit script on `jobs` jobs, as many per pipeline as an executor has in hand."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._script = script("commit")
        self._p = keys.partition(0)
        self._stream = keys.lane(self._p, "new", "floor")

    async def prepare(self, jobs: int) -> None:
        await self._client.script_load(self._script.source)
        head = codec.pack(Head(state="s0", updated_at=NOON))
        self.jobs: list[tuple[str, str]] = []
        await self._client.xgroup_create(self._stream, "g", "0", mkstream=True)
        pipe = self._client.pipeline(transaction=False)
        created = [keys.job(self._p, ids.new_id()) for _ in range(jobs)]
        for key in created:
            pipe.hset(
                key,
                mapping={
                    "fence": "0:0", "input": head, "head": head, "data": codec.EMPTY_DATA,
                    "run": 0, "tries": 0, "claim": "", "wait": "", "cancel": "",
                    "status": "running", "group": "floor", "owner": "",
                },
            )  # fmt: skip
            pipe.xadd(self._stream, {"j": key[-36:], "e": b"x"})
        replies = await pipe.execute()
        await self._client.xreadgroup("g", "c", {self._stream: ">"}, count=jobs)
        entries = [entry.decode() for entry in replies[1::2]]
        self.jobs = list(zip(created, entries, strict=True))
        self.head = codec.pack(Head(status=JobStatus.RUNNING, state="s1", transition_count=1,
                                    updated_at=NOON))  # fmt: skip

    def _arguments(self, key: str, entry: str, number: int) -> tuple[Argument, ...]:
        fence = "0:0" if number == 0 else f"{number}:{key[-36:]}"
        return (
            "EVALSHA", self._script.sha, 1, key, self._p, key[-36:], fence,
            f"{number + 1}:{key[-36:]}", self._stream, "c", entry, "keep", "running", number, "",
            self.head, b"",
        )  # fmt: skip

    async def run(self, batch: int) -> float:
        """Commits per second."""
        started = time.perf_counter()
        done = 0
        for first in range(0, len(self.jobs), batch):
            for number in range(STEPS):
                pipe = self._client.pipeline(transaction=False)
                for key, entry in self.jobs[first : first + batch]:
                    pipe.execute_command(*self._arguments(key, entry, number))
                replies = await pipe.execute()
                assert all(reply == b"OK" for reply in replies), replies[0]
                done += len(replies)
        return done / (time.perf_counter() - started)

    async def run_in_own_batches(self, batch: int) -> float:
        """Commits per second through the connections the product uses."""
        pool = own_pool(self._client)
        commands = Commands(pool)
        commands.open()
        started = time.perf_counter()
        done = 0
        for first in range(0, len(self.jobs), batch):
            for number in range(STEPS):
                calls = [
                    commands.script(self._script, [key], self._arguments(key, entry, number)[4:])
                    for key, entry in self.jobs[first : first + batch]
                ]
                assert set(await asyncio.gather(*calls)) == {b"OK"}
                done += len(calls)
        took = time.perf_counter() - started
        await commands.close()
        await pool.disconnect()
        return done / took

    async def round_trips(self, count: int) -> list[float]:
        """Milliseconds of one EVALSHA at a time."""
        key, entry = self.jobs[0]
        took: list[float] = []
        for number in range(count):
            started = time.perf_counter()
            await self._client.execute_command(*self._arguments(key, entry, STEPS + number))
            took.append(1000 * (time.perf_counter() - started))
        return took


async def best_of(times: int, measure: Callable[[], Awaitable[float]]) -> float:
    return max([await measure() for _ in range(times)])


async def main(jobs: int, rounds: int) -> None:
    binary = next(iter(redis_binaries().values()))
    memory = await best_of(rounds, lambda: chains(MemoryStorage(), jobs))
    memory_latency = await single_job(MemoryStorage(), 3000)
    with running_redis(binary) as url:

        async def floor_once(*, own: bool) -> float:
            async with Redis.from_url(url) as client:
                await client.flushall()
                floor = Floor(client)
                await floor.prepare(jobs)
                return await (floor.run_in_own_batches(100) if own else floor.run(100))

        async def chains_once() -> float:
            async with Redis.from_url(url) as client:
                await client.flushall()
                return await chains(RedisStorage(client), jobs)

        floor, own_floor, redis = 0.0, 0.0, 0.0
        for _ in range(rounds):  # in turns: the machine's mood hits both alike
            floor = max(floor, await floor_once(own=False))
            own_floor = max(own_floor, await floor_once(own=True))
            redis = max(redis, await chains_once())
        async with Redis.from_url(url) as client:
            await client.flushall()
            bare = Floor(client)
            await bare.prepare(1)
            round_trips = await bare.round_trips(3000)
            await client.flushall()
            latency = await single_job(RedisStorage(client), 3000)
    print(f"\nChains of {TRANSITIONS} transitions, {jobs} jobs, best of {rounds} ({binary.name})\n")
    row("floor: bare commit script, pipelined", f"{floor:,.0f}", "commits/s")
    row("the same in our own batches", f"{own_floor:,.0f}", "commits/s")
    row(
        "chain on Redis, one executor",
        f"{redis:,.0f}",
        f"steps/s, {redis / floor:.2f} and {redis / own_floor:.2f} of these",
    )
    row("chain on memory", f"{memory:,.0f}", "steps/s")
    row("bare EVALSHA round trip, p50 / p99", percentiles(round_trips), "ms")
    row("one job on Redis, step p50 / p99", percentiles(latency), "ms")
    row("one job on memory, step p50 / p99", percentiles(memory_latency), "ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("avtomatika").setLevel(logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    uvloop.run(main(arguments.jobs, arguments.rounds))
