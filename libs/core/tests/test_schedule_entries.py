"""What schedules.toml may say, and what is told about it when it is wrong."""

import datetime as dt
from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika_core.schedule import Every, Misfire, Overlap, Schedule
from avtomatika_core.schedule_entries import parse_schedules
from avtomatika_core.wall_times import Times


def test_an_entry_says_all_there_is_to_a_schedule() -> None:
    (schedule,) = parse_schedules(
        {
            "nightly": {
                "blueprint": "report",
                "interval_seconds": 1,
                "input_data": {"depth": [1, {"x": None}]},
                "enabled": False,
                "dispatch_timeout": 5,
                "result_timeout": 0.5,
                "misfire": "catch_up",
                "catch_up_limit": 7,
                "overlap": "cancel_previous",
                "jitter_seconds": 0.25,
                "starts_at": dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
                "ends_at": dt.datetime.fromisoformat("2026-04-01T12:00"),
                "timezone": "Europe/Berlin",
            }
        }
    )

    assert schedule == Schedule(
        name="nightly",
        blueprint="report",
        when=Every(seconds=1.0),
        initial_data={"depth": [1, {"x": None}]},
        is_enabled=False,
        dispatch_timeout=5.0,
        result_timeout=0.5,
        misfire=Misfire.CATCH_UP,
        catch_up_limit=7,
        overlap=Overlap.CANCEL_PREVIOUS,
        jitter_seconds=0.25,
        starts_at=dt.datetime(2026, 3, 1, tzinfo=dt.UTC).timestamp(),
        ends_at=dt.datetime(2026, 4, 1, 10, tzinfo=dt.UTC).timestamp(),
    )


def test_what_an_entry_does_not_say_has_a_default() -> None:
    (schedule,) = parse_schedules({"s": {"blueprint": "b", "daily_at": "02:30"}}, "Asia/Tokyo")

    assert schedule == Schedule(name="s", blueprint="b", when=AT_HALF_PAST_TWO)
    assert (schedule.misfire, schedule.overlap) == (Misfire.FIRE_ONCE, Overlap.ALLOW)
    assert (schedule.catch_up_limit, schedule.jitter_seconds) == (100, 0)


AT_HALF_PAST_TWO = Times(timezone="Asia/Tokyo", hours=(2,), minutes=(30,))
WORKDAYS = (0, 1, 2, 3, 4)
FORMS: list[tuple[dict[str, Any], Times]] = [
    ({"time": "02:30"}, AT_HALF_PAST_TWO),
    ({"time": "02:30", "weekly_days": ["FRI", "mon"]}, replace(AT_HALF_PAST_TWO, weekdays=(0, 4))),
    ({"time": "02:30", "monthly_dates": [31, -1, 1]}, replace(AT_HALF_PAST_TWO, dates=(-1, 1, 31))),
    ({"daily_at": "02:30", "weekly_days": ["fri"], "monthly_dates": [13]}, replace(AT_HALF_PAST_TWO, weekdays=(4,), dates=(13,))),
    ({"daily_at": "02:30", "timezone": "UTC"}, replace(AT_HALF_PAST_TWO, timezone="UTC")),
    ({"cron": "30 2 * * *"}, AT_HALF_PAST_TWO),
    ({"cron": "30 2 * * 1-5"}, replace(AT_HALF_PAST_TWO, weekdays=WORKDAYS)),
    ({"cron": "30 2 * * mon-FRI"}, replace(AT_HALF_PAST_TWO, weekdays=WORKDAYS)),
    ({"cron": "30 2 * * 0"}, replace(AT_HALF_PAST_TWO, weekdays=(6,))),
    ({"cron": "30 2 * * 7"}, replace(AT_HALF_PAST_TWO, weekdays=(6,))),
    ({"cron": "*/20 1,2 L jan-mar *"}, replace(AT_HALF_PAST_TWO, minutes=(0, 20, 40), hours=(1, 2), dates=(-1,), months=(1, 2, 3))),
    ({"cron": "30 2 13 * fri"}, replace(AT_HALF_PAST_TWO, dates=(13,), weekdays=(4,), either_day=True)),
    ({"cron": "30 2 */2 * fri"}, replace(AT_HALF_PAST_TWO, dates=tuple(range(1, 32, 2)), weekdays=(4,))),
]  # fmt: skip


@pytest.mark.parametrize(("form", "times"), FORMS)
def test_each_way_to_say_when_names_the_same_times(form: dict[str, Any], times: Times) -> None:
    (schedule,) = parse_schedules({"s": {"blueprint": "b", **form}}, "Asia/Tokyo")

    assert schedule.when == times


def test_initial_data_is_another_name_of_input_data() -> None:
    entry = {"blueprint": "b", "interval_seconds": 2, "initial_data": {"a": 1}}

    assert parse_schedules({"s": entry})[0].initial_data == {"a": 1}


INTERVAL: dict[str, Any] = {"blueprint": "b", "interval_seconds": 10}
DAILY: dict[str, Any] = {"blueprint": "b", "daily_at": "02:30"}


WRONG: list[tuple[Any, str]] = [
    ({"interval_seconds": 10}, "Schedule 's' is missing a 'blueprint' name."),
    (INTERVAL | {"croon": "* * * * *"}, "Unknown key 'croon' in schedule 's'; there are blueprint, catch_up_limit, cron, daily_at, dispatch_timeout, enabled, ends_at, initial_data, input_data, interval_seconds, jitter_seconds, misfire, monthly_dates, overlap, result_timeout, starts_at, time, timezone, weekly_days."),
    (INTERVAL | {"interval_seconds": 0.5}, "Schedule 's': 'interval_seconds' must be a number of seconds of at least 1."),
    (INTERVAL | {"interval_seconds": True}, "Schedule 's': 'interval_seconds' must be a number of seconds of at least 1."),
    (INTERVAL | {"interval_seconds": float("nan")}, "Schedule 's': 'interval_seconds' must be a number of seconds of at least 1."),
    (INTERVAL | {"enabled": "yes"}, "Schedule 's': 'enabled' must be true or false."),
    (INTERVAL | {"blueprint": 3}, "Schedule 's': 'blueprint' must be the name of a blueprint."),
    (INTERVAL | {"result_timeout": "1"}, "Schedule 's': 'result_timeout' must be a number of seconds of at least 0."),
    (INTERVAL | {"input_data": {}, "initial_data": {}}, "Schedule 's' has both 'input_data' and 'initial_data'."),
    (INTERVAL | {"input_data": {"at": [dt.date(2026, 1, 1)]}}, "Schedule 's': 'input_data' must be a table of JSON values (no dates, times, nan, inf or integers over 64 bits)."),
    (INTERVAL | {"input_data": [1]}, "Schedule 's': 'input_data' must be a table of JSON values (no dates, times, nan, inf or integers over 64 bits)."),
    (INTERVAL | {"daily_at": "02:30"}, "Schedule 's' has both 'interval_seconds' and 'daily_at'."),
    (INTERVAL | {"input_data": {"n": 2**64}}, "Schedule 's': 'input_data' must be a table of JSON values (no dates, times, nan, inf or integers over 64 bits)."),
    (INTERVAL | {"cron": "* * * * *"}, "Schedule 's' has both 'interval_seconds' and 'cron'."),
    (DAILY | {"cron": "* * * * *"}, "Schedule 's' has both 'cron' and 'daily_at'."),
    (DAILY | {"time": "02:30"}, "Schedule 's' has both 'daily_at' and 'time'."),
    ({"blueprint": "b"}, "Schedule 's' does not say when it runs: give 'interval_seconds', 'daily_at', 'weekly_days' or 'monthly_dates' with 'time', or 'cron'."),
    ({"blueprint": "b", "weekly_days": ["mon"]}, "Schedule 's' has 'weekly_days' but no 'time'."),
    ({"blueprint": "b", "monthly_dates": [1]}, "Schedule 's' has 'monthly_dates' but no 'time'."),
    ({"blueprint": "b", "daily_at": "24:00"}, "Schedule 's': 'daily_at' must be a time of day like \"02:30\"."),
    ({"blueprint": "b", "daily_at": "2:30"}, "Schedule 's': 'daily_at' must be a time of day like \"02:30\"."),
    ({"blueprint": "b", "daily_at": "02:60"}, "Schedule 's': 'daily_at' must be a time of day like \"02:30\"."),
    ({"blueprint": "b", "daily_at": "\u06602:30"}, "Schedule 's': 'daily_at' must be a time of day like \"02:30\"."),
    ({"blueprint": "b", "time": dt.time(2, 30)}, "Schedule 's': 'time' must be a time of day like \"02:30\"."),
    (DAILY | {"weekly_days": ["monday"]}, "Schedule 's': 'weekly_days' must be a list of weekdays like [\"mon\", \"fri\"]."),
    (DAILY | {"weekly_days": []}, "Schedule 's': 'weekly_days' must be a list of weekdays like [\"mon\", \"fri\"]."),
    (DAILY | {"weekly_days": [[]]}, "Schedule 's': 'weekly_days' must be a list of weekdays like [\"mon\", \"fri\"]."),
    (DAILY | {"monthly_dates": [0]}, "Schedule 's': 'monthly_dates' must be a list of dates from 1 to 31, or -1 for the last day of the month."),
    (DAILY | {"monthly_dates": [32]}, "Schedule 's': 'monthly_dates' must be a list of dates from 1 to 31, or -1 for the last day of the month."),
    (DAILY | {"monthly_dates": [True]}, "Schedule 's': 'monthly_dates' must be a list of dates from 1 to 31, or -1 for the last day of the month."),
    ({"blueprint": "b", "cron": "* * * *"}, "Schedule 's': 'cron' must be five fields like \"30 2 * * mon-fri\"."),
    ({"blueprint": "b", "cron": "0 * * * * *"}, "Schedule 's': 'cron' must be five fields like \"30 2 * * mon-fri\"."),
    ({"blueprint": "b", "cron": "60 * * * *"}, "Schedule 's': 'cron': Bad minute in '60 * * * *'."),
    ({"blueprint": "b", "cron": "0 0 * * mon#2"}, "Schedule 's': 'cron': 'LW', '#' and weekdays with 'L' are not known, in '0 0 * * mon#2'."),
    ({"blueprint": "b", "cron": "0 0 LW * *"}, "Schedule 's': 'cron': 'LW', '#' and weekdays with 'L' are not known, in '0 0 LW * *'."),
    ({"blueprint": "b", "cron": "0 0 30,31 2 *"}, "Schedule 's': 'cron': Bad day-of-month in '0 0 30,31 2 *'."),
    (DAILY | {"timezone": "Mars"}, "Schedule 's': 'timezone' must be the name of a time zone, like Europe/Berlin."),
    (DAILY | {"timezone": "Europe"}, "Schedule 's': 'timezone' must be the name of a time zone, like Europe/Berlin."),
    (DAILY | {"timezone": "../x"}, "Schedule 's': 'timezone' must be the name of a time zone, like Europe/Berlin."),
    (DAILY | {"timezone": 1}, "Schedule 's': 'timezone' must be the name of a time zone, like Europe/Berlin."),
    (DAILY | {"misfire": "never"}, "Schedule 's': 'misfire' must be one of fire_once, skip, catch_up."),
    (DAILY | {"misfire": ["skip"]}, "Schedule 's': 'misfire' must be one of fire_once, skip, catch_up."),
    (DAILY | {"overlap": "wait"}, "Schedule 's': 'overlap' must be one of allow, skip, queue, cancel_previous."),
    (DAILY | {"misfire": "catch_up", "catch_up_limit": 0}, "Schedule 's': 'catch_up_limit' must be an integer from 1 to 10000."),
    (DAILY | {"jitter_seconds": -1}, "Schedule 's': 'jitter_seconds' must be a number of seconds of at least 0."),
    (DAILY | {"starts_at": "2026-01-01"}, "Schedule 's': 'starts_at' must be a date and time like 2026-03-01T00:00:00 or with an offset."),
    (DAILY | {"ends_at": dt.date(2026, 1, 1)}, "Schedule 's': 'ends_at' must be a date and time like 2026-03-01T00:00:00 or with an offset."),
    (DAILY | {"starts_at": dt.datetime.fromisoformat("2026-01-02T00:00"), "ends_at": dt.datetime.fromisoformat("2026-01-01T00:00")}, "Schedule 's': 'ends_at' is before 'starts_at'."),
    ("b", "Schedule 's' is not a table."),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_a_wrong_entry_is_refused_by_name(entry: Any, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_schedules({"fine": INTERVAL, "s": entry})

    assert str(refusal.value) == message
