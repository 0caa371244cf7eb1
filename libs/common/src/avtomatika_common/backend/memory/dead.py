"""Entries that could not be handled, in memory."""

from itertools import islice

from avtomatika_common.backend.dead_events import plain_event
from avtomatika_common.backend.memory.tables import DeadEntry, Quarantined, Tables
from avtomatika_common.backend.ports import DeadEvent, DeadEvents
from avtomatika_core.job import JobStatus


class MemoryDeadEvents(DeadEvents):
    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def newest(self, limit: int) -> list[DeadEvent]:
        return [
            DeadEvent(
                dead_id=dead.dead_id,
                job_id=dead.entry.job_id,
                reason=dead.reason,
                at=dead.at,
                event=plain_event(dead.entry.event),
            )
            for dead in islice(reversed(self._tables.dead.values()), limit)
        ]

    async def replay(self, dead_id: str) -> bool:
        dead = self._tables.dead.pop(dead_id, None)
        if dead is None:
            return False
        dead.entry.tries = 0
        if dead.was is not None:
            self._restore(dead, dead.was)
        self._tables.requeue(dead.entry)
        return True

    def _restore(self, dead: DeadEntry, was: Quarantined) -> None:
        tables, job_id = self._tables, dead.entry.job_id
        record = tables.job(job_id)
        if record is None or record.fence != was.fence:
            return
        if was.status is JobStatus.WAITING_FOR_PARALLEL_TASKS and record.open:
            return
        record.renew_fence(str(tables.number()))
        tables.reopen_job(job_id, record, was.status, was.deadline)
        record.origin, record.head, record.data = was.origin, was.head, was.data
        record.wait, record.cancelled = was.wait, was.cancelled
        record.claim = dead.entry.entry_id if was.is_claim else None
        record.tries = 0

    async def delete(self, dead_id: str) -> bool:
        return self._tables.dead.pop(dead_id, None) is not None
