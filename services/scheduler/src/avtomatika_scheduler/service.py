"""Makes the jobs of schedules.toml when they are due, each once over all instances.

One instance holds the lease, others stand by. A job's id belongs to its schedule and its time, and
the time is noted before the job is made and again after it: so whoever goes on after a crash makes
the same job, and a leader that slept makes none.
"""

import asyncio
import math
import tomllib
from pathlib import Path
from typing import Final

from avtomatika_common.backend.ports import (
    Backend,
    CatalogueEntry,
    JobIsTerminal,
    JobNotFound,
    Lease,
    ScheduleEntry,
    StoreFull,
)
from avtomatika_common.contracts import input_problem
from avtomatika_common.ids import derived_id, new_id
from avtomatika_common.leadership import Contact, lead
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import get_logger
from avtomatika_core.events import CancelRequested
from avtomatika_core.job import JobId
from avtomatika_core.schedule import (
    Overlap,
    Schedule,
    Standing,
    begin,
    choose,
    end,
    laid_off,
    next_moment,
    queue,
    scheduled_job,
    skip,
)
from avtomatika_core.schedule_entries import parse_schedules
from avtomatika_scheduler.settings import Settings

LEASE: Final = "scheduler"
FULL_STORE_SECONDS: Final = 1.0
"""Pause after the store had no room for a job."""
QUEUED_SECONDS: Final = 1.0
"""Pause before it is asked again which of the jobs have ended that hold back a time."""

log = get_logger()


class InvalidSchedules(StartupError, ValueError):
    """The file with the schedules cannot be read or is wrong; the text names file, entry and key."""


class SchedulerService:
    name = "scheduler"

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._contact = Contact(backend.clock)
        self._holder = f"{settings.instance_id}-{new_id()}"
        self._schedules: list[Schedule] = []
        self._blueprints: dict[str, CatalogueEntry] = {}
        self._catalogue_version = ""
        self._entries: dict[str, ScheduleEntry] = {}
        """As people want them. Where they stand only the leader changes: see below."""
        self._entries_version = ""
        self._standings: dict[str, Standing] = {}
        self._held_back: dict[str, list[JobId]] = {}
        """Jobs of each schedule whose next time waits for them, when they were last asked about."""
        self._ask_at = math.inf
        """When to ask about those again: about all of them together, however many there are."""
        self._hindered: dict[str, str] = {}
        """What keeps a schedule from running, as it was last logged."""
        self._wake = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        self._schedules = read_schedules(self._settings.schedules_path, self._settings.timezone)
        if self._settings.must_know_blueprints:
            await self._check_blueprints()
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            if self._settings.schedules_path:
                tasks.append(group.create_task(self._lead(), name="scheduler"))
            ready.set()
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def _check_blueprints(self) -> None:
        await self._read_catalogue()
        for schedule in self._schedules:
            if problem := self._hindrance(schedule):
                raise InvalidSchedules(
                    f"{self._settings.schedules_path}: Schedule '{schedule.name}' {problem}"
                )

    def _hindrance(self, schedule: Schedule) -> str | None:
        """Why no job can be made of it, as the end of a sentence."""
        blueprint = self._blueprints.get(schedule.blueprint)
        if blueprint is None:
            return f"names the blueprint '{schedule.blueprint}', which is not registered."
        problem = input_problem(blueprint.name, blueprint.input_schema, schedule.initial_data)
        return problem and f"has data that its blueprint does not take: {problem}"

    async def _lead(self) -> None:
        await lead(
            LEASE,
            self._holder,
            self._work,
            leases=self._backend.leases,
            clock=self._backend.clock,
            contact=self._contact,
        )

    async def _work(self, lease: Lease) -> None:
        await self._read_catalogue()
        await self._backend.schedules.publish(lease, self._schedules)
        await self._read_entries()
        for schedule in self._schedules:
            entry = self._entries.get(schedule.name)
            self._standings[schedule.name] = Standing() if entry is None else entry.standing
        self._hindered.clear()
        self._held_back.clear()
        self._ask_at = math.inf
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_catalogue())
            group.create_task(self._follow_entries())
            group.create_task(self._make_jobs(lease))

    async def _read_catalogue(self) -> None:
        self._catalogue_version, entries = await self._backend.catalogue.entries()
        self._blueprints = {entry.name: entry for entry in entries}

    async def _follow_catalogue(self) -> None:
        while True:
            version = self._catalogue_version
            await self._backend.catalogue.changed(version)
            await self._read_catalogue()
            if self._catalogue_version != version:
                self._wake.set()

    async def _read_entries(self) -> None:
        self._entries_version, entries = await self._backend.schedules.entries()
        self._entries = {entry.schedule.name: entry for entry in entries}

    async def _follow_entries(self) -> None:
        while True:
            version = self._entries_version
            await self._backend.schedules.changed(version)
            await self._read_entries()
            if self._entries_version != version:
                self._wake.set()

    async def _make_jobs(self, lease: Lease) -> None:
        clock = self._backend.clock
        for schedule in self._schedules:
            standing = self._standings[schedule.name]
            if not schedule.is_enabled and standing != (off := laid_off(standing)):
                await self._note(schedule, lease, off)
        next_looks = self._at_once()
        while True:
            if self._wake.is_set():  # of any schedule, something may be different now
                self._wake.clear()
                next_looks = self._at_once()
            next_looks |= dict.fromkeys(await self._let_go(), -math.inf)
            for schedule in self._schedules:
                if next_looks.get(schedule.name, math.inf) <= clock.now():
                    next_looks[schedule.name] = await self._look_at(schedule, lease)
            await clock.wait_until(min([self._ask_at, *next_looks.values()]), self._wake)

    def _at_once(self) -> dict[str, float]:
        """When to look next at each schedule that can run: now, at all of them."""
        return {
            schedule.name: -math.inf
            for schedule in self._schedules
            if schedule.is_enabled and self._can_run(schedule)
        }

    def _can_run(self, schedule: Schedule) -> bool:
        problem = self._hindrance(schedule)
        if problem is None:
            self._hindered.pop(schedule.name, None)
        elif self._hindered.get(schedule.name) != problem:
            self._hindered[schedule.name] = problem
            log.error(
                "schedule cannot run with the blueprints there are; it waits for others",
                schedule=schedule.name,
                blueprint=schedule.blueprint,
                reason=problem,
            )
        return problem is None

    async def _look_at(self, schedule: Schedule, lease: Lease) -> float:
        """Take the next step of what is due, one at most. Returns when to look again."""
        standing, clock = self._standings[schedule.name], self._backend.clock
        if standing.begun is not None:
            return await self._make_job(schedule, lease, standing, standing.begun)
        entry = self._entries.get(schedule.name)
        if entry is None or entry.is_paused:
            return math.inf
        if schedule.name in self._held_back:
            return math.inf
        now = clock.now()
        choice = choose(schedule, standing, now, entry.resumed_at)
        if choice.time is None:
            if choice.standing != standing:
                await self._note(schedule, lease, choice.standing)
            return next_moment(schedule, choice.standing, now)
        if schedule.overlap in {Overlap.SKIP, Overlap.QUEUE} and (
            unended := await self._unended(schedule)
        ):
            if schedule.overlap is Overlap.SKIP:
                log.info("time skipped: the job before has not ended", schedule=schedule.name)
                await self._note(schedule, lease, skip(choice.standing, choice.time))
                return now
            if standing.queued is None:
                await self._note(schedule, lease, queue(choice.standing, choice.time))
            self._held_back[schedule.name] = unended
            self._ask_at = min(self._ask_at, now + QUEUED_SECONDS)
            return self._ask_at
        begun = begin(choice.standing, choice.time)
        if not await self._backend.schedules.begin_slot(schedule.name, lease, begun):
            return math.inf  # it was paused just now; we shall hear of it
        self._standings[schedule.name] = begun
        return await self._make_job(schedule, lease, begun, choice.time)

    async def _note(self, schedule: Schedule, lease: Lease, standing: Standing) -> None:
        await self._backend.schedules.end_slot(schedule.name, lease, standing)
        self._standings[schedule.name] = standing

    async def _make_job(
        self, schedule: Schedule, lease: Lease, standing: Standing, time: float
    ) -> float:
        """Make the job of a time that was begun. To be repeated as it is after a crash."""
        if schedule.overlap is Overlap.CANCEL_PREVIOUS:
            await self._cancel_previous(schedule)
        job_id = JobId(derived_id("schedule", schedule.name, f"{time:.3f}"))
        blueprint = self._blueprints[schedule.blueprint]
        now = self._backend.clock.now()
        job = scheduled_job(
            schedule,
            job_id,
            group=blueprint.group,
            start_state=blueprint.start_state,
            created_at=now,
        )
        try:
            await self._backend.jobs.create(job, once=True)
        except StoreFull:
            log.warning("no room for a scheduled job", schedule=schedule.name)
            return now + FULL_STORE_SECONDS
        await self._note(schedule, lease, end(standing, job_id))
        log.info(
            "schedule fired",
            schedule=schedule.name,
            job_id=job_id,
            late_ms=round((now - time) * 1000),
        )
        return now

    async def _previous_jobs(self, schedule: Schedule) -> list[JobId]:
        """The job of the last time, and the last one somebody made out of its time."""
        entry = await self._backend.schedules.get(schedule.name)
        asked = None if entry is None else entry.asked_job_id
        last = self._standings[schedule.name].last_job_id
        return [job_id for job_id in (last, asked) if job_id is not None]

    async def _unended(self, schedule: Schedule) -> list[JobId]:
        previous = await self._previous_jobs(schedule)
        return sorted(await self._backend.jobs.not_ended(previous))

    async def _let_go(self) -> set[str]:
        """If it is time to ask: the schedules that are held back no more, their jobs having ended."""
        now = self._backend.clock.now()
        if now < self._ask_at:
            return set()
        held_back = self._held_back.keys()
        jobs = {job_id for held_by in self._held_back.values() for job_id in held_by}
        not_ended = await self._backend.jobs.not_ended(jobs)
        self._held_back = {
            name: held_by
            for name, held_by in self._held_back.items()
            if not not_ended.isdisjoint(held_by)
        }
        self._ask_at = now + QUEUED_SECONDS if self._held_back else math.inf
        return held_back - self._held_back.keys()

    async def _cancel_previous(self, schedule: Schedule) -> None:
        reason = f"Cancelled by schedule '{schedule.name}': its next time has come."
        event = CancelRequested(at=self._backend.clock.now(), reason=reason)
        for job_id in await self._previous_jobs(schedule):
            try:
                await self._backend.jobs.request_cancel(job_id, event)
            except (JobNotFound, JobIsTerminal):
                continue
            log.info("job before cancelled", schedule=schedule.name, job_id=job_id)


def read_schedules(path: str, timezone: str = "UTC") -> list[Schedule]:
    """The schedules of the file; none without a path. Raises InvalidSchedules."""
    if not path:
        return []
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return parse_schedules(tables, timezone)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSchedules(f"Invalid schedule configuration file: {path}: {error}") from error
    except ValueError as error:
        raise InvalidSchedules(f"{path}: {error}") from error
