"""What an answer stands on: the server's settings at start, and in `strict` its replicas.

And what stands on nothing, where a replica is promoted that had not got it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager

import pytest
from redis.asyncio import Redis

from avtomatika_common.backend.ports import Durability, StaleJob, StoreOptions, StoreUnavailable
from avtomatika_common.backend.redis import commands
from avtomatika_common.backend.redis.connection import BlockingReader, own_pool
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.lifecycle import StartupError
from avtomatika_core.events import SignalReceived, WorkerEventArrived
from avtomatika_core.job import JobStatus, WorkerId
from avtomatika_core.redrive import redrive
from avtomatika_core.schedule import Every, Schedule
from tests.conftest import REDIS_BINARIES, missing
from tests.contract.builders import (
    APPROVAL,
    TO_END,
    TO_NEXT,
    Executor,
    a_cancel,
    a_job,
    a_success,
    take,
)
from tests.servers import RedisServer, a_redis_server
from tests.support import until

pytestmark = pytest.mark.integration

LASTING = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
WORKER = WorkerId("worker-1")


@asynccontextmanager
async def a_store(
    url: str, durability: Durability = Durability.STRICT
) -> AsyncGenerator[RedisStorage, None]:
    async with Redis.from_url(url) as client:
        store = RedisStorage(client)
        try:
            await store.open(StoreOptions(durability=durability, block_seconds=0.05))
            yield store
        finally:
            await store.close()


class Servers:
    """A server that keeps everything on disk, and its replicas."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.main = self._started(*LASTING)

    def _started(self, *options: str) -> RedisServer:
        if not REDIS_BINARIES:
            missing("Redis")
        return self._stack.enter_context(a_redis_server(max(REDIS_BINARIES.items())[1], *options))

    async def a_replica(self) -> RedisServer:
        """One that has caught up."""
        following = ("--replicaof", "127.0.0.1", str(self.main.port))
        replica = self._started(*following)
        async with Redis.from_url(self.main.url) as client:
            await client.config_set("repl-diskless-sync-delay", 0)

            async def is_online() -> bool:
                info = await client.info("replication")
                ports = [
                    slave["port"]
                    for slave in (info.get(f"slave{number}") for number in range(4))
                    if slave is not None and slave["state"] == "online"
                ]
                return replica.port in ports

            await until(is_online, 10.0, "the replica does not catch up")
            await client.set("written", 1)
            assert await client.wait(1, 10_000) >= 1
            await client.config_set("min-replicas-to-write", 1)
            await client.config_set("min-replicas-max-lag", 60)
        return replica


@pytest.fixture
def servers() -> Generator[Servers, None, None]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas get a fifth of their time."""
    monkeypatch.setattr(commands, "_REPLICAS_MS", 200)


# --- at start


async def test_strict_does_not_start_on_a_server_that_keeps_nothing(redis_url: str) -> None:
    with pytest.raises(StartupError) as refusal:
        async with a_store(redis_url):
            pass

    text = str(refusal.value)
    assert "is not set up for AVTOMATIKA_DURABILITY=strict" in text
    assert "appendonly is 'no', set it to 'yes'" in text
    assert "appendfsync is 'everysec', set it to 'always'" in text


async def test_safe_warns_of_a_server_that_keeps_nothing(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "avtomatika"):
        async with a_store(redis_url, Durability.SAFE):
            pass

    [record] = caplog.records
    assert record.message == "redis is not set up for the durability mode"
    assert vars(record)["reason"] == "appendonly is 'no', set it to 'yes'"


async def test_every_mode_starts_on_a_server_that_keeps_everything(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "avtomatika"):
        for mode in Durability:
            async with a_store(servers.main.url, mode):
                pass

    assert caplog.records == []


async def test_strict_does_not_start_on_a_server_that_would_go_on_without_its_replica(
    servers: Servers,
) -> None:
    await servers.a_replica()
    async with Redis.from_url(servers.main.url) as client:
        await client.config_set("min-replicas-to-write", 0)

    with pytest.raises(StartupError, match="min-replicas-to-write is '0'"):
        async with a_store(servers.main.url):
            pass


async def test_settings_that_may_not_be_read_are_named(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    async with Redis.from_url(servers.main.url) as client:
        rights = ("on", ">word", "~*", "&*", "+@all", "-config")
        await client.execute_command("ACL", "SETUSER", "app", *rights)
    url = servers.main.url.replace("redis://", "redis://app:word@")

    with pytest.raises(StartupError, match="allow this user the commands CONFIG GET"):
        async with a_store(url):
            pass
    with caplog.at_level(logging.WARNING, "avtomatika"):
        async with a_store(url, Durability.SAFE):
            pass

    [record] = caplog.records
    assert "settings could not be checked" in vars(record)["reason"]
    assert "word" not in record.getMessage() + vars(record)["reason"]


# --- with each answer


@pytest.mark.usefixtures("impatient")
async def test_nothing_is_accepted_that_a_replica_does_not_have(servers: Servers) -> None:
    replica = await servers.a_replica()
    async with a_store(servers.main.url) as store:
        await store.jobs.create(a_job(store))
        job = a_job(store)

        replica.freeze()
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas have it"):
            await store.jobs.create(job)
        with pytest.raises(StoreUnavailable):  # it writes nothing by now, but stands on the first
            await store.jobs.create(job)
        replica.thaw()
        again = await store.jobs.create(job)

        assert again.is_repeat
    async with Redis.from_url(replica.url) as client:
        assert len([key async for key in client.scan_iter("avtomatika:*:j:*")]) == 2


@pytest.mark.usefixtures("impatient")
async def test_every_answer_to_the_outside_waits_for_the_replica(servers: Servers) -> None:
    replica = await servers.a_replica()
    async with a_store(servers.main.url) as store:
        executor = Executor(store)
        await store.jobs.create(a_job(store))
        await store.inbox.set_aside(await executor.read(), "no")
        [dead] = await store.dead_events.newest(10)
        lease = await store.leases.acquire("scheduler", "s-1", 60.0)
        assert lease is not None
        nightly = Schedule(name="nightly", blueprint="b", when=Every(seconds=60))
        await store.schedules.publish(lease, [nightly])
        asked = await executor.run(await executor.start(), APPROVAL)
        broken = await store.jobs.load(
            (await executor.raised(await executor.start(), is_final=True)).job.id
        )
        assert broken is not None
        with_worker = await executor.dispatch()
        await take(store)
        wait = asked.job.head.wait
        assert wait is not None
        event = WorkerEventArrived(
            at=1.0,
            task_id=with_worker.task_id,
            worker_id=WORKER,
            event_id="e",
            event_type="t",
        )
        answers = [
            lambda: store.jobs.decide_approval(
                asked.job.id, token=str(asked.job.run), decision="yes", at=1.0
            ),
            lambda: store.board.report_event(
                with_worker.job.id, with_worker.task_id, WORKER, "e", event=event, notification=None
            ),
            lambda: store.board.end_lease(
                with_worker.job.id, WORKER, a_success(store, with_worker.task_id)
            ),
            lambda: store.jobs.send_signal(asked.job.id, SignalReceived(at=1.0, name="paid")),
            lambda: store.jobs.request_cancel(with_worker.job.id, a_cancel(store)),
            lambda: store.jobs.redrive(broken, redrive(broken.job, 1.0)),
            lambda: store.dead_events.replay(dead.dead_id),
            lambda: store.schedules.set_paused("nightly", is_paused=True, at=1.0),
        ]

        replica.freeze()
        for answer in answers:
            with pytest.raises(StoreUnavailable, match="replicas"):
                await answer()
        replica.thaw()
        done = await store.board.end_lease(
            with_worker.job.id, WORKER, a_success(store, with_worker.task_id)
        )

    assert done.value == "ok"


@pytest.mark.usefixtures("impatient")
async def test_steps_go_on_while_a_replica_lags(servers: Servers) -> None:
    replica = await servers.a_replica()
    async with a_store(servers.main.url) as store:
        executor = Executor(store)
        claim = await executor.start()

        replica.freeze()
        after = await executor.run(claim, TO_NEXT)
        replica.thaw()

    assert after.job.status is JobStatus.RUNNING


@pytest.mark.usefixtures("impatient")
async def test_a_replica_that_comes_later_is_waited_for_and_one_that_goes_is_not(
    servers: Servers,
) -> None:
    async with a_store(servers.main.url) as store:
        await store.jobs.create(a_job(store))
        replica = await servers.a_replica()
        async with Redis.from_url(servers.main.url) as client:
            await client.config_set("min-replicas-to-write", 0)

        await store.jobs.create(a_job(store))
        replica.freeze()
        with pytest.raises(StoreUnavailable):
            await store.jobs.create(a_job(store))
        replica.kill()

        async def is_accepted() -> bool:
            try:
                await store.jobs.create(a_job(store))
            except StoreUnavailable:
                return False
            return True

        await until(is_accepted)


async def test_fast_and_safe_ask_no_replica(servers: Servers) -> None:
    replica = await servers.a_replica()
    for mode in (Durability.FAST, Durability.SAFE):
        async with a_store(servers.main.url, mode) as store:
            replica.freeze()
            created = await store.jobs.create(a_job(store))
            replica.thaw()

        assert not created.is_repeat


# --- after a fail-over


async def test_a_version_number_that_is_used_again_fools_nobody(servers: Servers) -> None:
    """The replica stopped following before the last step; what is done there since has its number."""
    replica = await servers.a_replica()
    async with (
        Redis.from_url(servers.main.url) as main,
        Redis.from_url(replica.url) as promoted,
        a_store(servers.main.url, Durability.SAFE) as before,
    ):
        executor = Executor(before)
        claim = await executor.start()
        await main.set("written", 2)
        assert await main.wait(1, 10_000) == 1
        await main.config_set("min-replicas-to-write", 0)
        await promoted.replicaof("NO", "ONE")
        newer = await executor.run(claim, TO_NEXT)

        async with a_store(replica.url, Durability.SAFE) as after:
            executor.backend = after
            await after.jobs.request_cancel(claim.job.id, a_cancel(after))
            stored = await after.jobs.load(claim.job.id)
            assert stored is not None
            assert version_of(stored.fence) == version_of(newer.stored.fence)
            with pytest.raises(StaleJob):
                await executor.run(newer, TO_END)
            cancelled = await executor.apply(await executor.read())

    assert cancelled.job.status is JobStatus.CANCELLED


@pytest.mark.parametrize("read", [("XREAD",), ("XREADGROUP", "GROUP", "g", "me")])
async def test_who_waits_at_a_server_that_is_demoted_leaves_it(
    servers: Servers, read: tuple[str, ...]
) -> None:
    async with (
        Redis.from_url(servers.main.url) as client,
        Redis.from_url(servers.main.url) as admin,
    ):
        await admin.xgroup_create("s", "g", mkstream=True)
        reader = BlockingReader(own_pool(client))
        position = "$" if read == ("XREAD",) else ">"

        async def wait() -> None:
            with pytest.raises(StoreUnavailable, match="UNBLOCKED"):
                await reader.read(*read, "BLOCK", 10_000, "STREAMS", "s", position, seconds=10.0)

        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            await until(lambda: is_blocked(admin))
            await admin.replicaof("127.0.0.1", "1")
        await until(lambda: is_left(admin))


async def is_blocked(admin: Redis) -> bool:
    return bool((await admin.info("clients"))["blocked_clients"])


async def is_left(admin: Redis) -> bool:
    """By all but the one that asks."""
    return len(await admin.client_list(_type="normal")) == 1


def version_of(fence: str) -> str:
    return fence.partition(":")[0]
