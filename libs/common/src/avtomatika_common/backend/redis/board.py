"""The board in Redis: which tasks wait, and who holds the others."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import (
    EVENTS_KNOWN,
    PROGRESS_KEPT,
    EventReport,
    LeasedTask,
    Progress,
    ResultAnswer,
    TaskBoard,
    WaitingTask,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.backend.redis.together import Together
from avtomatika_core.events import TaskEvent, WorkerEventArrived
from avtomatika_core.job import JobId, TaskId, WorkerId

_HEADS: Final = script("board_heads")
_COUNT: Final = script("count_board")
_EXPLAIN: Final = script("explain_task")
_LEASE: Final = script("lease_tasks")
_CONFIRM: Final = script("confirm_deliveries")
_REPORT: Final = script("report_held")
_UNDELIVER: Final = script("undeliver_task")
_END_LEASES: Final = script("end_leases")
_RETURN: Final = script("return_leases")
_PROGRESS: Final = script("record_progress")
_WAITING: Final = script("waiting_tasks")
_EVENT: Final = script("report_event")

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
        self._leases = Together(commands, _LEASE, delivery_timeout_ms)
        self._confirmations = Together(commands, _CONFIRM)
        self._results = Together(commands, _END_LEASES, outward=True)

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
            for meta, count, *rows in shapes:
                has_more = cast("int", count) > len(rows)
                for member, job_id, offer, priority in cast("list[Row]", rows):
                    task = waiting_task(meta, member, job_id, offer, priority, has_more=has_more)
                    found[member] = (-task.priority, member, task)
            if cursor == b"0":
                return [task for _, _, task in sorted(found.values(), key=lambda head: head[:2])]

    async def has_waiting(self) -> bool:
        shapes = [
            self._commands.command("EXISTS", f"{keys.partition(number)}shapes")
            for number in range(self._partitions)
        ]
        return any([await count for count in shapes])

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
        *,
        until: float = math.inf,
    ) -> LeasedTask | None:
        p, until_ms = self._p(job_id), "" if math.isinf(until) else round(until * 1000)
        leased = cast(
            "tuple[bytes, int, bytes, bytes] | None",
            await self._leases.call(
                p, keys.task(p, task_id),
                task_id, job_id, offer_number, worker_id, incarnation, until_ms, ids.new_nonce(),
            ),
        )  # fmt: skip
        if leased is None:
            return None
        payload, leased_ms, result_ms, checkpoint = leased
        return replace(
            _unpack_payload(payload),
            offer_number=offer_number,
            leased_at=leased_ms / 1000,
            deadline=(leased_ms + int(result_ms)) / 1000,
            checkpoint=codec.unpack(checkpoint) if checkpoint else None,
        )

    async def confirm(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        p, offer = self._p(job_id), "" if offer_number is None else offer_number
        await self._confirmations.call(p, keys.task(p, task_id), task_id, worker_id, offer)

    async def undeliver(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        *,
        offer_number: int | None = None,
    ) -> None:
        p, offer = self._p(job_id), "" if offer_number is None else offer_number
        await self._commands.script(
            _UNDELIVER, [keys.task(p, task_id)], [p, task_id, worker_id, offer]
        )

    async def report_held(
        self, worker_id: WorkerId, task_ids: Sequence[TaskId], *, began_at: float, report: str
    ) -> int:
        total, names = 0, {task_id.encode() for task_id in task_ids}
        for p in map(keys.partition, range(self._partitions)):
            cursor = b""
            while cursor != b"0":
                cursor, flat = cast(
                    "tuple[bytes, list[bytes]]",
                    await self._commands.command(
                        "HSCAN", f"{p}held:{worker_id}", cursor or "0", "COUNT", _AT_ONCE // 2
                    ),
                )
                named = [task_id for task_id in flat[::2] if task_id in names]
                tasks = named + [task_id for task_id in flat[::2] if task_id not in names]
                if not tasks:
                    continue
                total += cast(
                    "int",
                    await self._commands.script(
                        _REPORT,
                        [keys.task(p, TaskId(task_id.decode())) for task_id in tasks],
                        [p, worker_id, int(began_at * 1000), report, len(named), *tasks],
                    ),
                )
        return total

    async def end_lease(self, job_id: JobId, worker_id: WorkerId, event: TaskEvent) -> ResultAnswer:
        p = self._p(job_id)
        answer = cast(
            "bytes",
            await self._results.call(
                p, keys.job(p, job_id), job_id, event.task_id, worker_id, codec.pack(event)
            ),
        )
        return ResultAnswer(answer.decode())

    async def record_progress(
        self,
        task_id: TaskId,
        job_id: JobId,
        worker_id: WorkerId,
        progress: Progress,
        checkpoint: Mapping[str, Any] | None,
    ) -> ResultAnswer:
        p = self._p(job_id)
        answer = cast(
            "bytes",
            await self._commands.script(
                _PROGRESS,
                [keys.job(p, job_id)],
                [
                    p, job_id, task_id, worker_id, codec.pack(progress),
                    b"" if checkpoint is None else codec.pack(checkpoint), PROGRESS_KEPT,
                ],
            ),
        )  # fmt: skip
        return ResultAnswer(answer.decode())

    async def report_event(
        self,
        job_id: JobId,
        task_id: TaskId,
        worker_id: WorkerId,
        event_id: str,
        *,
        event: WorkerEventArrived | None,
        notification: bytes | None,
    ) -> EventReport:
        p = self._p(job_id)
        answer = cast(
            "bytes",
            await self._commands.script(
                _EVENT,
                [keys.job(p, job_id)],
                [
                    p, job_id, task_id, worker_id, event_id,
                    b"" if event is None else codec.pack(event), notification or b"", EVENTS_KNOWN,
                ],
                outward=True,
            ),
        )  # fmt: skip
        if answer == b"again":
            return EventReport(answer=ResultAnswer.APPLIED, is_repeat=True)
        return EventReport(answer=ResultAnswer(answer.decode()))

    async def holder(self, job_id: JobId, task_id: TaskId) -> WorkerId | None:
        job, worker = cast(
            "list[bytes | None]",
            await self._commands.command(
                "HMGET", keys.task(self._p(job_id), task_id), "job", "worker"
            ),
        )
        return WorkerId(worker.decode()) if worker and job == job_id.encode() else None

    async def return_leases(
        self, partition: int, worker_id: WorkerId, incarnation: int, *, lost: bool
    ) -> int:
        p = keys.partition(partition)
        message = f"Worker '{worker_id}' was lost." if lost else ""
        total = 0
        while True:
            before, pieces, cursor = total, 0, b""
            while cursor != b"0":
                cursor, returned = cast(
                    "tuple[bytes, int]",
                    await self._commands.script(
                        _RETURN,
                        [f"{p}held:{worker_id}"],
                        [p, worker_id, incarnation, message, cursor or "0", _AT_ONCE // 2],
                    ),
                )
                total += returned
                pieces += 1
            # Where Redis started again meanwhile, its cursors went on somewhere else.
            if pieces == 1 or total == before:
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

    async def waiting(self, job_id: JobId, limit: int) -> list[WaitingTask]:
        p = self._p(job_id)
        found: dict[bytes, WaitingTask] = {}
        cursor = b"0"
        while True:
            cursor, *rows = cast(
                "tuple[bytes, *tuple[list[bytes], ...]]",
                await self._commands.script(_WAITING, [keys.job(p, job_id)], [p, cursor]),
            )
            for meta, member, offer, priority in rows:
                found[member] = waiting_task(meta, member, job_id.encode(), offer, priority)
            if cursor == b"0" or len(found) >= limit:
                ordered = sorted(found.items(), key=lambda item: (-item[1].priority, item[0]))
                return [task for _, task in ordered[:limit]]

    async def type_of(self, task_id: TaskId, job_id: JobId) -> str | None:
        key = keys.task(self._p(job_id), task_id)
        owner, meta = cast(
            "list[bytes | None]", await self._commands.command("HMGET", key, "job", "meta")
        )
        if meta is None or owner != job_id.encode():
            return None
        return _unpack_shape(meta).type


def waiting_task(
    meta: bytes,
    member: bytes,
    job_id: bytes,
    offer: bytes,
    priority: bytes,
    *,
    has_more: bool = False,
) -> WaitingTask:
    """A task on the board, from what the scripts tell of it."""
    shape = _unpack_shape(meta)
    return WaitingTask(
        task_id=TaskId(member[_MEMBER_DIGITS:].decode()),
        job_id=JobId(job_id.decode()),
        type=shape.type,
        resource_requirements=shape.resource_requirements,
        max_cost=shape.max_cost,
        strategy=shape.strategy,
        priority=float(priority),
        offer_number=int(offer),
        place=int(member[: _MEMBER_DIGITS - 1]),
        has_more=has_more,
    )
