"""What clients see and may do, over real HTTP."""

import asyncio
from typing import Any

import pytest
from services.gateway.tests.door import (
    A_TASK,
    UNKNOWN,
    Door,
    an_entry,
    open_door,
)

from avtomatika_common.history import HistoryReader
from avtomatika_common.ids import new_id
from avtomatika_core.job import JobId, JobStatus
from avtomatika_core.outcomes import (
    AwaitApproval,
    DispatchParallel,
    Sleep,
    TaskRequest,
    WaitForSignal,
)

CREATE = "/api/v1/jobs/images"


async def test_a_job_is_accepted_with_the_token_of_the_environment(door: Door) -> None:
    """R34."""
    answer = await door.client("POST", CREATE, json={"initial_data": {"a": 1}})

    assert answer.status == 202
    assert set(answer.body) == {"status", "job_id"}
    assert answer.body["status"] == "accepted"
    document = (await door.client("GET", f"/api/v1/jobs/{answer.body['job_id']}")).body
    assert document["id"] == answer.body["job_id"]
    assert document["blueprint_name"] == "images"
    assert document["current_state"] == "start"
    assert document["status"] == "pending"
    assert document["initial_data"] == {"a": 1}
    assert document["client_config"] == {"name": "default", "plan": "unknown", "params": {}}
    assert document["webhook_url"] is None


async def test_what_the_request_says_reaches_the_job(door: Door) -> None:
    traced = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "X-Other": "no"}
    body = {
        "initial_data": {"a": 1},
        "webhook_url": "http://h/",
        "dispatch_timeout": 5,
        "result_timeout": 6,
        "metadata": {"team": "x"},
    }

    answer = await door.client("POST", CREATE, json=body, headers=traced)

    document = (await door.client("GET", f"/api/jobs/{answer.body['job_id']}")).body
    assert document["tracing_context"] == {"traceparent": traced["traceparent"]}
    assert document["webhook_url"] == "http://h/"
    assert (document["dispatch_timeout"], document["result_timeout"]) == (5, 6)
    assert document["metadata"] == {"team": "x"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b'{"a": NaN}'])
async def test_a_body_that_is_no_json_object_is_refused(door: Door, body: bytes) -> None:
    answer = await door.client("POST", CREATE, data=body)

    assert (answer.status, answer.body) == (400, {"error": "Invalid JSON body"})


async def test_initial_data_against_the_contract_of_the_blueprint_is_refused(door: Door) -> None:
    schema = {"type": "object", "required": ["item"]}
    await door.backend.catalogue.publish([an_entry("orders", input_schema=schema)])

    refused = await door.client("POST", "/api/v1/jobs/orders", json={"initial_data": {"a": 1}})
    accepted = await door.client("POST", "/api/v1/jobs/orders", json={"item": "book"})

    text = "Input validation failed for blueprint 'orders': \"item\" is a required property"
    assert (refused.status, refused.body) == (400, {"error": text})
    assert accepted.status == 202


async def test_data_nested_too_deep_to_be_shown_again_is_refused(door: Door) -> None:
    answer = await door.client("POST", CREATE, data=b'{"a":' + b"[" * 500 + b"]" * 500 + b"}")

    assert (answer.status, answer.body) == (400, {"error": "Invalid JSON body"})


async def test_data_nested_deep_is_shown_again(door: Door) -> None:
    answer = await door.client("POST", CREATE, data=b'{"a":' + b"[" * 190 + b"]" * 190 + b"}")

    assert answer.status == 202
    shown = await door.client("GET", f"/api/jobs/{answer.body['job_id']}")
    assert shown.status == 200


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"initial_data": []}, "initial_data must be an object"),
        ({"webhook_url": "/relative"}, "Invalid webhook_url"),
    ],
)
async def test_a_body_that_breaks_the_rules_is_refused(
    door: Door, body: dict[str, Any], text: str
) -> None:
    answer = await door.client("POST", CREATE, json=body)

    assert (answer.status, answer.body) == (400, {"error": text})


async def test_a_body_over_the_limit_is_refused() -> None:
    async with open_door(MAX_REQUEST_BODY_BYTES="1000") as door:
        answer = await door.client("POST", CREATE, data=b'{"a": "' + b"x" * 2000 + b'"}')

        assert answer.status == 413
        assert answer.body == {"error": "Request body is larger than 1000 bytes."}


async def test_an_unknown_blueprint_endpoint_is_not_found(door: Door) -> None:
    for path in ("/api/v1/jobs/unheard", "/api/jobs/images", "/api/v2/jobs/images", "/nowhere"):
        answer = await door.client("POST", path, json={})

        assert answer.status == 404, path
        assert answer.headers["Content-Type"].startswith("application/json")
        assert set(answer.body) == {"error"}
    said = (await door.client("POST", "/api/v1/jobs/unheard", json={})).body["error"]
    assert said == "No blueprint has the endpoint POST /api/v1/jobs/unheard."


async def test_a_method_nobody_serves_is_refused_as_json(door: Door) -> None:
    answer = await door.client("PUT", CREATE, json={})

    assert (answer.status, answer.body) == (405, {"error": "Method Not Allowed"})
    assert "POST" in answer.headers["Allow"]


async def test_blueprints_that_appear_are_served_without_restart(door: Door) -> None:
    await door.backend.catalogue.publish(
        [an_entry("video", api_version=None, api_endpoint="video", group="gpu")]
    )

    answer = await door.client("POST", "/api/video", json={})

    assert answer.status == 202
    stored = await door.backend.jobs.load(JobId(answer.body["job_id"]))
    assert stored is not None
    assert stored.job.origin.blueprint == "video"
    assert stored.job.origin.group == "gpu"


async def test_two_blueprints_of_one_endpoint_are_warned_of(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    """Different executors may bring them."""
    other = an_entry("pictures", api_endpoint="jobs/images")
    await door.backend.catalogue.publish([other])

    assert (await door.client("POST", "/api/v1/jobs/unknown", json={})).status == 404

    record, *_ = [one for one in caplog.records if one.getMessage().startswith("two blueprints")]
    assert vars(record)["path"] == "/api/v1/jobs/images"
    assert vars(record)["blueprints"] == ["images", "pictures"]


async def test_common_routes_are_under_every_version_in_use(door: Door) -> None:
    await door.backend.catalogue.publish([an_entry("video", api_version="v2")])
    job_id = await door.new_job()

    found = [
        (await door.client("GET", f"/api{version}/jobs/{job_id}")).status
        for version in ("", "/v1", "/v2", "/v3")
    ]

    assert found == [200, 200, 200, 404]


async def test_the_prefix_of_the_client_api_can_be_changed_or_left_out() -> None:
    async with open_door(CLIENT_API_PREFIX="") as door:
        answer = await door.client("POST", "/v1/jobs/images", json={})
        assert answer.status == 202
        assert (await door.client("GET", f"/jobs/{answer.body['job_id']}")).status == 200
    async with open_door(CLIENT_API_PREFIX="their/own") as door:
        assert (await door.client("POST", "/their/own/v1/jobs/images", json={})).status == 202
        assert (await door.client("POST", CREATE, json={})).status == 404


async def test_a_gateway_without_client_api_serves_workers_only() -> None:
    async with open_door(ENABLE_CLIENT_API="false") as door:
        assert (await door.client("POST", CREATE, json={})).status == 404
        assert (await door.client("GET", "/api/workers")).status == 404
        await door.register("w")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CREATE),
        ("GET", "/api/jobs"),
        ("GET", f"/api/jobs/{UNKNOWN}"),
        ("POST", f"/api/jobs/{UNKNOWN}/cancel"),
        ("POST", f"/api/jobs/{UNKNOWN}/redrive"),
        ("GET", f"/api/jobs/{UNKNOWN}/history"),
        ("GET", "/api/jobs/quarantined"),
        ("DELETE", f"/api/jobs/quarantined/{UNKNOWN}"),
        ("GET", "/api/blueprints/images/graph"),
        ("GET", "/api/workers"),
        ("GET", "/api/dashboard"),
        ("GET", "/_public/jobs/quarantined"),
    ],
)
async def test_every_client_route_needs_a_good_token(door: Door, method: str, path: str) -> None:
    """R30."""
    without = await door.ask(method, path)
    wrong = await door.ask(method, path, headers={"X-Client-Token": "another"})
    strange = await door.ask(method, path, headers={"X-Client-Token": "\xe4\xf6"})

    assert (without.status, without.body) == (401, {"error": "Missing X-Client-Token header"})
    assert (wrong.status, wrong.body) == (401, {"error": "Unauthorized: Invalid token"})
    assert strange.status == 401


async def test_a_repeated_request_with_a_key_makes_one_job(door: Door) -> None:
    key = {"Idempotency-Key": "once"}

    answers = await asyncio.gather(
        *(door.client("POST", CREATE, json={"a": 1, "b": 2}, headers=key) for _ in range(5))
    )

    assert {answer.status for answer in answers} == {202}
    assert len({answer.body["job_id"] for answer in answers}) == 1
    assert (await door.backend.jobs.count_by_status())[JobStatus.PENDING] == 1


async def test_a_key_for_another_request_is_refused(door: Door) -> None:
    key = {"Idempotency-Key": "once"}
    await door.client("POST", CREATE, json={"a": 1}, headers=key)

    answer = await door.client("POST", CREATE, json={"a": 2}, headers=key)

    assert answer.status == 422
    assert answer.body == {"error": "Idempotency-Key was used for another request."}


async def test_requests_without_a_key_make_a_job_each(door: Door) -> None:
    assert await door.new_job() != await door.new_job()


@pytest.mark.parametrize("job_id", [UNKNOWN, "nonsense", UNKNOWN + "x", "a%20b"])
async def test_an_unknown_job_is_not_found(door: Door, job_id: str) -> None:
    for method, path in (
        ("GET", f"/api/jobs/{job_id}"),
        ("POST", f"/api/jobs/{job_id}/cancel"),
        ("POST", f"/api/jobs/{job_id}/redrive"),
        ("GET", f"/api/jobs/{job_id}/history"),
        ("DELETE", f"/api/jobs/quarantined/{job_id}"),
    ):
        answer = await door.client(method, path)

        assert (answer.status, answer.body) == (404, {"error": "Job not found"}), path


async def test_fields_limit_the_document(door: Door) -> None:
    job_id = await door.new_job()

    answer = await door.client("GET", f"/api/jobs/{job_id}?fields=status,%20current_state,nothing")

    assert answer.body == {"id": job_id, "status": "pending", "current_state": "start"}


async def test_the_short_form_shows_the_result_only_at_the_end() -> None:
    async with open_door(DETAILED_API_RESPONSES="false") as door:
        job_id = await door.new_job(a=1)
        before = (await door.client("GET", f"/api/jobs/{job_id}")).body
        await door.handler_breaks()

        after = (await door.client("GET", f"/api/jobs/{job_id}")).body

        assert before == {"id": job_id, "status": "pending", "blueprint_name": "images"}
        assert after == {**before, "status": "quarantined", "result": {}}


@pytest.mark.parametrize(
    ("action", "status"),
    [
        (A_TASK, "waiting_for_worker"),
        (
            AwaitApproval(integration="i", message="m", transitions={"yes": "done"}),
            "waiting_for_human",
        ),
        (
            DispatchParallel(tasks=[TaskRequest(type="resize")], aggregate_into="done"),
            "waiting_for_parallel_tasks",
        ),
        (Sleep(seconds=60.0, next_state="done"), "sleeping"),
        (WaitForSignal(name="x", transitions={"received": "done"}), "waiting_for_signal"),
    ],
)
async def test_a_job_can_be_cancelled_wherever_it_waits(
    door: Door, action: Any, status: str
) -> None:
    """R40."""
    job_id = await door.new_job()
    assert (await door.handler_returns(action)).status == status

    answer = await door.client("POST", f"/api/jobs/{job_id}/cancel")

    assert answer.status == 200
    assert answer.body == {"status": "cancellation_request_accepted"}
    job = await door.handler_returns(None)
    assert job.status is JobStatus.CANCELLED
    again = await door.client("POST", f"/api/jobs/{job_id}/cancel")
    assert again.status == 409
    assert again.body == {
        "error": "Job is not in a state that can be cancelled (already cancelled)."
    }


async def test_a_cancelled_task_reaches_no_worker(door: Door) -> None:
    """R40."""
    job = await door.job_with_task()
    await door.register("w")
    await door.client("POST", f"/api/jobs/{job.id}/cancel")
    await door.handler_returns(None)

    assert await door.tasks_on_board() == 0


async def test_the_quarantine_list_is_newest_first_and_can_be_shortened(door: Door) -> None:
    job_ids: list[str] = []
    for _ in range(2):
        job_ids.insert(0, await door.new_job())
        await door.handler_breaks()

    listed = await door.client("GET", "/api/v1/jobs/quarantined")
    public = await door.client("GET", "/_public/jobs/quarantined")
    removed = await door.client("DELETE", f"/api/v1/jobs/quarantined/{job_ids[0]}")
    left = await door.client("GET", "/api/v1/jobs/quarantined")
    again = await door.client("DELETE", f"/api/v1/jobs/quarantined/{job_ids[0]}")

    assert listed.body == public.body == job_ids
    assert (removed.status, removed.body) == (200, {"status": "removed"})
    assert left.body == job_ids[1:]
    assert (again.status, again.body) == (404, {"error": "Job not found"})
    assert (await door.client("GET", f"/api/jobs/{job_ids[0]}")).status == 200


async def test_the_graph_is_dot_text(door: Door) -> None:
    answer = await door.client("GET", "/api/v1/blueprints/images/graph")
    unknown = await door.client("GET", "/api/v1/blueprints/unheard/graph")

    assert answer.status == 200
    assert answer.body == "digraph { start -> done }"
    assert answer.headers["Content-Type"].startswith("text/vnd.graphviz")
    assert (unknown.status, unknown.body) == (404, {"error": "Blueprint not found"})


async def test_live_workers_are_listed_whole_to_an_admin(door: Door) -> None:
    await door.register("w", extra_key="kept")

    [worker] = (await door.client("GET", "/api/workers")).body

    assert worker["worker_id"] == "w"
    assert worker["extra_key"] == "kept"
    assert (worker["status"], worker["reputation"]) == ("idle", 1.0)


async def test_a_job_is_made_with_a_deadline_of_its_own(door: Door) -> None:
    body: dict[str, Any] = {"initial_data": {}, "timeout_seconds": 90}

    job_id = (await door.client("POST", CREATE, json=body)).body["job_id"]

    document = (await door.client("GET", f"/api/jobs/{job_id}")).body
    assert document["timeout_seconds"] == 90
    assert await door.backend.timers.next_due(0) == pytest.approx(document["created_at"] + 90)


async def test_a_sleeping_job_says_when_it_wakes(door: Door) -> None:
    job_id = await door.new_job()
    job = await door.handler_returns(Sleep(seconds=60.0, next_state="done"))

    document = (await door.client("GET", f"/api/jobs/{job_id}")).body
    counted = (await door.client("GET", "/api/dashboard")).body

    assert (document["status"], document["wake_at"]) == ("sleeping", job.head.updated_at + 60)
    assert counted["jobs"]["sleeping"] == 1
    assert counted["jobs"]["waiting_for_signal"] == 0


async def test_the_dashboard_counts_workers_and_jobs_by_status(door: Door) -> None:
    await door.register("w")
    await door.job_with_task()
    await door.new_job()

    counted = (await door.client("GET", "/api/dashboard")).body

    assert counted["workers"] == {"total": 1}
    assert counted["jobs"]["queued"] == counted["jobs"]["pending"] == 1
    assert counted["jobs"]["waiting_for_worker"] == 1
    assert counted["jobs"]["finished"] == 0


async def test_without_history_there_are_no_rows(door: Door) -> None:
    job_id = await door.new_job()

    assert (await door.client("GET", "/api/jobs")).body == []
    assert (await door.client("GET", f"/api/jobs/{job_id}/history")).body == []


@pytest.mark.parametrize("query", ["limit=x", "offset=-1", "limit=1.5", "limit="])
async def test_a_wrong_limit_or_offset_is_refused(door: Door, query: str) -> None:
    answer = await door.client("GET", f"/api/jobs?{query}")

    assert (answer.status, answer.body) == (400, {"error": "Invalid limit/offset parameter"})


class Archive(HistoryReader):
    """Two rows of one job that the store has forgotten."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, int, int]] = []
        document = {"id": UNKNOWN, "status": "finished", "state_history": {"a": 1}}
        self.kept: list[dict[str, Any]] = [
            {"event_type": kind, "client_name": "default", "context_snapshot": document}
            for kind in ("job_created", "job_completed")
        ]

    async def rows(self, job_id: str) -> list[dict[str, Any]]:
        return self.kept if job_id == UNKNOWN else []

    async def latest(
        self, client_name: str | None, limit: int, offset: int
    ) -> list[dict[str, Any]]:
        self.asked.append((client_name, limit, offset))
        return self.kept[-1:]


async def test_a_job_past_its_retention_is_answered_from_history() -> None:
    archive = Archive()
    async with open_door(archive) as door:
        document = await door.client("GET", f"/api/jobs/{UNKNOWN}?fields=status")
        rows = await door.client("GET", f"/api/jobs/{UNKNOWN}/history")
        listed = await door.client("GET", "/api/jobs?limit=5&offset=2")
        other = await door.client("GET", f"/api/jobs/{new_id()}")

        assert document.body == {"id": UNKNOWN, "status": "finished"}
        assert rows.body == archive.kept
        assert listed.body == archive.kept[-1:]
        assert archive.asked == [(None, 5, 2)]
        assert other.status == 404
