"""The same engine over Redis: it shares its store with others, and keeps nothing to itself."""

from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from libs.avtomatika.tests.engines import an_engine, ask, ended, greeting, started
from redis.asyncio import Redis

from avtomatika import RedisStorage, StateMachineBlueprint
from tests.servers import redis_answers, redis_binaries, running_redis
from tests.support import until

SERVERS = redis_binaries()
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not SERVERS, reason="no Redis here: `make setup` installs one"),
]


@pytest.fixture(scope="module")
def server() -> Generator[str, None, None]:
    with running_redis(SERVERS[max(SERVERS)]) as url:
        yield url


@pytest.fixture
def redis_url(server: str) -> str:
    """URL of an empty Redis."""
    assert redis_answers(urlsplit(server).port or 0, "FLUSHALL", "+OK")
    return server


async def test_every_setting_of_the_store_counts_where_the_engine_made_it(
    redis_url: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "REDIS_URL": redis_url,
        "AVTOMATIKA_PARTITIONS": "3",
        "HISTORY_DATABASE_URI": f"sqlite:{tmp_path / 'h.db'}",
    }
    async with started(an_engine(greeting(), **settings)) as engine:
        _, answers = zip(
            *[await ask(engine, "POST", "/api/v1/jobs/greeting", {}) for _ in range(6)],
            strict=True,
        )
        jobs = [answer["job_id"] for answer in answers]
        documents = [await ended(engine, job_id) for job_id in jobs]

        async def are_all_archived() -> bool:
            _, rows = await ask(engine, "GET", "/api/v1/jobs")
            return [row["event_type"] for row in rows] == ["job_completed"] * 6

        await until(are_all_archived)
        _, rows = await ask(engine, "GET", f"/api/v1/jobs/{jobs[0]}/history")

    assert {document["status"] for document in documents} == {"finished"}
    assert [row["event_type"] for row in rows] == [
        "job_created", "state_started", "state_finished", "state_started", "state_finished",
        "job_completed",
    ]  # fmt: skip


async def test_a_job_of_one_engine_is_done_by_another(redis_url: str) -> None:
    async with started(an_engine(REDIS_URL=redis_url)) as door:
        async with started(an_engine(greeting(), REDIS_URL=redis_url)):
            job_id = await door.create_background_job("greeting", {"name": "Ada"})
            job = await ended(door, job_id)
        left = await door.create_background_job("greeting", {"name": "Bob"})
        async with started(an_engine(greeting(), REDIS_URL=redis_url)):
            later = await ended(door, left)

    assert job["state_history"] == {"said": "Hello, Ada"}
    assert later["state_history"] == {"said": "Hello, Bob"}


async def test_a_redis_client_is_a_data_store(redis_url: str) -> None:  # R59
    async with Redis.from_url(redis_url) as client:  # pyright: ignore[reportUnknownMemberType]
        await client.set("k", "v")
        blueprint = StateMachineBlueprint("cached", data_stores={"cache": client})

        @blueprint.handler_for("start", is_start=True, is_end=True)
        async def start(data_stores: Any, state_history: dict[str, Any]) -> None:
            state_history["found"] = (await data_stores.cache.get("k")).decode()

        storage = RedisStorage(client, consumer_name="mine")
        async with started(an_engine(blueprint, storage=storage)) as engine:
            job = await ended(engine, await engine.create_background_job("cached", {}))
        assert await client.get("k") == b"v"

    assert (job["status"], job["state_history"]) == ("finished", {"found": "v"})
