"""What peers really send, and what is told to those who send nonsense."""

import msgspec
import pytest

from rxon import (
    FileMetadata,
    Skill,
    TaskError,
    TaskResult,
    WorkerEvent,
    parse_event,
    parse_heartbeat,
    parse_object,
    parse_registration,
    parse_result,
    parse_skills,
    parse_worker_document,
    with_supported_tasks,
)
from rxon.exceptions import BadMessage, InvalidField, RxonProtocolError

TASK = {"job_id": "j-1", "task_id": "t-1"}


def a_result(**changes: object) -> TaskResult:
    return msgspec.structs.replace(
        TaskResult(job_id="j-1", task_id="t-1", worker_id="w", status="success"), **changes
    )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "Invalid JSON body"),
        (b"", "Invalid JSON body"),
        (b"\xff", "Invalid JSON body"),
        (b"[]", "Request body must be a JSON object"),
        (b"null", "Request body must be a JSON object"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_object(body)

    assert str(refused.value) == text


def test_a_registration_needs_only_its_worker_id() -> None:
    registration = parse_registration({"worker_id": "w"})

    assert registration.supported_tasks == ()
    assert registration.resources.max_concurrent_tasks is None
    assert parse_worker_document({"worker_id": "w"}).status == "idle"


@pytest.mark.parametrize("said", [{}, {"supported_tasks": None}])
def test_skills_say_which_tasks_a_worker_does_where_nothing_else_says_it(
    said: dict[str, object],
) -> None:
    skills = ["scan", {"name": "resize", "version": "2", "description": None}]
    document = {"worker_id": "w", **said, "supported_skills": skills, "of_its_own": None}

    registration = parse_registration(document)

    assert registration.supported_tasks == ("scan", "resize")
    assert registration.supported_skills == (Skill(name="scan"), Skill(name="resize", version="2"))
    assert parse_skills(document) == registration.supported_skills
    assert with_supported_tasks(document) == {**document, "supported_tasks": ["scan", "resize"]}


def test_supported_tasks_count_before_skills() -> None:
    for tasks in (["scan"], []):
        document = {"supported_tasks": tasks, "supported_skills": ["resize"]}
        assert with_supported_tasks(document) == document
    assert with_supported_tasks({"load": 0.5}) == {"load": 0.5}
    assert parse_skills({"load": 0.5}) == ()


def test_a_null_in_a_schema_is_part_of_it() -> None:
    schema = {"properties": {"a": {"const": None}}}
    skill = {"name": "t", "input_schema": schema, "events_schema": {"e": schema}}

    [parsed] = parse_skills({"supported_skills": [skill]})
    registration = parse_registration({"worker_id": "w", "supported_skills": [skill]})

    assert parsed.input_schema == schema
    assert registration.supported_skills == (parsed,)
    assert parsed.events_schema == {"e": schema}


@pytest.mark.parametrize("skills", ["scan", [7], [{}], [{"name": "t", "input_schema": []}]])
def test_skills_that_cannot_be_read_are_refused(skills: object) -> None:
    with pytest.raises(InvalidField, match="supported_skills"):
        with_supported_tasks({"supported_skills": skills})


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "Missing required field: worker_id"),
        ({"worker_id": None}, "Missing required field: worker_id"),
        ({"worker_id": ""}, "Missing required field: worker_id"),
        (
            {"worker_id": "a b"},
            "Invalid worker_id: 'a b'. Must be alphanumeric, underscores, or hyphens only.",
        ),
        (
            {"worker_id": 7},
            "Invalid worker_id: '7'. Must be alphanumeric, underscores, or hyphens only.",
        ),
        (
            {"worker_id": "w", "resources": {"cpu_cores": "many"}},
            "Invalid message: Expected `int | null`, got `str` - at `$.resources.cpu_cores`",
        ),
    ],
)
def test_a_registration_that_cannot_be_read_is_refused(
    document: dict[str, object], text: str
) -> None:
    with pytest.raises(RxonProtocolError) as refused:
        parse_registration(document)

    assert str(refused.value) == text


def test_nulls_are_read_as_fields_that_were_not_sent() -> None:
    document = parse_worker_document(
        {
            "worker_id": "w",
            "installed_models": [{"name": "llama", "version": None}],
            "supported_tasks": None,
            "hot_skills": None,
            "resources": {"gpu_info": None, "cpu_cores": None},
            "capabilities": {"cost_per_skill": None, "extra": {"zone": None}},
        }
    )

    assert document.supported_tasks == ()
    assert document.installed_models[0].version == ""
    assert document.capabilities.cost_per_skill == {}
    assert document.capabilities.extra == {"zone": None}


def test_the_merged_document_shows_what_later_heartbeats_brought() -> None:
    document = parse_worker_document(
        {
            "worker_id": "w",
            "status": "draining",
            "load": 2,
            "current_tasks": ["t-1"],
            "hot_cache": ["m"],
            "skill_dependencies": {"resize": ["m"]},
            "cost": 1,
            "cost_per_second": 0.5,
            "mood": "fine",
        }
    )

    assert (document.status, document.load, document.current_tasks) == ("draining", 2.0, ("t-1",))
    assert document.skill_dependencies == {"resize": ("m",)}
    assert (document.cost, document.cost_per_second) == (1.0, 0.5)


def test_a_heartbeat_tells_empty_from_unsaid() -> None:
    heartbeat = parse_heartbeat(
        {"worker_id": "other", "current_tasks": [], "hot_skills": None, "load": None},
        worker_id="w",
    )

    assert heartbeat.worker_id == "w"
    assert heartbeat.current_tasks == ()
    assert heartbeat.hot_skills is None
    assert heartbeat.supported_tasks is msgspec.UNSET
    assert heartbeat.load is msgspec.UNSET


@pytest.mark.parametrize(
    ("document", "result"),
    [
        ({"worker_id": "w", "status": "needs_review"}, a_result(status="needs_review")),
        ({"data": {"n": 1}}, a_result(data={"n": 1})),
        ({"worker_id": None, "status": None}, a_result()),
        ({"result": {"status": "success", "data": {"n": 1}}}, a_result(data={"n": 1})),
        (
            {"result": {"status": "failure", "error": {"code": "X", "message": "m"}}},
            a_result(status="failure", error=TaskError(code="X", message="m")),
        ),
        (
            {"status": "failure", "error": "boom"},
            a_result(status="failure", error=TaskError(code="TRANSIENT_ERROR", message="boom")),
        ),
        (
            {"result": {"status": "failure", "error": "boom", "error_type": "SECURITY_ERROR"}},
            a_result(status="failure", error=TaskError(code="SECURITY_ERROR", message="boom")),
        ),
        (
            {"status": "failure", "error": {"details": {"line": 3}}},
            a_result(
                status="failure",
                error=TaskError(code="TRANSIENT_ERROR", message="", details={"line": 3}),
            ),
        ),
        (
            {"data_metadata": {"a.b[0]": {"uri": "s3://b/k", "size": 1}}},
            a_result(data_metadata={"a.b[0]": FileMetadata(uri="s3://b/k", size=1)}),
        ),
        ({"from_the_future": 1}, a_result()),
    ],
)
def test_a_result_is_read_in_every_accepted_form(
    document: dict[str, object], result: TaskResult
) -> None:
    assert parse_result({**TASK, **document}, sender="w") == result


def test_a_result_keeps_the_worker_id_it_was_sent_with() -> None:
    assert parse_result({**TASK, "worker_id": "other"}, sender="w").worker_id == "other"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"job_id": "j-1"}, "job_id and task_id are required"),
        ({"task_id": "t-1", "job_id": ""}, "job_id and task_id are required"),
        ({**TASK}, "Missing required field: worker_id"),
        ({**TASK, "worker_id": "w", "status": 3}, "Invalid status: Expected `str`, got `int`"),
        (
            {**TASK, "worker_id": "w", "error": 3},
            "Invalid error: expected an object or a string",
        ),
        (
            {**TASK, "worker_id": "w", "data_metadata": {"a": {"uri": "s3://b/k"}}},
            "Invalid data_metadata: Object missing required field `size` - at `$[...]`",
        ),
    ],
)
def test_a_result_that_cannot_be_read_is_refused(document: dict[str, object], text: str) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_result(document)

    assert str(refused.value) == text


def test_a_heartbeat_with_a_wrong_type_is_refused() -> None:
    with pytest.raises(InvalidField, match="supported_tasks"):
        parse_heartbeat({"supported_tasks": "resize"}, worker_id="w")


EVENT = {"event_id": "e", "event_type": "halfway"}


def test_an_event_needs_its_id_and_type_only() -> None:
    assert parse_event(EVENT, sender="w") == WorkerEvent(
        event_id="e", event_type="halfway", worker_id="w", origin_worker_id="w"
    )


def test_an_event_is_read_whole_and_nulls_in_its_payload_stay() -> None:
    event = parse_event(
        {
            **EVENT,
            "worker_id": "w",
            "origin_worker_id": "deeper",
            "payload": {"a": None},
            "target_job_id": "j-1",
            "target_task_id": "t-1",
            "origin_task_id": None,
            "bubbling_chain": ["deeper", "w"],
            "priority": 1,
            "timestamp": 1700000000,
            "security": {"signature": "x"},
        },
        sender="other",
    )

    assert (event.worker_id, event.origin_worker_id) == ("w", "deeper")
    assert (event.payload, event.bubbling_chain) == ({"a": None}, ("deeper", "w"))
    assert (event.target_job_id, event.target_task_id, event.priority) == ("j-1", "t-1", 1)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "event_id and event_type are required"),
        ({**EVENT, "event_type": ""}, "event_id and event_type are required"),
        (EVENT, "Missing required field: worker_id"),
        (
            {**EVENT, "worker_id": "w", "payload": [1]},
            "Invalid event: Expected `object`, got `array` - at `$.payload`",
        ),
        (
            {**EVENT, "worker_id": "w", "event_id": "e" * 256},
            "Invalid event_id: longer than 255 characters",
        ),
    ],
)
def test_an_event_that_cannot_be_read_is_refused(document: dict[str, object], text: str) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_event(document)

    assert str(refused.value) == text
