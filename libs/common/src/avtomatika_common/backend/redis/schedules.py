"""Schedules in Redis: published and moved on by a lease's holder, paused and run by anybody."""

from collections.abc import Sequence
from typing import Final, cast

from redis.asyncio.connection import ConnectionPool

from avtomatika_common import codec
from avtomatika_common.backend.ports import (
    FORGOTTEN_AFTER_SECONDS,
    Lease,
    LostLease,
    ScheduleEntry,
    Schedules,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.leases import lease_value
from avtomatika_common.backend.redis.readers import Readers
from avtomatika_common.backend.redis.scripts import script
from avtomatika_core.job import JobId
from avtomatika_core.schedule import Schedule, Standing

_PUBLISH: Final = script("publish_schedules")
_READ: Final = script("read_schedules")
_NOTE: Final = script("note_standing")
_PAUSE: Final = script("pause_schedule")
_ASKED: Final = script("note_asked")
_AT_ONCE: Final = 256
_FIELDS: Final = ("schedule", "standing", "paused", "resumed_at", "asked_at", "asked_job")

_Packed = list[bytes | None]
"""The fields, in that order."""


class RedisSchedules(Schedules):
    def __init__(self, pool: ConnectionPool, commands: Commands, block_seconds: float) -> None:
        self._readers = Readers(pool)
        self._commands = commands
        self._block_seconds = block_seconds

    async def close(self) -> None:
        await self._readers.close()

    async def publish(self, lease: Lease, schedules: Sequence[Schedule]) -> None:
        _, known = await self.entries()
        named = {schedule.name for schedule in schedules}
        others = [entry.schedule.name for entry in known if entry.schedule.name not in named]
        for start in range(0, max(len(schedules), len(others)), _AT_ONCE):
            chunk = schedules[start : start + _AT_ONCE]
            arguments: list[Argument] = [lease_value(lease), keys.schedule(""), len(chunk)]
            for schedule in chunk:
                arguments += (schedule.name, codec.pack(schedule))
            arguments.append(int(FORGOTTEN_AFTER_SECONDS))
            arguments += others[start : start + _AT_ONCE]
            names = [keys.SCHEDULE_NAMES, keys.SCHEDULE_LOG, keys.lease(lease.name)]
            if not await self._commands.script(_PUBLISH, names, arguments):
                raise LostLease

    async def entries(self) -> tuple[str, list[ScheduleEntry]]:
        version, found, last = "", list[ScheduleEntry](), b""
        while True:
            first_version, packed, last = cast(
                "tuple[bytes, list[_Packed], bytes]",
                await self._commands.script(
                    _READ, [keys.SCHEDULE_NAMES, keys.SCHEDULE_LOG], [keys.schedule(""), last]
                ),
            )
            version = version or first_version.decode()
            found += filter(None, map(_entry, packed))
            if not last:
                return version, sorted(found, key=lambda entry: entry.schedule.name)

    async def get(self, name: str) -> ScheduleEntry | None:
        is_there = await self._commands.command("SISMEMBER", keys.SCHEDULE_NAMES, name)
        if not is_there:
            return None
        packed = await self._commands.command("HMGET", keys.schedule(name), *_FIELDS)
        return _entry(cast("_Packed", packed))

    async def changed(self, version: str) -> None:
        await self._readers.entries(
            keys.SCHEDULE_LOG, version, count=1, seconds=self._block_seconds
        )

    async def begin_slot(self, name: str, lease: Lease, standing: Standing) -> bool:
        return await self._note(name, lease, standing, "1")

    async def end_slot(self, name: str, lease: Lease, standing: Standing) -> None:
        await self._note(name, lease, standing, "")

    async def _note(self, name: str, lease: Lease, standing: Standing, begins: str) -> bool:
        answer = await self._commands.script(
            _NOTE,
            [keys.schedule(name), keys.lease(lease.name)],
            [lease_value(lease), codec.pack(standing), begins],
        )
        if answer == b"LOST":
            raise LostLease
        return bool(answer == b"OK")

    async def set_paused(self, name: str, *, is_paused: bool, at: float) -> ScheduleEntry | None:
        is_there = await self._commands.script(
            _PAUSE,
            [keys.schedule(name), keys.SCHEDULE_NAMES, keys.SCHEDULE_LOG],
            [name, "1" if is_paused else "", repr(at)],
            outward=True,
        )
        return await self.get(name) if is_there else None

    async def note_asked(self, name: str, job_id: JobId, at: float) -> None:
        await self._commands.script(
            _ASKED, [keys.schedule(name), keys.SCHEDULE_NAMES], [name, job_id, repr(at)]
        )


def _entry(packed: _Packed) -> ScheduleEntry | None:
    schedule, standing, paused, resumed_at, asked_at, asked_job = packed
    if schedule is None:
        return None
    return ScheduleEntry(
        schedule=codec.unpack_schedule(schedule),
        standing=Standing() if standing is None else codec.unpack_standing(standing),
        is_paused=paused == b"1",
        resumed_at=None if resumed_at is None else float(resumed_at),
        asked_at=None if asked_at is None else float(asked_at),
        asked_job_id=None if asked_job is None else JobId(asked_job.decode()),
    )
