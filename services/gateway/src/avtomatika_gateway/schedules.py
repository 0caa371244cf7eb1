"""The schedules, for admins: what there is and when it comes next, a pause, a run out of its time."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from avtomatika_common.backend.ports import Backend, ScheduleEntry
from avtomatika_common.contracts import input_problem
from avtomatika_common.ids import new_id
from avtomatika_common.logs import get_logger
from avtomatika_core.job import JobId
from avtomatika_core.schedule import scheduled_job, upcoming
from avtomatika_gateway.access import Access
from avtomatika_gateway.blueprints import Blueprints
from avtomatika_gateway.bodies import json_response
from avtomatika_gateway.http_errors import Handler
from avtomatika_gateway.refusals import Conflict, Forbidden, NotFound
from rxon.constants import AUTH_HEADER_CLIENT

_SHOWN_TIMES: Final = 5

log = get_logger()


class SchedulesApi:
    """The scheduler reads the file and publishes what it says: any gateway can serve it."""

    def __init__(self, backend: Backend, access: Access, blueprints: Blueprints) -> None:
        self._schedules = backend.schedules
        self._jobs = backend.jobs
        self._clock = backend.clock
        self._access = access
        self._blueprints = blueprints

    def add_to(self, app: web.Application, base: str) -> None:
        for prefix in (base, f"{base}/{{api_version}}"):
            one = f"{prefix}/schedules/{{name}}"
            app.add_routes(
                [
                    web.get(f"{prefix}/schedules", self._for_admin(self._list)),
                    web.post(f"{one}/pause", self._for_admin(self._pause)),
                    web.post(f"{one}/resume", self._for_admin(self._resume)),
                    web.post(f"{one}/run", self._for_admin(self._run)),
                ]
            )

    def _for_admin(self, handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
        async def authenticated(request: web.Request) -> web.StreamResponse:
            version = request.match_info.get("api_version")
            if version is not None and not await self._blueprints.is_api_version(version):
                raise web.HTTPNotFound
            client = await self._access.client(request.headers.get(AUTH_HEADER_CLIENT))
            if not client.is_admin:
                raise Forbidden("Admin client required")
            return await handler(request)

        return authenticated

    async def _list(self, _request: web.Request) -> web.Response:
        _, entries = await self._schedules.entries()
        return json_response([self._shown(entry) for entry in entries])

    async def _pause(self, request: web.Request) -> web.Response:
        return await self._set_paused(request, is_paused=True)

    async def _resume(self, request: web.Request) -> web.Response:
        return await self._set_paused(request, is_paused=False)

    async def _set_paused(self, request: web.Request, *, is_paused: bool) -> web.Response:
        name, now = request.match_info["name"], self._clock.now()
        entry = _found(await self._schedules.set_paused(name, is_paused=is_paused, at=now))
        log.info("schedule paused" if is_paused else "schedule resumed", schedule=name)
        return json_response(self._shown(entry))

    async def _run(self, request: web.Request) -> web.Response:
        """A job now, whatever else the schedule says of when and how many."""
        name, now = request.match_info["name"], self._clock.now()
        schedule = _found(await self._schedules.get(name)).schedule
        blueprint = await self._blueprints.named(schedule.blueprint)
        if blueprint is None:
            raise Conflict(f"Blueprint '{schedule.blueprint}' is not registered.")
        data = schedule.initial_data
        if problem := input_problem(blueprint.name, blueprint.input_schema, data):
            raise Conflict(problem)
        job = scheduled_job(
            schedule,
            JobId(new_id()),
            group=blueprint.group,
            start_state=blueprint.start_state,
            created_at=now,
        )
        await self._jobs.create(job)
        await self._schedules.note_asked(name, job.id, now)
        log.info("schedule run out of its time", schedule=name, job_id=job.id)
        return json_response({"status": "accepted", "job_id": job.id}, 202)

    def _shown(self, entry: ScheduleEntry) -> dict[str, Any]:
        schedule = entry.schedule
        last_run, last_job_id = entry.last_run
        return {
            "name": schedule.name,
            "blueprint": schedule.blueprint,
            "paused": entry.is_paused,
            "last_run": last_run,
            "last_job_id": last_job_id,
            "next": upcoming(
                schedule, entry.standing, self._clock.now(), _SHOWN_TIMES, entry.resumed_at
            ),
        }


def _found(entry: ScheduleEntry | None) -> ScheduleEntry:
    if entry is None:
        raise NotFound("Schedule not found")
    return entry
