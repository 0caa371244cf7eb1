"""Taking the evidence: through the door, from Redis, from the marks and the logs."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec
from redis.asyncio import Redis

from avtomatika_common import codec
from avtomatika_common.backend.redis import keys
from avtomatika_common.ids import derived_id
from tests.chaos.evidence import ConsumerSeen, Evidence, JobSeen, KeySeen, Noted
from tests.chaos.kinds import TERMINAL
from tests.chaos.load import Client, Entry
from tests.chaos.marks import read_marks
from tests.chaos.suite import SCHEDULE_SECONDS, Suite
from tests.chaos.webhooks import Receiver

P: Final = keys.partition(0)
_AT_ONCE: Final = 8
_NO_SUCH_KEY: Final = -2
"""What PTTL says of it."""
_MENDED: Final = '"inconsistency mended"'
_SIZES: Final = {"stream": "XLEN", "zset": "ZCARD", "hash": "HLEN", "set": "SCARD", "list": "LLEN"}


async def until_quiet(redis: Redis, seconds: float) -> str:
    """Wait until nothing is on its way; what was still there when the time was over."""
    deadline = time.monotonic() + seconds
    while True:
        left = await _left(redis)
        if not left or time.monotonic() > deadline:
            return ", ".join(left)
        await asyncio.sleep(0.3)


async def _left(redis: Redis) -> list[str]:
    live = await redis.scard(f"{P}live")
    left = [f"{live} jobs"] if live else []
    streams = [f"{P}new:default", f"{P}in:default"]
    streams += [f"{P}{name}" for name in ("facts", "notify", "out")]
    streams.append(f"{keys.WORKERS}gone")
    lengths = {stream: await redis.xlen(stream) for stream in streams}
    return left + [f"{length} in {stream}" for stream, length in lengths.items() if length]


async def until_no_workers(redis: Redis, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        registered = await redis.zcard(f"{keys.WORKERS}exp")
        if not registered and not await redis.xlen(f"{keys.WORKERS}gone"):
            return
        await asyncio.sleep(0.2)


async def until_no_dead_consumers(redis: Redis, seconds: float) -> None:
    """Consumers of processes that are gone are removed by the watcher."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(consumer.is_alive for consumer in await _consumers(redis)):
            return
        await asyncio.sleep(0.5)


async def collected(
    suite: Suite, redis: Redis, client: Client, entries: Iterable[Entry], receiver: Receiver
) -> Evidence:
    marks = list(read_marks(suite.marks))
    evidence = Evidence(marks=marks)
    evidence.jobs = await _jobs(redis, client, entries, Noted(marks), receiver)
    seen = [await _key(redis, name) async for name in redis.scan_iter(count=1000)]
    evidence.keys = [key for key in seen if key is not None]
    evidence.consumers = await _consumers(redis)
    evidence.counts = await _counts(redis)
    evidence.scheduled = await _scheduled(redis)
    evidence.dead_events = (await client.get("/api/admin/dead-events")).answer
    evidence.mended = [f"{name}: {line}" for name, line in suite.log_lines() if _MENDED in line]
    evidence.complaints = [
        complaint for member in suite.members.values() for complaint in member.complaints
    ]
    return evidence


async def _jobs(
    redis: Redis, client: Client, entries: Iterable[Entry], noted: Noted, receiver: Receiver
) -> list[JobSeen]:
    jobs = [
        JobSeen(entry.job_id, entry.blueprint, entry, webhooks=receiver.by_job[entry.job_id])
        for entry in entries
        if entry.job_id
    ]
    known = {job.job_id for job in jobs}
    others = {job_id for _, job_id in _made_by_others(noted)} - known
    jobs += [JobSeen(job_id, "") for job_id in sorted(others)]
    turn = asyncio.Semaphore(_AT_ONCE)

    async def look(job: JobSeen) -> None:
        async with turn:
            await _look_at(redis, client, job)

    await asyncio.gather(*(look(job) for job in jobs))
    return jobs


def _made_by_others(noted: Noted) -> set[tuple[str, str]]:
    return {(key, job_id) for key, job_ids in noted.jobs_of_key.items() for job_id in job_ids}


async def _look_at(redis: Redis, client: Client, job: JobSeen) -> None:
    shown = await client.get(f"/api/jobs/{job.job_id}")
    if shown.status == 200:
        job.document = shown.answer
        job.blueprint = shown.answer["blueprint_name"]
    rows = await client.get(f"/api/jobs/{job.job_id}/history")
    if rows.status == 200:
        job.history = rows.answer
    closed = cast("dict[bytes, bytes]", await redis.hgetall(f"{keys.job(P, job.job_id)}:done"))
    job.closed = {task.decode(): why.decode() for task, why in closed.items()}


async def _key(redis: Redis, name: bytes) -> KeySeen | None:
    """None: its time was over while it was looked at."""
    kind = cast("bytes", await redis.type(name)).decode()
    size = cast("int", await redis.execute_command(_SIZES[kind], name)) if kind in _SIZES else 1
    ttl_ms = await redis.pttl(name)
    return None if ttl_ms == _NO_SUCH_KEY else KeySeen(name.decode(), ttl_ms, size)


async def _consumers(redis: Redis) -> list[ConsumerSeen]:
    found: list[ConsumerSeen] = []
    for stream in ("new:default", "in:default", "facts", "notify"):
        if not await redis.exists(f"{P}{stream}"):
            continue
        for group in await redis.xinfo_groups(f"{P}{stream}"):
            for consumer in await redis.xinfo_consumers(f"{P}{stream}", group["name"]):
                name = consumer["name"].decode()
                is_alive = bool(await redis.exists(keys.alive(P, name)))
                found.append(ConsumerSeen(stream, name, consumer["pending"], is_alive))
    return found


async def _counts(redis: Redis) -> dict[str, int]:
    counted = cast("dict[bytes, bytes]", await redis.hgetall(f"{P}count"))
    return {status.decode(): int(count) for status, count in counted.items() if b"|" not in status}


async def _scheduled(redis: Redis) -> list[str]:
    """Ids of the jobs of all times up to the last one."""
    packed = cast("bytes | None", await redis.hget(keys.schedule("tick"), "standing"))
    if packed is None:
        return []
    standing = codec.unpack_standing(packed)
    if standing.anchor is None or standing.last_run is None:
        return []
    times = round((standing.last_run - standing.anchor) / SCHEDULE_SECONDS) + 1
    moments = (standing.anchor + number * SCHEDULE_SECONDS for number in range(times))
    return [derived_id("schedule", "tick", f"{moment:.3f}") for moment in moments]


def statuses(evidence: Evidence) -> Counter[str]:
    return Counter(job.status if job.status in TERMINAL else "open" for job in evidence.jobs)


def record_of(evidence: Evidence, suite: Suite, job_id: str, most_lines: int = 200) -> str:
    """All that is known of a job."""
    parts: list[str] = []
    tasks: set[str] = set()
    for job in evidence.jobs:
        if job.job_id == job_id:
            tasks = set(job.closed)
            parts.append(msgspec.json.format(msgspec.json.encode(job)).decode())
    key = next((job.entry.key for job in evidence.jobs if job.job_id == job_id and job.entry), "")
    parts += [
        str(mark)
        for mark in sorted(evidence.marks, key=lambda mark: mark["at"])
        if mark.get("job") == job_id
        or (key and mark.get("key") == key)
        or mark.get("task") in tasks
    ]
    lines = [
        f"{name}: {line}"
        for name, line in suite.log_lines()
        if job_id in line or any(task in line for task in tasks)
    ]
    return "\n".join([*parts, *lines[-most_lines:]])


def as_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()
