"""The requirements about how jobs and their sub-jobs end, each on a whole orchestrator."""

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from avtomatika.config import Config
from avtomatika.context import ActionFactory
from avtomatika_core.job import JobId, JobStatus
from avtomatika_executor import Settings
from tests.integration.blueprints import a_blueprint, dispatch, go_to, run
from tests.integration.conftest import OpenSite
from tests.integration.hooks import Hooks
from tests.integration.sites import Site
from tests.interop.door import CLIENT_TOKEN, Door
from tests.support import until

pytestmark = pytest.mark.integration

LEADS = {"success": "well", "failure": "badly", "cancelled": "stopped"}
OUTCOME = {"finished": "well", "failed": "badly", "quarantined": "badly", "cancelled": "stopped"}


# --- every way to end


def sends(status: str, code: str | None = None, attempts: int = 1) -> "Happens":
    """A worker has so many attempts, each with this result."""

    async def happens(door: Door, _job_id: str) -> None:
        error = None if code is None else {"code": code, "message": "oh"}
        for _ in range(attempts):
            await door.done(await door.task("w1"), "w1", status=status, error=error)

    return happens


async def is_cancelled(door: Door, job_id: str) -> None:
    await door.cancel(job_id)


async def is_late(door: Door, _job_id: str) -> None:
    await door.task("w1")


async def nothing(_door: Door, _job_id: str) -> None:
    """It comes to its end by itself."""


Happens = Callable[[Door, str], Awaitable[None]]


class Way(NamedTuple):
    handler: Callable[..., object]
    happens: Happens
    status: str


def breaks_down() -> None:
    raise OSError("no luck")


def forgets_to_act() -> None:
    pass


def needs_what_nobody_has(thingamajig: str) -> None:
    raise AssertionError("it is not called")


def asks(actions: ActionFactory) -> None:
    actions.await_human_approval("mail", "?", {"yes": "end"}, timeout_seconds=0.1)


A_TASK = dispatch({"success": "end"})
IMPATIENT = dispatch({"success": "end"}, dispatch_timeout_seconds=0.2)
HURRIED = dispatch({"success": "end"}, result_timeout_seconds=0.2, retry={"attempts": 1})
WAYS = {
    "success": Way(A_TASK, sends("success"), "finished"),
    "a permanent error": Way(A_TASK, sends("failure", "PERMANENT_ERROR"), "quarantined"),
    "invalid input": Way(A_TASK, sends("failure", "INVALID_INPUT_ERROR"), "failed"),
    "an unhandled status": Way(A_TASK, sends("odd"), "failed"),
    "exhausted retries": Way(A_TASK, sends("failure", "TRANSIENT_ERROR", 2), "quarantined"),
    "a worker that stopped": Way(A_TASK, sends("cancelled"), "cancelled"),
    "a cancel": Way(A_TASK, is_cancelled, "cancelled"),
    "no worker in time": Way(IMPATIENT, nothing, "failed"),
    "no result in time": Way(HURRIED, is_late, "quarantined"),
    "no decision in time": Way(asks, nothing, "failed"),
    "a handler that breaks down": Way(breaks_down, nothing, "quarantined"),
    "a handler that cannot be called": Way(needs_what_nobody_has, nothing, "quarantined"),
    "a handler without an action": Way(forgets_to_act, nothing, "failed"),
    "a loop": Way(go_to("start"), nothing, "failed"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_however_a_job_ends_everybody_is_told_and_its_parent_goes_on(
    open_site: OpenSite, hooks: Hooks, tmp_path: Path, way: Way
) -> None:
    """R17: history, webhook, counters, callback, parent."""
    site = await open_site(
        a_blueprint("child", ends=("end",), start=way.handler),
        a_blueprint("parent", ends=tuple(LEADS.values()), start=run("child", LEADS)),
        HISTORY_DATABASE_URI=f"sqlite:{tmp_path / 'history.db'}",
        JOB_MAX_RETRIES="1",
        MAX_TRANSITIONS_PER_JOB="10",
    )
    door = site.door
    await door.register("w1")
    alone = await posted(door, "child", hooks)
    await way.happens(door, alone)
    own = await door.ended(alone)
    parent_id = await posted(door, "parent", hooks)
    child_id = await child_of(site, parent_id)
    await way.happens(door, child_id)
    child, parent = await door.ended(child_id), await door.ended(parent_id)

    entry = parent["state_history"][f"sub_job_{child_id}_result"]
    counts = Counter([JobStatus(way.status)] * 2 + [JobStatus.FINISHED])
    assert own["status"] == child["status"] == way.status
    assert (parent["status"], parent["current_state"]) == ("finished", OUTCOME[way.status])
    assert entry["error_message"] == child["error_message"]
    assert entry["final_state"] == child["current_state"]
    for job in (own, child, parent):
        await until(lambda job=job: is_archived(door, job), message="its end is not in the history")
    for job in (own, parent):
        await until(lambda job=job: ends_told(hooks, job), message="no webhook came")
        [post] = ends_told(hooks, job)
        assert (post["event"], post["status"]) == (f"job_{job['status']}", job["status"])
    assert site.ends == {alone: 1, child_id: 1, parent_id: 1}
    assert await site.storage.jobs.count_by_status() == counts
    await until(site.is_idle, message="something is left")


async def test_of_a_job_that_no_executor_can_handle_everybody_is_told_too(
    open_site: OpenSite, hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R17: it ends when its entry is set aside."""
    usual = Settings.from_config

    def impatient(config: Config) -> Settings:
        return replace(usual(config), max_tries=2, again_seconds=0.05)

    monkeypatch.setattr(Settings, "from_config", impatient)

    async def break_down(_job_id: JobId) -> None:
        raise RuntimeError("the executor has a bug")

    def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([], aggregate_into="join")

    child = a_blueprint("child", ends=("end",), start=spread)
    child.aggregator_for("join", targets=["end"])(go_to("end"))
    site = await open_site(
        child,
        a_blueprint("parent", ends=tuple(LEADS.values()), start=run("child", LEADS)),
        HISTORY_DATABASE_URI=f"sqlite:{tmp_path / 'history.db'}",
    )
    monkeypatch.setattr(site.storage.jobs, "branch_results", break_down)
    door = site.door
    alone = await door.ended(await posted(door, "child", hooks))
    parent = await door.ended(await posted(door, "parent", hooks))
    child_id = await child_of(site, parent["id"])

    assert (alone["status"], parent["current_state"]) == ("quarantined", "badly")
    for job in (alone, parent):
        await until(lambda job=job: is_archived(door, job), message="its end is not in the history")
        await until(lambda job=job: ends_told(hooks, job), message="no webhook came")
    assert site.ends == {alone["id"]: 1, child_id: 1, parent["id"]: 1}
    counts = {JobStatus.QUARANTINED: 2, JobStatus.FINISHED: 1}
    assert await site.storage.jobs.count_by_status() == counts
    assert len(await site.storage.dead_events.newest(10)) == 2
    await until(site.is_idle, message="something is left")


async def posted(door: Door, blueprint: str, hooks: Hooks) -> str:
    body = {"initial_data": {}, "webhook_url": hooks.url}
    answer = await door.ask("POST", f"/jobs/{blueprint}", body)
    assert answer.status == 202
    job_id: str = answer.json["job_id"]
    return job_id


def ends_told(hooks: Hooks, job: dict[str, Any]) -> list[dict[str, Any]]:
    return [post for post in hooks.of(job["id"]) if post["event"].startswith("job_")]


async def child_of(site: Site, parent_id: str) -> str:
    """The id of its sub-job, as it waits for it or has waited for it."""
    found: list[str] = []

    async def is_known() -> bool:
        document = await site.door.document(parent_id)
        entries = [key for key in document["state_history"] if key.startswith("sub_job_")]
        names = [entry.removeprefix("sub_job_").removesuffix("_result") for entry in entries]
        found[:] = [document["child_job_id"]] if "child_job_id" in document else names
        return bool(found)

    await until(is_known, message="it has no sub-job")
    return found[0]


async def is_archived(door: Door, job: dict[str, Any]) -> bool:
    rows = (await door.ask("GET", f"/jobs/{job['id']}/history")).json
    if not rows or rows[-1]["event_type"] != "job_completed":
        return False
    assert [row["event_type"] for row in rows].count("job_completed") == 1
    assert rows[0]["event_type"] == "job_created"
    assert rows[-1]["context_snapshot"]["status"] == job["status"]
    return True


# --- R21: sub-jobs


async def test_a_sub_job_begins_in_its_own_state_with_what_its_parent_has(
    open_site: OpenSite,
) -> None:
    """R21."""
    site = await open_site(
        a_blueprint("child", ends=("end",), first=A_TASK),
        a_blueprint("parent", ends=tuple(LEADS.values()), start=run("child", LEADS, n=1)),
    )
    door = site.door
    await door.register("w1")
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    body = {"initial_data": {}, "dispatch_timeout": 60, "result_timeout": 70}
    headers = {"X-Client-Token": CLIENT_TOKEN, **trace}
    answer = await door.call("POST", "/api/v1/jobs/parent", body, token=None, headers=headers)
    parent_id = answer.json["job_id"]
    task = await door.task("w1")
    child_id = task["job_id"]
    origins = [await site.storage.jobs.origin(JobId(i)) for i in (child_id, parent_id)]
    waiting = await door.document(parent_id)
    await door.done(task, "w1", data={"answer": 42})
    ended = await door.ended(parent_id)

    (child, _), (parent, _) = (origin for origin in origins if origin is not None)
    assert (child.start_state, child.initial_data) == ("first", {"n": 1})
    assert (child.dispatch_timeout, child.result_timeout) == (60.0, 70.0)
    assert child.client == parent.client
    assert child.client.name or child.client.token
    assert child.tracing_context == parent.tracing_context
    assert (waiting["status"], waiting["child_job_id"]) == ("waiting_for_sub_job", child_id)
    assert (await door.document(child_id))["parent_job_id"] == parent_id
    entry = ended["state_history"][f"sub_job_{child_id}_result"]
    assert entry["result"] == {"answer": 42}


async def test_as_many_parents_go_on_as_children_end_at_once(open_site: OpenSite) -> None:
    """R21."""
    count = 150
    resumed: Counter[str] = Counter()

    def resume(job_id: str, actions: ActionFactory) -> None:
        resumed[job_id] += 1
        actions.transition_to("well")

    site = await open_site(
        a_blueprint("child", ends=("end",), start=go_to("end")),
        a_blueprint("parent", ends=("well",), start=run("child", {"success": "on"}), on=resume),
    )

    job_ids = [await site.engine.create_background_job("parent", {}) for _ in range(count)]
    await until(lambda: len(site.ends) == 2 * count, 20)

    assert resumed == dict.fromkeys(job_ids, 1)
    assert set(site.ends.values()) == {1}
    assert await site.storage.jobs.count_by_status() == {JobStatus.FINISHED: 2 * count}
    await until(site.is_idle, message="something is left")


async def test_the_depth_of_sub_jobs_is_limited(open_site: OpenSite) -> None:
    """R21."""
    leads = {"success": "well", "failure": "too_deep"}
    endless = a_blueprint("endless", ends=("well", "too_deep"), start=run("endless", leads))
    site = await open_site(endless, MAX_HOLARCHY_DEPTH="3")

    job = await site.door.ended(await site.door.create("endless"))

    await until(lambda: len(site.ends) == 4, message="there are more generations, or fewer")
    counts = await site.storage.jobs.count_by_status()
    assert counts == {JobStatus.FINISHED: 3, JobStatus.FAILED: 1}
    assert job["current_state"] == "well"


async def test_an_unknown_blueprint_ends_the_parent_with_a_clear_error(
    open_site: OpenSite,
) -> None:
    """R21."""
    parent = a_blueprint("parent", ends=("well",), start=run("missing", {"success": "well"}))
    site = await open_site(parent)

    job = await site.door.ended(await site.door.create("parent"))

    assert job["status"] == "quarantined"
    assert job["error_message"] == "Blueprint 'missing' not found."
    assert job["retry_count"] == 0
