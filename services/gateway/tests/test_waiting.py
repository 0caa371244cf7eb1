"""Why a job waits: what clients are told of its wait, its tasks, and each worker passed over."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from services.gateway.tests.door import A_TASK, UNKNOWN, Door, open_door
from services.gateway.tests.test_client_api import Archive

from avtomatika_common.backend.ports import JobView, OpenTask, Places, WaitingTask, Worker
from avtomatika_core.job import (
    ApprovalWait,
    BranchesWait,
    ChildWait,
    HandlerRetryWait,
    JobId,
    JobStatus,
    Origin,
    SignalWait,
    SleepWait,
    TaskId,
    TaskRetryWait,
    TaskWait,
    Wait,
    WorkerId,
    new_job,
)
from avtomatika_core.outcomes import AwaitApproval, DispatchParallel, TaskRequest
from avtomatika_gateway.waiting import why_waiting

T, C = TaskId("t"), JobId("c")
REQUEST = TaskRequest(type="scan")
THRESHOLD = 0.3


def a_view(wait: Wait | None = None, task: OpenTask | None = None) -> JobView:
    job = new_job(
        JobId("j"), Origin(blueprint="b", group="default", start_state="s", created_at=1.0)
    )
    head = replace(job.head, wait=wait, updated_at=5.0, status=JobStatus.WAITING_FOR_WORKER)
    return JobView(job=replace(job, head=head), task=task, branches=(), results={}, progress=())


def a_task(task_id: str = "t", **changes: Any) -> WaitingTask:
    task = WaitingTask(
        task_id=TaskId(task_id),
        job_id=JobId("j"),
        type="scan",
        resource_requirements=None,
        max_cost=None,
        strategy="default",
        priority=0.0,
        offer_number=1,
    )
    return replace(task, **changes)


def a_worker(name: str, *, polls: int = 1, held: int = 0, **document: Any) -> Worker:
    return Worker(
        worker_id=WorkerId(name),
        document={"supported_tasks": ["scan"], **document},
        places=Places(incarnation=1, room=polls, held=held, stamp=0),
        turns={},
    )


def told(task: WaitingTask, *workers: Worker) -> dict[str, str]:
    """Worker -> the reason it was passed over."""
    [shown] = why_waiting(a_view(), [task], workers, THRESHOLD)["tasks"]
    return {row["worker_id"]: row["reason"] for row in shown["workers"]}


TASK_WAIT = TaskWait(
    task_id=T,
    request=REQUEST,
    attempt=1,
    dispatched_at=2.0,
    dispatch_deadline=9.0,
    result_timeout_seconds=60.0,
)
SIGNAL_WAIT = SignalWait(
    token="t", name="paid", transitions={"received": "s"}, requested_at=4.0, deadline=8.0
)
APPROVAL_WAIT = ApprovalWait(
    token="t",
    secret_hash="h",
    integration="mail",
    message="?",
    transitions={},
    requested_at=4.0,
    deadline=8.0,
)


@pytest.mark.parametrize(
    ("wait", "waiting_for", "since", "deadline"),
    [
        (TASK_WAIT, "worker", 2.0, 9.0),
        (BranchesWait(token="t", aggregate_into="a", count=2), "branches", 5.0, None),
        (
            ChildWait(token="t", child_id=C, child_group="g", blueprint="b", transitions={}),
            "sub_job", 5.0, None,
        ),
        (APPROVAL_WAIT, "human", 4.0, 8.0),
        (TaskRetryWait(token="t", request=REQUEST, attempt=2, due=7.0), "retry", 5.0, 7.0),
        (HandlerRetryWait(token="t", due=7.0), "retry", 5.0, 7.0),
        (SleepWait(token="t", due=7.0, next_state="s"), "timer", 5.0, 7.0),
        (SIGNAL_WAIT, "signal", 4.0, 8.0),
        (None, None, None, None),
    ],
)  # fmt: skip
def test_every_wait_says_for_what_since_when_and_until_when(
    wait: Wait | None, waiting_for: str | None, since: float | None, deadline: float | None
) -> None:
    assert why_waiting(a_view(wait), [], [], THRESHOLD) == {
        "status": "waiting_for_worker",
        "waiting_for": waiting_for,
        "since": since,
        "deadline": deadline,
        "tasks": [],
    }


def test_a_task_in_a_workers_hands_has_its_result_deadline() -> None:
    task = OpenTask(
        task_id=T,
        worker_id=WorkerId("w"),
        picked_up_at=3.0,
        result_deadline=63.0,
        waiting_reason=None,
    )

    answer = why_waiting(a_view(TASK_WAIT, task), [], [], THRESHOLD)

    assert (answer["waiting_for"], answer["since"], answer["deadline"]) == ("worker", 2.0, 63.0)


def test_every_worker_is_told_with_what_keeps_it_from_the_task() -> None:
    task = a_task(resource_requirements={"cpu_cores": 4, "properties": {"ssd": True}}, max_cost=1)
    fit: dict[str, Any] = {
        "resources": {"cpu_cores": 4, "max_concurrent_tasks": 2},
        "capabilities": {"extra": {"ssd": True}},
        "cost": 1,
    }
    dear: dict[str, Any] = {**fit, "cost": 2.5}
    assert told(
        task,
        a_worker("other", supported_tasks=["resize"]),
        a_worker("barred", allowed_skills=["resize"]),
        a_worker("draining", status="draining"),
        a_worker("small"),
        a_worker("dear", **dear),
        a_worker("unpriced", **{key: fit[key] for key in ("resources", "capabilities")}),
        a_worker("poor", **fit, reputation=0.25),
        a_worker("full", **fit, held=2),
        a_worker("away", **fit, polls=0),
        a_worker("ready", **fit),
    ) == {
        "other": "does not do tasks of type 'scan'",
        "barred": "may not be given tasks of type 'scan'",
        "draining": "is draining: takes no new tasks",
        "small": (
            "has 0 CPU cores, wanted are 4; property 'ssd' is not given, wanted is true"
        ),
        "dear": "cost is higher, wanted is at most 1",
        "unpriced": "cost is not known, wanted is at most 1",
        "poor": "reputation 0.25 is below 0.3, and a better one is fit",
        "full": "holds 2 of 2 tasks",
        "away": "has no open poll",
        "ready": "is free: about to be given a task",
    }  # fmt: skip


def test_without_a_better_one_a_low_reputation_keeps_nobody_from_a_task() -> None:
    poor = a_worker("poor", reputation=0.1)
    better_but_unfit = a_worker("better", supported_tasks=["resize"])

    assert told(a_task(), poor, better_but_unfit)["poor"] == "is free: about to be given a task"


def test_the_reason_is_that_of_the_job_document_and_missing_while_somebody_is_free() -> None:
    def reason(*workers: Worker) -> str | None:
        [shown] = why_waiting(a_view(), [a_task()], workers, THRESHOLD)["tasks"]
        said: str | None = shown["waiting_reason"]
        return said

    assert reason() == "No suitable workers for task type 'scan'"
    assert reason(a_worker("a", polls=0)) == "All suitable workers for task type 'scan' are busy"
    assert reason(a_worker("a", polls=0), a_worker("b")) is None


def test_the_nearest_hundred_workers_and_the_first_hundred_tasks_are_told() -> None:
    workers = [a_worker(f"w{number:03}", supported_tasks=[]) for number in range(150)]
    tasks = [a_task(f"t{number}", max_cost=number % 2) for number in range(150)]

    shown = why_waiting(a_view(), tasks, [*workers, a_worker("z", polls=0, cost=0)], THRESHOLD)

    assert [row["task_id"] for row in shown["tasks"]] == [task.task_id for task in tasks[:100]]
    assert {len(row["workers"]) for row in shown["tasks"]} == {100}
    assert shown["tasks"][0]["workers"][0] == {"worker_id": "z", "reason": "has no open poll"}


# --- over HTTP


async def why(door: Door, job_id: str) -> dict[str, Any]:
    answer = await door.client("GET", f"/api/v1/jobs/{job_id}/why")
    assert answer.status == 200, answer
    body: dict[str, Any] = answer.body
    return body


async def test_a_job_that_waits_for_a_worker_says_who_was_passed_over(door: Door) -> None:
    job = await door.job_with_task()
    await door.register("w", supported_tasks=["other"])
    assert isinstance(job.head.wait, TaskWait)

    assert await why(door, job.id) == {
        "status": "waiting_for_worker",
        "waiting_for": "worker",
        "since": job.head.wait.dispatched_at,
        "deadline": job.head.wait.dispatch_deadline,
        "tasks": [
            {
                "task_id": job.head.wait.task_id,
                "task_type": "resize",
                "waiting_reason": "No suitable workers for task type 'resize'",
                "workers": [{"worker_id": "w", "reason": "does not do tasks of type 'resize'"}],
            }
        ],
    }


async def test_a_task_that_a_worker_has_waits_for_nobody(door: Door) -> None:
    job = await door.job_with_task()
    await door.register("w")
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await door.match("w")
    assert poll.result().status == 200

    answer = await why(door, job.id)

    assert (answer["waiting_for"], answer["tasks"]) == ("worker", [])
    assert answer["deadline"] > answer["since"]


async def test_a_branch_that_waits_is_told_of(door: Door) -> None:
    await door.new_job()
    job = await door.handler_returns(DispatchParallel(tasks=(A_TASK.task,), aggregate_into="done"))

    answer = await why(door, job.id)

    assert answer["waiting_for"] == "branches"
    assert [task["task_type"] for task in answer["tasks"]] == ["resize"]


async def test_a_job_that_waits_for_a_person_or_for_nothing_has_no_tasks(door: Door) -> None:
    fresh = await door.new_job()
    assert await why(door, fresh) == {
        "status": "pending", "waiting_for": None, "since": None, "deadline": None, "tasks": [],
    }  # fmt: skip

    await door.handler_returns(
        AwaitApproval(integration="mail", message="?", transitions={"yes": "done"})
    )

    answer = await why(door, fresh)
    assert (answer["status"], answer["waiting_for"]) == ("waiting_for_human", "human")
    assert answer["tasks"] == []


async def test_why_is_found_where_the_job_is(door: Door) -> None:
    for job_id in (UNKNOWN, "no-id"):
        answer = await door.client("GET", f"/api/jobs/{job_id}/why")
        assert (answer.status, answer.body) == (404, {"error": "Job not found"})
    job_id = await door.new_job()
    assert (await door.ask("GET", f"/api/jobs/{job_id}/why")).status == 401


async def test_a_job_past_its_retention_waits_for_nothing() -> None:
    async with open_door(Archive()) as door:
        assert await why(door, UNKNOWN) == {
            "status": "finished", "waiting_for": None, "since": None, "deadline": None, "tasks": [],
        }  # fmt: skip
