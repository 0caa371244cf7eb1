"""From what peers really send to the messages of `models`: every accepted spelling is read here.

All functions raise a `BadMessage` whose text is meant for the sender.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeGuard, TypeVar

import msgspec
import orjson

from rxon.constants import ERROR_CODE_TRANSIENT, MSG_TYPE_PROGRESS, TASK_STATUS_SUCCESS
from rxon.exceptions import (
    InvalidField,
    InvalidJson,
    MissingEventIdentity,
    MissingTaskIdentity,
    MissingWorkerId,
    NotAnObject,
)
from rxon.models import (
    FileMetadata,
    Heartbeat,
    ProgressUpdatePayload,
    Skill,
    TaskError,
    TaskResult,
    WorkerDocument,
    WorkerEvent,
    WorkerRegistration,
)
from rxon.validators import validate_identifier

_Message = TypeVar("_Message")
_LONGEST_NAME = 255

_NOT_OURS: Final = frozenset(
    {"checkpoint", "extra", "input_schema", "output_schema", "events_schema"}
)
"""Keys whose value is the user's: a null in it means something."""


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`, all its keys kept."""
    try:
        document: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson from error
    return as_object(document)


def as_object(value: object) -> dict[str, object]:
    """A JSON value that must be an object."""
    if not _is_object(value):
        raise NotAnObject
    return value


def parse_registration(document: Mapping[str, object]) -> WorkerRegistration:
    """The known part of a registration; keep `document` beside it for all other keys."""
    return _worker(document, WorkerRegistration)


def with_supported_tasks(document: Mapping[str, object]) -> Mapping[str, object]:
    """A registration or heartbeat that says `supported_tasks` where only its skills say it.

    A heartbeat replaces key by key: one that names skills alone names all the worker does.
    Raises InvalidField.
    """
    if document.get("supported_tasks") is not None or document.get("supported_skills") is None:
        return document
    return {**document, "supported_tasks": [skill.name for skill in parse_skills(document)]}


def parse_skills(document: Mapping[str, object]) -> tuple[Skill, ...]:
    """The contracts a worker's document names; a bare name asks for nothing. Raises InvalidField."""
    skills = document.get("supported_skills")
    return _convert(_skills_as_objects(skills), tuple[Skill, ...], "supported_skills")


def _skills_as_objects(skills: object) -> object:
    if skills is None:
        return ()
    if not _is_array(skills):
        return skills
    return [
        {"name": skill} if isinstance(skill, str) else _field_without_nulls(skill)
        for skill in skills
    ]


def parse_worker_document(document: Mapping[str, object]) -> WorkerDocument:
    """What the orchestrator reads of a stored worker."""
    return _worker(document, WorkerDocument)


def parse_heartbeat(document: Mapping[str, object], *, worker_id: str) -> Heartbeat:
    """The known part of a heartbeat for `worker_id`, which no key in it can change."""
    nullable = {
        key: None
        for key in ("skill_dependencies", "hot_skills")
        if key in document and document[key] is None
    }
    return _convert({**_without_nulls(document), **nullable, "worker_id": worker_id}, Heartbeat)


def parse_result(document: Mapping[str, object], *, sender: str | None = None) -> TaskResult:
    """A result, flat or with its outcome in the key `result`, from the authenticated `sender`.

    Missing are allowed: `worker_id` (then it is the sender), `status` (then `success`), and an
    error's code (`error_type`, then `TRANSIENT_ERROR`). Whether a given `worker_id` is the
    sender's own is for the caller to judge.
    """
    job_id, task_id = document.get("job_id"), document.get("task_id")
    if not (isinstance(job_id, str) and job_id and isinstance(task_id, str) and task_id):
        raise MissingTaskIdentity
    worker_id = document.get("worker_id") or sender
    if not worker_id:
        raise MissingWorkerId
    nested = document.get("result")
    outcome: Mapping[str, object] = {**document, **nested} if _is_object(nested) else document
    status, metadata = outcome.get("status"), outcome.get("data_metadata")
    return TaskResult(
        job_id=job_id,
        task_id=task_id,
        worker_id=_convert(worker_id, str, "worker_id"),
        status=TASK_STATUS_SUCCESS if status is None else _convert(status, str, "status"),
        data=outcome.get("data"),
        error=parse_error(outcome.get("error"), outcome.get("error_type")),
        data_metadata=None
        if metadata is None
        else _convert(metadata, dict[str, FileMetadata], "data_metadata"),
    )


class UnreadBatch(NamedTuple):
    """Several results, each still to be parsed alone."""

    results: list[object]
    most: int
    """How many tasks may come back."""
    worker_id: object
    """Whom the first result names that names anybody."""


def parse_result_batch(document: Mapping[str, object]) -> UnreadBatch:
    """The batch as far as it can be read as a whole."""
    most = document.get("max")
    if most is None:
        most = 0
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise InvalidField("Invalid max: expected a whole number from 0")
    results = document.get("results")
    if not _is_array(results):
        raise InvalidField("Invalid results: expected an array of results")
    named = (one.get("worker_id") for one in results if _is_object(one))
    worker_id = next((name for name in named if name), document.get("worker_id"))
    return UnreadBatch(results, most, worker_id)


def parse_progress(document: Mapping[str, object]) -> ProgressUpdatePayload:
    """A progress update; missing are allowed: `progress` (then 0), `message` (then empty)."""
    job_id, task_id = document.get("job_id"), document.get("task_id")
    if not (isinstance(job_id, str) and job_id and isinstance(task_id, str) and task_id):
        raise MissingTaskIdentity
    return _convert({**_without_nulls(document), "event": MSG_TYPE_PROGRESS}, ProgressUpdatePayload)


def parse_event(document: Mapping[str, object], *, sender: str | None = None) -> WorkerEvent:
    """An event from the authenticated `sender`.

    Missing are allowed: `worker_id` (then it is the sender) and `origin_worker_id` (then that one).
    Whether a given `worker_id` is the sender's own is for the caller to judge.
    """
    known = {key: value for key, value in document.items() if value is not None}
    if not (known.get("event_id") and known.get("event_type")):
        raise MissingEventIdentity
    worker_id = known.get("worker_id") or sender
    if not worker_id:
        raise MissingWorkerId
    origin = known.get("origin_worker_id") or worker_id
    event = _convert(
        {**known, "worker_id": worker_id, "origin_worker_id": origin}, WorkerEvent, "event"
    )
    for name, text in (("event_id", event.event_id), ("event_type", event.event_type)):
        if len(text) > _LONGEST_NAME:
            raise InvalidField(f"Invalid {name}: longer than {_LONGEST_NAME} characters")
    return event


def parse_error(error: object, error_type: object = None) -> TaskError | None:
    """An error as an object or as a string; a missing message is empty."""
    code = error_type if isinstance(error_type, str) and error_type else ERROR_CODE_TRANSIENT
    if error is None:
        return None
    if isinstance(error, str):
        return TaskError(code=code, message=error)
    if not _is_object(error):
        raise InvalidField("Invalid error: expected an object or a string")
    return TaskError(
        code=_convert(error.get("code") or code, str, "error.code"),
        message=_convert(error.get("message") or "", str, "error.message"),
        details=error.get("details"),
    )


def _worker(document: Mapping[str, object], message: type[_Message]) -> _Message:
    worker_id = document.get("worker_id")
    if worker_id is None or worker_id == "":
        raise MissingWorkerId
    validate_identifier(worker_id, "worker_id")
    known = _without_nulls(with_supported_tasks(document))
    if "supported_skills" in known:
        known["supported_skills"] = _skills_as_objects(known["supported_skills"])
    return _convert(known, message)


def _convert(value: object, type_: type[_Message], name: str = "message") -> _Message:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise InvalidField(f"Invalid {name}: {error}") from error


def _without_nulls(value: Mapping[str, object]) -> dict[str, object]:
    """Peers send an empty field as null; here it is a field that was not sent."""
    return {
        key: inner if key in _NOT_OURS else _field_without_nulls(inner)
        for key, inner in value.items()
        if inner is not None
    }


def _field_without_nulls(value: object) -> object:
    if _is_object(value):
        return _without_nulls(value)
    if _is_array(value):
        return [_field_without_nulls(item) for item in value]
    return value


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def _is_array(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)
