"""The wire between orchestrator and workers: messages, transports and what both sides agree on."""

from rxon.exceptions import RxonAuthError, RxonError, RxonNetworkError, RxonProtocolError
from rxon.models import (
    FileMetadata,
    GPUInfo,
    Heartbeat,
    HeartbeatAnswer,
    InstalledModel,
    ProgressUpdatePayload,
    Resources,
    ResultAnswer,
    TaskError,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerCapabilities,
    WorkerCommand,
    WorkerDocument,
    WorkerRegistration,
)
from rxon.parsing import (
    parse_error,
    parse_heartbeat,
    parse_object,
    parse_registration,
    parse_result,
    parse_worker_document,
)
from rxon.transports import Transport, create_transport
from rxon.validators import is_valid_identifier, validate_identifier

__all__ = [
    "FileMetadata",
    "GPUInfo",
    "Heartbeat",
    "HeartbeatAnswer",
    "InstalledModel",
    "ProgressUpdatePayload",
    "Resources",
    "ResultAnswer",
    "RxonAuthError",
    "RxonError",
    "RxonNetworkError",
    "RxonProtocolError",
    "TaskError",
    "TaskPayload",
    "TaskResult",
    "TokenResponse",
    "Transport",
    "WorkerCapabilities",
    "WorkerCommand",
    "WorkerDocument",
    "WorkerRegistration",
    "create_transport",
    "is_valid_identifier",
    "parse_error",
    "parse_heartbeat",
    "parse_object",
    "parse_registration",
    "parse_result",
    "parse_worker_document",
    "validate_identifier",
]
