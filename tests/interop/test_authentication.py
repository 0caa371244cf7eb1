"""Who a worker is: headers, tokens and hints."""

import pytest

from tests.interop.door import WORKER_TOKEN, Door, result_of

ENDPOINTS: list[tuple[str, str, object]] = [
    ("POST", "/_worker/workers/register", {"worker_id": "w1"}),
    ("GET", "/_worker/workers/w1/tasks/next", None),
    ("PATCH", "/_worker/workers/w1", None),
    ("PATCH", "/_worker/workers/w1", {"load": 0.5}),
    ("PATCH", "/_worker/workers/w1/status", None),
    ("POST", "/_worker/tasks/result", result_of({"job_id": "j", "task_id": "t"}, "w1")),
    ("POST", "/_worker/auth/token", None),
]
NO_TOKEN = (401, "Missing X-Worker-Token header or client certificate")
WRONG_TOKEN = (401, "Unauthorized: No valid token found")
NO_WORKER = (401, "Unauthorized: Invalid token or missing worker_id hint")


async def test_no_endpoint_answers_without_a_token(door: Door) -> None:
    for method, path, body in ENDPOINTS:
        answer = await door.call(method, path, body, token=None)

        assert answer.error == NO_TOKEN, path


async def test_a_wrong_token_opens_nothing_to_a_worker_that_is_named(door: Door) -> None:
    for method, path, body in ENDPOINTS[:-1]:
        answer = await door.call(method, path, body, token="wrong")

        assert answer.error == WRONG_TOKEN, path


async def test_a_wrong_token_without_a_name_is_no_worker_at_all(door: Door) -> None:
    nameless = await door.call("POST", "/_worker/auth/token", token="wrong")
    named = await door.call(
        "POST", "/_worker/auth/token", token="wrong", headers={"X-Worker-ID": "w1"}
    )

    assert nameless.error == NO_WORKER
    assert named.error == WRONG_TOKEN


@pytest.mark.parametrize("token", ["The-Global-Worker-Token", WORKER_TOKEN + "x", "ключ", "*"])
async def test_a_token_has_to_be_the_same_to_the_letter(door: Door, token: str) -> None:
    answer = await door.call("PATCH", "/_worker/workers/w1", token=token)

    assert answer.error == WRONG_TOKEN


async def test_a_clients_token_is_no_workers_token(door: Door) -> None:
    answer = await door.call(
        "PATCH", "/_worker/workers/w1", token=None, headers={"X-Client-Token": WORKER_TOKEN}
    )

    assert answer.error == NO_TOKEN


async def test_names_of_headers_have_no_case(door: Door) -> None:
    answer = await door.exchange(
        b"PATCH /_worker/workers/nobody HTTP/1.1\r\nhost: here\r\n"
        b"x-worker-token: " + WORKER_TOKEN.encode() + b"\r\n\r\n"
    )

    assert answer.error == (404, "Worker not found")


async def test_an_access_token_is_given_only_to_a_certificate(door: Door) -> None:
    refused = (403, "Unauthorized: mTLS certificate required to issue access token.")

    nameless = await door.call("POST", "/_worker/auth/token")
    named = await door.call("POST", "/_worker/auth/token", headers={"X-Worker-ID": "w1"})

    assert nameless.error == refused
    assert named.error == refused


async def test_the_path_names_the_worker_whatever_the_header_says(door: Door) -> None:
    await door.register("w1")

    answer = await door.call("PATCH", "/_worker/workers/w1", headers={"X-Worker-ID": "nobody"})

    assert answer.json == {"status": "ttl_refreshed"}


async def test_a_header_names_the_worker_where_the_body_does_not(door: Door) -> None:
    task = await door.held("w1")
    body = result_of(task, "w1")
    del body["worker_id"]

    answer = await door.result(body, headers={"X-Worker-ID": "w1"})

    assert answer.json == {"status": "ok"}


async def test_a_result_from_nobody_is_asked_for_its_worker(door: Door) -> None:
    task = await door.held("w1")
    body = result_of(task, "w1")
    del body["worker_id"]

    answer = await door.result(body)

    assert answer.error == (400, "Missing required field: worker_id")


async def test_a_worker_cannot_bring_a_result_of_another(door: Door) -> None:
    """R37."""
    task = await door.held("w1")
    before = await door.document_bytes(task["job_id"])

    answer = await door.done(task, "w1", worker_id="other")
    refused = await door.result(result_of(task, "w1"), headers={"X-Worker-ID": "other"})

    assert answer.json["reason"] == "worker_mismatch"  # the body's name is its sender's
    assert refused.error == (
        403,
        "Forbidden: Authenticated worker 'other' cannot submit results for another worker 'w1'.",
    )
    assert await door.document_bytes(task["job_id"]) == before
