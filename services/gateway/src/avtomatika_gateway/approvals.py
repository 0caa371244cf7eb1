"""Decisions of people: `POST /_public/webhooks/approval/{job_id}`."""

from aiohttp import web

from avtomatika_common.backend.ports import ApprovalNotOpen, Backend, JobNotFound
from avtomatika_common.logs import get_logger
from avtomatika_core.job import ApprovalWait
from avtomatika_gateway.access import Access, ApiClient, is_secret
from avtomatika_gateway.bodies import job_id_in, json_response, read_object
from avtomatika_gateway.refusals import BadRequest, Unauthenticated
from avtomatika_gateway.settings import Settings
from rxon.constants import AUTH_HEADER_CLIENT

_WHO_ARE_YOU = "Approval token or client token required"

log = get_logger()


class Approvals:
    def __init__(self, settings: Settings, backend: Backend, access: Access) -> None:
        self._is_open_to_all = not settings.approval_auth_required
        self._jobs = backend.jobs
        self._clock = backend.clock
        self._access = access

    def add_to(self, app: web.Application) -> None:
        app.router.add_post("/_public/webhooks/approval/{job_id}", self._decide)

    async def _decide(self, request: web.Request) -> web.Response:
        client = await self._client(request)
        secret = request.headers.get("X-Approval-Token") or request.query.get("token")
        if client is None and not secret and not self._is_open_to_all:
            raise Unauthenticated(_WHO_ARE_YOU)
        decision = (await read_object(request)).get("decision")
        if not isinstance(decision, str) or not decision:
            raise BadRequest("decision is required in body")

        job_id = job_id_in(request)
        stored = await self._jobs.load(job_id)
        if stored is None:
            raise JobNotFound
        job = stored.job
        is_allowed = self._is_open_to_all or (
            client is not None and client.may_see(job.origin.client.name)
        )
        if not is_allowed and not secret:
            raise JobNotFound
        wait = job.head.wait
        if not isinstance(wait, ApprovalWait):
            raise ApprovalNotOpen
        if not is_allowed and not is_secret(secret or "", wait.secret_hash):
            raise Unauthenticated(_WHO_ARE_YOU)
        if decision not in wait.decisions:
            raise BadRequest(f"Invalid decision '{decision}' for this job")
        await self._jobs.decide_approval(
            job_id, token=wait.token, decision=decision, at=self._clock.now()
        )
        log.info("approval decided", job_id=job_id, decision=decision)
        return json_response({"status": "approval_received", "job_id": job_id})

    async def _client(self, request: web.Request) -> ApiClient | None:
        try:
            return await self._access.client(request.headers.get(AUTH_HEADER_CLIENT))
        except Unauthenticated:
            return None
