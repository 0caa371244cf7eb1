"""Due timers in Redis: judged by the server's own time, fired by the holder of the lease."""

from typing import Final, cast

from avtomatika_common.backend.ports import Lease, LostLease, Timers
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.leases import lease_value
from avtomatika_common.backend.redis.scripts import script

_FIRE: Final = script("fire_timers")


class RedisTimers(Timers):
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def next_due(self, partition: int) -> float | None:
        first = cast(
            "list[bytes]",
            await self._commands.command(
                "ZRANGE", f"{keys.partition(partition)}tm", 0, 0, "WITHSCORES"
            ),
        )
        return float(first[1]) / 1000 if first else None

    async def fire(self, partition: int, lease: Lease, limit: int = 512) -> int:
        p = keys.partition(partition)
        fired = cast(
            "int",
            await self._commands.script(
                _FIRE, [f"{p}tm"], [p, keys.lease(lease.name), lease_value(lease), limit]
            ),
        )
        if fired < 0:
            raise LostLease
        return fired
