"""One run of the proof: suite, load and faults for a time; then peace, evidence and the verdict."""

import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from redis.asyncio import Redis

from tests.chaos.collect import (
    collected,
    record_of,
    statuses,
    until_no_dead_consumers,
    until_no_workers,
    until_quiet,
)
from tests.chaos.evidence import Evidence
from tests.chaos.faults import Faults, Performed, plan
from tests.chaos.load import PATIENCE_SECONDS, Act, Client, Entry, Load
from tests.chaos.suite import SERVICES, Suite, a_suite
from tests.chaos.verdict import verdict
from tests.chaos.violations import Violation
from tests.chaos.webhooks import Receiver, a_receiver

QUIET_SECONDS: Final = 120.0
"""For everything to end once the faults are over."""
_PROGRESS_SECONDS: Final = 10.0
_SHOWN_JOBS: Final = 3


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Stage:
    """The suite, and who is outside of it."""

    def __init__(
        self,
        suite: Suite,
        redis: Redis,
        client: Client,
        receiver: Receiver,
        retention_seconds: float,
    ) -> None:
        self.suite = suite
        self.redis = redis
        self.client = client
        self.receiver = receiver
        self.retention_seconds = retention_seconds


@asynccontextmanager
async def a_stage(
    directory: Path, *, retention_seconds: float, **of_suite: Any
) -> AsyncGenerator[Stage, None]:
    """`of_suite`: what else `a_suite` takes."""
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(a_receiver())
        suite = await stack.enter_async_context(
            a_suite(directory, retention_seconds=retention_seconds, **of_suite)
        )
        redis = await stack.enter_async_context(Redis.from_url(suite.redis.url))
        session = aiohttp.ClientSession(
            suite.door,
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
            connector=aiohttp.TCPConnector(limit=0),
        )
        await stack.enter_async_context(session)
        yield Stage(suite, redis, Client(session), receiver, retention_seconds)


async def closed(stage: Stage, entries: Sequence[Entry]) -> tuple[Evidence, list[Violation]]:
    """Wait until all has ended, end the suite as its operator would, and judge."""
    suite, redis = stage.suite, stage.redis
    paused = await stage.client.ask(Act("pause"), "POST", "/api/schedules/tick/pause")
    assert paused.status == 200, paused
    left = await until_quiet(redis, QUIET_SECONDS)
    await suite.retire(suite.of_kind("worker", "raw"))
    await until_no_workers(redis, 20)
    await until_quiet(redis, 20)
    await until_no_dead_consumers(redis, 60)
    evidence = await collected(suite, redis, stage.client, entries, stage.receiver)
    evidence.retention_seconds = stage.retention_seconds
    await suite.retire(suite.of_kind(*SERVICES))
    evidence.complaints = [
        complaint for member in suite.members.values() for complaint in member.complaints
    ]
    if left:
        evidence.complaints.append(f"still there after {QUIET_SECONDS:g} s: {left}")
    return evidence, verdict(evidence)


def report_of(
    stage: Stage, evidence: Evidence, violations: Sequence[Violation], lines: Sequence[str]
) -> str:
    """What is needed to find out why; `lines` come first. Empty where there is nothing to find."""
    if not violations:
        return ""
    found = [f"VIOLATION {one.rule}: {one.subject} {one.text}" for one in violations]
    jobs = list(dict.fromkeys(one.subject for one in violations if one.subject))
    records = [record_of(evidence, stage.suite, job_id) for job_id in jobs[:_SHOWN_JOBS]]
    return "\n".join([*lines, *found, *records])


class Outcome(msgspec.Struct):
    seed: int
    seconds: float
    faults: Counter[str]
    accepted: int
    statuses: Counter[str]
    tasks: int
    """Attempts that workers have seen."""
    handlers: int
    """Runs of handlers, those that did not count too."""
    starts: int
    """Of processes."""
    violations: list[Violation]
    report: str
    """On violations: seed, faults and records of jobs."""

    def summary(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        ends = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"seed {self.seed}, {self.seconds:g} s\n"
            f"faults: {self.faults.total()} ({faults})\n"
            f"processes started: {self.starts}\n"
            f"jobs accepted: {self.accepted}; with sub-jobs and scheduled ones: {ends}\n"
            f"runs of handlers: {self.handlers}, attempts of tasks: {self.tasks}\n"
            f"violations: {len(self.violations)}"
        )


async def prove(
    seed: int, seconds: float, jobs_per_second: float, directory: Path, *, calm: bool = False
) -> Outcome:
    """`calm`: without faults, to know the load itself."""
    async with a_stage(directory, retention_seconds=seconds + 3600) as stage:
        suite = stage.suite
        load = Load(stage.client, seed, stage.receiver.url)
        planned = [] if calm else plan(seed, seconds, sorted(suite.members), sorted(suite.links))
        faults = Faults(suite, planned)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_show_progress(load, faults, stage.receiver.by_job))
            async with asyncio.TaskGroup() as work:
                work.create_task(load.run(seconds, jobs_per_second))
                work.create_task(faults.perform())
            watching.cancel()
        say("load and faults are over; waiting for every job to end")
        evidence, violations = await closed(stage, load.entries)
        lines = [f"seed {seed}", *map(_line, faults.performed)]
        return Outcome(
            seed=seed,
            seconds=seconds,
            faults=faults.by_kind,
            accepted=sum(bool(entry.job_id) for entry in load.entries),
            statuses=statuses(evidence),
            tasks=len(evidence.marks_of("task")),
            handlers=len(evidence.marks_of("handler")),
            starts=sum(member.starts for member in suite.members.values()),
            violations=violations,
            report=report_of(stage, evidence, violations, lines),
        )


def _line(done: Performed) -> str:
    fault, process = done.fault, f" pid {done.pid}" if done.pid else ""
    return (
        f"{fault.at:8.2f} s ({done.at:.3f}) {fault.kind} of {fault.target}{process}, "
        f"{fault.seconds:g} s"
    )


async def _show_progress(load: Load, faults: Faults, ended: Mapping[str, object]) -> None:
    begun = time.monotonic()
    while True:
        await asyncio.sleep(_PROGRESS_SECONDS)
        accepted = sum(bool(entry.job_id) for entry in load.entries)
        say(
            f"{time.monotonic() - begun:6.0f} s: {accepted} jobs accepted, {len(ended)} ended, "
            f"{len(faults.performed)} faults"
        )


def a_directory() -> Path:
    """In memory where that can be: what Redis has written must not wait for a disk."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="chaos-", dir=shared if shared.is_dir() else None))


def keep_or_remove(directory: Path, violations: Sequence[Violation]) -> None:
    if violations:
        say(f"logs, marks and history are in {directory}")
    else:
        shutil.rmtree(directory)
