"""Every message of the wire, byte by byte: what is in `golden/` was sent and will be understood.

A file is called as its message, a further one `<message>_<what is special>`. Changing one breaks
peers that are out there; adding one does not.
"""

import json
import re
from pathlib import Path

import msgspec
import orjson
import pytest

import rxon
from rxon import (
    BatchedResultAnswer,
    EventAnswer,
    FileMetadata,
    GPUInfo,
    Heartbeat,
    HeartbeatAnswer,
    InstalledModel,
    ProgressAnswer,
    ProgressUpdatePayload,
    Resources,
    ResultAnswer,
    ResultBatch,
    ResultBatchAnswer,
    Skill,
    Task,
    TaskBatch,
    TaskError,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerCapabilities,
    WorkerCommand,
    WorkerDocument,
    WorkerEvent,
    WorkerRegistration,
)
from rxon.utils import to_dict
from tests.interop.door import Door, result_of

GOLDEN = Path(__file__).parent / "golden"

_GPU = GPUInfo(model="NVIDIA T4", vram_gb=16)
_FILE = FileMetadata(uri="s3://bucket/key", size=3, etag="d41d8cd9")
_CAPABILITIES = WorkerCapabilities(
    hostname="box",
    ip_address="10.0.0.1",
    cost_per_skill={"resize": 0.0005},
    s3_config_hash="0123456789abcdef",
    extra={"zone": "eu"},
)

MESSAGES: dict[str, msgspec.Struct] = {
    "batched_result_answer": BatchedResultAnswer(
        status="ignored", reason="worker_mismatch", message="Not yours."
    ),
    "batched_result_answer_error": BatchedResultAnswer(error="Job not found"),
    "event_answer": EventAnswer(),
    "file_metadata": _FILE,
    "gpu_info": _GPU,
    "heartbeat": Heartbeat(
        worker_id="w1",
        status="busy",
        load=1.0,
        current_tasks=("t-1",),
        supported_tasks=("resize",),
        hot_cache=("llama",),
        skill_dependencies={"resize": ("llama",)},
        hot_skills=("resize",),
    ),
    "heartbeat_empty": Heartbeat(
        worker_id="w1",
        status="idle",
        load=0.0,
        current_tasks=(),
        supported_tasks=(),
        hot_cache=(),
        skill_dependencies=None,
        hot_skills=None,
    ),
    "heartbeat_answer": HeartbeatAnswer(cancel_task_ids=("t-1", "t-2")),
    "installed_model": InstalledModel(name="llama", version="3"),
    "progress_answer": ProgressAnswer(
        status="ignored",
        reason="job_cancelled",
        message="It was cancelled.",
        cancel_task_ids=("t-1",),
    ),
    "progress_update_payload": ProgressUpdatePayload(
        task_id="t-1", job_id="j-1", progress=0.5, message="half", checkpoint={"page": 7}
    ),
    "progress_update_payload_bare": ProgressUpdatePayload(task_id="t-1", job_id="j-1"),
    "resources": Resources(max_concurrent_tasks=2, cpu_cores=8, gpu_info=_GPU),
    "result_answer": ResultAnswer(status="ignored", reason="stale_task", message="It is over."),
    "result_answer_ok": ResultAnswer(status="ok"),
    "result_batch": ResultBatch(
        results=(TaskResult(job_id="j-1", task_id="t-1", worker_id="w1", status="success"),), max=4
    ),
    "result_batch_without_max": ResultBatch(results=()),
    "result_batch_answer": ResultBatchAnswer(
        answers=(BatchedResultAnswer(status="ok"), BatchedResultAnswer(error="Job not found")),
        tasks=(Task(job_id="j-1", task_id="t-2", type="resize"),),
    ),
    "skill": Skill(
        name="resize",
        version="2",
        type="image",
        description="Makes it smaller",
        input_schema={"type": "object"},
        output_schema={"type": "object"},
        events_schema={"page_done": {"type": "object"}},
        output_statuses=("success", "needs_review"),
    ),
    "task": Task(
        job_id="j-1",
        task_id="t-1",
        type="resize",
        params={"width": 10},
        attempt=2,
        deadline=1767268800.5,
        checkpoint={"page": 7},
    ),
    "task_batch": TaskBatch(
        tasks=(Task(job_id="j-1", task_id="t-1", type="resize", deadline=1767268800.5),)
    ),
    "task_error": TaskError(code="TRANSIENT_ERROR", message="disk full", details={"free": 0}),
    "task_payload": TaskPayload(
        job_id="j-1",
        task_id="t-1",
        type="resize",
        params={"width": 10, "name": "é"},
        tracing_context={"traceparent": "00-1"},
        params_metadata={"file": FileMetadata(uri="s3://bucket/key", size=3)},
    ),
    "task_payload_bare": TaskPayload(job_id="j-1", task_id="t-1", type="resize"),
    "task_result": TaskResult(
        job_id="j-1",
        task_id="t-1",
        worker_id="w1",
        status="success",
        data={"out": [1, None]},
        data_metadata={"out": _FILE},
    ),
    "task_result_failure": TaskResult(
        job_id="j-1",
        task_id="t-1",
        worker_id="w1",
        status="failure",
        error=TaskError(code="PERMANENT_ERROR", message="broken"),
    ),
    "token_response": TokenResponse(access_token="c2VjcmV0", expires_in=3600.0, worker_id="w1"),
    "worker_capabilities": _CAPABILITIES,
    "worker_command": WorkerCommand(command="cancel_task", task_id="t-1", job_id="j-1"),
    "worker_document": WorkerDocument(
        worker_id="w1",
        worker_type="cpu",
        supported_tasks=("resize",),
        resources=Resources(max_concurrent_tasks=2, cpu_cores=8),
        capabilities=WorkerCapabilities(hostname="box", ip_address="10.0.0.1"),
        status="busy",
        load=1.0,
        current_tasks=("t-1",),
        hot_cache=("llama",),
        hot_skills=("resize",),
        skill_dependencies={"resize": ("llama",)},
        cost=0.25,
        reputation=0.9,
    ),
    "worker_event": WorkerEvent(
        event_id="e-1",
        worker_id="w1",
        origin_worker_id="w1",
        event_type="page_done",
        payload={"page": 7},
        origin_task_id="t-1",
        bubbling_chain=("w1",),
        target_job_id="j-1",
        target_task_id="t-1",
        trace_context={"traceparent": "00-1"},
        priority=1.0,
        timestamp=1767268800.0,
        metadata={"a": 1},
    ),
    "worker_registration": WorkerRegistration(
        worker_id="gpu-worker_01",
        worker_type="gpu",
        supported_tasks=("resize", "transcode"),
        resources=Resources(max_concurrent_tasks=2, cpu_cores=8, gpu_info=_GPU),
        installed_software={"python": "3.11"},
        installed_models=(InstalledModel(name="llama", version="3"),),
        capabilities=_CAPABILITIES,
        cost_per_second=0.5,
        supported_skills=(Skill(name="resize", version="2"),),
    ),
    "worker_registration_bare": WorkerRegistration(worker_id="w1"),
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().removesuffix(b"\n")


def test_there_is_a_golden_file_of_every_message_and_of_nothing_else() -> None:
    messages = {
        name
        for name in rxon.__all__
        if isinstance(it := getattr(rxon, name), type) and issubclass(it, msgspec.Struct)
    }
    named = {re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=U)(?=I)", "_", name).lower() for name in messages}

    assert {file.stem for file in GOLDEN.iterdir()} == set(MESSAGES)
    assert {type(message).__name__ for message in MESSAGES.values()} == messages
    assert named <= set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_written_to_the_byte(name: str) -> None:
    assert orjson.dumps(to_dict(MESSAGES[name])) == golden(name)
    assert msgspec.json.encode(MESSAGES[name]) == golden(name)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_message_is_understood(name: str) -> None:
    message = MESSAGES[name]

    assert msgspec.json.decode(golden(name), type=type(message)) == message


@pytest.mark.parametrize("name", MESSAGES)
def test_keys_from_a_later_version_are_passed_over(name: str) -> None:
    message = MESSAGES[name]
    later = json.dumps({"from_the_future": {"a": [1]}, **json.loads(golden(name))}).encode()

    assert msgspec.json.decode(later, type=type(message)) == message


def test_what_workers_sent_is_parsed_as_it_was_meant() -> None:
    registration = rxon.parse_object(golden("worker_registration"))
    heartbeat = rxon.parse_object(golden("heartbeat"))
    result = rxon.parse_object(golden("task_result"))
    failure = rxon.parse_object(golden("task_result_failure"))
    document = rxon.parse_object(golden("worker_document"))

    assert rxon.parse_registration(registration) == MESSAGES["worker_registration"]
    assert rxon.parse_heartbeat(heartbeat, worker_id="w1") == MESSAGES["heartbeat"]
    assert rxon.parse_result(result) == MESSAGES["task_result"]
    assert rxon.parse_result(failure) == MESSAGES["task_result_failure"]
    assert rxon.parse_worker_document(document) == MESSAGES["worker_document"]


async def test_the_servers_real_answers_are_these_messages(door: Door) -> None:
    """Golden requests go in; of every answer the bytes are what its message is written as."""
    registered = await door.call(
        "POST", "/_worker/workers/register", golden("worker_registration_bare")
    )
    merged = await door.heartbeat("w1", {"supported_tasks": ["resize"], "load": 0.5})
    job_id = await door.create(params={"width": 10, "name": "é"})
    polled = await door.poll("w1")
    task = msgspec.json.decode(polled.body, type=TaskPayload)
    ok = await door.result(result_of(polled.json, "w1"))
    stale = await door.result(golden("task_result").replace(b"j-1", job_id.encode()))
    document = msgspec.json.decode(merged.body, type=WorkerDocument)

    assert registered.body == b'{"status":"registered","version":"1.0b2"}'
    assert (document.worker_id, document.supported_tasks, document.load) == ("w1", ("resize",), 0.5)
    assert orjson.dumps(to_dict(task)) == polled.body
    assert list(polled.json) == list(json.loads(golden("task_payload")))
    assert task.params == {"width": 10, "name": "é"}
    assert ok.body == golden("result_answer_ok")
    assert list(stale.json) == list(json.loads(golden("result_answer")))
    assert msgspec.json.encode(msgspec.json.decode(stale.body, type=ResultAnswer)) == stale.body


async def test_a_task_that_was_cancelled_is_told_as_in_the_golden_answer(door: Door) -> None:
    task = await door.held("w1")
    await door.cancel(task["job_id"])
    await door.ended(task["job_id"])

    answer = await door.heartbeat("w1", {"current_tasks": [task["task_id"]]})

    told = msgspec.json.decode(answer.body, type=HeartbeatAnswer)
    assert told == HeartbeatAnswer(cancel_task_ids=(task["task_id"],))
