"""What a worker says of the contracts of its tasks: nothing, unless its author asks for it."""

from dataclasses import dataclass
from typing import Any

import msgspec

from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from avtomatika_worker.testing import orchestrated
from rxon import Skill, WorkerRegistration
from tests.support import until


@dataclass
class Size:
    width: int


@dataclass
class Odd:
    path: complex


async def registration_of(worker: Worker) -> WorkerRegistration:
    async with orchestrated(worker) as orchestrator:
        await until(lambda: orchestrator.registered)
    return orchestrator.registered[0]


def a_worker(*, announce_contracts: bool) -> Worker:
    worker = Worker(
        config=WorkerConfig({"WORKER_ID": "w", "WORKER_TOKEN": "s"}),
        announce_contracts=announce_contracts,
    )

    @worker.task(
        "resize", description="Makes it smaller.", output_statuses=["success", "too_small"]
    )
    def resize(params: Size) -> None: ...

    @worker.task("odd")
    def odd(params: Odd) -> None: ...

    @worker.task("plain")
    def plain(params: dict[str, Any]) -> None: ...

    assert (resize, odd, plain) != ()
    return worker


async def test_contracts_are_announced_where_the_author_asks() -> None:
    registration = await registration_of(a_worker(announce_contracts=True))

    assert registration.supported_skills == (
        Skill(
            name="resize",
            description="Makes it smaller.",
            input_schema=msgspec.json.schema(Size),
            output_statuses=("success", "too_small"),
        ),
        Skill(name="odd"),  # JSON Schema has no word for its params
        Skill(name="plain"),
    )
    assert registration.supported_tasks == ("resize", "odd", "plain")


async def test_otherwise_the_registration_is_the_plain_one() -> None:
    registration = await registration_of(a_worker(announce_contracts=False))

    assert registration.supported_skills is msgspec.UNSET


async def test_costs_are_announced() -> None:
    """R45."""
    config = WorkerConfig({"WORKER_ID": "w", "COST_PER_SKILL": '{"resize": 0.5}'})
    config.COST_PER_SECOND = 0.25

    registration = await registration_of(Worker(config=config))

    assert registration.capabilities.cost_per_skill == {"resize": 0.5}
    assert registration.cost_per_second == 0.25
