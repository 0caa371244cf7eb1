"""Jobs that failed run again over HTTP, once what stopped them is mended."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from avtomatika.context import ActionFactory
from tests.integration.blueprints import a_blueprint, dispatch, run
from tests.integration.conftest import OpenSite
from tests.integration.hooks import Hooks
from tests.integration.sites import Site
from tests.interop.door import Answer, Door
from tests.support import until

pytestmark = pytest.mark.integration

PERMANENT = {"code": "PERMANENT_ERROR", "message": "no"}


class Mended:
    """Handlers that ask for it raise until it is."""

    def __init__(self) -> None:
        self.is_so = False
        self.runs = 0

    def check(self) -> None:
        self.runs += 1
        if not self.is_so:
            raise OSError("broken")


async def redriven(door: Door, job_id: str) -> Answer:
    return await door.ask("POST", f"/jobs/{job_id}/redrive")


async def is_idle(site: Site) -> None:
    await until(site.is_idle, message="something is left to be done")


async def test_a_quarantined_job_finishes_once_its_handler_is_mended(
    open_site: OpenSite, hooks: Hooks, tmp_path: Path
) -> None:
    """R62: each end is told once, and nothing is left but the job."""
    mended = Mended()

    def work(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["work"] = state_history.get("work", 0) + 1
        mended.check()
        actions.transition_to("done")

    def begin(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["begun"] = state_history.get("begun", 0) + 1
        actions.transition_to("work")

    site = await open_site(
        a_blueprint("b", begin=begin, work=work),
        JOB_MAX_RETRIES="1",
        HISTORY_DATABASE_URI=f"sqlite:{tmp_path / 'history.db'}",
    )
    body = {"initial_data": {}, "webhook_url": hooks.url}
    job_id = (await site.door.ask("POST", "/jobs/b", body)).json["job_id"]
    broken = await site.door.ended(job_id)
    assert (broken["status"], broken["current_state"]) == ("quarantined", "work")
    assert mended.runs == 2

    still_broken = await redriven(site.door, job_id)
    await until(lambda: mended.runs == 4, message="it has not all its attempts again")
    await site.door.ended(job_id)
    mended.is_so = True
    answer = await redriven(site.door, job_id)

    assert (still_broken.status, answer.status) == (202, 202)
    job = await site.door.ended(job_id)
    assert (job["status"], job["error_message"]) == ("finished", None)
    assert job["state_history"] == {"begun": 1, "work": 1}
    await is_idle(site)
    told = [post["event"] for post in hooks.of(job_id)]
    assert told == ["job_quarantined", "job_quarantined", "job_finished"]
    assert len({post["event_id"] for post in hooks.of(job_id)}) == 3
    assert site.ends[job_id] == 3
    rows = (await site.door.ask("GET", f"/jobs/{job_id}/history")).json
    kinds = [row["event_type"] for row in rows]
    assert kinds.count("job_redriven") == 2
    assert kinds.count("job_completed") == 3
    assert [row["state"] for row in rows if row["event_type"] == "state_started"] == [
        "begin", *["work"] * 5, "done",
    ]  # fmt: skip
    jobs = (await site.door.ask("GET", "/dashboard")).json["jobs"]
    assert (jobs["finished"], jobs["quarantined"], jobs["running"]) == (1, 0, 0)


async def test_a_job_whose_task_failed_for_good_gives_it_out_again(open_site: OpenSite) -> None:
    """R62."""
    site = await open_site(a_blueprint("b", start=dispatch({"success": "done"})))
    door = site.door
    await door.register("w1")
    job_id = await door.create("b")
    await door.done(await door.task("w1"), "w1", status="failure", error=PERMANENT)
    assert (await door.ended(job_id))["status"] == "quarantined"

    await redriven(door, job_id)
    await door.done(await door.task("w1"), "w1", data={"size": 2})

    job = await door.ended(job_id)
    assert (job["status"], job["state_history"]) == ("finished", {"size": 2})
    await is_idle(site)


async def test_an_aggregator_that_is_mended_has_the_results_of_all_branches(
    open_site: OpenSite,
) -> None:
    """R62: what workers did is not done again."""
    mended = Mended()

    def fan_out(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize"}] * 3, aggregate_into="join")

    def join(
        state_history: dict[str, Any], aggregation_results: dict[str, Any], actions: ActionFactory
    ) -> None:
        mended.check()
        state_history["joined"] = sorted(r["data"]["n"] for r in aggregation_results.values())
        actions.transition_to("done")

    blueprint = a_blueprint("b", start=fan_out)
    blueprint.aggregator_for("join", targets=["done"])(join)
    site = await open_site(blueprint, JOB_MAX_RETRIES="0")
    door = site.door
    await door.register("w1")
    job_id = await door.create("b")
    for number in range(3):
        await door.done(await door.task("w1"), "w1", data={"n": number})
    assert (await door.ended(job_id))["status"] == "quarantined"
    mended.is_so = True

    await redriven(door, job_id)

    job = await door.ended(job_id)
    assert (job["status"], job["state_history"]) == ("finished", {"joined": [0, 1, 2]})
    assert len(site.leases) == 3
    await is_idle(site)


async def test_a_job_whose_time_was_over_in_a_fan_out_opens_it_anew(open_site: OpenSite) -> None:
    """R62."""

    def fan_out(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize"}] * 2, aggregate_into="join")

    def join(aggregation_results: dict[str, Any], actions: ActionFactory) -> None:
        assert len(aggregation_results) == 2
        actions.transition_to("done")

    blueprint = a_blueprint("b", start=fan_out)
    blueprint.aggregator_for("join", targets=["done"])(join)
    site = await open_site(blueprint)
    door = site.door
    await door.register("w1")
    body = {"initial_data": {}, "timeout_seconds": 1.0}
    job_id = (await door.ask("POST", "/jobs/b", body)).json["job_id"]
    old = [await door.task("w1") for _ in range(2)]
    await door.done(old[0], "w1")
    late = await door.ended(job_id)
    assert (late["status"], late["error_message"]) == ("failed", "Job timed out after 1 seconds.")

    await redriven(door, job_id)
    tasks = [await door.task("w1") for _ in range(2)]
    for task in (*old, *tasks):
        await door.done(task, "w1")

    assert (await door.ended(job_id))["status"] == "finished"
    assert not {task["task_id"] for task in old} & {task["task_id"] for task in tasks}
    await is_idle(site)


async def test_a_parent_whose_sub_job_failed_starts_another_one(open_site: OpenSite) -> None:
    mended = Mended()

    def work(actions: ActionFactory) -> None:
        mended.check()
        actions.transition_to("done")

    site = await open_site(
        a_blueprint("child", work=work),
        a_blueprint("parent", start=run("child", {"success": "done"})),
        JOB_MAX_RETRIES="0",
    )
    door = site.door
    parent_id = await door.create("parent")
    failed = await door.ended(parent_id)
    assert failed["error_message"] == "No transition for sub-job outcome 'failure'."
    [first] = (await door.ask("GET", "/jobs/quarantined")).json
    mended.is_so = True

    await redriven(door, first)
    child = await door.ended(first)
    parent = await door.document(parent_id)
    assert (child["status"], parent["status"]) == ("finished", "failed")
    await redriven(door, parent_id)

    parent = await door.ended(parent_id)
    assert parent["status"] == "finished"
    [result] = (value for key, value in parent["state_history"].items() if first not in key)
    assert result["outcome"] == "success"
    await is_idle(site)


async def test_a_redriven_job_outlives_the_retention_of_its_first_end(open_site: OpenSite) -> None:
    """R62: and goes with that of its second."""
    mended = Mended()

    def work(actions: ActionFactory) -> None:
        mended.check()
        actions.sleep(1.5, next_state="done")

    site = await open_site(
        a_blueprint("b", work=work), JOB_MAX_RETRIES="0", JOB_RETENTION_SECONDS="1"
    )
    job_id = await site.door.create("b")
    await site.door.ended(job_id)
    mended.is_so = True

    await redriven(site.door, job_id)

    assert (await site.door.ended(job_id))["status"] == "finished"

    async def is_gone() -> bool:
        return (await site.door.ask("GET", f"/jobs/{job_id}")).status == 404

    await until(is_gone, 5.0, "it is kept for ever")


async def test_many_redrives_at_once_run_the_job_once_more(open_site: OpenSite) -> None:
    """R62."""
    mended = Mended()

    def work(actions: ActionFactory) -> None:
        mended.check()
        actions.transition_to("done")

    site = await open_site(a_blueprint("b", work=work), JOB_MAX_RETRIES="0")
    job_id = await site.door.create("b")
    await site.door.ended(job_id)
    mended.is_so = True

    async with site.another_gateway() as other:
        doors = [site.door, other] * 5
        answers = await asyncio.gather(*(redriven(door, job_id) for door in doors))

    assert sorted(answer.status for answer in answers) == [202, *[409] * 9]
    assert (await site.door.ended(job_id))["status"] == "finished"
    assert mended.runs == 2
