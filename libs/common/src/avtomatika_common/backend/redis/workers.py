"""The workers in Redis: who is registered, which polls are open, what was promised to whom."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, cast

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import (
    PROMISE_SECONDS,
    Beat,
    MatchAnswer,
    Matched,
    Places,
    Registered,
    WaitingTask,
    Worker,
    WorkerDirectory,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.readers import by_field
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.backend.redis.together import Together
from avtomatika_core.job import JobId, TaskId, WorkerId

_REGISTER: Final = script("register")
_BEAT: Final = script("beat")
_LEAVE: Final = script("leave")
_EXPIRE: Final = script("expire_workers")
_ANNOUNCE: Final = script("announce_credits")
_WITHDRAW: Final = script("withdraw_credit")
_MATCH: Final = script("match_workers")
_CHANGE_HOLDS: Final = script("change_holds")
_READ: Final = script("read_workers")
_COUNT: Final = script("count_workers")
_STOP_TASK: Final = script("stop_task")
_CLAIM_SOCKET: Final = script("claim_socket")
_RENEW_SOCKETS: Final = script("renew_sockets")
_RELEASE_SOCKET: Final = script("release_socket")

_W: Final = keys.WORKERS
_EXP: Final = f"{_W}exp"
_PROMISE_MS: Final = round(PROMISE_SECONDS * 1000)
_SOCKET_MS: Final = 60_000
_AT_ONCE: Final = 512
_NOT_THE_WORKERS: Final = frozenset({"worker_id", "reputation"})
"""Keys a heartbeat does not change."""

Row = tuple[bytes, int, int, list[bytes]]


class RedisWorkers(WorkerDirectory):
    def __init__(self, commands: Commands, partitions: int) -> None:
        self._commands = commands
        self._is_shared = partitions > 1
        """Several dispatchers match at a time: each tells the others whose turn it was."""
        self._credits = Together(commands, _ANNOUNCE)

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
    ) -> Beat | None:
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
            "tuple[list[bytes], list[bytes], int] | None",
            await self._commands.script(_BEAT, [_EXP], arguments),
        )
        if reply is None:
            return None
        flat, to_stop, held = reply
        return Beat(
            document=_document(by_field(flat)),
            cancel_task_ids=[TaskId(task_id.decode()) for task_id in to_stop],
            held=held,
        )

    async def leave(self, worker_id: WorkerId) -> bool:
        return bool(await self._commands.script(_LEAVE, [_EXP], [_W, worker_id]))

    async def get(self, worker_id: WorkerId) -> Worker | None:
        found = await self.get_all([worker_id])
        return found[0] if found else None

    async def get_all(self, worker_ids: Collection[WorkerId]) -> list[Worker]:
        wanted, found = list(worker_ids), list[Worker]()
        for start in range(0, len(wanted), _AT_ONCE // 2):
            _, *rows = cast(
                "tuple[bytes, *tuple[Row, ...]]",
                await self._commands.script(
                    _READ, [_EXP], [_W, "", *wanted[start : start + _AT_ONCE // 2]]
                ),
            )
            found += [_worker(row) for row in rows]
        return found

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
        self,
        worker_id: WorkerId,
        poll_id: str,
        gateway: str,
        until: float,
        ttl_seconds: float,
        *,
        room: int = 1,
    ) -> int | None:
        return cast(
            "int | None",
            await self._credits.call(
                _W, _EXP,
                worker_id, f"{poll_id}|{room}|{gateway}", int(until * 1000), int(ttl_seconds * 1000),
            ),
        )  # fmt: skip

    async def withdraw_credit(self, worker_id: WorkerId, poll_id: str) -> None:
        await self._commands.script(_WITHDRAW, [f"{_W}cred:{worker_id}"], [_W, worker_id, poll_id])

    async def match(self, matches: Sequence[tuple[WorkerId, WaitingTask]]) -> Matched:
        arguments: list[Argument] = [_W, _PROMISE_MS, "1" if self._is_shared else ""]
        for worker_id, task in matches:
            arguments += (worker_id, task.task_id, task.job_id, task.offer_number, task.type)
        answers, *places = cast(
            "tuple[list[bytes], *tuple[tuple[bytes, bytes, int, int, int], ...]]",
            await self._commands.script(_MATCH, [_EXP], arguments),
        )
        return Matched(
            answers=[MatchAnswer(answer.decode().lower()) for answer in answers],
            places={
                WorkerId(worker_id.decode()): Places(
                    incarnation=int(incarnation), room=room, held=held, stamp=stamp
                )
                for worker_id, incarnation, room, held, stamp in places
            },
        )

    async def end_hold(
        self,
        worker_id: WorkerId,
        task_id: TaskId,
        *,
        stop: bool = False,
        offer_number: int | None = None,
        can_be_matched: bool = False,
    ) -> None:
        offer = "" if offer_number is None else offer_number
        kind = "stop" if stop else "unmatched" if can_be_matched else "end_hold"
        await self.change_holds([(kind, worker_id, task_id, offer, "", "")])

    async def change_holds(
        self, changes: Sequence[tuple[Argument, ...]], partition: Argument = ""
    ) -> int:
        """Apply (kind, worker, task, offer number, job, entry of the partition) in order; at most 512.

        How many places became free. See the script.
        """
        arguments = [argument for change in changes for argument in change]
        return cast(
            "int", await self._commands.script(_CHANGE_HOLDS, [_EXP], [_W, partition, *arguments])
        )

    async def stop_task(self, worker_id: WorkerId, task_id: TaskId, job_id: JobId) -> bool:
        return bool(
            await self._commands.script(_STOP_TASK, [_EXP], [_W, worker_id, task_id, job_id])
        )

    async def to_stop(self, worker_id: WorkerId) -> list[TaskId]:
        found = cast(
            "list[bytes]",
            await self._commands.command("ZRANGE", f"{_W}cancel:{worker_id}", 0, _AT_ONCE - 1),
        )
        return [TaskId(task_id.decode()) for task_id in found]

    async def claim_socket(self, worker_id: WorkerId, gateway: str, connection: str) -> None:
        await self._commands.script(
            _CLAIM_SOCKET,
            [f"{_W}sock:{worker_id}"],
            [_W, worker_id, connection, gateway, _SOCKET_MS],
        )

    async def renew_sockets(
        self, gateway: str, sockets: Sequence[tuple[WorkerId, str]]
    ) -> list[tuple[WorkerId, str]]:
        lost: list[tuple[WorkerId, str]] = []
        for start in range(0, len(sockets), _AT_ONCE // 2):
            flat = [part for one in sockets[start : start + _AT_ONCE // 2] for part in one]
            reply = cast(
                "list[bytes]",
                await self._commands.script(
                    _RENEW_SOCKETS, [_EXP], [_W, gateway, _SOCKET_MS, *flat]
                ),
            )
            words = [word.decode() for word in reply]
            lost += [
                (WorkerId(worker), one) for worker, one in zip(words[::2], words[1::2], strict=True)
            ]
        return lost

    async def release_socket(self, worker_id: WorkerId, connection: str) -> None:
        await self._commands.script(_RELEASE_SOCKET, [f"{_W}sock:{worker_id}"], [connection])

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
    worker_id, room, held, flat = row
    fields = by_field(flat)
    return Worker(
        worker_id=WorkerId(worker_id.decode()),
        document=_document(fields),
        places=Places(
            incarnation=int(fields[b"inc"]),
            room=room,
            held=held,
            stamp=int(fields.get(b"stamp", 0)),
        ),
        turns={
            field[2:].decode(): int(value) / 1000
            for field, value in fields.items()
            if field.startswith(b"t:")
        },
    )
