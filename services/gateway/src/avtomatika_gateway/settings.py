"""What the gateway can be told, read once at start."""

from typing import Self

import msgspec

from avtomatika_common.config import Config
from avtomatika_common.ids import new_id
from avtomatika_gateway.access import digest


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    instance_id: str
    """New at each start: nobody else reads this gateway's mail."""
    host: str
    port: int
    """0: any free one."""
    enable_client_api: bool
    client_api_prefix: str
    """Without slashes at its ends; empty: the root."""
    detailed_api_responses: bool
    approval_auth_required: bool
    max_request_body_bytes: int
    poll_timeout_seconds: float
    registration_ttl_seconds: float
    shutdown_timeout_seconds: float
    min_reputation: float
    """As the dispatcher's, to explain what it does."""
    strict_event_validation: bool
    client_token_digest: bytes
    worker_token_digest: bytes
    default_secrets: tuple[str, ...] = ()
    """Names of the secrets that were left at their published defaults."""

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(
            instance_id=f"{config.INSTANCE_ID}-{new_id()[:8]}",
            host=config.API_HOST,
            port=config.API_PORT,
            enable_client_api=config.ENABLE_CLIENT_API,
            client_api_prefix=config.CLIENT_API_PREFIX,
            detailed_api_responses=config.DETAILED_API_RESPONSES,
            approval_auth_required=config.APPROVAL_AUTH_REQUIRED,
            max_request_body_bytes=config.MAX_REQUEST_BODY_BYTES,
            poll_timeout_seconds=config.WORKER_POLL_TIMEOUT_SECONDS,
            registration_ttl_seconds=2 * config.WORKER_HEALTH_CHECK_INTERVAL_SECONDS,
            shutdown_timeout_seconds=config.SHUTDOWN_TIMEOUT_SECONDS,
            min_reputation=config.REPUTATION_MIN_THRESHOLD,
            strict_event_validation=config.STRICT_EVENT_VALIDATION,
            client_token_digest=digest(config.CLIENT_TOKEN),
            worker_token_digest=digest(config.GLOBAL_WORKER_TOKEN),
            default_secrets=tuple(
                setting.name
                for setting in (Config.CLIENT_TOKEN, Config.GLOBAL_WORKER_TOKEN)
                if getattr(config, setting.name) == setting.default
            ),
        )
