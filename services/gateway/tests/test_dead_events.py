"""Admins see what the executors could not handle, and have it handled again or forgotten."""

from services.gateway.tests.door import UNKNOWN, Door


async def set_aside(door: Door, reason: str = "no") -> str:
    """A job whose first event is set aside; the job's id."""
    job_id = await door.new_job()
    [delivery] = await door.backend.inbox.read("default", "executor", 1)
    await door.backend.inbox.set_aside(delivery, reason)
    return job_id


async def test_an_admin_sees_dead_events_with_their_reason(door: Door) -> None:
    job_id = await set_aside(door, "An event of the job could not be read.")

    answer = await door.client("GET", "/api/v1/admin/dead-events")

    assert answer.status == 200
    [dead] = answer.body
    assert set(dead) == {"id", "job_id", "reason", "at", "event"}
    assert dead["job_id"] == job_id
    assert dead["reason"] == "An event of the job could not be read."
    assert dead["event"]["event"] == "job_created"


async def test_a_replayed_event_is_handled_again(door: Door) -> None:
    job_id = await set_aside(door)
    [dead] = (await door.client("GET", "/api/admin/dead-events")).body

    answer = await door.client("POST", f"/api/admin/dead-events/{dead['id']}/replay")

    assert (answer.status, answer.body) == (202, {"status": "accepted", "id": dead["id"]})
    [delivery] = await door.backend.inbox.read("default", "executor", 1)
    assert delivery.job_id == job_id
    assert (await door.client("GET", "/api/admin/dead-events")).body == []


async def test_a_deleted_event_is_forgotten(door: Door) -> None:
    await set_aside(door)
    [dead] = (await door.client("GET", "/api/v1/admin/dead-events")).body

    answer = await door.client("DELETE", f"/api/v1/admin/dead-events/{dead['id']}")
    again = await door.client("DELETE", f"/api/v1/admin/dead-events/{dead['id']}")

    assert (answer.status, answer.body) == (200, {"status": "removed"})
    assert (again.status, again.body) == (404, {"error": "Dead event not found"})
    assert await door.backend.inbox.length() == 0


async def test_what_is_no_dead_event_is_not_replayed(door: Door) -> None:
    answer = await door.client("POST", f"/api/v1/admin/dead-events/{UNKNOWN}/replay")

    assert (answer.status, answer.body) == (404, {"error": "Dead event not found"})
