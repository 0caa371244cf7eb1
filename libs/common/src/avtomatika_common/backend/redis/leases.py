"""Leases in Redis: a key with a time limit, and a counter that makes their tokens."""

from typing import Final, cast

from avtomatika_common.backend.ports import Lease, Leases, LostLease
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.scripts import script

_ACQUIRE: Final = script("acquire_lease")
_RENEW: Final = script("renew_lease")
_RELEASE: Final = script("release_lease")


def lease_value(lease: Lease) -> str:
    """What the lease's key holds while this holder has it."""
    return f"{lease.token}:{lease.holder}"


class RedisLeases(Leases):
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def acquire(self, name: str, holder: str, seconds: float) -> Lease | None:
        key = keys.lease(name)
        token = cast(
            "int | None",
            await self._commands.script(
                _ACQUIRE, [key, f"{key}:fence"], [holder, int(seconds * 1000)]
            ),
        )
        return None if token is None else Lease(name=name, holder=holder, token=token)

    async def renew(self, lease: Lease, seconds: float) -> None:
        arguments: list[Argument] = [lease_value(lease), int(seconds * 1000)]
        if not await self._commands.script(_RENEW, [keys.lease(lease.name)], arguments):
            raise LostLease

    async def release(self, lease: Lease) -> None:
        await self._commands.script(_RELEASE, [keys.lease(lease.name)], [lease_value(lease)])
