"""Entries of schedules.toml: what they may say, and what is told about those that are wrong."""

import datetime as dt
import math
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar, cast
from zoneinfo import ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from avtomatika_core.schedule import (
    CATCH_UP_LIMIT,
    Every,
    Misfire,
    Overlap,
    Schedule,
    When,
)
from avtomatika_core.wall_times import LAST_DATE, Times, never_come, zone_of

_CALENDAR_KEYS: Final = ("daily_at", "time", "weekly_days", "monthly_dates")
_WHEN_KEYS: Final = ("interval_seconds", "cron", *_CALENDAR_KEYS)
_KEYS: Final = frozenset(
    {
        "blueprint", "input_data", "initial_data", "enabled", "dispatch_timeout", "result_timeout",
        "timezone", "misfire", "catch_up_limit", "overlap", "jitter_seconds", "starts_at", "ends_at",
        *_WHEN_KEYS,
    }
)  # fmt: skip
LEAST_INTERVAL_SECONDS: Final = 1
_MOST_CAUGHT_UP: Final = 10_000
_TIME_OF_DAY: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SOME_DAY: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

_Option = TypeVar("_Option", bound=StrEnum)


def parse_schedules(tables: Mapping[str, object], timezone: str = "UTC") -> list[Schedule]:
    """The schedules of a parsed schedules.toml. Raises ValueError that names entry and key.

    `timezone`: of those that name none.
    """
    return [_Entry(name, table).parse(timezone) for name, table in tables.items()]


class _Entry:
    """One table, read key by key."""

    def __init__(self, name: str, table: object) -> None:
        self._name = name
        if not isinstance(table, dict):
            raise ValueError(f"Schedule '{name}' is not a table.")  # noqa: TRY004 - the file is wrong, not a caller
        self._table = cast("dict[str, object]", table)
        for key in self._table:
            if key not in _KEYS:
                known = ", ".join(sorted(_KEYS))
                raise ValueError(f"Unknown key '{key}' in schedule '{name}'; there are {known}.")

    def parse(self, default_timezone: str) -> Schedule:
        blueprint = self._blueprint()
        timezone = self._timezone(default_timezone)
        starts_at, ends_at = self._moment("starts_at", timezone), self._moment("ends_at", timezone)
        if starts_at is not None and ends_at is not None and ends_at < starts_at:
            raise ValueError(f"Schedule '{self._name}': 'ends_at' is before 'starts_at'.")
        return Schedule(
            name=self._name,
            blueprint=blueprint,
            when=self._when(timezone),
            initial_data=self._initial_data(),
            is_enabled=self._flag("enabled", default=True),
            dispatch_timeout=self._duration("dispatch_timeout"),
            result_timeout=self._duration("result_timeout"),
            misfire=self._option("misfire", Misfire.FIRE_ONCE),
            catch_up_limit=self._catch_up_limit(),
            overlap=self._option("overlap", Overlap.ALLOW),
            jitter_seconds=self._duration("jitter_seconds") or 0.0,
            starts_at=starts_at,
            ends_at=ends_at,
        )

    def _wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(f"Schedule '{self._name}': '{key}' must be {expected}.")

    def _blueprint(self) -> str:
        blueprint = self._table.get("blueprint")
        if blueprint is None or blueprint == "":
            raise ValueError(f"Schedule '{self._name}' is missing a 'blueprint' name.")
        if not isinstance(blueprint, str):
            raise self._wrong("blueprint", "the name of a blueprint")
        return blueprint

    # -- when

    def _when(self, timezone: str) -> When:
        given = [key for key in _WHEN_KEYS if key in self._table]
        for alone in ("interval_seconds", "cron"):
            if alone in given and len(given) > 1:
                other = next(key for key in given if key != alone)
                raise ValueError(f"Schedule '{self._name}' has both '{alone}' and '{other}'.")
        if not given:
            raise ValueError(
                f"Schedule '{self._name}' does not say when it runs: give 'interval_seconds', "
                "'daily_at', 'weekly_days' or 'monthly_dates' with 'time', or 'cron'."
            )
        if "interval_seconds" in given:
            seconds = self._duration("interval_seconds", LEAST_INTERVAL_SECONDS)
            assert seconds is not None
            return Every(seconds=seconds)
        return self._cron(timezone) if "cron" in given else self._calendar(timezone)

    def _calendar(self, timezone: str) -> Times:
        if "daily_at" in self._table and "time" in self._table:
            raise ValueError(f"Schedule '{self._name}' has both 'daily_at' and 'time'.")
        key = "daily_at" if "daily_at" in self._table else "time"
        if key not in self._table:
            days = next(days for days in _CALENDAR_KEYS if days in self._table)
            raise ValueError(f"Schedule '{self._name}' has '{days}' but no 'time'.")
        hour, minute = self._time_of_day(key)
        return Times(
            timezone=timezone,
            minutes=(minute,),
            hours=(hour,),
            dates=self._dates(),
            weekdays=self._weekdays(),
        )

    def _time_of_day(self, key: str) -> tuple[int, int]:
        text = self._table[key]
        found = _TIME_OF_DAY.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise self._wrong(key, 'a time of day like "02:30"')
        return int(found[1]), int(found[2])

    def _weekdays(self) -> tuple[int, ...]:
        if "weekly_days" not in self._table:
            return tuple(range(7))
        wrong = self._wrong("weekly_days", 'a list of weekdays like ["mon", "fri"]')
        given = self._list("weekly_days", wrong)
        names = [name.lower() if isinstance(name, str) else name for name in given]
        if any(name not in _WEEKDAYS for name in names):
            raise wrong
        return tuple(day for day, name in enumerate(_WEEKDAYS) if name in names)

    def _dates(self) -> tuple[int, ...]:
        if "monthly_dates" not in self._table:
            return tuple(range(1, 32))
        wrong = self._wrong(
            "monthly_dates", "a list of dates from 1 to 31, or -1 for the last day of the month"
        )
        dates: set[int] = set()
        for date in self._list("monthly_dates", wrong):
            if isinstance(date, bool) or not isinstance(date, int):
                raise wrong
            if date != LAST_DATE and not 1 <= date <= 31:
                raise wrong
            dates.add(date)
        return tuple(sorted(dates))

    def _list(self, key: str, wrong: ValueError) -> Sequence[object]:
        given = self._table[key]
        if not isinstance(given, list) or not given:
            raise wrong
        return cast("list[object]", given)

    def _cron(self, timezone: str) -> Times:
        text = self._table["cron"]
        if not isinstance(text, str) or len(text.split()) != 5:
            raise self._wrong("cron", 'five fields like "30 2 * * mon-fri"')
        try:
            parsed = CronSim(text, _SOME_DAY)
        except CronSimError as error:
            raise ValueError(f"Schedule '{self._name}': 'cron': {error} in '{text}'.") from None
        weekdays = {day for day in parsed.weekdays if isinstance(day, int)}
        if len(weekdays) < len(parsed.weekdays) or CronSim.LAST_WEEKDAY in parsed.days:
            raise ValueError(
                f"Schedule '{self._name}': 'cron': 'LW', '#' and weekdays with 'L' are not known, "
                f"in '{text}'."
            )
        dates = {LAST_DATE if date == CronSim.LAST else date for date in parsed.days}
        times = Times(
            timezone=timezone,
            minutes=tuple(sorted(parsed.minutes)),
            hours=tuple(sorted(parsed.hours)),
            months=tuple(sorted(parsed.months)),
            dates=tuple(sorted(dates)),
            weekdays=tuple(sorted({(day - 1) % 7 for day in weekdays})),
            either_day=not parsed.day_and,
        )
        if never_come(times):
            raise ValueError(f"Schedule '{self._name}': 'cron': no year has a day of '{text}'.")
        return times

    # -- the rest

    def _timezone(self, default: str) -> str:
        name = self._table.get("timezone", default)
        wrong = self._wrong("timezone", "the name of a time zone, like Europe/Berlin")
        if not isinstance(name, str):
            raise wrong
        try:
            zone_of(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a directory, like `Europe`
            raise wrong from None
        return name

    def _moment(self, key: str, timezone: str) -> float | None:
        """Unix seconds; a date-time that says no offset is of the schedule's place."""
        value = self._table.get(key)
        if value is None:
            return None
        if not isinstance(value, dt.datetime):
            raise self._wrong(key, "a date and time like 2026-03-01T00:00:00 or with an offset")
        aware = value if value.tzinfo else value.replace(tzinfo=zone_of(timezone))
        return aware.timestamp()

    def _option(self, key: str, default: _Option) -> _Option:
        value = self._table.get(key, default.value)
        found = next((option for option in type(default) if option.value == value), None)
        if found is None:
            raise self._wrong(key, f"one of {', '.join(type(default))}")
        return found

    def _flag(self, key: str, *, default: bool) -> bool:
        value = self._table.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def _duration(self, key: str, least: float = 0) -> float | None:
        value = self._table.get(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value < 1e9
        ):
            raise self._wrong(key, f"a number of seconds of at least {least}")
        return float(value)

    def _catch_up_limit(self) -> int:
        value = self._table.get("catch_up_limit", CATCH_UP_LIMIT)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not 1 <= value <= _MOST_CAUGHT_UP
        ):
            raise self._wrong("catch_up_limit", f"an integer from 1 to {_MOST_CAUGHT_UP}")
        return value

    def _initial_data(self) -> dict[str, Any]:
        if "input_data" in self._table and "initial_data" in self._table:
            raise ValueError(f"Schedule '{self._name}' has both 'input_data' and 'initial_data'.")
        key = "input_data" if "input_data" in self._table else "initial_data"
        data = self._table.get(key, {})
        if not isinstance(data, dict) or not _is_json(cast("object", data)):
            raise self._wrong(
                key, "a table of JSON values (no dates, times, nan, inf or integers over 64 bits)"
            )
        return cast("dict[str, Any]", data)


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_json, cast("dict[str, object]", value).values()))
    if isinstance(value, list):
        return all(map(_is_json, cast("list[object]", value)))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return not isinstance(value, dt.date | dt.time)
