"""Which storage a configuration means."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Durability, StorageBackend, StoreOptions
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError

if TYPE_CHECKING:
    from avtomatika_common.backend.redis.storage import RedisStorage


def open_redis(url: str) -> "RedisStorage":
    """A storage on the Redis at `url`, not yet connected. Raises StartupError."""
    if find_spec("redis") is None or find_spec("hiredis") is None:
        raise StartupError("Redis needs the extra 'redis': pip install 'avtomatika[redis]'.")
    # Here and not at the top: without the extra there is nothing to import.
    from redis.asyncio import Redis  # noqa: PLC0415

    from avtomatika_common.backend.redis import sentinel  # noqa: PLC0415
    from avtomatika_common.backend.redis.storage import RedisStorage  # noqa: PLC0415

    try:
        client = (
            sentinel.client_of(url) if sentinel.is_sentinel_url(url) else Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
        )
        pool: Any = client.connection_pool
        pool.make_connection()  # it knows which options there are
        return RedisStorage(client)
    except (TypeError, ValueError) as error:
        raise StartupError(f"REDIS_URL is not an address of a Redis server: {error}") from error


def storage_of(config: Config) -> StorageBackend:
    """Redis where the configuration names one, else memory."""
    url = config.redis_url()
    return MemoryStorage() if url is None else open_redis(url)


def store_options(config: Config) -> StoreOptions:
    return StoreOptions(
        durability=Durability(config.AVTOMATIKA_DURABILITY),
        partitions=config.AVTOMATIKA_PARTITIONS,
        retention_seconds=config.JOB_RETENTION_SECONDS,
        keep_facts=config.history_uri() is not None,
        block_seconds=config.REDIS_STREAM_BLOCK_MS / 1000,
    )
