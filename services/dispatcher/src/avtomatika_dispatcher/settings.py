"""What the dispatcher uses of the configuration."""

from typing import Self

import msgspec

from avtomatika_common.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: str = "dispatcher"
    soft_limit: int = 3
    """Tasks a worker may hold before strategy `overflow` passes it over."""
    min_reputation: float = 0.3
    """Workers below it get tasks only that no better one can do."""
    block_seconds: float = 5.0
    """Longest single blocking read."""

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(
            instance_id=config.INSTANCE_ID,
            soft_limit=config.DISPATCHER_SOFT_LIMIT,
            min_reputation=config.REPUTATION_MIN_THRESHOLD,
            block_seconds=config.REDIS_STREAM_BLOCK_MS / 1000,
        )
