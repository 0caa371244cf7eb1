"""The worker's settings: each variable with its default, read once from the environment."""

import logging
import os
import platform
import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from avtomatika_worker.orchestrators import InvalidOrchestrator, read_orchestrators
from rxon import InstalledModel, Resources
from rxon.validators import validate_identifier

DEFAULT_TOKEN: Final = "your-secret-worker-token"  # noqa: S105 - a placeholder, warned about

MODES: Final = frozenset({"FAILOVER", "ROUND_ROBIN"})
_LAST_PORT: Final = 65535

_Value = TypeVar("_Value")


class InvalidSetting(ValueError):
    """A variable holds what cannot be used; the text names it."""


class WorkerConfig:
    """Settings of a worker. Every attribute may be assigned until the `Worker` is made.

    Times are in seconds. An empty variable counts as one that is not set.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = _Environment(os.environ if environment is None else environment)  # noqa: TID251 - the one reader
        self._drawn_id = f"worker-{uuid.uuid4()}"  # noqa: TID251 - the one id drawn here
        self.WORKER_ID = env.text("WORKER_ID", default=self._drawn_id)
        self.WORKER_TYPE = env.text("WORKER_TYPE", default="generic-cpu-worker")
        self.WORKER_PORT = env.integer("WORKER_PORT", 8083)
        self.HOSTNAME = socket.gethostname()
        self.IP_ADDRESS = _own_address()

        self.WORKER_TOKEN = env.text(
            "WORKER_INDIVIDUAL_TOKEN",
            "WORKER_TOKEN",
            "AVTOMATIKA_WORKER_TOKEN",
            default=DEFAULT_TOKEN,
        )
        self.ORCHESTRATORS: list[dict[str, object]] = env.json(
            "ORCHESTRATORS_CONFIG",
            list[dict[str, object]],
            [{"url": env.text("ORCHESTRATOR_URL", default="http://localhost:8080")}],
            like='[{"url": "http://localhost:8080", "priority": 1}]',
        )
        self.MULTI_ORCHESTRATOR_MODE = env.text("MULTI_ORCHESTRATOR_MODE", default="FAILOVER")
        self.TLS_CA_PATH = env.text("TLS_CA_PATH")
        self.TLS_CERT_PATH = env.text("TLS_CERT_PATH")
        self.TLS_KEY_PATH = env.text("TLS_KEY_PATH")

        self.MAX_CONCURRENT_TASKS = env.integer("MAX_CONCURRENT_TASKS", 10)
        self.COST_PER_SKILL: dict[str, float] = env.json(
            "COST_PER_SKILL", dict[str, float], {}, like='{"resize": 0.01}'
        )
        self.COST_PER_SECOND: float | None = env.json("COST_PER_SECOND", float, None, like="0.01")
        gpu_model = env.text("GPU_MODEL")
        self.RESOURCES: dict[str, object] = {
            "cpu_cores": env.integer("CPU_CORES", 4),
            "gpu_info": {"model": gpu_model, "vram_gb": env.integer("GPU_VRAM_GB", 0)}
            if gpu_model
            else None,
        }
        self.INSTALLED_SOFTWARE: dict[str, str] = env.json(
            "INSTALLED_SOFTWARE",
            dict[str, str],
            {"python": platform.python_version()},
            like='{"ffmpeg": "7.1"}',
        )
        self.INSTALLED_MODELS: list[dict[str, str]] = env.json(
            "INSTALLED_MODELS",
            list[dict[str, str]],
            [],
            like='[{"name": "llama", "version": "3"}]',
        )

        self.HEARTBEAT_INTERVAL = env.number("HEARTBEAT_INTERVAL", 15.0)
        self.HEARTBEAT_DEBOUNCE_DELAY = env.number("WORKER_HEARTBEAT_DEBOUNCE_DELAY", 0.1)
        self.TASK_POLL_TIMEOUT = env.number("TASK_POLL_TIMEOUT", 30.0)
        self.TASK_POLL_ERROR_DELAY = env.number("TASK_POLL_ERROR_DELAY", 5.0)
        self.IDLE_POLL_DELAY = env.number("IDLE_POLL_DELAY", 0.01)
        self.RESULT_MAX_RETRIES = env.integer("RESULT_MAX_RETRIES", 5)
        self.RESULT_RETRY_INITIAL_DELAY = env.number("RESULT_RETRY_INITIAL_DELAY", 1.0)
        self.SHUTDOWN_TIMEOUT = env.number("WORKER_SHUTDOWN_TIMEOUT", 30.0)

        self.ENABLE_WEBSOCKETS = env.boolean("WORKER_ENABLE_WEBSOCKETS", default=False)
        self.TASK_FILES_DIR = env.text(
            "TASK_FILES_DIR",
            "WORKER_PAYLOAD_DIR",
            default="/tmp/payloads",  # noqa: S108 - documented
        )
        self.RESULT_SPOOL_DIR = env.text("RESULT_SPOOL_DIR") or f"{self.TASK_FILES_DIR}/.results"
        self.S3_ENDPOINT_URL = env.text("S3_ENDPOINT_URL")
        self.S3_ACCESS_KEY = env.text("S3_ACCESS_KEY", "S3_ACCESS_KEY_ID")
        self.S3_SECRET_KEY = env.text("S3_SECRET_KEY", "S3_SECRET_ACCESS_KEY")
        self.S3_REGION = env.text("S3_REGION", default="us-east-1")
        self.S3_DEFAULT_BUCKET = env.text(
            "S3_DEFAULT_BUCKET", "S3_BUCKET", "S3_BUCKET_NAME", default="avtomatika-payloads"
        )

        self.LOG_LEVEL = env.text("LOG_LEVEL", default="INFO")
        self.LOG_FORMAT = env.text("LOG_FORMAT", default="text")
        self.NO_COLOR = bool(env.text("NO_COLOR"))

    @property
    def has_drawn_id(self) -> bool:
        """Nobody has given the worker a name."""
        return self._drawn_id == self.WORKER_ID

    def validate(self) -> None:
        """Raise ValueError, with what to mend, if a worker could not run with these settings."""
        validate_identifier(self.WORKER_ID, "WORKER_ID")
        try:
            read_orchestrators(self.ORCHESTRATORS)
        except InvalidOrchestrator as error:
            raise InvalidSetting(str(error)) from error
        try:
            msgspec.convert(self.RESOURCES, Resources)
        except msgspec.ValidationError as error:
            raise InvalidSetting(f"RESOURCES: {error}.") from error
        try:
            msgspec.convert(self.INSTALLED_MODELS, list[InstalledModel])
        except msgspec.ValidationError as error:
            raise InvalidSetting(f"INSTALLED_MODELS: {error}.") from error
        if self.MAX_CONCURRENT_TASKS < 1:
            raise InvalidSetting("MAX_CONCURRENT_TASKS must be at least 1.")
        if self.RESULT_MAX_RETRIES < 0:
            raise InvalidSetting("RESULT_MAX_RETRIES must be at least 0.")
        for name in ("HEARTBEAT_INTERVAL", "TASK_POLL_ERROR_DELAY"):
            if getattr(self, name) <= 0:
                raise InvalidSetting(f"{name} must be above 0 seconds.")
        if not 0 <= self.WORKER_PORT <= _LAST_PORT:
            raise InvalidSetting(f"WORKER_PORT must be from 0 to {_LAST_PORT}.")
        if self.LOG_LEVEL.upper() not in logging.getLevelNamesMapping():
            raise InvalidSetting(f"LOG_LEVEL must be a level such as INFO, not '{self.LOG_LEVEL}'.")
        if self.LOG_FORMAT.lower() not in {"text", "json"}:
            raise InvalidSetting(f"LOG_FORMAT must be text or json, not '{self.LOG_FORMAT}'.")
        self._check_files()

    def _check_files(self) -> None:
        for name in ("TLS_CA_PATH", "TLS_CERT_PATH", "TLS_KEY_PATH"):
            path = getattr(self, name)
            if not path:
                continue
            try:
                with Path(path).open("rb"):
                    pass
            except OSError as error:
                raise InvalidSetting(f"{name}: cannot read '{path}': {error.strerror}.") from error


class _Environment:
    """Variables under their names and fallback names, turned into values."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def text(self, *names: str, default: str = "") -> str:
        return next((found for name in names if (found := self._variables.get(name))), default)

    def integer(self, name: str, default: int) -> int:
        return self._read(name, int, "a whole number", default)

    def number(self, name: str, default: float) -> float:
        return self._read(name, _seconds, "a number of seconds", default)

    def boolean(self, name: str, *, default: bool) -> bool:
        return self._read(name, _truth, "true or false", default)

    def json(self, name: str, type_: object, default: _Value, *, like: str) -> _Value:
        """`like` shows what is expected. A wrong value is not shown: it may hold a token."""
        text = self.text(name)
        if not text:
            return default
        try:
            value: _Value = msgspec.json.decode(text, type=type_)
        except msgspec.DecodeError as error:
            raise InvalidSetting(f"{name} must be JSON such as {like}: {error}.") from error
        return value

    def _read(
        self, name: str, read: Callable[[str], _Value], expected: str, default: _Value
    ) -> _Value:
        text = self.text(name)
        if not text:
            return default
        try:
            return read(text)
        except ValueError:
            raise InvalidSetting(f"{name} must be {expected}, not '{text}'.") from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError
    return value


def _truth(text: str) -> bool:
    match text.lower():
        case "true":
            return True
        case "false":
            return False
        case _:
            raise ValueError


def _own_address() -> str:
    """The address other machines see; choosing a route sends no packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
