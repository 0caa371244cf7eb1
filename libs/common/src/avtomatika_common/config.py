"""Every setting of the orchestrator, declared once: the only reader of the environment.

`Config()` reads the environment when it is made. A setting may be assigned until the engine or
service starts; a value that cannot be right is refused by name, read or assigned.
"""

import math
import os
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, tzinfo
from typing import Any, Generic, Self, TypeVar, overload
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from typing_extensions import override

from avtomatika_common.lifecycle import StartupError

T = TypeVar("T")


class InvalidSetting(StartupError, ValueError):
    """A setting has a value that cannot be right; the text names it and says what is expected."""


class Setting(Generic[T]):
    """One variable: its default, its sentence and what it accepts. Read it as an attribute.

    `read` makes the value of what the environment or an assignment gives, or raises ValueError.
    """

    name: str

    def __init__(
        self,
        default: T,
        sentence: str,
        *,
        read: Callable[[object], T],
        expected: str,
        unit: str = "",
        secret: bool = False,
        shown_default: str | None = None,
    ) -> None:
        self.default = default
        self.sentence = sentence
        self.read = read
        self.expected = expected
        self.unit = unit
        self.secret = secret
        self.shown_default = str(default) if shown_default is None else shown_default

    def __set_name__(self, owner: type["Config"], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, config: None, owner: type["Config"]) -> Self: ...
    @overload
    def __get__(self, config: "Config", owner: type["Config"]) -> T: ...
    def __get__(self, config: "Config | None", owner: type["Config"]) -> Self | T:
        if config is None:
            return self
        value: T = config.values[self.name]
        return value

    def __set__(self, config: "Config", value: T) -> None:
        self.assign(config, value)

    def assign(self, config: "Config", value: object) -> None:
        """Keep what `value` means here, a text of the environment too, or raise InvalidSetting."""
        try:
            config.values[self.name] = self.read(value)
        except ValueError:
            shown = "the value" if self.secret else repr(value)
            raise InvalidSetting(f"{self.name}: {shown} is not {self.expected}.") from None


def text(
    default: str,
    sentence: str,
    *,
    read: Callable[[object], str] | None = None,
    expected: str = "a text",
    secret: bool = False,
    shown_default: str | None = None,
) -> Setting[str]:
    return Setting(
        default,
        sentence,
        read=read or _as_text,
        expected=expected,
        secret=secret,
        shown_default=shown_default,
    )


def choice(default: str, sentence: str, *options: str) -> Setting[str]:
    """One of `options`, written in any case."""

    def read(value: object) -> str:
        spelled = {option.lower(): option for option in options}
        if (word := _as_text(value).lower()) not in spelled:
            raise ValueError
        return spelled[word]

    return Setting(default, sentence, read=read, expected=f"one of {', '.join(options)}")


def flag(default: bool, sentence: str) -> Setting[bool]:
    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if (word := _as_text(value).lower()) not in {"true", "false"}:
            raise ValueError
        return word == "true"

    return Setting(
        default,
        sentence,
        read=read,
        expected="true or false",
        shown_default=str(default).lower(),
    )


def integer(
    default: int, sentence: str, *, unit: str = "", minimum: int = 0, maximum: int | None = None
) -> Setting[int]:
    def read(value: object) -> int:
        number = int(value if isinstance(value, int) else _as_text(value))
        if isinstance(value, bool) or number < minimum or number > (maximum or math.inf):
            raise ValueError
        return number

    reach = f"from {minimum} to {maximum}" if maximum else f"of at least {minimum}"
    return Setting(default, sentence, read=read, expected=f"an integer {reach}", unit=unit)


def seconds(default: float, sentence: str, *, zero: bool = False) -> Setting[float]:
    """A duration, fractions too; 0 only where `zero` says that it means something."""

    def read(value: object) -> float:
        number = float(value if isinstance(value, int | float) else _as_text(value))
        if isinstance(value, bool) or not math.isfinite(number) or number < (0 if zero else 0.001):
            raise ValueError
        return number

    return Setting(
        default,
        sentence,
        read=read,
        expected=f"a number of seconds {'of at least 0' if zero else 'above 0'}",
        unit="seconds",
        shown_default=str(int(default)),
    )


def share(default: float, sentence: str) -> Setting[float]:
    """A number from 0 to 1."""

    def read(value: object) -> float:
        number = float(value if isinstance(value, int | float) else _as_text(value))
        if isinstance(value, bool) or not 0 <= number <= 1:
            raise ValueError
        return number

    return Setting(default, sentence, read=read, expected="a number from 0 to 1")


def _as_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - a wrong setting is a ValueError, whatever is wrong
    return value.strip()


def _as_zone_name(value: object) -> str:
    name = _as_text(value)
    try:
        zone(name)
    except (ZoneInfoNotFoundError, OSError):  # OSError: the name of a directory, like `Europe`
        raise ValueError from None
    return name


def _as_path_prefix(value: object) -> str:
    return _as_text(value).strip("/")


def zone(name: str) -> tzinfo:
    """The time zone of that name; UTC needs no time zone data on the machine."""
    return UTC if name == "UTC" else ZoneInfo(name)


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A setting as documentation shows it; `default` is text, `unit` may be empty."""

    name: str
    kind: str
    unit: str
    default: str
    sentence: str


class Config:
    """The settings of one engine or service process.

    `environ` stands in for the environment of the process. Raises InvalidSetting (a ValueError)
    that names the variable, its value and what is expected.
    """

    __slots__ = ("values",)

    # Who we are
    INSTANCE_ID = text(
        socket.gethostname(), "Name of this instance in logs.", shown_default="the host's name"
    )
    ENVIRONMENT = text(
        "development", "What this runs for; `production` refuses to start with default secrets."
    )
    TZ = text(
        "UTC",
        "Time zone of logs, schedules and history answers.",
        read=_as_zone_name,
        expected="the name of a time zone, like Europe/Berlin",
    )
    LOG_LEVEL = choice(
        "INFO", "Least level that is logged.", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"
    )
    LOG_FORMAT = choice("json", "How a log line is written.", "json", "text")
    OTEL_EXPORTER_OTLP_ENDPOINT = text("", "Where traces go by OTLP gRPC; empty = nowhere.")
    OTEL_SERVICE_NAME = text("avtomatika", "Name of this service in traces.")
    SHUTDOWN_TIMEOUT_SECONDS = seconds(
        30, "How long running handlers may go on after a stop.", zero=True
    )

    # Stores
    REDIS_URL = text("", "Redis to use; goes before REDIS_HOST, _PORT and _DB.", secret=True)
    REDIS_HOST = text("", "Host of the Redis to use.")
    REDIS_PORT = integer(6379, "Port of the Redis to use.", minimum=1, maximum=65535)
    REDIS_DB = integer(0, "Number of the Redis database.")
    REDIS_STREAM_BLOCK_MS = integer(
        5000, "Longest single blocking read.", unit="milliseconds", minimum=1
    )
    AVTOMATIKA_PARTITIONS = integer(
        1, "Partitions of the jobs; fixed at the first start on a Redis.", minimum=1, maximum=64
    )
    AVTOMATIKA_DURABILITY = choice(
        "safe",
        "What an answer stands on, see [Operations](operations.md#durability).",
        "fast",
        "safe",
        "strict",
    )
    HISTORY_DATABASE_URI = text("", "History store, `sqlite:<path>`; empty = none.", secret=True)
    POSTGRES_DSN = text("", "History store when HISTORY_DATABASE_URI is empty.", secret=True)
    HISTORY_RETENTION_DAYS = integer(0, "Age at which history is removed; 0 = keep.", unit="days")

    # The HTTP door
    API_HOST = text("0.0.0.0", "Address the HTTP door listens on.")  # noqa: S104 - a server's door
    API_PORT = integer(8080, "TCP port of the HTTP door; 0 = any free one.", maximum=65535)
    CLIENT_API_PREFIX = text(
        "api", "First part of every client path; empty = root.", read=_as_path_prefix
    )
    ENABLE_CLIENT_API = flag(True, "Serve the client endpoints.")
    ENABLE_DEBUG_API = flag(False, "Serve the endpoint that deletes our own keys, to admins.")
    DETAILED_API_RESPONSES = flag(True, "Show clients the whole job document.")
    APPROVAL_AUTH_REQUIRED = flag(True, "An approval needs a client's token or the wait's own.")
    MAX_REQUEST_BODY_BYTES = integer(
        16_777_216, "Largest request body; a larger one gets 413.", unit="bytes", minimum=1
    )
    CLIENT_TOKEN = text(
        "secure-orchestrator-token",
        "Token of the unlimited client that exists without a clients file.",
        secret=True,
    )
    GLOBAL_WORKER_TOKEN = text(
        "secure-worker-token", "Token of every worker that has none of its own.", secret=True
    )
    CLIENTS_CONFIG_PATH = text("", "TOML file with the clients and their tokens.")
    WORKERS_CONFIG_PATH = text("", "TOML file with workers' own tokens.")
    SCHEDULES_CONFIG_PATH = text("", "TOML file with the schedules.")
    TLS_ENABLED = flag(False, "Serve HTTPS.")
    TLS_REQUIRE_CLIENT_CERT = flag(False, "Demand a client certificate of TLS_CA_PATH.")
    TLS_CERT_PATH = text("", "PEM file with the certificate of the HTTP door.")
    TLS_KEY_PATH = text("", "PEM file with its private key.")
    TLS_CA_PATH = text("", "PEM file with the authorities of client certificates.")
    RATE_LIMITING_ENABLED = flag(True, "Limit requests by client or worker and route.")
    RATE_LIMIT_LIMIT = integer(100, "Requests in a window.", unit="requests", minimum=1)
    RATE_LIMIT_PERIOD = seconds(60, "Length of the window.")
    RATE_LIMIT_HEARTBEAT_LIMIT = integer(120, "Heartbeats in a window.", unit="requests", minimum=1)
    RATE_LIMIT_POLL_LIMIT = integer(60, "Polls in a window.", unit="requests", minimum=1)

    # Jobs and their code
    AVTOMATIKA_BLUEPRINTS = text(
        "", "Blueprints to load: comma-separated `module` or `module:attribute`."
    )
    BLUEPRINTS_DIR = text("", "Directory whose `*.py` files are loaded for their blueprints.")
    AVTOMATIKA_EXECUTOR_GROUP = text("default", "Group of executors that share the same code.")
    EXECUTOR_MAX_CONCURRENT_JOBS = integer(
        100, "Jobs one executor works on at a time.", unit="jobs", minimum=1
    )
    JOB_MAX_RETRIES = integer(3, "Repeats after the first failed attempt.", unit="attempts")
    RETRY_DELAY_SECONDS = seconds(1, "Delay of the first repeat; each next is longer.", zero=True)
    JOB_RETENTION_SECONDS = seconds(
        604_800, "How long a job that ended can be read; 0 = keep.", zero=True
    )
    MAX_TRANSITIONS_PER_JOB = integer(10_000, "Steps after which a job is a loop; 0 = no limit.")
    MAX_HOLARCHY_DEPTH = integer(10, "How deep sub-blueprints may nest.", minimum=1)
    DISPATCH_TIMEOUT_SECONDS = seconds(
        3600, "How long a task may wait for a worker; 0 = for ever.", zero=True
    )

    # Workers
    WORKER_TIMEOUT_SECONDS = seconds(300, "How long a worker may take for a task.")
    WORKER_POLL_TIMEOUT_SECONDS = seconds(30, "How long a poll without a task is held.")
    WORKER_HEALTH_CHECK_INTERVAL_SECONDS = seconds(
        60, "Heartbeat interval; a worker silent for twice as long is gone."
    )
    WATCHER_INTERVAL_SECONDS = seconds(20, "Latest time after which a deadline is acted on.")
    STRICT_EVENT_VALIDATION = flag(
        True, "Refuse worker events a blueprint does not declare so; false: only log them."
    )
    DISPATCHER_SOFT_LIMIT = integer(
        3, "Tasks a worker may hold before strategy `overflow` passes it over.", minimum=1
    )
    REPUTATION_MIN_THRESHOLD = share(
        0.3, "Workers of a lower reputation get only tasks that no better one can do."
    )

    # Webhooks
    WEBHOOK_SECRET = text(
        "", "Signs webhooks: `whsec_<base64>` or plain text; empty = unsigned.", secret=True
    )
    WEBHOOK_ALLOW_PRIVATE_HOSTS = flag(
        True, "Call loopback and private addresses; false in production unless set."
    )

    # Files
    TASK_FILES_DIR = text("/tmp/avtomatika-payloads", "Directory of jobs' local files.")  # noqa: S108 - the promised default
    S3_ENDPOINT_URL = text("", "S3 to use; needs both keys too.")
    S3_ACCESS_KEY = text("", "Access key of the S3.", secret=True)
    S3_SECRET_KEY = text("", "Secret key of the S3.", secret=True)
    S3_REGION = text("us-east-1", "Region of the S3.")
    S3_DEFAULT_BUCKET = text("avtomatika-payloads", "Bucket of jobs' files.")
    S3_MAX_CONCURRENCY = integer(100, "S3 operations at a time.", unit="operations", minimum=1)

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        given = os.environ if environ is None else environ  # noqa: TID251 - the one place
        self.values: dict[str, Any] = {}
        for setting in _settings():
            setting.assign(self, given.get(setting.name, setting.default))
        if "WEBHOOK_ALLOW_PRIVATE_HOSTS" not in given and self.is_production():
            Config.WEBHOOK_ALLOW_PRIVATE_HOSTS.assign(self, False)

    @override
    def __repr__(self) -> str:
        """What differs from the defaults, secrets hidden."""
        changed = (
            f"{setting.name}={'***' if setting.secret else repr(self.values[setting.name])}"
            for setting in _settings()
            if self.values[setting.name] != setting.default
        )
        return f"Config({', '.join(changed)})"

    def is_production(self) -> bool:
        return self.ENVIRONMENT.lower() == "production"

    def timezone(self) -> tzinfo:
        return zone(self.TZ)

    def redis_url(self) -> str | None:
        """The Redis that was asked for, REDIS_URL before REDIS_HOST; None when neither is set."""
        if self.REDIS_URL or not self.REDIS_HOST:
            return self.REDIS_URL or None
        return self._redis_at(self.REDIS_HOST)

    def service_redis_url(self) -> str:
        """The Redis of a process that cannot do without: as `redis_url`, else on localhost."""
        return self.redis_url() or self._redis_at("localhost")

    def _redis_at(self, host: str) -> str:
        bracketed = f"[{host}]" if ":" in host else host
        return f"redis://{bracketed}:{self.REDIS_PORT}/{self.REDIS_DB}"

    def history_uri(self) -> str | None:
        """Where history is kept, HISTORY_DATABASE_URI before POSTGRES_DSN; None = nowhere."""
        return self.HISTORY_DATABASE_URI or self.POSTGRES_DSN or None

    @staticmethod
    def describe() -> list[SettingRow]:
        """Every setting in the order of declaration, for documentation."""
        return [
            SettingRow(
                name=setting.name,
                kind=type(setting.default).__name__,
                unit=setting.unit,
                default=setting.shown_default,
                sentence=setting.sentence,
            )
            for setting in _settings()
        ]


def _settings() -> list[Setting[Any]]:
    return [value for value in vars(Config).values() if isinstance(value, Setting)]
