"""Which time of a schedule a job is made for now, and which never."""

import datetime as dt
import math
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from avtomatika_core.job import JobId
from avtomatika_core.schedule import (
    PUNCTUAL_SECONDS,
    Every,
    Misfire,
    Schedule,
    Standing,
    begin,
    choose,
    end,
    laid_off,
    next_moment,
    queue,
    skip,
    upcoming,
)
from avtomatika_core.wall_times import Times

EVERY_MINUTE = Schedule(name="s", blueprint="b", when=Every(seconds=60))
NIGHTLY = Schedule(
    name="s",
    blueprint="b",
    when=Times(timezone="Europe/Berlin", hours=(2,), minutes=(30,)),
)
HALF_HOURLY = Schedule(name="s", blueprint="b", when=Times(hours=tuple(range(24)), minutes=(0, 30)))
JOB = JobId("j")
NEW = Standing()


def berlin(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp()


def utc(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


def known(schedule: Schedule, now: float) -> Standing:
    """Looked at once, with nothing done."""
    return choose(schedule, NEW, now).standing


def run(schedule: Schedule, standing: Standing, now: float, **more: Any) -> Standing:
    """A job is made for what is due, which something must be."""
    choice = choose(schedule, standing, now, **more)
    assert choice.time is not None
    return end(begin(choice.standing, choice.time), JOB)


def fired(
    schedule: Schedule, standing: Standing, now: float, **more: Any
) -> tuple[list[float], Standing]:
    """All that jobs are made for now, one after the other."""
    times: list[float] = []
    while (choice := choose(schedule, standing, now, **more)).time is not None:
        times.append(choice.time)
        standing = end(begin(choice.standing, choice.time), JOB)
    return times, choice.standing


# --- intervals


def test_an_interval_that_never_ran_runs_at_once_and_then_when_it_is_over() -> None:
    first = run(EVERY_MINUTE, NEW, 1000)

    assert (first.anchor, first.last_run, first.last_job_id) == (1000, 1000, JOB)
    assert choose(EVERY_MINUTE, first, 1059.9).time is None
    assert next_moment(EVERY_MINUTE, first, 1059.9) == 1060
    assert choose(EVERY_MINUTE, first, 1060.2).time == 1060


@pytest.mark.parametrize("fraction", [0.0004, 0.0006, 0.9999])
def test_a_first_run_between_two_milliseconds_is_no_second_time(fraction: float) -> None:
    now = 1000 + fraction
    first = run(EVERY_MINUTE, NEW, now)

    assert choose(EVERY_MINUTE, first, now + 30).time is None
    assert next_moment(EVERY_MINUTE, first, now) == pytest.approx(now + 60, abs=0.001)


def test_late_runs_do_not_shift_the_beat() -> None:
    standing = run(EVERY_MINUTE, NEW, 1000)
    for _ in range(5):
        standing = run(EVERY_MINUTE, standing, next_moment(EVERY_MINUTE, standing, 0) + 7)

    assert standing.last_run == 1000 + 5 * 60


def test_missed_beats_are_made_up_once() -> None:
    """R73."""
    times, standing = fired(EVERY_MINUTE, run(EVERY_MINUTE, NEW, 1000), 1000 + 60 * 100 + 7)

    assert times == [1000 + 60 * 100]
    assert next_moment(EVERY_MINUTE, standing, 7007) == 1000 + 60 * 101


def test_an_interval_that_was_changed_counts_from_its_last_run() -> None:
    standing = run(EVERY_MINUTE, run(EVERY_MINUTE, NEW, 1000), 1060)
    hourly = replace(EVERY_MINUTE, when=Every(seconds=3600))
    quick = replace(EVERY_MINUTE, when=Every(seconds=10), misfire=Misfire.CATCH_UP)

    assert choose(hourly, standing, 1061).time is None
    assert choose(hourly, standing, 4660).time == 4660
    assert fired(quick, standing, 1099)[0] == [1090]


@given(
    seconds=st.floats(1, 1e6),
    first=st.floats(1e9, 2e9),
    lateness=st.lists(st.floats(0, 1e7), min_size=1, max_size=6),
)
def test_every_beat_is_on_the_first_run_and_comes_once(
    seconds: float, first: float, lateness: list[float]
) -> None:
    schedule = replace(EVERY_MINUTE, when=Every(seconds=seconds))
    standing, now, times = run(schedule, NEW, first), first, [first]

    for late in lateness:
        now = next_moment(schedule, standing, now) + late
        some, standing = fired(schedule, standing, now)
        assert some
        assert all(now - time <= PUNCTUAL_SECONDS for time in some[:-1])
        times += some

    beats = [round((time - first) / seconds) for time in times]
    assert all(one < other for one, other in pairwise(beats))
    for time, beat in zip(times, beats, strict=True):
        assert time == pytest.approx(first + beat * seconds, abs=0.002)
    assert times[-1] <= now < times[-1] + seconds + 0.002


# --- the calendar


def test_a_schedule_that_is_new_waits_for_its_next_time() -> None:
    now = berlin("2026-05-01T02:35")

    assert choose(NIGHTLY, NEW, now).time is None
    assert next_moment(NIGHTLY, known(NIGHTLY, now), now) == berlin("2026-05-02T02:30")


def test_the_minute_in_which_a_schedule_is_new_counts() -> None:
    assert choose(NIGHTLY, NEW, berlin("2026-05-01T02:30:59")).time == berlin("2026-05-01T02:30")


def test_a_time_that_was_missed_is_made_up_once_on_the_same_day() -> None:
    """R73."""
    standing = known(NIGHTLY, berlin("2026-05-01T02:29"))

    times, after = fired(NIGHTLY, standing, berlin("2026-05-01T02:35"))

    assert times == [berlin("2026-05-01T02:30")]
    assert fired(NIGHTLY, after, berlin("2026-05-01T23:59"))[0] == []
    assert fired(NIGHTLY, standing, berlin("2026-05-01T23:59"))[0] == times
    assert fired(NIGHTLY, standing, berlin("2026-05-02T00:10"))[0] == []


def test_of_many_missed_times_the_last_one_is_made_up() -> None:
    standing = known(NIGHTLY, berlin("2026-05-01T02:29"))

    assert fired(NIGHTLY, standing, berlin("2026-05-09T12:00"))[0] == [berlin("2026-05-09T02:30")]


def test_a_time_just_before_midnight_is_not_lost_to_the_change_of_schedulers() -> None:
    late = replace(NIGHTLY, when=Times(hours=(23,), minutes=(59,)))
    standing = known(late, utc("2026-05-01T12:00"))

    assert choose(late, standing, utc("2026-05-02T00:00:09") - 60).time is not None
    assert choose(late, standing, utc("2026-05-02T00:00:05")).time is None


def test_times_that_were_changed_are_not_made_up_for_what_they_were_not() -> None:
    standing = run(NIGHTLY, known(NIGHTLY, berlin("2026-05-01T02:00")), berlin("2026-05-01T02:30"))
    at_noon = replace(NIGHTLY, when=Times(timezone="Europe/Berlin", hours=(12,), minutes=(0,)))

    assert choose(at_noon, standing, berlin("2026-05-01T13:00")).time is None
    assert choose(at_noon, standing, berlin("2026-05-01T12:00:30")).time is not None


# --- misfire


def test_skip_makes_up_for_nothing_but_what_is_seconds_late() -> None:
    skipping = replace(HALF_HOURLY, misfire=Misfire.SKIP)
    standing = Standing(when=skipping.when, settled=utc("2026-05-01T10:00"))

    assert fired(skipping, standing, utc("2026-05-01T10:30:09"))[0] == [utc("2026-05-01T10:30")]
    times, standing = fired(skipping, standing, utc("2026-05-01T10:31"))
    assert times == []
    assert fired(skipping, standing, utc("2026-05-01T11:00"))[0] == [utc("2026-05-01T11:00")]


@pytest.mark.parametrize("misfire", [Misfire.FIRE_ONCE, Misfire.SKIP])
def test_of_a_short_interval_none_is_left_out_that_is_but_seconds_late(misfire: Misfire) -> None:
    """As when its leader died and another one takes over."""
    often = replace(EVERY_MINUTE, when=Every(seconds=2), misfire=misfire)
    standing = run(often, NEW, 1000)

    assert fired(often, standing, 1007)[0] == [1002, 1004, 1006]
    assert fired(often, standing, 1101)[0] == [1092, 1094, 1096, 1098, 1100]


def test_catch_up_makes_up_for_all_in_order_up_to_its_limit() -> None:
    catching = replace(HALF_HOURLY, misfire=Misfire.CATCH_UP, catch_up_limit=3)
    standing = Standing(when=catching.when, settled=utc("2026-05-01T10:00"))

    two, _ = fired(catching, standing, utc("2026-05-01T11:20"))
    three, after = fired(catching, standing, utc("2026-05-03T00:10"))

    assert two == [utc("2026-05-01T10:30"), utc("2026-05-01T11:00")]
    assert three == [utc("2026-05-02T23:00"), utc("2026-05-02T23:30"), utc("2026-05-03T00:00")]
    assert choose(catching, after, utc("2026-05-03T00:29")).time is None


@given(
    misfire=st.sampled_from(Misfire),
    limit=st.integers(1, 5),
    jitter=st.sampled_from([0.0, 0.5, 20.0, 5000.0]),
    schedule=st.sampled_from([NIGHTLY, HALF_HOURLY, EVERY_MINUTE]),
    steps=st.lists(st.one_of(st.floats(0, 90), st.floats(0, 200_000)), max_size=12),
)
@settings(deadline=None)
def test_however_often_one_looks_no_time_is_taken_twice_or_out_of_order(
    misfire: Misfire, limit: int, jitter: float, schedule: Schedule, steps: list[float]
) -> None:
    schedule = replace(schedule, misfire=misfire, catch_up_limit=limit, jitter_seconds=jitter)
    now, standing = utc("2026-03-28T12:00"), NEW
    taken: list[float] = []

    for step in steps:
        now += step
        times, standing = fired(schedule, standing, now)
        taken += times
        # Jitter may bring two times so close together that both are but seconds late.
        assert len(times) <= (limit if misfire is Misfire.CATCH_UP else 2)
        assert next_moment(schedule, standing, now) > now

    assert taken == sorted(set(taken))
    assert all(time <= now for time in taken)


@given(jitter=st.floats(0, 4000), schedule=st.sampled_from([NIGHTLY, HALF_HOURLY, EVERY_MINUTE]))
@settings(deadline=None, max_examples=40)
def test_who_looks_in_time_takes_every_time(jitter: float, schedule: Schedule) -> None:
    schedule = replace(schedule, jitter_seconds=jitter)
    now = utc("2026-03-28T12:01:01")
    taken, standing = fired(schedule, NEW, now)

    plain = replace(schedule, jitter_seconds=0.0)
    expected = [*taken, *upcoming(plain, standing, now, 20)]
    for _ in range(20):
        now = next_moment(schedule, standing, now)
        times, standing = fired(schedule, standing, now)
        taken += times

    assert taken == expected[: len(taken)]
    assert len(taken) >= 20


# --- jitter, start and end


def test_jitter_is_the_same_for_everybody_and_ends_before_the_next_time() -> None:
    jittery = replace(HALF_HOURLY, jitter_seconds=600.0)
    now = utc("2026-05-01T10:00:01")
    moments = upcoming(jittery, known(jittery, now), now, 50)
    late = [moment % 1800 for moment in moments]

    assert moments == upcoming(jittery, known(jittery, now), now, 50)
    assert all(0 <= seconds < 600 for seconds in late)
    assert len(set(late)) > 40
    wild = upcoming(replace(jittery, jitter_seconds=1e6), known(jittery, now), now, 50)
    assert [moment // 1800 for moment in wild] == [moment // 1800 for moment in moments]


def test_a_time_is_taken_when_its_jitter_is_over() -> None:
    jittery = replace(HALF_HOURLY, jitter_seconds=600.0)
    now = utc("2026-05-01T10:00:01")
    moment = next_moment(jittery, known(jittery, now), now)

    assert choose(jittery, known(jittery, now), moment - 0.001).time is None
    assert choose(jittery, known(jittery, now), moment).time == moment // 1800 * 1800


def test_an_interval_starts_when_it_may_and_ends_when_it_must() -> None:
    schedule = replace(EVERY_MINUTE, starts_at=2000.0, ends_at=2120.0)

    assert choose(schedule, NEW, 1000).time is None
    assert next_moment(schedule, known(schedule, 1000), 1000) == 2000
    assert upcoming(schedule, NEW, 1000, 5) == [2000, 2060, 2120]
    times: list[float] = []
    standing, now = known(schedule, 1000), 1000.0
    while (now := next_moment(schedule, standing, now)) < math.inf:
        made, standing = fired(schedule, standing, now)
        times += made
    assert times == [2000, 2060, 2120]
    assert choose(schedule, NEW, 3000).time is None
    assert next_moment(schedule, known(schedule, 3000), 3000) == math.inf


def test_times_outside_of_start_and_end_are_none() -> None:
    schedule = replace(
        HALF_HOURLY, starts_at=utc("2026-05-01T10:30"), ends_at=utc("2026-05-01T11:10")
    )
    now = utc("2026-05-01T08:00")
    standing = known(schedule, now)

    assert upcoming(schedule, NEW, now, 5) == [utc("2026-05-01T10:30"), utc("2026-05-01T11:00")]
    assert fired(schedule, standing, utc("2026-05-01T10:29"))[0] == []
    assert fired(schedule, standing, utc("2026-05-01T10:31"))[0] == [utc("2026-05-01T10:30")]
    assert fired(schedule, standing, utc("2026-05-01T20:00"))[0] == [utc("2026-05-01T11:00")]


# --- pauses, queues, skips


def test_what_came_during_a_pause_is_not_made_up() -> None:
    standing = run(EVERY_MINUTE, NEW, 1000)

    assert choose(EVERY_MINUTE, standing, 1150, resumed_at=1150).time is None
    assert choose(EVERY_MINUTE, standing, 1180, resumed_at=1150).time == 1180
    assert upcoming(EVERY_MINUTE, standing, 1150, 2, resumed_at=1150) == [1180, 1240]
    assert choose(EVERY_MINUTE, NEW, 1150, resumed_at=1150).time == 1150


def test_a_queued_time_stays_the_choice_until_it_is_begun_or_a_pause_takes_it() -> None:
    waiting = queue(run(EVERY_MINUTE, NEW, 1000), 1060)

    assert choose(EVERY_MINUTE, waiting, 9000).time == 1060
    assert choose(EVERY_MINUTE, waiting, 9000, resumed_at=1070).time == 8980
    begun = begin(waiting, 1060)
    assert (begun.queued, begun.begun) == (None, 1060)


def test_a_skipped_time_is_over_and_was_no_run() -> None:
    standing = skip(run(EVERY_MINUTE, NEW, 1000), 1060)

    assert choose(EVERY_MINUTE, standing, 1100).time is None
    assert standing.last_run == 1000


def test_while_it_is_switched_off_nothing_is_missed() -> None:
    off = laid_off(queue(known(HALF_HOURLY, utc("2026-05-01T10:00:30")), utc("2026-05-01T10:30")))

    assert choose(HALF_HOURLY, off, utc("2026-05-01T15:10")).time is None


def test_a_schedule_that_is_switched_off_has_no_next_time() -> None:
    assert upcoming(replace(EVERY_MINUTE, is_enabled=False), NEW, 1000, 5) == []
