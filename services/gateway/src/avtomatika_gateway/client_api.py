"""The client's side of the door: jobs, blueprints, workers, at `/api` and `/api/<version>`."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web
from msgspec.structs import asdict

from avtomatika_common.backend.ports import (
    Backend,
    CatalogueEntry,
    JobNotFound,
    StaleJob,
    UnreadableJob,
)
from avtomatika_common.contracts import input_problem
from avtomatika_common.documents import job_document
from avtomatika_common.history import HistoryReader
from avtomatika_common.logs import get_logger
from avtomatika_core.events import CancelRequested
from avtomatika_core.job import REDRIVABLE, JobId, JobStatus
from avtomatika_core.redrive import redrive
from avtomatika_gateway.access import Access, ApiClient
from avtomatika_gateway.blueprints import Blueprints
from avtomatika_gateway.bodies import job_id_in, json_response, read_object
from avtomatika_gateway.dead_events import DeadEventsApi
from avtomatika_gateway.http_errors import Handler
from avtomatika_gateway.job_requests import (
    id_for,
    idempotency_key,
    parse_job_request,
    requested_job,
)
from avtomatika_gateway.refusals import BadRequest, Conflict, NotFound
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.signals import Signals
from avtomatika_gateway.skills import skill_catalog
from avtomatika_gateway.visibility import only_fields, short_form, visible_job
from avtomatika_gateway.waiting import MOST_TASKS, Wait, why_waiting
from rxon.constants import AUTH_HEADER_CLIENT

ClientHandler = Callable[[web.Request, ApiClient], Awaitable[web.Response]]

_WORKER_KEYS: Final = (
    "worker_id",
    "worker_type",
    "status",
    "supported_tasks",
    "load",
    "reputation",
    "resources",
    "installed_models",
)
"""What a client that is no admin sees of a worker."""

_MAKES_JOBS: Final = re.compile(r"/jobs/[^/]+$")
"""A path that looks like a blueprint's endpoint; no route of ours takes a POST there."""
_MOST_ROWS: Final = 2**31

log = get_logger()


class ClientApi:
    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        history: HistoryReader | None,
        access: Access,
        blueprints: Blueprints,
    ) -> None:
        self._is_detailed = settings.detailed_api_responses
        self._partitions = backend.partitions
        self._clock = backend.clock
        self._jobs = backend.jobs
        self._workers = backend.workers
        self._board = backend.board
        self._dead_events = DeadEventsApi(backend.dead_events)
        self._min_reputation = settings.min_reputation
        self._history = history
        self._access = access
        self._blueprints = blueprints
        self._signals = Signals(backend)

    def add_to(self, app: web.Application, base: str) -> None:
        """Serve under `base` and `base/<version>`; endpoints of blueprints come and go."""
        dead = self._dead_events
        for prefix in (base, f"{base}/{{api_version}}"):
            app.add_routes(
                [
                    web.get(f"{prefix}/jobs", self._for_client(self._list)),
                    web.get(f"{prefix}/jobs/quarantined", self._for_client(self._quarantined)),
                    web.delete(
                        f"{prefix}/jobs/quarantined/{{job_id}}",
                        self._for_client(self._forget_quarantined),
                    ),
                    web.get(f"{prefix}/jobs/{{job_id}}", self._for_client(self._get)),
                    web.post(f"{prefix}/jobs/{{job_id}}/cancel", self._for_client(self._cancel)),
                    web.post(f"{prefix}/jobs/{{job_id}}/redrive", self._for_client(self._redrive)),
                    web.post(
                        f"{prefix}/jobs/{{job_id}}/signals/{{name}}",
                        self._for_client(self._signals.send),
                    ),
                    web.get(f"{prefix}/jobs/{{job_id}}/history", self._for_client(self._rows)),
                    web.get(f"{prefix}/jobs/{{job_id}}/why", self._for_client(self._why)),
                    web.get(f"{prefix}/blueprints/{{name}}/graph", self._for_client(self._graph)),
                    web.get(f"{prefix}/workers", self._for_client(self._live_workers)),
                    web.get(f"{prefix}/workers/catalog", self._for_client(self._catalog)),
                    web.get(f"{prefix}/dashboard", self._for_client(self._dashboard)),
                    web.get(f"{prefix}/admin/dead-events", self._for_client(dead.show)),
                    web.post(
                        f"{prefix}/admin/dead-events/{{dead_id}}/replay",
                        self._for_client(dead.replay),
                    ),
                    web.delete(
                        f"{prefix}/admin/dead-events/{{dead_id}}", self._for_client(dead.delete)
                    ),
                ]
            )
        app.middlewares.append(self._blueprint_endpoints)

    def add_quarantine_list(self, app: web.Application) -> None:
        app.router.add_get("/_public/jobs/quarantined", self._for_client(self._quarantined))

    def _for_client(self, handler: ClientHandler) -> Handler:
        async def authenticated(request: web.Request) -> web.StreamResponse:
            version = request.match_info.get("api_version")
            if version is not None and not await self._blueprints.is_api_version(version):
                raise web.HTTPNotFound
            token = request.headers.get(AUTH_HEADER_CLIENT)
            return await handler(request, await self._access.client(token))

        return authenticated

    @web.middleware
    async def _blueprint_endpoints(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Serves what no route knows: blueprints are published while the routes stand fixed."""
        if request.match_info.http_exception is None:
            return await handler(request)
        entry = await self._blueprints.served_at(request.path)
        if entry is None:
            if request.method == "POST" and _MAKES_JOBS.search(request.path):
                raise NotFound(f"No blueprint has the endpoint POST {request.path}.")
            return await handler(request)
        if request.method != "POST":
            raise web.HTTPMethodNotAllowed(request.method, ["POST"])
        client = await self._access.client(request.headers.get(AUTH_HEADER_CLIENT))
        return await self._create(request, client, entry)

    async def _create(
        self, request: web.Request, client: ApiClient, entry: CatalogueEntry
    ) -> web.Response:
        body = await read_object(request)
        key = idempotency_key(request.headers.get("Idempotency-Key"), client, request.path, body)
        asked = parse_job_request(body)
        if problem := input_problem(entry.name, entry.input_schema, asked.initial_data):
            raise BadRequest(problem)
        job = requested_job(
            id_for(key, self._partitions),
            asked,
            entry,
            client,
            request.headers,
            self._clock.now(),
        )
        created = await self._jobs.create(job, idempotency=key)
        if not created.is_repeat:
            log.info("job accepted", job_id=job.id, blueprint=entry.name, client=client.name)
        return json_response({"status": "accepted", "job_id": created.job_id}, 202)

    async def _get(self, request: web.Request, client: ApiClient) -> web.Response:
        job_id = job_id_in(request)
        view = await self._jobs.view(job_id)
        if view is None:
            document = await self._remembered(job_id, client)
        elif client.may_see(view.job.origin.client.name):
            document = job_document(view)
        else:
            raise JobNotFound
        document = self._shown(document)
        if fields := request.query.get("fields"):
            document = only_fields(document, fields.split(","))
        return json_response(document)

    def _shown(self, document: dict[str, Any]) -> dict[str, Any]:
        return document if self._is_detailed else short_form(document)

    async def _remembered(self, job_id: JobId, client: ApiClient) -> dict[str, Any]:
        """The last document of a job whose retention is over. Raises JobNotFound."""
        for row in reversed(await self._archived(job_id, client)):
            document: dict[str, Any] | None = row["context_snapshot"]
            if document is not None:
                return document
        raise JobNotFound

    async def _archived(self, job_id: JobId, client: ApiClient) -> list[dict[str, Any]]:
        """The job's history rows, oldest first; none where it is not for this client."""
        rows = [] if self._history is None else await self._history.rows(job_id)
        return rows if rows and client.may_see(rows[-1]["client_name"]) else []

    async def _rows(self, request: web.Request, client: ApiClient) -> web.Response:
        job_id = job_id_in(request)
        rows = await self._archived(job_id, client)
        if not rows:
            await visible_job(self._jobs, job_id, client)
        return json_response([self._shown_row(row) for row in rows])

    async def _list(self, request: web.Request, client: ApiClient) -> web.Response:
        limit = _count(request.query.get("limit", "100"))
        offset = _count(request.query.get("offset", "0"))
        if self._history is None:
            return json_response([])
        rows = await self._history.latest(client.scope, limit, offset)
        return json_response([self._shown_row(row) for row in rows])

    def _shown_row(self, row: dict[str, Any]) -> dict[str, Any]:
        snapshot = row["context_snapshot"]
        if self._is_detailed or snapshot is None:
            return row
        return {**row, "context_snapshot": short_form(snapshot)}

    async def _cancel(self, request: web.Request, client: ApiClient) -> web.Response:
        job_id = job_id_in(request)
        await visible_job(self._jobs, job_id, client)
        held = await self._jobs.request_cancel(job_id, CancelRequested(at=self._clock.now()))
        told = await asyncio.gather(
            *(self._workers.stop_task(worker_id, task_id, job_id) for worker_id, task_id in held)
        )
        log.info("cancel requested", job_id=job_id, client=client.name)
        outcome = "sent" if any(told) else "accepted"
        return json_response({"status": f"cancellation_request_{outcome}"})

    async def _redrive(self, request: web.Request, client: ApiClient) -> web.Response:
        job_id = job_id_in(request)
        while True:
            stored = await visible_job(self._jobs, job_id, client)
            if stored.is_salvaged:
                raise UnreadableJob(stored, "the state it is to run again from")
            if stored.job.status not in REDRIVABLE:
                raise Conflict(
                    "Only a quarantined or failed job can be redriven; this one is "
                    f"{stored.job.status}."
                )
            try:
                await self._jobs.redrive(stored, redrive(stored.job, self._clock.now()))
            except StaleJob:
                continue
            log.info("job redriven", job_id=job_id, client=client.name)
            return json_response({"status": "accepted", "job_id": job_id}, 202)

    async def _why(self, request: web.Request, client: ApiClient) -> web.Response:
        job_id = job_id_in(request)
        view = await self._jobs.view(job_id)
        if view is None:
            status = (await self._remembered(job_id, client))["status"]
            return json_response({"status": status, **asdict(Wait()), "tasks": []})
        if not client.may_see(view.job.origin.client.name):
            raise JobNotFound
        tasks = await self._board.waiting(job_id, MOST_TASKS)
        workers = await self._workers.live() if tasks else []
        # Many workers beside many shapes of tasks take a while to compare.
        answer = await asyncio.to_thread(why_waiting, view, tasks, workers, self._min_reputation)
        return json_response(answer)

    async def _quarantined(self, _request: web.Request, client: ApiClient) -> web.Response:
        return json_response(await self._jobs.quarantined(client.scope))

    async def _forget_quarantined(self, request: web.Request, client: ApiClient) -> web.Response:
        job_id = job_id_in(request)
        await visible_job(self._jobs, job_id, client)
        if not await self._jobs.forget_quarantined(job_id):
            raise JobNotFound
        log.info("taken off the quarantine list", job_id=job_id, client=client.name)
        return json_response({"status": "removed"})

    async def _graph(self, request: web.Request, _client: ApiClient) -> web.Response:
        entry = await self._blueprints.named(request.match_info["name"])
        if entry is None:
            raise NotFound("Blueprint not found")
        return web.Response(text=entry.dot, content_type="text/vnd.graphviz")

    async def _live_workers(self, _request: web.Request, client: ApiClient) -> web.Response:
        documents = [worker.document for worker in await self._workers.live()]
        if not client.is_admin:
            documents = [
                {key: document[key] for key in _WORKER_KEYS if key in document}
                for document in documents
            ]
        return json_response(documents)

    async def _catalog(self, _request: web.Request, _client: ApiClient) -> web.Response:
        workers = await self._workers.live()
        return json_response(await asyncio.to_thread(skill_catalog, workers))

    async def _dashboard(self, _request: web.Request, client: ApiClient) -> web.Response:
        counted = await self._jobs.count_by_status(client.scope)
        by_status = {status.value: counted.get(status, 0) for status in JobStatus}
        return json_response(
            {
                "workers": {"total": await self._workers.count()},
                "jobs": {"queued": by_status[JobStatus.PENDING], **by_status},
            }
        )


def _count(text: str) -> int:
    """Raises BadRequest: not an integer, or negative."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise BadRequest("Invalid limit/offset parameter")
    return min(number, _MOST_ROWS)
