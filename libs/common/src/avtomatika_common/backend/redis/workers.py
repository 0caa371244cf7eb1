"""The workers in Redis: who is registered, which polls are open, what was promised to whom."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import (
    MatchAnswer,
    Registered,
    WaitingTask,
    Worker,
    WorkerDirectory,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.connection import Argument, Commands
from avtomatika_common.backend.redis.readers import by_field
from avtomatika_common.backend.redis.scripts import script
from avtomatika_core.job import TaskId, WorkerId

_REGISTER: Final = script("register")
_BEAT: Final = script("beat")
_LEAVE: Final = script("leave")
_EXPIRE: Final = script("expire_workers")
_ANNOUNCE: Final = script("announce_credit")
_WITHDRAW: Final = script("withdraw_credit")
_MATCH: Final = script("match_worker")
_CHANGE_HOLDS: Final = script("change_holds")
_READ: Final = script("read_workers")
_COUNT: Final = script("count_workers")

_W: Final = keys.WORKERS
_EXP: Final = f"{_W}exp"
_PROMISE_MS: Final = 10_000
_AT_ONCE: Final = 512
_NOT_THE_WORKERS: Final = frozenset({"worker_id", "reputation"})
"""Keys a heartbeat does not change."""

Row = tuple[bytes, int, int, list[bytes]]


class RedisWorkers(WorkerDirectory):
    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def register(
        self, worker_id: WorkerId, document: Mapping[str, Any], ttl_seconds: float
    ) -> Registered:
        fields = {"max": "", "draining": "0", **_fields(document)}
        arguments: list[Argument] = [_W, worker_id, int(ttl_seconds * 1000), ids.new_id()]
        for field, value in fields.items():
            arguments += (field, value)
        reply = cast("list[Any]", await self._commands.script(_REGISTER, [_EXP], arguments))
        return Registered(
            incarnation=cast("int", reply[0]),
            replaced=_document(by_field(reply[1])) if len(reply) > 1 else None,
        )

    async def beat(
        self, worker_id: WorkerId, changes: Mapping[str, Any] | None, ttl_seconds: float
    ) -> tuple[Mapping[str, Any], Sequence[TaskId]] | None:
        changed = {k: v for k, v in (changes or {}).items() if k not in _NOT_THE_WORKERS}
        current = changed.get("current_tasks")
        names_tasks = isinstance(current, list)
        fields = _fields(changed)
        arguments: list[Argument] = [
            _W, worker_id, int(ttl_seconds * 1000), len(fields), int(names_tasks),
        ]  # fmt: skip
        for field, value in fields.items():
            arguments += (field, value)
        if names_tasks:
            arguments += [str(task_id) for task_id in cast("list[object]", current)]
        reply = cast(
            "tuple[list[bytes], list[bytes]] | None",
            await self._commands.script(_BEAT, [_EXP], arguments),
        )
        if reply is None:
            return None
        flat, to_stop = reply
        return _document(by_field(flat)), [TaskId(task_id.decode()) for task_id in to_stop]

    async def leave(self, worker_id: WorkerId) -> bool:
        return bool(await self._commands.script(_LEAVE, [_EXP], [_W, worker_id]))

    async def get(self, worker_id: WorkerId) -> Worker | None:
        _, *rows = cast(
            "tuple[bytes, *tuple[Row, ...]]",
            await self._commands.script(_READ, [_EXP], [_W, "", worker_id]),
        )
        return _worker(rows[0]) if rows else None

    async def live(self) -> list[Worker]:
        found: dict[bytes, Worker] = {}
        cursor = b"0"
        while True:
            cursor, *rows = cast(
                "tuple[bytes, *tuple[Row, ...]]",
                await self._commands.script(_READ, [_EXP], [_W, cursor, _AT_ONCE // 2]),
            )
            found |= {row[0]: _worker(row) for row in rows}
            if cursor == b"0":
                return list(found.values())

    async def count(self) -> int:
        return cast("int", await self._commands.script(_COUNT, [_EXP], []))

    async def announce_credit(
        self, worker_id: WorkerId, poll_id: str, gateway: str, until: float, ttl_seconds: float
    ) -> int | None:
        return cast(
            "int | None",
            await self._commands.script(
                _ANNOUNCE,
                [_EXP],
                [
                    _W, worker_id, f"{poll_id}|{gateway}", int(until * 1000),
                    int(ttl_seconds * 1000),
                ],
            ),
        )  # fmt: skip

    async def withdraw_credit(self, worker_id: WorkerId, poll_id: str) -> None:
        await self._commands.script(_WITHDRAW, [f"{_W}cred:{worker_id}"], [poll_id])

    async def match(self, worker_id: WorkerId, task: WaitingTask) -> MatchAnswer:
        answer = cast(
            "bytes",
            await self._commands.script(
                _MATCH,
                [_EXP],
                [
                    _W, worker_id, task.task_id, task.job_id, task.offer_number, task.type,
                    _PROMISE_MS,
                ],
            ),
        )  # fmt: skip
        return MatchAnswer(answer.decode().lower())

    async def end_hold(
        self,
        worker_id: WorkerId,
        task_id: TaskId,
        *,
        stop: bool = False,
        offer_number: int | None = None,
    ) -> None:
        offer = "" if offer_number is None else offer_number
        await self.change_holds([("stop" if stop else "end_hold", worker_id, task_id, offer)])

    async def change_holds(self, changes: Sequence[tuple[Argument, ...]]) -> None:
        """Apply (kind, worker, task, offer number) in order; at most 512, see `change_holds.lua`."""
        arguments = [argument for change in changes for argument in change]
        await self._commands.script(_CHANGE_HOLDS, [_EXP], [_W, *arguments])

    async def expire(self) -> int:
        total = 0
        while True:
            ended = cast("int", await self._commands.script(_EXPIRE, [_EXP], [_W, _AT_ONCE]))
            total += ended
            if ended < _AT_ONCE:
                return total

    async def next_expiry(self) -> float | None:
        first = cast(
            "list[bytes]", await self._commands.command("ZRANGE", _EXP, 0, 0, "WITHSCORES")
        )
        return float(first[1]) / 1000 if first else None


def _fields(document: Mapping[str, Any]) -> dict[str, bytes | str]:
    """A document as its hash holds it, with what the scripts look at as plain fields."""
    fields: dict[str, bytes | str] = {f"d:{key}": codec.pack(v) for key, v in document.items()}
    if "status" in document:
        fields["draining"] = "1" if document["status"] == "draining" else "0"
    if "resources" in document:
        fields["max"] = _most_at_once(document["resources"])
    return fields


def _most_at_once(resources: object) -> str:
    match resources:
        case {"max_concurrent_tasks": bool()}:
            return ""
        case {"max_concurrent_tasks": int() | float() as most}:
            return str(most)
        case _:
            return ""


def _document(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    return {
        field[2:].decode(): codec.unpack(value)
        for field, value in fields.items()
        if field.startswith(b"d:")
    }


def _worker(row: Row) -> Worker:
    worker_id, open_polls, held, flat = row
    fields = by_field(flat)
    return Worker(
        worker_id=WorkerId(worker_id.decode()),
        document=_document(fields),
        incarnation=int(fields[b"inc"]),
        open_polls=open_polls,
        held=held,
        turns={
            field[2:].decode(): int(value) / 1000
            for field, value in fields.items()
            if field.startswith(b"t:")
        },
    )
