"""A scheduler over memory whose clock goes on only when it is told to."""

import datetime as dt
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from zoneinfo import ZoneInfo

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import (
    Backend,
    CatalogueEntry,
    Delivery,
    ScheduleEntry,
    StoreOptions,
)
from avtomatika_common.clock import ManualClock
from avtomatika_common.lifecycle import running
from avtomatika_core.events import HandlerRaised
from avtomatika_core.job import Job, JobId, JobStatus
from avtomatika_core.machine import step
from avtomatika_core.outcomes import Rules
from avtomatika_scheduler import SchedulerService, Settings
from tests.support import until

REPORT = CatalogueEntry(
    name="report", group="blue", start_state="begin", api_endpoint=None, api_version=None, dot=""
)
EVERY_TEN_SECONDS = '[tick]\nblueprint = "report"\ninterval_seconds = 10\n'
NIGHTLY = '[nightly]\nblueprint = "report"\ndaily_at = "02:30"\ntimezone = "Europe/Berlin"\n'
IN_MAY = dt.datetime(2026, 5, 1, tzinfo=ZoneInfo("Europe/Berlin"))


def at(clock_time: str, day: int = 1) -> float:
    """That time of a day in May, in Berlin."""
    return dt.datetime.combine(
        IN_MAY.replace(day=day), dt.time.fromisoformat(clock_time), IN_MAY.tzinfo
    ).timestamp()


class World:
    def __init__(self, directory: Path, start: float | None = None) -> None:
        self.clock = ManualClock() if start is None else ManualClock(start)
        self.store = MemoryStorage(self.clock)
        self.path = directory / "schedules.toml"
        self._deliveries: dict[JobId, Delivery] = {}

    def scheduler(
        self, toml: str, *, must_know_blueprints: bool = False, backend: Backend | None = None
    ) -> SchedulerService:
        self.path.write_text(toml)
        settings = Settings(
            schedules_path=str(self.path), must_know_blueprints=must_know_blueprints
        )
        return SchedulerService(settings, backend or self.store)

    async def jobs(self) -> int:
        """How many were made and not touched since."""
        return (await self.store.jobs.count_by_status()).get(JobStatus.PENDING, 0)

    async def has_jobs(self, count: int, *, step: float = 0.0) -> None:
        """Wait until there are so many; with `step`, time passes meanwhile."""

        async def are_there() -> bool:
            self.clock.advance(step)
            return await self.jobs() >= count

        await until(are_there)
        assert await self.jobs() == count

    async def made(self) -> list[Job]:
        """The jobs made so far, oldest first."""
        for delivery in await self.store.inbox.read("blue", "executor", 999):
            self._deliveries.setdefault(delivery.job_id, delivery)
        stored = [await self.store.jobs.load(job_id) for job_id in self._deliveries]
        return [one.job for one in stored if one is not None]

    async def end(self, job: Job) -> None:
        """Its handler can never work."""
        delivery = self._deliveries[job.id]
        stored = await self.store.jobs.load(job.id)
        assert stored is not None
        assert delivery.event is not None
        now = self.clock.now()
        stored = await self.store.jobs.commit(
            stored, step(stored.job, delivery.event, RULES), delivery
        )
        event = HandlerRaised(
            at=now, started_at=now, run=stored.job.run, message="no", is_definition_error=True
        )
        await self.store.jobs.commit(stored, step(stored.job, event, RULES), delivery)

    async def entry(self, name: str = "tick") -> ScheduleEntry:
        found = await self.store.schedules.get(name)
        assert found is not None
        return found

    async def asleep(self) -> None:
        """It renews its lease and waits for the next run."""
        await until(lambda: self.clock.sleepers == 2)

    async def let_pass(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            await self.asleep()

    async def go_to(self, moment: float) -> None:
        """Time passes in steps that no lease notices."""
        while (left := moment - self.clock.now()) > 0:
            self.clock.advance(min(left, 1.5))
            await self.asleep()


RULES = Rules()


@asynccontextmanager
async def a_world(
    directory: Path, start: float | None = None, *, retention_seconds: float = 604_800
) -> AsyncGenerator[World, None]:
    world = World(directory, start)
    await world.store.open(StoreOptions(block_seconds=0.05, retention_seconds=retention_seconds))
    await world.store.catalogue.publish([REPORT])
    yield world
    await world.store.close()


@asynccontextmanager
async def scheduling(world: World, toml: str = EVERY_TEN_SECONDS) -> AsyncGenerator[None, None]:
    async with running(world.scheduler(toml)):
        await world.asleep()
        yield
