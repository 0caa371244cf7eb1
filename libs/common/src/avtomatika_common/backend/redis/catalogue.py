"""The blueprints executors host, in Redis; a stream of one entry carries the version."""

from collections.abc import Sequence
from typing import Final, cast

import msgspec
from redis.asyncio.connection import ConnectionPool

from avtomatika_common import codec
from avtomatika_common.backend.ports import Catalogue, CatalogueEntry
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.readers import Readers
from avtomatika_common.backend.redis.scripts import script

_PUBLISH: Final = script("publish_catalogue")
_READ: Final = script("read_catalogue")
_KEYS: Final = (keys.CATALOGUE, keys.CATALOGUE_LOG)
_AT_ONCE: Final = 256
_unpack_entry: Final = msgspec.msgpack.Decoder(CatalogueEntry).decode


class RedisCatalogue(Catalogue):
    def __init__(self, pool: ConnectionPool, commands: Commands, block_seconds: float) -> None:
        self._readers = Readers(pool)
        self._commands = commands
        self._block_seconds = block_seconds

    async def close(self) -> None:
        await self._readers.close()

    async def publish(self, entries: Sequence[CatalogueEntry]) -> None:
        for start in range(0, len(entries), _AT_ONCE):
            arguments: list[Argument] = []
            for entry in entries[start : start + _AT_ONCE]:
                arguments += (entry.name, codec.pack(entry))
            await self._commands.script(_PUBLISH, _KEYS, arguments)

    async def entries(self) -> tuple[str, list[CatalogueEntry]]:
        version, packed = cast(
            "tuple[bytes, list[bytes]]", await self._commands.script(_READ, _KEYS, [])
        )
        found = [_unpack_entry(entry) for entry in packed]
        return version.decode(), sorted(found, key=lambda entry: entry.name)

    async def changed(self, version: str) -> None:
        await self._readers.entries(
            keys.CATALOGUE_LOG, version, count=1, seconds=self._block_seconds
        )
