"""What the archive uses of the configuration."""

import msgspec

from avtomatika_common.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    instance: str = "history"
    uri: str | None = None
    """`sqlite:…`; None: nothing is archived, the service idles."""
    batch: int = 500
    look_seconds: float = 5.0
    """How often it looks for facts that a dead archive left."""
    shutdown_timeout_seconds: float = 30.0

    @classmethod
    def from_config(cls, config: Config) -> "Settings":
        return cls(
            instance=config.INSTANCE_ID,
            uri=config.history_uri(),
            shutdown_timeout_seconds=config.SHUTDOWN_TIMEOUT_SECONDS,
        )
