"""What a client may ask for when it makes a job: the body's rules, and the job they lead to."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec
import orjson

from avtomatika_common.backend.ports import CatalogueEntry, IdempotencyKey
from avtomatika_common.ids import new_id, new_id_in_partition, partition_of_key
from avtomatika_core.job import Job, JobId, Origin, new_job
from avtomatika_gateway.access import ApiClient
from avtomatika_gateway.refusals import BadRequest

_TRACING_HEADERS = ("traceparent", "tracestate", "baggage")
_LONGEST_KEY = 255


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A body that kept the rules. Times in seconds."""

    initial_data: dict[str, Any] = {}
    webhook_url: str | None = None
    dispatch_timeout: float | None = None
    result_timeout: float | None = None
    timeout_seconds: float | None = None
    metadata: dict[str, Any] = {}


def parse_job_request(body: dict[str, Any]) -> JobRequest:
    """Raises BadRequest.

    A body with neither `initial_data` nor `webhook_url` is the initial data as a whole.
    """
    if "initial_data" not in body and "webhook_url" not in body:
        return JobRequest(initial_data=body)
    metadata = _object(body, "metadata")
    metadata.pop("security", None)
    return JobRequest(
        initial_data=_object(body, "initial_data"),
        webhook_url=_webhook_url(body.get("webhook_url")),
        dispatch_timeout=_seconds(body, "dispatch_timeout"),
        result_timeout=_seconds(body, "result_timeout"),
        timeout_seconds=_timeout(body, "timeout_seconds"),
        metadata=metadata,
    )


def _object(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{key} must be an object")
    return cast("dict[str, Any]", value)


def _seconds(body: dict[str, Any], key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{key} must be a number of seconds")
    if value < 0 or not math.isfinite(value):
        raise BadRequest(f"{key} must be at least 0 seconds")
    return float(value)


def _timeout(body: dict[str, Any], key: str) -> float | None:
    seconds = _seconds(body, key)
    if seconds == 0:
        raise BadRequest(f"{key} must be above 0 seconds; leave it out for no limit")
    return seconds


def _webhook_url(value: object) -> str | None:
    """None: no webhook is wanted."""
    if value is None:
        return None
    if not isinstance(value, str) or not _is_absolute_http_url(value):
        raise BadRequest("Invalid webhook_url")
    return value


def _is_absolute_http_url(text: str) -> bool:
    if not text.isprintable() or " " in text:
        return False
    try:
        url = urlsplit(text)
        has_port = url.port != 0
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and has_port


def idempotency_key(
    header: str | None, client: ApiClient, path: str, body: dict[str, Any]
) -> IdempotencyKey | None:
    """None: the request has no key. Raises BadRequest."""
    if header is None:
        return None
    if not header:
        raise BadRequest("Idempotency-Key is empty: send 1 to 255 characters, or no such header.")
    if len(header) > _LONGEST_KEY:
        raise BadRequest(f"Idempotency-Key is longer than {_LONGEST_KEY} characters.")
    if not header.isprintable():
        raise BadRequest("Idempotency-Key has characters that cannot be read.")
    canonical = orjson.dumps([path, body], option=orjson.OPT_SORT_KEYS)
    fingerprint = hashlib.sha256(canonical).hexdigest()
    return IdempotencyKey(client=client.name, key=header, fingerprint=fingerprint)


def id_for(key: IdempotencyKey | None, partitions: int) -> JobId:
    """A new job's id. A repeated request must meet its first answer: its key says where it lives."""
    if key is None:
        return JobId(new_id())
    place = partition_of_key(key.client, key.key, partitions)
    return JobId(new_id_in_partition(place, partitions))


def requested_job(
    job_id: JobId,
    request: JobRequest,
    entry: CatalogueEntry,
    client: ApiClient,
    headers: Mapping[str, str],
    now: float,
) -> Job:
    return new_job(
        job_id,
        Origin(
            blueprint=entry.name,
            group=entry.group,
            start_state=entry.start_state,
            initial_data=request.initial_data,
            client=client.as_job_client(),
            created_at=now,
            webhook_url=request.webhook_url,
            metadata=request.metadata,
            tracing_context=_tracing_context(headers),
            dispatch_timeout=request.dispatch_timeout,
            result_timeout=request.result_timeout,
            timeout_seconds=request.timeout_seconds,
        ),
    )


def _tracing_context(headers: Mapping[str, str]) -> dict[str, str]:
    given = {name: headers.get(name, "") for name in _TRACING_HEADERS}
    return {name: value for name, value in given.items() if value and value.isascii()}
