"""The rules of the body that makes a job."""

from typing import Any

import pytest

from avtomatika_common.ids import partition_of
from avtomatika_gateway.access import ApiClient
from avtomatika_gateway.job_requests import id_for, idempotency_key, parse_job_request
from avtomatika_gateway.refusals import BadRequest

CLIENT = ApiClient(name="c")


@pytest.mark.parametrize(
    ("body", "initial_data"),
    [
        ({}, {}),
        ({"initial_data": {"a": 1}}, {"a": 1}),
        ({"initial_data": None}, {}),
        ({"a": 1, "b": [2]}, {"a": 1, "b": [2]}),
        ({"dispatch_timeout": 5, "a": 1}, {"dispatch_timeout": 5, "a": 1}),
        ({"timeout_seconds": 5}, {"timeout_seconds": 5}),
        ({"webhook_url": "http://h/", "a": 1}, {}),
        ({"initial_data": {"a": 1}, "webhook_url": "http://h/", "b": 2}, {"a": 1}),
    ],
)
def test_initial_data_is_its_key_or_the_whole_body(
    body: dict[str, Any], initial_data: dict[str, Any]
) -> None:
    assert parse_job_request(body).initial_data == initial_data


def test_timeouts_and_metadata_are_taken_over_without_security() -> None:
    request = parse_job_request(
        {
            "initial_data": {},
            "dispatch_timeout": 5,
            "result_timeout": 0.5,
            "timeout_seconds": 90,
            "metadata": {"team": "a", "security": {"signer_id": "me"}},
        }
    )

    assert (request.dispatch_timeout, request.result_timeout) == (5.0, 0.5)
    assert request.timeout_seconds == 90.0
    assert request.metadata == {"team": "a"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"initial_data": [1]}, "initial_data must be an object"),
        ({"initial_data": "x"}, "initial_data must be an object"),
        ({"initial_data": {}, "metadata": 1}, "metadata must be an object"),
        ({"initial_data": {}, "dispatch_timeout": "5"}, "dispatch_timeout must be a number"),
        ({"initial_data": {}, "result_timeout": True}, "result_timeout must be a number"),
        ({"initial_data": {}, "result_timeout": -1}, "result_timeout must be at least 0"),
        ({"initial_data": {}, "timeout_seconds": "1"}, "timeout_seconds must be a number"),
        ({"initial_data": {}, "timeout_seconds": 0}, "timeout_seconds must be above 0 seconds"),
    ],
)
def test_what_breaks_the_rules_is_refused_by_name(body: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        parse_job_request(body)


@pytest.mark.parametrize("url", ["http://h", "https://h.example:8443/path?q=1", "HTTP://[::1]/x"])
def test_an_absolute_http_url_may_be_a_webhook(url: str) -> None:
    assert parse_job_request({"webhook_url": url}).webhook_url == url


@pytest.mark.parametrize(
    "url",
    [
        "", "h", "/path", "ftp://h/", "http://", "http:///path", "http://h:x/", "http://h:0/",
        "http://h:99999/", "http://[::1/", "http://h/a b", "http://h/\n", 5, ["http://h"],
    ],
)  # fmt: skip
def test_any_other_webhook_url_is_refused(url: object) -> None:
    with pytest.raises(BadRequest, match=r"^Invalid webhook_url$"):
        parse_job_request({"webhook_url": url})


def test_a_key_belongs_to_client_path_and_body_in_any_order() -> None:
    first = idempotency_key("k", CLIENT, "/api/x", {"a": 1, "b": 2})

    assert first == idempotency_key("k", CLIENT, "/api/x", {"b": 2, "a": 1})
    for path, body in (("/api/y", {"a": 1, "b": 2}), ("/api/x", {"a": 1})):
        other = idempotency_key("k", CLIENT, path, body)
        assert first is not None
        assert other is not None
        assert first.fingerprint != other.fingerprint


def test_a_request_without_a_key_has_none() -> None:
    assert idempotency_key(None, CLIENT, "/api/x", {}) is None


def test_an_empty_key_is_no_protection_and_is_refused() -> None:
    with pytest.raises(BadRequest, match="is empty"):
        idempotency_key("", CLIENT, "/api/x", {})


def test_a_key_may_have_255_characters_and_no_more() -> None:
    assert idempotency_key("k" * 255, CLIENT, "/api/x", {}) is not None
    with pytest.raises(BadRequest, match="longer than 255"):
        idempotency_key("k" * 256, CLIENT, "/api/x", {})


def test_repeats_of_a_key_get_ids_of_one_partition() -> None:
    key = idempotency_key("k", CLIENT, "/api/x", {})

    ids = [id_for(key, 64) for _ in range(20)]

    assert len(set(ids)) == 20
    assert len({partition_of(job_id, 64) for job_id in ids}) == 1
