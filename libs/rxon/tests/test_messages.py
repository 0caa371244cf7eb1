"""Each message as it stands on the wire, written out by hand."""

import msgspec
import orjson
import pytest

from rxon import (
    FileMetadata,
    GPUInfo,
    Heartbeat,
    InstalledModel,
    ProgressUpdatePayload,
    Resources,
    TaskError,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerCapabilities,
    WorkerCommand,
    WorkerRegistration,
)
from rxon.utils import to_dict

GOLDEN: list[tuple[msgspec.Struct, dict[str, object]]] = [
    (
        WorkerRegistration(
            worker_id="cpu-1",
            worker_type="cpu",
            supported_tasks=("resize",),
            resources=Resources(
                max_concurrent_tasks=2, cpu_cores=4, gpu_info=GPUInfo(model="T4", vram_gb=16)
            ),
            installed_software={"python": "3.11"},
            installed_models=(InstalledModel(name="llama", version="3"),),
            capabilities=WorkerCapabilities(
                hostname="h", ip_address="10.0.0.1", cost_per_skill={"resize": 0.5}
            ),
        ),
        {
            "worker_id": "cpu-1",
            "worker_type": "cpu",
            "supported_tasks": ["resize"],
            "resources": {
                "max_concurrent_tasks": 2,
                "cpu_cores": 4,
                "gpu_info": {"model": "T4", "vram_gb": 16},
            },
            "installed_software": {"python": "3.11"},
            "installed_models": [{"name": "llama", "version": "3"}],
            "capabilities": {
                "hostname": "h",
                "ip_address": "10.0.0.1",
                "cost_per_skill": {"resize": 0.5},
                "s3_config_hash": None,
                "extra": None,
            },
        },
    ),
    (
        Heartbeat(
            worker_id="cpu-1",
            status="busy",
            load=1.0,
            current_tasks=("t-1",),
            supported_tasks=(),
            hot_cache=("llama",),
            skill_dependencies={"resize": ("llama",)},
            hot_skills=None,
        ),
        {
            "worker_id": "cpu-1",
            "status": "busy",
            "load": 1.0,
            "current_tasks": ["t-1"],
            "supported_tasks": [],
            "hot_cache": ["llama"],
            "skill_dependencies": {"resize": ["llama"]},
            "hot_skills": None,
        },
    ),
    (
        TaskPayload(
            job_id="j-1",
            task_id="t-1",
            type="resize",
            params={"width": 10},
            tracing_context={"traceparent": "00-1"},
            params_metadata={"file": FileMetadata(uri="s3://b/k", size=3, etag="e")},
        ),
        {
            "job_id": "j-1",
            "task_id": "t-1",
            "type": "resize",
            "params": {"width": 10},
            "tracing_context": {"traceparent": "00-1"},
            "params_metadata": {"file": {"uri": "s3://b/k", "size": 3, "etag": "e"}},
        },
    ),
    (
        TaskPayload(job_id="j-1", task_id="t-1", type="resize"),
        {
            "job_id": "j-1",
            "task_id": "t-1",
            "type": "resize",
            "params": {},
            "tracing_context": {},
            "params_metadata": None,
        },
    ),
    (
        TaskResult(job_id="j-1", task_id="t-1", worker_id="cpu-1", status="success", data={"n": 1}),
        {
            "job_id": "j-1",
            "task_id": "t-1",
            "worker_id": "cpu-1",
            "status": "success",
            "data": {"n": 1},
            "error": None,
            "data_metadata": None,
        },
    ),
    (
        TaskResult(
            job_id="j-1",
            task_id="t-1",
            worker_id="cpu-1",
            status="failure",
            error=TaskError(code="TRANSIENT_ERROR", message="disk full"),
        ),
        {
            "job_id": "j-1",
            "task_id": "t-1",
            "worker_id": "cpu-1",
            "status": "failure",
            "data": None,
            "error": {"code": "TRANSIENT_ERROR", "message": "disk full", "details": None},
            "data_metadata": None,
        },
    ),
    (
        ProgressUpdatePayload(task_id="t-1", job_id="j-1", progress=0.5),
        {
            "event": "progress_update",
            "task_id": "t-1",
            "job_id": "j-1",
            "progress": 0.5,
            "message": None,
        },
    ),
    (
        WorkerCommand(command="cancel_task", task_id="t-1", job_id="j-1"),
        {"command": "cancel_task", "task_id": "t-1", "job_id": "j-1", "params": None},
    ),
    (
        TokenResponse(access_token="secret", expires_in=3600, worker_id="cpu-1"),
        {"access_token": "secret", "expires_in": 3600, "worker_id": "cpu-1"},
    ),
]


def _named(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, msgspec.Struct) else None


@pytest.mark.parametrize(("message", "on_the_wire"), GOLDEN, ids=_named)
def test_a_message_is_written_as_agreed(
    message: msgspec.Struct, on_the_wire: dict[str, object]
) -> None:
    assert msgspec.json.decode(msgspec.json.encode(message)) == on_the_wire
    assert orjson.loads(orjson.dumps(to_dict(message))) == on_the_wire


@pytest.mark.parametrize(("message", "on_the_wire"), GOLDEN, ids=_named)
def test_a_message_is_read_back_with_keys_it_does_not_know(
    message: msgspec.Struct, on_the_wire: dict[str, object]
) -> None:
    read = msgspec.convert({**on_the_wire, "from_the_future": 1}, type(message))

    assert read == message


def test_a_cost_per_second_is_sent_only_when_there_is_one() -> None:
    assert "cost_per_second" not in to_dict(WorkerRegistration(worker_id="w"))
    assert to_dict(WorkerRegistration(worker_id="w", cost_per_second=0.1))["cost_per_second"] == 0.1
