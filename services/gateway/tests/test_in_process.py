"""Workers in the gateway's own process get what workers over HTTP get, and no other refusals."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from services.gateway.tests.door import UNKNOWN, WORKER, Door, an_entry, open_door

import rxon
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import StoreOptions, StoreUnavailable
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import running
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_gateway.service import GatewayService
from avtomatika_gateway.settings import Settings
from rxon import (
    Heartbeat,
    ProgressUpdatePayload,
    RxonAuthError,
    RxonNetworkError,
    Skill,
    Task,
    TaskResult,
    Transport,
    WorkerCommand,
    WorkerEvent,
    WorkerRegistration,
)
from rxon.exceptions import RequestRefused
from tests.support import until

W = WorkerId("w")
REGISTRATION = WorkerRegistration(
    worker_id="w", supported_tasks=("resize",), supported_skills=(Skill(name="resize"),)
)


def a_result(task: Any = None, **changes: Any) -> TaskResult:
    ids = {"job_id": UNKNOWN, "task_id": "t"}
    if task is not None:
        ids = {"job_id": task.job_id, "task_id": task.task_id}
    fields: dict[str, Any] = {**ids, "worker_id": "w", "status": "success", **changes}
    return TaskResult(**fields)


def an_event(task: Any = None, **changes: Any) -> WorkerEvent:
    about = {} if task is None else {"target_job_id": task.job_id, "target_task_id": task.task_id}
    sender = {"worker_id": "w", "origin_worker_id": "w"}
    fields: dict[str, Any] = {"event_id": "e", "event_type": "found", **sender, **about, **changes}
    return WorkerEvent(**fields)


def progress_of(task: Any, **fields: Any) -> ProgressUpdatePayload:
    return ProgressUpdatePayload(task_id=task.task_id, job_id=task.job_id, **fields)


@asynccontextmanager
async def over_http(door: Door) -> AsyncGenerator[Transport, None]:
    transport = rxon.create_transport(door.url, "w", WORKER["X-Worker-Token"], session=door.http)
    await transport.connect()
    yield transport
    await transport.close()


async def a_task(door: Door, transport: Transport) -> Task:
    """A task in the hands of the worker, which is registered for it."""
    await transport.register(REGISTRATION)
    await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        polling = tasks.create_task(transport.poll_tasks(5, 1))
        await door.match("w")
    [task] = polling.result()
    return task


async def has_board(door: Door, count: int) -> None:
    async def has_them() -> bool:
        return await door.tasks_on_board() == count

    await until(has_them, message=f"not {count} tasks on the board")


@asynccontextmanager
async def listening(transport: Transport) -> AsyncGenerator[list[WorkerCommand | None], None]:
    """What the worker is told meanwhile; None: there will be no more."""
    heard: list[WorkerCommand | None] = []

    async def listen() -> None:
        async for command in transport.listen_for_commands():
            heard.append(command)  # noqa: PERF401 - it never ends by itself
        heard.append(None)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(listen())
        yield heard
        task.cancel()


async def is_heard(door: Door, task_id: str = "t") -> bool:
    """Whether a command about this task goes to a live socket of the worker."""
    return await door.backend.workers.stop_task(W, TaskId(task_id), JobId(UNKNOWN))


# -- what a worker does


async def test_a_worker_is_the_same_whichever_way_it_came(door: Door) -> None:
    documents: list[Any] = []
    async with over_http(door) as http:
        for transport in (http, door.service.transport("w")):
            await transport.register(REGISTRATION)
            await transport.send_heartbeat(
                Heartbeat(worker_id="w", status="busy", load=2.0, hot_cache=("m",), hot_skills=None)
            )
            worker = await door.backend.workers.get(W)
            assert worker is not None
            documents.append(worker.document)

    assert documents[0] == documents[1]
    assert documents[1]["status"] == "busy"
    assert documents[1]["resources"]["gpu_info"] is None


async def test_a_task_is_polled_and_its_result_applied(door: Door) -> None:
    transport = door.service.transport("w")
    await transport.register(REGISTRATION)
    job = await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        polling = tasks.create_task(transport.poll_task(5))
        await door.match("w")
    task = polling.result()
    assert task is not None

    answers = [await transport.send_result(a_result(task, data={"n": 1})) for _ in range(2)]
    moved = await door.handler_returns(None)

    assert type(task) is rxon.TaskPayload
    assert (task.job_id, task.params) == (job.id, {"width": 10})
    assert [answer.status for answer in answers] == ["ok", "ok"]
    assert moved.data.state_history == {"n": 1}


async def test_several_results_bring_the_next_tasks(door: Door) -> None:
    transport = door.service.transport("w")
    first = await a_task(door, transport)
    await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(
            transport.send_results([a_result(first), a_result(job_id="none")], most=3)
        )
        await door.match("w")
    answer = sending.result()

    assert [(one.status, one.error) for one in answer.answers] == [
        ("ok", None),
        (None, "Job not found"),
    ]
    assert [(task.type, task.attempt) for task in answer.tasks] == [("resize", 1)]


async def test_results_without_a_wish_bring_no_task(door: Door) -> None:
    transport = door.service.transport("w")
    task = await a_task(door, transport)
    await door.job_with_task()

    answer = await transport.send_results([a_result(task)])

    assert [one.status for one in answer.answers] == ["ok"]
    assert answer.tasks == ()


async def test_a_poll_waits_no_longer_than_it_is_asked_to(door: Door) -> None:
    transport = door.service.transport("w")
    await transport.register(REGISTRATION)

    async with asyncio.timeout(5):  # the gateway holds polls for 20 s
        assert await transport.poll_task(0.01) is None
        assert await transport.poll_tasks(0.01, 5) == ()


@pytest.mark.parametrize("turns", range(8))
async def test_a_poll_that_is_given_up_loses_no_task(door: Door, turns: int) -> None:
    """R5."""
    transport = door.service.transport("w")
    await transport.register(REGISTRATION)
    await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        polling = tasks.create_task(transport.poll_tasks(5, 1))
        await door.match("w")
        for _ in range(turns):
            await asyncio.sleep(0)  # a turn of the loop: the match is on its way, or has come

        polling.cancel()

    taken = 0 if polling.cancelled() else len(polling.result())
    await has_board(door, 1 - taken)


async def test_a_task_that_was_handed_over_is_certain(door: Door) -> None:
    await a_task(door, door.service.transport("w"))

    await until(door.is_certain)
    assert await door.tasks_on_board() == 0


async def test_progress_is_shown_and_its_answer_names_tasks_to_stop(door: Door) -> None:
    transport = door.service.transport("w")
    task = await a_task(door, transport)
    other = await a_task_more(door, transport)
    await door.client("POST", f"/api/jobs/{other.job_id}/cancel")
    await stopped(door, other)

    answer = await transport.send_progress(
        progress_of(task, progress=0.5, message="half", checkpoint={"page": 1})
    )
    shown = (await door.client("GET", f"/api/jobs/{task.job_id}")).body

    assert (answer.status, answer.cancel_task_ids) == ("ok", (other.task_id,))
    assert (shown["progress"], shown["progress_message"]) == (0.5, "half")


async def a_task_more(door: Door, transport: Transport) -> Task:
    await door.job_with_task()
    async with asyncio.TaskGroup() as tasks:
        polling = tasks.create_task(transport.poll_tasks(5, 1))
        await door.match("w")
    [task] = polling.result()
    return task


async def stopped(door: Door, task: Task) -> None:
    async def is_to_stop() -> bool:
        return task.task_id in await door.backend.workers.to_stop(W)

    await until(is_to_stop)


async def test_a_heartbeat_names_tasks_to_stop(door: Door) -> None:
    """R40."""
    transport = door.service.transport("w")
    task = await a_task(door, transport)
    await door.client("POST", f"/api/jobs/{task.job_id}/cancel")
    await stopped(door, task)

    answer = await transport.send_heartbeat(Heartbeat(worker_id="w", current_tasks=(task.task_id,)))

    assert answer.cancel_task_ids == (task.task_id,)


async def test_an_event_is_accepted(door: Door) -> None:
    transport = door.service.transport("w")
    task = await a_task(door, transport)

    answer = await transport.send_event(an_event(task, payload={"n": 1}))

    assert answer.status == "event_accepted"


async def test_who_leaves_gives_its_tasks_back(door: Door) -> None:
    transport = door.service.transport("w")
    task = await a_task(door, transport)

    await transport.leave()
    await door.backend.relay.return_lost()

    await has_board(door, 1)
    assert (await door.backend.board.heads(0, 1))[0].task_id == task.task_id
    assert await door.backend.workers.count() == 0


async def test_nothing_that_was_sent_can_be_changed_afterwards(door: Door) -> None:
    """R63."""
    transport = door.service.transport("w")
    task = await a_task(door, transport)
    data: dict[str, object] = {"list": [1], "pair": (1, 2)}
    software = {"python": "3"}

    await transport.send_result(a_result(task, data=data))
    await transport.register(WorkerRegistration(worker_id="w", installed_software=software))
    data["list"] = software["python"] = "changed"
    job, worker = await door.handler_returns(None), await door.backend.workers.get(W)

    assert job.data.state_history == {"list": [1], "pair": [1, 2]}
    assert worker is not None
    assert worker.document["installed_software"] == {"python": "3"}


async def test_what_is_not_json_is_the_senders_own_mistake(door: Door) -> None:
    transport = door.service.transport("w")
    task = await a_task(door, transport)

    for data in ({"n": object()}, {1: "a number as key"}):
        with pytest.raises(TypeError):
            await transport.send_result(a_result(task, data=data))

    assert (await transport.send_result(a_result(task))).status == "ok"


# -- refusals

Call = Callable[[Transport], Awaitable[object]]


def deep(levels: int) -> dict[str, object]:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return {"deep": value}


REFUSALS: dict[str, Call] = {
    "a poll of nobody": lambda worker: worker.poll_task(1),
    "a poll for several of nobody": lambda worker: worker.poll_tasks(1, 3),
    "a poll for none": lambda worker: worker.poll_tasks(1, 0),
    "a heartbeat of nobody": lambda worker: worker.send_heartbeat(Heartbeat(worker_id="w")),
    "nobody leaves": lambda worker: worker.leave(),
    "a bad skill": lambda worker: worker.register(
        WorkerRegistration(
            worker_id="w", supported_skills=(Skill(name="s", input_schema={"type": 5}),)
        )
    ),
    "a registration of the wrong types": lambda worker: worker.register(
        WorkerRegistration(worker_id="w", installed_software=5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ),
    "a result of an unknown job": lambda worker: worker.send_result(a_result()),
    "a result of no job": lambda worker: worker.send_result(a_result(job_id="x")),
    "a result of nothing": lambda worker: worker.send_result(a_result(task_id="")),
    "a result of another": lambda worker: worker.send_result(a_result(worker_id="other")),
    "a result that is no object": lambda worker: worker.send_result(a_result(data=[1])),
    "a result too deep": lambda worker: worker.send_result(a_result(data=deep(240))),
    "a result too large": lambda worker: worker.send_result(a_result(data={"x": "y" * 2000})),
    "results too large": lambda worker: worker.send_results([a_result()] * 20),
    "progress of an unknown job": lambda worker: worker.send_progress(
        ProgressUpdatePayload(task_id="t", job_id=UNKNOWN)
    ),
    "progress that is no number": lambda worker: worker.send_progress(
        ProgressUpdatePayload(task_id="t", job_id=UNKNOWN, progress="half")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ),
    "an event about nothing": lambda worker: worker.send_event(an_event()),
    "an event of an unknown job": lambda worker: worker.send_event(
        an_event(target_job_id=UNKNOWN, target_task_id="t")
    ),
    "an event of another": lambda worker: worker.send_event(an_event(worker_id="other")),
    "an event without a type": lambda worker: worker.send_event(an_event(event_type="")),
}


@pytest.mark.parametrize("call", REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_call_is_refused_as_over_http(call: Call) -> None:
    async with open_door(MAX_REQUEST_BODY_BYTES="1500") as door, over_http(door) as http:
        refusals: list[RequestRefused] = []
        for transport in (http, door.service.transport("w")):
            with pytest.raises(RequestRefused) as refused:
                await call(transport)
            refusals.append(refused.value)

    over_the_wire, in_process = refusals
    assert in_process.details == over_the_wire.details
    assert in_process.message in over_the_wire.message
    assert 400 <= in_process.status < 500


async def test_another_worker_cannot_register_over_the_line(door: Door) -> None:
    transport = door.service.transport("w")

    with pytest.raises(RequestRefused, match=r"403 .*'w' cannot register another worker 'v'") as no:
        await transport.register(WorkerRegistration(worker_id="v"))

    assert no.value.status == 403
    assert await door.backend.workers.count() == 0


def test_what_is_no_identifier_gets_no_transport() -> None:
    gateway = GatewayService(Settings.from_config(Config({})), MemoryStorage())

    with pytest.raises(ValueError, match=r"^Invalid worker_id: 'a b'\. Must be"):
        gateway.transport("a b")


async def test_a_store_that_does_not_answer_asks_to_come_again(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> bool:
        raise StoreUnavailable("timeout")

    monkeypatch.setattr(door.backend.workers, "leave", away)

    with pytest.raises(RequestRefused) as refused:
        await door.service.transport("w").leave()

    assert (refused.value.status, refused.value.retry_after) == (503, 1)


async def test_a_fault_of_ours_is_logged_and_not_told(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> bool:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(door.backend.workers, "leave", broken)

    with pytest.raises(RequestRefused) as refused:
        await door.service.transport("w").leave()

    assert refused.value.details == {"status": 500, "body": '{"error":"Internal server error"}'}
    assert "a secret" not in str(refused.value)
    assert [line.message for line in caplog.records if line.exc_info] == ["unexpected fault"]


async def test_there_are_no_access_tokens(door: Door) -> None:
    with pytest.raises(RxonAuthError):
        await door.service.transport("w").refresh_token()


# -- commands


async def test_a_command_comes_at_once(door: Door) -> None:
    """R40."""
    transport = door.service.transport("w")
    task = await a_task(door, transport)
    async with listening(transport) as heard:
        await until(lambda: is_heard(door))
        heard.clear()

        await door.client("POST", f"/api/jobs/{task.job_id}/cancel")
        await until(lambda: heard)

    assert heard == [WorkerCommand(command="cancel_task", task_id=task.task_id, job_id=task.job_id)]


async def test_the_newest_listener_is_the_one_that_hears(door: Door) -> None:
    """R39."""
    first, second = door.service.transport("w"), door.service.transport("w")
    await first.register(REGISTRATION)
    async with listening(first) as heard_first:
        await until(lambda: is_heard(door))
        async with over_http(door) as http, listening(http) as heard_over_http:
            await until(lambda: None in heard_first)
            async with listening(second) as heard_second:
                await until(lambda: None in heard_over_http)
                heard_second.clear()
                assert await is_heard(door, "another")
                await until(lambda: heard_second)

    assert heard_first[-1] is None
    assert None not in heard_second


async def test_who_listens_no_more_is_told_nothing(door: Door) -> None:
    transport = door.service.transport("w")
    await transport.register(REGISTRATION)
    async with listening(transport):
        await until(lambda: is_heard(door))

    async def is_silent() -> bool:
        return not await is_heard(door)

    await until(is_silent)


async def test_a_closed_transport_listens_no_more(door: Door) -> None:
    transport = door.service.transport("w")
    await transport.register(REGISTRATION)
    async with listening(transport) as heard:
        await until(lambda: is_heard(door))

        await transport.close()

        await until(lambda: None in heard)


# -- while the gateway does not run


class Site(NamedTuple):
    backend: MemoryStorage
    gateway: GatewayService


@asynccontextmanager
async def a_gateway() -> AsyncGenerator[Site, None]:
    """One that does not run yet."""
    environ = {"API_HOST": "127.0.0.1", "API_PORT": "0"}
    backend = MemoryStorage()
    await backend.open(StoreOptions(block_seconds=0.05))
    await backend.catalogue.publish([an_entry()])
    yield Site(backend, GatewayService(Settings.from_config(Config(environ)), backend))
    await backend.close()


async def test_a_transport_works_while_the_gateway_runs() -> None:
    async with a_gateway() as (_, gateway):
        transport = gateway.transport("w")
        with pytest.raises(RxonNetworkError, match="does not run"):
            await transport.register(REGISTRATION)
        async with running(gateway):
            await transport.register(REGISTRATION)
        with pytest.raises(RxonNetworkError, match="does not run"):
            await transport.poll_task(1)
        with pytest.raises(RxonNetworkError, match="does not run"):
            async for _ in transport.listen_for_commands():
                pass


async def test_a_stop_ends_polls_and_listeners_at_once() -> None:
    async with a_gateway() as (backend, gateway), asyncio.TaskGroup() as tasks:
        transport = gateway.transport("w")

        async def listen() -> None:
            async for _ in transport.listen_for_commands():
                pass

        async def has_both() -> bool:
            worker = await backend.workers.get(W)
            is_told = await backend.workers.stop_task(W, TaskId("t"), JobId(UNKNOWN))
            return worker is not None and worker.places.room == 1 and is_told

        async with asyncio.timeout(5):  # a poll is held for 30 s
            async with running(gateway):
                await transport.register(REGISTRATION)
                polling = tasks.create_task(transport.poll_tasks(60, 1))
                listens = tasks.create_task(listen())
                await until(has_both)
            await listens

        assert await polling == ()


async def test_a_worker_that_stops_with_the_application_is_heard() -> None:
    async with a_gateway() as (backend, gateway):
        transport = gateway.transport("w")

        async def sign_off(_: object) -> None:
            await transport.leave()

        gateway.app.on_cleanup.append(sign_off)
        async with running(gateway):
            await transport.register(REGISTRATION)
            before = await backend.workers.count()

        assert (before, await backend.workers.count()) == (1, 0)


async def test_a_worker_in_another_event_loop_is_told_so(door: Door) -> None:
    transport = door.service.transport("w")

    def elsewhere() -> None:
        asyncio.run(transport.leave())

    with pytest.raises(RuntimeError, match="has to run in its engine's event loop"):
        await asyncio.to_thread(elsewhere)
