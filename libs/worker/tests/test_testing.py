"""The scripted orchestrator that authors test their workers with."""

import asyncio

import pytest

from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.testing import orchestrated
from rxon import TaskError
from tests.support import until


@pytest.fixture
def worker() -> Worker:
    one = Worker(config=WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "s"}))

    @one.task("double")
    async def double(params: dict[str, int]) -> dict[str, int]:
        return {"doubled": params["n"] * 2}

    @one.task("fail")
    def fail() -> None:
        raise OSError("no disk")

    @one.task("wait")
    async def wait() -> None:
        await asyncio.Event().wait()

    assert (double, fail, wait) != ()
    return one


async def test_a_task_is_run_and_its_result_comes_back(worker: Worker) -> None:
    async with orchestrated(worker) as orchestrator:
        ended = await orchestrator.run("double", {"n": 2})
        failed = await orchestrator.run("fail")

    assert (ended.status, ended.data, ended.error) == ("success", {"doubled": 4}, None)
    assert failed.error == TaskError(code="TRANSIENT_ERROR", message="no disk")


async def test_one_worker_can_be_tested_again_and_keeps_its_settings(worker: Worker) -> None:
    before = dict(vars(worker.config))

    for _ in range(2):
        async with orchestrated(worker) as orchestrator:
            assert (await orchestrator.run("double", {"n": 1})).data == {"doubled": 2}

    assert vars(worker.config) == before


def test_one_worker_can_be_tested_in_another_event_loop(worker: Worker) -> None:
    async def ran() -> object:
        async with orchestrated(worker) as orchestrator:
            return (await orchestrator.run("double", {"n": 1})).data

    assert [asyncio.run(ran()) for _ in range(2)] == [{"doubled": 2}] * 2


async def test_a_task_without_a_result_is_named(worker: Worker) -> None:
    async with orchestrated(worker, settings={"SHUTDOWN_TIMEOUT": 0}) as orchestrator:
        given = orchestrator.give("wait")
        with pytest.raises(TimeoutError, match=f"Task {given.task_id} had no result within 0.05"):
            await given.ended(within_seconds=0.05)


async def test_a_worker_that_was_forgotten_registers_again(worker: Worker) -> None:
    """R38."""
    async with orchestrated(worker) as orchestrator:
        await until(lambda: orchestrator.registered)
        orchestrator.forget_worker()
        await until(lambda: len(orchestrator.registered) == 2)
        assert (await orchestrator.run("double", {"n": 1})).data == {"doubled": 2}


async def test_a_result_waits_until_the_orchestrator_is_back(worker: Worker) -> None:
    go_on = asyncio.Event()

    @worker.task("slow")
    async def slow() -> dict[str, bool]:  # pyright: ignore[reportUnusedFunction]
        await go_on.wait()
        return {"done": True}

    async with orchestrated(worker) as orchestrator:
        given = orchestrator.give("slow")
        await until(lambda: orchestrator.heartbeats and orchestrator.heartbeats[-1].load == 1)
        with orchestrator.away():
            go_on.set()
            await until(lambda: orchestrator.refusals > 3)
        assert (await given.ended()).data == {"done": True}


async def test_a_worker_runs_once_at_a_time(worker: Worker) -> None:
    async with orchestrated(worker) as orchestrator:
        await until(lambda: orchestrator.registered)
        with pytest.raises(RuntimeError, match="The worker runs already"):
            await worker.main()
