"""The requirements about fan-outs, each from both sides of a whole orchestrator's door."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from avtomatika import RedisStorage, StateMachineBlueprint
from avtomatika.context import ActionFactory
from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.scripts import Script
from avtomatika_core.job import JobStatus
from avtomatika_executor import advances
from tests.integration.conftest import OpenSite
from tests.integration.sites import Site, a_site
from tests.interop.door import Door, ignored
from tests.support import until

pytestmark = pytest.mark.integration

LARGE = 600
"""More than one script may take: laid beside the job in pieces, before the commit."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advances, "_BACK_OFF_SECONDS", 0.01)


def fan_out() -> StateMachineBlueprint:
    """`count` branches; `state_history["joins"]` has what each run of the aggregator was given."""
    blueprint = StateMachineBlueprint("fan_out", api_version="v1", api_endpoint="/jobs/fan_out")
    attempts: Counter[str] = Counter()

    @blueprint.handler_for("start", is_start=True)
    def start(job_id: str, initial_data: dict[str, Any], actions: ActionFactory) -> None:
        attempts[job_id] += 1
        task = {"type": "resize", **initial_data.get("options", {})}
        number = attempts[job_id]
        tasks = [{**task, "params": {"attempt": number}} for _ in range(initial_data["count"])]
        actions.dispatch_parallel(tasks, aggregate_into="join")
        if number <= initial_data.get("raises", 0):
            raise OSError("after all")

    @blueprint.aggregator_for("join")
    def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history.setdefault("joins", []).append(aggregation_results)
        actions.transition_to("done")

    @blueprint.handler_for("done", is_end=True)
    def done() -> None:
        pass

    return blueprint


async def do_all(door: Door, count: int) -> list[dict[str, Any]]:
    """A worker of its own does so many tasks; there are no others."""
    await door.register("w1", resources={"max_concurrent_tasks": 1000})
    tasks: list[dict[str, Any]] = []
    while len(tasks) < count:
        some = await door.tasks("w1", 100)
        await asyncio.gather(*(door.done(task, "w1") for task in some))
        tasks += some
    return tasks


async def joined_once(door: Door, job_id: str) -> dict[str, Any]:
    job = await door.ended(job_id)
    assert job["status"] == "finished"
    [results] = job["state_history"]["joins"]
    found: dict[str, Any] = results
    return found


# --- R12: whole or not at all


@pytest.mark.parametrize("count", [8, LARGE])
@pytest.mark.parametrize("happened", [True, False])
async def test_a_fan_out_whose_commit_fails_is_there_whole_or_not_at_all(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch, count: int, *, happened: bool
) -> None:
    """R12."""
    site = await open_site(fan_out())
    commit = site.storage.jobs.commit
    boards: list[int] = []

    async def fails_once(stored: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        if boards or step.job.status is not JobStatus.WAITING_FOR_PARALLEL_TASKS:
            return await commit(stored, step, *args, **kwargs)
        if happened:
            await commit(stored, step, *args, **kwargs)
            await until(lambda: is_offered(site, count), message="it is not there whole")
        boards.append(await site.storage.board.length())
        raise StoreUnavailable("cut off")

    monkeypatch.setattr(site.storage.jobs, "commit", fails_once)
    job_id = await site.door.create("fan_out", count=count)
    await until(lambda: is_offered(site, count), message="it is not there whole")

    tasks = await do_all(site.door, count)

    assert boards == [count if happened else 0]
    assert (await joined_once(site.door, job_id)).keys() == {task["task_id"] for task in tasks}
    assert await site.storage.board.length() == 0


async def is_offered(site: Site, count: int) -> bool:
    return await site.storage.board.length() == count


async def test_a_store_that_fails_in_the_middle_of_a_large_fan_out_leaves_none_of_it(
    one_redis: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: in Redis it is laid out in pieces; in memory it is one."""
    call = Commands.script
    pieces = 0

    def fails_in_the_middle(
        self: Commands, script: Script, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        nonlocal pieces
        pieces += script.name == "stage_branches"
        if script.name != "stage_branches" or pieces != 2:
            return call(self, script, *args, **kwargs)
        cut: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        cut.set_exception(StoreUnavailable("cut off"))
        return cut

    monkeypatch.setattr(Commands, "script", fails_in_the_middle)
    async with (
        Redis.from_url(one_redis()) as client,
        a_site(RedisStorage(client), [fan_out()]) as site,
    ):
        job_id = await site.door.create("fan_out", count=LARGE)
        await until(lambda: is_offered(site, LARGE), message="it is not there whole")

        tasks = await do_all(site.door, LARGE)

        results = await joined_once(site.door, job_id)
        assert pieces == 2 + 3  # one and the one that failed, then all three
        assert results.keys() == {task["task_id"] for task in tasks}
        assert await site.storage.board.length() == 0


async def test_of_a_step_that_is_repeated_no_earlier_branch_is_alive(open_site: OpenSite) -> None:
    """R12."""
    site = await open_site(fan_out())
    job_id = await site.door.create("fan_out", count=8, raises=2)
    await until(lambda: is_offered(site, 8), message="it is not there whole")

    tasks = await do_all(site.door, 8)

    results = await joined_once(site.door, job_id)
    assert {task["params"]["attempt"] for task in tasks} == {3}
    assert results.keys() == {task["task_id"] for task in tasks}
    assert await site.storage.board.length() == 0


# --- R13: nothing to do


async def test_a_fan_out_of_nothing_goes_to_its_aggregator_at_once(open_site: OpenSite) -> None:
    """R13."""
    site = await open_site(fan_out())

    job = await site.door.ended(await site.door.create("fan_out", count=0))

    assert job["state_history"] == {"joins": [{}]}
    assert (job["status"], job["current_state"]) == ("finished", "done")
    assert job["finished_at"] - job["created_at"] < 1


# --- R14: each branch for itself


async def test_a_worker_that_hangs_costs_its_branch_and_no_other(open_site: OpenSite) -> None:
    """R14."""
    site = await open_site(fan_out(), JOB_MAX_RETRIES="1")
    door = site.door
    for name in ("hangs", "w1", "w2"):
        await door.register(name, resources={"max_concurrent_tasks": 1})
    hung: list[str] = []

    async def hang() -> None:
        while True:
            answer = await door.poll("hangs")
            if answer.status == 200:
                hung.append(answer.json["task_id"])

    job_id = await door.create("fan_out", count=3, options={"result_timeout_seconds": 0.5})
    async with asyncio.TaskGroup() as tasks:
        hangs = tasks.create_task(hang())
        await until(lambda: hung)
        good = [await door.task(name) for name in ("w1", "w2")]
        await door.done(good[0], "w1", data={"n": 1})
        await door.done(good[1], "w2", **failure("TRANSIENT_ERROR"))
        again = await door.task("w1")
        await door.done(again, "w1", data={"n": 2})
        results = await joined_once(door, job_id)
        hangs.cancel()

    ends = {
        task_id: (r["data"], r["error"] and r["error"]["code"]) for task_id, r in results.items()
    }
    assert len(ends) == 3
    assert ends.pop(good[0]["task_id"]) == ({"n": 1}, None)
    assert ends.pop(again["task_id"]) == ({"n": 2}, None)
    assert [*ends.items()] == [(hung[-1], ({}, "TIMEOUT_ERROR"))]
    assert len(hung) == 2  # it had both attempts of its branch
    assert ignored(await door.done({"job_id": job_id, "task_id": hung[0]}, "hangs"))


def failure(code: str) -> dict[str, Any]:
    return {"status": "failure", "error": {"code": code, "message": "oh"}}


async def test_a_branch_that_is_lost_with_its_worker_reaches_the_aggregator_as_a_failure(
    open_site: OpenSite,
) -> None:
    """R14."""
    site = await open_site(
        fan_out(), JOB_MAX_RETRIES="0", WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.3"
    )
    door = site.door
    await door.register("killed")
    job_id = await door.create("fan_out", count=2)
    lost = await door.task("killed")
    await door.register("w1")
    await door.done(await door.task("w1"), "w1", data={"n": 1})

    results = await joined_once(door, job_id)

    assert sorted(r["status"] for r in results.values()) == ["failure", "success"]
    assert results[lost["task_id"]]["error"]["code"] == "TRANSIENT_ERROR"
    assert "'killed' was lost" in results[lost["task_id"]]["error"]["message"]
