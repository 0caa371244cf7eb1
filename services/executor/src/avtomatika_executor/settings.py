"""What the executor uses of the configuration."""

import msgspec

from avtomatika_common.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    group: str = "default"
    """Executors of one group host the same blueprints and share their jobs."""
    max_concurrent_jobs: int = 100
    max_retries: int = 3
    retry_delay_seconds: float = 1.0
    dispatch_timeout_seconds: float = 3600.0
    result_timeout_seconds: float = 300.0
    max_transitions: int = 10_000
    max_depth: int = 10
    shutdown_timeout_seconds: float = 30.0
    steps_per_claim: int = 100
    """A job that has gone so many steps on lets events of other started jobs in before it goes on."""
    max_tries: int = 5
    """Deliveries of one entry without a commit before its job is quarantined."""
    again_seconds: float = 5.0
    """Pause before an entry that could not be handled comes again."""

    @classmethod
    def from_config(cls, config: Config) -> "Settings":
        return cls(
            group=config.AVTOMATIKA_EXECUTOR_GROUP,
            max_concurrent_jobs=config.EXECUTOR_MAX_CONCURRENT_JOBS,
            max_retries=config.JOB_MAX_RETRIES,
            retry_delay_seconds=config.RETRY_DELAY_SECONDS,
            dispatch_timeout_seconds=config.DISPATCH_TIMEOUT_SECONDS,
            result_timeout_seconds=config.WORKER_TIMEOUT_SECONDS,
            max_transitions=config.MAX_TRANSITIONS_PER_JOB,
            max_depth=config.MAX_HOLARCHY_DEPTH,
            shutdown_timeout_seconds=config.SHUTDOWN_TIMEOUT_SECONDS,
        )
