"""Identifiers, blob names and constants."""

import pytest

from rxon import constants, is_valid_identifier, validate_identifier
from rxon.blob import calculate_config_hash, parse_uri


@pytest.mark.parametrize("value", ["worker-1", "A_b", "7"])
def test_letters_digits_underscores_and_hyphens_make_an_identifier(value: str) -> None:
    assert is_valid_identifier(value)


@pytest.mark.parametrize("value", ["", "a b", "a/b", "ä", "a\n", None, 7])
def test_anything_else_is_no_identifier(value: object) -> None:
    assert not is_valid_identifier(value)


def test_a_bad_identifier_is_named() -> None:
    with pytest.raises(ValueError) as refused:
        validate_identifier("a/b", "task name")

    assert (
        str(refused.value)
        == "Invalid task name: 'a/b'. Must be alphanumeric, underscores, or hyphens only."
    )


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket/a/b.txt", ("bucket", "a/b.txt", False)),
        ("s3://bucket/a/", ("bucket", "a/", True)),
        ("s3://bucket", ("bucket", "", False)),
        ("b.txt", ("default", "jobs/1/b.txt", False)),
        ("/b/", ("default", "jobs/1/b/", True)),
    ],
)
def test_a_uri_is_taken_apart(uri: str, parts: tuple[str, str, bool]) -> None:
    assert parse_uri(uri, "default", "jobs/1/") == parts


def test_a_relative_name_needs_a_bucket() -> None:
    with pytest.raises(ValueError) as refused:
        parse_uri("b.txt")

    assert str(refused.value) == "Cannot parse relative path 'b.txt' without a default bucket."


def test_the_config_hash_is_the_start_of_a_known_digest() -> None:
    # printf 'http://s3|key|bucket' | sha256sum | cut -c1-16
    assert calculate_config_hash("http://s3", "key", "bucket") == "875185a451933ae7"
    assert calculate_config_hash("http://s3", None, "bucket") is None
    assert calculate_config_hash("http://s3", "key", "") is None


def test_every_promised_constant_has_its_value() -> None:
    expected = {
        "AUTH_HEADER_CLIENT": "X-Client-Token",
        "AUTH_HEADER_WORKER": "X-Worker-Token",
        "COMMAND_CANCEL_TASK": "cancel_task",
        "ENDPOINT_TASK_NEXT": "/workers/{worker_id}/tasks/next",
        "ENDPOINT_TASK_RESULT": "/tasks/result",
        "ENDPOINT_WORKER_HEARTBEAT": "/workers/{worker_id}",
        "ENDPOINT_WORKER_REGISTER": "/workers/register",
        "ENDPOINT_TASK_PROGRESS": "/tasks/progress",
        "ENDPOINT_TASK_RESULTS": "/tasks/results",
        "ENDPOINT_WORKER_EVENTS": "/events",
        "ERROR_CODE_CONTRACT_VIOLATION": "CONTRACT_VIOLATION_ERROR",
        "ERROR_CODE_DEPENDENCY": "DEPENDENCY_ERROR",
        "ERROR_CODE_INTEGRITY_MISMATCH": "INTEGRITY_MISMATCH_ERROR",
        "ERROR_CODE_INTERNAL": "INTERNAL_ERROR",
        "ERROR_CODE_INVALID_INPUT": "INVALID_INPUT_ERROR",
        "ERROR_CODE_PERMANENT": "PERMANENT_ERROR",
        "ERROR_CODE_RESOURCE_EXHAUSTED": "RESOURCE_EXHAUSTED_ERROR",
        "ERROR_CODE_SECURITY": "SECURITY_ERROR",
        "ERROR_CODE_TIMEOUT": "TIMEOUT_ERROR",
        "ERROR_CODE_TRANSIENT": "TRANSIENT_ERROR",
        "JOB_STATUS_CANCELLED": "cancelled",
        "JOB_STATUS_ERROR": "error",
        "JOB_STATUS_FAILED": "failed",
        "JOB_STATUS_FINISHED": "finished",
        "JOB_STATUS_PENDING": "pending",
        "JOB_STATUS_QUARANTINED": "quarantined",
        "JOB_STATUS_RUNNING": "running",
        "JOB_STATUS_WAITING_FOR_HUMAN": "waiting_for_human",
        "JOB_STATUS_WAITING_FOR_PARALLEL": "waiting_for_parallel_tasks",
        "JOB_STATUS_WAITING_FOR_WORKER": "waiting_for_worker",
        "MSG_TYPE_PROGRESS": "progress_update",
        "PROTOCOL_VERSION": "1.0b2",
        "PROTOCOL_VERSION_HEADER": "X-RXON-Version",
        "STS_TOKEN_ENDPOINT": "/auth/token",
        "TASK_STATUS_CANCELLED": "cancelled",
        "TASK_STATUS_FAILURE": "failure",
        "TASK_STATUS_SUCCESS": "success",
        "WORKER_API_PREFIX": "/_worker",
        "WORKER_ID_HEADER": "X-Worker-ID",
        "WS_ENDPOINT": "/ws",
    }

    given = {name: value for name, value in vars(constants).items() if name.isupper()}

    assert given == expected
