"""Runs a worker against an orchestrator that a test scripts: no network, no files left behind.

async with orchestrated(worker) as orchestrator:
    ended = await orchestrator.run("resize", {"path": "a.png", "width": 3})
    assert ended.status == "success"
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final

from avtomatika_worker.worker import Worker
from rxon import (
    EventAnswer,
    Heartbeat,
    HeartbeatAnswer,
    ProgressAnswer,
    ProgressUpdatePayload,
    ResultAnswer,
    ResultBatchAnswer,
    RxonNetworkError,
    Task,
    TaskError,
    TaskPayload,
    TaskResult,
    WorkerCommand,
    WorkerEvent,
    WorkerRegistration,
)
from rxon.constants import COMMAND_CANCEL_TASK
from rxon.exceptions import RequestRefused
from rxon.testing import MockTransport

PATIENCE_SECONDS: Final = 5.0

QUICK: Final[Mapping[str, object]] = {
    "HEARTBEAT_INTERVAL": 0.1,
    "HEARTBEAT_DEBOUNCE_DELAY": 0.0,
    "TASK_POLL_ERROR_DELAY": 0.01,
    "RESULT_RETRY_INITIAL_DELAY": 0.01,
    "IDLE_POLL_DELAY": 0.0,
    "ENABLE_WEBSOCKETS": True,
}
"""Settings a test waits less with; by the socket a cancellation arrives at once."""


class GivenTask:
    """A task on its way: what the worker has told of it so far, and in the end its result."""

    def __init__(self, task: Task, orchestrator: "ScriptedOrchestrator") -> None:
        self.task_id: Final = task.task_id
        self.job_id: Final = task.job_id
        self._orchestrator = orchestrator
        self._ended = asyncio.Event()
        self._result: TaskResult | None = None

    @property
    def progress(self) -> list[tuple[float, str]]:
        """What was reported: how far, and the message."""
        return [(one.progress, one.message or "") for one in self._updates()]

    @property
    def checkpoint(self) -> dict[str, object] | None:
        """The one the next attempt would get."""
        kept = [one.checkpoint for one in self._updates() if isinstance(one.checkpoint, dict)]
        return kept[-1] if kept else None

    @property
    def events(self) -> list[tuple[str, dict[str, object]]]:
        """Type and payload of each event."""
        return [
            (event.event_type, event.payload)
            for event in self._orchestrator.events
            if event.target_task_id == self.task_id
        ]

    def cancel(self) -> None:
        """Tell the worker that nobody wants the task any more."""
        self._orchestrator.cancel(self.task_id)

    async def ended(self, within_seconds: float = PATIENCE_SECONDS) -> "EndedTask":
        """Wait for the result. Raises TimeoutError if there is none in time."""
        try:
            async with asyncio.timeout(within_seconds):
                await self._ended.wait()
        except TimeoutError:
            raise TimeoutError(
                f"Task {self.task_id} had no result within {within_seconds:g} s."
            ) from None
        assert self._result is not None
        return EndedTask(self, self._result)

    def settle(self, result: TaskResult) -> None:
        self._result = result
        self._ended.set()

    def _updates(self) -> list[ProgressUpdatePayload]:
        updates = self._orchestrator.progress_updates
        return [update for update in updates if update.task_id == self.task_id]


class EndedTask:
    """The result of a task, and what was told of it before."""

    def __init__(self, given: GivenTask, result: TaskResult) -> None:
        self.result: Final = result
        self.status: Final = result.status
        self.data: Final[Any] = result.data
        self.error: Final[TaskError | None] = result.error
        self.progress: Final = given.progress
        self.checkpoint: Final = given.checkpoint
        self.events: Final = given.events


class ScriptedOrchestrator(MockTransport):
    """Hands out the tasks it is given, and behaves as badly as it is told to.

    What the worker has sent lies in the lists `registered`, `heartbeats`, `results`,
    `progress_updates` and `events`.
    """

    def __init__(self, worker_id: str) -> None:
        super().__init__(worker_id, token="scripted")  # noqa: S106 - nobody checks it
        self.knows_batches = True
        """False: it answers as an older orchestrator, without any of the later additions."""
        self.refusals = 0
        """How many calls were not answered as the worker hoped."""
        self._given: dict[str, GivenTask] = {}
        self.unwanted: set[str] = set()
        """Ids of tasks it no longer wants; heartbeats and progress are answered with them."""
        self._away = False
        self._known = False

    async def run(
        self,
        name: str,
        params: Mapping[str, object] | None = None,
        *,
        job_id: str = "job-1",
        checkpoint: Mapping[str, object] | None = None,
        within_seconds: float = PATIENCE_SECONDS,
    ) -> EndedTask:
        """Let the worker do a task, and wait for its result."""
        given = self.give(name, params, job_id=job_id, checkpoint=checkpoint)
        return await given.ended(within_seconds)

    def give(
        self,
        name: str,
        params: Mapping[str, object] | None = None,
        *,
        job_id: str = "job-1",
        checkpoint: Mapping[str, object] | None = None,
    ) -> GivenTask:
        """Hand a task to the next poll. `checkpoint` is what an earlier attempt has left."""
        task = Task(
            job_id=job_id,
            task_id=f"task-{uuid.uuid4()}",  # noqa: TID251 - a test's ids may be any
            type=name,
            params=dict(params or {}),
            attempt=1 if checkpoint is None else 2,
            checkpoint=None if checkpoint is None else dict(checkpoint),
        )
        given = self._given[task.task_id] = GivenTask(task, self)
        self.push_task(task)
        return given

    def cancel(self, task_id: str) -> None:
        self.unwanted.add(task_id)
        self.push_command(WorkerCommand(command=COMMAND_CANCEL_TASK, task_id=task_id))

    def forget_worker(self) -> None:
        """Answer 404 until the worker registers again."""
        self._known = False

    @contextmanager
    def away(self) -> Generator[None]:
        """Inside, nobody answers."""
        self._away = True
        try:
            yield
        finally:
            self._away = False

    async def register(self, registration: WorkerRegistration) -> None:
        self._answer()
        await super().register(registration)
        self._known = True

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        self._answer(known=True)
        return await super().poll_task(min(timeout_seconds, 0.05))

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        self._answer(known=True)
        await super().send_heartbeat(heartbeat)
        running = heartbeat.current_tasks or ()
        return HeartbeatAnswer(cancel_task_ids=tuple(self.unwanted.intersection(running)))

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        self._answer()
        answer = await super().send_result(result)
        self._settle(result)
        return answer

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        self._answer(addition=True)
        answer = await super().send_results(results, most)
        for result in results:
            self._settle(result)
        return answer

    async def send_progress(self, progress: ProgressUpdatePayload) -> ProgressAnswer:
        self._answer(addition=True)
        await super().send_progress(progress)
        unwanted = self.unwanted & {progress.task_id}
        return ProgressAnswer(status="ok", cancel_task_ids=tuple(unwanted))

    async def send_event(self, event: WorkerEvent) -> EventAnswer:
        self._answer(addition=True)
        return await super().send_event(event)

    async def leave(self) -> None:
        self._answer(addition=True)
        await super().leave()

    def _answer(self, *, known: bool = False, addition: bool = False) -> None:
        """Raise what the worker gets instead of an answer, if it is to get none."""
        if self._away:
            self.refusals += 1
            raise RxonNetworkError("The orchestrator is away.")
        if (known and not self._known) or (addition and not self.knows_batches):
            self.refusals += 1
            raise RequestRefused("404 Worker not found", status=404, body="")

    def _settle(self, result: TaskResult) -> None:
        given = self._given.get(result.task_id)
        if given is not None:
            given.settle(result)


@asynccontextmanager
async def orchestrated(
    worker: Worker, *, settings: Mapping[str, object] | None = None
) -> AsyncGenerator[ScriptedOrchestrator]:
    """Run `worker` inside, for one scripted orchestrator; afterwards it has stopped.

    Its settings are made quick for that time, and its files lie in a directory that is removed;
    `settings` changes some more of them, by attributes of `WorkerConfig`.
    """
    orchestrator = ScriptedOrchestrator(worker.worker_id)
    with TemporaryDirectory(prefix="avtomatika-") as directory:
        places = {"TASK_FILES_DIR": directory, "RESULT_SPOOL_DIR": f"{directory}/.results"}
        with _changed(worker.config, {**QUICK, **places, **(settings or {})}):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    worker.work_for([({"url": "mock://scripted"}, orchestrator)]), name="worker"
                )
                try:
                    yield orchestrator
                finally:
                    worker.stop()


@contextmanager
def _changed(config: object, settings: Mapping[str, object]) -> Generator[None]:
    before = {name: getattr(config, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
