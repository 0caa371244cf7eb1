"""The document of a job shows what its stage has, in JSON values, and nothing secret."""

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from avtomatika_common.backend.ports import JobView, OpenTask, Progress
from avtomatika_common.codec import as_json, json_bytes
from avtomatika_common.documents import job_document
from avtomatika_core.job import (
    ApprovalWait,
    BranchesWait,
    BranchResult,
    ChildWait,
    Client,
    HandlerRetryWait,
    Head,
    Job,
    JobData,
    JobId,
    JobStatus,
    LastError,
    Origin,
    Parent,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
    Wait,
    WorkerId,
    new_job,
)
from avtomatika_core.outcomes import TaskRequest

ORIGIN = Origin(
    blueprint="images",
    group="default",
    start_state="start",
    initial_data={"a": 1},
    client=Client(name="ada", plan="gold", params={"limit": 5}),
    created_at=100.0,
    webhook_url="https://ada.example/hook",
    tracing_context={"traceparent": "00-1-2-01"},
)
REQUEST = TaskRequest(
    type="resize",
    params={"width": 10},
    transitions={"success": "done"},
    priority=2.0,
    max_cost=0.5,
    resource_requirements={"gpu": 1},
    dispatch_timeout_seconds=30.0,
    result_timeout_seconds=60.0,
)
TASK_INFO = {
    "type": "resize",
    "params": {"width": 10},
    "transitions": {"success": "done"},
    "dispatch_strategy": "default",
    "resource_requirements": {"gpu": 1},
    "timeout_seconds": 60.0,
    "max_cost": 0.5,
    "priority": 2.0,
    "dispatch_timeout_seconds": 30.0,
    "result_timeout_seconds": 60.0,
    "event_transitions": None,
}
FRESH: dict[str, Any] = {
    "id": "j",
    "blueprint_name": "images",
    "current_state": "start",
    "initial_data": {"a": 1},
    "state_history": {},
    "status": "pending",
    "tracing_context": {"traceparent": "00-1-2-01"},
    "client_config": {"name": "ada", "plan": "gold", "params": {"limit": 5}},
    "webhook_url": "https://ada.example/hook",
    "created_at": 100.0,
    "updated_at": 100.0,
    "retry_count": 0,
    "task_retry_count": 0,
    "transition_count": 0,
    "error_message": None,
    "last_error": None,
    "data_metadata": {},
    "finished_at": None,
}
T, U = TaskId("t"), TaskId("u")


def a_job(status: JobStatus = JobStatus.PENDING, wait: Wait | None = None, **head: Any) -> Job:
    described: dict[str, Any] = {"state": "start", "updated_at": 100.0, **head}
    return Job(id=JobId("j"), origin=ORIGIN, head=Head(status=status, wait=wait, **described))


def document_of(job: Job, **beside: Any) -> dict[str, Any]:
    view: dict[str, Any] = {"task": None, "branches": (), "results": {}, "progress": (), **beside}
    document: dict[str, Any] = as_json(job_document(JobView(job=job, **view)))
    return document


def changes(document: dict[str, Any]) -> dict[str, Any]:
    """What differs from a job that was just created."""
    assert FRESH.keys() <= document.keys()
    return {key: value for key, value in document.items() if value != FRESH.get(key, "absent")}


def a_task_wait() -> TaskWait:
    return TaskWait(
        task_id=T,
        request=REQUEST,
        attempt=1,
        dispatched_at=101.0,
        dispatch_deadline=131.0,
        result_timeout_seconds=60.0,
    )


def test_a_new_job_has_all_keys_of_the_start() -> None:
    assert document_of(new_job(JobId("j"), ORIGIN)) == FRESH


def test_a_running_job_shows_its_counters_and_data() -> None:
    job = a_job(
        JobStatus.RUNNING, state="work", retry_count=1, transition_count=2, updated_at=105.0
    )
    data = JobData(state_history={"x": [1]}, initial_data={"b": 2}, data_metadata={"k": "v"})

    assert changes(document_of(replace(job, data=data))) == {
        "status": "running",
        "current_state": "work",
        "retry_count": 1,
        "transition_count": 2,
        "updated_at": 105.0,
        "state_history": {"x": [1]},
        "initial_data": {"b": 2},
        "data_metadata": {"k": "v"},
    }


def test_a_task_nobody_has_shows_why_it_waits() -> None:
    job = a_job(JobStatus.WAITING_FOR_WORKER, a_task_wait())
    task = OpenTask(
        task_id=T,
        worker_id=None,
        picked_up_at=None,
        result_deadline=None,
        waiting_reason="no worker has a gpu",
    )

    assert changes(document_of(job, task=task)) == {
        "status": "waiting_for_worker",
        "current_task_id": "t",
        "current_task_info": TASK_INFO,
        "current_task_transitions": {"success": "done"},
        "task_dispatched_at": 101.0,
        "dispatch_deadline": 131.0,
        "task_worker_id": None,
        "task_picked_up_at": None,
        "result_deadline": None,
        "waiting_reason": "no worker has a gpu",
    }


def test_a_task_that_was_handed_out_shows_its_holder_and_progress() -> None:
    job = a_job(JobStatus.WAITING_FOR_WORKER, a_task_wait())
    job = replace(job, data=JobData(state_history={"x": 1}))
    task = OpenTask(
        task_id=T,
        worker_id=WorkerId("w"),
        picked_up_at=102.0,
        result_deadline=162.0,
        waiting_reason="what was said before it was taken",
    )
    progress = [
        Progress(progress=0.2, message="a", at=0.0, task_id=T),
        Progress(progress=0.6, message="b", at=1.5, task_id=T),
    ]

    document = document_of(job, task=task, progress=progress)

    assert document["task_worker_id"] == "w"
    assert (document["task_picked_up_at"], document["result_deadline"]) == (102.0, 162.0)
    assert "waiting_reason" not in document
    assert (document["progress"], document["progress_message"]) == (0.6, "b")
    assert document["state_history"] == {
        "x": 1,
        "progress_updates": [
            {
                "progress": 0.2,
                "message": "a",
                "timestamp": "1970-01-01T00:00:00+00:00",
                "task_id": "t",
            },
            {
                "progress": 0.6,
                "message": "b",
                "timestamp": "1970-01-01T00:00:01.500000+00:00",
                "task_id": "t",
            },
        ],
    }


def test_a_fan_out_shows_its_open_branches_and_results() -> None:
    wait = BranchesWait(token="1", aggregate_into="join", count=2)
    results = {U: BranchResult(index=1, result={"status": "success", "data": {"n": 2}})}

    document = document_of(
        a_job(JobStatus.WAITING_FOR_PARALLEL_TASKS, wait), branches=[T], results=results
    )

    assert changes(document) == {
        "status": "waiting_for_parallel_tasks",
        "aggregation_target": "join",
        "active_branches": ["t"],
        "aggregation_results": {"u": {"status": "success", "data": {"n": 2}}},
    }


def test_a_job_that_waits_for_a_sub_job_names_it() -> None:
    wait = ChildWait(
        token="1", child_id=JobId("c"), child_group="default", blueprint="b", transitions={}
    )

    assert changes(document_of(a_job(JobStatus.WAITING_FOR_SUB_JOB, wait))) == {
        "status": "waiting_for_sub_job",
        "child_job_id": "c",
    }


def test_a_sub_job_names_its_parent_and_has_what_it_inherited() -> None:
    origin = replace(
        ORIGIN,
        parent=Parent(job_id=JobId("p"), group="default", token="secret-wait-token"),
        webhook_url=None,
        dispatch_timeout=5.0,
        result_timeout=6.0,
        timeout_seconds=90.0,
    )

    document = document_of(new_job(JobId("j"), origin))

    assert changes(document) == {
        "webhook_url": None,
        "parent_job_id": "p",
        "dispatch_timeout": 5.0,
        "result_timeout": 6.0,
        "timeout_seconds": 90.0,
    }


def test_an_approval_shows_its_decisions_but_neither_token_nor_hash() -> None:
    wait = ApprovalWait(
        token="wait-token",
        secret_hash="0123abcd",
        integration="chat",
        message="May I?",
        transitions={"yes": "go", "no": "stop", "timeout": "late"},
        requested_at=103.0,
        deadline=163.0,
    )

    document = document_of(a_job(JobStatus.WAITING_FOR_HUMAN, wait))

    assert changes(document) == {
        "status": "waiting_for_human",
        "approval": {
            "integration": "chat",
            "message": "May I?",
            "decisions": ["yes", "no"],
            "requested_at": 103.0,
            "deadline": 163.0,
        },
    }
    assert b"0123abcd" not in json_bytes(document)
    assert b"wait-token" not in json_bytes(document)


def test_a_sleeping_job_says_when_it_wakes() -> None:
    document = document_of(
        a_job(JobStatus.SLEEPING, SleepWait(token="1", due=163.0, next_state="b"))
    )

    assert changes(document) == {"status": "sleeping", "wake_at": 163.0}


def test_a_wait_for_a_signal_shows_its_name_and_deadline() -> None:
    wait = SignalWait(
        token="1", name="paid", transitions={"received": "b"}, requested_at=103.0, deadline=163.0
    )

    document = document_of(a_job(JobStatus.WAITING_FOR_SIGNAL, wait))

    assert changes(document) == {
        "status": "waiting_for_signal",
        "signal": {"name": "paid", "requested_at": 103.0, "deadline": 163.0},
    }


@pytest.mark.parametrize(
    ("wait", "task"),
    [
        (HandlerRetryWait(token="1", due=110.0), {}),
        (
            TaskRetryWait(token="1.2", request=REQUEST, attempt=2, due=110.0),
            {
                "current_task_info": TASK_INFO,
                "current_task_transitions": {"success": "done"},
            },
        ),
    ],
    ids=["handler", "task"],
)
def test_a_job_that_waits_for_a_repeat_shows_what_failed(wait: Wait, task: dict[str, Any]) -> None:
    job = a_job(JobStatus.AWAITING_RETRY, wait, error_message="boom")

    assert changes(document_of(job)) == {
        "status": "awaiting_retry",
        "error_message": "boom",
        **task,
    }


def test_a_failed_job_shows_the_whole_last_error() -> None:
    job = a_job(
        JobStatus.FAILED,
        state="failed",
        error_message="Task failed",
        last_error=LastError(code="SECURITY_ERROR", message="no", task_id=T),
        finished_at=120.0,
        updated_at=120.0,
    )

    assert changes(document_of(job)) == {
        "status": "failed",
        "current_state": "failed",
        "error_message": "Task failed",
        "last_error": {
            "code": "SECURITY_ERROR",
            "message": "no",
            "details": None,
            "task_id": "t",
            "worker_id": None,
        },
        "finished_at": 120.0,
        "updated_at": 120.0,
    }


def test_a_background_job_shows_where_it_came_from() -> None:
    client = Client(plan="system", token="internal-scheduler", params={"source": "nightly"})

    document = document_of(new_job(JobId("j"), replace(ORIGIN, client=client)))

    assert document["client_config"] == {
        "token": "internal-scheduler",
        "plan": "system",
        "params": {"source": "nightly"},
    }


def test_metadata_of_the_request_is_shown_where_there_is_some() -> None:
    document = document_of(new_job(JobId("j"), replace(ORIGIN, metadata={"ticket": 7})))

    assert changes(document) == {"metadata": {"ticket": 7}}


def test_a_document_is_made_of_json_values_alone() -> None:
    job = a_job(JobStatus.FAILED, last_error=LastError(code="C", message="m"))
    view = JobView(job=job, task=None, branches=(), results={}, progress=())

    assert orjson.loads(orjson.dumps(job_document(view))) == job_document(view)
