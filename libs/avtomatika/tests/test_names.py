"""What users import is there, under the promised names."""

import importlib

import pytest

import avtomatika
from avtomatika import app_keys
from avtomatika.engine import OrchestratorEngine
from avtomatika_common.config import Config

PROMISED = {
    "avtomatika": "ActionFactory JobContext OrchestratorEngine StateMachineBlueprint StorageBackend"
    " MemoryStorage RedisStorage RetryPolicy Blueprint is_valid_identifier validate_identifier __version__",
    "avtomatika.config": "Config",
    "avtomatika.context": "ActionFactory JobContext",
    "avtomatika.storage": "MemoryStorage RedisStorage StorageBackend",
    "avtomatika.blueprint": "StateMachineBlueprint Blueprint",
    "avtomatika.data_types": "ClientConfig JobContext",
    "avtomatika.datastore": "AsyncDictStore",
    "avtomatika.engine": "OrchestratorEngine",
    "avtomatika.app_keys": "ENGINE_KEY HTTP_SESSION_KEY DISPATCHER_KEY EXECUTOR_KEY WATCHER_KEY"
    " SCHEDULER_KEY HISTORY_KEY",
    "avtomatika.constants": "AUTH_HEADER_CLIENT AUTH_HEADER_WORKER COMMAND_CANCEL_TASK"
    " ENDPOINT_TASK_NEXT ENDPOINT_TASK_RESULT ENDPOINT_WORKER_HEARTBEAT ENDPOINT_WORKER_REGISTER"
    " ERROR_CODE_DEPENDENCY ERROR_CODE_INTEGRITY_MISMATCH ERROR_CODE_INTERNAL ERROR_CODE_PERMANENT"
    " ERROR_CODE_RESOURCE_EXHAUSTED ERROR_CODE_SECURITY ERROR_CODE_TIMEOUT ERROR_CODE_TRANSIENT"
    " JOB_STATUS_CANCELLED JOB_STATUS_ERROR JOB_STATUS_FAILED JOB_STATUS_FINISHED"
    " JOB_STATUS_PENDING JOB_STATUS_QUARANTINED JOB_STATUS_RUNNING JOB_STATUS_WAITING_FOR_HUMAN"
    " JOB_STATUS_WAITING_FOR_PARALLEL JOB_STATUS_WAITING_FOR_WORKER MSG_TYPE_PROGRESS"
    " PROTOCOL_VERSION PROTOCOL_VERSION_HEADER STS_TOKEN_ENDPOINT TASK_STATUS_CANCELLED"
    " TASK_STATUS_FAILURE TASK_STATUS_SUCCESS WORKER_API_PREFIX WS_ENDPOINT",
}
NAMES = [(module, name) for module, names in PROMISED.items() for name in names.split()]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_promised_name_can_be_imported(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", PROMISED)
def test_what_a_module_exports_is_there(module: str) -> None:
    imported = importlib.import_module(module)

    exported = getattr(imported, "__all__", [])

    assert [name for name in exported if not hasattr(imported, name)] == []


def test_the_second_name_means_the_first() -> None:
    assert avtomatika.Blueprint is avtomatika.StateMachineBlueprint


@pytest.mark.parametrize(
    "key", [name for name in PROMISED["avtomatika.app_keys"].split() if name != "HTTP_SESSION_KEY"]
)
def test_parts_of_an_engine_are_in_its_application_from_its_making_on(key: str) -> None:
    engine = OrchestratorEngine(config=Config({}))

    part = engine.app[getattr(app_keys, key)]

    word = key.removesuffix("_KEY").lower()
    assert word in str(getattr(app_keys, key))
    assert part is engine or part.name == word
