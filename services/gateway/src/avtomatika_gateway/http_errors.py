"""Which error becomes which answer: one table, and the middleware that applies it to HTTP."""

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
    UnreadableJob,
)
from avtomatika_common.logs import get_logger
from avtomatika_core.signals import MOST_WAITING
from avtomatika_gateway.bodies import json_response
from avtomatika_gateway.refusals import (
    BadRequest,
    BodyTooLarge,
    Conflict,
    Forbidden,
    NotFound,
    Unauthenticated,
)
from rxon.exceptions import BadMessage

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = get_logger()


class Refusal(msgspec.Struct, frozen=True):
    status: int
    text: str = "{error}"
    retry_after_seconds: int | None = None


_REFUSALS: Final[dict[type[Exception], Refusal]] = {
    BadRequest: Refusal(400),
    BadMessage: Refusal(400),
    Unauthenticated: Refusal(401),
    Forbidden: Refusal(403),
    NotFound: Refusal(404),
    Conflict: Refusal(409),
    BodyTooLarge: Refusal(413),
    JobNotFound: Refusal(404, "Job not found"),
    JobIsTerminal: Refusal(
        409, "Job is not in a state that can be cancelled (already {error.status})."
    ),
    ApprovalNotOpen: Refusal(409, "Job is not in a state that can be approved"),
    IdempotencyKeyReused: Refusal(422, "Idempotency-Key was used for another request."),
    TooManySignals: Refusal(
        429,
        f"{MOST_WAITING} signals wait for this job to take them: send more when it has taken some.",
    ),
    UnreadableJob: Refusal(
        503, "The job cannot be read here, a newer version wrote it, perhaps. Try again later.", 5
    ),
    StoreFull: Refusal(503, "No new work is taken now, try again later.", 5),
    StoreUnavailable: Refusal(503, "The storage does not answer, try again.", 1),
}
UNEXPECTED: Final = Refusal(500, "Internal server error")
"""What anything else is answered with: a fault of ours, whose text is not for others."""
REFUSED: Final = tuple(_REFUSALS)
"""Errors that are answers; `refusal_of` says which."""


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as `{"error": <text>}`; an unexpected one as 500 without its text."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _answer(refusal_of(BodyTooLarge(limit=request.client_max_size)))
    except web.HTTPException as answer:
        if answer.status < 400 or answer.content_type == "application/json":
            raise
        kept = {name: answer.headers[name] for name in ("Allow",) if name in answer.headers}
        return json_response({"error": answer.reason}, answer.status, kept)
    except REFUSED as error:
        refusal = refusal_of(error)
        if refusal.status >= 500:
            log.warning("request refused", status=refusal.status, reason=str(error))
        return _answer(refusal)
    except Exception:
        if request.transport is None or request.transport.is_closing():
            raise  # the connection dropped: there is nobody to answer
        log.exception("unexpected fault", method=request.method, path=request.path)
        return _answer(UNEXPECTED)


def refusal_of(error: Exception) -> Refusal:
    """How a request that raises this is answered, one of `REFUSED`."""
    kind = next(kind for kind in type(error).__mro__ if kind in _REFUSALS)
    refusal = _REFUSALS[kind]
    return msgspec.structs.replace(refusal, text=refusal.text.format(error=error))


def _answer(refusal: Refusal) -> web.Response:
    headers = (
        {"Retry-After": str(refusal.retry_after_seconds)} if refusal.retry_after_seconds else None
    )
    return json_response({"error": refusal.text}, refusal.status, headers)
