"""What is promised about the time of jobs and tasks, on a whole orchestrator: on memory and on Redis."""

from itertools import pairwise
from typing import Any

import pytest

from avtomatika.context import ActionFactory
from tests.integration.blueprints import a_blueprint, dispatch
from tests.integration.conftest import OpenSite
from tests.support import until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("way", "delay"), [("seconds", 0.4), ("until", 0.4), ("until", -60.0), ("seconds", 0.0)]
)
async def test_a_job_sleeps_for_its_seconds_or_until_its_moment(
    open_site: OpenSite, way: str, delay: float
) -> None:
    times: list[float] = []

    def lie_down(actions: ActionFactory) -> None:
        times.append(site.storage.clock.now())
        when = {"seconds": delay} if way == "seconds" else {"until": times[0] + delay}
        actions.sleep(**when, next_state="awake")

    def get_up(actions: ActionFactory) -> None:
        times.append(site.storage.clock.now())
        actions.transition_to("done")

    site = await open_site(a_blueprint("nap", start=lie_down, awake=get_up))

    job = await site.door.ended(await site.door.create("nap"))

    assert job["status"] == "finished"
    asleep_at, awake_at = times
    assert max(0.0, delay) <= awake_at - asleep_at < max(0.0, delay) + 5
    await until(site.is_idle, message="something is left")


def ask(actions: ActionFactory) -> None:
    actions.await_human_approval("mail", "?", {"yes": "done", "timeout": "late"}, 0.2)


def listen(actions: ActionFactory) -> None:
    actions.wait_for_signal("paid", {"received": "done", "timeout": "late"}, 0.2)


@pytest.mark.parametrize("wait", [ask, listen])
async def test_what_nobody_answers_in_time_leads_to_timeout(open_site: OpenSite, wait: Any) -> None:
    site = await open_site(a_blueprint("asking", ends=("done", "late"), start=wait))

    job = await site.door.ended(await site.door.create("asking"))

    assert (job["status"], job["current_state"]) == ("finished", "late")
    assert job["finished_at"] - job["created_at"] >= 0.2
    await until(site.is_idle, message="something is left")


POLICY = {"attempts": 4, "delay_seconds": 0.1, "factor": 3.0, "max_delay_seconds": 0.6}
"""0.1 s, 0.3 s, and no longer than 0.6 s; each a fifth more or less."""


async def test_a_task_is_repeated_as_its_own_policy_says(open_site: OpenSite) -> None:
    give_out = dispatch({"success": "done", "failure": "broken"}, retry=POLICY)
    site = await open_site(
        a_blueprint("work", ends=("done", "broken"), start=give_out),
        RETRY_DELAY_SECONDS="600",
        JOB_MAX_RETRIES="9",
    )
    door, clock = site.door, site.storage.clock
    await door.register("w1")
    job_id = await door.create("work")

    failed_at: list[float] = []
    for _ in range(4):
        task = await door.task("w1")
        failed_at.append(clock.now())
        error = {"code": "TRANSIENT_ERROR", "message": "oh"}
        await door.done(task, "w1", status="failure", error=error)

    job = await door.ended(job_id)
    assert job["current_state"] == "broken"
    for (earlier, later), delay in zip(pairwise(failed_at), (0.1, 0.3, 0.6), strict=True):
        assert delay * 0.8 <= later - earlier < delay * 1.2 + 3
    await until(site.is_idle, message="something is left")


async def test_a_code_that_is_never_tried_again_ends_the_first_attempt(
    open_site: OpenSite,
) -> None:
    policy = {**POLICY, "never": ["OUT_OF_PAPER"]}
    give_out = dispatch({"success": "done", "failure": "broken"}, retry=policy)
    site = await open_site(a_blueprint("work", ends=("done", "broken"), start=give_out))
    door = site.door
    await door.register("w1")
    job_id = await door.create("work")

    error = {"code": "OUT_OF_PAPER", "message": "oh"}
    await door.done(await door.task("w1"), "w1", status="failure", error=error)

    assert (await door.ended(job_id))["current_state"] == "broken"
    assert len(site.leases) == 1


async def test_a_worker_that_sends_no_progress_loses_its_attempt(open_site: OpenSite) -> None:
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": 0.4,
        "result_timeout_seconds": 60,
        "retry": POLICY,
    }
    site = await open_site(a_blueprint("work", start=dispatch({"success": "done"}, **options)))
    door, clock = site.door, site.storage.clock
    await door.register("w1")
    job_id = await door.create("work")

    first = await door.task("w1")
    taken_at = clock.now()
    second = await door.task("w1")
    lost_after = clock.now() - taken_at
    for _ in range(3):
        assert (await door.progress(second, "w1", progress=0.5)).status == 200
    await door.done(second, "w1")

    assert (await door.ended(job_id))["status"] == "finished"
    assert (first["task_id"], first["job_id"]) != (second["task_id"], second["job_id"])
    assert 0.4 <= lost_after < 5
    await until(site.is_idle, message="something is left")
