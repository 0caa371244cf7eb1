"""POST `/_worker/workers/register`: a worker comes."""

from typing import Any

import pytest

from tests.interop.conftest import MAX_BODY, OpenDoor
from tests.interop.door import Answer, Door, ignored
from tests.support import until

PATH = "/_worker/workers/register"
REGISTERED = {"status": "registered", "version": "1.0b2"}
FULL: dict[str, Any] = {
    "worker_id": "gpu-worker_01",
    "worker_type": "gpu",
    "supported_tasks": ["resize", "transcode"],
    "resources": {
        "max_concurrent_tasks": 2,
        "cpu_cores": 8,
        "gpu_info": {"model": "NVIDIA T4", "vram_gb": 16},
    },
    "installed_software": {"python": "3.11", "ffmpeg": "6"},
    "installed_models": [{"name": "llama", "version": "3"}],
    "capabilities": {
        "hostname": "box",
        "ip_address": "10.0.0.1",
        "cost_per_skill": {"resize": 0.0005, "transcode": 1},
        "s3_config_hash": None,
        "extra": {"zone": "eu", "nested": {"list": [1, None]}},
    },
}


async def register(door: Door, body: object, **headers: str) -> Answer:
    return await door.call(
        "POST", PATH, body, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


async def stored(door: Door, worker_id: str) -> dict[str, Any]:
    """The worker's document, as an object heartbeat answers it."""
    answer = await door.heartbeat(worker_id, {"load": 0.0})
    assert answer.status == 200, answer
    document: dict[str, Any] = answer.json
    return document


async def test_a_worker_is_registered(door: Door) -> None:
    answer = await register(door, FULL)

    assert (answer.status, answer.json) == (200, REGISTERED)


async def test_only_its_id_is_required_of_a_worker(door: Door) -> None:
    answer = await register(door, {"worker_id": "w1"})

    assert (answer.status, answer.json) == (200, REGISTERED)


async def test_empty_fields_may_be_null(door: Door) -> None:
    nulls = dict.fromkeys(FULL) | {
        "worker_id": "w1",
        "supported_tasks": ["resize"],
        "resources": {"max_concurrent_tasks": 1, "cpu_cores": 1, "gpu_info": None},
    }

    answer = await register(door, nulls)

    assert (answer.status, answer.json) == (200, REGISTERED)
    await door.create()
    assert (await door.task("w1"))["type"] == "resize"


async def test_a_registration_is_stored_as_given_with_keys_nobody_knows(door: Door) -> None:
    given = {**FULL, "from_the_future": {"deep": [1, {"x": None}]}, "ключ": "значение"}
    await register(door, given)

    document = await stored(door, FULL["worker_id"])

    assert {key: document[key] for key in given} == given


async def test_a_registration_replaces_all_that_was_there(door: Door) -> None:
    await register(door, {**FULL, "earlier": True})
    await register(door, {"worker_id": FULL["worker_id"], "supported_tasks": ["other"]})

    document = await stored(door, FULL["worker_id"])

    assert document["supported_tasks"] == ["other"]
    assert not set(document) & {"earlier", "capabilities", "installed_models"}


async def test_a_worker_registered_anew_gets_tasks_of_its_new_types_only(door: Door) -> None:
    """R48."""
    await door.register("w1", "resize")
    await door.register("w1", "transcode")
    await door.create(type="resize")
    await door.create(type="transcode")

    assert (await door.task("w1"))["type"] == "transcode"
    assert (await door.poll("w1")).status == 204


async def test_reputation_is_not_a_workers_to_give(door: Door) -> None:
    await register(door, {"worker_id": "w1", "reputation": 0.2})
    first = (await stored(door, "w1"))["reputation"]
    changed = (await door.heartbeat("w1", {"reputation": 0.3})).json["reputation"]
    await register(door, {"worker_id": "w1", "reputation": 0.4})

    assert (first, changed, (await stored(door, "w1"))["reputation"]) == (1.0, 1.0, 1.0)


async def test_a_worker_without_a_status_is_idle_and_gets_tasks(door: Door) -> None:
    await register(door, {"worker_id": "w1", "supported_tasks": ["resize"]})
    await door.create()

    assert (await door.task("w1"))["type"] == "resize"


async def test_another_version_is_let_in_with_a_warning(door: Door) -> None:
    other = await register(door, {"worker_id": "w1"}, X_RXON_Version="0.9")
    same = await register(door, {"worker_id": "w1"}, X_RXON_Version="1.0b2")
    silent = await register(door, {"worker_id": "w1"})

    assert other.status == 200
    assert other.json == {**REGISTERED, "warning": other.json["warning"]}
    assert "0.9" in other.json["warning"]
    assert "1.0b2" in other.json["warning"]
    assert same.json == REGISTERED
    assert silent.json == REGISTERED


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'worker_id': 'w1'}",
        b'{"worker_id": "w1",}',
        b'{"worker_id": "w1"} x',
        b'{"worker_id": NaN}',
        b'{"worker_id": "\xff"}',
        b'{"worker_id": "\xed\xa0\x80"}',
        b"[" * 20_000,
    ],
    ids=["empty", "cut", "python", "comma", "rest", "nan", "latin", "surrogate", "deep"],
)
async def test_a_body_that_is_no_json_is_refused(door: Door, body: bytes) -> None:
    """R37."""
    assert (await register(door, body)).error == (400, "Invalid JSON body")


async def test_a_body_that_is_no_object_is_refused(door: Door) -> None:
    """R37."""
    for body in (b"null", b"[]", b'"w1"', b"1", b"true"):
        status, text = (await register(door, body)).error

        assert (status, bool(text)) == (400, True), body


async def test_a_worker_has_to_say_who_it_is(door: Door) -> None:
    """R37."""
    for body in ({}, {"worker_id": None}, {"worker_type": "gpu"}):
        assert (await register(door, body)).error == (400, "Missing required field: worker_id")


async def test_a_workers_id_is_an_identifier(door: Door) -> None:
    for name in ("a b", "a/b", "../x", "ж", "w1\n", "w.1", "{id}", "*"):
        assert (await register(door, {"worker_id": name})).error == (
            400,
            f"Invalid worker_id: '{name}'. Must be alphanumeric, underscores, or hyphens only.",
        )


async def test_a_field_of_another_type_is_refused_and_named(door: Door) -> None:
    """R37."""
    wrong: list[tuple[str, object]] = [
        ("worker_id", 5),
        ("worker_id", ["w1"]),
        ("worker_id", {"id": "w1"}),
        ("worker_type", 5),
        ("supported_tasks", "resize"),
        ("supported_tasks", {"resize": 1}),
        ("supported_tasks", [1]),
        ("resources", "many"),
        ("resources", []),
        ("resources", {"max_concurrent_tasks": "two"}),
        ("resources", {"cpu_cores": [4]}),
        ("resources", {"gpu_info": "T4"}),
        ("resources", {"gpu_info": {"vram_gb": "16"}}),
        ("installed_software", ["python"]),
        ("installed_models", "llama"),
        ("installed_models", ["llama"]),
        ("installed_models", [{"version": "3"}]),
        ("capabilities", "all"),
        ("capabilities", {"cost_per_skill": {"resize": "cheap"}}),
        ("capabilities", {"hostname": 5}),
        ("capabilities", {"extra": "zone"}),
    ]
    for field, value in wrong:
        status, text = (await register(door, {"worker_id": "w1", field: value})).error

        assert status == 400, (field, value)
        assert field in text, (field, value, text)
    assert (await door.heartbeat("w1")).error == (404, "Worker not found")


async def test_a_body_over_the_limit_is_refused(door: Door) -> None:
    """R43."""
    body = {"worker_id": "w1", "padding": "x" * MAX_BODY}

    assert (await register(door, body)).error == (
        413,
        f"Request body is larger than {MAX_BODY} bytes.",
    )


async def test_a_registration_ends_when_the_worker_is_silent_for_two_intervals(
    open_door: OpenDoor,
) -> None:
    """R49."""
    door = await open_door(WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.3")
    await door.register("w1")

    async def is_gone() -> bool:
        return not (await door.ask("GET", "/workers")).json

    await until(is_gone, 5, "the worker is still listed")
    assert (await door.heartbeat("w1")).error == (404, "Worker not found")
    assert (await door.poll("w1")).error == (404, "Worker not found")


async def test_who_registers_again_has_lost_the_tasks_of_before(door: Door) -> None:
    lost = await door.held("w1")
    await door.register("w1")

    offered = await door.task("w1")
    late = await door.done(lost, "w1")

    assert offered["job_id"] == lost["job_id"]
    assert offered["task_id"] != lost["task_id"]  # it counts as a failed attempt
    assert ignored(late) == "stale_task"
    assert (await door.done(offered, "w1")).json == {"status": "ok"}
    assert (await door.ended(lost["job_id"]))["status"] == "finished"
