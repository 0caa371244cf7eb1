"""What the scheduler uses of the configuration."""

from typing import Self

import msgspec

from avtomatika_common.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    instance_id: str = "scheduler"
    schedules_path: str = ""
    """The TOML file with the schedules; empty: there are none."""
    timezone: str = "UTC"
    """Of schedules that name none."""
    must_know_blueprints: bool = False
    """Whether all blueprints are published before this service starts, as in one process."""

    @classmethod
    def from_config(cls, config: Config, *, must_know_blueprints: bool = False) -> Self:
        return cls(
            instance_id=config.INSTANCE_ID,
            schedules_path=config.SCHEDULES_CONFIG_PATH,
            timezone=config.TZ,
            must_know_blueprints=must_know_blueprints,
        )
