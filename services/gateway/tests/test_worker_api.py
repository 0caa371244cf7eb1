"""What workers may do, and how they are answered, over real HTTP."""

import asyncio
from io import BytesIO
from typing import Any

import orjson
import pytest
from services.gateway.tests.door import UNKNOWN, Door, open_door

from avtomatika_core.events import TaskFailed
from avtomatika_core.job import JobStatus, WorkerId
from tests.support import until

REGISTER = "/_worker/workers/register"
RESULT = "/_worker/tasks/result"


async def a_leased_task(door: Door, worker_id: str = "w") -> dict[str, Any]:
    """The payload of a task that the worker holds."""
    await door.job_with_task()
    await door.register(worker_id)
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll(worker_id))
        await door.match(worker_id)
    assert poll.result().status == 200
    payload: dict[str, Any] = poll.result().body
    return payload


def a_result(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    ids = {"job_id": task["job_id"], "task_id": task["task_id"]}
    return {**ids, "worker_id": "w", "status": "success", "data": {"n": 1}, **changes}


async def test_a_worker_is_registered_as_it_describes_itself(door: Door) -> None:
    answer = await door.worker(
        "POST", REGISTER, json={"worker_id": "w", "reputation": 9, "of_its_own": {"a": None}}
    )

    assert (answer.status, answer.body) == (200, {"status": "registered", "version": "1.0b2"})
    worker = await door.backend.workers.get(WorkerId("w"))
    assert worker is not None
    assert worker.document["of_its_own"] == {"a": None}
    assert worker.document["reputation"] == 1.0
    assert worker.document["status"] == "idle"


async def test_a_worker_that_names_skills_alone_does_these_tasks(door: Door) -> None:
    """R48."""
    skills = [{"name": "resize", "description": "smaller"}, "scan"]
    document = {"worker_id": "w", "supported_skills": skills}

    await door.worker("POST", REGISTER, json=document)
    registered = await door.backend.workers.get(WorkerId("w"))
    beat = await door.worker("PATCH", "/_worker/workers/w", json={"supported_skills": ["scan"]})

    assert registered is not None
    assert registered.document["supported_tasks"] == ["resize", "scan"]
    assert registered.document["supported_skills"] == skills
    assert (beat.status, beat.body["supported_tasks"]) == (200, ["scan"])


async def test_a_worker_of_another_protocol_is_warned(door: Door) -> None:
    answer = await door.worker(
        "POST", REGISTER, json={"worker_id": "w"}, headers={"X-RXON-Version": "9"}
    )

    assert answer.status == 200
    assert "9" in answer.body["warning"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "Invalid JSON body"),
        (b"", "Invalid JSON body"),
        (b"[]", "Request body must be a JSON object"),
        (b"{}", "Missing required field: worker_id"),
        (
            b'{"worker_id": "a b"}',
            "Invalid worker_id: 'a b'. Must be alphanumeric, underscores, or hyphens only.",
        ),
    ],
)
async def test_a_registration_that_breaks_the_rules_is_refused(
    door: Door, body: bytes, text: str
) -> None:
    answer = await door.worker("POST", REGISTER, data=body)

    assert (answer.status, answer.body) == (400, {"error": text})


async def test_a_registration_of_the_wrong_types_is_refused(door: Door) -> None:
    for wrong in ({"worker_id": 5}, {"worker_id": "w", "supported_tasks": "resize"}):
        answer = await door.worker("POST", REGISTER, json=wrong)

        assert answer.status == 400, answer
        assert await door.backend.workers.count() == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", REGISTER, {"worker_id": "w"}),
        ("GET", "/_worker/workers/w/tasks/next", None),
        ("PATCH", "/_worker/workers/w", {}),
        ("PATCH", "/_worker/workers/w/status", {}),
        ("POST", RESULT, {"worker_id": "w", "job_id": UNKNOWN, "task_id": UNKNOWN}),
        ("POST", "/_worker/events", {"worker_id": "w", "event_id": "e", "event_type": "t"}),
        ("POST", "/_worker/auth/token", None),
    ],
)
async def test_every_worker_route_needs_a_good_token(
    door: Door, method: str, path: str, body: object
) -> None:
    no_token = await door.ask(method, path, json=body)
    wrong = await door.ask(
        method, path, json=body, headers={"X-Worker-Token": "other", "X-Worker-ID": "w"}
    )

    missing = "Missing X-Worker-Token header or client certificate"
    assert (no_token.status, no_token.body) == (401, {"error": missing})
    assert wrong.status == 401
    assert wrong.body == {"error": "Unauthorized: No valid token found"}


async def test_a_wrong_token_of_nobody_in_particular_is_refused(door: Door) -> None:
    answer = await door.ask("POST", REGISTER, json={}, headers={"X-Worker-Token": "other"})

    assert answer.status == 401
    assert answer.body == {"error": "Unauthorized: Invalid token or missing worker_id hint"}


async def test_a_token_alone_gives_no_access_token(door: Door) -> None:
    answer = await door.worker("POST", "/_worker/auth/token")

    text = "Unauthorized: mTLS certificate required to issue access token."
    assert (answer.status, answer.body) == (403, {"error": text})


async def test_every_answer_to_a_worker_carries_our_version(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await door.match("w")
    answers = [
        poll.result(),
        await door.worker("PATCH", "/_worker/workers/w"),
        await door.worker("GET", "/_worker/workers/unheard/tasks/next"),
        await door.worker("GET", "/_worker/nothing/here"),
        await door.ask("PUT", REGISTER),
    ]

    assert [answer.status for answer in answers] == [200, 200, 404, 404, 405]
    assert {answer.headers["X-RXON-Version"] for answer in answers} == {"1.0b2"}
    other = await door.client("GET", "/api/workers")
    assert "X-RXON-Version" not in other.headers


async def test_a_registration_over_a_live_one_is_logged(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """R54."""
    await door.register("w", capabilities={"hostname": "first"})

    await door.register("w", capabilities={"hostname": "second"})

    [record] = [line for line in caplog.records if "over a live one" in line.message]
    assert (record.__dict__["earlier_host"], record.__dict__["host"]) == ("first", "second")


@pytest.mark.parametrize("path", ["/_worker/workers/w", "/_worker/workers/w/status"])
async def test_a_heartbeat_refreshes_or_changes_a_worker(door: Door, path: str) -> None:
    await door.register("w", load=0.5, of_its_own=1)

    empty = await door.worker("PATCH", path)
    nothing = await door.worker("PATCH", path, json={})
    news = await door.worker(
        "PATCH", path, json={"worker_id": "other", "reputation": 0, "load": 2, "new": [1]}
    )

    assert empty.body == nothing.body == {"status": "ttl_refreshed"}
    assert (news.body["worker_id"], news.body["reputation"]) == ("w", 1.0)
    assert (news.body["load"], news.body["of_its_own"], news.body["new"]) == (2, 1, [1])


async def test_an_unknown_worker_is_told_so_and_nothing_is_made(door: Door) -> None:
    """R64."""
    for answer in (
        await door.worker("PATCH", "/_worker/workers/w"),
        await door.worker("PATCH", "/_worker/workers/w", json={"load": 1}),
        await door.poll("w"),
    ):
        assert (answer.status, answer.body) == (404, {"error": "Worker not found"})
    assert await door.backend.workers.live() == []


async def test_a_heartbeat_that_breaks_the_rules_is_refused(door: Door) -> None:
    await door.register("w")

    for body in (b"{", b"[]", b'{"load": "heavy"}'):
        answer = await door.worker("PATCH", "/_worker/workers/w", data=body)

        assert answer.status == 400, body
    bad_id = await door.worker("PATCH", "/_worker/workers/a%20b")
    assert bad_id.status == 400


async def test_a_worker_is_gone_from_the_list_when_its_time_is_over() -> None:
    """R49."""
    async with open_door(WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.1") as door:
        await door.register("w")

        async def is_gone() -> bool:
            return not (await door.client("GET", "/api/workers")).body

        await until(is_gone)
        assert (await door.client("GET", "/api/dashboard")).body["workers"] == {"total": 0}


async def test_a_poll_is_answered_with_exactly_six_keys(door: Door) -> None:
    job = await door.job_with_task()
    await door.register("w")

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await door.match("w")

    answer = poll.result()
    assert answer.status == 200
    assert set(answer.body) == {
        "job_id", "task_id", "type", "params", "tracing_context", "params_metadata"
    }  # fmt: skip
    assert answer.body["job_id"] == job.id
    assert (answer.body["type"], answer.body["params"]) == ("resize", {"width": 10})


async def test_the_holder_s_result_is_applied_once_and_repeats_are_answered_alike(
    door: Door,
) -> None:
    task = await a_leased_task(door)

    first = await door.worker("POST", RESULT, json=a_result(task))
    again = await door.worker("POST", RESULT, json=a_result(task))

    assert (first.status, first.body) == (200, {"status": "ok"})
    assert (again.status, again.body) == (200, {"status": "ok"})
    job = await door.handler_returns(None)
    assert job.head.state == "done"
    assert job.data.state_history == {"n": 1}


async def test_a_nested_result_counts_like_a_flat_one(door: Door) -> None:
    task = await a_leased_task(door)
    outcome = {"status": "success", "data": {"n": 2}}
    ids = {"job_id": task["job_id"], "task_id": task["task_id"]}

    answer = await door.worker(
        "POST", RESULT, json={**ids, "result": outcome}, headers={"X-Worker-ID": "w"}
    )

    assert answer.body == {"status": "ok"}
    assert (await door.handler_returns(None)).data.state_history == {"n": 2}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (None, "No error details provided."),
        ({"code": "INVALID_INPUT_ERROR"}, "No error message provided."),
        ({"code": "INVALID_INPUT_ERROR", "message": "too wide"}, "too wide"),
        ("broken", "broken"),
    ],
)
async def test_a_failure_says_what_went_wrong(door: Door, error: object, message: str) -> None:
    task = await a_leased_task(door)

    answer = await door.worker("POST", RESULT, json=a_result(task, status="failure", error=error))

    assert answer.body == {"status": "ok"}
    [delivery] = await door.backend.inbox.read("default", "reader", 1)
    assert isinstance(delivery.event, TaskFailed)
    assert delivery.event.message == message


async def test_a_worker_may_report_that_it_stopped(door: Door) -> None:
    task = await a_leased_task(door)

    await door.worker("POST", RESULT, json=a_result(task, status="cancelled", data=None))

    assert (await door.handler_returns(None)).status is JobStatus.CANCELLED


async def test_results_that_do_not_count_are_answered_and_change_nothing(door: Door) -> None:
    task = await a_leased_task(door)
    await door.register("other")
    before = await door.client("GET", f"/api/jobs/{task['job_id']}")

    stale = await door.worker("POST", RESULT, json=a_result(task, task_id=UNKNOWN))
    foreign = await door.worker("POST", RESULT, json=a_result(task, worker_id="other"))

    assert (stale.status, stale.body["status"]) == (200, "ignored")
    assert stale.body["reason"] == "stale_task"
    assert stale.body["message"]
    assert (foreign.status, foreign.body["reason"]) == (200, "worker_mismatch")
    assert (await door.client("GET", f"/api/jobs/{task['job_id']}")).body == before.body


async def test_a_result_for_a_cancelled_job_is_ignored_and_the_worker_told_to_stop(
    door: Door,
) -> None:
    """R40."""
    task = await a_leased_task(door)
    await door.client("POST", f"/api/jobs/{task['job_id']}/cancel")
    await door.handler_returns(None)

    async def is_told() -> bool:
        heartbeat = await door.worker("PATCH", "/_worker/workers/w")
        told: object = heartbeat.body.get("cancel_task_ids")
        return told == [task["task_id"]]

    await until(is_told)
    result = await door.worker("POST", RESULT, json=a_result(task))

    assert (result.status, result.body["reason"]) == (200, "job_cancelled")


async def test_what_a_worker_gets_wrong_is_never_our_fault(door: Door) -> None:
    """R37."""
    task = await a_leased_task(door)
    sender = {"X-Worker-ID": "w"}

    answers = {
        "not JSON": await door.worker("POST", RESULT, data=b"{"),
        "no ids": await door.worker("POST", RESULT, json={"worker_id": "w"}),
        "nobody": await door.worker("POST", RESULT, json=a_result(task, worker_id=None)),
        "no object": await door.worker("POST", RESULT, json=a_result(task, data=[1])),
        "other worker": await door.worker(
            "POST", RESULT, json=a_result(task, worker_id="b"), headers=sender
        ),
        "unknown job": await door.worker("POST", RESULT, json=a_result(task, job_id=UNKNOWN)),
        "no job id": await door.worker("POST", RESULT, json=a_result(task, job_id="x")),
    }

    assert {name: answer.status for name, answer in answers.items()} == {
        "not JSON": 400,
        "no ids": 400,
        "nobody": 400,
        "no object": 400,
        "other worker": 403,
        "unknown job": 404,
        "no job id": 404,
    }
    assert answers["no ids"].body == {"error": "job_id and task_id are required"}
    assert answers["unknown job"].body == {"error": "Job not found"}
    assert answers["other worker"].body == {
        "error": "Forbidden: Authenticated worker 'w' cannot submit results for another worker 'b'."
    }


@pytest.mark.parametrize("room", ["0x1", "-1", "many", "9" * 5000])
async def test_a_poll_for_no_number_of_tasks_is_refused(door: Door, room: str) -> None:
    await door.register("w")

    answer = await door.worker("GET", "/_worker/workers/w/tasks/next", params={"max": room})

    assert (answer.status, answer.body) == (400, {"error": "max must be a whole number from 1"})


async def test_an_answer_becomes_certain_though_a_wrong_result_came(door: Door) -> None:
    task = await a_leased_task(door)

    await door.worker("POST", RESULT, json=a_result(task, job_id=UNKNOWN))

    await until(door.is_certain)


async def test_who_reports_progress_has_the_task_whatever_its_heartbeats_say(door: Door) -> None:
    task = await a_leased_task(door)
    ids = {"job_id": task["job_id"], "task_id": task["task_id"], "worker_id": "w"}

    for _ in range(3):
        told = await door.worker("POST", "/_worker/tasks/progress", json={**ids, "progress": 0.5})
        assert told.body["status"] == "ok"
        await door.worker("PATCH", "/_worker/workers/w", json={"current_tasks": []})

    assert await door.tasks_on_board() == 0


async def test_a_result_of_5_mb_is_applied(door: Door) -> None:
    """R43."""
    task = await a_leased_task(door)
    data = {"text": "x" * 5_000_000}

    body = BytesIO(orjson.dumps(a_result(task, data=data)))
    answer = await door.worker("POST", RESULT, data=body)

    assert answer.body == {"status": "ok"}
    assert (await door.handler_returns(None)).data.state_history == data


async def test_a_result_over_the_limit_is_refused_with_the_limit() -> None:
    """R43."""
    async with open_door(MAX_REQUEST_BODY_BYTES="100000") as door:
        task = await a_leased_task(door)

        answer = await door.worker("POST", RESULT, json=a_result(task, data={"t": "x" * 200_000}))

        assert answer.status == 413
        assert answer.body == {"error": "Request body is larger than 100000 bytes."}
