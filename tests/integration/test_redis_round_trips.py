"""What a job costs in Redis, counted by Redis itself (`MONITOR`)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.lifecycle import running
from avtomatika_executor import ExecutorService, Settings
from tests.blueprints import counting_chain
from tests.jobs import create_job, ended
from tests.support import until

pytestmark = pytest.mark.integration


@asynccontextmanager
async def monitored(url: str) -> AsyncGenerator[list[str], None]:
    """Commands clients sent, one line each; what scripts call inside is left out."""
    lines: list[str] = []
    async with Redis.from_url(url, decode_responses=True) as client, client.monitor() as monitor:

        async def listen() -> None:
            async for command in monitor.listen():
                lines.extend([command["command"]] if command["client_type"] != "lua" else [])

        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listen())
            yield lines
            listening.cancel()


def naming(commands: list[str], job_id: str) -> list[str]:
    """The verbs of the commands that name the job."""
    return [line.split()[0] for line in commands if job_id in line]


async def test_creation_and_each_transition_cost_one_round_trip(redis_url: str) -> None:
    transitions = 10
    blueprint = counting_chain(transitions)
    async with Redis.from_url(redis_url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2))
        async with running(ExecutorService(Settings(), backend, [blueprint])):
            await ended(backend, await create_job(backend, blueprint))  # the scripts are known now
        async with monitored(redis_url) as commands:
            job_id = await create_job(backend, blueprint)
            await until(lambda: naming(commands, job_id))
            created = naming(commands, job_id)
            async with running(ExecutorService(Settings(), backend, [blueprint])):
                await until(lambda: len(naming(commands, job_id)) >= transitions + 3)
            about_job = naming(commands, job_id)
        job = await ended(backend, job_id)
        await backend.close()

    assert len(created) == 1
    # Created, loaded once, then one script for each of the transitions and the end.
    assert about_job == ["EVALSHA", "HMGET", *["EVALSHA"] * (transitions + 1)]
    assert job.data.state_history["steps"] == list(range(transitions))
