"""Dead events, for admins: what the executors could not handle, to be replayed or forgotten."""

from aiohttp import web

from avtomatika_common.backend.ports import DeadEvent, DeadEvents
from avtomatika_common.logs import get_logger
from avtomatika_gateway.access import ApiClient
from avtomatika_gateway.bodies import json_response
from avtomatika_gateway.refusals import Forbidden, NotFound

log = get_logger()

_MOST_SHOWN = 1000


class DeadEventsApi:
    def __init__(self, dead_events: DeadEvents) -> None:
        self._dead_events = dead_events

    async def show(self, _request: web.Request, client: ApiClient) -> web.Response:
        _admins_only(client)
        newest = await self._dead_events.newest(_MOST_SHOWN)
        return json_response([_document(dead) for dead in newest])

    async def replay(self, request: web.Request, client: ApiClient) -> web.Response:
        _admins_only(client)
        dead_id = request.match_info["dead_id"]
        if not await self._dead_events.replay(dead_id):
            raise NotFound("Dead event not found")
        log.info("dead event replayed", dead_event=dead_id, client=client.name)
        return json_response({"status": "accepted", "id": dead_id}, 202)

    async def delete(self, request: web.Request, client: ApiClient) -> web.Response:
        _admins_only(client)
        dead_id = request.match_info["dead_id"]
        if not await self._dead_events.delete(dead_id):
            raise NotFound("Dead event not found")
        log.info("dead event deleted", dead_event=dead_id, client=client.name)
        return json_response({"status": "removed"})


def _admins_only(client: ApiClient) -> None:
    if not client.is_admin:
        raise Forbidden("Admin client required")


def _document(dead: DeadEvent) -> dict[str, object]:
    """`event` only where it can be decoded, `job_id` null where the entry named no job."""
    shown: dict[str, object] = {
        "id": dead.dead_id,
        "job_id": dead.job_id or None,
        "reason": dead.reason,
        "at": dead.at,
    }
    return shown if dead.event is None else {**shown, "event": dead.event}
