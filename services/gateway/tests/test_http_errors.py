"""Every error becomes an answer of one form."""

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    IdempotencyKeyReused,
    JobIsTerminal,
    JobNotFound,
    StoreFull,
    StoreUnavailable,
    TooManySignals,
)
from avtomatika_gateway.http_errors import answer_errors
from avtomatika_gateway.refusals import BadRequest, Forbidden, NotFound, Unauthenticated
from rxon.exceptions import MissingWorkerId


async def answer_to(error: Exception) -> tuple[int, object, str | None]:
    async def fail(_request: web.Request) -> web.Response:
        raise error

    app = web.Application(middlewares=[answer_errors])
    app.router.add_get("/", fail)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        return response.status, await response.json(), response.headers.get("Retry-After")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (BadRequest("no such thing"), 400, "no such thing"),
        (MissingWorkerId(), 400, "Missing required field: worker_id"),
        (Unauthenticated("who?"), 401, "who?"),
        (Forbidden("not you"), 403, "not you"),
        (NotFound("Worker not found"), 404, "Worker not found"),
        (JobNotFound(), 404, "Job not found"),
        (
            JobIsTerminal("failed"),
            409,
            "Job is not in a state that can be cancelled (already failed).",
        ),
        (ApprovalNotOpen(), 409, "Job is not in a state that can be approved"),
        (IdempotencyKeyReused(), 422, "Idempotency-Key was used for another request."),
        (
            TooManySignals(),
            429,
            "100 signals wait for this job to take them: send more when it has taken some.",
        ),
        (web.HTTPNotFound(), 404, "Not Found"),
        (web.HTTPForbidden(), 403, "Forbidden"),
    ],
)
async def test_an_error_has_its_status_and_text(error: Exception, status: int, text: str) -> None:
    assert await answer_to(error) == (status, {"error": text}, None)


@pytest.mark.parametrize("error", [StoreFull(), StoreUnavailable("timeout")])
async def test_a_store_that_cannot_now_asks_to_come_again(error: Exception) -> None:
    status, body, retry_after = await answer_to(error)

    assert status == 503
    assert isinstance(body, dict)
    assert retry_after is not None
    assert int(retry_after) > 0


async def test_a_fault_of_ours_is_logged_once_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = await answer_to(ZeroDivisionError("a secret"))

    assert answer == (500, {"error": "Internal server error"}, None)
    [record] = [line for line in caplog.records if line.exc_info]
    assert record.message == "unexpected fault"
