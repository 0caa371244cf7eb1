"""Entries that could not be handled, in Redis: a stream in each partition."""

from typing import Final, cast

from avtomatika_common import ids
from avtomatika_common.backend.dead_events import plain_event
from avtomatika_common.backend.ports import DeadEvent, DeadEvents
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.readers import Entry, by_field
from avtomatika_common.backend.redis.scripts import script
from avtomatika_core.job import JobId

_REPLAY: Final = script("replay_dead")


class RedisDeadEvents(DeadEvents):
    """A dead event's id is the number of its partition, and its id there."""

    def __init__(self, commands: Commands, partitions: int) -> None:
        self._commands = commands
        self._partitions = partitions

    async def newest(self, limit: int) -> list[DeadEvent]:
        found: list[DeadEvent] = []
        for number in range(self._partitions):
            entries = cast(
                "list[Entry]",
                await self._commands.command(
                    "XREVRANGE", _stream(number), "+", "-", "COUNT", limit
                ),
            )
            found += [_dead_event(number, entry) for entry in entries]
        return sorted(found, key=lambda dead: -dead.at)[:limit]

    async def replay(self, dead_id: str) -> bool:
        where = self._place(dead_id)
        if where is None:
            return False
        number, entry_id = where
        p = keys.partition(number)
        done = await self._commands.script(
            _REPLAY, [_stream(number)], [p, entry_id, ids.new_nonce()], outward=True
        )
        return bool(done)

    async def delete(self, dead_id: str) -> bool:
        where = self._place(dead_id)
        if where is None:
            return False
        number, entry_id = where
        return bool(await self._commands.command("XDEL", _stream(number), entry_id))

    def _place(self, dead_id: str) -> tuple[int, str] | None:
        """Partition and id there; None: what cannot be an id."""
        words = dead_id.split("-")
        if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words):
            return None
        number, milliseconds, sequence = (int(word) for word in words)
        if number >= self._partitions or max(milliseconds, sequence) >= 1 << 64:
            return None
        return number, f"{milliseconds}-{sequence}"


def _stream(number: int) -> str:
    return f"{keys.partition(number)}dead"


def _dead_event(number: int, entry: Entry) -> DeadEvent:
    entry_id, flat = entry
    middle = 2 * flat[::2].index(b"")
    kept, was = by_field(flat[:middle]), by_field(flat[middle + 2 :])
    return DeadEvent(
        dead_id=f"{number}-{entry_id.decode()}",
        job_id=JobId(was.get(b"j", b"").decode(errors="replace")),
        reason=kept[b"reason"].decode(),
        at=int(entry_id.partition(b"-")[0]) / 1000,
        event=plain_event(was.get(b"e", b"")),
    )
