"""Schedules over real HTTP: seen, paused and run by admins; the scheduler published them."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from services.gateway.tests.door import Door, an_entry

from avtomatika_common.backend.ports import Lease
from avtomatika_core.job import JobId
from avtomatika_core.schedule import Every, Schedule, Standing
from avtomatika_core.wall_times import Times
from avtomatika_gateway.access import Access, ApiClient
from avtomatika_gateway.blueprints import Blueprints
from avtomatika_gateway.http_errors import answer_errors
from avtomatika_gateway.schedules import SchedulesApi

DAY = 86_400.0
HOURLY = Schedule(
    name="hourly",
    blueprint="images",
    when=Every(seconds=3600),
    initial_data={"size": 3},
    dispatch_timeout=5.0,
    result_timeout=7.0,
)
NIGHTLY = Schedule(
    name="a nightly one/ü", blueprint="images", when=Times(hours=(2,), minutes=(30,))
)


@pytest.fixture
async def lease(door: Door) -> Lease:
    lease = await door.backend.leases.acquire("scheduler", "s-1", 60.0)
    assert lease is not None
    await door.backend.schedules.publish(lease, [HOURLY, NIGHTLY])
    return lease


async def listed(door: Door, prefix: str = "/api/v1") -> list[dict[str, Any]]:
    answer = await door.client("GET", f"{prefix}/schedules")
    assert answer.status == 200, answer
    found: list[dict[str, Any]] = answer.body
    return found


async def test_the_list_says_when_each_ran_and_the_five_times_to_come(
    door: Door, lease: Lease
) -> None:
    ran_at = door.backend.clock.now() - 60
    standing = Standing(
        when=HOURLY.when, anchor=ran_at, settled=ran_at, last_run=ran_at, last_job_id=JobId("j-1")
    )
    await door.backend.schedules.end_slot("hourly", lease, standing)

    nightly, hourly = await listed(door)

    assert list(hourly) == ["name", "blueprint", "paused", "last_run", "last_job_id", "next"]
    assert hourly == {
        "name": "hourly",
        "blueprint": "images",
        "paused": False,
        "last_run": ran_at,
        "last_job_id": "j-1",
        "next": pytest.approx([ran_at + 3600 * hour for hour in range(1, 6)], abs=0.01),
    }
    assert (nightly["last_run"], nightly["last_job_id"]) == (None, None)
    assert [moment % DAY for moment in nightly["next"]] == [2.5 * 3600] * 5
    assert len(set(nightly["next"])) == 5
    assert [one["name"] for one in await listed(door, "/api")] == [NIGHTLY.name, "hourly"]


async def test_where_nothing_is_published_the_list_is_empty(door: Door) -> None:
    assert await listed(door) == []


async def test_a_pause_and_its_end_answer_with_the_schedule_as_it_is_then(
    door: Door, lease: Lease
) -> None:
    paused = await door.client("POST", "/api/v1/schedules/hourly/pause")
    again = await door.client("POST", "/api/schedules/hourly/pause")
    held = await door.backend.schedules.get("hourly")
    resumed = await door.client("POST", "/api/v1/schedules/hourly/resume")

    assert paused.status == again.status == resumed.status == 200
    assert (paused.body["name"], paused.body["paused"]) == ("hourly", True)
    assert again.body["paused"] is True
    assert held is not None
    assert held.is_paused
    assert resumed.body["paused"] is False
    assert len(resumed.body["next"]) == 5


async def test_a_run_out_of_its_time_is_a_job_like_the_others_of_the_schedule(
    door: Door, lease: Lease
) -> None:
    before = door.backend.clock.now()

    answer = await door.client("POST", "/api/v1/schedules/hourly/run")

    assert answer.status == 202
    assert set(answer.body) == {"status", "job_id"}
    assert answer.body["status"] == "accepted"
    job = (await door.client("GET", f"/api/v1/jobs/{answer.body['job_id']}")).body
    assert (job["blueprint_name"], job["initial_data"]) == ("images", {"size": 3})
    stored = await door.backend.jobs.load(JobId(answer.body["job_id"]))
    assert stored is not None
    origin = stored.job.origin
    assert origin.client.params == {"source": "scheduler:hourly"}
    assert (origin.client.name, origin.client.token) == (None, "internal-scheduler")
    assert (origin.dispatch_timeout, origin.result_timeout) == (5.0, 7.0)
    hourly = (await listed(door))[1]
    assert hourly["last_job_id"] == answer.body["job_id"]
    assert hourly["last_run"] >= before


async def test_each_run_is_another_job(door: Door, lease: Lease) -> None:
    runs = [await door.client("POST", "/api/v1/schedules/hourly/run") for _ in range(2)]

    assert runs[0].body["job_id"] != runs[1].body["job_id"]


@pytest.mark.parametrize("verb", ["pause", "resume", "run"])
async def test_an_unknown_schedule_is_not_found(door: Door, lease: Lease, verb: str) -> None:
    answer = await door.client("POST", f"/api/v1/schedules/other/{verb}")

    assert (answer.status, answer.body) == (404, {"error": "Schedule not found"})


async def test_a_name_may_be_anything(door: Door, lease: Lease) -> None:
    answer = await door.client("POST", "/api/v1/schedules/a%20nightly%20one%2F%C3%BC/pause")

    assert (answer.status, answer.body["name"]) == (200, "a nightly one/ü")


async def test_a_schedule_of_a_blueprint_that_is_not_there_cannot_be_run(
    door: Door, lease: Lease
) -> None:
    lonely = Schedule(name="lonely", blueprint="gone", when=Every(seconds=9))
    await door.backend.schedules.publish(lease, [lonely])

    answer = await door.client("POST", "/api/v1/schedules/lonely/run")

    assert (answer.status, answer.body) == (409, {"error": "Blueprint 'gone' is not registered."})


async def test_data_that_the_blueprint_does_not_take_makes_no_job(door: Door, lease: Lease) -> None:
    contract = {"type": "object", "required": ["depth"]}
    await door.backend.catalogue.publish([an_entry(input_schema=contract)])

    answer = await door.client("POST", "/api/v1/schedules/hourly/run")

    assert answer.status == 409
    assert "Input validation failed for blueprint 'images'" in answer.body["error"]


PATHS = [
    ("GET", "/api/v1/schedules"),
    ("POST", "/api/v1/schedules/hourly/pause"),
    ("POST", "/api/v1/schedules/hourly/resume"),
    ("POST", "/api/v1/schedules/hourly/run"),
]


class ByName(Access):
    """The token is the client's name; none is an admin."""

    async def client(self, token: str | None) -> ApiClient:
        return ApiClient(name=token or "")


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_who_is_no_admin_gets_nothing(
    door: Door, lease: Lease, method: str, path: str
) -> None:
    app = web.Application(middlewares=[answer_errors])
    blueprints = Blueprints(door.backend.catalogue, "/api")
    SchedulesApi(door.backend, ByName(b"", b""), blueprints).add_to(app, "/api")

    async with TestClient(TestServer(app)) as http:
        answer = await http.request(method, path, headers={"X-Client-Token": "ann"})
        body = await answer.json()

    assert (answer.status, body) == (403, {"error": "Admin client required"})
    entry = await door.backend.schedules.get("hourly")
    assert entry is not None
    assert (entry.is_paused, entry.asked_job_id) == (False, None)


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_who_has_no_token_gets_nothing(
    door: Door, lease: Lease, method: str, path: str
) -> None:
    answer = await door.ask(method, path)

    assert (answer.status, answer.body) == (401, {"error": "Missing X-Client-Token header"})


async def test_an_api_version_nobody_serves_has_no_schedules(door: Door, lease: Lease) -> None:
    assert (await door.client("GET", "/api/v9/schedules")).status == 404
