"""Each schedule makes its job once per due time, whoever is alive then."""

from pathlib import Path

import pytest
from msgspec.structs import replace
from services.scheduler.tests.world import (
    EVERY_TEN_SECONDS,
    NIGHTLY,
    REPORT,
    World,
    a_world,
    at,
    scheduling,
)

from avtomatika_common.backend.ports import (
    Created,
    IdempotencyKey,
    StoreFull,
    StoreUnavailable,
)
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError, running
from avtomatika_core.job import Client, Job
from avtomatika_core.wall_times import Times
from avtomatika_scheduler import InvalidSchedules, SchedulerService, Settings
from avtomatika_scheduler.service import read_schedules
from tests.support import until


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


async def test_a_nightly_job_is_made_up_once_after_a_stop_over_its_time(tmp_path: Path) -> None:
    """R73."""
    async with a_world(tmp_path, at("02:28")) as world:
        async with scheduling(world, NIGHTLY):
            await world.go_to(at("02:29"))
        world.clock.advance(6 * 60)

        async with scheduling(world, NIGHTLY):
            await world.has_jobs(1)
            await world.let_pass(5)
            assert await world.jobs() == 1

        (job,) = await world.made()
        assert job.origin.created_at == at("02:35")
        assert (await world.entry("nightly")).last_run == (at("02:30"), job.id)


async def test_the_default_time_zone_is_that_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "schedules.toml"
    path.write_text('[daily]\nblueprint = "report"\ndaily_at = "02:30"\n')
    settings = Settings.from_config(
        Config({"TZ": "Asia/Tokyo", "SCHEDULES_CONFIG_PATH": str(path)})
    )

    (schedule,) = read_schedules(settings.schedules_path, settings.timezone)

    assert schedule.when == Times(timezone="Asia/Tokyo", hours=(2,), minutes=(30,))


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


async def test_a_job_that_could_not_be_made_does_not_count_as_run(world: World) -> None:  # R73
    create, refusals = world.store.jobs.create, 3

    async def refusing(
        job: Job, *, idempotency: IdempotencyKey | None = None, once: bool = False
    ) -> Created:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise StoreFull if refusals else StoreUnavailable
        return await create(job, idempotency=idempotency, once=once)

    world.store.jobs.create = refusing
    async with running(world.scheduler(EVERY_TEN_SECONDS)):
        await world.has_jobs(1, step=0.2)

    assert (await world.entry()).standing.last_job_id is not None


async def test_a_full_store_holds_up_no_other_schedule(world: World) -> None:
    create = world.store.jobs.create

    async def refusing(
        job: Job, *, idempotency: IdempotencyKey | None = None, once: bool = False
    ) -> Created:
        if job.origin.client.params["source"] == "scheduler:big":
            raise StoreFull
        return await create(job, idempotency=idempotency, once=once)

    world.store.jobs.create = refusing
    async with scheduling(world, EVERY_TEN_SECONDS.replace("tick", "big") + EVERY_TEN_SECONDS):
        await world.has_jobs(1)


async def test_a_disabled_schedule_makes_nothing(world: World) -> None:
    disabled = EVERY_TEN_SECONDS.replace("tick", "off") + "enabled = false\n"
    async with scheduling(world, EVERY_TEN_SECONDS + disabled):
        await world.has_jobs(1)

        assert (await world.entry("off")).last_run == (None, None)


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
        (EVERY_TEN_SECONDS + "crown = '* * * * *'", "Unknown key 'crown' in schedule 'tick'; "),
        (
            NIGHTLY.replace("Europe/Berlin", "Mars"),
            "Schedule 'nightly': 'timezone' must be the name",
        ),
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


async def test_data_that_the_blueprint_does_not_take_makes_no_job_and_is_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    strict = replace(REPORT, input_schema={"type": "object", "required": ["depth"]})
    await world.store.catalogue.publish([strict])

    async with scheduling(world):
        await world.let_pass(30)
        assert await world.jobs() == 0
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "depth" in vars(line)["reason"]

        await world.store.catalogue.publish([REPORT])

        await world.has_jobs(1)
    await world.store.catalogue.publish([strict])
    with pytest.raises(StartupError, match=r"Schedule 'tick' has data that its blueprint"):
        async with running(world.scheduler(EVERY_TEN_SECONDS, must_know_blueprints=True)):
            pass


async def test_after_two_days_of_sleep_every_missed_run_was_made_in_order(
    world: World,
) -> None:
    toml = EVERY_TEN_SECONDS.replace("10", "3600") + 'misfire = "catch_up"\n'
    async with scheduling(world, toml):
        await world.has_jobs(1)
    world.clock.advance(50 * 3600 + 7)

    async with scheduling(world, toml):
        await world.has_jobs(51)

    assert len({job.id for job in await world.made()}) == 51
    assert (await world.entry()).standing.last_run == world.clock.now() - 7


async def test_schedules_are_published_for_others_to_see(world: World) -> None:
    async with scheduling(world, EVERY_TEN_SECONDS + NIGHTLY + "enabled = false\n"):
        _, entries = await world.store.schedules.entries()
        assert [entry.schedule.name for entry in entries] == ["nightly", "tick"]
    async with scheduling(world, "# none any more"):
        assert (await world.store.schedules.entries())[1] == []


# --- what people want


async def test_a_paused_schedule_makes_nothing_and_goes_on_with_its_next_time(
    world: World,
) -> None:
    async with scheduling(world):
        await world.has_jobs(1)
        await world.store.schedules.set_paused("tick", is_paused=True, at=world.clock.now())
        await world.let_pass(25)
        assert await world.jobs() == 1

        await world.store.schedules.set_paused("tick", is_paused=False, at=world.clock.now())
        await world.let_pass(4)
        assert await world.jobs() == 1
        await world.let_pass(1)

        await world.has_jobs(2)


async def test_a_pause_lasts_over_restarts(world: World) -> None:
    async with scheduling(world):
        await world.has_jobs(1)
        await world.store.schedules.set_paused("tick", is_paused=True, at=world.clock.now())
    world.clock.advance(100)

    async with scheduling(world):
        await world.let_pass(5)
        assert await world.jobs() == 1
        await world.store.schedules.set_paused("tick", is_paused=False, at=world.clock.now())
        await world.let_pass(5)

        await world.has_jobs(2)


async def test_what_came_while_a_schedule_was_switched_off_was_not_missed(world: World) -> None:
    toml = EVERY_TEN_SECONDS + 'misfire = "catch_up"\n'
    async with scheduling(world, toml):
        await world.has_jobs(1)
    async with scheduling(world, toml + "enabled = false\n"):
        await world.let_pass(45)

    async with scheduling(world, toml):
        await world.has_jobs(2)
        await world.let_pass(5)

        await world.has_jobs(3)
