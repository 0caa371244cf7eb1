"""A Redis that is full takes no new work, and lets the work it has come to its end."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from avtomatika import RedisStorage, StateMachineBlueprint
from avtomatika.context import ActionFactory
from avtomatika_common.backend.ports import StoreFull, StoreOptions
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobStatus
from avtomatika_executor import ExecutorService, Settings
from tests.blueprints import counting_chain
from tests.conftest import REDIS_BINARIES, missing
from tests.integration.blueprints import a_blueprint
from tests.integration.sites import a_site
from tests.interop.door import CLIENT_TOKEN
from tests.jobs import create_job, ended
from tests.servers import RedisServer, a_redis_server
from tests.support import until

pytestmark = pytest.mark.integration

JOBS = 3


@pytest.fixture
def small_redis() -> Generator[RedisServer, None, None]:
    if not REDIS_BINARIES:
        missing("Redis")
    with a_redis_server(max(REDIS_BINARIES.items())[1], "--maxmemory", "8mb") as server:
        yield server


async def fill(client: Redis) -> None:
    """Until nothing more goes in."""
    size = 1 << 20
    number = 0
    while size > 64:
        try:
            await client.set(f"filler-{number}", b"x" * size)
        except OutOfMemoryError:
            size //= 2
        number += 1


async def make_room(client: Redis) -> None:
    async for key in client.scan_iter("filler-*"):
        await client.unlink(key)


def gated(gate: asyncio.Event, begun: list[str]) -> StateMachineBlueprint:
    """A handler that waits for the gate, then a task, then the end."""
    blueprint = StateMachineBlueprint("gated", api_version="v1", api_endpoint="/jobs/gated")
    blueprint.add_data_store("notes", {"seen": ""})

    @blueprint.handler_for("start", is_start=True)
    async def start(job_id: str, data_stores: Any, actions: ActionFactory) -> None:
        begun.append(job_id)
        await gate.wait()
        await data_stores.notes.set("seen", job_id)
        actions.dispatch_task("resize", {}, {"success": "end"})

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


async def test_a_full_redis_refuses_new_jobs_and_brings_the_others_to_their_end(
    small_redis: RedisServer,
) -> None:
    gate, begun = asyncio.Event(), list[str]()
    async with Redis.from_url(small_redis.url) as client:
        storage = RedisStorage(client)
        async with a_site(storage, [gated(gate, begun)], AVTOMATIKA_DURABILITY="fast") as site:
            door = site.door
            job_ids = [await door.create("gated") for _ in range(JOBS)]
            await until(lambda: len(begun) == JOBS)
            await fill(client)

            refused = await door.ask("POST", "/jobs/gated", {"initial_data": {}})
            gate.set()
            await door.register("w1")
            for _ in job_ids:
                task = await door.task("w1")
                assert (await door.done(task, "w1")).status == 200
            documents = [await door.ended(job_id) for job_id in job_ids]
            still_refused = await door.ask("POST", "/jobs/gated", {"initial_data": {}})
            await make_room(client)
            accepted = await door.ask("POST", "/jobs/gated", {"initial_data": {}})

    assert refused.error == (503, "No new work is taken now, try again later.")
    assert refused.headers["Retry-After"] == "5"
    assert {document["status"] for document in documents} == {"finished"}
    assert still_refused.status == 503
    assert accepted.status == 202


def waits() -> StateMachineBlueprint:
    """A job that waits in the way its data name, and ends when that is over."""
    blueprint = StateMachineBlueprint("waits", api_version="v1", api_endpoint="/jobs/waits")

    @blueprint.handler_for("start", is_start=True)
    async def start(kind: str, actions: ActionFactory) -> None:
        match kind:
            case "sleep":
                actions.sleep(2.0, next_state="end")
            case "late":
                actions.wait_for_signal(
                    "never", {"received": "end", "timeout": "end"}, timeout_seconds=2.0
                )
            case "signal":
                actions.wait_for_signal("go", {"received": "end"})
            case "decision":
                actions.await_human_approval("ops", "May it?", {"approved": "end"})
            case _:
                actions.dispatch_task("nobody_does_it", {}, {"success": "end"})

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


async def test_on_a_full_redis_timers_fire_and_cancels_signals_and_decisions_count(
    small_redis: RedisServer,
) -> None:
    async with Redis.from_url(small_redis.url) as client:
        storage = RedisStorage(client)
        async with a_site(storage, [waits()], AVTOMATIKA_DURABILITY="fast") as site:
            door = site.door
            kinds = ("sleep", "late", "signal", "decision", "task")
            jobs = {kind: await door.create("waits", kind=kind) for kind in kinds}

            async def all_wait() -> bool:
                documents = [await door.document(job_id) for job_id in jobs.values()]
                return all(d["status"] not in {"pending", "running"} for d in documents)

            await until(all_wait, 1.5, "not all wait before the first timer is due")
            await fill(client)
            refused = await door.ask("POST", "/jobs/waits", {"initial_data": {"kind": "sleep"}})
            signalled = await door.ask("POST", f"/jobs/{jobs['signal']}/signals/go", {})
            decided = await door.call(
                "POST",
                f"/_public/webhooks/approval/{jobs['decision']}",
                {"decision": "approved"},
                token=None,
                headers={"X-Client-Token": CLIENT_TOKEN},
            )
            cancelled = await door.cancel(jobs["task"])
            assert (signalled.status, decided.status, cancelled.status) == (202, 200, 200)
            ends = {kind: (await door.ended(job_id))["status"] for kind, job_id in jobs.items()}

    assert refused.status == 503
    assert ends.pop("task") == "cancelled"
    assert set(ends.values()) == {"finished"}


@pytest.mark.parametrize("count", [3, 300])
async def test_on_a_full_redis_branches_are_given_out_done_and_joined(
    small_redis: RedisServer, count: int
) -> None:
    """A large fan-out is laid in pieces, and given out in pieces."""
    gate, begun = asyncio.Event(), asyncio.Event()

    async def spread(actions: ActionFactory) -> None:
        begun.set()
        await gate.wait()
        actions.dispatch_parallel([{"type": "resize"}] * count, aggregate_into="join")

    def join(aggregation_results: dict[str, Any], actions: ActionFactory) -> None:
        actions.transition_to("done" if len(aggregation_results) == count else "aside")

    fan_out = a_blueprint("fan_out", ends=("done", "aside"), start=spread)
    fan_out.aggregator_for("join", targets=["done", "aside"])(join)
    async with Redis.from_url(small_redis.url) as client:
        storage = RedisStorage(client)
        async with a_site(storage, [fan_out], AVTOMATIKA_DURABILITY="fast") as site:
            door = site.door
            await door.register("w1", resources={"max_concurrent_tasks": 50})
            job_id = await door.create("fan_out")
            await begun.wait()
            await fill(client)
            gate.set()
            done = 0
            while done < count:
                for task in await door.tasks("w1", 50):
                    assert (await door.done(task, "w1")).status == 200
                    done += 1
            job = await door.ended(job_id)

    assert (job["status"], job["current_state"]) == ("finished", "done")


async def test_executors_that_start_on_a_full_redis_do_what_waits(
    small_redis: RedisServer,
) -> None:
    blueprint = counting_chain(5)
    async with Redis.from_url(small_redis.url) as client:
        store = RedisStorage(client)
        await store.open(StoreOptions(block_seconds=0.1))
        job_ids = [await create_job(store, blueprint) for _ in range(JOBS)]
        await fill(client)
        with pytest.raises(StoreFull):
            await create_job(store, blueprint)
        await store.close()

        again = RedisStorage(client)
        await again.open(StoreOptions(block_seconds=0.1))
        async with running(ExecutorService(Settings(), again, [blueprint])):
            jobs = [await ended(again, job_id) for job_id in job_ids]
        await again.close()

    assert {job.status for job in jobs} == {JobStatus.FINISHED}


async def test_a_full_redis_redrives_no_job_and_leaves_it_as_it_is(
    small_redis: RedisServer,
) -> None:
    """R62."""
    is_mended = False

    def start(actions: ActionFactory) -> None:
        if not is_mended:
            raise OSError("broken")
        actions.transition_to("done")

    async with Redis.from_url(small_redis.url) as client:
        storage = RedisStorage(client)
        blueprint = a_blueprint("b", start=start)
        settings = {"AVTOMATIKA_DURABILITY": "fast", "JOB_MAX_RETRIES": "0"}
        async with a_site(storage, [blueprint], **settings) as site:
            door = site.door
            job_id = await door.create("b")
            await door.ended(job_id)
            await fill(client)

            refused = await door.ask("POST", f"/jobs/{job_id}/redrive")
            listed = await door.ask("GET", "/jobs/quarantined")
            await make_room(client)
            is_mended = True
            accepted = await door.ask("POST", f"/jobs/{job_id}/redrive")
            document = await door.ended(job_id)

    assert refused.error == (503, "No new work is taken now, try again later.")
    assert listed.json == [job_id]
    assert accepted.status == 202
    assert document["status"] == "finished"
