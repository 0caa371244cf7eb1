"""Signals of clients, over real HTTP."""

import asyncio

import pytest
from services.gateway.tests.door import UNKNOWN, Answer, Door

from avtomatika_core.job import JobStatus
from avtomatika_core.outcomes import WaitForSignal
from avtomatika_core.signals import MOST_WAITING

WAIT = WaitForSignal(name="paid", transitions={"received": "done"})
ACCEPTED = {"status": "accepted"}


def path(job_id: str, name: str = "paid", base: str = "/api") -> str:
    return f"{base}/jobs/{job_id}/signals/{name}"


async def send(
    door: Door, job_id: str, name: str = "paid", key: str = "", **data: object
) -> Answer:
    headers = {"Idempotency-Key": key} if key else {}
    return await door.client("POST", path(job_id, name), json=data, headers=headers)


async def test_a_signal_moves_the_job_that_waits_for_it_on(door: Door) -> None:
    job_id = await door.new_job()
    assert (await door.handler_returns(WAIT)).status is JobStatus.WAITING_FOR_SIGNAL

    answer = await send(door, job_id, amount=3)

    assert (answer.status, answer.body) == (202, ACCEPTED)
    job = await door.handler_returns(None)
    assert (job.state, job.data.state_history) == ("done", {"amount": 3})


@pytest.mark.parametrize("base", ["/api", "/api/v1"])
async def test_a_signal_needs_no_body(door: Door, base: str) -> None:
    job_id = await door.new_job()
    await door.handler_returns(WAIT)

    answer = await door.client("POST", path(job_id, base=base))

    assert (answer.status, answer.body) == (202, ACCEPTED)
    assert (await door.handler_returns(None)).state == "done"


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"{", b"null"])
async def test_a_body_that_is_no_object_is_refused(door: Door, body: bytes) -> None:
    job_id = await door.new_job()

    answer = await door.client("POST", path(job_id), data=body)

    assert (answer.status, answer.body) == (400, {"error": "Invalid JSON body"})


@pytest.mark.parametrize("job_id", [UNKNOWN, "x"])
async def test_an_unknown_job_is_not_found(door: Door, job_id: str) -> None:
    answer = await send(door, job_id)

    assert (answer.status, answer.body) == (404, {"error": "Job not found"})


async def test_a_job_that_has_ended_takes_no_signal(door: Door) -> None:
    job_id = await door.new_job()
    await door.handler_breaks()

    answer = await send(door, job_id)

    assert answer.status == 409
    assert answer.body == {"error": "Job takes no signals any more (already quarantined)."}


async def test_who_has_no_token_sends_nothing(door: Door) -> None:
    """R31."""
    job_id = await door.new_job()

    answer = await door.ask("POST", path(job_id), json={})

    assert answer.status == 401
    assert await door.backend.inbox.length() == 1  # the job's own begin


async def test_an_idempotency_key_sends_one_signal(door: Door) -> None:
    job_id = await door.new_job()

    answers = await asyncio.gather(*(send(door, job_id, key="k", n=1) for _ in range(3)))
    other_body = await send(door, job_id, key="k", n=2)
    other_name = await send(door, job_id, "other", key="k", n=1)

    assert [(answer.status, answer.body) for answer in answers] == [(202, ACCEPTED)] * 3
    for answer in (other_body, other_name):
        assert answer.status == 422
        assert answer.body == {"error": "Idempotency-Key was used for another request."}
    assert await door.backend.inbox.length() == 2


async def test_a_key_of_a_job_is_not_one_of_a_signal(door: Door) -> None:
    headers = {"Idempotency-Key": "k"}
    made = await door.client("POST", "/api/v1/jobs/images", json={}, headers=headers)

    answer = await send(door, made.body["job_id"], key="k")

    assert answer.status == 422


async def test_a_key_that_is_too_long_is_refused(door: Door) -> None:
    answer = await send(door, await door.new_job(), key="k" * 256)

    assert answer.status == 400


async def test_the_hundred_and_first_signal_that_waits_is_refused(door: Door) -> None:
    job_id = await door.new_job()

    answers = [await send(door, job_id) for _ in range(MOST_WAITING + 1)]

    assert [answer.status for answer in answers] == [202] * MOST_WAITING + [429]
    assert answers[-1].body == {
        "error": "100 signals wait for this job to take them: send more when it has taken some."
    }


@pytest.mark.parametrize("name", ["a%20b", "x%2Fy", "%C3%A4"])
async def test_a_name_may_have_any_printable_characters(door: Door, name: str) -> None:
    job_id = await door.new_job()

    answer = await door.client("POST", path(job_id, name))

    assert answer.status == 202


@pytest.mark.parametrize("name", ["x" * 256, "a%0Ab"])
async def test_a_name_no_signal_can_have_is_refused(door: Door, name: str) -> None:
    answer = await door.client("POST", path(await door.new_job(), name))

    assert answer.status == 400
    assert "1 to 255 printable characters" in answer.body["error"]


async def test_the_document_says_what_is_waited_for(door: Door) -> None:
    job_id = await door.new_job()
    job = await door.handler_returns(
        WaitForSignal(name="paid", transitions={"received": "done"}, timeout_seconds=60.0)
    )

    document = (await door.client("GET", f"/api/jobs/{job_id}")).body
    why = (await door.client("GET", f"/api/jobs/{job_id}/why")).body

    asked_at = job.head.updated_at
    assert document["status"] == "waiting_for_signal"
    assert document["signal"] == {
        "name": "paid",
        "requested_at": asked_at,
        "deadline": asked_at + 60,
    }
    assert (why["waiting_for"], why["since"], why["deadline"]) == (
        "signal",
        asked_at,
        asked_at + 60,
    )
