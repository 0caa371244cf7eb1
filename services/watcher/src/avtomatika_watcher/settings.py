"""What the watcher uses of the configuration."""

from typing import Self

import msgspec

from avtomatika_common.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: str = "watcher"
    interval_seconds: float = 20.0
    """Latest time after which a deadline is acted on, even if nothing woke the watcher."""
    heartbeat_seconds: float = 60.0
    """What workers are given to be heard of again after nobody watched them."""
    block_seconds: float = 5.0
    """Longest single blocking read."""
    pause_seconds: float = 0.025
    """Of the reconciler, after each of its scripts: with it, 2,000 jobs are looked at in a second."""
    lap_seconds: float = 10.0
    """From one lap of the reconciler to the next, at least."""
    quiet_seconds: float = 30.0
    """A job that something happened to since then is not looked at."""

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(
            instance_id=config.INSTANCE_ID,
            interval_seconds=config.WATCHER_INTERVAL_SECONDS,
            heartbeat_seconds=config.WORKER_HEALTH_CHECK_INTERVAL_SECONDS,
            block_seconds=config.REDIS_STREAM_BLOCK_MS / 1000,
        )
