"""A task in hand: from its arrival until its result is delivered or put aside."""

import asyncio
from dataclasses import dataclass, field

from avtomatika_worker.cancellation import Cancellation
from avtomatika_worker.handlers import Handler
from avtomatika_worker.link import Link
from avtomatika_worker.outcome import CANCELLED, Outcome
from avtomatika_worker.task_files import TaskFiles
from rxon import Task


@dataclass
class InHand:
    task: Task
    link: Link
    """To the orchestrator it came from: only that one hears of it or may withdraw it."""
    handler: Handler | None
    files: TaskFiles
    cancellation: Cancellation = field(default_factory=Cancellation)
    execution: asyncio.Task[Outcome] = field(init=False)
    report: asyncio.Task[None] = field(init=False)
    """Brings the result."""
    started: bool = False
    unwanted: bool = False
    """The orchestrator no longer wants it."""
    abandoned: bool = False
    """We stop and it did not end in time."""
    progress: float | None = None
    message: str = ""

    @property
    def task_class(self) -> str | None:
        return self.handler.task_type if self.handler else None

    def withdraw(self) -> None:
        """Stop the handler; a thread that runs can only be asked to, by its token."""
        self.unwanted = True
        self.cancellation.request()
        in_thread = self.handler is not None and self.handler.in_thread
        if not (in_thread and self.started):
            self.execution.cancel()

    def abandon(self) -> None:
        self.abandoned = True
        self.cancellation.request()
        self.execution.cancel()

    def outcome(self) -> Outcome:
        """What became of the execution, which has ended."""
        return CANCELLED if self.execution.cancelled() else self.execution.result()

    def is_for_another(self) -> bool:
        """It ended only because we stop: nobody has asked for that, so another worker shall do it."""
        return self.abandoned and not self.unwanted and self.outcome() == CANCELLED
