"""Each schedule makes its job once per due time, whoever is alive then."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import (
    CatalogueEntry,
    Created,
    IdempotencyKey,
    Lease,
    Slot,
    StoreFull,
    StoreOptions,
    StoreUnavailable,
)
from avtomatika_common.clock import ManualClock
from avtomatika_common.lifecycle import StartupError, running
from avtomatika_core.job import Client, Job, JobStatus
from avtomatika_scheduler import InvalidSchedules, SchedulerService, Settings
from tests.support import until

REPORT = CatalogueEntry(
    name="report", group="blue", start_state="begin", api_endpoint=None, api_version=None, dot=""
)
EVERY_TEN_SECONDS = '[tick]\nblueprint = "report"\ninterval_seconds = 10\n'


class World:
    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.store = MemoryStorage(self.clock)
        self.path = directory / "schedules.toml"

    def scheduler(self, toml: str, *, must_know_blueprints: bool = False) -> SchedulerService:
        self.path.write_text(toml)
        settings = Settings(
            schedules_path=str(self.path), must_know_blueprints=must_know_blueprints
        )
        return SchedulerService(settings, self.store)

    async def jobs(self) -> int:
        return (await self.store.jobs.count_by_status()).get(JobStatus.PENDING, 0)

    async def has_jobs(self, count: int, *, step: float = 0.0) -> None:
        """Wait until there are so many; with `step`, time passes meanwhile."""

        async def are_there() -> bool:
            self.clock.advance(step)
            return await self.jobs() >= count

        await until(are_there)
        assert await self.jobs() == count

    async def asleep(self) -> None:
        """It renews its lease and waits for the next run."""
        await until(lambda: self.clock.sleepers == 2)

    async def let_pass(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            await self.asleep()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World, None]:
    world = World(tmp_path)
    await world.store.open(StoreOptions(block_seconds=0.05))
    await world.store.catalogue.publish([REPORT])
    yield world
    await world.store.close()


@asynccontextmanager
async def scheduling(world: World, toml: str = EVERY_TEN_SECONDS) -> AsyncGenerator[None, None]:
    async with running(world.scheduler(toml)):
        await world.asleep()
        yield


async def test_a_schedule_runs_at_once_and_then_when_its_interval_is_over(world: World) -> None:
    async with scheduling(world):
        await world.has_jobs(1)
        await world.let_pass(9)
        assert await world.jobs() == 1
        await world.let_pass(1)
        await world.has_jobs(2)
        await world.let_pass(25)

        await world.has_jobs(4)


async def test_a_scheduled_job_is_nobodys_and_says_where_it_comes_from(world: World) -> None:
    toml = EVERY_TEN_SECONDS + "dispatch_timeout = 5\nresult_timeout = 7\ninput_data = {a = [1]}\n"
    async with scheduling(world, toml):
        await world.has_jobs(1)
        (delivery,) = await world.store.inbox.read("blue", "executor", 9)
        stored = await world.store.jobs.load(delivery.job_id)

    assert stored is not None
    origin = stored.job.origin
    assert origin.client == Client(
        name=None,
        plan="system",
        token="internal-scheduler",
        params={"source": "scheduler:tick"},
    )
    assert (origin.blueprint, origin.group, origin.start_state) == ("report", "blue", "begin")
    assert (origin.dispatch_timeout, origin.result_timeout) == (5, 7)
    assert origin.initial_data == {"a": [1]}
    assert origin.created_at == world.clock.now()


async def test_two_schedulers_make_each_job_once_and_one_goes_on_alone(world: World) -> None:
    async with running(world.scheduler(EVERY_TEN_SECONDS)):
        async with running(world.scheduler(EVERY_TEN_SECONDS)):
            await until(lambda: world.clock.sleepers == 3)
            for _ in range(30):
                world.clock.advance(1)
                await until(lambda: world.clock.sleepers == 3)
            await world.has_jobs(4)
        await world.asleep()
        await world.let_pass(10)

        await world.has_jobs(5)


async def test_runs_missed_while_nothing_ran_are_made_up_once(world: World) -> None:  # R73
    async with scheduling(world):
        await world.has_jobs(1)
    world.clock.advance(57)
    async with scheduling(world):
        await world.has_jobs(2)
        await world.let_pass(2)
        assert await world.jobs() == 2
        await world.let_pass(1)

        await world.has_jobs(3)


@pytest.mark.parametrize("lateness", [0, 2])
async def test_a_crash_after_the_job_was_made_makes_no_second_one(
    world: World, lateness: int
) -> None:
    end_slot, crashes = world.store.schedules.end_slot, 2

    async def crashing(name: str, lease: Lease, slot: Slot) -> None:
        nonlocal crashes
        crashes -= 1
        if crashes >= 0:
            raise StoreUnavailable("killed")
        await end_slot(name, lease, slot)

    world.store.schedules.end_slot = crashing
    async with running(world.scheduler(EVERY_TEN_SECONDS)):
        await until(lambda: crashes == 1)
    world.clock.advance(lateness)
    async with running(world.scheduler(EVERY_TEN_SECONDS)):
        await until(lambda: crashes == 0)
    async with scheduling(world):
        assert crashes == -1
        assert await world.jobs() == 1

        await world.let_pass(10)

        await world.has_jobs(2)


async def test_a_job_that_could_not_be_made_does_not_count_as_run(world: World) -> None:  # R73
    create, refusals = world.store.jobs.create, 3

    async def refusing(job: Job, *, idempotency: IdempotencyKey | None = None) -> Created:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise StoreFull if refusals else StoreUnavailable
        return await create(job, idempotency=idempotency)

    world.store.jobs.create = refusing
    async with running(world.scheduler(EVERY_TEN_SECONDS)):
        await world.has_jobs(1, step=0.2)

    assert (await world.store.schedules.slot("tick")).last_job_id is not None


async def test_a_full_store_holds_up_no_other_schedule(world: World) -> None:
    create = world.store.jobs.create

    async def refusing(job: Job, *, idempotency: IdempotencyKey | None = None) -> Created:
        if job.origin.client.params["source"] == "scheduler:big":
            raise StoreFull
        return await create(job, idempotency=idempotency)

    world.store.jobs.create = refusing
    async with scheduling(world, EVERY_TEN_SECONDS.replace("tick", "big") + EVERY_TEN_SECONDS):
        await world.has_jobs(1)


async def test_a_disabled_schedule_makes_nothing(world: World) -> None:
    disabled = EVERY_TEN_SECONDS.replace("tick", "off") + "enabled = false\n"
    async with scheduling(world, EVERY_TEN_SECONDS + disabled):
        await world.has_jobs(1)

        assert (await world.store.schedules.slot("off")).last_run is None


async def test_without_a_file_it_idles_until_it_is_stopped(world: World) -> None:
    async with running(SchedulerService(Settings(), world.store)):
        assert world.clock.sleepers == 0

    assert await world.jobs() == 0


async def test_a_schedule_waits_for_the_executor_that_brings_its_blueprint(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.store.flush_all()
    async with running(world.scheduler(EVERY_TEN_SECONDS)):
        await world.asleep()
        assert await world.jobs() == 0
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert vars(line)["blueprint"] == "report"

        await world.store.catalogue.publish([REPORT])

        await world.has_jobs(1)


async def test_where_all_blueprints_are_known_an_unknown_one_stops_the_start(
    world: World,
) -> None:
    toml = EVERY_TEN_SECONDS.replace("report", "missing")
    with pytest.raises(StartupError, match=r"Schedule 'tick' names the blueprint 'missing'"):
        async with running(world.scheduler(toml, must_know_blueprints=True)):
            pass

    async with running(world.scheduler(EVERY_TEN_SECONDS, must_know_blueprints=True)):
        await world.has_jobs(1)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[tick]\ninterval_seconds = 10", "Schedule 'tick' is missing a 'blueprint' name."),
        (EVERY_TEN_SECONDS + "cron = '* * * * *'", "Unknown key 'cron' in schedule 'tick'."),
        ("[tick", "Invalid schedule configuration file: "),
    ],
)
async def test_a_wrong_file_stops_the_start_and_is_named(
    world: World, toml: str, message: str
) -> None:
    with pytest.raises(ValueError) as refusal:
        async with running(world.scheduler(toml)):
            pass

    assert isinstance(refusal.value, InvalidSchedules)
    assert message in str(refusal.value)
    assert str(world.path) in str(refusal.value)


async def test_a_missing_file_stops_the_start(world: World) -> None:
    settings = Settings(schedules_path=str(world.path))
    with pytest.raises(
        StartupError, match=r"Invalid schedule configuration file: .*schedules\.toml"
    ):
        async with running(SchedulerService(settings, world.store)):
            pass
