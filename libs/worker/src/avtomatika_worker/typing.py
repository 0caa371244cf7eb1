"""The names of `avtomatika_worker.types` under their second name."""

from avtomatika_worker.types import (
    DEPENDENCY_ERROR,
    INTEGRITY_MISMATCH_ERROR,
    INTERNAL_ERROR,
    INVALID_INPUT_ERROR,
    PERMANENT_ERROR,
    RESOURCE_EXHAUSTED_ERROR,
    SECURITY_ERROR,
    TIMEOUT_ERROR,
    TRANSIENT_ERROR,
    CapacityChecker,
    Middleware,
    ParamValidationError,
)

__all__ = [
    "DEPENDENCY_ERROR",
    "INTEGRITY_MISMATCH_ERROR",
    "INTERNAL_ERROR",
    "INVALID_INPUT_ERROR",
    "PERMANENT_ERROR",
    "RESOURCE_EXHAUSTED_ERROR",
    "SECURITY_ERROR",
    "TIMEOUT_ERROR",
    "TRANSIENT_ERROR",
    "CapacityChecker",
    "Middleware",
    "ParamValidationError",
]
