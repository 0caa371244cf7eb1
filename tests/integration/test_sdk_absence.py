"""The worker SDK and our own engine while one of them is away, comes back, or goes for good."""

import asyncio
import signal
import sys
import textwrap
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from avtomatika import OrchestratorEngine
from avtomatika_worker import Worker
from rxon import RxonNetworkError
from tests.integration.sdk_site import (
    CALM,
    HEARTBEAT_SECONDS,
    WORKER_TOKEN,
    Site,
    create,
    document,
    done,
    ended,
    is_parked,
    is_registered,
    url_of,
    working,
)
from tests.processes import ROOT
from tests.support import until

pytestmark = pytest.mark.integration

OVER_HTTP = pytest.mark.parametrize("site", ["memory-http", "redis-http"], indirect=True)


def spooled(site: Site) -> list[Path]:
    return list((site.directory / ".results").rglob("*.json"))


def with_echo(worker: Worker) -> Worker:
    worker.task("work")(lambda: None)
    return worker


# -- the engine is away


async def test_a_worker_that_was_forgotten_is_back_within_a_heartbeat(site: Site) -> None:
    """R38. Also its poll, which nobody knows of any more."""
    async with site.engine(WORKER_POLL_TIMEOUT_SECONDS="30") as engine:
        workers = [with_echo(site.worker(engine, worker_id=name)) for name in ("w", "v")]

        async def are_back() -> bool:
            return await engine.storage.workers.count() == len(workers)

        async with working(*workers):
            for worker in workers:
                await until(lambda name=worker.worker_id: is_parked(engine, name))
            await engine.storage.flush_all()
            forgotten_at = time.monotonic()
            await until(are_back)
            back_after = time.monotonic() - forgotten_at
            jobs = [await done(engine) for _ in workers]

    assert back_after < HEARTBEAT_SECONDS + 0.25
    assert [job["status"] for job in jobs] == ["finished"] * 2


@pytest.mark.parametrize("site", ["redis-http"], indirect=True)
async def test_a_result_is_brought_when_the_engine_is_back(site: Site) -> None:
    runs = 0
    go_on = asyncio.Event()
    async with site.engine() as engine:
        port = engine.port
        worker = site.worker(engine, RESULT_MAX_RETRIES=1, **CALM)

        @worker.task("work")
        async def work() -> dict[str, Any]:
            nonlocal runs
            runs += 1
            await go_on.wait()
            return {"brought": True}

        working_on = working(worker)
        await working_on.__aenter__()
        job_id = await create(engine)
        await until(lambda: runs)
        await until(lambda: is_parked(engine))
    go_on.set()
    await until(lambda: spooled(site))
    async with site.engine(API_PORT=str(port)) as engine:
        job = await ended(engine, job_id)
        after = await done(engine)
        await working_on.__aexit__(None, None, None)

    assert (job["status"], job["state_history"]["brought"]) == ("finished", True)
    assert after["status"] == "finished"
    assert runs == 2
    assert spooled(site) == []


async def test_a_result_is_brought_after_the_workers_restart(
    site: Site, engine: OrchestratorEngine
) -> None:
    transport: Any = site.transport(engine)

    async def away(*_: object) -> None:
        raise RxonNetworkError("Nobody answers.")

    transport.send_result = transport.send_results = away
    runs: list[str] = []

    def with_work(worker: Worker) -> Worker:
        @worker.task("work")
        async def work(task_id: str) -> dict[str, Any]:
            runs.append(task_id)
            return {"brought": True}

        return worker

    async with working(with_work(site.worker(transport=transport, SHUTDOWN_TIMEOUT=0.1))):
        job_id = await create(engine)
        await until(lambda: spooled(site))
    waits = await document(engine, job_id)
    async with working(with_work(site.worker(engine))):
        job = await ended(engine, job_id)

    assert waits["status"] == "waiting_for_worker"
    assert (job["status"], job["state_history"]) == ("finished", {"brought": True})
    assert len(runs) == 1
    assert spooled(site) == []


# -- two engines


@asynccontextmanager
async def two_engines(
    site: Site, **settings: str
) -> AsyncGenerator[tuple[OrchestratorEngine, OrchestratorEngine], None]:
    async with site.engine(**settings) as one, site.engine(REDIS_DB="1", **settings) as other:
        yield one, other


async def test_the_second_engine_is_asked_while_the_first_is_away(site: Site) -> None:
    async with two_engines(site) as (second, first):
        worker = with_echo(
            site.worker(
                first,
                second,
                entries=({"priority": 1}, {"priority": 2}),
                **CALM,
            )
        )
        async with working(worker):
            await until(lambda: is_parked(first))
            await until(lambda: is_registered(second))
            waiting = await create(second)
            at_first = await done(first)
            still_waiting = await document(second, waiting)
            await until(lambda: is_parked(first))
            await first.stop()
            at_second = await ended(second, waiting)

    assert at_first["status"] == at_second["status"] == "finished"
    assert still_waiting["status"] != "finished"


async def test_engines_that_take_turns_are_both_served_at_once(site: Site) -> None:
    async with two_engines(site, WORKER_POLL_TIMEOUT_SECONDS="30") as engines:
        worker = with_echo(site.worker(*engines, MULTI_ORCHESTRATOR_MODE="ROUND_ROBIN"))
        async with working(worker):
            alone = [await done(engine) for engine in engines for _ in range(3)]
            jobs = [(engine, await create(engine)) for engine in engines for _ in range(5)]
            together = [await ended(engine, job_id) for engine, job_id in jobs]

    assert [job["status"] for job in (*alone, *together)] == ["finished"] * 16


# -- the worker goes


async def test_a_worker_that_stops_is_gone_at_once(site: Site, engine: OrchestratorEngine) -> None:
    async with working(with_echo(site.worker(engine))):
        await until(lambda: is_parked(engine))

    assert not await is_registered(engine)


APP = """
    import asyncio
    from avtomatika_worker import Worker

    worker = Worker()

    @worker.task("slow")
    async def slow(send_progress):
        await send_progress(0.5)
        await asyncio.sleep(0.5)
        return {"slow": True}

    @worker.task("endless")
    async def endless(send_progress):
        await send_progress(0.5, checkpoint={"page": 3})
        await asyncio.Event().wait()
"""


@asynccontextmanager
async def a_worker_process(
    site: Site, engine: OrchestratorEngine, **settings: str
) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    (site.directory / "app.py").write_text(textwrap.dedent(APP))
    environment = {
        "WORKER_ID": "w",
        "WORKER_TOKEN": WORKER_TOKEN,
        "ORCHESTRATOR_URL": url_of(engine),
        "TASK_FILES_DIR": str(site.directory),
        "PYTHONPATH": str(ROOT),
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "avtomatika_worker", "run", "--app", "app:worker"),
        cwd=site.directory,
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def has_progress(engine: OrchestratorEngine, job_id: str) -> bool:
    return (await document(engine, job_id)).get("progress") == 0.5


@OVER_HTTP
async def test_a_process_that_is_told_to_end_finishes_what_it_can_and_gives_back_the_rest(
    site: Site,
) -> None:
    given: list[tuple[str, Mapping[str, Any] | None]] = []
    async with site.engine(RETRY_DELAY_SECONDS="30") as engine:
        successor = site.worker(engine, worker_id="successor")

        @successor.task("endless")
        async def endless(task_id: str, checkpoint: dict[str, Any] | None) -> None:
            given.append((task_id, checkpoint))

        async with a_worker_process(site, engine, WORKER_SHUTDOWN_TIMEOUT="1") as process:
            jobs = [await create(engine, task) for task in ("slow", "endless")]
            for job_id in jobs:
                await until(lambda one=job_id: has_progress(engine, one), 20)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                _, log = await process.communicate()
            assert process.returncode == 0, log.decode()
            assert not await is_registered(engine)
        async with working(successor):
            slow, endless_job = [await ended(engine, job_id, 5) for job_id in jobs]

    assert (slow["status"], slow["state_history"]["slow"]) == ("finished", True)
    assert endless_job["status"] == "finished"
    assert endless_job["task_retry_count"] == 0
    told = endless_job["state_history"]["progress_updates"]
    assert given == [(told[0]["task_id"], {"page": 3})]


@OVER_HTTP
async def test_a_process_that_is_killed_loses_no_task(site: Site) -> None:
    """R6."""
    given: list[Mapping[str, Any] | None] = []
    async with site.engine(WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.3") as engine:
        successor = site.worker(engine, worker_id="successor", HEARTBEAT_INTERVAL=0.1)

        @successor.task("endless")
        async def endless(checkpoint: dict[str, Any] | None) -> None:
            given.append(checkpoint)

        async with a_worker_process(site, engine, HEARTBEAT_INTERVAL="0.1") as process:
            job_id = await create(engine, "endless")
            await until(lambda: has_progress(engine, job_id), 20)
            process.kill()
            await process.wait()
        async with working(successor):
            job = await ended(engine, job_id)

    assert job["status"] == "finished"
    assert given == [{"page": 3}]
