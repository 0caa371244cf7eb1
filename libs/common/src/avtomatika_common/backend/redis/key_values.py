"""Blueprints' data stores in Redis: a hash each, kept until somebody deletes it."""

from typing import Final, cast

from avtomatika_common.backend.ports import KeyValues
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.scripts import script

_SET: Final = script("set_value")


class RedisKeyValues(KeyValues):
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def get(self, namespace: str, key: str) -> bytes | None:
        return cast(
            "bytes | None", await self._commands.command("HGET", keys.data_store(namespace), key)
        )

    async def set(self, namespace: str, key: str, value: bytes) -> None:
        await self._commands.script(_SET, [keys.data_store(namespace)], [key, value])
