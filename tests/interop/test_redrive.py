"""POST `/jobs/{job_id}/redrive`, and what is told of a job that ran again."""

from pathlib import Path
from typing import Any

import pytest

from tests.interop.conftest import OpenDoor
from tests.interop.door import NO_JOB, Answer, Door
from tests.support import until

PERMANENT = {"code": "PERMANENT_ERROR", "message": "no"}
INVALID = {"code": "INVALID_INPUT_ERROR", "message": "no"}


async def redrive(door: Door, job_id: str) -> Answer:
    return await door.ask("POST", f"/jobs/{job_id}/redrive")


async def stopped(door: Door, error: dict[str, str]) -> str:
    """A job whose task has failed for good."""
    task = await door.held()
    await door.done(task, "w1", status="failure", error=error)
    await door.ended(task["job_id"])
    job_id: str = task["job_id"]
    return job_id


@pytest.mark.parametrize(("error", "status"), [(PERMANENT, "quarantined"), (INVALID, "failed")])
async def test_a_job_whose_task_failed_gives_it_out_again(
    door: Door, error: dict[str, str], status: str
) -> None:
    """R62."""
    job_id = await stopped(door, error)
    before = await door.document(job_id)
    assert before["status"] == status
    listed = [job_id] if status == "quarantined" else []
    assert (await door.ask("GET", "/jobs/quarantined")).json == listed

    answer = await redrive(door, job_id)

    assert (answer.status, answer.json) == (202, {"status": "accepted", "job_id": job_id})
    assert (await door.ask("GET", "/jobs/quarantined")).json == []
    task = await door.task("w1")
    assert task["job_id"] == job_id
    waiting = await door.document(job_id)
    assert (waiting["status"], waiting["current_state"]) == ("waiting_for_worker", "start")
    assert (waiting["error_message"], waiting["finished_at"]) == (None, None)
    for counter in ("retry_count", "task_retry_count", "transition_count"):
        assert waiting[counter] == 0
    assert (await door.done(task, "w1", data={"size": 2})).json == {"status": "ok"}
    ended = await door.ended(job_id)
    assert (ended["status"], ended["state_history"]) == ("finished", {"size": 2})
    jobs = (await door.ask("GET", "/dashboard")).json["jobs"]
    assert (jobs["finished"], jobs[status]) == (1, 0)


async def test_a_job_of_another_status_is_refused(door: Door) -> None:
    job_id = (await door.held())["job_id"]

    waiting = await redrive(door, job_id)
    await door.cancel(job_id)
    await door.ended(job_id)
    cancelled = await redrive(door, job_id)

    text = "Only a quarantined or failed job can be redriven; this one is {}."
    assert waiting.error == (409, text.format("waiting_for_worker"))
    assert cancelled.error == (409, text.format("cancelled"))
    assert (await door.document(job_id))["status"] == "cancelled"


async def test_a_finished_job_is_refused(door: Door) -> None:
    task = await door.held()
    await door.done(task, "w1")
    await door.ended(task["job_id"])

    answer = await redrive(door, task["job_id"])

    assert answer.status == 409


async def test_an_unknown_job_is_not_found(door: Door) -> None:
    assert (await redrive(door, NO_JOB)).error == (404, "Job not found")


async def test_a_redrive_needs_a_client_s_token(door: Door) -> None:
    job_id = await stopped(door, PERMANENT)

    answer = await door.call("POST", f"/api/v1/jobs/{job_id}/redrive", token=None)

    assert answer.error == (401, "Missing X-Client-Token header")
    assert (await door.document(job_id))["status"] == "quarantined"


async def test_a_result_repeated_after_the_redrive_is_answered_as_the_first_and_changes_nothing(
    door: Door,
) -> None:
    task = await door.held()
    failure = {"status": "failure", "error": PERMANENT}
    await door.done(task, "w1", **failure)
    await door.ended(task["job_id"])
    await redrive(door, task["job_id"])
    new_task = await door.task("w1")
    assert new_task["task_id"] != task["task_id"]

    repeated = await door.done(task, "w1", **failure)

    assert repeated.json == {"status": "ok"}
    assert (await door.document(task["job_id"]))["current_task_id"] == new_task["task_id"]
    await door.done(new_task, "w1")
    assert (await door.ended(task["job_id"]))["status"] == "finished"


async def test_history_tells_of_the_redrive_and_of_both_ends(
    open_door: OpenDoor, tmp_path: Path
) -> None:
    """R62, R66."""
    door = await open_door(HISTORY_DATABASE_URI=f"sqlite:{tmp_path / 'history.db'}")
    job_id = await stopped(door, PERMANENT)
    await redrive(door, job_id)
    await door.done(await door.task("w1"), "w1")
    await door.ended(job_id)
    rows: list[dict[str, Any]] = []

    async def is_whole() -> bool:
        rows[:] = (await door.ask("GET", f"/jobs/{job_id}/history")).json
        return [row["event_type"] for row in rows].count("job_completed") == 2

    await until(is_whole, message="the second end is not in the history")

    assert [(row["event_type"], row["state"]) for row in rows] == [
        ("job_created", "start"),
        ("state_started", "start"),
        ("task_dispatched", "start"),
        ("task_finished", "start"),
        ("job_completed", "start"),
        ("job_redriven", "start"),
        ("state_started", "start"),
        ("task_dispatched", "start"),
        ("task_finished", "start"),
        ("state_started", "done"),
        ("state_finished", "done"),
        ("job_completed", "done"),
    ]
    told = rows[5]["context_snapshot"]
    assert (told["status"], told["previous_status"]) == ("running", "quarantined")
    assert told["previous_error"] == "Task failed with permanent error (PERMANENT_ERROR): no"


async def test_a_job_that_was_taken_off_the_quarantine_list_can_be_redriven(door: Door) -> None:
    """R62."""
    job_id = await stopped(door, PERMANENT)
    removed = await door.ask("DELETE", f"/jobs/quarantined/{job_id}")
    assert (removed.status, removed.json) == (200, {"status": "removed"})
    assert (await door.document(job_id))["status"] == "quarantined"

    answer = await redrive(door, job_id)

    assert answer.status == 202
    assert (await door.task("w1"))["job_id"] == job_id
    again = await door.ask("DELETE", f"/jobs/quarantined/{job_id}")
    assert again.error == (404, "Job not found")
