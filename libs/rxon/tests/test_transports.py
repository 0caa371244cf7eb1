"""The HTTP transport against a real server, with and without TLS."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from rxon import (
    Heartbeat,
    HeartbeatAnswer,
    ResultAnswer,
    RxonAuthError,
    RxonNetworkError,
    RxonProtocolError,
    TaskPayload,
    TaskResult,
    Transport,
    WorkerRegistration,
    create_transport,
)
from rxon.exceptions import RequestRefused
from rxon.http_transport import HttpTransport
from rxon.security import (
    create_client_ssl_context,
    create_server_ssl_context,
    extract_cert_identity,
)
from rxon.testing import MockTransport

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
RESULT = TaskResult(job_id="j", task_id="t", worker_id="w", status="success")


@dataclass
class Seen:
    method: str
    path: str
    headers: Mapping[str, str]
    body: object


@dataclass
class Orchestrator:
    """Gives the scripted answers in turn and remembers what was asked."""

    answers: list[web.Response] = field(default_factory=list[web.Response])
    seen: list[Seen] = field(default_factory=list[Seen])

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body: object = await request.json() if request.can_read_body else None
        self.seen.append(Seen(request.method, request.path, request.headers, body))
        return self.answers.pop(0)


@asynccontextmanager
async def served(answer: Answer, ssl_context: ssl.SSLContext | None = None) -> AsyncGenerator[str]:
    server = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await server.setup()
    site = web.TCPSite(server, "localhost", 0, ssl_context=ssl_context)
    await site.start()
    port = server.addresses[0][1]
    try:
        yield f"{'https' if ssl_context else 'http'}://localhost:{port}"
    finally:
        await server.cleanup()


@asynccontextmanager
async def connected(
    url: str, ssl_context: ssl.SSLContext | None = None
) -> AsyncGenerator[Transport]:
    transport = create_transport(url, "w", "secret", ssl_context)
    await transport.connect()
    try:
        yield transport
    finally:
        await transport.close()


@asynccontextmanager
async def talking_to(orchestrator: Orchestrator) -> AsyncGenerator[Transport]:
    async with served(orchestrator.answer) as url, connected(url) as transport:
        yield transport


async def test_each_call_goes_to_its_path_with_token_version_and_who_it_is() -> None:
    ok = {"status": "ok"}
    orchestrator = Orchestrator(
        [
            web.json_response({"status": "registered", "version": "1.0b2"}),
            web.json_response({"worker_id": "w", "cancel_task_ids": ["t-9"]}),
            web.json_response({"job_id": "j", "task_id": "t", "type": "resize", "new": 1}),
            web.json_response(ok),
        ]
    )

    async with talking_to(orchestrator) as transport:
        await transport.register(WorkerRegistration(worker_id="w"))
        told = await transport.send_heartbeat(Heartbeat(worker_id="w", status="idle"))
        task = await transport.poll_task(1)
        answer = await transport.send_result(RESULT)

    assert [(seen.method, seen.path) for seen in orchestrator.seen] == [
        ("POST", "/_worker/workers/register"),
        ("PATCH", "/_worker/workers/w"),
        ("GET", "/_worker/workers/w/tasks/next"),
        ("POST", "/_worker/tasks/result"),
    ]
    assert {seen.headers["X-Worker-Token"] for seen in orchestrator.seen} == {"secret"}
    assert {seen.headers["X-RXON-Version"] for seen in orchestrator.seen} == {"1.0b2"}
    assert {seen.headers["X-Worker-ID"] for seen in orchestrator.seen} == {"w"}
    assert orchestrator.seen[1].body == {"worker_id": "w", "status": "idle"}
    assert told == HeartbeatAnswer(cancel_task_ids=("t-9",))
    assert task == TaskPayload(job_id="j", task_id="t", type="resize")
    assert answer == ResultAnswer(status="ok")


async def test_an_empty_poll_brings_no_task() -> None:
    async with talking_to(Orchestrator([web.Response(status=204)])) as transport:
        assert await transport.poll_task(1) is None


async def test_a_poll_waits_five_seconds_longer_than_the_orchestrator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float | None] = []
    request = aiohttp.ClientSession.request

    def watched(
        self: aiohttp.ClientSession, method: str, url: str, **options: object
    ) -> Awaitable[aiohttp.ClientResponse]:
        timeout = options["timeout"]
        assert isinstance(timeout, aiohttp.ClientTimeout)
        waited.append(timeout.total)
        return request(self, method, url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(aiohttp.ClientSession, "request", watched)
    async with talking_to(Orchestrator([web.Response(status=204)])) as transport:
        await transport.poll_task(30)

    assert waited == [35]


async def test_a_refusal_carries_status_body_and_how_long_to_wait() -> None:
    orchestrator = Orchestrator(
        [
            web.json_response(
                {"error": "Too Many Requests"}, status=429, headers={"Retry-After": "7"}
            )
        ]
    )

    async with talking_to(orchestrator) as transport:
        with pytest.raises(RequestRefused) as refused:
            await transport.poll_task(1)

    assert (refused.value.status, refused.value.retry_after) == (429, 7.0)
    assert refused.value.details == {"status": 429, "body": '{"error": "Too Many Requests"}'}
    assert str(refused.value).endswith("429 Too Many Requests")


async def test_a_refusal_that_is_no_json_is_shown_as_it_is() -> None:
    orchestrator = Orchestrator(
        [web.Response(text="bad gateway", status=502, headers={"Retry-After": "a date"})]
    )

    async with talking_to(orchestrator) as transport:
        with pytest.raises(RequestRefused, match="502 bad gateway") as refused:
            await transport.send_result(RESULT)

    assert refused.value.retry_after is None


async def test_a_senseless_answer_is_a_protocol_error() -> None:
    async with talking_to(Orchestrator([web.Response(text="<html>")])) as transport:
        with pytest.raises(RxonProtocolError, match="no ResultAnswer"):
            await transport.send_result(RESULT)


async def test_without_a_certificate_a_401_is_final() -> None:
    orchestrator = Orchestrator(
        [web.json_response({"error": "Unauthorized: No valid token found"}, status=401)]
    )

    async with talking_to(orchestrator) as transport:
        with pytest.raises(RxonAuthError, match=r"^Unauthorized: No valid token found$"):
            await transport.poll_task(1)

    assert len(orchestrator.seen) == 1


async def test_nobody_there_is_a_network_error() -> None:
    async with served(Orchestrator().answer) as url:
        pass

    async with connected(url) as transport:
        with pytest.raises(RxonNetworkError) as nobody:
            await transport.send_result(RESULT)

    port = url.rpartition(":")[2]
    assert str(nobody.value) == (
        f"POST /_worker/tasks/result: cannot connect to localhost:{port}: Connection refused"
    )


async def test_a_connection_dropped_in_the_middle_is_a_network_error() -> None:
    async def hang_up(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with served(hang_up) as url, connected(url) as transport:
        with pytest.raises(RxonNetworkError):
            await transport.send_result(RESULT)


async def test_a_poll_that_is_never_answered_is_a_network_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def say_nothing(_: web.BaseRequest) -> web.StreamResponse:
        return await asyncio.Future[web.StreamResponse]()

    monkeypatch.setattr("rxon.http_transport.POLL_MARGIN_SECONDS", 0.01)
    async with served(say_nothing) as url, connected(url) as transport:
        with pytest.raises(RxonNetworkError, match="tasks/next: no answer in time"):
            await transport.poll_task(0.01)


async def test_a_host_that_takes_no_connection_is_given_up_long_before_a_poll_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that is switched off: another orchestrator may be asked meanwhile."""
    monkeypatch.setattr("rxon.http_transport.CONNECT_SECONDS", 0.05)
    with socket.socket() as deaf, ExitStack() as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):  # the queue of a server that accepts nothing is full after a few
            queued = waiting.enter_context(socket.socket())
            queued.setblocking(False)
            queued.connect_ex(deaf.getsockname())
        async with connected(f"http://127.0.0.1:{deaf.getsockname()[1]}") as transport:
            async with asyncio.timeout(5):
                with pytest.raises(RxonNetworkError, match="onnect"):
                    await transport.poll_task(60)


async def test_a_session_that_was_lent_is_not_closed() -> None:
    async with aiohttp.ClientSession() as session:
        transport = create_transport("http://localhost", "w", "secret", session=session)
        await transport.connect()
        await transport.close()

        assert not session.closed


def test_the_url_chooses_the_transport() -> None:
    assert isinstance(create_transport("mock://x", "w", "s"), MockTransport)
    assert isinstance(create_transport("http://x", "w", "s"), HttpTransport)


@dataclass(frozen=True)
class Certificates:
    ca: str
    server: tuple[str, str]
    client: tuple[str, str]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl program to make certificates")
    folder = tmp_path_factory.mktemp("tls")

    def make(name: str, subject: str, *options: str) -> tuple[str, str]:
        paths = (str(folder / f"{name}.crt"), str(folder / f"{name}.key"))
        subprocess.run(
            [
                *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
                *("-nodes", "-days", "2", "-subj", subject),
                *("-out", paths[0], "-keyout", paths[1], *options),
            ],
            check=True,
            capture_output=True,
        )
        return paths

    ca, ca_key = make("ca", "/CN=test CA", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    signed = ("-CA", ca, "-CAkey", ca_key, "-addext", "basicConstraints=critical,CA:FALSE")
    return Certificates(
        ca=ca,
        server=make("server", "/CN=server", *signed, "-addext", "subjectAltName=DNS:localhost"),
        client=make("client", "/O=us/CN=gpu-1", *signed),
    )


@dataclass
class StrictOrchestrator:
    """Accepts only the access token that it hands out to certificates."""

    identities: list[str | None] = field(default_factory=list[str | None])
    token: str = "fresh"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.identities.append(extract_cert_identity(request))
        if request.path == "/_worker/auth/token":
            assert "X-Worker-Token" not in request.headers
            if self.identities[-1] is None:
                return web.json_response({"error": "mTLS certificate required"}, status=403)
            return web.json_response(
                {"access_token": self.token, "expires_in": 3600, "worker_id": "gpu-1"}
            )
        if request.headers["X-Worker-Token"] != "fresh":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.Response(status=204)


async def test_a_401_is_answered_with_a_token_by_certificate(certificates: Certificates) -> None:
    orchestrator = StrictOrchestrator()
    server = create_server_ssl_context(*certificates.server, certificates.ca)
    client = create_client_ssl_context(certificates.ca, *certificates.client)

    async with served(orchestrator.answer, server) as url, connected(url, client) as transport:
        assert await transport.poll_task(1) is None
        assert await transport.poll_task(1) is None

    assert orchestrator.identities == ["gpu-1"] * 4  # refused, token, poll; poll


async def test_a_token_that_does_not_help_is_asked_for_once(certificates: Certificates) -> None:
    orchestrator = StrictOrchestrator(token="stale")
    server = create_server_ssl_context(*certificates.server, certificates.ca)
    client = create_client_ssl_context(certificates.ca, *certificates.client)

    async with served(orchestrator.answer, server) as url, connected(url, client) as transport:
        with pytest.raises(RxonAuthError, match="Unauthorized"):
            await transport.poll_task(1)

    assert len(orchestrator.identities) == 3


async def test_a_client_without_a_certificate_has_no_identity(certificates: Certificates) -> None:
    orchestrator = StrictOrchestrator()
    server = create_server_ssl_context(*certificates.server, certificates.ca)
    client = create_client_ssl_context(certificates.ca)

    async with served(orchestrator.answer, server) as url, connected(url, client) as transport:
        with pytest.raises(RxonAuthError, match="mTLS certificate required"):
            await transport.poll_task(1)

    assert orchestrator.identities == [None, None]


async def test_a_required_certificate_keeps_others_out(certificates: Certificates) -> None:
    server = create_server_ssl_context(
        *certificates.server, certificates.ca, require_client_cert=True
    )
    client = create_client_ssl_context(certificates.ca)

    async with (
        served(StrictOrchestrator().answer, server) as url,
        connected(url, client) as transport,
    ):
        with pytest.raises(RxonNetworkError):
            await transport.poll_task(1)


def test_a_certificate_cannot_be_required_without_a_ca(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="CA"):
        create_server_ssl_context(*certificates.server, require_client_cert=True)
