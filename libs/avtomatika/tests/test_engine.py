"""The whole orchestrator in one process, as an application uses it."""

import asyncio
import logging
from pathlib import Path
from typing import Any, TypedDict

import pytest
from aiohttp import web
from libs.avtomatika.tests.engines import (
    a_config,
    a_worker,
    an_engine,
    ask,
    ended,
    greeting,
    permission,
    started,
)

from avtomatika import (
    ActionFactory,
    JobContext,
    MemoryStorage,
    OrchestratorEngine,
    StateMachineBlueprint,
    app_keys,
)
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError
from rxon import RxonNetworkError, WorkerRegistration
from tests.support import until

FLOW = """
from avtomatika import StateMachineBlueprint

flow = StateMachineBlueprint("{name}", api_version="v1", api_endpoint="/jobs/{name}")

@flow.handler_for("start", is_start=True, is_end=True)
async def start(job_id):
    pass
"""


class Order(TypedDict):
    item: str


UNKNOWN = "00000000-0000-4000-8000-000000000000"


# -- blueprints


def test_a_blueprint_is_validated_when_it_is_registered() -> None:
    with pytest.raises(ValueError, match="'empty' must have exactly one start state"):
        an_engine(StateMachineBlueprint("empty"))


def test_a_name_is_registered_once() -> None:
    engine = an_engine(greeting())

    with pytest.raises(
        ValueError, match=r"^Blueprint with name 'greeting' is already registered\.$"
    ):
        engine.register_blueprint(greeting())


@pytest.mark.parametrize(
    ("endpoint", "version"), [("/jobs/greeting", "v1"), ("jobs/greeting", "/v1")]
)
def test_an_endpoint_is_that_of_one_blueprint(endpoint: str, version: str) -> None:
    engine = an_engine(greeting())
    other = greeting("other")
    other.api_endpoint, other.api_version = endpoint, version

    with pytest.raises(ValueError, match="'greeting' and 'other' have the same endpoint"):
        engine.register_blueprint(other)

    other.api_version = "v2"
    engine.register_blueprint(other)


def test_nothing_is_registered_after_setup_which_may_be_repeated() -> None:
    engine = an_engine(greeting())
    engine.setup()
    engine.setup()

    with pytest.raises(RuntimeError, match=r"^Cannot register blueprints after engine setup\.$"):
        engine.register_blueprint(greeting("late"))

    assert list(engine.blueprints) == ["greeting"]


async def test_blueprints_of_the_directory_are_hosted(tmp_path: Path) -> None:
    (tmp_path / "filed.py").write_text(FLOW.format(name="filed"))

    async with started(an_engine(BLUEPRINTS_DIR=str(tmp_path))) as engine:
        status, answer = await ask(engine, "POST", "/api/v1/jobs/filed", {})
        job = await ended(engine, answer["job_id"])

    assert (status, job["status"]) == (202, "finished")


# -- life


async def test_what_is_assigned_to_the_configuration_before_the_start_counts(
    tmp_path: Path,
) -> None:
    engine = OrchestratorEngine(config=Config({}))
    engine.register_blueprint(greeting())
    config = engine.config
    config.API_HOST, config.API_PORT = "127.0.0.1", 0
    config.CLIENT_TOKEN, config.GLOBAL_WORKER_TOKEN = "changed", "changed too"
    config.MAX_REQUEST_BODY_BYTES = 50
    config.HISTORY_DATABASE_URI = f"sqlite:{tmp_path / 'h.db'}"
    config.CLIENT_API_PREFIX = "v9"

    async with started(engine):
        status, answer = await ask(engine, "POST", "/v9/v1/jobs/greeting", {}, token="changed")
        too_large = {"initial_data": {"x": "y" * 100}}
        refused, _ = await ask(engine, "POST", "/v9/v1/jobs/greeting", too_large, token="changed")
        await ended(engine, answer["job_id"])

    assert (status, refused) == (202, 413)
    assert (tmp_path / "h.db").exists()


def test_a_redis_that_is_named_before_the_start_is_taken() -> None:
    chosen, given = an_engine(), an_engine(storage=MemoryStorage())
    for engine in (chosen, given):
        engine.config.REDIS_URL = "redis://127.0.0.1:1/0"
        engine.setup()

    assert type(chosen.storage).__name__ == "RedisStorage"
    assert type(given.storage).__name__ == "MemoryStorage"


async def test_own_routes_are_served_beside_ours() -> None:
    engine = an_engine(greeting())

    async def version(request: web.Request) -> web.Response:
        hosted = request.app[app_keys.ENGINE_KEY].blueprints
        return web.json_response({"hosts": list(hosted)})

    engine.app.router.add_get("/version", version)

    async with started(engine):
        assert await ask(engine, "GET", "/version") == (200, {"hosts": ["greeting"]})
        assert await ask(engine, "GET", "/_public/status") == (200, {"status": "ok"})


async def test_a_session_for_http_is_there_while_the_engine_runs() -> None:
    engine = an_engine()
    assert app_keys.HTTP_SESSION_KEY not in engine.app

    async with started(engine):
        session = engine.app[app_keys.HTTP_SESSION_KEY]
        assert not session.closed

    assert session.closed


async def test_a_workers_transport_works_from_the_start_of_the_engine_to_its_stop() -> None:
    engine = an_engine(greeting())
    transport = engine.transport("w")
    registration = WorkerRegistration(worker_id="w", supported_tasks=("paint",))

    with pytest.raises(RxonNetworkError, match="does not run"):
        await transport.register(registration)
    async with started(engine):
        await transport.register(registration)
        info = await engine.storage.get_worker_info("w")
    with pytest.raises(RxonNetworkError, match="does not run"):
        await transport.poll_task(1)

    assert info is not None
    assert info["supported_tasks"] == ["paint"]


async def test_an_engine_starts_once_and_may_be_stopped_twice() -> None:
    engine = an_engine()
    await engine.stop()

    async with started(engine):
        with pytest.raises(RuntimeError, match="The engine was started before; make a new one"):
            await engine.start()
        assert await ask(engine, "GET", "/_public/status") == (200, {"status": "ok"})
    await engine.stop()

    with pytest.raises(RuntimeError, match="The engine was started before; make a new one"):
        await engine.start()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "unix:///nowhere/redis.sock"])
async def test_a_store_that_is_away_stops_the_start(url: str) -> None:
    engine = an_engine(REDIS_URL=url)

    for _ in range(2):  # it may be tried again
        with pytest.raises(RuntimeError, match=r"^Storage Backend is unavailable\.$") as refused:
            await engine.start()
        assert isinstance(refused.value.__cause__, StartupError)


class Silent(MemoryStorage):
    async def ping(self) -> bool:
        return False


async def test_a_store_that_does_not_answer_stops_the_start() -> None:
    with pytest.raises(RuntimeError, match=r"^Storage Backend is unavailable\.$"):
        await an_engine(storage=Silent()).start()


async def test_a_port_that_is_taken_stops_the_start_and_leaves_nothing_running() -> None:
    async with started(an_engine()) as first:
        second = an_engine(API_PORT=str(first.port))

        with pytest.raises(StartupError, match="Set API_HOST and API_PORT to a free address"):
            await second.start()

    assert second.app[app_keys.HTTP_SESSION_KEY].closed


async def test_the_applications_logging_stays_as_it_was() -> None:  # R69
    def seen() -> dict[str | None, object]:
        names = [None, "avtomatika", "aiohttp", "asyncio", *logging.root.manager.loggerDict]
        loggers = {name: logging.getLogger(name) for name in names}
        return {
            name: (log.level, list(log.handlers), log.propagate, log.disabled, list(log.filters))
            for name, log in loggers.items()
        }

    before = seen()
    async with started(an_engine(greeting(), LOG_LEVEL="DEBUG")) as engine:
        await ended(engine, await engine.create_background_job("greeting", {}))

    after = seen()
    assert {name: after[name] for name in before} == before


# -- jobs


async def test_a_background_job_belongs_to_nobody_and_says_where_it_came_from() -> None:
    seen: list[JobContext] = []
    watching = StateMachineBlueprint("watching")

    @watching.handler_for("start", is_start=True, is_end=True)
    async def start(context: JobContext) -> None:
        seen.append(context)

    async with started(an_engine(watching)) as engine:
        job_id = await engine.create_background_job(
            "watching",
            {"n": (1, 2)},
            source="nightly",
            tracing_context={"traceparent": "00-1-2-01"},
            data_metadata={"k": "v"},
        )
        job = await ended(engine, job_id)

    assert job["client_config"] == {
        "token": "internal-scheduler",
        "plan": "system",
        "params": {"source": "nightly"},
    }
    assert (job["initial_data"], job["data_metadata"]) == ({"n": [1, 2]}, {"k": "v"})
    assert job["tracing_context"] == {"traceparent": "00-1-2-01"}
    [context] = seen
    assert (context.client.token, context.client.config) == (
        "internal-scheduler",
        {"source": "nightly"},
    )


async def test_a_background_job_of_an_unknown_blueprint_is_refused() -> None:
    async with started(an_engine(greeting())) as engine:
        with pytest.raises(ValueError, match=r"^Blueprint 'other' not found\.$"):
            await engine.create_background_job("other", {})


async def test_a_background_job_of_what_json_cannot_carry_is_refused() -> None:
    async with started(an_engine(greeting())) as engine:
        for data in ({"x": b"bytes"}, {"x": float("nan")}):
            with pytest.raises(TypeError):
                await engine.create_background_job("greeting", data)
        assert await engine.storage.get_job_queue_length() == 0


async def test_jobs_whose_data_breaks_the_contract_are_made_by_nobody() -> None:
    shop = StateMachineBlueprint("shop", api_version="v1", api_endpoint="/jobs/shop")

    @shop.handler_for("start", is_start=True, is_end=True)
    async def start(initial_data: Order) -> None: ...

    text = "Input validation failed for blueprint 'shop': \"item\" is a required property"
    async with started(an_engine(shop)) as engine:
        status, answer = await ask(engine, "POST", "/api/v1/jobs/shop", {"initial_data": {}})
        with pytest.raises(ValueError, match=text):
            await engine.create_background_job("shop", {})
        job = await ended(engine, await engine.create_background_job("shop", {"item": "book"}))

    assert (status, answer) == (400, {"error": text})
    assert job["status"] == "finished"


async def test_a_job_made_before_the_start_is_done_after_it() -> None:
    engine = an_engine(greeting())
    job_id = await engine.create_background_job("greeting", {"name": "Ada"})

    async with started(engine):
        job = await ended(engine, job_id)

    assert job["state_history"] == {"said": "Hello, Ada"}


async def test_a_job_is_cancelled_once_and_an_unknown_one_never() -> None:
    async with started(an_engine(permission())) as engine:
        job_id = await engine.create_background_job("permission", {})

        assert await engine.cancel_job(job_id)
        job = await ended(engine, job_id)
        assert job["status"] == "cancelled"
        assert not await engine.cancel_job(job_id)
        assert not await engine.cancel_job(UNKNOWN)
        assert not await engine.cancel_job("no id at all")


async def test_an_application_sends_its_jobs_signals() -> None:
    payment = StateMachineBlueprint("payment")

    @payment.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.wait_for_signal("paid", {"received": "end"})

    @payment.handler_for("end", is_end=True)
    async def end() -> None: ...

    async with started(an_engine(payment)) as engine:
        job_id = await engine.create_background_job("payment", {})

        assert await engine.send_signal(job_id, "paid", {"amount": 3})
        job = await ended(engine, job_id)
        assert (job["status"], job["state_history"]) == ("finished", {"amount": 3})
        assert not await engine.send_signal(job_id, "paid")
        assert not await engine.send_signal(UNKNOWN, "paid")
        with pytest.raises(ValueError, match="1 to 255 printable characters"):
            await engine.send_signal(job_id, "")
        with pytest.raises(TypeError):
            await engine.send_signal(job_id, "paid", {"when": {1, 2}})


async def test_dict_like_stores_are_shared_by_the_instances() -> None:  # R59
    def counting() -> StateMachineBlueprint:
        blueprint = StateMachineBlueprint("counting", data_stores={"counts": {"n": 10}})

        @blueprint.handler_for("start", is_start=True, is_end=True)
        async def start(data_stores: Any, state_history: dict[str, Any]) -> None:
            n = await data_stores.counts.get("n") + 1
            await data_stores.counts.set("n", n)
            state_history["n"] = n

        return blueprint

    storage = MemoryStorage()
    counts: list[int] = []
    for _ in range(2):
        async with started(an_engine(counting(), storage=storage)) as engine:
            job = await ended(engine, await engine.create_background_job("counting", {}))
            counts.append(job["state_history"]["n"])

    assert counts == [11, 12]


# -- callbacks


async def test_a_callback_gets_the_document_of_every_job_that_ended() -> None:
    told: list[tuple[str, str, dict[str, Any]]] = []

    async def on_job_finished(job_id: str, status: str, job: dict[str, Any]) -> None:
        told.append((job_id, status, job))

    engine = an_engine(greeting(), permission())
    engine.on_job_finished.append(on_job_finished)
    async with started(engine):
        done = await engine.create_background_job("greeting", {"name": "Ada"})
        await until(lambda: len(told) == 1)
        stopped = await engine.create_background_job("permission", {})
        await engine.cancel_job(stopped)
        await until(lambda: len(told) == 2)
        documents = [await engine.storage.get_job_state(job_id) for job_id in (done, stopped)]

    assert told == [(done, "finished", documents[0]), (stopped, "cancelled", documents[1])]


async def test_the_token_of_an_approval_callback_approves() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    async def on_approval_requested(job_id: str, approval: dict[str, Any]) -> None:
        asked.append((job_id, approval))

    engine = an_engine(permission())
    engine.on_approval_requested.append(on_approval_requested)
    async with started(engine):
        job_id = await engine.create_background_job("permission", {})
        await until(lambda: asked)
        [(asked_job, approval)] = asked
        yes = {"decision": "yes"}
        wrong = await ask(engine, "POST", f"{approval['url']}?token=wrong", yes, token="")
        right = await ask(
            engine, "POST", f"{approval['url']}?token={approval['token']}", yes, token=""
        )
        job = await ended(engine, job_id)

    assert asked_job == job_id
    assert approval["integration"] == "chat"
    assert approval["message"] == "May I?"
    assert approval["decisions"] == ["yes", "no"]
    assert approval["deadline"] is None
    assert wrong == (401, {"error": "Approval token or client token required"})
    assert right == (200, {"status": "approval_received", "job_id": job_id})
    assert (job["status"], job["current_state"]) == ("finished", "granted")
    assert approval["token"] not in str(job)


def reading() -> StateMachineBlueprint:
    """A task whose holder may tell that it is halfway, which is enough."""
    blueprint = StateMachineBlueprint("reading", api_version="v1", api_endpoint="/jobs/reading")
    blueprint.event("halfway", {"required": ["pages"]})

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.dispatch_task("read", {}, {"success": "end"}, event_transitions={"halfway": "end"})

    @blueprint.handler_for("end", is_end=True)
    async def end(actions: ActionFactory, pages: int) -> None:
        actions.send_event("counted", {"pages": pages})

    return blueprint


async def test_callbacks_hear_the_events_of_workers_and_of_handlers() -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    async def raises(worker_id: str, event: dict[str, Any]) -> None:
        raise OSError("no")

    async def on_worker_event(worker_id: str, event: dict[str, Any]) -> None:
        heard.append((worker_id, event))

    engine = an_engine(reading())
    engine.on_worker_event += [raises, on_worker_event]
    async with started(engine), a_worker(engine, "read") as worker:
        job_id = await engine.create_background_job("reading", {})
        task = await worker.poll()
        event = {
            "event_id": "e-1",
            "event_type": "halfway",
            "target_job_id": job_id,
            "target_task_id": task["task_id"],
        }
        missing = await worker.ask("POST", "/_worker/events", {**event, "payload": {}})
        told = {**event, "payload": {"pages": 7}}
        taken = [await worker.ask("POST", "/_worker/events", told) for _ in range(2)]
        job = await ended(engine, job_id)
        await until(lambda: len(heard) == 2)

    problem = 'its payload does not fit the schema: "pages" is a required property'
    text = f"Event 'halfway' is not valid for blueprint 'reading': {problem}"
    assert missing == (400, {"error": text})
    assert taken == [(200, {"status": "event_accepted"})] * 2
    assert (job["status"], job["state_history"]) == ("finished", {"pages": 7})
    by_type = {event["event_type"]: (worker_id, event) for worker_id, event in heard}
    sender, event_of_worker = by_type["halfway"]
    nobody, event_of_handler = by_type["counted"]
    assert (sender, nobody) == ("w", "")
    assert event_of_worker["payload"] == event_of_handler["payload"] == {"pages": 7}
    assert event_of_handler.keys() == event_of_worker.keys()
    assert event_of_handler["target_job_id"] == job_id


async def test_a_callback_that_raises_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    async def raises(job_id: str, status: str, job: dict[str, Any]) -> None:
        raise LookupError

    def is_not_even_called(job_id: str) -> Any:
        raise AssertionError

    async def listens(job_id: str, status: str, job: dict[str, Any]) -> None:
        told.append(job_id)

    engine = an_engine(greeting())
    engine.on_job_finished += [raises, is_not_even_called, listens]  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    async with started(engine):
        with caplog.at_level(logging.ERROR, "avtomatika"):
            jobs = [await engine.create_background_job("greeting", {}) for _ in range(2)]
            await until(lambda: len(told) == 2)
        documents = [await ended(engine, job_id) for job_id in jobs]

    assert sorted(told) == sorted(jobs)
    assert [document["status"] for document in documents] == ["finished", "finished"]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["callback failed"] * 4
    assert {vars(record)["job_id"] for record in caplog.records} == set(jobs)


# -- history and webhooks at the end


async def test_the_history_of_a_job_goes_from_its_creation_to_its_end(tmp_path: Path) -> None:
    # R27
    uri = f"sqlite:{tmp_path / 'h.db'}"
    async with started(an_engine(greeting(), HISTORY_DATABASE_URI=uri)) as engine:
        _, answer = await ask(engine, "POST", "/api/v1/jobs/greeting", {"name": "Ada"})
        path = f"/api/v1/jobs/{answer['job_id']}/history"
        rows: list[dict[str, Any]] = []

        async def is_complete() -> bool:
            nonlocal rows
            _, rows = await ask(engine, "GET", path)
            return bool(rows) and rows[-1]["event_type"] == "job_completed"

        await until(is_complete)
        _, listed = await ask(engine, "GET", "/api/v1/jobs")
        unknown = await ask(engine, "GET", f"/api/v1/jobs/{UNKNOWN}/history")

    assert [(row["event_type"], row["state"], row["next_state"]) for row in rows] == [
        ("job_created", "start", None),
        ("state_started", "start", None),
        ("state_finished", "start", "end"),
        ("state_started", "end", None),
        ("state_finished", "end", None),
        ("job_completed", "end", None),
    ]
    assert rows[-1]["context_snapshot"]["status"] == "finished"
    assert rows[-1]["context_snapshot"]["state_history"] == {"said": "Hello, Ada"}
    assert "a-client" not in str(rows)
    assert [row["event_id"] for row in listed] == [rows[-1]["event_id"]]
    assert unknown[0] == 404


async def test_without_a_history_store_a_job_has_no_rows() -> None:  # R27
    async with started(an_engine(greeting())) as engine:
        _, answer = await ask(engine, "POST", "/api/v1/jobs/greeting", {})

        assert await ask(engine, "GET", f"/api/v1/jobs/{answer['job_id']}/history") == (200, [])
        assert await ask(engine, "GET", "/api/v1/jobs") == (200, [])


async def test_a_stop_right_after_a_job_ended_writes_its_last_row_and_webhook(
    tmp_path: Path,
) -> None:  # R66, R70
    uri = f"sqlite:{tmp_path / 'h.db'}"
    posts: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        posts.append(await request.json())
        return web.json_response({})

    receiving = an_engine()
    receiving.app.router.add_post("/hook", take)
    finished = asyncio.Event()

    async def on_job_finished(job_id: str, status: str, job: dict[str, Any]) -> None:
        finished.set()

    engine = an_engine(greeting(), HISTORY_DATABASE_URI=uri)
    engine.on_job_finished.append(on_job_finished)
    async with started(receiving):
        await engine.start()
        hook = f"http://127.0.0.1:{receiving.port}/hook"
        body = {"initial_data": {}, "webhook_url": hook, "metadata": {"ticket": 7}}
        _, answer = await ask(engine, "POST", "/api/v1/jobs/greeting", body)
        await finished.wait()
        await engine.stop()

    async with started(an_engine(greeting(), HISTORY_DATABASE_URI=uri)) as later:
        _, rows = await ask(later, "GET", f"/api/v1/jobs/{answer['job_id']}/history")
    assert rows[-1]["event_type"] == "job_completed"
    assert rows[-1]["context_snapshot"]["status"] == "finished"
    [post] = posts
    assert (post["event"], post["status"]) == ("job_finished", "finished")
    assert (post["job_id"], post["metadata"]) == (answer["job_id"], {"ticket": 7})


@pytest.mark.parametrize("uri", ["mysql://u:pw@h/db", "nothing", "sqlite:"])
def test_a_history_that_cannot_be_kept_stops_the_start(uri: str) -> None:
    with pytest.raises(StartupError, match="HISTORY_DATABASE_URI"):
        OrchestratorEngine(config=a_config(HISTORY_DATABASE_URI=uri))
