"""Connections to Redis that break in the middle: what was not answered is sent again, applied once."""

import asyncio
import random
import time
from typing import Any

import hiredis
import pytest
import uvloop
from redis.asyncio import Redis

from avtomatika_common.backend.ports import StoreOptions, StoreUnavailable
from avtomatika_common.backend.redis import connection
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import BlockingReader, own_pool
from avtomatika_common.backend.redis.dead import RedisDeadEvents
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobStatus
from avtomatika_executor import ExecutorService, Settings
from tests.blueprints import counting_chain
from tests.contract.builders import Executor, a_job
from tests.jobs import create_job, ended
from tests.proxy import proxy_to
from tests.support import until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("seed", range(4))
async def test_a_commit_pipeline_cut_midway_is_applied_once(redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    blueprint = counting_chain(20)
    async with proxy_to(redis_url) as (proxy, url), Redis.from_url(url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2))
        job_ids = [await create_job(backend, blueprint) for _ in range(20)]

        def cut_again() -> None:
            if proxy.cuts < 8:
                proxy.cut_replies_after(chance.randrange(5, 400))

        proxy.on_cut = cut_again
        async with running(ExecutorService(Settings(), backend, [blueprint])):
            proxy.cut_replies_after(chance.randrange(5, 400))
            jobs = [await ended(backend, job_id, 20.0) for job_id in job_ids]
        await backend.close()

    assert proxy.cuts >= 1
    for job in jobs:
        assert job.status is JobStatus.FINISHED
        assert job.data.state_history["steps"] == list(range(20))
        assert job.head.transition_count == 20


async def test_entries_whose_reply_was_cut_are_read_all_the_same(redis_url: str) -> None:
    """They are this consumer's by then: asked again, nothing new would come."""
    async with (
        Redis.from_url(redis_url) as client,
        proxy_to(redis_url) as (proxy, url),
        Redis.from_url(url) as cut_off,
    ):
        store, reading = RedisStorage(client), RedisStorage(cut_off)
        for each in (store, reading):
            await each.open(StoreOptions(block_seconds=0.2))
        await reading.inbox.read("default", "me", 10)  # it is connected, and there are groups
        jobs = [a_job(store) for _ in range(5)]
        for job in jobs:
            await store.jobs.create(job)

        proxy.cut_replies_after(60)
        deliveries = await reading.inbox.read("default", "me", 10)
        for each in (store, reading):
            await each.close()

    assert proxy.cuts == 1
    assert [delivery.job_id for delivery in deliveries] == [job.id for job in jobs]


async def test_an_entry_whose_reply_was_cut_as_its_executor_waited_is_handled_soon(
    redis_url: str,
) -> None:
    blueprint = counting_chain(2)
    async with (
        Redis.from_url(redis_url) as client,
        proxy_to(redis_url) as (proxy, url),
        Redis.from_url(url) as cut_off,
    ):
        store, executing = RedisStorage(client), RedisStorage(cut_off)
        await store.open(StoreOptions(block_seconds=5.0))
        await executing.open(StoreOptions(block_seconds=5.0))
        async with running(ExecutorService(Settings(), executing, [blueprint])):
            await ended(store, await create_job(store, blueprint))
            await until(lambda: waits_for_entries(client), message="nobody waits for entries")
            proxy.cut_replies_after(60)
            job = await ended(store, await create_job(store, blueprint), 3.0)
        for each in (store, executing):
            await each.close()

    assert proxy.cuts == 1
    assert job.status is JobStatus.FINISHED


async def waits_for_entries(client: Redis) -> bool:
    connections: Any = await client.client_list()
    return any(
        "b" in connection["flags"] and connection["cmd"] == "xreadgroup"
        for connection in connections
    )


@pytest.mark.parametrize("replies", [0, 3, 6])
async def test_a_lone_command_whose_reply_was_cut_is_answered(redis_url: str, replies: int) -> None:
    async with proxy_to(redis_url) as (proxy, url), Redis.from_url(url) as client:
        pool = own_pool(client)
        commands = Commands(pool)
        commands.open()
        await commands.command("PING")

        proxy.cut_replies_after(replies)
        async with asyncio.timeout(2.0):
            answer = await commands.command("ECHO", "hello")
        await commands.close()
        await pool.disconnect()

    assert proxy.cuts == 1
    assert answer == b"hello"


async def test_a_replay_whose_answer_was_cut_is_told_that_it_is_done(redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client, proxy_to(redis_url) as (proxy, url):
        store = RedisStorage(client)
        await store.open(StoreOptions(block_seconds=0.2))
        executor = Executor(store)
        await store.jobs.create(a_job(store))
        await store.inbox.set_aside(await executor.read(), "no")
        [dead] = await store.dead_events.newest(10)
        async with Redis.from_url(url) as cut_off:
            pool = own_pool(cut_off)
            commands = Commands(pool)
            commands.open()
            await commands.script(script("replay_dead"), ["none"], ["", "0-1", ""])  # it is known
            dead_events = RedisDeadEvents(commands, 1)

            proxy.cut_replies_after(0)
            answers = [await dead_events.replay(dead.dead_id) for _ in range(2)]
            await commands.close()
            await pool.disconnect()

        replayed = await executor.read_all()
        await store.close()

    assert proxy.cuts == 1
    assert answers == [True, False]
    assert len(replayed) == 1


async def test_a_server_that_never_answers_the_handshake_is_given_up() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, Redis(host=host, port=port) as client:
        pool = own_pool(client)
        reader = BlockingReader(pool)

        with pytest.raises(StoreUnavailable):
            await reader.read("PING", seconds=0.1)
        await pool.disconnect()


@pytest.mark.parametrize(
    "refusal",
    [
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "NOREPLICAS Not enough good replicas to write.",
        "READONLY You can't write against a read only replica.",
    ],
    ids=lambda text: text.split()[0],
)
async def test_what_a_server_refuses_for_the_moment_is_asked_again(refusal: str) -> None:
    """As one that was started again does while it reads its append-only file."""
    asked = 0

    async def refuse_at_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        requests: Any = hiredis.Reader()
        while data := await reader.read(65536):
            requests.feed(data)
            while request := requests.gets():
                asked += request[0] == b"ECHO"
                refuses = request[0] == b"ECHO" and asked < 4
                writer.write(f"-{refusal}\r\n".encode() if refuses else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(refuse_at_first, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server, Redis(host=host, port=port) as client:
        pool = own_pool(client)
        reader = BlockingReader(pool)
        with pytest.raises(StoreUnavailable):
            await reader.read("ECHO", "hello", seconds=1.0)
        commands = Commands(pool)
        commands.open()
        async with asyncio.timeout(5):
            answer = await commands.command("ECHO", "hello")
        await commands.close()
        await reader.close()
        await pool.disconnect()

    assert (answer, asked) == (b"OK", 4)


async def test_how_long_a_read_may_last_is_said_by_that_read(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.1)
    async with proxy_to(redis_url) as (proxy, url), Redis.from_url(url) as client:
        reader = BlockingReader(own_pool(client))
        await reader.read("PING", seconds=60.0)

        proxy.is_silent.set()
        with pytest.raises(StoreUnavailable, match=r"no answer within 0\.1 s"):
            async with asyncio.timeout(3.0):
                await reader.read("PING", seconds=0.0)


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_a_store_closes_at_once_whoever_reads(redis_url: str, is_waiting: bool) -> None:
    async with Redis.from_url(redis_url) as client:
        pool = own_pool(client)
        reader = BlockingReader(pool)
        await reader.read("PING", seconds=0.0)

        async def wait() -> None:
            with pytest.raises(StoreUnavailable):
                await reader.read("BLPOP", "nothing", 0, seconds=60.0)

        async with asyncio.TaskGroup() as group, asyncio.timeout(2.0):
            if is_waiting:
                group.create_task(wait())
                await until(lambda: _is_blocked(client))
            await pool.aclose()


async def _is_blocked(client: Redis) -> bool:
    return bool((await client.info("clients"))["blocked_clients"])


async def test_a_server_that_falls_silent_is_given_up_and_used_again(redis_url: str) -> None:
    """It takes connections and commands and answers nothing, as a frozen process does."""
    async with proxy_to(redis_url) as (proxy, url), Redis.from_url(url) as client:
        pool = own_pool(client)
        commands = Commands(pool, give_up_seconds=0.6, answer_seconds=0.2)
        commands.open()
        await commands.command("PING")

        proxy.is_silent.set()
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(3.0):
                await commands.command("PING")
        proxy.is_silent.clear()
        answer = await commands.command("PING")
        await commands.close()
        await pool.disconnect()

    assert answer == b"PONG"


def test_a_loop_that_was_blocked_takes_no_server_for_silent(redis_url: str) -> None:
    async def ask() -> tuple[bytes, int]:
        async with Redis.from_url(redis_url) as client:
            pool = own_pool(client)
            commands = Commands(pool, answer_seconds=0.2)
            commands.open()
            await commands.command("PING")
            answer = commands.command("ECHO", "hello")
            await asyncio.sleep(0)  # it is sent
            time.sleep(0.5)  # noqa: ASYNC251 - a handler that blocks; the answer is here meanwhile
            answered = await answer
            await commands.close()
            await pool.disconnect()
            return answered, commands.breaks

    answered, breaks = uvloop.run(ask())  # which looks at its timers first

    assert answered == b"hello"
    assert breaks == 0


async def test_who_cannot_reach_redis_tries_again_later_each_time(redis_url: str) -> None:
    blueprint = counting_chain(3)
    async with proxy_to(redis_url) as (proxy, url), Redis.from_url(url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2))
        async with running(ExecutorService(Settings(), backend, [blueprint])):
            await ended(backend, await create_job(backend, blueprint))
            loop = asyncio.get_running_loop()
            outage_end = loop.time() + 3.0
            before = proxy.connections
            proxy.refuses = True
            proxy.cut_now()
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(create_job(backend, blueprint))
                await until(lambda: loop.time() > outage_end)
                tries = proxy.connections - before
                proxy.refuses = False
            job = await ended(backend, asked.result())
        await backend.close()

    assert 3 <= tries <= 60
    assert job.status is JobStatus.FINISHED


async def test_lost_scripts_are_loaded_again(redis_url: str) -> None:
    blueprint = counting_chain(3)
    async with Redis.from_url(redis_url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2))
        async with running(ExecutorService(Settings(), backend, [blueprint])):
            before = await ended(backend, await create_job(backend, blueprint))
            await client.script_flush()
            after = await ended(backend, await create_job(backend, blueprint))
        await backend.close()

    assert before.status is after.status is JobStatus.FINISHED


async def test_streams_that_vanish_are_made_again(redis_url: str) -> None:
    """R25."""
    blueprint = counting_chain(3)
    async with Redis.from_url(redis_url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2))
        async with running(ExecutorService(Settings(), backend, [blueprint])):
            await client.flushall()
            job = await ended(backend, await create_job(backend, blueprint))
        await backend.close()

    assert job.status is JobStatus.FINISHED


async def test_nothing_is_left_pending_when_all_jobs_have_ended(redis_url: str) -> None:
    """R62."""
    blueprint = counting_chain(3)
    async with Redis.from_url(redis_url) as client:
        backend = RedisStorage(client)
        await backend.open(StoreOptions(block_seconds=0.2, retention_seconds=60))
        async with running(ExecutorService(Settings(), backend, [blueprint])):
            for _ in range(5):
                await ended(backend, await create_job(backend, blueprint))
            await until(lambda: backend_is_empty(backend))
        owned = [key async for key in client.scan_iter("avtomatika:*:j:*")]
        lifetimes = [await client.ttl(key) for key in owned]
        await backend.close()

    assert len(owned) == 5
    assert all(0 < lifetime <= 60 for lifetime in lifetimes)


async def backend_is_empty(backend: RedisStorage) -> bool:
    return await backend.inbox.length() == 0
