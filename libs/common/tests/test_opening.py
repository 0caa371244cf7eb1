"""A configuration names its storage; what it cannot mean is told in one line."""

from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.opening import open_redis, storage_of, store_options
from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.backend.redis.sentinel import client_of
from avtomatika_common.backend.redis.storage import RedisStorage
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError


def address_of(**environ: str) -> str:
    storage = storage_of(Config(environ))
    assert isinstance(storage, RedisStorage)
    return storage.address


def test_without_a_redis_jobs_are_kept_in_memory() -> None:
    assert isinstance(storage_of(Config({})), MemoryStorage)


def test_redis_url_goes_before_host_port_and_database() -> None:
    apart = {"REDIS_HOST": "other", "REDIS_PORT": "6380", "REDIS_DB": "2"}

    assert address_of(**apart) == "other:6380/2"
    assert address_of(**apart, REDIS_URL="redis://:pw@first:7000/3") == "first:7000/3"


@pytest.mark.parametrize("url", ["http://h:1", "redis://h:port", "no address"])
def test_an_address_that_is_none_of_redis_stops_the_start(url: str) -> None:
    with pytest.raises(StartupError, match="REDIS_URL is not an address of a Redis server"):
        storage_of(Config({"REDIS_URL": url}))


def test_redis_may_be_a_service_of_sentinel() -> None:
    both = "redis+sentinel://app:p%40ss@one,two:27000/jobs/3"

    assert address_of(REDIS_URL=both) == "jobs/3 (by Sentinel at one:26379, two:27000)"
    assert address_of(REDIS_URL="rediss+sentinel://[::1]:7/jobs") == (
        "jobs/0 (by Sentinel at ::1:7)"
    )


def test_sentinels_and_servers_have_passwords_of_their_own() -> None:
    url = "redis+sentinel://app:p%40ss@one/jobs?sentinel_username=s&sentinel_password=w"

    client = client_of(url)
    settings = client.connection_pool.connection_kwargs
    pool: Any = client.connection_pool
    theirs = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs

    assert (settings["username"], settings["password"]) == ("app", "p@ss")
    assert (theirs["username"], theirs["password"]) == ("s", "w")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+sentinel://u:hush@one:26379", "it lacks the name of the master"),
        ("redis+sentinel://u:hush@one,/jobs", "'' is not the host"),
        ("redis+sentinel://u:hush@one:x/jobs", "'one:x' is not the host"),
        ("redis+sentinel://u:hu/sh@one:0/jobs", "'one:0' is not the host"),
        ("redis+sentinel://u:hush@one/jobs/x", "the database 'x' is not a number"),
        ("redis+sentinel://u:hush@one/jobs?speed=9", "unexpected keyword argument 'speed'"),
        ("redis://u:hush@one?speed=9", "unexpected keyword argument 'speed'"),
    ],
)
def test_what_is_wrong_with_an_address_is_told_and_no_password(url: str, reason: str) -> None:
    with pytest.raises(StartupError, match="REDIS_URL is not an address of a Redis") as refusal:
        storage_of(Config({"REDIS_URL": url}))

    assert reason in str(refusal.value)
    assert "hu" not in str(refusal.value)


def test_without_the_extra_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_none(name: str, package: str | None = None) -> ModuleSpec | None:
        return None

    monkeypatch.setattr("avtomatika_common.backend.opening.find_spec", find_none)

    with pytest.raises(StartupError, match=r"pip install 'avtomatika\[redis\]'"):
        open_redis("redis://localhost")


def test_a_store_is_told_what_the_configuration_says() -> None:
    config = Config(
        {
            "AVTOMATIKA_PARTITIONS": "4",
            "JOB_RETENTION_SECONDS": "60",
            "HISTORY_DATABASE_URI": "sqlite:h.db",
            "REDIS_STREAM_BLOCK_MS": "250",
        }
    )

    assert store_options(config) == StoreOptions(
        partitions=4, retention_seconds=60.0, keep_facts=True, block_seconds=0.25
    )
    assert store_options(Config({})) == StoreOptions()
