"""A client sees its own jobs; others do not exist for it."""

from collections.abc import AsyncGenerator

import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from services.gateway.tests.door import Door

from avtomatika_common.config import Config
from avtomatika_gateway.access import Access, ApiClient
from avtomatika_gateway.blueprints import Blueprints
from avtomatika_gateway.client_api import ClientApi
from avtomatika_gateway.http_errors import answer_errors
from avtomatika_gateway.settings import Settings

Http = TestClient[web.Request, web.Application]


class ByName(Access):
    """The token is the client's name; `root` is an admin."""

    async def client(self, token: str | None) -> ApiClient:
        return ApiClient(name=token or "", is_admin=token == "root")


@pytest_asyncio.fixture
async def http(door: Door) -> AsyncGenerator[Http, None]:
    blueprints = Blueprints(door.backend.catalogue, "/api")
    app = web.Application(middlewares=[answer_errors])
    settings = Settings.from_config(Config({}))
    api = ClientApi(settings, door.backend, None, ByName(b"", b""), blueprints)
    api.add_to(app, "/api")
    async with TestClient(TestServer(app)) as client:
        yield client


async def a_job_of_a(http: Http) -> str:
    created = await http.post("/api/v1/jobs/images", json={}, headers={"X-Client-Token": "a"})
    assert created.status == 202
    return str((await created.json())["job_id"])


async def test_another_client_s_job_is_an_unknown_job(http: Http) -> None:
    job_id = await a_job_of_a(http)

    statuses = {
        name: [
            (
                await http.request(method, f"/api/jobs/{path}", headers={"X-Client-Token": name})
            ).status
            for method, path in (
                ("GET", job_id),
                ("GET", f"{job_id}/history"),
                ("DELETE", f"quarantined/{job_id}"),
                ("POST", f"{job_id}/redrive"),
                ("POST", f"{job_id}/cancel"),
            )
        ]
        for name in ("b", "root", "a")
    }

    assert statuses["b"] == [404, 404, 404, 404, 404]
    assert statuses["root"] == [200, 200, 404, 409, 200]
    assert statuses["a"] == [200, 200, 404, 409, 200]


async def test_lists_hold_the_client_s_own_jobs(http: Http, door: Door) -> None:
    """R30."""
    job_id = await a_job_of_a(http)
    await door.handler_breaks()

    seen = {
        name: (
            await (
                await http.get("/api/jobs/quarantined", headers={"X-Client-Token": name})
            ).json(),
            (await (await http.get("/api/dashboard", headers={"X-Client-Token": name})).json())[
                "jobs"
            ]["quarantined"],
        )
        for name in ("a", "b", "root")
    }

    assert seen == {"a": ([job_id], 1), "b": ([], 0), "root": ([job_id], 1)}


async def test_who_is_no_admin_sees_what_matters_of_a_worker(http: Http, door: Door) -> None:
    await door.register("w", load=1, capabilities={"hostname": "private"})

    listed = await http.get("/api/workers", headers={"X-Client-Token": "a"})

    assert await listed.json() == [
        {
            "worker_id": "w",
            "status": "idle",
            "supported_tasks": ["resize"],
            "load": 1,
            "reputation": 1.0,
        }
    ]


async def test_dead_events_are_for_admins(http: Http) -> None:
    base = "/api/v1/admin/dead-events"
    for method, path in (("GET", base), ("POST", f"{base}/1/replay"), ("DELETE", f"{base}/1")):
        answer = await http.request(method, path, headers={"X-Client-Token": "b"})

        assert answer.status == 403
        assert await answer.json() == {"error": "Admin client required"}
