"""What a job costs in Redis, counted by Redis itself (`MONITOR`)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.blueprint import StateMachineBlueprint
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


async def test_a_sub_job_is_made_and_ends_in_the_round_trips_of_steps(redis_url: str) -> None:
    """R21: so its parent waits before it can run, and is told of its end with that."""
    child, parent = StateMachineBlueprint("child"), StateMachineBlueprint("parent")

    @child.handler_for("start", is_start=True, is_end=True)
    @parent.handler_for("well", is_end=True)
    async def end() -> None:
        pass

    @parent.handler_for("start", is_start=True)
    async def run(actions: ActionFactory) -> None:
        actions.run_blueprint("child", {}, {"success": "well"})

    for blueprint in (child, parent):
        blueprint.validate()
    async with Redis.from_url(redis_url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2))
        async with running(ExecutorService(Settings(), backend, [child, parent])):
            await ended(backend, await create_job(backend, parent))  # the scripts are known now
            async with monitored(redis_url) as commands:
                job_id = await create_job(backend, parent)
                await until(lambda: len(naming(commands, job_id)) >= 6)
            about_job = naming(commands, job_id)
        job = await ended(backend, job_id)
        await backend.close()

    created, until_it_waits = ["EVALSHA"], ["HMGET", "EVALSHA"]
    end_of_child, until_it_ends = ["EVALSHA"], ["HMGET", "EVALSHA"]
    assert about_job == [*created, *until_it_waits, *end_of_child, *until_it_ends]
    assert job.state == "well"
