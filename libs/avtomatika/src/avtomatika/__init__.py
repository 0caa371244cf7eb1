"""Avtomatika: an orchestrator for long-running, asynchronous work.

Write a blueprint (a state machine), register it with an `OrchestratorEngine`, and let workers pull its
tasks over HTTP.
"""

from importlib.metadata import version

from avtomatika.engine import OrchestratorEngine
from avtomatika_common.actions import ActionFactory
from avtomatika_common.aliases import Blueprint
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import StorageBackend
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_core.retry_policy import RetryPolicy
from rxon.validators import is_valid_identifier, validate_identifier

__version__ = version("avtomatika")

__all__ = [
    "ActionFactory",
    "Blueprint",
    "JobContext",
    "MemoryStorage",
    "OrchestratorEngine",
    "RetryPolicy",
    "StateMachineBlueprint",
    "StorageBackend",
    "__version__",
    "is_valid_identifier",
    "validate_identifier",
]

try:
    from avtomatika_common.backend.redis.storage import RedisStorage
except ModuleNotFoundError as missing:
    if missing.name not in {"redis", "hiredis"}:
        raise
else:
    __all__ += ["RedisStorage"]
