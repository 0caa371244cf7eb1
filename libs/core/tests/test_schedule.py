"""What schedules.toml may say, what it is told when it is wrong, and when a schedule runs."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtomatika_core.schedule import Schedule, next_due, parse_schedules, slot_at

EVERY_MINUTE = Schedule(name="s", blueprint="b", interval_seconds=60)


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
            }
        }
    )

    assert schedule == Schedule(
        name="nightly",
        blueprint="report",
        interval_seconds=1.0,
        initial_data={"depth": [1, {"x": None}]},
        is_enabled=False,
        dispatch_timeout=5.0,
        result_timeout=0.5,
    )


def test_initial_data_is_another_name_of_input_data() -> None:
    entry = {"blueprint": "b", "interval_seconds": 2, "initial_data": {"a": 1}}

    assert parse_schedules({"s": entry})[0].initial_data == {"a": 1}


INTERVAL: dict[str, Any] = {"blueprint": "b", "interval_seconds": 10}


WRONG: list[tuple[Any, str]] = [
    ({"interval_seconds": 10}, "Schedule 's' is missing a 'blueprint' name."),
    (INTERVAL | {"cron": "* * * * *"}, "Unknown key 'cron' in schedule 's'."),
    (INTERVAL | {"interval_seconds": 0.5}, "Schedule 's': 'interval_seconds' must be a number of seconds of at least 1."),
    (INTERVAL | {"interval_seconds": True}, "Schedule 's': 'interval_seconds' must be a number of seconds of at least 1."),
    (INTERVAL | {"interval_seconds": float("nan")}, "Schedule 's': 'interval_seconds' must be a number of seconds of at least 1."),
    (INTERVAL | {"enabled": "yes"}, "Schedule 's': 'enabled' must be true or false."),
    (INTERVAL | {"blueprint": 3}, "Schedule 's': 'blueprint' must be the name of a blueprint."),
    (INTERVAL | {"result_timeout": "1"}, "Schedule 's': 'result_timeout' must be a number of seconds of at least 0."),
    (INTERVAL | {"input_data": {}, "initial_data": {}}, "Schedule 's' has both 'input_data' and 'initial_data'."),
    (INTERVAL | {"input_data": {"at": [dt.date(2026, 1, 1)]}}, "Schedule 's': 'input_data' must be a table of JSON values (no dates, times, nan or inf)."),
    (INTERVAL | {"input_data": [1]}, "Schedule 's': 'input_data' must be a table of JSON values (no dates, times, nan or inf)."),
    (INTERVAL | {"daily_at": "02:30"}, "Schedule 's' has both 'interval_seconds' and 'daily_at'."),
    ({"blueprint": "b"}, "Schedule 's' does not say when it runs: give 'interval_seconds'."),
    ({"blueprint": "b", "daily_at": "02:30"}, "Schedule 's' uses 'daily_at', which this version does not support yet; use interval_seconds."),
    ({"blueprint": "b", "weekly_days": ["mon"], "time": "02:30"}, "Schedule 's' uses 'weekly_days', which this version does not support yet; use interval_seconds."),
    ("b", "Schedule 's' is not a table."),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "message"), WRONG)
def test_a_wrong_entry_is_refused_by_name(entry: Any, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_schedules({"fine": INTERVAL, "s": entry})

    assert str(refusal.value) == message


def test_a_schedule_that_never_ran_is_due_at_once() -> None:
    assert next_due(EVERY_MINUTE, None, now=1000) == 1000
    assert slot_at(EVERY_MINUTE, None, now=1000) == 1000


def test_a_late_run_does_not_shift_the_next_one() -> None:
    assert next_due(EVERY_MINUTE, 1000, now=1001) == 1060
    assert slot_at(EVERY_MINUTE, 1000, now=1060.2) == 1060


def test_missed_runs_are_made_up_once() -> None:  # R73
    slot = slot_at(EVERY_MINUTE, 1000, now=1000 + 60 * 100 + 7)

    assert slot == 1000 + 60 * 100
    assert next_due(EVERY_MINUTE, slot, now=slot + 7) == slot + 60


@given(
    interval=st.floats(1, 1e6),
    last=st.floats(1e9, 2e9),
    late=st.floats(0, 1e7),
)
def test_a_slot_is_after_the_last_run_not_after_now_and_the_next_is_to_come(
    interval: float, last: float, late: float
) -> None:
    schedule = Schedule(name="s", blueprint="b", interval_seconds=interval)
    now = next_due(schedule, last, last) + late

    slot = slot_at(schedule, last, now)

    assert last < slot <= now + 1e-6
    assert next_due(schedule, slot, now) > now - 1e-6
