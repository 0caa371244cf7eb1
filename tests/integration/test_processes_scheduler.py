"""Schedulers as processes: killed and paused, and still each time makes one job."""

import signal
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from avtomatika_common.backend.ports import CatalogueEntry, StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.ids import derived_id
from avtomatika_core.job import JobId
from avtomatika_core.schedule import Standing
from tests.contract.builders import Executor
from tests.processes import Process, a_process
from tests.support import until

pytestmark = pytest.mark.integration

EACH_SECOND = '[tick]\nblueprint = "report"\ninterval_seconds = 1\nmisfire = "catch_up"\n'
REPORT = CatalogueEntry(
    name="report", group="blue", start_state="begin", api_endpoint=None, api_version=None, dot=""
)


class Store:
    def __init__(self, redis: RedisStorage) -> None:
        self.redis = redis

    async def standing(self) -> Standing:
        entry = await self.redis.schedules.get("tick")
        return Standing() if entry is None else entry.standing

    async def has_run_until(self, moment: float) -> None:
        """It ran at that time or later."""

        async def has_run() -> bool:
            return ((await self.standing()).last_run or 0.0) >= moment

        await until(has_run, 20.0, "nobody makes the jobs")

    async def has_jobs(self, count: int) -> bool:
        return await self.jobs() >= count

    async def jobs(self) -> int:
        return sum((await self.redis.jobs.count_by_status()).values())


@asynccontextmanager
async def a_store(url: str) -> AsyncGenerator[Store, None]:
    async with Redis.from_url(url) as client:
        redis = RedisStorage(client)
        await redis.open(StoreOptions(block_seconds=0.2))
        await redis.catalogue.publish([REPORT])
        yield Store(redis)
        await redis.close()


def a_scheduler(
    url: str, directory: Path, toml: str = EACH_SECOND
) -> AbstractContextManager[Process]:
    path = directory / "schedules.toml"
    path.write_text(toml)
    settings = {"REDIS_URL": url, "SCHEDULES_CONFIG_PATH": str(path)}
    return a_process("avtomatika_scheduler", directory, **settings)


async def leading(one: Process, other: Process) -> tuple[Process, Process]:
    """The one that leads, and the one that stands by."""
    await until(
        lambda: one.has_said('"lease taken"') or other.has_said('"lease taken"'), 15.0, "none leads"
    )
    await until(lambda: all(p.has_said('"serving"') for p in (one, other)), 15.0, "one is missing")
    return (one, other) if one.has_said('"lease taken"') else (other, one)


async def is_one_job_for_each_second(store: Store) -> bool:
    """Of the times up to the last run each has its job, and there is no other job."""
    standing = await store.standing()
    assert standing.anchor is not None
    assert standing.last_run is not None
    times = [
        f"{standing.anchor + second:.3f}"
        for second in range(round(standing.last_run - standing.anchor) + 1)
    ]
    ids = [JobId(derived_id("schedule", "tick", time)) for time in times]
    return (
        all([await store.redis.jobs.load(job_id) for job_id in ids])
        and await store.jobs() == len(ids)
        and (await store.standing()) == standing
    )


async def test_a_killed_leader_loses_no_time_and_doubles_none(
    redis_url: str, tmp_path: Path
) -> None:
    """R73."""
    async with a_store(redis_url) as store:
        with a_scheduler(redis_url, tmp_path) as one, a_scheduler(redis_url, tmp_path) as two:
            leader, other = await leading(one, two)
            await store.has_run_until(store.redis.clock.now() + 1)
            leader.send(signal.SIGKILL)
            killed_at = store.redis.clock.now()
            await store.has_run_until(killed_at + 1)
            took = store.redis.clock.now() - killed_at
            other.send(signal.SIGTERM)
            await until(other.has_ended, 10.0, "it does not stop")

            assert await is_one_job_for_each_second(store)

    assert took < 10
    assert other.exit_code == 0


async def test_a_leader_that_slept_over_its_lease_doubles_none(
    redis_url: str, tmp_path: Path
) -> None:
    """R65."""
    async with a_store(redis_url) as store:
        with a_scheduler(redis_url, tmp_path) as one, a_scheduler(redis_url, tmp_path) as two:
            leader, other = await leading(one, two)
            await store.has_run_until(store.redis.clock.now())
            leader.send(signal.SIGSTOP)
            await until(lambda: other.has_said('"lease taken"'), 15.0, "nobody takes over")
            await store.has_run_until(store.redis.clock.now())
            leader.send(signal.SIGCONT)
            await until(lambda: leader.has_said('"lease lost"'), 10.0, "it still leads")
            await store.has_run_until(store.redis.clock.now() + 1)
            leader.send(signal.SIGTERM)
            other.send(signal.SIGTERM)
            await until(lambda: leader.has_ended() and other.has_ended(), 10.0, "one goes on")

            assert await is_one_job_for_each_second(store)


async def test_a_time_that_waits_when_its_leader_is_killed_makes_one_job(
    redis_url: str, tmp_path: Path
) -> None:
    toml = EACH_SECOND + 'overlap = "queue"\n'
    async with a_store(redis_url) as store:
        with (
            a_scheduler(redis_url, tmp_path, toml) as one,
            a_scheduler(redis_url, tmp_path, toml) as two,
        ):
            leader, other = await leading(one, two)

            async def is_queued() -> bool:
                return (await store.standing()).queued is not None

            await until(is_queued, 10.0, "no time waits")
            queued = (await store.standing()).queued
            leader.send(signal.SIGKILL)
            await until(lambda: other.has_said('"lease taken"'), 15.0, "nobody takes over")
            executor = Executor(store.redis, group="blue")
            await executor.end(await executor.apply(await executor.read()))
            await until(lambda: store.has_jobs(2), 10.0, "what waited was lost")
            second = (await executor.read()).job_id
            await until(is_queued, 10.0, "no other time waits")

            assert await store.jobs() == 2
    assert queued is not None
    assert second == derived_id("schedule", "tick", f"{queued:.3f}")
