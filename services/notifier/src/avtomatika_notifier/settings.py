"""What the notifier uses of the configuration."""

import msgspec

from avtomatika_common.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    instance: str = "notifier"
    request_timeout_seconds: float = 10.0
    pauses_seconds: tuple[float, ...] = (2.0, 4.0)
    """Before each repeat; one attempt more than pauses."""
    look_seconds: float = 5.0
    """How often it looks for notifications that a dead notifier left."""
    max_requests: int = 200
    max_requests_per_receiver: int = 10
    max_in_hand: int = 10_000
    """Notifications held in memory, sent now or waiting for their turn."""
    max_in_hand_per_receiver: int = 5_000
    """What a receiver gets beyond it waits in the stream, so that none fills all places."""
    shutdown_timeout_seconds: float = 30.0

    @classmethod
    def from_config(cls, config: Config) -> "Settings":
        return cls(
            instance=config.INSTANCE_ID, shutdown_timeout_seconds=config.SHUTDOWN_TIMEOUT_SECONDS
        )
