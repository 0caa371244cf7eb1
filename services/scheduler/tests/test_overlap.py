"""What becomes of a time that comes while the job before has not ended."""

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest
from services.scheduler.tests.world import EVERY_TEN_SECONDS, World, scheduling

from avtomatika_core.job import JobId
from avtomatika_core.schedule import Choice, Schedule, choose
from avtomatika_scheduler import service


async def test_as_a_rule_jobs_may_overlap(world: World) -> None:
    async with scheduling(world):
        await world.let_pass(20)

        await world.has_jobs(3)


async def test_skip_leaves_out_what_comes_too_early(world: World) -> None:
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "skip"\n'):
        await world.has_jobs(1)
        await world.let_pass(25)
        (first,) = await world.made()

        await world.end(first)
        await world.let_pass(4)
        assert len(await world.made()) == 1
        await world.let_pass(1)

        assert len(await world.made()) == 2


async def test_a_time_that_was_skipped_is_not_made_up_by_the_next_leader(world: World) -> None:
    toml = EVERY_TEN_SECONDS + 'overlap = "skip"\n'
    async with scheduling(world, toml):
        await world.has_jobs(1)
        await world.let_pass(11)
        (first,) = await world.made()
    await world.end(first)

    async with scheduling(world, toml):
        await world.let_pass(5)
        assert len(await world.made()) == 1


async def test_queue_makes_the_next_job_when_the_one_before_has_ended(world: World) -> None:
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "queue"\n'):
        await world.has_jobs(1)
        await world.let_pass(15)
        (first,) = await world.made()

        await world.end(first)
        await world.let_pass(1)

        assert len(await world.made()) == 2
        assert (await world.entry()).standing.last_run == world.clock.now() - 6


async def test_what_waits_is_remembered_by_the_next_leader(world: World) -> None:
    toml = EVERY_TEN_SECONDS + 'overlap = "queue"\nmisfire = "skip"\n'
    start = world.clock.now()
    async with scheduling(world, toml):
        await world.has_jobs(1)
        await world.let_pass(12)
        (first,) = await world.made()
    world.clock.advance(600)

    async with scheduling(world, toml):
        await world.let_pass(2)
        assert len(await world.made()) == 1
        await world.end(first)
        await world.let_pass(1)

        assert len(await world.made()) == 2
        assert (await world.entry()).standing.last_run == start + 10


async def test_a_pause_takes_what_waits(world: World) -> None:
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "queue"\n'):
        await world.has_jobs(1)
        await world.let_pass(12)
        (first,) = await world.made()
        await world.store.schedules.set_paused("tick", is_paused=True, at=world.clock.now())
        await world.end(first)
        await world.let_pass(3)
        assert len(await world.made()) == 1

        await world.store.schedules.set_paused("tick", is_paused=False, at=world.clock.now())
        await world.let_pass(4)
        assert len(await world.made()) == 1
        await world.let_pass(1)

        assert len(await world.made()) == 2


async def test_cancel_previous_ends_the_job_before(world: World) -> None:
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "cancel_previous"\n'):
        await world.has_jobs(1)
        await world.let_pass(20)
        made = await world.made()

    assert [job.cancelled for job in made] == [True, True, False]


async def test_the_first_job_of_an_interval_is_not_cancelled_for_its_own_time(
    world: World,
) -> None:
    world.clock.advance(0.0006)  # times are kept to the millisecond
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "cancel_previous"\n'):
        await world.has_jobs(1)
        await world.let_pass(5)
        made = await world.made()

    assert [job.cancelled for job in made] == [False]


async def test_a_job_somebody_made_out_of_its_time_counts_as_one_before(world: World) -> None:
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "skip"\n'):
        await world.has_jobs(1)
        (first,) = await world.made()
        asked = first
        await world.store.schedules.note_asked("tick", JobId(asked.id), world.clock.now())
        await world.let_pass(10)
        assert len(await world.made()) == 1
        await world.end(first)
        await world.let_pass(10)

        assert len(await world.made()) == 2


async def test_what_waits_is_asked_about_together_once_a_second(world: World) -> None:
    asked: list[int] = []
    not_ended = world.store.jobs.not_ended

    async def counted(job_ids: Collection[JobId]) -> set[JobId]:
        asked.append(len(job_ids))
        return await not_ended(job_ids)

    toml = "".join(
        f'[tick-{number}]\nblueprint = "report"\ninterval_seconds = 10\noverlap = "queue"\n'
        for number in range(50)
    )
    async with scheduling(world, toml):
        await world.has_jobs(50)
        await world.let_pass(12)
        world.store.jobs.not_ended = counted  # type: ignore[method-assign]
        await world.let_pass(5)
        assert asked == [50] * 5

        (some, *_) = await world.made()
        await world.end(some)
        await world.let_pass(1)

        assert len(await world.made()) == 51


async def test_only_what_is_due_is_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: Counter[str] = Counter()

    def counted(schedule: Schedule, *about: Any) -> Choice:
        looked[schedule.name] += 1
        return choose(schedule, *about)

    monkeypatch.setattr(service, "choose", counted)
    yearly = '[yearly]\nblueprint = "report"\ncron = "0 0 1 7 *"\n'
    async with scheduling(world, EVERY_TEN_SECONDS + 'overlap = "queue"\n' + yearly):
        await world.has_jobs(1)
        await world.let_pass(12)
        before = looked["yearly"]
        await world.let_pass(30)

    assert looked["yearly"] == before
