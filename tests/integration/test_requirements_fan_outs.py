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
from avtomatika_common.backend.redis import jobs as redis_jobs
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_common.backend.redis.scripts import Script
from avtomatika_core.job import JobStatus
from avtomatika_executor import advances
from tests.integration.conftest import OpenSite
from tests.integration.sites import Site, a_site, once
from tests.interop.door import Door, ignored
from tests.support import until

pytestmark = pytest.mark.integration

LARGE = 600
"""More than one script may take: laid beside the job in pieces, before the commit."""


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advances, "_BACK_OFF_SECONDS", 0.01)


def fan_out() -> StateMachineBlueprint:
    """`count` branches beside `others`; `state_history["joins"]` has what each run of the aggregator
    was given."""
    blueprint = StateMachineBlueprint("fan_out", api_version="v1", api_endpoint="/jobs/fan_out")
    attempts: Counter[str] = Counter()

    @blueprint.handler_for("start", is_start=True)
    def start(job_id: str, initial_data: dict[str, Any], actions: ActionFactory) -> None:
        attempts[job_id] += 1
        task = {"type": "resize", **initial_data.get("options", {})}
        number = attempts[job_id]
        tasks = [{**task, "params": {"attempt": number}} for _ in range(initial_data["count"])]
        tasks += initial_data.get("others", [])
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


def fan_outs() -> StateMachineBlueprint:
    """A fan-out for each of the `counts`, one after another; `state_history["joins"]` as above."""
    blueprint = StateMachineBlueprint("fan_outs", api_version="v1", api_endpoint="/jobs/fan_outs")

    @blueprint.handler_for("start", is_start=True, targets=["join"])
    def start(
        initial_data: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        count = initial_data["counts"][len(state_history.get("joins", []))]
        actions.dispatch_parallel([{"type": "resize"}] * count, aggregate_into="join")

    @blueprint.aggregator_for("join", targets=["start", "done"])
    def join(
        initial_data: dict[str, Any],
        aggregation_results: dict[str, Any],
        state_history: dict[str, Any],
        actions: ActionFactory,
    ) -> None:
        state_history.setdefault("joins", []).append(aggregation_results)
        is_last = len(state_history["joins"]) == len(initial_data["counts"])
        actions.transition_to("done" if is_last else "start")

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


# --- R3: entries of branches


async def fail() -> None:
    raise StoreUnavailable("cut off")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_branch_whose_end_could_not_be_stored_ends_later(
    open_site: OpenSite, when: str
) -> None:
    """R3."""
    site = await open_site(fan_out())
    once(site.storage.jobs, "settle_branch", **{when: fail})
    job_id = await site.door.create("fan_out", count=2)

    tasks = await do_all(site.door, 2)

    results = await joined_once(site.door, job_id)
    assert results.keys() == {task["task_id"] for task in tasks}
    await until(site.is_idle, message="something is left")
    assert site.ends == {job_id: 1}


# --- R8, R9: timers and retries


@pytest.mark.parametrize("count", [2, LARGE])
async def test_a_cancelled_branch_that_awaits_its_retry_leaves_no_timer(
    open_site: OpenSite, count: int
) -> None:
    """R8."""
    site = await open_site(fan_out(), RETRY_DELAY_SECONDS="60")
    door = site.door
    await door.register("w1")
    options = {"dispatch_timeout_seconds": 0}
    job_id = await door.create("fan_out", count=count, options=options)
    await until(lambda: is_offered(site, count), message="it is not there whole")
    await door.done(await door.task("w1"), "w1", **failure("TRANSIENT_ERROR"))

    async def has_its_timer() -> bool:
        due = await site.storage.timers.next_due(0)
        return due is not None and due > site.storage.clock.now() + 10

    await until(has_its_timer, message="the retry has no timer")
    await door.cancel(job_id)

    assert (await door.ended(job_id))["status"] == "cancelled"
    await until(site.is_idle, message="something is left")


async def test_a_branch_without_any_timeout_is_tried_again(open_site: OpenSite) -> None:
    """R9."""
    site = await open_site(fan_out())
    door = site.door
    await door.register("w1")
    options = {"dispatch_timeout_seconds": 0}
    job_id = await door.create("fan_out", count=1, options=options)

    for _ in range(2):
        await door.done(await door.task("w1"), "w1", **failure("TRANSIENT_ERROR"))
    last = await door.task("w1")
    await door.done(last, "w1", data={"n": 3})

    [(task_id, result)] = (await joined_once(door, job_id)).items()
    assert (task_id, result["data"]) == (last["task_id"], {"n": 3})
    await until(site.is_idle)


# --- R11: branches that are given out, and branches that end


async def test_results_count_while_the_rest_of_a_large_fan_out_is_given_out(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R11: it is given out in pieces; of each piece all have ended before the next one comes."""
    site = await open_site(fan_out())
    fire = site.storage.timers.fire

    async def are_settled() -> bool:
        return await site.storage.board.length() == 0 and await site.storage.inbox.length() == 0

    async def fires_behind_the_results(*args: Any, **kwargs: Any) -> int:
        await until(are_settled, message="what was given out has not ended")
        return await fire(*args, **kwargs)

    monkeypatch.setattr(site.storage.timers, "fire", fires_behind_the_results)
    job_id = await site.door.create("fan_out", count=LARGE)

    tasks = await do_all(site.door, LARGE)

    results = await joined_once(site.door, job_id)
    assert results.keys() == {task["task_id"] for task in tasks}
    assert len(results) == LARGE
    await until(site.is_idle, message="something is left")


@pytest.mark.parametrize("counts", [(2, 1), (LARGE, 2), (2, LARGE), (LARGE, LARGE)])
async def test_a_later_fan_out_has_the_results_of_its_own_branches(
    open_site: OpenSite, counts: tuple[int, int]
) -> None:
    """R11."""
    site = await open_site(fan_outs())
    job_id = await site.door.create("fan_outs", counts=counts)

    done = [await do_all(site.door, count) for count in counts]

    job = await site.door.ended(job_id)
    assert job["status"] == "finished"
    assert [set(join) for join in job["state_history"]["joins"]] == [
        {task["task_id"] for task in tasks} for tasks in done
    ]


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


async def test_a_large_fan_out_stays_whole_however_long_it_is_open(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: what was laid beside the job for a while is the job's own from its commit on."""
    monkeypatch.setattr(redis_jobs, "_STAGED_SECONDS", 1)
    site = await open_site(fan_out())
    job_id = await site.door.create("fan_out", count=LARGE)
    await until(lambda: is_offered(site, LARGE), message="it is not there whole")
    clock = site.storage.clock
    over = clock.now() + 1.1

    await until(lambda: clock.now() > over)
    tasks = await do_all(site.door, LARGE)

    results = await joined_once(site.door, job_id)
    assert results.keys() == {task["task_id"] for task in tasks}


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


@pytest.mark.parametrize("earlier", [2, LARGE])
async def test_a_fan_out_of_nothing_has_no_results_of_an_earlier_one(
    open_site: OpenSite, earlier: int
) -> None:
    """R13."""
    site = await open_site(fan_outs())
    job_id = await site.door.create("fan_outs", counts=[earlier, 0])

    await do_all(site.door, earlier)

    job = await site.door.ended(job_id)
    assert job["status"] == "finished"
    assert [len(join) for join in job["state_history"]["joins"]] == [earlier, 0]


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


async def test_a_branch_of_a_lost_worker_is_tried_again_by_another(open_site: OpenSite) -> None:
    """R14."""
    site = await open_site(
        fan_out(), JOB_MAX_RETRIES="1", WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.3"
    )
    door = site.door
    await door.register("killed")
    job_id = await door.create("fan_out", count=2)
    lost = await door.task("killed")
    await door.register("w1")

    tasks: list[dict[str, Any]] = []

    async def has_both() -> bool:
        answer = await door.poll("w1")
        tasks.extend([answer.json] if answer.status == 200 else [])
        return len(tasks) == 2

    await until(has_both, message="the lost worker's branch did not come")
    for task in tasks:
        await door.done(task, "w1")

    results = await joined_once(door, job_id)
    assert {task["task_id"] for task in tasks} == results.keys()
    assert lost["task_id"] not in results
    assert {result["status"] for result in results.values()} == {"success"}


@pytest.mark.parametrize("count", [2, LARGE])
async def test_a_branch_that_nobody_takes_in_time_costs_no_other(
    open_site: OpenSite, count: int
) -> None:
    """R14: its dispatch timeout is its own."""
    site = await open_site(fan_out(), JOB_MAX_RETRIES="1")
    other = {"type": "crop", "dispatch_timeout_seconds": 0.3}
    job_id = await site.door.create("fan_out", count=count, others=[other])

    tasks = await do_all(site.door, count)

    results = await joined_once(site.door, job_id)
    for task in tasks:
        assert results.pop(task["task_id"])["status"] == "success"
    [result] = results.values()
    assert (result["status"], result["error"]["code"]) == ("failure", "TIMEOUT_ERROR")
    assert result["error"]["message"].startswith("No worker took the task within 0.3 seconds")


@pytest.mark.parametrize("count", [2, LARGE])
async def test_a_branch_whose_result_is_late_costs_no_other(
    open_site: OpenSite, count: int
) -> None:
    """R14: its result timeout is its own."""
    site = await open_site(fan_out(), JOB_MAX_RETRIES="0")
    await site.door.register("hangs", "crop")
    other = {"type": "crop", "result_timeout_seconds": 0.3}
    job_id = await site.door.create("fan_out", count=count, others=[other])
    hung = await site.door.task("hangs")

    tasks = await do_all(site.door, count)

    results = await joined_once(site.door, job_id)
    error = results.pop(hung["task_id"])["error"]
    assert (error["code"], error["message"]) == ("TIMEOUT_ERROR", "Worker task timed out.")
    assert results.keys() == {task["task_id"] for task in tasks}
    assert {result["status"] for result in results.values()} == {"success"}


async def test_each_attempt_of_a_branch_has_its_dispatch_timeout(open_site: OpenSite) -> None:
    """R14."""
    site = await open_site(fan_out(), JOB_MAX_RETRIES="1")
    door = site.door
    await door.register("leaves")
    options = {"dispatch_timeout_seconds": 1}
    job_id = await door.create("fan_out", count=1, options=options)
    first = await door.task("leaves")
    await door.register("leaves", "crop")

    await door.done(first, "leaves", **failure("TRANSIENT_ERROR"))

    [(task_id, result)] = (await joined_once(door, job_id)).items()
    assert task_id != first["task_id"]
    assert result["error"]["message"].startswith("No worker took the task within 1 seconds")


async def test_branches_have_retries_of_their_own_and_a_failed_one_stops_no_other(
    open_site: OpenSite,
) -> None:
    """R14: the first to end has failed for good."""
    site = await open_site(fan_out(), JOB_MAX_RETRIES="1")
    door = site.door
    await door.register("crops", "crop")
    await door.register("resizes")
    once_only = {"type": "crop", "retry": {"attempts": 1}}
    job_id = await door.create("fan_out", count=1, others=[once_only])

    crop = await door.task("crops")
    await door.done(crop, "crops", **failure("TRANSIENT_ERROR"))
    await until(lambda: is_counted(door, crop), message="the failed branch is not counted")
    resizes = [await door.task("resizes")]
    await door.done(resizes[0], "resizes", **failure("TRANSIENT_ERROR"))
    resizes.append(await door.task("resizes"))
    await door.done(resizes[1], "resizes")

    results = await joined_once(door, job_id)
    assert {task_id: result["status"] for task_id, result in results.items()} == {
        crop["task_id"]: "failure",
        resizes[1]["task_id"]: "success",
    }
    assert len(site.leases) == 3


async def is_counted(door: Door, task: dict[str, Any]) -> bool:
    document = await door.document(task["job_id"])
    return task["task_id"] in document.get("aggregation_results", {})
