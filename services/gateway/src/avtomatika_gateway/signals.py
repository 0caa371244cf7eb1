"""Signals of clients to their jobs: `POST /jobs/{job_id}/signals/{name}`."""

from typing import Any

from aiohttp import web

from avtomatika_common.backend.ports import Backend, JobIsTerminal
from avtomatika_common.logs import get_logger
from avtomatika_core.events import SignalReceived
from avtomatika_core.signals import check_signal_name
from avtomatika_gateway.access import ApiClient
from avtomatika_gateway.bodies import job_id_in, json_response, read_object
from avtomatika_gateway.job_requests import idempotency_key
from avtomatika_gateway.refusals import BadRequest, Conflict
from avtomatika_gateway.visibility import visible_job

log = get_logger()


class Signals:
    def __init__(self, backend: Backend) -> None:
        self._jobs = backend.jobs
        self._clock = backend.clock

    async def send(self, request: web.Request, client: ApiClient) -> web.Response:
        """Raises BadRequest, JobNotFound, Conflict, TooManySignals, IdempotencyKeyReused."""
        job_id, name = job_id_in(request), _name_in(request)
        data: dict[str, Any] = await read_object(request) if await request.read() else {}
        header = request.headers.get("Idempotency-Key")
        key = idempotency_key(header, client, request.path, data)
        await visible_job(self._jobs, job_id, client)
        signal = SignalReceived(at=self._clock.now(), name=name, data=data)
        try:
            await self._jobs.send_signal(job_id, signal, idempotency=key)
        except JobIsTerminal as ended:
            raise Conflict(f"Job takes no signals any more (already {ended.status}).") from None
        log.info("signal accepted", job_id=job_id, signal=name, client=client.name)
        return json_response({"status": "accepted"}, 202)


def _name_in(request: web.Request) -> str:
    try:
        return check_signal_name(request.match_info["name"])
    except ValueError as error:
        raise BadRequest(str(error)) from None
