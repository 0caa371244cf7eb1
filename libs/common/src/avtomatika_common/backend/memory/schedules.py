"""Schedules in memory: published and moved on by a lease's holder, paused and run by anybody."""

from collections.abc import Sequence

from msgspec.structs import replace

from avtomatika_common import codec
from avtomatika_common.backend.memory.leases import MemoryLeases
from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.ports import (
    FORGOTTEN_AFTER_SECONDS,
    Lease,
    ScheduleEntry,
    Schedules,
)
from avtomatika_core.job import JobId
from avtomatika_core.schedule import Schedule, Standing


class MemorySchedules(Schedules):
    def __init__(self, tables: Tables, leases: MemoryLeases) -> None:
        self._tables = tables
        self._leases = leases
        self._entries: dict[str, ScheduleEntry] = {}
        self._forgotten_at: dict[str, float] = {}
        """Of those that are not published any more."""
        self._version = 0

    def clear(self) -> None:
        self._entries.clear()
        self._forgotten_at.clear()
        self._is_changed()

    def _is_changed(self) -> None:
        self._version += 1
        self._tables.signals.notify("schedules")

    async def publish(self, lease: Lease, schedules: Sequence[Schedule]) -> None:
        self._leases.check(lease)
        now = self._tables.clock.now()
        for name in [name for name, until in self._forgotten_at.items() if until <= now]:
            del self._entries[name], self._forgotten_at[name]
        before = self._published()
        for schedule in schedules:
            copy = codec.unpack_schedule(codec.pack(schedule))
            known = self._entries.get(schedule.name, ScheduleEntry(schedule=copy))
            self._entries[schedule.name] = replace(known, schedule=copy)
            self._forgotten_at.pop(schedule.name, None)
        for name in before.keys() - {schedule.name for schedule in schedules}:
            self._forgotten_at[name] = now + FORGOTTEN_AFTER_SECONDS
        if self._published() != before:
            self._is_changed()

    def _published(self) -> dict[str, ScheduleEntry]:
        return {
            name: self._entries[name]
            for name in sorted(self._entries)
            if name not in self._forgotten_at
        }

    async def entries(self) -> tuple[str, list[ScheduleEntry]]:
        return str(self._version), list(self._published().values())

    async def get(self, name: str) -> ScheduleEntry | None:
        return self._published().get(name)

    async def changed(self, version: str) -> None:
        await self._tables.signals.wait_for(
            "schedules", lambda: str(self._version) != version, self._tables.options.block_seconds
        )

    async def begin_slot(self, name: str, lease: Lease, standing: Standing) -> bool:
        self._leases.check(lease)
        entry = self._entries.get(name)
        if entry is not None and entry.is_paused:
            return False
        await self.end_slot(name, lease, standing)
        return True

    async def end_slot(self, name: str, lease: Lease, standing: Standing) -> None:
        self._leases.check(lease)
        if (entry := self._entries.get(name)) is not None:
            self._entries[name] = replace(entry, standing=standing)

    async def set_paused(self, name: str, *, is_paused: bool, at: float) -> ScheduleEntry | None:
        entry = await self.get(name)
        if entry is None or entry.is_paused == is_paused:
            return entry
        resumed_at = entry.resumed_at if is_paused else at
        entry = replace(entry, is_paused=is_paused, resumed_at=resumed_at)
        self._entries[name] = entry
        self._is_changed()
        return entry

    async def note_asked(self, name: str, job_id: JobId, at: float) -> None:
        if (entry := await self.get(name)) is not None:
            self._entries[name] = replace(entry, asked_at=at, asked_job_id=job_id)
