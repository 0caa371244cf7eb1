"""PATCH `/_worker/workers/{id}`: a worker is alive, and what is new with it."""

import asyncio
from typing import Any

import pytest

from tests.interop.conftest import MAX_BODY
from tests.interop.door import Door, ignored
from tests.support import until

PATHS = ["/_worker/workers/w1", "/_worker/workers/w1/status"]
REFRESHED = {"status": "ttl_refreshed"}
NEWS: dict[str, Any] = {
    "worker_id": "w1",
    "status": "busy",
    "load": 1.0,
    "current_tasks": [],
    "supported_tasks": ["resize"],
    "hot_cache": ["llama"],
    "skill_dependencies": {"resize": ["llama"]},
    "hot_skills": None,
}


@pytest.mark.parametrize("path", PATHS)
async def test_an_empty_heartbeat_keeps_the_worker(door: Door, path: str) -> None:
    await door.register("w1")

    for body in (None, b"", {}):
        answer = await door.call("PATCH", path, body)

        assert (answer.status, answer.json) == (200, REFRESHED)


@pytest.mark.parametrize("path", PATHS)
async def test_news_are_answered_with_the_merged_document(door: Door, path: str) -> None:
    await door.register("w1", "resize", worker_type="cpu", only_at_first=1)

    answer = await door.call("PATCH", path, {**NEWS, "unknown": {"a": 1}})

    document = answer.json
    assert answer.status == 200
    assert {key: document[key] for key in NEWS} == NEWS
    assert document["unknown"] == {"a": 1}
    assert document["worker_type"] == "cpu"
    assert document["only_at_first"] == 1
    assert document["reputation"] == 1.0


async def test_keys_merge_shallowly(door: Door) -> None:
    await door.register("w1", mine={"a": 1, "b": 2})

    document = (await door.heartbeat("w1", {"mine": {"c": 3}})).json

    assert document["mine"] == {"c": 3}


async def test_news_cannot_make_it_another_worker(door: Door) -> None:
    await door.register("w1")

    answer = await door.heartbeat("w1", {"worker_id": "other", "load": 0.5})

    assert (answer.status, answer.json["worker_id"]) == (200, "w1")
    assert (await door.heartbeat("other")).status == 404


@pytest.mark.parametrize("path", PATHS)
async def test_a_worker_that_is_not_registered_is_told(door: Door, path: str) -> None:
    """R38."""
    for body in (None, {}, NEWS):
        assert (await door.call("PATCH", path, body)).error == (404, "Worker not found")
    assert (await door.ask("GET", "/workers")).json == []


async def test_a_heartbeat_that_is_no_json_object_is_refused(door: Door) -> None:
    """R37."""
    await door.register("w1")

    for body in (b"{", b"{]", b'{"load": NaN}', b"\xff"):
        assert (await door.heartbeat("w1", body)).error == (400, "Invalid JSON body"), body
    for body in (b"null", b"[]", b'"idle"', b"0"):
        assert (await door.heartbeat("w1", body)).error[0] == 400, body


async def test_a_field_of_another_type_is_refused_and_changes_nothing(door: Door) -> None:
    """R37."""
    await door.register("w1")
    before = (await door.heartbeat("w1", {"load": 0.5})).json
    wrong: list[tuple[str, object]] = [
        ("status", 5),
        ("status", ["idle"]),
        ("load", "high"),
        ("load", [1]),
        ("current_tasks", "t-1"),
        ("current_tasks", [1]),
        ("supported_tasks", "resize"),
        ("supported_tasks", {"resize": 1}),
        ("hot_cache", 5),
        ("hot_cache", [{}]),
        ("skill_dependencies", ["llama"]),
        ("skill_dependencies", {"resize": "llama"}),
        ("hot_skills", "resize"),
    ]

    for field, value in wrong:
        status, text = (await door.heartbeat("w1", {"load": 0.9, field: value})).error

        assert status == 400, (field, value)
        assert field in text, (field, value, text)
    assert (await door.heartbeat("w1", {"load": 0.5})).json == before


async def test_a_heartbeat_over_the_limit_is_refused(door: Door) -> None:
    """R43."""
    await door.register("w1")

    answer = await door.heartbeat("w1", {"padding": "x" * MAX_BODY})

    assert answer.error == (413, f"Request body is larger than {MAX_BODY} bytes.")


async def test_new_types_of_task_count_at_once_for_an_open_poll_too(door: Door) -> None:
    """R48."""
    await door.register("w1", "other")
    job_id = await door.create()

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w1"))
        await door.heartbeat("w1", {"supported_tasks": ["resize"]})

    answer = poll.result()
    if answer.status == 204:  # the poll was over before the news were there
        answer = await door.poll("w1")
    assert answer.json["job_id"] == job_id


async def test_a_worker_that_drains_gets_no_task_and_keeps_those_it_has(door: Door) -> None:
    task = await door.held("w1")
    await door.heartbeat("w1", {"status": "draining"})
    await door.create()

    assert (await door.poll("w1")).status == 204
    assert (await door.done(task, "w1")).json == {"status": "ok"}
    await door.heartbeat("w1", {"status": "idle"})
    assert (await door.poll("w1")).status == 200


@pytest.mark.parametrize("body", [None, {}, {"load": 0.5}], ids=["none", "empty", "news"])
async def test_a_cancelled_task_is_named_until_the_worker_stops_naming_it(
    door: Door, body: dict[str, Any] | None
) -> None:
    """R40."""
    task = await door.held("w1")
    other = await door.held("w2")
    task_id = task["task_id"]
    assert "cancel_task_ids" not in (await door.heartbeat("w1", body)).json
    answer = await door.cancel(task["job_id"])
    assert answer.json == {"status": "cancellation_request_accepted"}

    async def is_told() -> bool:
        return (await door.heartbeat("w1", body)).json.get("cancel_task_ids") == [task_id]

    await until(is_told, message="the heartbeat does not name the task")
    told = (await door.heartbeat("w1", {"current_tasks": [task_id]})).json
    assert told["cancel_task_ids"] == [task_id]
    assert "cancel_task_ids" not in (await door.heartbeat("w2", body)).json
    await door.heartbeat("w1", {"current_tasks": []})
    assert "cancel_task_ids" not in (await door.heartbeat("w1", body)).json
    assert (await door.done(other, "w2")).json == {"status": "ok"}


async def test_a_cancelled_task_is_named_until_its_result_comes(door: Door) -> None:
    task = await door.held("w1")
    await door.cancel(task["job_id"])

    async def is_told() -> bool:
        return "cancel_task_ids" in (await door.heartbeat("w1")).json

    await until(is_told, message="the heartbeat does not name the task")
    assert ignored(await door.done(task, "w1", status="cancelled")) == "job_cancelled"

    async def is_quiet() -> bool:
        return (await door.heartbeat("w1")).json == REFRESHED

    await until(is_quiet, message="the heartbeat still names the task")
