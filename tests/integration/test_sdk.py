"""The worker SDK with our own engine: what each promises to the other, over HTTP and in process."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from avtomatika import OrchestratorEngine
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_worker import TaskFiles, Worker
from avtomatika_worker.cancellation import Cancellation
from rxon import ProgressUpdatePayload
from tests.integration.sdk_site import (
    HEARTBEAT_SECONDS,
    RARELY,
    Site,
    create,
    document,
    done,
    ended,
    is_parked,
    working,
)
from tests.support import until

pytestmark = pytest.mark.integration


# -- tasks and results


async def test_tasks_come_and_results_go_several_at_a_time(
    site: Site, engine: OrchestratorEngine
) -> None:
    transport: Any = site.transport(engine)
    requests: list[int] = []
    send_result, send_results = transport.send_result, transport.send_results

    async def one(result: Any) -> Any:
        requests.append(1)
        return await send_result(result)

    async def several(results: Sequence[Any], most: int | None = None) -> Any:
        requests.append(len(results))
        return await send_results(results, most)

    transport.send_result, transport.send_results = one, several
    worker = site.worker(places=10, transport=transport)
    all_have_come = asyncio.Barrier(10)

    @worker.task("work")
    async def work(params: dict[str, Any]) -> dict[str, Any]:
        await all_have_come.wait()
        return {"n": params["n"]}

    async with working(worker):
        job_id = await engine.create_background_job("fan_out", {"count": 60})
        job = await ended(engine, job_id)

    assert job["state_history"]["numbers"] == list(range(60))
    assert sum(requests) == 60
    assert max(requests) > 1
    assert len(requests) <= 30


async def test_a_worker_never_has_more_tasks_than_places(
    site: Site, engine: OrchestratorEngine
) -> None:
    """R47."""
    worker = site.worker(engine, places=3)
    running = most = 0

    @worker.task("work")
    async def work(params: dict[str, Any]) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return {"n": params["n"]}

    async with working(worker):
        jobs = [
            await engine.create_background_job("fan_out", {"count": count}) for count in (50, 50)
        ]
        documents = [await ended(engine, job_id) for job_id in jobs]

    assert [job["status"] for job in documents] == ["finished"] * 2
    assert most == 3


async def test_a_lone_task_waits_for_nothing(site: Site, engine: OrchestratorEngine) -> None:
    worker = site.worker(engine)
    worker.task("work")(lambda: None)
    seconds: list[float] = []
    now = asyncio.get_running_loop().time

    async with working(worker):
        await until(lambda: is_parked(engine))
        for _ in range(11):
            started = now()
            await done(engine)
            seconds.append(now() - started)

    assert median(seconds) < 0.15


async def test_a_task_has_its_own_files_until_its_result_is_there(
    site: Site, engine: OrchestratorEngine
) -> None:
    worker = site.worker(engine)
    roots: list[Path] = []

    @worker.task("work")
    async def work(params: dict[str, Any], files: TaskFiles) -> dict[str, Any]:
        roots.append(Path(await files.get_root()))
        await files.write_json("params.json", params)
        return {"names": await files.list(), "read": await files.read_json("params.json")}

    async with working(worker):
        first, second = await done(engine, n=1), await done(engine, n=2)

    assert first["state_history"] == {"names": ["params.json"], "read": {"n": 1}}
    assert second["state_history"]["read"] == {"n": 2}
    assert roots[0] != roots[1]
    assert [root.is_relative_to(site.directory) for root in roots] == [True, True]
    assert [root.exists() for root in roots] == [False, False]


# -- progress and checkpoints

Send = Callable[..., Any]


async def shown_progress(engine: OrchestratorEngine, job_id: str) -> tuple[float, str] | None:
    job = await document(engine, job_id)
    return (job["progress"], job["progress_message"]) if "progress" in job else None


async def test_progress_is_shown_in_the_job(site: Site, engine: OrchestratorEngine) -> None:
    worker = site.worker(engine)
    go_on = asyncio.Event()

    @worker.task("in_loop")
    async def in_loop(send_progress: Send) -> None:
        await send_progress(0.25, "first")
        await send_progress(0.5, "half")
        await go_on.wait()

    @worker.task("in_thread")
    def in_thread(send_progress: Send, cancellation: Cancellation) -> None:
        send_progress(0.25, "first")
        send_progress(0.5, "half")
        while not go_on.is_set():
            cancellation.wait(0.01)

    async with working(worker):
        jobs = [await create(engine, task) for task in ("in_loop", "in_thread")]
        for job_id in jobs:

            async def is_half_done(job_id: str = job_id) -> bool:
                return await shown_progress(engine, job_id) == (0.5, "half")

            await until(is_half_done)
        go_on.set()
        documents = [await ended(engine, job_id) for job_id in jobs]

    for job in documents:
        updates = job["state_history"]["progress_updates"]
        assert [(one["progress"], one["message"]) for one in updates] == [
            (0.25, "first"),
            (0.5, "half"),
        ]
        assert job["status"] == "finished"


async def test_progress_counts_as_the_senders_own(site: Site, engine: OrchestratorEngine) -> None:
    """R39."""
    worker, other = site.worker(engine), site.transport(engine, "other")
    go_on = asyncio.Event()
    tasks: list[str] = []

    @worker.task("work")
    async def work(task_id: str) -> None:
        tasks.append(task_id)
        await go_on.wait()

    async with working(worker):
        job_id = await create(engine)
        await until(lambda: tasks)
        await other.connect()
        answer = await other.send_progress(
            ProgressUpdatePayload(task_id=tasks[0], job_id=job_id, progress=0.9)
        )
        await other.close()
        shown = await shown_progress(engine, job_id)
        go_on.set()

    assert (answer.status, answer.reason) == ("ignored", "worker_mismatch")
    assert shown is None


async def test_a_checkpoint_is_handed_to_the_attempt_after_a_failure(
    site: Site, engine: OrchestratorEngine
) -> None:
    worker = site.worker(engine)
    given: list[dict[str, Any] | None] = []

    @worker.task("work")
    async def work(checkpoint: dict[str, Any] | None, send_progress: Send) -> dict[str, Any]:
        given.append(checkpoint)
        page = checkpoint["page"] if checkpoint else 0
        if page < 2:
            await send_progress(page / 2, "", checkpoint={"page": page + 1})
            raise ConnectionError("out of luck")
        return {"page": page}

    async with working(worker):
        job = await done(engine)

    assert (job["status"], job["state_history"]["page"]) == ("finished", 2)
    assert given == [None, {"page": 1}, {"page": 2}]


async def test_a_checkpoint_is_handed_to_another_worker_after_a_loss(site: Site) -> None:
    """R6."""
    given: list[dict[str, Any] | None] = []
    async with (
        site.engine(WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.25") as engine,
        asyncio.TaskGroup() as tasks,
    ):
        first = site.worker(engine, worker_id="first", HEARTBEAT_INTERVAL=0.1)
        second = site.worker(engine, worker_id="second", HEARTBEAT_INTERVAL=0.1)

        @first.task("work")
        async def begin(send_progress: Send) -> None:
            await send_progress(0.5, "", checkpoint={"page": 7})
            await asyncio.Event().wait()

        @second.task("work")
        async def go_on(checkpoint: dict[str, Any] | None) -> None:
            given.append(checkpoint)

        dying = tasks.create_task(first.main())
        job_id = await create(engine)

        async def is_half_done() -> bool:
            return await shown_progress(engine, job_id) == (0.5, "")

        await until(is_half_done)
        dying.cancel()
        async with working(second):
            job = await ended(engine, job_id)

    assert job["status"] == "finished"
    assert given == [{"page": 7}]


# -- cancel


@dataclass
class Stoppable:
    """Two tasks that run until nobody wants them, and when they heard of it."""

    worker: Worker
    heard: dict[str, float]
    speak: asyncio.Event
    """Both send progress once it is set."""

    @property
    def have_heard(self) -> bool:
        return len(self.heard) == 2


def stoppable(worker: Worker) -> Stoppable:
    both = Stoppable(worker, {}, asyncio.Event())

    @worker.task("in_loop")
    async def in_loop(send_progress: Send) -> None:
        try:
            await both.speak.wait()
            await send_progress(0.5)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            both.heard["in_loop"] = time.monotonic()
            raise

    @worker.task("in_thread")
    def in_thread(send_progress: Send, cancellation: Cancellation) -> None:
        has_spoken = False
        while not cancellation.wait(0.005):
            if both.speak.is_set() and not has_spoken:
                has_spoken = True
                send_progress(0.5)
        both.heard["in_thread"] = time.monotonic()
        cancellation.raise_if_requested()

    return both


async def both_started(engine: OrchestratorEngine) -> list[str]:
    """The jobs of both tasks, once the worker has told that it has them."""
    jobs = [await create(engine, task) for task in ("in_loop", "in_thread")]

    async def are_told() -> bool:
        worker = await engine.storage.workers.get(WorkerId("w"))
        return worker is not None and len(worker.document.get("current_tasks", ())) == 2

    await until(are_told)
    return jobs


async def cancel_both(engine: OrchestratorEngine, jobs: Sequence[str]) -> None:
    assert [await engine.cancel_job(job_id) for job_id in jobs] == [True, True]


async def both_over(engine: OrchestratorEngine, jobs: Sequence[str]) -> None:
    """The jobs are cancelled, and the worker is free for others."""
    for job_id in jobs:
        assert (await ended(engine, job_id))["status"] == "cancelled"

    async def is_free() -> bool:
        worker = await engine.storage.workers.get(WorkerId("w"))
        return worker is not None and worker.places.held == 0

    await until(is_free)
    assert (await done(engine, "ping"))["status"] == "finished"


def ping() -> None: ...


async def test_a_cancel_comes_with_the_next_heartbeat(
    site: Site, engine: OrchestratorEngine
) -> None:
    """R40."""
    both = stoppable(site.worker(engine))
    both.worker.task("ping")(ping)
    async with working(both.worker):
        jobs = await both_started(engine)
        cancelled_at = time.monotonic()
        await cancel_both(engine, jobs)
        await until(lambda: both.have_heard)
        await both_over(engine, jobs)

    assert max(both.heard.values()) - cancelled_at < HEARTBEAT_SECONDS + 0.25


async def test_a_cancel_comes_with_the_answer_to_progress(
    site: Site, engine: OrchestratorEngine
) -> None:
    """R40."""
    both = stoppable(site.worker(engine, HEARTBEAT_INTERVAL=RARELY))
    both.worker.task("ping")(ping)
    async with working(both.worker):
        jobs = await both_started(engine)
        await cancel_both(engine, jobs)

        async def are_to_be_told() -> bool:
            return len(await engine.storage.workers.to_stop(WorkerId("w"))) == 2

        await until(are_to_be_told)
        heard_before = dict(both.heard)
        both.speak.set()
        await until(lambda: both.have_heard)
        await both_over(engine, jobs)

    assert heard_before == {}


async def test_a_cancel_comes_by_socket_at_once(site: Site, engine: OrchestratorEngine) -> None:
    """R40."""
    both = stoppable(site.worker(engine, HEARTBEAT_INTERVAL=RARELY, ENABLE_WEBSOCKETS=True))
    both.worker.task("ping")(ping)

    async def has_socket() -> bool:
        nothing = TaskId("nothing"), JobId("00000000-0000-4000-8000-000000000000")
        return await engine.storage.workers.stop_task(WorkerId("w"), *nothing)

    async with working(both.worker):
        await until(has_socket)
        jobs = await both_started(engine)
        cancelled_at = time.monotonic()
        await cancel_both(engine, jobs)
        await until(lambda: both.have_heard)
        await both_over(engine, jobs)

    assert max(both.heard.values()) - cancelled_at < 0.5


# -- events and contracts


async def test_an_event_moves_the_job_on_and_ends_its_task(
    site: Site, engine: OrchestratorEngine
) -> None:
    worker = site.worker(engine)
    was_stopped = asyncio.Event()

    @worker.task("work")
    async def work(send_event: Send) -> None:
        await send_event("of_no_meaning", {"page": 1})
        await send_event("page_done", {"page": 2})
        try:
            await asyncio.Event().wait()
        finally:
            was_stopped.set()

    async with working(worker):
        job = await done(engine)
        await asyncio.wait_for(was_stopped.wait(), 5)

    assert (job["status"], job["current_state"]) == ("finished", "noticed")
    assert job["state_history"] == {"page": 2}


@dataclass
class Page:
    path: str
    width: int


async def test_what_breaks_the_contract_of_a_task_is_a_failure_for_good(
    site: Site, engine: OrchestratorEngine
) -> None:
    worker = site.worker(engine, announce_contracts=True)
    runs: list[Page] = []

    @worker.task("work", output_statuses=["success"])
    def work(params: Page) -> dict[str, Any]:
        runs.append(params)
        return {"status": "odd" if params.width == 0 else "success"}

    async with working(worker):
        good = await done(engine, path="a", width=1)
        bad_params = await done(engine, path="a", width="wide")
        bad_result = await done(engine, path="a", width=0)

    assert [good["status"], bad_params["status"], bad_result["status"]] == [
        "finished",
        "quarantined",
        "quarantined",
    ]
    of_params, of_result = bad_params["error_message"], bad_result["error_message"]
    assert "(CONTRACT_VIOLATION_ERROR): Params do not keep" in of_params
    assert "`$.width`" in of_params
    assert "(CONTRACT_VIOLATION_ERROR): Result does not keep" in of_result
    assert "status 'odd'" in of_result
    assert runs == [Page("a", 1), Page("a", 0)]
