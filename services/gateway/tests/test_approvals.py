"""Decisions of people, over real HTTP."""

import asyncio

import pytest
from services.gateway.tests.door import APPROVAL_SECRET, CLIENT, UNKNOWN, Door, open_door

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_core.job import Job
from avtomatika_core.outcomes import AwaitApproval
from tests.contract.breaking import MemoryHands

OWN_TOKEN = {"X-Approval-Token": APPROVAL_SECRET}
WHO = "Approval token or client token required"


async def a_waiting_job(door: Door) -> Job:
    await door.new_job()
    return await door.handler_returns(
        AwaitApproval(
            integration="mail",
            message="May it?",
            transitions={"yes": "done", "no": "failed", "timeout": "failed"},
        )
    )


def approval(job_id: str) -> str:
    return f"/_public/webhooks/approval/{job_id}"


@pytest.mark.parametrize("headers", [OWN_TOKEN, CLIENT])
async def test_a_decision_moves_the_job_on(door: Door, headers: dict[str, str]) -> None:
    job = await a_waiting_job(door)

    answer = await door.ask("POST", approval(job.id), json={"decision": "yes"}, headers=headers)

    assert answer.status == 200
    assert answer.body == {"status": "approval_received", "job_id": job.id}
    assert (await door.handler_returns(None)).head.state == "done"


async def test_the_wait_s_token_may_stand_in_the_query(door: Door) -> None:
    job = await a_waiting_job(door)

    answer = await door.ask(
        "POST", approval(job.id), json={"decision": "no"}, params={"token": APPROVAL_SECRET}
    )

    assert answer.status == 200


@pytest.mark.parametrize(
    "headers", [{}, {"X-Approval-Token": "guessed"}, {"X-Client-Token": "guessed"}]
)
async def test_who_has_no_token_changes_nothing(door: Door, headers: dict[str, str]) -> None:
    """R28."""
    job = await a_waiting_job(door)
    before = await door.client("GET", f"/api/jobs/{job.id}")

    answer = await door.ask("POST", approval(job.id), json={"decision": "yes"}, headers=headers)

    assert (answer.status, answer.body) == (401, {"error": WHO})
    assert (await door.client("GET", f"/api/jobs/{job.id}")).body == before.body


async def test_an_anonymous_request_does_not_learn_which_jobs_exist(door: Door) -> None:
    answer = await door.ask("POST", approval(UNKNOWN), json={"decision": "yes"})

    assert (answer.status, answer.body) == (401, {"error": WHO})


async def test_of_two_decisions_at_once_one_counts(door: Door) -> None:
    """R28."""
    job = await a_waiting_job(door)

    answers = await asyncio.gather(
        *(
            door.ask("POST", approval(job.id), json={"decision": decision}, headers=headers)
            for decision, headers in (("yes", OWN_TOKEN), ("no", CLIENT))
        )
    )

    assert sorted(answer.status for answer in answers) == [200, 409]
    refused = next(answer for answer in answers if answer.status == 409)
    assert refused.body == {"error": "Job is not in a state that can be approved"}


async def test_a_token_is_good_for_one_decision(door: Door) -> None:
    job = await a_waiting_job(door)
    await door.ask("POST", approval(job.id), json={"decision": "yes"}, headers=OWN_TOKEN)

    again = await door.ask("POST", approval(job.id), json={"decision": "no"}, headers=OWN_TOKEN)

    assert again.status == 409


async def test_a_job_that_waits_for_no_one_cannot_be_approved(door: Door) -> None:
    job = await door.job_with_task()

    answer = await door.client("POST", approval(job.id), json={"decision": "success"})

    assert answer.status == 409
    assert answer.body == {"error": "Job is not in a state that can be approved"}


async def test_a_job_this_gateway_cannot_read_is_to_be_decided_later(door: Door) -> None:
    """A gateway that is not upgraded yet, perhaps."""
    job = await a_waiting_job(door)
    assert isinstance(door.backend, MemoryStorage)
    await MemoryHands(door.backend).spoil_head(job.id)

    answer = await door.client("POST", approval(job.id), json={"decision": "yes"})

    assert answer.status == 503
    assert answer.headers["Retry-After"] == "5"
    assert answer.body["error"].startswith("The job cannot be read here")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "Invalid JSON body"),
        (b"[]", "Invalid JSON body"),
        (b"{}", "decision is required in body"),
        (b'{"decision": ""}', "decision is required in body"),
        (b'{"decision": ["yes"]}', "decision is required in body"),
        (b'{"decision": "perhaps"}', "Invalid decision 'perhaps' for this job"),
        (b'{"decision": "timeout"}', "Invalid decision 'timeout' for this job"),
    ],
)
async def test_a_decision_nobody_offered_is_refused(door: Door, body: bytes, text: str) -> None:
    job = await a_waiting_job(door)

    answer = await door.client("POST", approval(job.id), data=body)

    assert (answer.status, answer.body) == (400, {"error": text})


@pytest.mark.parametrize("job_id", [UNKNOWN, "x"])
async def test_an_unknown_job_is_not_found(door: Door, job_id: str) -> None:
    answer = await door.client("POST", approval(job_id), json={"decision": "yes"})

    assert (answer.status, answer.body) == (404, {"error": "Job not found"})


async def test_the_check_can_be_switched_off() -> None:
    async with open_door(APPROVAL_AUTH_REQUIRED="false") as door:
        job = await a_waiting_job(door)

        answer = await door.ask("POST", approval(job.id), json={"decision": "yes"})

        assert answer.status == 200
