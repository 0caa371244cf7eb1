"""Blocking reads, each on a connection nobody else uses; it is kept for the next read."""

from typing import Any, Final, cast

from redis.asyncio.connection import ConnectionPool

from avtomatika_common.backend.redis.connection import Argument, BlockingReader

Entry = tuple[bytes, list[bytes]]
"""Of a stream: id, then field, value, field, value …"""


class Readers:
    def __init__(self, pool: ConnectionPool) -> None:
        self._pool: Final = pool
        self._idle: Final[list[BlockingReader]] = []

    async def read(self, *arguments: Argument, seconds: float) -> Any:
        """As `BlockingReader.read`; any number at the same time."""
        reader = self._idle.pop() if self._idle else BlockingReader(self._pool)
        try:
            return await reader.read(*arguments, seconds=seconds)
        finally:
            self._idle.append(reader)

    async def entries(
        self, stream: str, after: str, *, count: int, seconds: float
    ) -> list[tuple[str, dict[bytes, bytes]]]:
        """Entries of one stream behind an id; waits at most `seconds` for the first."""
        reply = cast(
            "list[tuple[bytes, list[Entry]]] | None",
            await self.read(
                "XREAD", "COUNT", count, "BLOCK", max(1, int(seconds * 1000)),
                "STREAMS", stream, after,
                seconds=seconds,
            ),
        )  # fmt: skip
        return [
            (entry_id.decode(), by_field(flat))
            for _, found in reply or ()
            for entry_id, flat in found
        ]

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


def by_field(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
