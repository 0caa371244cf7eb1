"""What a handler and its orchestrator tell each other while a task runs."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from avtomatika_worker import Worker
from avtomatika_worker.cancellation import Cancellation
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.testing import ScriptedOrchestrator, orchestrated
from rxon import EventAnswer, ProgressUpdatePayload, RxonNetworkError, WorkerCommand, WorkerEvent
from rxon.exceptions import RequestRefused
from tests.support import until

Send = Callable[..., Awaitable[None]]
SendFromThread = Callable[..., None]


def a_worker() -> Worker:
    return Worker(config=WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "secret"}))


async def test_progress_and_the_last_checkpoint_reach_the_orchestrator() -> None:
    worker = a_worker()

    @worker.task("work")
    async def work(send_progress: Send) -> None:
        await send_progress(0.25, checkpoint={"page": 1})
        await send_progress(0.5, "half", checkpoint={"page": 2})
        await send_progress(progress=0.75)

    async with orchestrated(worker) as orchestrator:
        ended = await orchestrator.run("work", job_id="j-1")

    assert ended.status == "success"
    assert ended.progress == [(0.25, ""), (0.5, "half"), (0.75, "")]
    assert ended.checkpoint == {"page": 2}
    assert {update.job_id for update in orchestrator.progress_updates} == {"j-1"}


async def test_a_handler_may_name_the_task_whose_progress_it_sends() -> None:
    """As `Worker.send_progress` wants it."""
    worker = a_worker()

    @worker.task("work")
    async def work(task_id: str, job_id: str, send_progress: Send) -> None:
        await send_progress(task_id, job_id, 0.5, "half")
        await send_progress(task_id=task_id, job_id=job_id, progress=0.6, message="more")
        await worker.send_progress(task_id, job_id, 0.7, checkpoint={"page": 1})

    async with orchestrated(worker) as orchestrator:
        ended = await orchestrator.run("work")

    assert ended.progress == [(0.5, "half"), (0.6, "more"), (0.7, "")]
    assert ended.checkpoint == {"page": 1}


async def test_a_thread_sends_progress_without_awaiting() -> None:
    worker = a_worker()

    @worker.task("work")
    def work(task_id: str, job_id: str, send_progress: SendFromThread) -> None:
        send_progress(0.5, "half", checkpoint={"page": 1})
        asyncio.run(worker.send_progress(task_id, job_id, 0.75))

    async with orchestrated(worker) as orchestrator:
        ended = await orchestrator.run("work")

    assert ended.progress == [(0.5, "half"), (0.75, "")]
    assert ended.checkpoint == {"page": 1}


async def test_the_next_attempt_gets_the_checkpoint_of_the_last() -> None:
    worker = a_worker()

    @worker.task("work")
    async def work(checkpoint: dict[str, Any] | None) -> dict[str, Any]:
        return {"from": checkpoint["page"] if checkpoint else 0}

    async with orchestrated(worker) as orchestrator:
        first = await orchestrator.run("work")
        second = await orchestrator.run("work", checkpoint={"page": 3})

    assert (first.data, second.data) == ({"from": 0}, {"from": 3})


@pytest.mark.parametrize("in_thread", [False, True])
async def test_progress_that_cannot_be_sent_does_not_fail_the_task(
    in_thread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    worker = a_worker()

    def in_a_thread(send_progress: SendFromThread) -> dict[str, bool]:
        send_progress(0.5, checkpoint={"not": object()})
        return {"done": True}

    async def in_the_loop(send_progress: Send) -> dict[str, bool]:
        with orchestrator.away():
            await send_progress(0.5)
        return {"done": True}

    worker.task("work")(in_a_thread if in_thread else in_the_loop)

    async with orchestrated(worker, settings={"HEARTBEAT_INTERVAL": 60}) as orchestrator:
        # A mock would take what JSON cannot carry.
        orchestrator.send_progress = _refusing(orchestrator)  # type: ignore[method-assign]
        ended = await orchestrator.run("work")

    assert ended.data == {"done": True}
    assert "progress not sent" in caplog.messages


def _refusing(orchestrator: ScriptedOrchestrator) -> Callable[..., Any]:
    async def send_progress(progress: ProgressUpdatePayload) -> object:
        if isinstance(progress.checkpoint, dict):
            raise TypeError("Type is not JSON serializable: object")
        raise RxonNetworkError("away")

    return send_progress


async def test_progress_of_a_task_that_is_not_in_hand_is_passed_over() -> None:
    await a_worker().send_progress("t-9", "j-9", 0.5)


async def test_a_task_nobody_wants_is_cancelled_by_the_answer_to_its_progress() -> None:
    worker = a_worker()

    @worker.task("work")
    async def work(task_id: str, send_progress: Send) -> None:
        orchestrator.unwanted.add(task_id)
        await send_progress(0.5)
        await asyncio.Event().wait()

    async with orchestrated(worker, settings={"HEARTBEAT_INTERVAL": 60}) as orchestrator:
        ended = await orchestrator.run("work")

    assert ended.status == "cancelled"


@pytest.mark.parametrize("by_socket", [False, True])
async def test_a_task_is_cancelled_by_socket_or_by_heartbeat(by_socket: bool) -> None:
    """R40."""
    worker = a_worker()
    settings = {"ENABLE_WEBSOCKETS": by_socket, "HEARTBEAT_INTERVAL": 60 if by_socket else 0.01}
    started = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with orchestrated(worker, settings=settings) as orchestrator:
        given = orchestrator.give("work")
        await started.wait()
        given.cancel()
        ended = await given.ended()

    assert ended.status == "cancelled"


async def test_a_thread_learns_by_its_token_that_nobody_wants_its_task() -> None:
    worker = a_worker()
    started = threading.Event()

    @worker.task("work")
    def work(cancellation: Cancellation) -> None:
        assert not cancellation.requested
        started.set()
        assert cancellation.wait(seconds=5)
        cancellation.raise_if_requested()

    async with orchestrated(worker) as orchestrator:
        given = orchestrator.give("work")
        await until(started.is_set)
        given.cancel()
        ended = await given.ended()

    assert ended.status == "cancelled"


async def test_a_token_that_was_not_asked_lets_the_task_go_on() -> None:
    worker = a_worker()

    @worker.task("work")
    async def work(cancellation: Cancellation) -> dict[str, bool]:
        cancellation.raise_if_requested()
        return {"requested": cancellation.requested}

    async with orchestrated(worker) as orchestrator:
        ended = await orchestrator.run("work")

    assert ended.data == {"requested": False}


async def test_an_orchestrator_cancels_its_own_tasks_only() -> None:
    worker = a_worker()
    worker.config.ENABLE_WEBSOCKETS = True
    worker.config.TASK_POLL_TIMEOUT = 0.01
    owner, other = ScriptedOrchestrator("w"), ScriptedOrchestrator("w")
    go_on = asyncio.Event()
    started = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        started.set()
        await go_on.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.work_for([({"url": "a"}, owner), ({"url": "b"}, other)]))
        given = owner.give("work")
        await started.wait()
        other.push_command(WorkerCommand(command="cancel_task", task_id=given.task_id))
        other.push_command(WorkerCommand(command="something_else", task_id=given.task_id))
        await until(other.has_told_all)
        go_on.set()
        ended = await given.ended()
        worker.stop()

    assert ended.status == "success"


async def test_every_orchestrator_is_told_of_all_tasks_in_hand() -> None:
    """Two addresses may be doors of one orchestrator, which takes back what is not named."""
    worker = a_worker()
    worker.config.TASK_POLL_TIMEOUT = 0.01
    owner, other = ScriptedOrchestrator("w"), ScriptedOrchestrator("w")
    go_on = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        await go_on.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.work_for([({"url": "a"}, owner), ({"url": "b"}, other)]))
        given = owner.give("work")
        await until(lambda: any(given.task_id in (b.current_tasks or ()) for b in other.heartbeats))
        go_on.set()
        await given.ended()
        worker.stop()


async def test_a_socket_that_ends_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avtomatika_worker.link.SOCKET_PAUSE_SECONDS", 0.01)
    worker = a_worker()
    opened: list[int] = []

    class Fragile(ScriptedOrchestrator):
        async def listen_for_commands(self):  # type: ignore[no-untyped-def] # noqa: ANN202
            opened.append(1)
            if len(opened) == 1:
                raise RxonNetworkError("cut")
            if len(opened) == 2:
                return
            async for command in super().listen_for_commands():
                yield command

    worker.config.ENABLE_WEBSOCKETS = True
    orchestrator = Fragile("w")
    started = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.work_for([({"url": "a"}, orchestrator)]))
        given = orchestrator.give("work")
        await started.wait()
        given.cancel()
        ended = await given.ended()
        worker.stop()

    assert ended.status == "cancelled"
    assert len(opened) == 3


async def test_an_event_says_which_task_of_which_job_it_comes_from() -> None:
    worker = a_worker()

    @worker.task("work")
    async def work(send_event: Send) -> None:
        await send_event("page_done", {"page": 3})
        await send_event("all_done")

    async with orchestrated(worker) as orchestrator:
        ended = await orchestrator.run("work", job_id="j-1")

    assert ended.events == [("page_done", {"page": 3}), ("all_done", {})]
    first, second = orchestrator.events
    assert first.event_id != second.event_id
    assert (first.worker_id, first.origin_worker_id) == ("w", "w")
    assert first.origin_task_id == first.target_task_id == ended.result.task_id
    assert first.target_job_id == "j-1"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_an_event_keeps_its_id_until_it_is_taken(in_thread: bool) -> None:
    class Busy(ScriptedOrchestrator):
        def __init__(self) -> None:
            super().__init__("w")
            self.ids: list[str] = []

        async def send_event(self, event: WorkerEvent) -> EventAnswer:
            self.ids.append(event.event_id)
            if len(self.ids) < 3:
                raise RequestRefused("busy", status=503, body="")
            return await super().send_event(event)

    worker, orchestrator = a_worker(), Busy()
    worker.config.RESULT_RETRY_INITIAL_DELAY = 0.001

    async def in_the_loop(send_event: Send) -> None:
        await send_event("page_done")

    def in_a_thread(send_event: SendFromThread) -> None:
        send_event("page_done")

    worker.task("work")(in_a_thread if in_thread else in_the_loop)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.work_for([({"url": "a"}, orchestrator)]))
        await orchestrator.run("work")
        worker.stop()

    assert len(orchestrator.ids) == 3
    assert len(set(orchestrator.ids)) == 1


async def test_a_handler_hears_that_its_event_was_refused() -> None:
    worker = a_worker()

    @worker.task("work")
    async def work(send_event: Send) -> dict[str, str]:
        try:
            await send_event("page_done")
        except RequestRefused as refused:
            return {"refused": str(refused.status)}
        return {}

    async with orchestrated(worker) as orchestrator:
        orchestrator.knows_batches = False
        ended = await orchestrator.run("work")

    assert ended.data == {"refused": "404"}
