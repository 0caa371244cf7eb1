"""Hands in a store that take something away which a commit would never part from the rest."""

# pyright: reportPrivateUsage=false

from itertools import chain
from typing import Protocol, cast

from redis.asyncio import Redis

from avtomatika_common import ids
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.memory.tables import JobRecord, Task
from avtomatika_common.backend.memory.timetable import Kind
from avtomatika_common.backend.redis import keys
from avtomatika_core.job import JobId, TaskId, WorkerId

GARBAGE = b"\xc1 no msgpack"
LETTERS: dict[Kind, str] = {
    "wait": "w",
    "branch": "b",
    "entry": "e",
    "dispatch": "d",
    "delivery": "c",
    "result": "r",
    "job": "j",
}


class Hands(Protocol):
    """Works on partition 0 of a store with one partition."""

    async def lose_claim(self, job_id: JobId) -> None: ...
    async def lose_events(self) -> None:
        """All entries of the lanes."""
        ...

    async def spoil_events(self) -> None:
        """No entry that waits for its first reader behind a started job can be decoded any more."""
        ...

    async def spoil_head(self, job_id: JobId) -> None:
        """What says where the job stands cannot be decoded any more."""
        ...

    async def lose_task(self, job_id: JobId, task_id: TaskId) -> None: ...
    async def lose_place(self, task_id: TaskId) -> None:
        """On the board."""
        ...

    async def lose_lease(self, worker_id: WorkerId, task_id: TaskId) -> None: ...
    async def lose_timer(self, kind: Kind, job_id: JobId, token: str) -> None: ...
    async def lose_all_timers(self) -> None: ...
    async def add_timer(self, kind: Kind, job_id: JobId, token: str) -> None: ...
    async def has_timer(self, kind: Kind, job_id: JobId, token: str) -> bool: ...
    async def close_approval(self, job_id: JobId) -> None: ...
    async def miscount_branches(self, job_id: JobId) -> None: ...
    async def lose_job(self, job_id: JobId) -> None:
        """And all that names it in the lanes."""
        ...

    async def quarantine(self, job_id: JobId) -> None:
        """Put an id on the list."""
        ...

    async def add_lease(self, worker_id: WorkerId, task_id: TaskId) -> None:
        """Of a task that is none."""
        ...

    async def take_place(self, worker_id: WorkerId, task_id: TaskId) -> None:
        """The worker is said to hold a task that it does not hold."""
        ...

    async def holds(self, worker_id: WorkerId) -> int:
        """Tasks the partition says the worker holds."""
        ...


class MemoryHands:
    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._tables = storage._tables
        self._here = self._tables.partitions[0]

    def _record(self, job_id: JobId) -> JobRecord:
        return self._tables.jobs[job_id]

    def _task(self, task_id: TaskId) -> Task:
        return self._here.tasks[task_id]

    def _lose_entry(self, entry_id: str) -> None:
        entry = self._tables.entries.pop(entry_id)
        group = self._tables.groups[entry.group]
        if entry.consumer is None:
            group.lanes[entry.lane].remove(entry)
        else:
            del group.consumers[entry.consumer][entry_id]

    async def lose_claim(self, job_id: JobId) -> None:
        claim = self._record(job_id).claim
        assert claim is not None
        self._lose_entry(claim)

    async def lose_events(self) -> None:
        for entry_id in list(self._tables.entries):
            self._lose_entry(entry_id)

    async def spoil_events(self) -> None:
        for entry in self._tables.groups["default"].lanes["in"]:
            entry.event = GARBAGE

    async def spoil_head(self, job_id: JobId) -> None:
        self._record(job_id).head = GARBAGE

    async def lose_task(self, job_id: JobId, task_id: TaskId) -> None:
        task = self._task(task_id)
        self._tables.leave_board(self._here, task)
        del self._here.tasks[task_id]
        self._record(job_id).tasks.discard(task_id)

    async def lose_place(self, task_id: TaskId) -> None:
        task = self._task(task_id)
        self._here.board[task.shape].remove(task.place)

    async def lose_lease(self, worker_id: WorkerId, task_id: TaskId) -> None:
        del self._here.held[worker_id][task_id]

    async def lose_timer(self, kind: Kind, job_id: JobId, token: str) -> None:
        assert self._tables.clear_timer(kind, job_id, token)

    async def lose_all_timers(self) -> None:
        for timer in list(self._here.timetable):
            self._here.timetable.clear(timer)

    async def add_timer(self, kind: Kind, job_id: JobId, token: str) -> None:
        self._tables.set_timer(kind, job_id, token, self._tables.clock.now() + 1000)

    async def has_timer(self, kind: Kind, job_id: JobId, token: str) -> bool:
        return self._tables.has_timer(kind, job_id, token)

    async def close_approval(self, job_id: JobId) -> None:
        self._record(job_id).wait = None

    async def miscount_branches(self, job_id: JobId) -> None:
        self._record(job_id).open += 1

    async def lose_job(self, job_id: JobId) -> None:
        await self.lose_events()
        del self._tables.jobs[job_id]

    async def quarantine(self, job_id: JobId) -> None:
        self._tables.quarantined[job_id] = None

    async def add_lease(self, worker_id: WorkerId, task_id: TaskId) -> None:
        held = self._here.held.setdefault(worker_id, {})
        [some] = list(held.values())[:1]
        gone = object.__new__(Task)
        for name in Task.__slots__:
            setattr(gone, name, getattr(some, name))
        gone.task_id = task_id
        held[task_id] = gone

    async def take_place(self, worker_id: WorkerId, task_id: TaskId) -> None:
        registration = self._storage.workers._registrations[worker_id]
        [hold] = list(registration.holds.values())[:1]
        registration.holds[task_id] = hold

    async def holds(self, worker_id: WorkerId) -> int:
        return len(self._here.held.get(worker_id, {}))


class RedisHands:
    def __init__(self, client: Redis) -> None:
        self._client = client
        self._p = keys.partition(0)

    def _job(self, job_id: JobId) -> str:
        return keys.job(self._p, job_id)

    def _timer(self, kind: Kind, job_id: JobId, token: str) -> str:
        return f"{LETTERS[kind]}/{job_id}/{token}"

    async def lose_claim(self, job_id: JobId) -> None:
        claim = await self._client.hget(self._job(job_id), "claim")
        assert claim
        lanes = [keys.lane(self._p, lane, "default") for lane in ("in", "new")]
        assert sum([await self._client.xdel(lane, claim) for lane in lanes]) == 1

    async def lose_events(self) -> None:
        for lane in ("in", "new"):
            await self._client.delete(keys.lane(self._p, lane, "default"))

    async def spoil_events(self) -> None:
        lane = keys.lane(self._p, "in", "default")
        entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", await self._client.xrange(lane))
        for entry_id, fields in entries:
            await self._client.xdel(lane, entry_id)
            await self._client.execute_command(  # pyright: ignore[reportUnknownMemberType]
                "XADD", lane, "*", *chain.from_iterable((fields | {b"e": GARBAGE}).items())
            )

    async def spoil_head(self, job_id: JobId) -> None:
        await self._client.hset(self._job(job_id), "head", GARBAGE)

    async def lose_task(self, job_id: JobId, task_id: TaskId) -> None:
        await self.lose_place(task_id)
        for letter in ("d", "c", "r"):
            await self._client.zrem(f"{self._p}tm", f"{letter}/{job_id}/{task_id}")
        assert await self._client.delete(keys.task(self._p, task_id))

    async def lose_place(self, task_id: TaskId) -> None:
        shape, member = cast(
            "list[bytes]",
            await self._client.hmget(keys.task(self._p, task_id), "shape", "member"),
        )
        assert await self._client.zrem(f"{self._p}board:{shape.decode()}", member)

    async def lose_lease(self, worker_id: WorkerId, task_id: TaskId) -> None:
        assert await self._client.hdel(f"{self._p}held:{worker_id}", task_id)

    async def lose_timer(self, kind: Kind, job_id: JobId, token: str) -> None:
        assert await self._client.zrem(f"{self._p}tm", self._timer(kind, job_id, token))

    async def lose_all_timers(self) -> None:
        await self._client.delete(f"{self._p}tm")

    async def add_timer(self, kind: Kind, job_id: JobId, token: str) -> None:
        far = 4_000_000_000_000
        await self._client.zadd(f"{self._p}tm", {self._timer(kind, job_id, token): far})

    async def has_timer(self, kind: Kind, job_id: JobId, token: str) -> bool:
        timer = self._timer(kind, job_id, token)
        return await self._client.zscore(f"{self._p}tm", timer) is not None

    async def close_approval(self, job_id: JobId) -> None:
        await self._client.hset(self._job(job_id), "wait", "")

    async def miscount_branches(self, job_id: JobId) -> None:
        await self._client.hincrby(self._job(job_id), "open", 1)

    async def lose_job(self, job_id: JobId) -> None:
        await self.lose_events()
        await self._client.delete(self._job(job_id))

    async def quarantine(self, job_id: JobId) -> None:
        await self._client.zadd(f"{self._p}quar", {job_id: 1})

    async def add_lease(self, worker_id: WorkerId, task_id: TaskId) -> None:
        await self._client.hset(f"{self._p}held:{worker_id}", task_id, f"1:{no_job()}")

    async def take_place(self, worker_id: WorkerId, task_id: TaskId) -> None:
        await self._client.zadd(f"{keys.WORKERS}hold:{worker_id}", {task_id: "+inf"})
        await self._client.hset(f"{keys.WORKERS}offer:{worker_id}", task_id, "1")

    async def holds(self, worker_id: WorkerId) -> int:
        return await self._client.hlen(f"{self._p}held:{worker_id}")


def no_job() -> JobId:
    return JobId(ids.new_id())
