"""Which error becomes which HTTP answer: one table, and the middleware that applies it."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    IdempotencyKeyReused,
    JobIsTerminal,
    JobNotFound,
    StoreFull,
    StoreUnavailable,
    TooManySignals,
)
from avtomatika_common.logs import get_logger
from avtomatika_core.signals import MOST_WAITING
from avtomatika_gateway.bodies import json_response
from avtomatika_gateway.refusals import (
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    Unauthenticated,
)
from rxon.exceptions import BadMessage

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = get_logger()


class _Answer(msgspec.Struct, frozen=True):
    status: int
    text: str = "{error}"
    retry_after_seconds: int | None = None


_ANSWERS: Final[dict[type[Exception], _Answer]] = {
    BadRequest: _Answer(400),
    BadMessage: _Answer(400),
    Unauthenticated: _Answer(401),
    Forbidden: _Answer(403),
    NotFound: _Answer(404),
    Conflict: _Answer(409),
    JobNotFound: _Answer(404, "Job not found"),
    JobIsTerminal: _Answer(
        409, "Job is not in a state that can be cancelled (already {error.status})."
    ),
    ApprovalNotOpen: _Answer(409, "Job is not in a state that can be approved"),
    IdempotencyKeyReused: _Answer(422, "Idempotency-Key was used for another request."),
    TooManySignals: _Answer(
        429,
        f"{MOST_WAITING} signals wait for this job to take them: send more when it has taken some.",
    ),
    StoreFull: _Answer(503, "No new work is taken now, try again later.", 5),
    StoreUnavailable: _Answer(503, "The storage does not answer, try again.", 1),
}


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as `{"error": <text>}`; an unexpected one as 500 without its text."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        limit = request.client_max_size
        return json_response({"error": f"Request body is larger than {limit} bytes."}, 413)
    except web.HTTPException as answer:
        if answer.status < 400 or answer.content_type == "application/json":
            raise
        kept = {name: answer.headers[name] for name in ("Allow",) if name in answer.headers}
        return json_response({"error": answer.reason}, answer.status, kept)
    except tuple(_ANSWERS) as error:
        return _answer(error)
    except Exception:
        if request.transport is None or request.transport.is_closing():
            raise  # the connection dropped: there is nobody to answer
        log.exception("unexpected fault", method=request.method, path=request.path)
        return json_response({"error": "Internal server error"}, 500)


def status_and_text(error: Exception) -> tuple[int, str] | None:
    """How a request that raises this is answered; None: it is not to be expected."""
    for kind in type(error).__mro__:
        if (answer := _ANSWERS.get(kind)) is not None:
            return answer.status, answer.text.format(error=error)
    return None


def _answer(error: Exception) -> web.Response:
    kind = next(kind for kind in type(error).__mro__ if kind in _ANSWERS)
    answer = _ANSWERS[kind]
    headers = (
        {"Retry-After": str(answer.retry_after_seconds)} if answer.retry_after_seconds else None
    )
    if answer.status >= 500:
        log.warning("request refused", status=answer.status, reason=str(error))
    return json_response({"error": answer.text.format(error=error)}, answer.status, headers)
