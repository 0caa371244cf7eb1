"""How late timers are: on a suite that has nothing else to do, and under chains of handlers.

`python tests/bench/timers.py` has jobs sleep until given moments, 500 of them in a second, on Redis with
gateway, dispatcher and watcher as processes of their own and the executor in this one. What
it prints is the time from the moment a job sleeps to until its next handler runs. It asserts no times.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import uvloop
from redis.asyncio import Redis

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import Backend, StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.clock import Clock
from avtomatika_common.lifecycle import running
from avtomatika_common.process import calm_collector
from avtomatika_core.job import JobStatus
from avtomatika_executor import ExecutorService, Settings

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench.chain import STEPS, chain_blueprint, create
from tests.bench.report import percentiles, row
from tests.jobs import create_job
from tests.processes import Process, a_process
from tests.servers import free_port, redis_binaries, running_redis

AT_ONCE = 500
"""Jobs made together; with chains beside, also how many of these are kept in flight."""
STARTS_PER_SECOND = 1_000
"""Jobs that can be made and put to sleep in a second, on a machine that is not fast."""


def sleeper(clock: Clock, lateness: list[float]) -> StateMachineBlueprint:
    """A job that sleeps until `initial_data["until"]` (Unix seconds) and notes the milliseconds after."""
    blueprint = StateMachineBlueprint("sleeper")

    @blueprint.handler_for("start", is_start=True, targets=["awake"])
    async def start(initial_data: dict[str, float], actions: ActionFactory) -> None:
        actions.sleep(until=initial_data["until"], next_state="awake")

    @blueprint.handler_for("awake", is_end=True)
    async def awake(initial_data: dict[str, float]) -> None:
        lateness.append(1000 * (clock.now() - initial_data["until"]))

    return blueprint


async def put_to_sleep(
    backend: Backend, blueprint: StateMachineBlueprint, moments: list[float]
) -> None:
    """A sleeping job for each of these moments (Unix seconds)."""
    for first in range(0, len(moments), AT_ONCE):
        some = moments[first : first + AT_ONCE]
        await asyncio.gather(*(create_job(backend, blueprint, until=until) for until in some))
    await until_counted(backend, JobStatus.SLEEPING, len(moments))


async def until_counted(backend: Backend, status: JobStatus, jobs: int) -> None:
    while (await backend.jobs.count_by_status()).get(status, 0) < jobs:
        await asyncio.sleep(0.05)


@contextmanager
def services(url: str, directory: Path) -> Generator[None, None, None]:
    """What runs beside an executor."""
    settings = {
        "REDIS_URL": url,
        "API_HOST": "127.0.0.1",
        "API_PORT": str(free_port()),
        "CLIENT_TOKEN": "bench-client-token",
        "GLOBAL_WORKER_TOKEN": "bench-worker-token",
    }
    with ExitStack() as stack:
        started: list[Process] = [
            stack.enter_context(a_process(f"avtomatika_{name}", directory, **settings))
            for name in ("gateway", "dispatcher", "watcher")
        ]
        while not all(process.has_said("serving") for process in started):
            for process in started:
                if process.has_ended():
                    raise SystemExit(f"A service ended: {process.stderr}")
            time.sleep(0.05)
        yield


async def keep_running_chains(backend: Backend, chain: StateMachineBlueprint) -> None:
    """As many chains as an executor can run, until cancelled."""
    made = 0
    while True:
        await create(backend, chain, AT_ONCE)
        made += AT_ONCE
        while (await ended(backend)) < made - AT_ONCE:
            await asyncio.sleep(0.005)


async def ended(backend: Backend) -> int:
    return (await backend.jobs.count_by_status()).get(JobStatus.FINISHED, 0)


@asynccontextmanager
async def chains(
    backend: Backend, chain: StateMachineBlueprint, *, wanted: bool
) -> AsyncGenerator[None, None]:
    if not wanted:
        yield
        return
    async with asyncio.TaskGroup() as group:
        load = group.create_task(keep_running_chains(backend, chain))
        yield
        load.cancel()


async def lateness_of(url: str, per_second: int, seconds: int, *, busy: bool) -> None:
    lateness: list[float] = []
    count = per_second * seconds
    async with Redis.from_url(url) as client:
        backend = RedisStorage(client)
        chain = chain_blueprint()
        sleeps = sleeper(backend.clock, lateness)
        blueprints = [sleeps, chain]
        for blueprint in blueprints:
            blueprint.validate()
        await backend.open(StoreOptions(retention_seconds=600))
        async with running(ExecutorService(Settings(), backend, blueprints)):
            begin = backend.clock.now() + 2 + count / STARTS_PER_SECOND
            await put_to_sleep(backend, sleeps, [begin + n / per_second for n in range(count)])
            if backend.clock.now() > begin:
                raise SystemExit("Making the jobs took longer than they sleep: take fewer.")
            async with chains(backend, chain, wanted=busy):
                await asyncio.sleep(max(0.0, begin - backend.clock.now()))
                before, since = await ended(backend), time.perf_counter()
                while len(lateness) < count:
                    await asyncio.sleep(0.05)
                took = time.perf_counter() - since
                steps = (await ended(backend) - before - count) * STEPS / took
        await backend.close()
    name = "under chains" if busy else "suite otherwise idle"
    note = f"ms, largest {max(lateness):,.1f}"
    if busy:
        note += f"; {steps:,.0f} steps/s of chains beside"
    row(f"{name}, p50 / p99", percentiles(lateness, digits=1), note)


async def main(per_second: int, seconds: int) -> None:
    binary = next(iter(redis_binaries().values()))
    print(
        f"\nLateness of {per_second} timers/s for {seconds} s ({binary.name}); asked p99 <= 50 ms\n"
    )
    for busy in (False, True):
        with (
            running_redis(binary) as url,
            tempfile.TemporaryDirectory() as directory,
            services(url, Path(directory)),
        ):
            await lateness_of(url, per_second, seconds, busy=busy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=20)
    arguments = parser.parse_args()
    logging.getLogger("avtomatika").setLevel(logging.ERROR)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    calm_collector()  # as every process of ours does
    uvloop.run(main(arguments.per_second, arguments.seconds))
