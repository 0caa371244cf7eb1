"""Settings: their defaults, what they refuse, and what they never show."""

from datetime import UTC

import pytest

from avtomatika_common.config import Config, InvalidSetting
from avtomatika_common.lifecycle import StartupError


def test_an_empty_environment_gives_the_defaults() -> None:
    config = Config({})

    assert (config.API_HOST, config.API_PORT) == ("0.0.0.0", 8080)  # noqa: S104
    assert config.ENABLE_CLIENT_API is True
    assert config.RETRY_DELAY_SECONDS == 1
    assert config.INSTANCE_ID
    assert config.redis_url() is None
    assert config.history_uri() is None


def test_the_environment_of_the_process_is_read_when_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_MAX_RETRIES", "7")

    assert Config().JOB_MAX_RETRIES == 7


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("JOB_MAX_RETRIES", "x", "an integer of at least 0"),
        ("JOB_MAX_RETRIES", "", "an integer of at least 0"),
        ("JOB_MAX_RETRIES", "-1", "an integer of at least 0"),
        ("JOB_MAX_RETRIES", "1.5", "an integer of at least 0"),
        ("API_PORT", "65536", "an integer from 0 to 65535"),
        ("REDIS_STREAM_BLOCK_MS", "0", "an integer of at least 1"),
        ("REPUTATION_MIN_THRESHOLD", "1.1", "a number from 0 to 1"),
        ("REPUTATION_MIN_THRESHOLD", "nan", "a number from 0 to 1"),
        ("ENABLE_CLIENT_API", "yes", "true or false"),
        ("WATCHER_INTERVAL_SECONDS", "0", "a number of seconds above 0"),
        ("WORKER_TIMEOUT_SECONDS", "nan", "a number of seconds above 0"),
        ("DISPATCH_TIMEOUT_SECONDS", "-1", "a number of seconds of at least 0"),
        ("AVTOMATIKA_DURABILITY", "sure", "one of fast, safe, strict"),
        ("LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("LOG_FORMAT", "xml", "one of json, text"),
        ("TZ", "Mars", "the name of a time zone, like Europe/Berlin"),
        ("TZ", "Europe", "the name of a time zone, like Europe/Berlin"),
        ("TZ", "", "the name of a time zone, like Europe/Berlin"),
        ("TZ", "../etc/passwd", "the name of a time zone, like Europe/Berlin"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: str, expected: str) -> None:  # R75
    with pytest.raises(ValueError) as refusal:
        Config({name: value})

    assert str(refusal.value) == f"{name}: {value!r} is not {expected}."
    assert isinstance(refusal.value, StartupError)


@pytest.mark.parametrize(
    ("name", "value"),
    [("API_PORT", True), ("API_PORT", 70000), ("ENABLE_CLIENT_API", 1), ("CLIENT_TOKEN", 5)],
)
def test_an_assignment_is_checked_like_the_environment(name: str, value: object) -> None:
    config = Config({})
    before = getattr(config, name)

    with pytest.raises(InvalidSetting, match=name):
        setattr(config, name, value)

    assert getattr(config, name) == before


def test_a_misspelt_setting_cannot_be_assigned() -> None:
    with pytest.raises(AttributeError):
        Config({}).API_PROT = 9000  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]


def test_assigning_changes_this_config_only() -> None:
    config = Config({})

    config.API_PORT = 9000

    assert config.API_PORT == 9000
    assert Config({}).API_PORT == 8080


def test_words_are_read_in_any_case_and_without_space_around() -> None:
    config = Config({"ENABLE_CLIENT_API": " False", "LOG_LEVEL": "debug", "LOG_FORMAT": "TEXT"})

    assert config.ENABLE_CLIENT_API is False
    assert (config.LOG_LEVEL, config.LOG_FORMAT) == ("DEBUG", "text")


def test_durations_may_have_fractions() -> None:
    assert Config({"RETRY_DELAY_SECONDS": "0.25"}).RETRY_DELAY_SECONDS == 0.25


@pytest.mark.parametrize(("given", "prefix"), [("", ""), ("/api/", "api"), ("a/b", "a/b")])
def test_the_api_prefix_has_no_outer_slashes(given: str, prefix: str) -> None:
    config = Config({"CLIENT_API_PREFIX": given})

    assert prefix == config.CLIENT_API_PREFIX


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"REDIS_HOST": "cache"}, "redis://cache:6379/0"),
        ({"REDIS_HOST": "cache", "REDIS_PORT": "1", "REDIS_DB": "2"}, "redis://cache:1/2"),
        ({"REDIS_HOST": "::1"}, "redis://[::1]:6379/0"),
        ({"REDIS_HOST": "cache", "REDIS_URL": "rediss://x"}, "rediss://x"),
        ({"REDIS_PORT": "7000"}, None),
    ],
)
def test_where_redis_is(environ: dict[str, str], url: str | None) -> None:
    assert Config(environ).redis_url() == url


def test_a_service_without_a_redis_setting_uses_this_host() -> None:
    assert Config({"REDIS_PORT": "7000"}).service_redis_url() == "redis://localhost:7000/0"
    assert Config({"REDIS_URL": "redis://there"}).service_redis_url() == "redis://there"


def test_the_history_setting_goes_before_the_postgres_one() -> None:
    postgres = {"POSTGRES_DSN": "postgresql://db"}

    assert Config(postgres).history_uri() == "postgresql://db"
    assert Config({**postgres, "HISTORY_DATABASE_URI": "sqlite:x"}).history_uri() == "sqlite:x"


def test_production_calls_private_webhook_hosts_only_when_told() -> None:
    production = {"ENVIRONMENT": "Production"}

    assert Config({}).WEBHOOK_ALLOW_PRIVATE_HOSTS
    assert not Config(production).WEBHOOK_ALLOW_PRIVATE_HOSTS
    assert Config({**production, "WEBHOOK_ALLOW_PRIVATE_HOSTS": "true"}).WEBHOOK_ALLOW_PRIVATE_HOSTS


def test_repr_shows_what_was_changed_but_no_secret() -> None:
    config = Config({"API_PORT": "1", "REDIS_URL": "redis://:hush@x", "CLIENT_TOKEN": "hush"})

    assert repr(config) == "Config(REDIS_URL=***, API_PORT=1, CLIENT_TOKEN=***)"


def test_a_refused_secret_is_not_shown() -> None:
    with pytest.raises(InvalidSetting) as refusal:
        Config.CLIENT_TOKEN.assign(Config({}), 31337)

    assert "31337" not in str(refusal.value)


def test_utc_and_named_zones_are_known() -> None:
    assert Config({}).timezone() is UTC
    assert str(Config({"TZ": "Europe/Berlin"}).timezone()) == "Europe/Berlin"


def test_every_setting_is_described_with_its_default() -> None:
    rows = {row.name: row for row in Config.describe()}

    assert all(row.sentence.endswith(".") for row in rows.values())
    assert (rows["JOB_RETENTION_SECONDS"].default, rows["JOB_RETENTION_SECONDS"].unit) == (
        "604800",
        "seconds",
    )
    assert rows["ENABLE_DEBUG_API"].default == "false"
    assert rows["INSTANCE_ID"].default == "the host's name"
    assert rows["API_PORT"].kind == "int"


def test_every_described_default_is_accepted_as_it_is_shown() -> None:
    shown = {row.name: row.default for row in Config.describe() if row.name != "INSTANCE_ID"}

    assert repr(Config(shown)) == "Config()"
