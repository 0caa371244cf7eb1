"""Schedules: what an entry of schedules.toml means, and when its next run is due."""

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any, Final, cast

import msgspec

_CALENDAR_KEYS: Final = ("daily_at", "weekly_days", "monthly_dates", "time")
_KEYS: Final = frozenset(
    {
        "blueprint", "input_data", "initial_data", "enabled", "dispatch_timeout", "result_timeout",
        "interval_seconds", *_CALENDAR_KEYS,
    }
)  # fmt: skip
LEAST_INTERVAL_SECONDS: Final = 1


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is made again and again. Durations in seconds."""

    name: str
    blueprint: str
    interval_seconds: float
    initial_data: dict[str, Any] = {}
    is_enabled: bool = True
    dispatch_timeout: float | None = None
    result_timeout: float | None = None


def parse_schedules(tables: Mapping[str, object]) -> list[Schedule]:
    """The schedules of a parsed schedules.toml. Raises ValueError that names entry and key."""
    return [_parse(name, table) for name, table in tables.items()]


def _parse(name: str, table: object) -> Schedule:
    if not isinstance(table, dict):
        raise ValueError(f"Schedule '{name}' is not a table.")  # noqa: TRY004 - the file is wrong, not a caller
    entry = cast("dict[str, object]", table)
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"Unknown key '{key}' in schedule '{name}'.")
    blueprint = entry.get("blueprint")
    if blueprint is None or blueprint == "":
        raise ValueError(f"Schedule '{name}' is missing a 'blueprint' name.")
    if not isinstance(blueprint, str):
        raise _wrong(name, "blueprint", "the name of a blueprint")
    enabled = entry.get("enabled", True)
    if not isinstance(enabled, bool):
        raise _wrong(name, "enabled", "true or false")
    return Schedule(
        name=name,
        blueprint=blueprint,
        interval_seconds=_interval(name, entry),
        initial_data=_initial_data(name, entry),
        is_enabled=enabled,
        dispatch_timeout=_duration(name, entry, "dispatch_timeout"),
        result_timeout=_duration(name, entry, "result_timeout"),
    )


def _interval(name: str, entry: Mapping[str, object]) -> float:
    calendar = next((key for key in _CALENDAR_KEYS if key in entry), None)
    if calendar is not None and "interval_seconds" in entry:
        raise ValueError(f"Schedule '{name}' has both 'interval_seconds' and '{calendar}'.")
    if calendar is not None:
        raise ValueError(
            f"Schedule '{name}' uses '{calendar}', which this version does not support yet; "
            "use interval_seconds."
        )
    seconds = _duration(name, entry, "interval_seconds", LEAST_INTERVAL_SECONDS)
    if seconds is None:
        raise ValueError(f"Schedule '{name}' does not say when it runs: give 'interval_seconds'.")
    return seconds


def _duration(name: str, entry: Mapping[str, object], key: str, least: float = 0) -> float | None:
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e12:
        raise _wrong(name, key, f"a number of seconds of at least {least}")
    return float(value)


def _initial_data(name: str, entry: Mapping[str, object]) -> dict[str, Any]:
    if "input_data" in entry and "initial_data" in entry:
        raise ValueError(f"Schedule '{name}' has both 'input_data' and 'initial_data'.")
    key = "input_data" if "input_data" in entry else "initial_data"
    data = entry.get(key, {})
    if not isinstance(data, dict) or not _is_json(cast("object", data)):
        raise _wrong(name, key, "a table of JSON values (no dates, times, nan or inf)")
    return cast("dict[str, Any]", data)


def _is_json(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_json, cast("dict[str, object]", value).values()))
    if isinstance(value, list):
        return all(map(_is_json, cast("list[object]", value)))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, dt.date | dt.time)


def _wrong(name: str, key: str, expected: str) -> ValueError:
    return ValueError(f"Schedule '{name}': '{key}' must be {expected}.")


def next_due(schedule: Schedule, last_run: float | None, now: float) -> float:
    """When the schedule is to run next (Unix seconds); `now` when it never ran."""
    return now if last_run is None else last_run + schedule.interval_seconds


def slot_at(schedule: Schedule, last_run: float | None, now: float) -> float:
    """The time a run at `now` counts as: the latest one due, so that missed ones are made up once.

    Runs stay on the beat of the first one, however late each is.
    """
    if last_run is None:
        return now
    beats = math.floor((now - last_run) / schedule.interval_seconds)
    return last_run + max(beats, 1) * schedule.interval_seconds
