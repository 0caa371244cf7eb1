"""When times of a place come, held against a clock that is watched minute by minute."""

import calendar
import datetime as dt
from collections.abc import Iterator
from functools import cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from avtomatika_core.schedule_entries import parse_schedules
from avtomatika_core.wall_times import Times, never_come, times_after, times_until

MINUTE, HOUR, DAY = 60, 3600, 86_400
ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/St_Johns",
    "America/Sao_Paulo", "America/Santiago", "America/Havana", "Atlantic/Azores", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Beirut", "Asia/Tehran", "Asia/Kathmandu", "Asia/Gaza",
    "Antarctica/Troll", "Antarctica/Casey", "Australia/Lord_Howe", "Pacific/Apia",
    "Pacific/Chatham", "Pacific/Kwajalein", "Pacific/Easter",
)  # fmt: skip


def at(zone: str, text: str) -> float:
    """The moment of a local time that comes once, or of one with an offset."""
    moment = dt.datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp()


def shown(zone: str, moments: Iterator[float] | list[float], count: int = 3) -> list[str]:
    return [
        dt.datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat(timespec="minutes")
        for moment in islice(moments, count)
    ]


def cron(expression: str, zone: str = "UTC") -> Times:
    (schedule,) = parse_schedules({"s": {"blueprint": "b", "cron": expression}}, zone)
    assert isinstance(schedule.when, Times)
    return schedule.when


BERLIN = Times(timezone="Europe/Berlin", hours=(2,), minutes=(30,))


def test_a_time_in_the_gap_comes_at_its_end() -> None:
    """R73."""
    found = times_after(BERLIN, at("Europe/Berlin", "2026-03-28T12:00"))

    assert shown("Europe/Berlin", found, 2) == ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"]


def test_all_times_in_the_gap_and_the_one_at_its_end_come_as_one() -> None:
    times = replace(BERLIN, hours=(2, 3), minutes=(0, 20, 40))

    found = times_after(times, at("Europe/Berlin", "2026-03-28T12:00"))

    assert shown("Europe/Berlin", found, 3) == [
        "2026-03-29T03:00+02:00",
        "2026-03-29T03:20+02:00",
        "2026-03-29T03:40+02:00",
    ]


def test_a_time_that_comes_twice_counts_the_first_time() -> None:
    """R73."""
    found = times_after(BERLIN, at("Europe/Berlin", "2026-10-24T12:00"))

    assert shown("Europe/Berlin", found, 2) == ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"]


def test_a_beat_goes_on_while_the_clock_is_changed() -> None:
    hourly = cron("15 * * * *", "Europe/Berlin")

    spring = times_after(hourly, at("Europe/Berlin", "2026-03-29T00:30"))
    autumn = times_after(hourly, at("Europe/Berlin", "2026-10-25T00:30"))

    assert shown("Europe/Berlin", spring, 2) == ["2026-03-29T01:15+01:00", "2026-03-29T03:15+02:00"]
    assert shown("Europe/Berlin", autumn, 4) == [
        "2026-10-25T01:15+02:00",
        "2026-10-25T02:15+02:00",
        "2026-10-25T02:15+01:00",
        "2026-10-25T03:15+01:00",
    ]


def test_a_day_that_a_place_left_out_comes_with_the_next_one() -> None:
    found = times_after(
        Times(timezone="Pacific/Apia", hours=(2,), minutes=(30,)),
        at("Pacific/Apia", "2011-12-29T12:00"),
    )

    assert shown("Pacific/Apia", found, 2) == ["2011-12-31T00:00+14:00", "2011-12-31T02:30+14:00"]


@pytest.mark.parametrize(
    ("expression", "first", "days"),
    [
        ("0 0 31 * *", "2026-01-01", ["2026-01-31", "2026-03-31", "2026-05-31"]),
        ("0 0 L * *", "2027-12-31T01:00", ["2028-01-31", "2028-02-29", "2028-03-31"]),
        ("0 0 29 2 *", "2026-01-01", ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ("0 0 29 2 *", "2096-03-01", ["2104-02-29", "2108-02-29", "2112-02-29"]),
        ("0 0 13 * fri", "2026-01-01", ["2026-01-02", "2026-01-09", "2026-01-13"]),
        ("0 0 */13 * fri", "2026-01-01", ["2026-02-27", "2026-03-27", "2026-05-01"]),
    ],
)
def test_dates_come_in_the_months_that_have_them(
    expression: str, first: str, days: list[str]
) -> None:
    found = times_after(cron(expression), at("UTC", first))

    assert [moment[:10] for moment in shown("UTC", found)] == days


def test_a_day_that_no_year_has_never_comes() -> None:
    february_30 = Times(hours=(0,), minutes=(0,), dates=(30, 31), months=(2,))

    assert never_come(february_30)
    assert next(times_after(february_30, 0.0), None) is None
    assert not never_come(replace(february_30, weekdays=(0,), either_day=True))
    assert not never_come(replace(february_30, dates=(29, 30), weekdays=(0,)))


# --- the model: a clock on the wall, and somebody who looks at it each minute


def rings(times: Times, wall: dt.datetime) -> bool:
    days_in_month = calendar.monthrange(wall.year, wall.month)[1]
    dates = {days_in_month if date == -1 else date for date in times.dates}
    day_rings = [wall.day in dates, calendar.weekday(*wall.timetuple()[:3]) in times.weekdays]
    return (
        wall.minute in times.minutes
        and wall.hour in times.hours
        and wall.month in times.months
        and (any(day_rings) if times.either_day else all(day_rings))
    )


def watched(times: Times, start: int, minutes: int) -> list[float]:
    """What is heard from `start` on, when no clock is being changed."""
    zone = ZoneInfo(times.timezone)
    one_minute = dt.timedelta(minutes=1)
    furthest = dt.datetime.fromtimestamp(start - MINUTE, zone).replace(tzinfo=None, fold=0)
    heard: list[float] = []
    for moment in range(start, start + minutes * MINUTE, MINUTE):
        wall = dt.datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0)
        if len(times.hours) == 24:
            is_heard = rings(times, wall)
        else:
            is_heard = False
            while furthest < wall:
                furthest += one_minute
                is_heard = is_heard or rings(times, furthest)
        if is_heard:
            heard.append(float(moment))
    return heard


@cache
def changes(zone: str) -> list[int]:
    """Days about which the clock was or will be changed, as Unix seconds of a midnight in UTC."""
    place, days = ZoneInfo(zone), range(3660 * DAY, 30_000 * DAY, DAY)
    offsets = {day: dt.datetime.fromtimestamp(day, place).utcoffset() for day in days}
    return [day for day in days if offsets[day] != offsets.get(day + DAY, offsets[day])]


def subsets(values: range, most: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    some = st.sets(st.sampled_from(list(values)), min_size=1, max_size=most)
    return st.one_of(some, st.just(set(values))).map(lambda found: tuple(sorted(found)))


@st.composite
def times_and_days(draw: st.DrawFn) -> tuple[Times, int]:
    """Some times, and a day near which most often the clock is changed."""
    zone = draw(st.sampled_from(ZONES))
    any_day = st.integers(3700, 29_000).map(lambda day: day * DAY)
    day = draw(st.one_of(st.sampled_from(changes(zone)), any_day) if changes(zone) else any_day)
    near_midnight = st.sampled_from([(0,), (23,), (1, 2, 3), (0, 1, 2, 3, 23)])
    times = Times(
        timezone=zone,
        minutes=draw(subsets(range(60))),
        hours=draw(st.one_of(subsets(range(24)), near_midnight)),
        months=draw(st.one_of(st.just(tuple(range(1, 13))), subsets(range(1, 13)))),
        dates=draw(st.one_of(st.just(tuple(range(1, 32))), subsets(range(-1, 32), 9))),
        weekdays=draw(subsets(range(7))),
        either_day=draw(st.booleans()),
    )
    return times, day


@given(times_and_days())
@settings(max_examples=100, deadline=None)
@example(
    (Times(timezone="America/St_Johns", hours=tuple(range(24)), minutes=(0, 1, 30)), 9432 * DAY)
)
@example((Times(timezone="America/St_Johns", hours=(0, 23), minutes=(0, 1, 30)), 9432 * DAY))
@example((Times(timezone="Antarctica/Troll", hours=(0, 1, 2, 3), minutes=(0, 59)), 19_295 * DAY))
def test_times_come_just_when_a_watched_clock_shows_them(drawn: tuple[Times, int]) -> None:
    times, day = drawn
    start, end = day - 4 * HOUR, day + DAY + 4 * HOUR

    expected = watched(times, start, 32 * 60)

    assert list(takewhile(lambda come: come < end, times_after(times, start - 1))) == expected
    back = takewhile(lambda come: come >= start, times_until(times, end - 1))
    assert list(back) == expected[::-1]


@given(times_and_days(), st.integers(0, 2 * DAY))
@settings(max_examples=60, deadline=None)
def test_what_came_before_and_what_comes_after_have_nothing_between(
    drawn: tuple[Times, int], later: int
) -> None:
    times, day = drawn
    before = next(times_until(times, day + later), None)
    after = next(times_after(times, day + later), None)

    if before is not None:
        assert before <= day + later
        assert next(times_after(times, before - 0.5)) == before
        assert next(times_after(times, before), None) == after
    if after is not None:
        assert after > day + later
        assert next(times_until(times, after)) == after


def field(values: range) -> st.SearchStrategy[str]:
    one = st.sampled_from(list(values)).map(str)
    span = st.tuples(one, one).map(lambda two: "-".join(sorted(two, key=int)))
    step = st.integers(1, 20).map(lambda number: f"*/{number}")
    return st.one_of(st.just("*"), step, st.lists(st.one_of(one, span), min_size=1).map(",".join))


@given(
    st.tuples(*map(field, (range(60), range(24), range(1, 29), range(1, 13), range(8)))),
    st.integers(0, 2_000_000_000),
)
@settings(max_examples=100, deadline=None)
def test_where_no_clock_is_changed_a_cron_expression_means_what_the_library_says(
    fields: tuple[str, ...], moment: int
) -> None:
    expression = " ".join(fields)
    theirs = CronSim(expression, dt.datetime.fromtimestamp(moment, dt.UTC))

    ours = list(islice(times_after(cron(expression), moment), 5))

    assert ours == [next(theirs).timestamp() for _ in range(5)]
