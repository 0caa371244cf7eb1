"""The gateway as a service: it starts, says what is wrong when it cannot, and drains."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from services.gateway.tests.door import WORKER, Door, an_entry

from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError, Suite, running
from avtomatika_core.job import WorkerId
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings
from avtomatika_gateway.tls import server_tls
from tests.support import until

ENVIRON = {
    "API_HOST": "127.0.0.1",
    "API_PORT": "0",
    "GLOBAL_WORKER_TOKEN": WORKER["X-Worker-Token"],
}


@asynccontextmanager
async def a_backend() -> AsyncGenerator[MemoryStorage, None]:
    backend = MemoryStorage()
    await backend.open(StoreOptions(block_seconds=0.05))
    await backend.catalogue.publish([an_entry()])
    yield backend
    await backend.close()


def a_gateway(backend: MemoryStorage, **environ: str) -> GatewayService:
    return GatewayService(Settings.from_config(Config({**ENVIRON, **environ})), backend)


async def test_the_status_is_public(door: Door) -> None:
    answer = await door.ask("GET", "/_public/status")

    assert (answer.status, answer.body) == (200, {"status": "ok"})


async def test_a_stop_answers_parked_polls_and_lets_requests_finish() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        entered.set()
        await go_on.wait()
        return web.Response(text="finished")

    async with a_backend() as backend:
        service = a_gateway(backend)
        service.app.router.add_get("/of/the/application", slow)
        suite = Suite(service)
        await suite.start()
        async with ClientSession() as http, asyncio.TaskGroup() as tasks:
            door = Door(backend, service, http)
            await door.register("w")
            poll = tasks.create_task(door.poll("w"))
            request = tasks.create_task(door.ask("GET", "/of/the/application"))
            await entered.wait()
            await until(lambda: has_open_poll(backend))

            stopping = tasks.create_task(suite.stop())

            assert (await poll).status == 204
            assert not stopping.done()
            go_on.set()
            assert (await request).body == "finished"
            await stopping
        assert not await has_open_poll(backend)


async def has_open_poll(backend: MemoryStorage) -> bool:
    worker = await backend.workers.get(WorkerId("w"))
    assert worker is not None
    return worker.places.room > 0


async def test_a_taken_port_stops_the_start_with_one_clear_line() -> None:
    async with a_backend() as backend:
        first = a_gateway(backend)
        async with running(first):
            second = a_gateway(backend, API_PORT=str(first.port))

            with pytest.raises(StartupError, match=f"Cannot listen on 127.0.0.1:{first.port}"):
                async with running(second):
                    pass


async def test_secrets_left_at_their_defaults_are_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with a_backend() as backend, running(a_gateway(backend)):
        warned = [
            (record.__dict__["setting"], record.message)
            for record in caplog.records
            if "published default" in record.message
        ]

    assert warned == [
        ("CLIENT_TOKEN", "CLIENT_TOKEN is the published default: set a secret of your own")
    ]


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "http://127.0.0.1"), ("::1", "http://[::1]")]
)
async def test_the_log_says_where_the_door_is(
    host: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "avtomatika")
    async with a_backend() as backend:
        gateway = a_gateway(backend, API_HOST=host)
        async with running(gateway):
            address = f"{shown}:{gateway.port}"
            [line] = [one for one in caplog.records if "gateway serves" in one.message]

            assert gateway.address == line.__dict__["address"] == address


def test_without_tls_the_door_is_plain() -> None:
    assert server_tls(Config({})) is None


def test_tls_without_its_files_stops_the_start() -> None:
    with pytest.raises(StartupError, match="check TLS_CERT_PATH"):
        server_tls(Config({"TLS_ENABLED": "true", "TLS_CERT_PATH": "/nowhere.pem"}))
