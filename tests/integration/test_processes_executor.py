"""Executors as processes: killed, paused, stopped and started wrongly."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_core.job import Job, JobId, JobStatus
from avtomatika_core.redrive import redrive
from tests import blueprints_for_processes as blueprints
from tests.jobs import create_job, ended
from tests.processes import Process, a_process
from tests.proxy import proxy_to
from tests.support import until

pytestmark = pytest.mark.integration

STEPS = ["s0", "s1", "s2"]


@asynccontextmanager
async def a_store(url: str, partitions: int = 1) -> AsyncGenerator[RedisStorage, None]:
    async with Redis.from_url(url) as client:
        store = RedisStorage(client)
        await store.open(StoreOptions(partitions=partitions, block_seconds=0.2))
        yield store
        await store.close()


def an_executor(url: str, directory: Path, **settings: str) -> AbstractContextManager[Process]:
    given = {
        "REDIS_URL": url,
        "AVTOMATIKA_DURABILITY": "fast",  # the servers of tests keep nothing
        "AVTOMATIKA_BLUEPRINTS": "tests.blueprints_for_processes",
        "SHUTDOWN_TIMEOUT_SECONDS": "5",
    }
    return a_process("avtomatika_executor", directory, **{**given, **settings})


async def serving(*processes: Process) -> None:
    for process in processes:
        await until(lambda p=process: p.has_said('"serving"'), 15.0, "it does not serve")


async def all_ended(store: RedisStorage, job_ids: Iterable[JobId], seconds: float) -> list[Job]:
    return [await ended(store, job_id, seconds) for job_id in job_ids]


def runs(log: Path) -> list[list[str]]:
    """pid, job id and state of each handler run so far."""
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def steps_of(job: Job) -> list[str]:
    return [state for state, _ in job.data.state_history["steps"]]


def who_ran(jobs: Iterable[Job]) -> set[int]:
    return {pid for job in jobs for _, pid in job.data.state_history["steps"]}


@pytest.mark.parametrize("partitions", [1, 3])
async def test_jobs_of_a_killed_executor_end_once(
    redis_url: str, tmp_path: Path, partitions: int
) -> None:
    """R1."""
    log = tmp_path / "runs"
    settings = {"AVTOMATIKA_PARTITIONS": str(partitions)}
    async with a_store(redis_url, partitions) as store:
        with (
            an_executor(redis_url, tmp_path, **settings) as one,
            an_executor(redis_url, tmp_path, **settings) as two,
        ):
            both = {one.popen.pid, two.popen.pid}
            await serving(one, two)
            job_ids = [
                await create_job(store, blueprints.slow, log=str(log), seconds=0.3)
                for _ in range(30)
            ]
            await until(lambda: {int(pid) for pid, *_ in runs(log)} == both)
            one.send(signal.SIGKILL)
            killed_at = time.monotonic()
            jobs = await all_ended(store, job_ids, 15.0)
            took = time.monotonic() - killed_at
            await until(lambda: is_empty(store))

    assert {job.status for job in jobs} == {JobStatus.FINISHED}
    assert all(steps_of(job) == STEPS for job in jobs)
    assert two.popen.pid in who_ran(jobs)
    assert took < 12


async def test_a_job_that_is_redriven_between_kills_ends_once(
    redis_url: str, tmp_path: Path
) -> None:
    """R1, R62: no executor is there when it is redriven, and the next one dies of it, too."""
    log = tmp_path / "there" / "runs"
    async with a_store(redis_url) as store:
        with an_executor(redis_url, tmp_path, JOB_MAX_RETRIES="0") as one:
            await serving(one)
            job_id = await create_job(store, blueprints.slow, log=str(log), seconds=0.5)
            assert (await ended(store, job_id)).status is JobStatus.QUARANTINED
            one.send(signal.SIGKILL)
            await until(one.has_ended)
        log.parent.mkdir()
        broken = await store.jobs.load(job_id)
        assert broken is not None
        await store.jobs.redrive(broken, redrive(broken.job, store.clock.now()))
        with an_executor(redis_url, tmp_path) as two, an_executor(redis_url, tmp_path) as three:
            await serving(two, three)
            await until(lambda: len(runs(log)) == 2, message="it does not come to its second state")
            running = int(runs(log)[-1][0])
            killed = two if two.popen.pid == running else three
            killed.send(signal.SIGKILL)
            [job] = await all_ended(store, [job_id], 15.0)
            await until(lambda: is_empty(store))

        counts = await store.jobs.count_by_status()

    assert job.status is JobStatus.FINISHED
    assert steps_of(job) == STEPS
    assert len(who_ran([job])) == 2
    assert counts == {JobStatus.FINISHED: 1}


async def test_an_executor_that_slept_too_long_writes_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    """R4: others have taken over by then, and what it did counts once."""
    log = tmp_path / "runs"
    async with a_store(redis_url) as store:
        with an_executor(redis_url, tmp_path) as one:
            await serving(one)
            job_ids = [
                await create_job(store, blueprints.slow, log=str(log), seconds=0.5)
                for _ in range(5)
            ]
            await until(lambda: len(runs(log)) == 5)
            one.send(signal.SIGSTOP)
            with an_executor(redis_url, tmp_path) as two:
                jobs = await all_ended(store, job_ids, 20.0)
                fences = [await fence_of(store, job_id) for job_id in job_ids]
                one.send(signal.SIGCONT)
                await until(lambda: one.stderr.count('"claim lost"') == 5, 5.0)
                after = [await fence_of(store, job_id) for job_id in job_ids]
                again = await create_job(store, blueprints.chain)
                still_works = await ended(store, again)
                pids = who_ran(jobs)

    assert fences == after
    assert pids == {two.popen.pid}
    assert all(steps_of(job) == STEPS for job in jobs)
    assert still_works.status is JobStatus.FINISHED


async def test_a_handler_that_blocks_the_loop_is_not_taken_for_dead(
    redis_url: str, tmp_path: Path
) -> None:
    """R4: it holds the loop for longer than the life of a liveness key, and runs once."""
    log = tmp_path / "runs"
    async with a_store(redis_url) as store:
        with an_executor(redis_url, tmp_path) as one, an_executor(redis_url, tmp_path) as two:
            await serving(one, two)
            job_id = await create_job(store, blueprints.blocking, log=str(log), seconds=7.0)
            job = await ended(store, job_id, 15.0)

    assert job.status is JobStatus.FINISHED
    assert len(runs(log)) == 1


async def test_after_half_a_minute_without_redis_nothing_is_taken_over(
    redis_url: str, tmp_path: Path
) -> None:
    """Longer than anything lives there: all handlers go on, and each step runs once."""
    log = tmp_path / "runs"
    async with a_store(redis_url) as store, proxy_to(redis_url) as (proxy, url):
        with an_executor(url, tmp_path) as one, an_executor(url, tmp_path) as two:
            both = {one.popen.pid, two.popen.pid}
            await serving(one, two)
            job_ids = [
                await create_job(store, blueprints.slow, log=str(log), seconds=12.0)
                for _ in range(8)
            ]
            await until(lambda: len(runs(log)) == 8 and {int(r[0]) for r in runs(log)} == both)
            proxy.refuses = True
            proxy.cut_now()
            await asyncio.sleep(30.0)  # this is the outage
            proxy.refuses = False
            jobs = await all_ended(store, job_ids, 45.0)

    assert {job.status for job in jobs} == {JobStatus.FINISHED}
    assert all(steps_of(job) == STEPS for job in jobs)
    assert len(runs(log)) == 24


async def test_a_stop_in_the_middle_of_fifty_jobs_loses_and_doubles_none(
    redis_url: str, tmp_path: Path
) -> None:
    """R70."""
    log = tmp_path / "runs"
    async with a_store(redis_url) as store:
        with an_executor(redis_url, tmp_path, EXECUTOR_MAX_CONCURRENT_JOBS="20") as one:
            await serving(one)
            job_ids = [
                await create_job(store, blueprints.slow, log=str(log), seconds=0.3)
                for _ in range(50)
            ]
            await until(lambda: len(runs(log)) > 20)
            one.send(signal.SIGTERM)
            await until(one.has_ended, 5.0, "it does not stop")
            code = one.exit_code
        left = [job for job in [await store.jobs.load(job_id) for job_id in job_ids] if job]
        with an_executor(redis_url, tmp_path):
            jobs = await all_ended(store, job_ids, 15.0)
            await until(lambda: is_empty(store))

    assert code == 0
    assert any(not stored.job.is_terminal for stored in left)
    assert {job.status for job in jobs} == {JobStatus.FINISHED}
    assert all(steps_of(job) == STEPS for job in jobs)
    assert len(runs(log)) == 150  # each step of each job once
    assert "Traceback" not in one.stderr


async def test_a_plain_function_that_never_ends_does_not_hold_up_the_stop(
    redis_url: str, tmp_path: Path
) -> None:
    """R70."""
    log = tmp_path / "runs"
    async with a_store(redis_url) as store:
        with an_executor(redis_url, tmp_path, SHUTDOWN_TIMEOUT_SECONDS="0.2") as one:
            await serving(one)
            await create_job(store, blueprints.endless, log=str(log))
            await until(lambda: runs(log))
            one.send(signal.SIGTERM)
            await until(one.has_ended, 5.0, "it does not stop")
            code = one.exit_code

    assert code == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "Redis at 127.0.0.1:1/0 cannot be used"),
        ({"JOB_MAX_RETRIES": "x"}, "JOB_MAX_RETRIES: 'x' is not an integer"),
        ({"AVTOMATIKA_BLUEPRINTS": ""}, "There is no blueprint to run"),
        ({"AVTOMATIKA_BLUEPRINTS": "no.such.module"}, "names 'no.such.module', which cannot"),
    ],
)
async def test_what_cannot_start_says_why_in_one_line(
    redis_url: str, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with an_executor(redis_url, tmp_path, **settings) as process:
        await until(process.has_ended, 10.0, "it neither runs nor ends")

    [line] = process.stderr.splitlines()
    assert line.startswith("avtomatika: ")
    assert words in line
    assert process.exit_code == 1


async def is_empty(store: RedisStorage) -> bool:
    return await store.inbox.length() == 0


async def fence_of(store: RedisStorage, job_id: JobId) -> str:
    stored = await store.jobs.load(job_id)
    assert stored is not None
    return stored.fence
