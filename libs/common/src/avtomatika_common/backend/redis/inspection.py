"""What stands beside live jobs in Redis: read in chunks, one script each; repaired by one script each."""

from collections.abc import Collection, Sequence
from typing import Any, Final, Literal, cast

import msgspec
from msgspec.structs import replace

from avtomatika_common import codec
from avtomatika_common.backend.ports import (
    Inspection,
    LiveJob,
    LookAt,
    Orphan,
    OrphanKind,
    Seen,
)
from avtomatika_common.backend.redis import keys
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.connection import Argument
from avtomatika_common.backend.redis.jobs import milliseconds
from avtomatika_common.backend.redis.scripts import script
from avtomatika_common.backend.redis.workers import RedisWorkers
from avtomatika_core.consistency import Append, Around, Mend, TaskAround
from avtomatika_core.job import (
    TERMINAL,
    ApprovalWait,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    JobId,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
    WorkerId,
)

_LIVE: Final = script("read_live")
_LANE: Final = script("read_lane")
_INSPECT: Final = script("inspect_jobs")
_MEND: Final = script("mend_job")
_ORPHANS: Final = script("find_orphans")
_LOST_ENTRIES: Final = script("find_lost_entries")
_REMOVE: Final = script("remove_orphan")
_PLACES: Final = script("read_places")
_INSPECT_PLACES: Final = script("inspect_places")

_WALKS: Final[tuple[tuple[str, OrphanKind], ...]] = (
    ("tm", "timer"),
    ("deferred", "deferred"),
    ("quar", "quarantine"),
)
_KEY_OF: Final[dict[str, str]] = {kind: key for key, kind in _WALKS}
_NEVER: Final = -1
"""No event of a lane came before that."""
_SEEN: Final = "-"
"""A cursor of a walk that is over, beside those of others that are not."""

Facts = list[Any]
Kind = Literal["", "t", "w", "a", "b", "c"]


class RedisInspection(Inspection):
    def __init__(self, commands: Commands, workers: RedisWorkers, partitions: int) -> None:
        self._commands = commands
        self._workers = workers
        self._partitions = partitions

    async def live(self, partition: int, cursor: str, limit: int) -> tuple[str, Sequence[LiveJob]]:
        p = keys.partition(partition)
        following, *rows = cast(
            "tuple[bytes, *tuple[list[bytes | None], ...]]",
            await self._commands.script(_LIVE, [f"{p}live"], [p, cursor, limit]),
        )
        found: list[LiveJob] = []
        for job_id, fence, packed, cancel, group in rows:
            assert job_id is not None
            try:
                head = None if packed is None else codec.unpack_head(packed)
            except msgspec.MsgspecError:  # whoever is to handle an event of it will say so
                continue
            found.append(
                LiveJob(
                    job_id=JobId(job_id.decode()),
                    group=(group or b"").decode(),
                    fence=(fence or b"").decode(),
                    head=head,
                    cancelled=cancel == b"1",
                )
            )
        return following.decode(), found

    async def awaited(
        self, partition: int, group: str, until: float, cursor: str, limit: int
    ) -> tuple[str, Collection[JobId]]:
        lane = keys.lane(keys.partition(partition), "in", group)
        first = "-" if cursor == "0" else cursor
        following, *job_ids = cast(
            "list[bytes]",
            await self._commands.script(_LANE, [lane], [first, milliseconds(until), limit]),
        )
        return following.decode(), {JobId(job_id.decode()) for job_id in job_ids}

    async def around(self, partition: int, looks: Sequence[LookAt]) -> list[Seen]:
        p = keys.partition(partition)
        arguments: list[Argument] = [p]
        kinds: list[Kind] = []
        for look in looks:
            kind, subject = _asked(look)
            kinds.append(kind)
            since = milliseconds(look.since) if look.is_awaited else _NEVER
            arguments += (look.job.job_id, since, kind, subject, look.branches)
        now, *rows = cast(
            "tuple[int, *tuple[Facts, ...]]",
            await self._commands.script(
                _INSPECT, [keys.job(p, look.job.job_id) for look in looks], arguments
            ),
        )
        return [
            _seen(look.job, kind, row, now / 1000)
            for look, kind, row in zip(looks, kinds, rows, strict=True)
        ]

    async def mend(self, partition: int, job_id: JobId, mark: str, mend: Mend) -> bool:
        p = keys.partition(partition)
        if isinstance(mend, Append):
            what: tuple[Argument, ...] = (
                "event", codec.pack(mend.event),
                "1" if mend.is_branch else "", "1" if mend.is_claim else "",
            )  # fmt: skip
        elif mend.event is not None:
            what = (mend.kind, codec.pack(mend.event))
        else:
            what = (mend.kind, mend.subject, milliseconds(mend.due))
        key = keys.job(p, job_id)
        return bool(await self._commands.script(_MEND, [key], [p, job_id, mark, *what]))

    # -- what belongs to no job

    async def orphans(
        self, partition: int, cursor: str, limit: int
    ) -> tuple[str, Sequence[Orphan]]:
        p = keys.partition(partition)
        number, _, inner = cursor.rpartition(":")
        walk = int(number or 0)
        key, kind = _WALKS[walk]
        following, *names = cast(
            "list[bytes]",
            await self._commands.script(_ORPHANS, [f"{p}{key}"], [p, kind, inner or "0", limit]),
        )
        if following != b"0":
            next_cursor = f"{walk}:{following.decode()}"
        elif walk + 1 < len(_WALKS):
            next_cursor = f"{walk + 1}:0"
        else:
            next_cursor = "0"
        return next_cursor, [Orphan(kind=kind, name=name.decode()) for name in names]

    async def lost_entries(
        self, partition: int, group: str, cursor: str, limit: int
    ) -> tuple[str, Sequence[Orphan]]:
        # A cursor is a lane and the first id there.
        lane, _, first = cursor.rpartition(" ")
        lane = lane or "in"
        key = keys.lane(keys.partition(partition), lane, group)
        following, *found = cast(
            "list[bytes]",
            await self._commands.script(
                _LOST_ENTRIES, [key], ["-" if first == "0" else first, limit]
            ),
        )
        orphans = [Orphan(kind="entry", name=one.decode(), mark=f"{lane}:{group}") for one in found]
        if following != b"0":
            return f"{lane} {following.decode()}", orphans
        return ("new 0" if lane == "in" else "0"), orphans

    async def workers(self, cursor: str, limit: int) -> tuple[str, Sequence[WorkerId]]:
        following, flat = cast(
            "tuple[bytes, list[bytes]]",
            await self._commands.command("ZSCAN", f"{keys.WORKERS}exp", cursor, "COUNT", limit),
        )
        return following.decode(), [WorkerId(worker.decode()) for worker in flat[::2]]

    async def orphan_places(
        self, worker_id: WorkerId, cursor: str, limit: int, since: float
    ) -> tuple[str, Sequence[Orphan]]:
        # A cursor is that of its holds, then one for its leases in each partition.
        walks = cursor.split()
        at, *inner = walks if len(walks) > 1 else ["0"] * (1 + self._partitions)
        found: list[Orphan] = []
        if at != _SEEN:
            at, found = await self._orphan_holds(worker_id, at, limit, since)
        calls = {
            number: self._commands.script(
                _ORPHANS, [f"{p}held:{worker_id}"], [p, "lease", inner[number], limit]
            )
            for number, p in enumerate(map(keys.partition, range(self._partitions)))
            if inner[number] != _SEEN
        }
        for number, call in calls.items():
            following, *names = cast("list[bytes]", await call)
            inner[number] = _next(following)
            found += [
                Orphan(kind="lease", name=name.decode(), worker_id=worker_id, mark=str(number))
                for name in names
            ]
        walks = [at, *inner]
        return "0" if set(walks) == {_SEEN} else " ".join(walks), found

    async def _orphan_holds(
        self, worker_id: WorkerId, cursor: str, limit: int, since: float
    ) -> tuple[str, list[Orphan]]:
        w, parts = keys.WORKERS, [keys.partition(number) for number in range(self._partitions)]
        # Before the places: what is on its way now is not with them yet.
        is_relayed = not any([await self._has_change(p, since) for p in parts])
        following, *flat = cast(
            "list[bytes]",
            await self._commands.script(
                _PLACES, [f"{w}hold:{worker_id}", f"{w}offer:{worker_id}"], [cursor, limit]
            ),
        )
        unknown = dict(zip(flat[::2], flat[1::2], strict=True))
        calls = [
            self._commands.script(
                _INSPECT_PLACES,
                [keys.task(p, TaskId(task_id.decode())) for task_id in unknown],
                [worker_id, *unknown],
            )
            for p in (parts if unknown else ())
        ]
        for call in calls:
            for task_id in cast("list[bytes]", await call):
                unknown.pop(task_id, None)
        holds = [
            Orphan(kind="hold", name=task_id.decode(), worker_id=worker_id, mark=offer.decode())
            for task_id, offer in unknown.items()
        ]
        return _next(following), holds if is_relayed else []

    async def _has_change(self, p: str, since: float) -> bool:
        """Whether one that came until then has not reached the workers' directory."""
        first = cast(
            "list[tuple[bytes, list[bytes]]]",
            await self._commands.command("XRANGE", f"{p}out", "-", "+", "COUNT", 1),
        )
        return bool(first) and int(first[0][0].partition(b"-")[0]) <= since * 1000

    async def remove(self, partition: int, orphan: Orphan) -> bool:
        if orphan.kind == "hold":
            assert orphan.worker_id is not None, "a place is a worker's"
            offer = orphan.mark.encode()
            change = (b"end_hold", orphan.worker_id.encode(), orphan.name.encode(), offer, b"", b"")
            return bool(await self._workers.change_holds([change]))
        if orphan.kind == "lease":
            partition = int(orphan.mark)
        p = keys.partition(partition)
        if orphan.kind == "entry":
            key = f"{p}{orphan.mark}"
        else:
            key = f"{p}{_KEY_OF.get(orphan.kind, f'held:{orphan.worker_id}')}"
        return bool(await self._commands.script(_REMOVE, [key], [p, orphan.kind, orphan.name]))

    # -- what was mended

    async def count_mended(self, kind: str) -> None:
        await self._commands.command("HINCRBY", keys.MENDED, kind, 1)

    async def mended(self) -> dict[str, int]:
        flat = cast("list[bytes]", await self._commands.command("HGETALL", keys.MENDED))
        return {
            kind.decode(): int(count) for kind, count in zip(flat[::2], flat[1::2], strict=True)
        }


def _next(cursor: bytes) -> str:
    return _SEEN if cursor == b"0" else cursor.decode()


def _asked(look: LookAt) -> tuple[Kind, str]:
    """What is asked about a job beside its claim, and about which task, token, branches or sub-job."""
    head = look.job.head
    if head is None or head.status in TERMINAL or look.job.cancelled:
        return "", ""
    match head.wait:
        case TaskWait(task_id=task_id):
            return "t", task_id
        case (
            TaskRetryWait(token=token)
            | HandlerRetryWait(token=token)
            | SleepWait(token=token)
            | SignalWait(token=token)
        ):
            return "w", token
        case ApprovalWait(token=token):
            return "a", token
        case BranchesWait():
            return "b", look.cursor
        case ChildWait(child_id=child_id):
            return "c", child_id
        case None:
            return "", ""


def _seen(job: LiveJob, kind: Kind, row: Facts, at: float) -> Seen:
    mark, may_have_event, has_claim, has_deadline, is_late, *facts = row
    mark = cast("bytes", mark).decode()
    around = Around(
        has_claim=bool(has_claim), has_deadline=bool(has_deadline), is_late=bool(is_late)
    )
    return Seen(
        around=_with_wait(around, kind, facts),
        mark=mark,
        is_current=mark.partition("|")[0] == job.fence,
        may_have_event=bool(may_have_event),
        at=at,
        next_branches=facts[4].decode() if kind == "b" else "0",
    )


def _with_wait(around: Around, kind: Kind, facts: Facts) -> Around:
    match kind:
        case "":
            return around
        case "t":
            return replace(around, tasks=_tasks(facts))
        case "w":
            return replace(around, has_timer=bool(facts[0]))
        case "a":
            return replace(around, is_open=bool(facts[0]), has_timer=bool(facts[1]))
        case "b":
            return replace(
                around,
                open=facts[0],
                branches=facts[1],
                is_staged=bool(facts[2]),
                has_timer=bool(facts[3]),
                tasks=_tasks(facts[5:]),
            )
        case "c":
            return replace(around, child=facts[0].decode())


def _tasks(flat: Facts) -> tuple[TaskAround, ...]:
    return tuple(
        TaskAround(
            task_id=TaskId(task_id.decode()),
            state=state.decode(),
            is_placed=bool(is_placed),
            has_timer=bool(has_timer),
        )
        for task_id, state, is_placed, has_timer in zip(
            flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True
        )
    )
