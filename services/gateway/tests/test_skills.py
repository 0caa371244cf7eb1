"""Contracts of skills: what is refused, what becomes of a violation, and what clients are shown."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from services.gateway.tests.door import Door
from typing_extensions import override

from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.mail import MemoryMailbox
from avtomatika_common.backend.memory.sockets import Sockets
from avtomatika_common.backend.memory.tables import Tables
from avtomatika_common.backend.memory.workers import MemoryWorkers
from avtomatika_common.backend.ports import LeasedTask, Places, Worker
from avtomatika_common.clock import ManualClock
from avtomatika_core.events import TaskFailed, TaskSucceeded
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_gateway.skills import (
    SkillContract,
    SkillContracts,
    check_event,
    check_params,
    check_result,
    contracts_of,
    skill_catalog,
)

REGISTER = "/_worker/workers/register"
RESULT = "/_worker/tasks/result"
W = WorkerId("w")
SCAN: dict[str, Any] = {
    "name": "scan",
    "input_schema": {"type": "object", "required": ["path"]},
    "output_schema": {"properties": {"found": {"type": "integer"}}},
    "events_schema": {"found": {"required": ["file"]}, "bare": {}},
    "output_statuses": ["success", "needs_review"],
}
RESIZE: dict[str, Any] = {
    "name": "resize",
    "input_schema": {"properties": {"width": {"maximum": 100}}},
    "output_schema": {"required": ["n"], "properties": {"n": {"type": "integer"}}},
    "output_statuses": ["success"],
}


def scan() -> SkillContract:
    return contracts_of({"supported_skills": [SCAN]})["scan"]


def test_params_keep_to_the_input_schema() -> None:
    assert check_params(scan(), {"path": "/a"}) is None
    assert check_params(scan(), {}) == '"path" is a required property'
    assert check_params(SkillContract(name="t"), "anything") is None


@pytest.mark.parametrize(
    ("status", "data", "problem"),
    [
        ("success", {"found": 1}, None),
        ("needs_review", None, None),
        ("failure", {"found": "many"}, None),
        ("cancelled", None, None),
        ("odd", {}, "status 'odd' is none of needs_review, success"),
        ("success", {"found": "many"}, 'the value is not of type "integer" - at `$.found`'),
    ],
)
def test_a_result_keeps_to_the_statuses_and_the_output_schema(
    status: str, data: object, problem: str | None
) -> None:
    assert check_result(scan(), status, data) == problem


def test_an_event_is_of_a_type_that_was_named_and_keeps_to_its_schema() -> None:
    assert check_event(scan(), "found", {"file": "a"}) is None
    assert check_event(scan(), "bare", {}) is None
    assert check_event(scan(), "found", {}) == '"file" is a required property'
    assert check_event(scan(), "odd", {}) == "event type 'odd' is none of bare, found"
    assert check_event(SkillContract(name="t"), "odd", {}) is None


def test_a_skill_that_asks_for_nothing_has_no_contract() -> None:
    assert contracts_of({"supported_skills": ["scan", {"name": "t", "version": "1"}]}) == {}
    empty: dict[str, Any] = {"input_schema": {}, "events_schema": {}, "output_statuses": []}
    assert contracts_of({"supported_skills": [{"name": "t", **empty}]}) == {}
    assert contracts_of({}) == {}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"input_schema": {"type": "objekt"}},
            "Skill 'scan': input_schema is no usable JSON Schema: \"objekt\" is not valid",
        ),
        (
            {"output_schema": {"$ref": "http://127.0.0.1:1/x"}},
            "Skill 'scan': output_schema is no usable JSON Schema: Resource",
        ),
        (
            {"events_schema": {"e": {"minimum": "x"}}},
            "Skill 'scan': events_schema.e is no usable JSON Schema",
        ),
    ],
)
async def test_a_bad_schema_is_refused_with_the_skill_and_the_error(
    door: Door, changes: dict[str, Any], text: str
) -> None:
    bad = {"worker_id": "w", "supported_skills": [{**SCAN, **changes}]}

    answer = await door.worker("POST", REGISTER, json=bad)

    assert answer.status == 400
    assert text in answer.body["error"]
    assert await door.backend.workers.get(W) is None
    await door.register("w")
    assert (await door.worker("PATCH", "/_worker/workers/w", json=bad)).status == 400


def a_result(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    ids = {"job_id": task["job_id"], "task_id": task["task_id"]}
    return {**ids, "worker_id": "w", "status": "success", "data": {"n": 1}, **changes}


async def a_held_task(door: Door) -> dict[str, Any]:
    """A task `resize` that is with worker `w`, which has a contract for it."""
    await door.job_with_task()
    await door.register("w", supported_skills=[RESIZE])
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await door.match("w")
    task: dict[str, Any] = poll.result().body
    return task


async def the_event(door: Door) -> object:
    """What the job is told next."""
    [delivery] = await door.backend.inbox.read("default", "executor", 1)
    return delivery.event


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"data": {"n": "one"}}, 'the value is not of type "integer" - at `$.n`'),
        ({"data": None}, '"n" is a required property'),
        ({"status": "odd"}, "status 'odd' is none of success"),
    ],
)
async def test_a_result_its_contract_does_not_promise_is_a_failure(
    door: Door, result: dict[str, Any], text: str
) -> None:
    task = await a_held_task(door)

    answer = await door.worker("POST", RESULT, json=a_result(task, **result))
    again = await door.worker("POST", RESULT, json=a_result(task, **result))

    assert (answer.status, answer.body) == (200, {"status": "ok"})
    assert again.body == answer.body
    event = await the_event(door)
    assert isinstance(event, TaskFailed)
    assert event.code == "CONTRACT_VIOLATION_ERROR"
    assert event.message == f"Result does not keep to the contract of skill 'resize': {text}"
    assert event.data is None


async def test_a_result_that_keeps_to_its_contract_counts_as_it_is(door: Door) -> None:
    task = await a_held_task(door)

    await door.worker("POST", RESULT, json=a_result(task))

    assert isinstance(await the_event(door), TaskSucceeded)


async def test_a_failure_need_not_keep_to_the_contract(door: Door) -> None:
    task = await a_held_task(door)

    await door.worker("POST", RESULT, json=a_result(task, status="failure", error="oom", data={}))

    event = await the_event(door)
    assert isinstance(event, TaskFailed)
    assert (event.code, event.message) == ("TRANSIENT_ERROR", "oom")


async def test_a_contract_that_a_heartbeat_brings_counts_at_once(door: Door) -> None:
    task = await a_held_task(door)
    changes = {"supported_skills": [{"name": "resize", "output_statuses": ["done"]}]}
    assert (await door.worker("PATCH", "/_worker/workers/w", json=changes)).status == 200

    await door.worker("POST", RESULT, json=a_result(task))

    event = await the_event(door)
    assert isinstance(event, TaskFailed)
    assert event.code == "CONTRACT_VIOLATION_ERROR"


class Directory(MemoryWorkers):
    """Counts how often a worker is read."""

    reads = 0

    @override
    async def get(self, worker_id: WorkerId) -> Worker | None:
        self.reads += 1
        return await super().get(worker_id)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        tables, liveness = Tables(self.clock), MemoryLiveness(lambda _: None)
        mailbox = MemoryMailbox(tables)
        sockets = Sockets(self.clock, liveness, mailbox)
        self.directory = Directory(tables, liveness, mailbox, sockets)
        self.contracts = SkillContracts(self.directory, self.clock)

    async def register(self, *skills: dict[str, Any]) -> int:
        """As through another gateway."""
        document = {"supported_skills": list(skills)}
        return (await self.directory.register(W, document, 1000.0)).incarnation


async def test_a_worker_without_contracts_is_read_once_a_minute() -> None:
    world = World()
    await world.register()

    for _ in range(100):
        assert await world.contracts.of(W) == {}
    assert world.directory.reads == 1
    world.clock.advance(61)
    await world.contracts.of(W)

    assert world.directory.reads == 2


async def test_a_registration_here_spares_the_first_look() -> None:
    world = World()
    incarnation = await world.register(SCAN)
    world.contracts.remember(W, incarnation, contracts_of({"supported_skills": [SCAN]}))

    assert set(await world.contracts.of(W, incarnation)) == {"scan"}

    assert world.directory.reads == 0


async def test_a_later_registration_elsewhere_is_looked_at() -> None:
    world = World()
    await world.register(SCAN)
    assert set(await world.contracts.of(W)) == {"scan"}

    later = await world.register(RESIZE)

    assert set(await world.contracts.of(W, later)) == {"resize"}


async def test_a_result_is_judged_by_the_contract_its_worker_has_now() -> None:
    """It registered anew elsewhere, while it had the task."""
    world = World()
    await world.register(SCAN)
    await world.contracts.of(W)
    await world.register({**SCAN, "output_statuses": ["blank"]})

    refused = await world.contracts.violated_by_result("scan", TaskId("t"), W, "blank", None)

    assert refused is None


async def test_an_expired_worker_keeps_the_contracts_that_were_known() -> None:
    world = World()
    await world.register(SCAN)
    await world.contracts.of(W)

    world.clock.advance(2000)

    assert set(await world.contracts.of(W)) == {"scan"}
    assert await world.contracts.of(WorkerId("nobody")) == {}


async def test_only_so_many_workers_are_remembered() -> None:
    world = World()
    for number in range(20_001):
        world.contracts.remember(WorkerId(f"w{number}"), 1, {})

    await world.contracts.of(WorkerId("w1"))
    assert world.directory.reads == 0
    await world.contracts.of(WorkerId("w0"))

    assert world.directory.reads == 1


async def test_params_the_worker_does_not_take_end_the_task_before_it_is_handed_out() -> None:
    world = World()
    incarnation = await world.register(SCAN)

    def a_task(**params: Any) -> LeasedTask:
        return LeasedTask(
            task_id=TaskId("t"),
            job_id=JobId("j"),
            type="scan",
            params=params,
            tracing_context={},
            params_metadata=None,
        )

    assert await world.contracts.refused_by_contract(a_task(path="/a"), W, incarnation) is None
    other = replace(a_task(), type="other")
    assert await world.contracts.refused_by_contract(other, W, incarnation) is None
    refusal = await world.contracts.refused_by_contract(a_task(), W, incarnation)

    assert refusal is not None
    assert (refusal.task_id, refusal.worker_id) == ("t", W)
    assert refusal.code == "CONTRACT_VIOLATION_ERROR"
    assert refusal.message == (
        "Params do not keep to the contract of skill 'scan': \"path\" is a required property"
    )


async def test_clients_see_what_live_workers_can_do(door: Door) -> None:
    await door.register(
        "b", worker_type="gpu", supported_skills=[{**RESIZE, "description": "smaller"}], cost=3
    )
    await door.register("a", worker_type="cpu", capabilities={"cost_per_skill": {"resize": 0.5}})
    await door.register("c", worker_type="cpu", supported_tasks=[], supported_skills=["scan"])

    answer = await door.client("GET", "/api/v1/workers/catalog")

    assert answer.status == 200
    assert answer.body == {
        "resize": {
            "contract": {**RESIZE, "description": "smaller", "base_price": 0.5},
            "providers_count": 2,
            "worker_types": ["cpu", "gpu"],
            "average_reputation": 1.0,
        },
        "scan": {
            "contract": {"name": "scan"},
            "providers_count": 1,
            "worker_types": ["cpu"],
            "average_reputation": 1.0,
        },
    }
    assert (await door.ask("GET", "/api/workers/catalog")).status == 401


def test_the_catalog_averages_reputations_and_survives_odd_documents() -> None:
    def worker(name: str, **document: Any) -> Worker:
        return Worker(
            worker_id=WorkerId(name),
            document={"supported_tasks": ["t"], **document},
            places=Places(incarnation=1, room=0, held=0, stamp=0),
            turns={},
        )

    catalog = skill_catalog(
        [worker("a", reputation=0.4), worker("b", reputation=0.5, supported_skills="nonsense")]
    )

    assert catalog == {
        "t": {
            "contract": {"name": "t"},
            "providers_count": 2,
            "worker_types": [],
            "average_reputation": 0.45,
        }
    }
    assert skill_catalog([]) == {}
