"""Makes the jobs of schedules.toml when they are due, each once over all instances.

One instance holds the lease, others stand by. A job's id belongs to its schedule and its time, so
a run that is made again after a crash is the same job.
"""

import asyncio
import math
import tomllib
from pathlib import Path
from typing import Final

from avtomatika_common.backend.ports import (
    Backend,
    CatalogueEntry,
    Lease,
    Slot,
    StoreFull,
)
from avtomatika_common.ids import derived_id, new_id
from avtomatika_common.leadership import Contact, lead
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import get_logger
from avtomatika_core.job import Client, JobId, Origin, new_job
from avtomatika_core.schedule import Schedule, next_due, parse_schedules, slot_at
from avtomatika_scheduler.settings import Settings

LEASE: Final = "scheduler"
FULL_STORE_SECONDS: Final = 1.0
"""Pause after the store had no room for a job."""

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
        self._wake = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        schedules = read_schedules(self._settings.schedules_path)
        self._schedules = [schedule for schedule in schedules if schedule.is_enabled]
        if self._settings.must_know_blueprints:
            await self._check_blueprints(schedules)
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            if self._schedules:
                tasks.append(group.create_task(self._lead(), name="scheduler"))
            ready.set()
            await stop.wait()
            for task in tasks:
                task.cancel()

    async def _check_blueprints(self, schedules: list[Schedule]) -> None:
        await self._read_catalogue()
        for schedule in schedules:
            if schedule.blueprint not in self._blueprints:
                raise InvalidSchedules(
                    f"{self._settings.schedules_path}: Schedule '{schedule.name}' names the "
                    f"blueprint '{schedule.blueprint}', which is not registered."
                )

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
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_catalogue())
            group.create_task(self._fire_schedules(lease))

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

    async def _fire_schedules(self, lease: Lease) -> None:
        clock = self._backend.clock
        slots = {
            schedule.name: await self._backend.schedules.slot(schedule.name)
            for schedule in self._schedules
        }
        missed = dict[str, str]()
        while True:
            self._wake.clear()
            next_look = math.inf
            for schedule in self._schedules:
                blueprint = self._blueprints.get(schedule.blueprint)
                if blueprint is None:
                    if missed.get(schedule.name) != self._catalogue_version:
                        missed[schedule.name] = self._catalogue_version
                        log.error(
                            "schedule names an unknown blueprint; it waits for an executor with it",
                            schedule=schedule.name,
                            blueprint=schedule.blueprint,
                        )
                    continue
                slot = slots[schedule.name]
                if next_due(schedule, slot.last_run, clock.now()) <= clock.now():
                    try:
                        slot = slots[schedule.name] = await self._fire(
                            schedule, blueprint, slot, lease
                        )
                    except StoreFull:
                        log.warning("no room for a scheduled job", schedule=schedule.name)
                        next_look = min(next_look, clock.now() + FULL_STORE_SECONDS)
                        continue
                next_look = min(next_look, next_due(schedule, slot.last_run, clock.now()))
            await clock.wait_until(next_look, self._wake)

    async def _fire(
        self, schedule: Schedule, blueprint: CatalogueEntry, slot: Slot, lease: Lease
    ) -> Slot:
        """Make the job of the latest time that is due, then note that it was made."""
        now = self._backend.clock.now()
        run_at = slot_at(schedule, slot.last_run, now)
        moment = "first" if slot.last_run is None else f"{run_at:.3f}"
        job_id = JobId(derived_id("schedule", schedule.name, moment))
        origin = Origin(
            blueprint=blueprint.name,
            group=blueprint.group,
            start_state=blueprint.start_state,
            initial_data=schedule.initial_data,
            client=Client(
                plan="system",
                token="internal-scheduler",  # noqa: S106 - a name that clients see, no secret
                params={"source": f"scheduler:{schedule.name}"},
            ),
            created_at=now,
            dispatch_timeout=schedule.dispatch_timeout,
            result_timeout=schedule.result_timeout,
        )
        created = await self._backend.jobs.create(new_job(job_id, origin))
        fired = Slot(last_run=run_at, last_job_id=created.job_id)
        await self._backend.schedules.end_slot(schedule.name, lease, fired)
        log.info("schedule fired", schedule=schedule.name, job_id=job_id)
        return fired


def read_schedules(path: str) -> list[Schedule]:
    """The schedules of the file; none without a path. Raises InvalidSchedules."""
    if not path:
        return []
    try:
        return parse_schedules(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSchedules(f"Invalid schedule configuration file: {path}: {error}") from error
    except ValueError as error:
        raise InvalidSchedules(f"{path}: {error}") from error
