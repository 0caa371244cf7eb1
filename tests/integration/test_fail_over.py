"""Redis behind Sentinel: the master dies, or is cut off, and its replica becomes the master.

A whole orchestrator works the while, in two of the modes of durability.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from avtomatika import RedisStorage, StateMachineBlueprint
from avtomatika.context import ActionFactory
from avtomatika_common.backend.opening import open_redis
from avtomatika_common.backend.ports import StaleJob, StoreOptions, StoreUnavailable
from avtomatika_common.backend.redis.connection import BlockingReader, own_pool
from tests.conftest import REDIS_BINARIES, missing
from tests.contract.builders import TO_END, TO_NEXT, Executor, a_cancel
from tests.integration.blueprints import a_blueprint
from tests.integration.outages import Load, a_loaded_site, goes_on, scale_times
from tests.integration.sites import Site, persistently
from tests.interop.door import CLIENT_TOKEN, Door
from tests.sentinels import SERVICE, Watched, watched
from tests.servers import RedisServer
from tests.support import until

pytestmark = pytest.mark.integration

LASTING = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")
STRICT = (*LASTING, "--appendfsync", "always", "--min-replicas-to-write", "1")


@pytest.fixture(autouse=True)
def scaled_times(monkeypatch: pytest.MonkeyPatch) -> None:
    scale_times(monkeypatch)


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Generator[Watched, None, None]:
    """Master and replica with the options of the parameter, and as many Sentinels."""
    if not REDIS_BINARIES:
        missing("Redis")
    options, sentinels = request.param
    with watched(max(REDIS_BINARIES.items())[1], *options, sentinels=sentinels) as running:
        yield running


safe = pytest.mark.parametrize("service", [(LASTING, 3)], indirect=True, ids=["safe"])
strict = pytest.mark.parametrize("service", [(STRICT, 1)], indirect=True, ids=["strict"])


@asynccontextmanager
async def a_store(service: Watched) -> AsyncGenerator[RedisStorage, None]:
    store = open_redis(service.url)
    await store.open(StoreOptions(block_seconds=0.05))
    try:
        yield store
    finally:
        await store.close()


# --- the master dies


@safe
async def test_the_work_goes_on_with_the_replica(service: Watched) -> None:
    """Also when the first of the Sentinels is not there."""
    await service.in_step()
    master, replica = await service.master(), await service.replica()
    url = service.url
    service.sentinels.pop(0).kill()
    async with a_loaded_site(open_redis(url), fails_over=True) as (_, load):
        await service.kill_in_step(master)
        await service.promoted(replica)

        await goes_on(load)


def asks_outside() -> list[StateMachineBlueprint]:
    """Each waits for somebody: a signal, a decision, or a cancel."""

    def wait(actions: ActionFactory) -> None:
        actions.wait_for_signal("go", {"received": "done"})

    def ask(actions: ActionFactory) -> None:
        actions.await_human_approval("mail", "?", {"yes": "done"})

    return [a_blueprint("signal", start=wait), a_blueprint("approval", start=ask)]


class Clients:
    """They signal, decide and cancel; what each was told must come true."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.told: dict[str, str] = {}
        """Job -> the status it must end with."""

    async def act(self) -> None:
        while True:
            for kind in ("signal", "approval", "cancel"):
                await self._act_once(kind)
            await asyncio.sleep(0.02)

    async def _act_once(self, kind: str) -> None:
        door, number = self._door, len(self.told)
        blueprint = "signal" if kind == "cancel" else kind
        headers = {"X-Client-Token": CLIENT_TOKEN, "Idempotency-Key": f"{kind}-{number}"}
        again = {**headers, "Idempotency-Key": f"{kind}-{number}-told"}
        create = partial(
            door.call, "POST", f"/api/v1/jobs/{blueprint}", {"initial_data": {}}, token=None
        )
        made = await persistently(partial(create, headers=headers))
        assert made.status == 202, made
        job_id = made.json["job_id"]
        if kind == "signal":
            path, status = f"/api/v1/jobs/{job_id}/signals/go", "finished"
        elif kind == "approval":
            path, status = f"/_public/webhooks/approval/{job_id}", "finished"
        else:
            path, status = f"/api/v1/jobs/{job_id}/cancel", "cancelled"
        await until(partial(self._waits, job_id), 20.0, f"{job_id} does not wait")
        act = partial(door.call, "POST", path, {"decision": "yes"}, token=None, headers=again)
        answer = await persistently(act)
        # Another answer than 2xx: the first try was answered, and the answer was lost.
        assert answer.status < 300 or answer.status == 409, answer
        self.told[job_id] = status

    async def _waits(self, job_id: str) -> bool:
        answer = await persistently(partial(self._door.ask, "GET", f"/jobs/{job_id}"))
        assert answer.status == 200, f"{job_id} was accepted and is lost: {answer}"
        return bool(answer.json["status"].startswith("waiting"))

    async def were_told_the_truth(self) -> None:
        for job_id, status in self.told.items():

            async def has_ended(job_id: str = job_id, status: str = status) -> bool:
                ask = partial(self._door.ask, "GET", f"/jobs/{job_id}")
                answer = await persistently(ask)
                assert answer.status == 200, f"{job_id} was accepted and is lost: {answer}"
                return bool(answer.json["status"] == status)

            await until(has_ended, 10.0, f"{job_id} is not {status}")


@asynccontextmanager
async def a_strict_site(storage: RedisStorage) -> AsyncGenerator[tuple[Site, Load], None]:
    """All that was acknowledged when the block ends is kept, and nothing is asked for again."""
    settings = {"AVTOMATIKA_DURABILITY": "strict"}
    async with a_loaded_site(storage, *asks_outside(), fails_over=True, **settings) as (site, load):
        clients = Clients(site.door)
        async with asyncio.TaskGroup() as group:
            acting = group.create_task(clients.act())
            await until(lambda: len(clients.told) > 6, 10.0)
            yield site, load
            acting.cancel()
        await clients.were_told_the_truth()
    assert all(site.ends[job_id] for job_id in clients.told)
    assert {load.told[job_id] for job_id in load.accepted} == {3}, "a result was lost"


@strict
async def test_strict_loses_nothing_that_was_acknowledged(service: Watched) -> None:
    """The client is the user's own."""
    await service.in_step()
    master, replica = await service.master(), await service.replica()
    sentinel = Sentinel([("127.0.0.1", one.port) for one in service.sentinels])
    client: Any = sentinel.master_for(SERVICE)
    async with a_strict_site(RedisStorage(client)) as (_, load):
        master.kill()
        await service.promoted(replica)
        master.start()  # the other one accepts nothing alone
        await service.has_role(master, "slave")

        await goes_on(load)
    await client.aclose()
    await sentinel.aclose()


# --- the master is cut off, and still answers


async def clients_of(server: RedisServer) -> list[str]:
    """Last commands of everybody who is connected, but for Sentinel and us."""
    async with Redis.from_url(server.url, client_name="sentinel-of-tests") as client:
        clients = await client.client_list(_type="normal")
        return [one["cmd"] for one in clients if "sentinel" not in one["name"]]


@strict
async def test_a_master_that_was_cut_off_is_left_and_comes_back_as_a_replica(
    service: Watched,
) -> None:
    await service.in_step()
    master, replica = await service.master(), await service.replica()
    async with a_strict_site(open_redis(service.url)) as (_, load):
        await service.isolate(master)
        await service.promoted(replica)

        async def is_left() -> bool:
            return not await clients_of(master)

        await until(is_left, 5.0, "somebody stays with the old master")
        await service.has_role(master, "master")
        await service.rejoin(master)
        await service.has_role(master, "slave")

        await goes_on(load)
        assert await clients_of(master) == []


@safe
async def test_a_replica_is_not_used_though_sentinel_names_it(
    service: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was cut off names the server of before, which may be a replica by now."""
    await service.in_step()
    master, replica = await service.master(), await service.replica()
    sentinel = Sentinel([("127.0.0.1", one.port) for one in service.sentinels])
    pool: Any = own_pool(sentinel.master_for(SERVICE))
    named = [replica, master]

    async def name(_service: str) -> tuple[str, int]:
        return "127.0.0.1", named[0].port

    monkeypatch.setattr(pool.sentinel_manager, "discover_master", name)
    reader = BlockingReader(pool)
    with pytest.raises(
        StoreUnavailable, match=f"{replica.port}, which Sentinel names, is a replica"
    ):
        await reader.read("GET", "written", seconds=1.0)
    del named[0]
    answer = await reader.read("GET", "written", seconds=1.0)
    await reader.close()
    await pool.aclose()
    await sentinel.aclose()

    assert answer == b"1"


# --- the replica lags


@safe
async def test_a_version_number_that_is_used_again_is_not_the_same_version(
    service: Watched,
) -> None:
    await service.in_step()
    master, replica = await service.master(), await service.replica()
    async with a_store(service) as store:
        executor = Executor(store)
        claim = await executor.start()
        await service.in_step()
        await service.cut_off_replica()
        newer = await executor.run(claim, TO_NEXT)

        master.kill()
        await service.promoted(replica)
        fallen_back = await store.jobs.load(claim.job.id)
        await store.jobs.request_cancel(claim.job.id, a_cancel(store))
        again = await store.jobs.load(claim.job.id)
        with pytest.raises(StaleJob):
            await executor.run(newer, TO_END)
        now = await store.jobs.load(claim.job.id)

    assert fallen_back is not None
    assert again is not None
    assert now is not None
    assert fallen_back.fence == claim.stored.fence
    assert again.fence.partition(":")[0] == newer.stored.fence.partition(":")[0]
    assert now.fence == again.fence
    assert now.job.cancelled


@safe
async def test_a_new_master_is_not_believed_at_once_who_is_dead(service: Watched) -> None:
    """What it knows of who is alive may be old; where a server only restarts, it is not."""
    await service.in_step()
    master, replica = await service.master(), await service.replica()
    async with a_store(service) as store:
        await store.liveness.is_alive("somebody")
        await asyncio.sleep(0.3)
        before = store.liveness.known_seconds()

        master.kill()
        await service.promoted(replica)
        begun = asyncio.get_running_loop().time()
        await store.liveness.is_alive("somebody")
        passed = asyncio.get_running_loop().time() - begun

        assert before >= 0.3
        assert store.liveness.known_seconds() <= passed + 0.1
