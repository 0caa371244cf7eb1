"""From what peers really send to the messages of `models`: every accepted spelling is read here.

All functions raise a `BadMessage` whose text is meant for the sender.
"""

from collections.abc import Mapping
from typing import TypeGuard, TypeVar

import msgspec
import orjson

from rxon.constants import ERROR_CODE_TRANSIENT, TASK_STATUS_SUCCESS
from rxon.exceptions import (
    InvalidField,
    InvalidJson,
    MissingTaskIdentity,
    MissingWorkerId,
    NotAnObject,
)
from rxon.models import (
    FileMetadata,
    Heartbeat,
    TaskError,
    TaskResult,
    WorkerDocument,
    WorkerRegistration,
)
from rxon.validators import validate_identifier

_Message = TypeVar("_Message")


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`, all its keys kept."""
    try:
        document: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson from error
    if not _is_object(document):
        raise NotAnObject
    return document


def parse_registration(document: Mapping[str, object]) -> WorkerRegistration:
    """The known part of a registration; keep `document` beside it for all other keys."""
    return _worker(document, WorkerRegistration)


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
    return _convert(_without_nulls(document), message)


def _convert(value: object, type_: type[_Message], name: str = "message") -> _Message:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise InvalidField(f"Invalid {name}: {error}") from error


def _without_nulls(value: Mapping[str, object]) -> dict[str, object]:
    """Peers send an empty field as null; here it is a field that was not sent.

    What is under `extra` is the user's and stays as it is.
    """
    return {
        key: inner if key == "extra" else _field_without_nulls(inner)
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
