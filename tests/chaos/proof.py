"""One run of the proof: suite, load and faults for a time; then peace, evidence and the verdict."""

import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

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
from tests.chaos.faults import Fault, Faults, plan
from tests.chaos.load import PATIENCE_SECONDS, Act, Client, Load
from tests.chaos.suite import SERVICES, a_suite
from tests.chaos.verdict import verdict
from tests.chaos.violations import Violation
from tests.chaos.webhooks import a_receiver

QUIET_SECONDS: Final = 120.0
"""For everything to end once the faults are over."""
_PROGRESS_SECONDS: Final = 10.0
_SHOWN_JOBS: Final = 3


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


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def prove(
    seed: int, seconds: float, jobs_per_second: float, directory: Path, *, calm: bool = False
) -> Outcome:
    """`calm`: without faults, to know the load itself."""
    retention = seconds + 3600
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(a_receiver())
        suite = await stack.enter_async_context(a_suite(directory, retention))
        redis = await stack.enter_async_context(Redis.from_url(suite.redis.url))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                suite.door, timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
                connector=aiohttp.TCPConnector(limit=0),
            )
        )  # fmt: skip
        client = Client(session)
        load = Load(suite, client, seed, receiver.url)
        planned = [] if calm else plan(seed, seconds, sorted(suite.members), sorted(suite.links))
        faults = Faults(suite, planned)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_show_progress(load, faults, receiver.by_job))
            async with asyncio.TaskGroup() as work:
                work.create_task(load.run(seconds, jobs_per_second))
                work.create_task(faults.perform())
            watching.cancel()
        say("load and faults are over; waiting for every job to end")
        await _pause_schedule(client)
        left = await until_quiet(suite, redis, load.entries, QUIET_SECONDS)
        await suite.retire(suite.of_kind("worker", "raw"))
        await until_no_workers(redis, 20)
        await until_quiet(suite, redis, load.entries, 20)
        await until_no_dead_consumers(redis, 60)
        evidence = await collected(suite, redis, client, load.entries, receiver)
        evidence.retention_seconds = retention
        await suite.retire(suite.of_kind(*SERVICES))
        evidence.complaints = [
            complaint for member in suite.members.values() for complaint in member.complaints
        ]
        if left:
            evidence.complaints.append(f"still there after {QUIET_SECONDS:g} s: {left}")
        violations = verdict(evidence)
        report = ""
        if violations:
            shown = list(dict.fromkeys(one.subject for one in violations if one.subject))
            records = [record_of(evidence, suite, job_id) for job_id in shown[:_SHOWN_JOBS]]
            report = "\n".join(
                [
                    f"seed {seed}",
                    *(_line(done.fault, done.at, done.pid) for done in faults.performed),
                    *(f"VIOLATION {one.rule}: {one.subject} {one.text}" for one in violations),
                    *records,
                ]
            )
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
            report=report,
        )


def _line(fault: Fault, at: float, pid: int | None) -> str:
    process = f" pid {pid}" if pid else ""
    return (
        f"{fault.at:8.2f} s ({at:.3f}) {fault.kind} of {fault.target}{process}, {fault.seconds:g} s"
    )


async def _pause_schedule(client: Client) -> None:
    act = await client.ask(Act("pause"), "POST", "/api/schedules/tick/pause")
    assert act.status == 200, act


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


def keep_or_remove(directory: Path, outcome: Outcome) -> None:
    if outcome.violations:
        say(f"logs, marks and history are in {directory}")
    else:
        shutil.rmtree(directory)
