"""The requirements about hosts: they are killed at any moment, and each has an uptime of its own."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from avtomatika_common.backend.ports import PROMISE_SECONDS
from avtomatika_common.clock import SystemClock
from tests.integration.sites import SETTINGS, persistently
from tests.interop.door import CLIENT_TOKEN, Answer, Door, result_of
from tests.processes import Process, a_process
from tests.servers import free_port
from tests.support import until

pytestmark = pytest.mark.integration


@pytest.fixture
def port() -> int:
    """One that is free; each host serves there when the one before is gone."""
    return free_port()


Hosts = Callable[..., AbstractContextManager[Process]]


@pytest.fixture
def a_host(redis_url: str, tmp_path: Path, port: int) -> Hosts:
    settings = {
        **SETTINGS,
        "API_PORT": str(port),
        "REDIS_URL": redis_url,
        "AVTOMATIKA_DURABILITY": "fast",  # the servers of tests keep nothing
        "WORKER_POLL_TIMEOUT_SECONDS": "0.5",
        "UPTIME_SECONDS": "1000",
        "CLOCK_AHEAD_SECONDS": "0",
    }
    return partial(_a_host, tmp_path, settings)


def _a_host(
    directory: Path, settings: dict[str, str], **others: str
) -> AbstractContextManager[Process]:
    return a_process("tests.integration.host", directory, **{**settings, **others})


async def create(door: Door, blueprint: str, **initial_data: Any) -> str:
    """The id of the one job that is made, however often that is asked for."""
    headers = {"X-Client-Token": CLIENT_TOKEN, "Idempotency-Key": str(initial_data)}
    ask = partial(
        door.call,
        "POST",
        f"/api/v1/jobs/{blueprint}",
        {"initial_data": initial_data},
        token=None,
        headers=headers,
    )

    async def is_known() -> Answer:
        answer = await ask()
        return answer if answer.status != 404 else Answer(503, {}, b"")  # it is not read yet

    answer = await persistently(is_known)
    assert answer.status == 202, answer
    job_id: str = answer.json["job_id"]
    return job_id


async def work(door: Door) -> None:
    """A worker that does every task, and repeats what was not answered."""
    registration = {"worker_id": "w1", "supported_tasks": ["resize"]}
    while True:
        answer = await persistently(partial(door.poll, "w1"))
        if answer.status == 404:
            await persistently(
                partial(door.call, "POST", "/_worker/workers/register", registration)
            )
        elif answer.status == 200:
            result = result_of(answer.json, "w1")
            told = await persistently(partial(door.result, result))
            assert told.status == 200, told


# --- R1: killed at any point

POINTS = (
    "create 1 before",
    "create 1 after",
    "commit 1 before",  # its handler's run has begun with it
    "commit 1 after",
    "commit 2 before",  # the task is on the board with it
    "commit 2 after",
    "lease 1 after",
    "end_lease 1 before",
    "end_lease 1 after",
    "commit 3 before",  # the result, and the run behind it has begun
    "commit 3 after",
    "commit 4 before",  # the end
    "commit 4 after",
)


@pytest.mark.timeout(120)
async def test_wherever_a_host_is_killed_every_accepted_job_goes_on(
    a_host: Hosts, port: int
) -> None:
    """R1."""
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        door = Door(session, port, stop=session.close)
        working = tasks.create_task(work(door))
        made: list[asyncio.Task[str]] = []
        for point in POINTS:
            with a_host(DIES_AT=point) as host:
                made.append(tasks.create_task(create(door, "work", point=point)))
                # What was promised through the host before waits until that promise is over.
                await until(host.has_ended, PROMISE_SECONDS + 10, f"it is not killed at {point}")
                assert host.exit_code == -signal.SIGKILL, host.stderr
        with a_host():
            job_ids = [await one for one in made]
            jobs = [await end_of(door, job_id) for job_id in job_ids]
            working.cancel()

    assert len(set(job_ids)) == len(POINTS)
    for point, job in zip(POINTS, jobs, strict=True):
        assert job["status"] == "finished", point
        assert job["state_history"] == {"notes": ["here"]}, point
        assert job["transition_count"] == 2, point


async def end_of(door: Door, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        answer = await persistently(partial(door.ask, "GET", f"/jobs/{job_id}"))
        assert answer.status == 200, f"{job_id} was accepted and is lost: {answer}"
        found.update(answer.json)
        return answer.json["finished_at"] is not None

    await until(has_ended, 15, f"{job_id} did not end: {found}")
    return found


# --- R26: what time it is


@pytest.mark.parametrize("ahead_seconds", [0, 3600, -3600])
async def test_a_deadline_is_kept_by_a_host_that_was_booted_at_another_time(
    a_host: Hosts, port: int, ahead_seconds: int
) -> None:
    """R26: also when the one that set it is gone, and when the time of day was wrong there."""
    async with aiohttp.ClientSession() as session:
        door = Door(session, port, stop=session.close)
        with (
            a_host(UPTIME_SECONDS="3", API_PORT="0") as other,
            a_host(UPTIME_SECONDS="10000000", CLOCK_AHEAD_SECONDS=str(ahead_seconds)) as host,
        ):
            await until(lambda: other.has_said('"serving"'), 15)
            job_id = await create(door, "nap", seconds=2.0)
            created_at = SystemClock().now()
            sleeping = await door.document(job_id)
            while sleeping["status"] != "sleeping":
                sleeping = await door.document(job_id)
            host.send(signal.SIGTERM)
            await until(host.has_ended, 10)
            ended_at = SystemClock().now()
            with a_host(UPTIME_SECONDS="5"):
                job = await end_of(door, job_id)

    assert abs(sleeping["created_at"] - created_at) < 5
    assert sleeping["wake_at"] - sleeping["created_at"] == pytest.approx(2.0, abs=0.5)
    assert ended_at < sleeping["wake_at"]
    assert 0 <= job["finished_at"] - sleeping["wake_at"] < 1
