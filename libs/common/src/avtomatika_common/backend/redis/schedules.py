"""Where each schedule stands, in Redis."""

from typing import Final, cast

import msgspec

from avtomatika_common import codec
from avtomatika_common.backend.ports import Lease, LostLease, Schedules, Slot
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.connection import Commands
from avtomatika_common.backend.redis.leases import lease_value
from avtomatika_common.backend.redis.scripts import script

_END_SLOT: Final = script("end_slot")
_SLOTS: Final = f"{keys.SCHEDULES}slots"
_unpack_slot: Final = msgspec.msgpack.Decoder(Slot).decode


class RedisSchedules(Schedules):
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def slot(self, name: str) -> Slot:
        packed = cast("bytes | None", await self._commands.command("HGET", _SLOTS, name))
        return Slot(last_run=None, last_job_id=None) if packed is None else _unpack_slot(packed)

    async def end_slot(self, name: str, lease: Lease, slot: Slot) -> None:
        done = await self._commands.script(
            _END_SLOT,
            [_SLOTS, keys.lease(lease.name)],
            [lease_value(lease), name, codec.pack(slot)],
        )
        if not done:
            raise LostLease
