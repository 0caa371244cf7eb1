"""Times by the calendar and the clock on the wall of some place, and the moments when they come.

A time that the clock skips when it is put forward comes at the end of the gap, once, whatever it
skips. A time that comes twice when it is put back counts the first time. But times of *every* hour
are a beat, not times of a day: they come in each hour that really passes, and in no other.
"""

import datetime as dt
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

LAST_DATE: Final = -1
"""The last day of a month, whichever that is."""
_EPOCH: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - seconds are counted from here on any wall
_LONGEST_PAUSE_DAYS: Final = 50 * 366
"""February 29 on a Monday may be 40 years away."""
_LAST_DAY: Final = dt.date.max.toordinal() - 3
_FIRST_DAY: Final = dt.date(1902, 1, 1).toordinal()
"""Time zones say nothing of what was before."""


class Times(msgspec.Struct, frozen=True, kw_only=True, tag="times"):
    """All times with one of these minutes, one of these hours, …; each in rising order."""

    timezone: str = "UTC"
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...] = tuple(range(1, 13))
    dates: tuple[int, ...] = tuple(range(1, 32))
    """From 1, or LAST_DATE; what a month does not have it leaves out."""
    weekdays: tuple[int, ...] = tuple(range(7))
    """Monday is 0."""
    either_day: bool = False
    """The date or the weekday is enough; else it must be both."""

    @property
    def is_beat(self) -> bool:
        return len(self.hours) == 24


def zone_of(name: str) -> dt.tzinfo:
    """UTC needs no time zone data on the machine. Raises KeyError, ValueError, OSError."""
    return dt.UTC if name == "UTC" else ZoneInfo(name)


def times_after(times: Times, moment: float) -> Iterator[float]:
    """The moments when they come, the first one after `moment` first."""
    last = moment
    for day in _days(times, _local_day(times, moment) - 1, 1):
        moments = _moments_of(times, day)
        for come in moments[bisect_right(moments, last) :]:
            yield come
            last = come


def times_until(times: Times, moment: float) -> Iterator[float]:
    """The moments when they came, the last one that is not after `moment` first."""
    last = math.inf
    for day in _days(times, _local_day(times, moment) + 1, -1):
        moments = _moments_of(times, day)
        end = min(bisect_right(moments, moment), bisect_left(moments, last))
        for come in reversed(moments[:end]):
            yield come
            last = come


def never_come(times: Times) -> bool:
    """Whether no year has such a day, like February 30."""
    leap_year = range(dt.date(2024, 1, 1).toordinal(), dt.date(2024, 12, 31).toordinal() + 1)
    if times.either_day:
        return False
    any_weekday = msgspec.structs.replace(times, weekdays=tuple(range(7)))
    return not any(_has(any_weekday, dt.date.fromordinal(day)) for day in leap_year)


def is_same_day(times: Times, one: float, other: float) -> bool:
    """Whether both moments are on one day of the place."""
    return _local_day(times, one) == _local_day(times, other)


def _local_day(times: Times, moment: float) -> int:
    return dt.datetime.fromtimestamp(moment, zone_of(times.timezone)).toordinal()


def _days(times: Times, first: int, step: int) -> Iterator[dt.date]:
    """The days that have such times, from this one on or back."""
    for ordinal in range(first, first + step * _LONGEST_PAUSE_DAYS, step):
        if not _FIRST_DAY <= ordinal <= _LAST_DAY:
            return
        day = dt.date.fromordinal(ordinal)
        if times.is_beat or _has(times, day):
            yield day


def _has(times: Times, day: dt.date) -> bool:
    if day.month not in times.months:
        return False
    is_date = day.day in times.dates or (
        LAST_DATE in times.dates and (day + dt.timedelta(days=1)).day == 1
    )
    is_weekday = day.weekday() in times.weekdays
    return is_date or is_weekday if times.either_day else is_date and is_weekday


@lru_cache(maxsize=256)
def _moments_of(times: Times, day: dt.date) -> tuple[float, ...]:
    """The moments from this day's midnight to the next one, in order."""
    zone = zone_of(times.timezone)
    midnight = dt.datetime.combine(day, dt.time())
    around = [zone.utcoffset(midnight + dt.timedelta(days=days)) for days in (-1, 0, 1, 2)]
    if any(one != other for one, other in pairwise(around)):
        return _moments_of_changed(times, day)
    if times.is_beat and not _has(times, day):
        return ()
    start = _seconds(midnight) - _offset(zone, midnight)
    return tuple(start + 3600.0 * hour + 60 * minute for hour, minute in _clock(times))


def _clock(times: Times) -> Iterator[tuple[int, int]]:
    return ((hour, minute) for hour in times.hours for minute in times.minutes)


def _moments_of_changed(times: Times, day: dt.date) -> tuple[float, ...]:
    """As `_moments_of`, where the clock is changed about then."""
    zone = zone_of(times.timezone)
    if not times.is_beat:
        walls = _walls(times, day)
        return tuple(sorted({float(_first_moment(zone, wall)) for wall in walls}))
    one_day = dt.timedelta(days=1)
    start, end = (
        _first_moment(zone, dt.datetime.combine(at, dt.time())) for at in (day, day + one_day)
    )
    found: set[float] = set()
    for near in (day - one_day, day, day + one_day):  # a clock may be put back over midnight
        if _has(times, near):
            for wall in _walls(times, near):
                found.update(moment for moment in _moments(zone, wall) if start <= moment < end)
    return tuple(sorted(found))


def _walls(times: Times, day: dt.date) -> Iterator[dt.datetime]:
    return (dt.datetime.combine(day, dt.time(hour, minute)) for hour, minute in _clock(times))


def _moments(zone: dt.tzinfo, wall: dt.datetime) -> Iterator[int]:
    """When the clock shows `wall`: once, twice or never."""
    for fold in (0, 1):
        moment = _seconds(wall) - _offset(zone, wall.replace(fold=fold))
        shown = dt.datetime.fromtimestamp(moment, zone)
        if shown.replace(tzinfo=None, fold=0) == wall:
            yield moment


def _first_moment(zone: dt.tzinfo, wall: dt.datetime) -> int:
    """When the clock first shows `wall`, or has just been put forward over it."""
    before, after = _offset(zone, wall), _offset(zone, wall.replace(fold=1))
    moment = _seconds(wall) - before
    if after <= before:
        return moment
    not_yet = _seconds(wall) - after
    while moment - not_yet > 1:
        middle = (moment + not_yet) // 2
        shown = dt.datetime.fromtimestamp(middle, zone)
        if shown.utcoffset() == dt.timedelta(seconds=before):
            not_yet = middle
        else:
            moment = middle
    return moment


def _offset(zone: dt.tzinfo, wall: dt.datetime) -> int:
    offset = zone.utcoffset(wall)
    assert offset is not None
    return int(offset.total_seconds())


def _seconds(wall: dt.datetime) -> int:
    return round((wall - _EPOCH).total_seconds())
