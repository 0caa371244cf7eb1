"""The board in Redis: which tasks wait, and who holds the others."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import (
    LeasedTask,
    ResultAnswer,
    TaskBoard,
    WaitingTask,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.connection import Commands
from avtomatika_common.backend.redis.scripts import Script, script
from avtomatika_core.events import TaskEvent
from avtomatika_core.job import JobId, TaskId, WorkerId

_HEADS: Final = script("board_heads")
_COUNT: Final = script("count_board")
_EXPLAIN: Final = script("explain_task")
_LEASE: Final = script("lease_task")
_CONFIRM: Final = script("confirm_delivery")
_UNDELIVER: Final = script("undeliver_task")
_END_LEASE: Final = script("end_lease")
_RETURN: Final = script("return_leases")

_AT_ONCE: Final = 512
_MEMBER_DIGITS: Final = 17  # a member of the board is `<16 digits>:<task id>`

Row = tuple[bytes, bytes, bytes, bytes]


class _Shape(msgspec.Struct, frozen=True):
    """What the tasks of one shape have in common."""

    type: str
    resource_requirements: Mapping[str, Any] | None
    max_cost: float | None
    strategy: str


_unpack_payload: Final = msgspec.msgpack.Decoder(LeasedTask).decode
_unpack_shape: Final = lru_cache(maxsize=1024)(msgspec.msgpack.Decoder(_Shape).decode)


class RedisBoard(TaskBoard):
    def __init__(self, commands: Commands, partitions: int, delivery_timeout_ms: int) -> None:
        self._commands = commands
        self._partitions = partitions
        self._delivery_timeout_ms = delivery_timeout_ms

    def _p(self, job_id: str) -> str:
        return keys.partition(ids.partition_of(job_id, self._partitions))

    async def heads(self, partition: int, per_shape: int) -> list[WaitingTask]:
        p = keys.partition(partition)
        found: dict[bytes, tuple[float, bytes, WaitingTask]] = {}
        cursor = b"0"
        while True:
            cursor, *shapes = cast(
                "tuple[bytes, *tuple[list[Any], ...]]",
                await self._commands.script(_HEADS, [f"{p}shapes"], [p, cursor, per_shape]),
            )
            for meta, *rows in shapes:
                shape = _unpack_shape(cast("bytes", meta))
                for member, job_id, offer, priority in cast("list[Row]", rows):
                    task = _waiting(shape, member, job_id, offer, float(priority))
                    found[member] = (-task.priority, member, task)
            if cursor == b"0":
                return [task for _, _, task in sorted(found.values(), key=lambda head: head[:2])]

    async def explain(self, task: WaitingTask, reason: str | None) -> None:
        key = keys.task(self._p(task.job_id), task.task_id)
        await self._commands.script(_EXPLAIN, [key], [reason or ""])

    async def lease(
        self,
        task_id: TaskId,
        job_id: JobId,
        offer_number: int,
        worker_id: WorkerId,
        incarnation: int,
    ) -> LeasedTask | None:
        p = self._p(job_id)
        payload = cast(
            "bytes | None",
            await self._commands.script(
                _LEASE,
                [keys.task(p, task_id)],
                [
                    p, task_id, job_id, offer_number, worker_id, incarnation, self._delivery_timeout_ms,
                    ids.new_id(),
                ],
            ),
        )  # fmt: skip
        if payload is None:
            return None
        return replace(_unpack_payload(payload), offer_number=offer_number)

    async def confirm(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        await self._change_lease(_CONFIRM, task_id, job_id, worker_id, offer_number)

    async def undeliver(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        await self._change_lease(_UNDELIVER, task_id, job_id, worker_id, offer_number)

    async def _change_lease(
        self,
        change: Script,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        offer_number: int | None,
    ) -> None:
        p, offer = self._p(job_id), "" if offer_number is None else offer_number
        await self._commands.script(change, [keys.task(p, task_id)], [p, task_id, worker_id, offer])

    async def confirm_held(self, worker_id: WorkerId, task_ids: Sequence[TaskId]) -> None:
        for number in range(self._partitions):
            p = keys.partition(number)
            held = cast(
                "list[bytes]", await self._commands.command("HKEYS", f"{p}held:{worker_id}")
            )
            for task_id in {key.decode() for key in held} & set(task_ids):
                await self._commands.script(
                    _CONFIRM, [keys.task(p, task_id)], [p, task_id, worker_id, ""]
                )

    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        p = self._p(job_id)
        answer = cast(
            "bytes",
            await self._commands.script(
                _END_LEASE,
                [keys.job(p, job_id)],
                [p, job_id, event.task_id, worker_id, codec.pack(event)],
            ),
        )
        return ResultAnswer(answer.decode())

    async def return_leases(
        self, partition: int, worker_id: WorkerId, incarnation: int, *, lost: bool
    ) -> int:
        p = keys.partition(partition)
        message = f"Worker '{worker_id}' was lost." if lost else ""
        total = 0
        while True:
            returned = cast(
                "int",
                await self._commands.script(
                    _RETURN,
                    [f"{p}held:{worker_id}"],
                    [p, worker_id, incarnation, message, _AT_ONCE],
                ),
            )
            total += returned
            if returned < _AT_ONCE:
                return total

    async def length(self) -> int:
        return sum([await self._length(number) for number in range(self._partitions)])

    async def _length(self, partition: int) -> int:
        p = keys.partition(partition)
        total, cursor = 0, b"0"
        while True:
            cursor, count = cast(
                "tuple[bytes, int]",
                await self._commands.script(_COUNT, [f"{p}shapes"], [p, cursor]),
            )
            total += count
            if cursor == b"0":
                return total


def _waiting(
    shape: _Shape, member: bytes, job_id: bytes, offer: bytes, priority: float
) -> WaitingTask:
    return WaitingTask(
        task_id=TaskId(member[_MEMBER_DIGITS:].decode()),
        job_id=JobId(job_id.decode()),
        type=shape.type,
        resource_requirements=shape.resource_requirements,
        max_cost=shape.max_cost,
        strategy=shape.strategy,
        priority=priority,
        offer_number=int(offer),
    )
