"""The requirements about a job's own steps, each from the client's side of a whole orchestrator."""

import asyncio
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from avtomatika import StateMachineBlueprint
from avtomatika.context import ActionFactory
from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_executor import advances
from tests.integration.blueprints import a_blueprint, dispatch, go_to
from tests.integration.conftest import OpenSite
from tests.integration.hooks import Hooks
from tests.interop.door import Door
from tests.jobs import create_job
from tests.support import until

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advances, "_BACK_OFF_SECONDS", 0.01)


# --- R2, R3: queue entries


async def test_five_jobs_that_come_together_all_finish(open_site: OpenSite) -> None:
    """R2."""
    inside = 0
    all_inside = asyncio.Event()

    async def wait_for_the_others(actions: ActionFactory) -> None:
        nonlocal inside
        inside += 1
        if inside == 5:
            all_inside.set()
        await all_inside.wait()
        actions.transition_to("done")

    site = await open_site(a_blueprint("slow", start=wait_for_the_others))

    job_ids = await asyncio.gather(*(site.door.create("slow") for _ in range(5)))

    assert len(set(job_ids)) == 5
    for job_id in job_ids:
        assert (await site.door.ended(job_id))["status"] == "finished"
    assert inside == 5
    assert await site.storage.get_job_queue_length() == 0


async def fail() -> None:
    raise StoreUnavailable("cut off")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_step_that_could_not_be_stored_is_stored_later(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """R3: each step of the job, its last one too."""

    def first(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history.setdefault("steps", []).append("first")
        actions.transition_to("second")

    def second(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["steps"].append("second")
        actions.transition_to("done")

    site = await open_site(a_blueprint("chain", first=first, second=second))
    commit = site.storage.jobs.commit
    commits = 0

    async def fails_at_first(*args: Any, **kwargs: Any) -> Any:
        nonlocal commits
        commits += 1
        is_first = commits % 2 == 1
        stored = None if is_first and when == "before" else await commit(*args, **kwargs)
        if is_first:
            await fail()
        return stored

    monkeypatch.setattr(site.storage.jobs, "commit", fails_at_first)

    job = await site.door.ended(await site.door.create("chain"))

    await until(lambda: site.ends, message="nobody was told of its end")
    assert commits == 2 * 4  # begun, first, second, done
    assert job["status"] == "finished"
    assert job["state_history"] == {"steps": ["first", "second"]}
    assert job["transition_count"] == 2
    assert site.ends == {job["id"]: 1}
    assert await site.storage.get_job_queue_length() == 0


async def test_an_entry_is_answered_no_sooner_than_its_step_is_stored(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R3: while the store refuses the step, what asks for it is still there."""
    site = await open_site(a_blueprint("one_step", start=go_to("done")))
    refused = 0
    lengths: set[int] = set()
    store = site.storage.jobs.commit

    async def refuse(*args: Any, **kwargs: Any) -> Any:
        nonlocal refused
        if refused == 5:
            return await store(*args, **kwargs)
        refused += 1
        lengths.add(await site.storage.get_job_queue_length())
        raise StoreUnavailable("cut off")

    monkeypatch.setattr(site.storage.jobs, "commit", refuse)

    job = await site.door.ended(await site.door.create("one_step"))

    assert job["status"] == "finished"
    assert (refused, lengths) == (5, {1})


# --- R19, R20: states without an action


async def test_a_handler_without_an_action_fails_its_job_and_names_the_state(
    open_site: OpenSite,
) -> None:
    """R19."""

    def only_look(job_id: str) -> None:
        pass

    site = await open_site(a_blueprint("idle", looking=only_look))

    job = await site.door.ended(await site.door.create("idle"))

    assert job["status"] == "failed"
    assert job["error_message"] == "Handler for state 'looking' set no action."


BY_NAME = {
    "end": "finished",
    "whatever": "finished",
    "import_failed": "failed",
    "timed_out": "failed",
    "cancelled": "cancelled",
}
BY_OUTCOME = {
    "lost": ("failure", "failed"),
    "failed_but_fine": ("success", "finished"),
    "error": ("success", "finished"),
}


def many_ends() -> StateMachineBlueprint:
    blueprint = StateMachineBlueprint("ends", api_version="v1", api_endpoint="/jobs/ends")

    @blueprint.handler_for("start", is_start=True, targets=[*BY_NAME, *BY_OUTCOME])
    def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.transition_to(initial_data["to"])

    def nothing() -> None:
        pass

    for state in BY_NAME:
        blueprint.handler_for(state, is_end=True)(nothing)
    for state, (outcome, _) in BY_OUTCOME.items():
        blueprint.handler_for(state, is_end=True, outcome=outcome)(nothing)
    return blueprint


async def test_an_end_state_is_a_success_unless_its_name_or_its_outcome_says_otherwise(
    open_site: OpenSite, hooks: Hooks
) -> None:
    """R20."""
    site = await open_site(many_ends())
    expected = BY_NAME | {state: status for state, (_, status) in BY_OUTCOME.items()}

    found: dict[str, str] = {}
    for state in expected:
        body = {"initial_data": {"to": state}, "webhook_url": hooks.url}
        answer = await site.door.ask("POST", "/jobs/ends", body)
        job = await site.door.ended(answer.json["job_id"])
        found[job["current_state"]] = job["status"]
        await until(lambda job=job: hooks.of(job["id"]), message="no webhook came")

    assert found == expected
    assert [(hook["event"], hook["status"]) for hook in hooks.posts] == [
        (f"job_{status}", status) for status in expected.values()
    ]


# --- R22, R23, R24: handlers that fail


@pytest.mark.parametrize("waits", [False, True])
async def test_a_handler_that_raised_leaves_nothing_and_comes_again_later_each_time(
    open_site: OpenSite, *, waits: bool
) -> None:
    """R23: one that waits is stored in another way."""
    runs: list[float] = []

    async def flaky(state_history: dict[str, Any], actions: ActionFactory) -> None:
        runs.append(asyncio.get_running_loop().time())
        if waits:
            await site.storage.ping()
        state_history.setdefault("entries", []).append(len(runs))
        actions.update_context({"seen": len(runs)})
        actions.transition_to("done")
        if len(runs) < 4:
            raise OSError("again")

    site = await open_site(a_blueprint("flaky", start=flaky), RETRY_DELAY_SECONDS="0.1")

    job = await site.door.ended(await site.door.create("flaky"))

    pauses = [later - earlier for earlier, later in pairwise(runs)]
    assert job["state_history"] == {"entries": [4], "seen": 4}
    assert (job["status"], job["error_message"]) == ("finished", None)
    assert len(pauses) == 3
    for pause, delay in zip(pauses, (0.1, 0.2, 0.4), strict=True):
        assert delay * 0.8 <= pause


async def test_each_step_has_all_its_retries_and_success_leaves_no_error(
    open_site: OpenSite,
) -> None:
    """R22."""
    runs: Counter[str] = Counter()
    counts: list[int] = []

    def flaky(state: str, following: str) -> Any:
        async def handler(job_id: str, actions: ActionFactory) -> None:
            runs[state] += 1
            counts.append((await site.door.document(job_id))["retry_count"])
            if runs[state] < 3:
                raise OSError("again")
            actions.transition_to(following)

        return handler

    blueprint = a_blueprint("flaky", one=flaky("one", "two"), two=flaky("two", "done"))
    site = await open_site(blueprint, JOB_MAX_RETRIES="3")

    job = await site.door.ended(await site.door.create("flaky"))

    assert counts == [0, 1, 2, 0, 1, 2]
    assert job["status"] == "finished"
    assert job["error_message"] is None
    assert job["last_error"] is None


def needs_what_nobody_has(actions: ActionFactory, thingamajig: str) -> None:
    raise AssertionError("it is not called")


def leads_nowhere(initial_data: dict[str, Any], actions: ActionFactory) -> None:
    actions.transition_to(initial_data["to"])


def without_a_match() -> StateMachineBlueprint:
    blueprint = StateMachineBlueprint("b", api_version="v1", api_endpoint="/jobs/b")
    only = blueprint.handler_for("choice", is_start=True, targets=["done"])
    only.when("context.initial_data.to == 'done'")(go_to("done"))
    blueprint.handler_for("done", is_end=True)(lambda: None)
    return blueprint


BROKEN: dict[str, tuple[Callable[[], StateMachineBlueprint], str]] = {
    "a parameter that nothing supplies": (
        lambda: a_blueprint("b", start=needs_what_nobody_has),
        "thingamajig",
    ),
    "a state that is not there": (lambda: a_blueprint("b", start=leads_nowhere), "no_such_state"),
    "no condition that matches": (without_a_match, "choice"),
}


@pytest.mark.parametrize(("made", "named"), BROKEN.values(), ids=BROKEN)
async def test_an_error_of_the_definition_quarantines_the_job_after_one_attempt(
    open_site: OpenSite, made: Callable[[], StateMachineBlueprint], named: str
) -> None:
    """R24."""
    site = await open_site(made(), RETRY_DELAY_SECONDS="600")

    job = await site.door.ended(await site.door.create("b", to="no_such_state"))

    assert job["status"] == "quarantined"
    assert named in job["error_message"]
    assert job["retry_count"] == 0
    assert (await site.door.ask("GET", "/jobs/quarantined")).json == [job["id"]]


async def test_a_job_of_a_blueprint_that_nobody_knows_is_quarantined(open_site: OpenSite) -> None:
    """R24: it was accepted when somebody still did."""
    site = await open_site(a_blueprint("known", start=go_to("done")))
    job_id = await create_job(site.storage, a_blueprint("unknown", start=go_to("done")))

    job = await site.door.ended(job_id)

    assert job["status"] == "quarantined"
    assert job["error_message"] == "Blueprint 'unknown' not found."
    assert job["retry_count"] == 0


# --- R25: what vanishes


async def is_accepted(door: Door, blueprint: str) -> bool:
    return (await door.ask("POST", f"/jobs/{blueprint}", {"initial_data": {}})).status == 202


async def test_after_a_flush_jobs_run_as_before(open_site: OpenSite) -> None:
    """R25."""
    site = await open_site(a_blueprint("work", start=dispatch({"success": "done"})))
    door = site.door
    await door.register("w1")
    await door.create("work")
    await door.done(await door.task("w1"), "w1")

    await site.storage.flush_all()

    await door.register("w1")
    await until(lambda: is_accepted(door, "work"), message="the blueprint is forgotten")
    task = await door.task("w1")
    await door.done(task, "w1")
    assert (await door.ended(task["job_id"]))["status"] == "finished"
