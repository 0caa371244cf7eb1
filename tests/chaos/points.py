"""The proof's second mode: each service dies before and after each of its writes, one after another.

`python -m tests.chaos.points` goes through all of them. The same few jobs are made each time; all have
to end, and the verdict is that of the first mode.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.chaos.collect import statuses
from tests.chaos.kinds import TERMINAL
from tests.chaos.load import Entry, Load
from tests.chaos.proof import (
    Stage,
    a_directory,
    a_stage,
    closed,
    keep_or_remove,
    report_of,
    say,
)
from tests.chaos.service import VARIABLE
from tests.chaos.suite import SERVICES, START_SECONDS
from tests.chaos.violations import Violation
from tests.chaos.worker import POINTS
from tests.support import until

END_SECONDS: Final = 60.0
"""For the jobs of one point to end."""
_WHENS: Final = ("before", "after")
_SCENARIO: Final[tuple[tuple[str, dict[str, Any], float | None], ...]] = (
    ("chain", {"slow": 0.01}, None),
    ("tasks", {}, None),
    ("fans", {"branches": 2}, None),
    ("parents", {}, None),
    ("approvals", {"patience": 300.0}, None),
    ("naps", {"seconds": 0.1, "times": 1}, None),
    ("signals", {"seconds": 0.1, "count": 1}, None),
    ("endless", {"way": "task"}, None),
    ("endless", {"way": "child"}, 1.0),
)
_HURRY: Final = 0.1


class Point(msgspec.Struct, frozen=True):
    """Where a service is to die."""

    service: str
    when: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.service}-{self.when}-{self.number}"


class Points:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.load = Load(stage.client, 0, stage.receiver.url)
        self.died_at: list[str] = []

    async def die_at(self, point: Point) -> bool:
        """Run the scenario with a service that is to die there; whether it did."""
        [member] = self._stage.suite.of_kind(point.service)
        doomed = member.starts + 1
        member.next_environment = {VARIABLE: f"{point.when}:{point.number}"}
        member.kill(0.0)
        await until(lambda: member.starts == doomed, START_SECONDS, message="it was not started")
        await until(
            lambda: member.starts > doomed or '"serving"' in member.said_since_start(),
            START_SECONDS,
            message="it neither serves nor dies",
        )
        entries = [
            self.load.new_entry(f"{POINTS}{point.name}-{number}", kind, data, timeout)
            for number, (kind, data, timeout) in enumerate(_SCENARIO)
        ]
        async with asyncio.TaskGroup() as group:
            for number, entry in enumerate(entries):
                draw = random.Random(number)
                group.create_task(self.load.live(entry, draw, hurry=_HURRY))
        await self._all_ended(entries, point)
        has_died = member.starts > doomed
        if has_died:
            self.died_at.append(point.name)
        return has_died

    async def _all_ended(self, entries: Sequence[Entry], point: Point) -> None:
        """Or not: then the verdict tells."""
        deadline = time.monotonic() + END_SECONDS
        for entry in entries:
            while time.monotonic() < deadline:
                shown = await self._stage.client.get(f"/api/jobs/{entry.job_id}?fields=status")
                if shown.status == 200 and shown.answer["status"] in TERMINAL:
                    break
                await asyncio.sleep(0.1)
            else:
                say(f"{point.name}: {entry.blueprint} {entry.job_id} does not end")


class Died(msgspec.Struct):
    """What came of it."""

    at: list[str]
    violations: list[Violation]
    report: str


async def pass_points(
    directory: Path, services: Sequence[str], *, first: int = 1, each: int = 1, most: int = 1000
) -> Died:
    """Have these services die at each `each`-th of their writes from `first` on, `most` times each."""
    async with a_stage(
        directory,
        retention_seconds=36_000,
        services=dict.fromkeys(SERVICES, 1),
        workers=1,
        has_raw_workers=False,
        entry_point="tests.chaos.service",
    ) as stage:
        points = Points(stage)
        for service in services:
            for when in _WHENS:
                numbers = range(first, first + each * most, each)
                reached = 0
                for reached in numbers:
                    if not await points.die_at(Point(service, when, reached)):
                        break
                say(f"{service}, {when} write {reached}: {len(points.died_at)} deaths so far")
        evidence, violations = await closed(stage, points.load.entries)
        say(f"jobs: {dict(statuses(evidence))}")
        lines = [f"died at: {', '.join(points.died_at)}"]
        return Died(points.died_at, violations, report_of(stage, evidence, violations, lines))


class Options(argparse.Namespace):
    services: str
    first: int
    each: int
    most: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.points", description=__doc__)
    parser.add_argument("--services", default=",".join(SERVICES), help="comma-separated")
    parser.add_argument("--first", type=int, default=1, help="the first write to die at")
    parser.add_argument("--each", type=int, default=1, help="2: at every second write")
    parser.add_argument("--most", type=int, default=1000, help="deaths of a service, at most")
    options = parser.parse_args(namespace=Options())
    directory = a_directory()
    services = options.services.split(",")
    died = asyncio.run(
        pass_points(directory, services, first=options.first, each=options.each, most=options.most)
    )
    if died.violations:
        say(died.report)
    say(f"deaths: {len(died.at)}, violations: {len(died.violations)}")
    keep_or_remove(directory, died.violations)
    return 1 if died.violations else 0


if __name__ == "__main__":
    sys.exit(main())
