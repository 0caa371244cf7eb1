"""Names for those who write handlers: error codes, exceptions and the types of hooks."""

from collections.abc import Awaitable, Callable
from typing import Any

from rxon.constants import ERROR_CODE_DEPENDENCY as DEPENDENCY_ERROR
from rxon.constants import ERROR_CODE_INTEGRITY_MISMATCH as INTEGRITY_MISMATCH_ERROR
from rxon.constants import ERROR_CODE_INTERNAL as INTERNAL_ERROR
from rxon.constants import ERROR_CODE_INVALID_INPUT as INVALID_INPUT_ERROR
from rxon.constants import ERROR_CODE_PERMANENT as PERMANENT_ERROR
from rxon.constants import ERROR_CODE_RESOURCE_EXHAUSTED as RESOURCE_EXHAUSTED_ERROR
from rxon.constants import ERROR_CODE_SECURITY as SECURITY_ERROR
from rxon.constants import ERROR_CODE_TIMEOUT as TIMEOUT_ERROR
from rxon.constants import ERROR_CODE_TRANSIENT as TRANSIENT_ERROR
from rxon.exceptions import ParamValidationError

CapacityChecker = Callable[[str], bool]
"""Told a task's name, says whether there is room for one now."""

Middleware = Callable[[dict[str, Any], Callable[..., Awaitable[Any]]], Awaitable[Any]]
"""`async (context, next)`: what it returns is what the handler returned; `await next()` goes on."""

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
