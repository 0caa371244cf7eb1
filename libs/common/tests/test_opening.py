"""A configuration names its storage; what it cannot mean is told in one line."""

from importlib.machinery import ModuleSpec

import pytest

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.opening import open_redis, storage_of, store_options
from avtomatika_common.backend.ports import StoreOptions
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
