"""Results reach their orchestrator: together where they end together, at once where one is alone,
and after bad times from disk."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.testing import ScriptedOrchestrator, orchestrated
from rxon import (
    BatchedResultAnswer,
    ResultAnswer,
    ResultBatchAnswer,
    Task,
    TaskResult,
)
from rxon.exceptions import RequestRefused, RxonAuthError
from tests.support import until


class Watched(ScriptedOrchestrator):
    """Keeps how it was asked, and may refuse."""

    def __init__(self) -> None:
        super().__init__("w")
        self.polls: list[int] = []
        self.batches: list[tuple[int, int | None]] = []
        self.singles: list[str] = []
        self.order: list[str] = []
        self.errors: list[Exception] = []
        self.refused_in_batches: set[str] = set()
        self.held = asyncio.Event()
        self.held.set()

    async def register(self, registration: object) -> None:
        self.order.append("register")
        await super().register(registration)  # type: ignore[arg-type]

    async def poll_tasks(self, timeout_seconds: float, most: int) -> Sequence[Task]:
        self.polls.append(most)
        return await super().poll_tasks(timeout_seconds, most)

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        self.singles.append(result.task_id)
        self.order.append("result")
        self._refuse()
        return await super().send_result(result)

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        self.batches.append((len(results), most))
        await self.held.wait()
        self._refuse()
        answer = await super().send_results(results, most)
        return ResultBatchAnswer(
            answers=tuple(
                BatchedResultAnswer(error="No.") if one.task_id in self.refused_in_batches else ok
                for one, ok in zip(results, answer.answers, strict=True)
            ),
            tasks=answer.tasks,
        )

    def _refuse(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


def refused(status: int) -> RequestRefused:
    return RequestRefused("refused", status=status, body="")


def a_task(task_id: str) -> Task:
    return Task(job_id="j-1", task_id=task_id, type="work")


def a_worker(folder: Path, *, places: int = 4, **settings: object) -> Worker:
    config = WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "s", "TASK_FILES_DIR": str(folder)})
    quick = {
        "HEARTBEAT_INTERVAL": 0.02,
        "HEARTBEAT_DEBOUNCE_DELAY": 0.0,
        "TASK_POLL_ERROR_DELAY": 0.005,
        "RESULT_RETRY_INITIAL_DELAY": 0.001,
        "IDLE_POLL_DELAY": 0.0,
        "SHUTDOWN_TIMEOUT": 0.2,
    }
    for name, value in {**quick, **settings}.items():
        setattr(config, name, value)
    return Worker(max_concurrent_tasks=places, config=config)


@asynccontextmanager
async def working_for(worker: Worker, orchestrator: ScriptedOrchestrator) -> AsyncGenerator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.work_for([({"url": "o"}, orchestrator)]))
        try:
            yield
        finally:
            worker.stop()


def spooled(folder: Path) -> list[Path]:
    return list((folder / ".results").rglob("*.json"))


async def test_results_that_end_together_travel_together(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path), Watched()
    go_on = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        await go_on.wait()

    async with working_for(worker, orchestrator):
        for number in range(4):
            orchestrator.push_task(a_task(f"t-{number}"))
        await until(lambda: orchestrator.heartbeats and orchestrator.heartbeats[-1].load == 4)
        go_on.set()
        await until(lambda: len(orchestrator.results) == 4)

    assert orchestrator.batches == [(4, 4)]


async def test_a_lone_result_waits_for_nobody(tmp_path: Path) -> None:
    """The other task is still running, and a request is still open."""
    worker, orchestrator = a_worker(tmp_path), Watched()

    @worker.task("work")
    async def work() -> None: ...

    async with working_for(worker, orchestrator):
        orchestrator.held.clear()
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: len(orchestrator.batches) == 1)
        orchestrator.push_task(a_task("t-2"))
        await until(lambda: len(orchestrator.batches) == 2)
        orchestrator.held.set()
        await until(lambda: len(orchestrator.results) == 2)


async def test_the_answer_to_a_result_brings_the_next_task(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path, places=1), Watched()
    go_on = asyncio.Event()
    polls: list[int] = []

    @worker.task("work")
    async def work() -> None:
        polls.append(len(orchestrator.polls))
        await go_on.wait()

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: polls)
        orchestrator.push_task(a_task("t-2"))
        go_on.set()
        await until(lambda: len(orchestrator.results) == 2)

    assert orchestrator.batches[0] == (1, 1)
    assert polls[0] == polls[1]


async def test_never_more_places_are_asked_for_than_there_are(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path, places=3), Watched()
    most = running = 0

    @worker.task("work")
    async def work() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with working_for(worker, orchestrator):
        for number in range(60):
            orchestrator.push_task(a_task(f"t-{number}"))
        await until(lambda: len(orchestrator.results) == 60)

    assert most <= 3
    assert max(orchestrator.polls) <= 3


async def test_an_older_orchestrator_gets_single_results_and_plain_polls(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path), Watched()
    orchestrator.knows_batches = False
    worker.task("work")(lambda: None)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: orchestrator.results)
        polls = len(orchestrator.polls)
        for number in range(3):
            orchestrator.push_task(a_task(f"u-{number}"))
        await until(lambda: len(orchestrator.results) == 4)
        assert len(orchestrator.polls) <= polls + 1  # one may have been open

    assert len(orchestrator.batches) == 1
    assert len(orchestrator.singles) == 4


async def test_a_result_refused_among_others_is_judged_alone(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path), Watched()
    orchestrator.refused_in_batches = {"t-1"}
    worker.task("work")(lambda: None)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-0"))
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: orchestrator.singles)

    assert orchestrator.singles == ["t-1"]


async def test_a_batch_that_is_too_large_is_sent_one_by_one(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path), Watched()
    orchestrator.errors = [refused(413)]
    worker.task("work")(lambda: None)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-0"))
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: len(orchestrator.results) == 2)

    assert sorted(orchestrator.singles) == ["t-0", "t-1"]


async def test_a_result_that_cannot_be_sent_leaves_its_place_and_is_sent_when_it_can(
    tmp_path: Path,
) -> None:
    """Until then its task is named, so that nobody else gets it."""
    worker, orchestrator = a_worker(tmp_path, places=1, RESULT_MAX_RETRIES=1), Watched()
    orchestrator.errors = [refused(503)] * 1000
    worker.task("work")(lambda: None)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: orchestrator.heartbeats and orchestrator.heartbeats[-1].load == 1)
        await until(lambda: orchestrator.heartbeats[-1].load == 0)
        assert orchestrator.heartbeats[-1].current_tasks == ("t-1",)
        assert orchestrator.heartbeats[-1].status == "idle"
        assert len(spooled(tmp_path)) == 1
        orchestrator.errors.clear()
        await until(lambda: orchestrator.results)
        await until(lambda: orchestrator.heartbeats[-1].current_tasks == ())

    assert spooled(tmp_path) == []


async def test_a_result_is_on_disk_from_the_first_failure_until_it_has_arrived(
    tmp_path: Path,
) -> None:
    worker, orchestrator = a_worker(tmp_path, RESULT_RETRY_INITIAL_DELAY=0.05), Watched()
    orchestrator.errors = [RxonAuthError("The token is being changed.")]
    worker.task("work")(lambda: None)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: spooled(tmp_path))
        await until(lambda: orchestrator.results)
        await until(lambda: not spooled(tmp_path))


async def test_a_result_survives_a_restart_and_goes_before_the_registration(
    tmp_path: Path,
) -> None:
    """A registration makes a new worker of us, whose earlier tasks count as lost."""
    before, gone = a_worker(tmp_path), Watched()
    gone.errors = [refused(503)] * 1000
    before.task("work")(lambda: {"n": 1})
    async with working_for(before, gone):
        gone.push_task(a_task("t-1"))
        await until(lambda: spooled(tmp_path))

    after, orchestrator = a_worker(tmp_path), Watched()
    async with working_for(after, orchestrator):
        await until(lambda: orchestrator.registered)

    assert orchestrator.order == ["result", "register"]
    (result,) = orchestrator.results
    assert (result.task_id, result.data) == ("t-1", {"n": 1})
    assert spooled(tmp_path) == []
    assert not gone.has_left
    assert orchestrator.has_left


async def test_a_result_goes_back_to_the_orchestrator_it_belongs_to(tmp_path: Path) -> None:
    before, gone = a_worker(tmp_path), Watched()
    gone.errors = [refused(503)] * 1000
    before.task("work")(lambda: None)
    async with working_for(before, gone):
        gone.push_task(a_task("t-1"))
        await until(lambda: spooled(tmp_path))

    other, same = ScriptedOrchestrator("w"), ScriptedOrchestrator("w")
    after = a_worker(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        clients = [({"url": "other"}, other), ({"url": "o"}, same)]
        tasks.create_task(after.work_for(clients))
        await until(lambda: same.results and other.registered)
        after.stop()

    assert other.results == []


async def test_a_result_that_hangs_while_we_stop_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avtomatika_worker.run.FAREWELL_SECONDS", 0.05)
    worker, orchestrator = a_worker(tmp_path, SHUTDOWN_TIMEOUT=0.0), Watched()
    orchestrator.held.clear()
    worker.task("work")(lambda: None)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: orchestrator.batches)

    assert len(spooled(tmp_path)) == 1
    assert not orchestrator.has_left


async def test_a_task_that_comes_again_while_its_result_waits_is_not_done_again(
    tmp_path: Path,
) -> None:
    worker, orchestrator = a_worker(tmp_path, RESULT_MAX_RETRIES=0), Watched()
    orchestrator.errors = [refused(503)] * 1000
    started: list[str] = []

    @worker.task("work")
    async def work(task_id: str) -> None:
        started.append(task_id)

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: started and orchestrator.heartbeats[-1].load == 0)
        orchestrator.push_task(a_task("t-1"))
        orchestrator.push_task(a_task("t-2"))
        await until(lambda: "t-2" in started)
        orchestrator.errors.clear()
        await until(lambda: len(orchestrator.results) == 2)

    assert started == ["t-1", "t-2"]


async def test_a_worker_signs_off_when_all_is_done(tmp_path: Path) -> None:
    worker, orchestrator = a_worker(tmp_path), Watched()
    go_on = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        await go_on.wait()

    async with working_for(worker, orchestrator):
        orchestrator.push_task(a_task("t-1"))
        await until(lambda: orchestrator.heartbeats and orchestrator.heartbeats[-1].load == 1)
        worker.stop()
        await until(lambda: orchestrator.heartbeats[-1].status == "draining")
        assert not orchestrator.has_left
        go_on.set()

    assert [result.status for result in orchestrator.results] == ["success"]
    assert orchestrator.has_left


async def test_an_older_orchestrator_that_cannot_be_left_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(config=WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "s"}))
    worker.task("work")(lambda: None)

    async with orchestrated(worker) as orchestrator:
        orchestrator.knows_batches = False
        await until(lambda: orchestrator.registered)

    assert not orchestrator.has_left
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
