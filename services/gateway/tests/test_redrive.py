"""Redrives by clients, over real HTTP."""

import asyncio

import pytest
from services.gateway.tests.door import Door

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Stored, StoreUnavailable
from avtomatika_core.job import JobId, JobStatus
from avtomatika_core.outcomes import TransitionTo
from avtomatika_core.redrive import Redriven
from tests.contract.breaking import MemoryHands


async def a_quarantined_job(door: Door) -> str:
    job_id = await door.new_job()
    assert (await door.handler_breaks()).status is JobStatus.QUARANTINED
    return job_id


def path(job_id: str, base: str = "/api") -> str:
    return f"{base}/jobs/{job_id}/redrive"


async def status_of(door: Door, job_id: str) -> str:
    stored = await door.backend.jobs.load(JobId(job_id))
    assert stored is not None
    return stored.job.status.value


@pytest.mark.parametrize("base", ["/api", "/api/v1"])
async def test_a_quarantined_job_runs_again(door: Door, base: str) -> None:
    """R62."""
    job_id = await a_quarantined_job(door)

    answer = await door.client("POST", path(job_id, base))

    assert (answer.status, answer.body) == (202, {"status": "accepted", "job_id": job_id})
    document = (await door.client("GET", f"/api/jobs/{job_id}")).body
    assert (document["status"], document["current_state"]) == ("running", "start")
    assert (document["error_message"], document["finished_at"]) == (None, None)
    assert (await door.client("GET", "/api/jobs/quarantined")).body == []


async def test_a_job_that_is_neither_quarantined_nor_failed_is_left_alone(door: Door) -> None:
    job_id = await door.new_job()

    pending = await door.client("POST", path(job_id))
    await door.handler_returns(TransitionTo(state="done"))
    running = await door.client("POST", path(job_id))
    await door.client("POST", f"/api/jobs/{job_id}/cancel")

    for answer, status in ((pending, "pending"), (running, "running")):
        assert answer.status == 409
        assert answer.body == {
            "error": f"Only a quarantined or failed job can be redriven; this one is {status}."
        }


async def test_a_job_whose_state_cannot_be_read_is_not_run_from_another(door: Door) -> None:
    job_id = await a_quarantined_job(door)
    assert isinstance(door.backend, MemoryStorage)
    await MemoryHands(door.backend).spoil_head(JobId(job_id))

    answer = await door.client("POST", path(job_id))

    assert answer.status == 503
    assert answer.body["error"].startswith("The job cannot be read here")
    assert await door.backend.inbox.length() == 0


async def test_of_two_redrives_at_once_one_is_accepted(door: Door) -> None:
    job_id = await a_quarantined_job(door)

    answers = await asyncio.gather(*(door.client("POST", path(job_id)) for _ in range(5)))

    assert sorted(answer.status for answer in answers) == [202, 409, 409, 409, 409]
    assert await door.backend.inbox.length() == 1


async def test_who_lost_a_race_is_told_how_the_job_is_now(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await a_quarantined_job(door)
    load, seen = door.backend.jobs.load, await door.backend.jobs.load(JobId(job_id))
    answers = iter([seen])

    async def outdated(job_id: JobId) -> Stored | None:
        return next(answers, None) or await load(job_id)

    await door.client("POST", path(job_id))
    monkeypatch.setattr(door.backend.jobs, "load", outdated)
    answer = await door.client("POST", path(job_id))

    assert answer.status == 409
    assert answer.body["error"].endswith("this one is running.")
    assert await door.backend.inbox.length() == 1


async def test_a_redrive_whose_answer_was_lost_is_not_done_twice(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = await a_quarantined_job(door)
    redrive = door.backend.jobs.redrive

    async def unheard(stored: Stored, redriven: Redriven) -> None:
        await redrive(stored, redriven)
        raise StoreUnavailable("no answer came")

    monkeypatch.setattr(door.backend.jobs, "redrive", unheard)
    first = await door.client("POST", path(job_id))
    again = await door.client("POST", path(job_id))

    assert (first.status, again.status) == (503, 409)
    assert await status_of(door, job_id) == "running"
    assert await door.backend.inbox.length() == 1
