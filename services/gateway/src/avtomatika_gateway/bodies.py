"""JSON bodies at the HTTP door: read once into a typed value, written once."""

import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

import rxon
from avtomatika_common import codec
from avtomatika_common.backend.ports import JobNotFound
from avtomatika_core.job import JobId
from avtomatika_gateway.refusals import BadRequest
from rxon.exceptions import InvalidJson, NotAnObject

_is_job_id: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


def json_response(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=codec.json_bytes(value),
        status=status,
        headers=headers,
        content_type="application/json",
    )


async def read_object(request: web.Request) -> dict[str, Any]:
    """A client's JSON object. Raises BadRequest; aiohttp's own error when it is too large."""
    try:
        return await read_message(request)
    except (InvalidJson, NotAnObject):
        raise BadRequest("Invalid JSON body") from None


async def read_message(request: web.Request) -> dict[str, Any]:
    """A worker's JSON object. Raises BadMessage; aiohttp's own error when it is too large."""
    return parse_message(await request.read())


def parse_message(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises BadMessage."""
    message = rxon.parse_object(body)
    if codec.is_too_deep(body, message, codec.DEEPEST):
        raise InvalidJson
    return message


def job_id_in(request: web.Request) -> JobId:
    """The job the path names. Raises JobNotFound for what cannot be a job's id."""
    return parse_job_id(request.match_info["job_id"])


def parse_job_id(text: str) -> JobId:
    if not _is_job_id(text):
        raise JobNotFound
    return JobId(text)
