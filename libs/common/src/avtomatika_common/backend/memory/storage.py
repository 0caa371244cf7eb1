"""`MemoryStorage`: all ports in the memory of this process."""

from typing import Any

from avtomatika_common import codec
from avtomatika_common.backend.memory.board import MemoryBoard
from avtomatika_common.backend.memory.catalogue import MemoryCatalogue
from avtomatika_common.backend.memory.dead import MemoryDeadEvents
from avtomatika_common.backend.memory.hints import MemoryHints
from avtomatika_common.backend.memory.inbox import MemoryInbox
from avtomatika_common.backend.memory.inspection import MemoryInspection
from avtomatika_common.backend.memory.jobs import MemoryJobs
from avtomatika_common.backend.memory.key_values import MemoryKeyValues
from avtomatika_common.backend.memory.leases import MemoryLeases
from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.mail import MemoryMailbox
from avtomatika_common.backend.memory.relay import MemoryRelay
from avtomatika_common.backend.memory.schedules import MemorySchedules
from avtomatika_common.backend.memory.sockets import Sockets
from avtomatika_common.backend.memory.streams import MemoryWorkStream
from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.memory.timers import MemoryTimers
from avtomatika_common.backend.memory.workers import MemoryWorkers
from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.clock import Clock, SystemClock
from avtomatika_common.documents import job_document
from avtomatika_common.lifecycle import StartupError
from avtomatika_core.job import JobId, WorkerId


class MemoryStorage:
    """Jobs, queues and workers of one process; nothing outlives it.

    It may be used before `open` and after `close`; only what waits for something ends with `close`.
    `clock`: for tests that let time pass.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self._tables = tables = Tables(self.clock)
        self.liveness = MemoryLiveness(on_end=self._forget)
        self.jobs = MemoryJobs(tables)
        self.inbox = MemoryInbox(tables, self.liveness)
        self.dead_events = MemoryDeadEvents(tables)
        self.board = MemoryBoard(tables)
        self.mailbox = MemoryMailbox(tables)
        self._sockets = Sockets(self.clock, self.liveness, self.mailbox)
        self.workers = MemoryWorkers(tables, self.liveness, self.mailbox, self._sockets)
        self.hints = MemoryHints(tables)
        self.leases = MemoryLeases(self.clock)
        self.timers = MemoryTimers(tables, self.leases)
        self.relay = MemoryRelay(tables, self.board, self.workers)
        self.inspection = MemoryInspection(tables, self.workers)
        self.schedules = MemorySchedules(tables, self.leases)
        self.catalogue = MemoryCatalogue(tables)
        self.facts = MemoryWorkStream(tables, lambda here: here.facts, self.liveness)
        self.notifications = MemoryWorkStream(
            tables, lambda here: here.notifications, self.liveness
        )
        self.key_values = MemoryKeyValues()

    def _forget(self, instance: str) -> None:
        self.mailbox.forget(instance)
        self._sockets.forget(instance)

    @property
    def partitions(self) -> int:
        return self._tables.options.partitions

    async def open(self, options: StoreOptions) -> None:
        """Raises StartupError when it holds jobs in another number of partitions."""
        tables = self._tables
        if options.partitions != self.partitions:
            if tables.jobs:
                raise StartupError(
                    f"The jobs in this MemoryStorage are in {self.partitions} partitions, but "
                    f"AVTOMATIKA_PARTITIONS is {options.partitions}: set it to {self.partitions}."
                )
            tables.options = options
            tables.clear()
        tables.options = options
        tables.signals.open()

    async def ping(self) -> bool:
        """Memory always answers."""
        return True

    async def close(self) -> None:
        """End all blocking reads; what is stored stays."""
        self._tables.signals.close()

    async def flush_all(self) -> None:
        """Forget everything."""
        self._tables.clear()
        self.workers.clear()
        self.mailbox.clear()
        self._sockets.clear()
        self.leases.clear()
        self.schedules.clear()
        self.catalogue.clear()
        self.key_values.clear()

    async def get_job_state(self, job_id: str) -> dict[str, Any] | None:
        """The job's document; None: no such job."""
        view = await self.jobs.view(JobId(job_id))
        if view is None:
            return None
        document: dict[str, Any] = codec.as_json(job_document(view))
        return document

    async def get_job_queue_length(self) -> int:
        """Inbox entries that are not answered yet."""
        return await self.inbox.length()

    async def get_quarantined_jobs(self) -> list[str]:
        """Ids, newest first."""
        return list(await self.jobs.quarantined())

    async def get_worker_info(self, worker_id: str) -> dict[str, Any] | None:
        """The worker's document; None: unknown or expired."""
        worker = await self.workers.get(WorkerId(worker_id))
        return None if worker is None else dict(worker.document)

    async def get_available_workers(self) -> list[dict[str, Any]]:
        """Documents of the live workers."""
        return [dict(worker.document) for worker in await self.workers.live()]

    async def get_active_worker_count(self) -> int:
        """How many workers are registered and not expired."""
        return await self.workers.count()
