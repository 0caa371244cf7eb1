"""The requirements about the task of a job, each from both sides of a whole orchestrator's door."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from avtomatika.context import ActionFactory, JobContext
from avtomatika_common import leadership
from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_core.job import JobId, JobStatus, TaskId, TaskWait
from avtomatika_executor import advances
from tests.integration.blueprints import a_blueprint, dispatch, go_to
from tests.integration.conftest import OpenSite
from tests.integration.sites import Site, once
from tests.interop.door import CLIENT_TOKEN, Door, ignored
from tests.support import until

pytestmark = pytest.mark.integration

OK = {"status": "ok"}


def failure(code: str, message: str = "oh") -> dict[str, Any]:
    return {"status": "failure", "error": {"code": code, "message": message}}


# --- R7, R8: waiting for a worker, and for no longer


async def test_a_task_waits_for_the_first_worker_and_the_handler_runs_once(
    open_site: OpenSite,
) -> None:
    """R7."""
    runs: list[str] = []

    def give_out(job_id: str, actions: ActionFactory) -> None:
        runs.append(job_id)
        actions.dispatch_task("resize", {}, {"success": "done"}, dispatch_timeout_seconds=60)

    site = await open_site(a_blueprint("work", start=give_out))
    door = site.door
    job_id = await door.create("work")

    async def is_explained() -> bool:
        return bool((await door.document(job_id)).get("waiting_reason"))

    await until(is_explained, message="nobody has looked for a worker")
    offered = (await door.document(job_id))["current_task_id"]
    await door.register("w1")
    task = await door.task("w1")
    await door.done(task, "w1")

    assert (await door.ended(job_id))["status"] == "finished"
    assert task["task_id"] == offered
    assert runs == [job_id]


async def test_a_task_that_nobody_may_take_waits_no_longer_than_its_dispatch_timeout(
    open_site: OpenSite,
) -> None:
    """R7: who does other tasks only is no worker for it, and nothing is done once more."""
    runs: list[str] = []

    def give_out(job_id: str, actions: ActionFactory) -> None:
        runs.append(job_id)
        actions.dispatch_task("resize", {}, {"success": "done"}, dispatch_timeout_seconds=0.5)

    site = await open_site(
        a_blueprint("work", start=give_out), JOB_MAX_RETRIES="3", WORKER_POLL_TIMEOUT_SECONDS="1"
    )
    door = site.door
    await door.register("crops", "crop")
    job_id = await door.create("work")

    answer, job = await asyncio.gather(door.poll("crops"), door.ended(job_id))

    assert answer.status == 204
    assert job["status"] == "failed"
    assert job["error_message"].startswith("No worker took the task within 0.5 seconds")
    assert 0.5 <= job["finished_at"] - job["created_at"] < 5
    assert (runs, site.leases) == ([job_id], [])


async def succeeds(door: Door) -> None:
    await door.done(await door.task("w1"), "w1")


async def fails_for_good(door: Door) -> None:
    await door.done(await door.task("w1"), "w1", **failure("PERMANENT_ERROR"))


async def succeeds_at_last(door: Door) -> None:
    await door.done(await door.task("w1"), "w1", **failure("TRANSIENT_ERROR"))
    await succeeds(door)


async def is_never_taken(door: Door) -> None:
    """Nobody polls."""


async def is_late(door: Door) -> None:
    await door.task("w1")


@pytest.mark.parametrize(
    ("happens", "options"),
    [
        (succeeds, {"dispatch_timeout_seconds": 60, "result_timeout_seconds": 60}),
        (succeeds_at_last, {"dispatch_timeout_seconds": 60, "result_timeout_seconds": 60}),
        (fails_for_good, {"dispatch_timeout_seconds": 60, "heartbeat_timeout_seconds": 60}),
        (is_never_taken, {"dispatch_timeout_seconds": 0.2}),
        (is_late, {"result_timeout_seconds": 0.2, "retry": {"attempts": 1}}),
    ],
)
async def test_no_timer_outlives_the_wait_it_guards(
    open_site: OpenSite, happens: Any, options: dict[str, Any]
) -> None:
    """R8."""
    site = await open_site(a_blueprint("work", start=dispatch({"success": "done"})))
    door = site.door
    await door.register("w1")
    job_id = await door.create("work", options=options)
    await until(lambda: has_a_timer(site), message="the wait has no timer")

    await happens(door)

    job = await door.ended(job_id)
    await until(site.is_idle, message="something is left")
    assert site.ends == {job_id: 1}
    if happens is is_never_taken:
        assert job["error_message"].startswith("No worker took the task within 0.2 seconds")
        assert job["status"] == "failed"


async def has_a_timer(site: Site) -> bool:
    return await site.storage.timers.next_due(0) is not None


def sleep(actions: ActionFactory) -> None:
    actions.sleep(60, next_state="done")


def ask(actions: ActionFactory) -> None:
    actions.await_human_approval("mail", "May it?", {"yes": "done"}, timeout_seconds=60)


def listen(actions: ActionFactory) -> None:
    actions.wait_for_signal("paid", {"received": "done"}, timeout_seconds=60)


def stumble() -> None:
    raise OSError("not yet")


give_out = dispatch({"success": "done"}, dispatch_timeout_seconds=60, result_timeout_seconds=60)
wait_for_ever = dispatch({"success": "done"}, dispatch_timeout_seconds=0)


async def is_cancelled(site: Site, job_id: str) -> None:
    await site.door.cancel(job_id)


async def is_cancelled_in_hand(site: Site, job_id: str) -> None:
    await site.door.task("w1")
    await is_cancelled(site, job_id)


async def is_cancelled_before_its_retry(site: Site, job_id: str) -> None:
    await fails_once(site, job_id)
    await is_cancelled(site, job_id)


async def fails_once(site: Site, job_id: str) -> None:
    await site.door.done(await site.door.task("w1"), "w1", **failure("TRANSIENT_ERROR"))

    async def awaits_its_retry() -> bool:
        return (await site.door.document(job_id))["status"] == "awaiting_retry"

    await until(awaits_its_retry)


async def is_approved(site: Site, job_id: str) -> None:
    path = f"/_public/webhooks/approval/{job_id}"
    client = {"X-Client-Token": CLIENT_TOKEN}
    answer = await site.door.call("POST", path, {"decision": "yes"}, token=None, headers=client)
    assert answer.status == 200, answer


async def is_sent_its_signal(site: Site, job_id: str) -> None:
    answer = await site.door.ask("POST", f"/jobs/{job_id}/signals/paid", {})
    assert answer.status in (200, 202), answer


async def is_done(site: Site, _job_id: str) -> None:
    await succeeds(site.door)


@pytest.mark.parametrize(
    ("handler", "happens"),
    [
        (give_out, is_cancelled),
        (give_out, is_cancelled_in_hand),
        (give_out, is_cancelled_before_its_retry),
        (stumble, is_cancelled),
        (sleep, is_cancelled),
        (ask, is_cancelled),
        (ask, is_approved),
        (listen, is_cancelled),
        (listen, is_sent_its_signal),
    ],
)
async def test_a_wait_that_ends_before_its_time_leaves_no_timer(
    open_site: OpenSite, handler: Any, happens: Any
) -> None:
    """R8."""
    site = await open_site(a_blueprint("work", start=handler), RETRY_DELAY_SECONDS="60")
    await site.door.register("w1")
    job_id = await site.door.create("work")
    await until(lambda: has_a_timer(site), message="the wait has no timer")

    await happens(site, job_id)

    await site.door.ended(job_id)
    await until(site.is_idle, message="something is left")
    assert site.ends == {job_id: 1}


@pytest.mark.parametrize("happens", [is_done, is_cancelled])
async def test_the_deadline_of_a_job_goes_with_it(open_site: OpenSite, happens: Any) -> None:
    """R8."""
    site = await open_site(a_blueprint("work", start=wait_for_ever))
    await site.door.register("w1")
    answer = await site.door.ask("POST", "/jobs/work", {"initial_data": {}, "timeout_seconds": 60})
    job_id = answer.json["job_id"]
    assert await has_a_timer(site)

    await happens(site, job_id)

    await site.door.ended(job_id)
    await until(site.is_idle, message="something is left")
    assert site.ends == {job_id: 1}


@pytest.mark.parametrize("handler", [give_out, stumble, sleep, ask, listen])
async def test_a_wait_that_its_job_s_deadline_ends_leaves_no_timer(
    open_site: OpenSite, handler: Any
) -> None:
    """R8."""
    site = await open_site(a_blueprint("work", start=handler), RETRY_DELAY_SECONDS="60")
    body = {"initial_data": {}, "timeout_seconds": 0.3}
    answer = await site.door.ask("POST", "/jobs/work", body)

    job = await site.door.ended(answer.json["job_id"])

    assert job["error_message"] == "Job timed out after 0.3 seconds."
    await until(site.is_idle, message="something is left")
    assert site.ends == {job["id"]: 1}


# --- R9, R22: retries


async def test_a_task_without_any_timeout_is_tried_again(open_site: OpenSite) -> None:
    """R9."""
    give_out = dispatch({"success": "done"}, dispatch_timeout_seconds=0)
    site = await open_site(a_blueprint("work", start=give_out), RETRY_DELAY_SECONDS="0.05")
    door = site.door
    await door.register("w1")
    job_id = await door.create("work")

    attempts = [await door.task("w1")]
    for _ in range(2):
        await door.done(attempts[-1], "w1", **failure("TRANSIENT_ERROR"))
        attempts.append(await door.task("w1"))
    await door.done(attempts[-1], "w1")

    assert (await door.ended(job_id))["status"] == "finished"
    assert {attempt["job_id"] for attempt in attempts} == {job_id}
    assert len({attempt["task_id"] for attempt in attempts}) == 3
    await until(site.is_idle)


async def test_each_task_has_all_its_retries_and_success_leaves_no_error(
    open_site: OpenSite,
) -> None:
    """R22."""
    site = await open_site(
        a_blueprint("work", one=dispatch({"success": "two"}), two=dispatch({"success": "done"})),
        JOB_MAX_RETRIES="3",
    )
    door = site.door
    await door.register("w1")
    job_id = await door.create("work")

    for _ in range(2):
        for _ in range(2):
            await door.done(await door.task("w1"), "w1", **failure("TRANSIENT_ERROR"))
        await door.done(await door.task("w1"), "w1")

    job = await door.ended(job_id)
    assert (job["status"], job["error_message"], job["last_error"]) == ("finished", None, None)


# --- R10: the job first, then its task


async def test_no_worker_gets_a_task_that_its_job_does_not_wait_for(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10."""
    site = await open_site(
        a_blueprint("work", start=dispatch({"success": "next"}), next=dispatch({"success": "done"}))
    )
    door = site.door
    await door.register("w1")
    lease = site.storage.board.lease
    waited_for: list[bool] = []

    async def lease_what_is_waited_for(task_id: str, job_id: JobId, *args: Any, **kw: Any) -> Any:
        stored = await site.storage.jobs.load(job_id)
        wait = None if stored is None else stored.job.head.wait
        waited_for.append(isinstance(wait, TaskWait) and wait.task_id == task_id)
        return await lease(TaskId(task_id), job_id, *args, **kw)

    monkeypatch.setattr(site.storage.board, "lease", lease_what_is_waited_for)
    job_ids = [await door.create("work") for _ in range(10)]
    for _ in range(20):
        await door.done(await door.task("w1"), "w1")

    for job_id in job_ids:
        assert (await door.ended(job_id))["status"] == "finished"
    assert waited_for == [True] * 20


async def test_a_dispatch_that_is_written_again_overwrites_no_result(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10: nobody knew whether it was written, and the worker has long answered."""
    monkeypatch.setattr(advances, "_BACK_OFF_SECONDS", 0.01)
    site = await open_site(a_blueprint("work", start=dispatch({"success": "done"})))
    door = site.door
    await door.register("w1")
    commit = site.storage.jobs.commit
    documents: list[bytes] = []
    is_again = asyncio.Event()

    async def answers_late(stored: Any, made: Any, *args: Any, **kwargs: Any) -> Any:
        if made.job.status is not JobStatus.WAITING_FOR_WORKER:
            return await commit(stored, made, *args, **kwargs)
        if not documents:
            await commit(stored, made, *args, **kwargs)
            await door.done(await door.task("w1"), "w1", data={"n": 1})
            await door.ended(made.job.id)
            documents.append(await door.document_bytes(made.job.id))
            raise StoreUnavailable("cut off")
        try:
            return await commit(stored, made, *args, **kwargs)
        finally:
            is_again.set()

    monkeypatch.setattr(site.storage.jobs, "commit", answers_late)
    job_id = await door.create("work")
    async with asyncio.timeout(5):
        await is_again.wait()

    job = await door.document(job_id)
    assert (job["status"], job["state_history"]) == ("finished", {"n": 1})
    assert [await door.document_bytes(job_id)] == documents
    await until(site.is_idle, message="something is left")
    assert site.ends == {job_id: 1}


# --- R16: too late

LEADS: dict[str, tuple[dict[str, str], tuple[str, str]]] = {
    "by timeout": ({"timeout": "late", "failure": "broken"}, ("late", "finished")),
    "by failure": ({"failure": "broken"}, ("broken", "finished")),
    "nowhere": ({}, ("start", "quarantined")),
}


@pytest.mark.parametrize(("leads", "expected"), LEADS.values(), ids=LEADS)
async def test_a_timeout_is_a_failure_that_is_tried_again_and_then_leads_on(
    open_site: OpenSite, leads: dict[str, str], expected: tuple[str, str]
) -> None:
    """R16."""
    errors: list[dict[str, Any] | None] = []

    def look(context: JobContext) -> None:
        errors.append(context.last_error)
        context.actions.transition_to(f"{context.current_state}_end")

    site = await open_site(
        a_blueprint(
            "work",
            ends=("done", "late_end", "broken_end"),
            start=dispatch(
                {"success": "done", **leads}, result_timeout_seconds=0.2, retry={"attempts": 2}
            ),
            late=look,
            broken=look,
        )
    )
    door = site.door
    await door.register("w1")
    job_id = await door.create("work")

    attempts = [(await door.task("w1"))["task_id"] for _ in range(2)]
    job = await door.ended(job_id)
    told = (await door.heartbeat("w1", {"current_tasks": attempts})).json["cancel_task_ids"]

    state, status = expected
    assert (job["current_state"].removesuffix("_end"), job["status"]) == (state, status)
    assert [error["code"] for error in errors if error] == ["TIMEOUT_ERROR"] * bool(leads)
    assert sorted(told) == sorted(attempts)  # the worker may stop them
    assert site.ends == {job_id: 1}


async def test_of_a_result_and_a_timeout_at_one_moment_one_takes_effect(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R16: while what came first is on its way to the job, so may be the other."""
    give_out = dispatch({"success": "done", "timeout": "late"}, result_timeout_seconds=0.6)
    site = await open_site(
        a_blueprint("work", ends=("done", "late"), start=give_out), JOB_MAX_RETRIES="0"
    )
    door = site.door
    await door.register("w1", resources={"max_concurrent_tasks": 40})
    commit = site.storage.jobs.commit
    all_answered = asyncio.Event()
    answers: dict[str, str] = {}

    async def waits_for_the_answers(*args: Any, **kwargs: Any) -> Any:
        if len(site.leases) == 40:
            await all_answered.wait()
        return await commit(*args, **kwargs)

    async def answer_about_the_deadline(number: int) -> None:
        task = await door.task("w1")
        deadline = (await door.document(task["job_id"]))["result_deadline"]
        when = deadline + (number - 20) / 50  # half of them are before it
        await site.storage.clock.wait_until(when, asyncio.Event())
        answer = await door.done(task, "w1")
        answers[task["job_id"]] = "done" if answer.json == OK else ignored(answer)

    monkeypatch.setattr(site.storage.jobs, "commit", waits_for_the_answers)
    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(answer_about_the_deadline(number))
        job_ids = [await door.create("work") for _ in range(40)]
    all_answered.set()

    states = {job_id: (await door.ended(job_id))["current_state"] for job_id in job_ids}
    said = {"done": "done", "late": "deadline_exceeded"}
    assert {job_id: said[state] for job_id, state in states.items()} == answers
    assert set(answers.values()) == set(said.values())  # both have been seen
    assert site.ends == dict.fromkeys(job_ids, 1)


async def fail() -> None:
    raise StoreUnavailable("cut off")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_timeout_survives_who_was_about_to_act_on_it(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """R16: the watcher is lost while it fires the timer; so is the executor that reads the event."""
    monkeypatch.setattr(leadership, "STANDBY_SECONDS", 0.05)
    monkeypatch.setattr(advances, "_BACK_OFF_SECONDS", 0.01)
    give_out = dispatch(
        {"success": "done", "timeout": "late"}, result_timeout_seconds=0.2, retry={"attempts": 1}
    )
    site = await open_site(a_blueprint("work", ends=("done", "late"), start=give_out))
    door = site.door
    await door.register("w1")
    job_id = await door.create("work")
    await door.task("w1")
    once(site.storage.timers, "fire", **{when: fail})
    once(site.storage.jobs, "commit", **{when: fail})

    job = await door.ended(job_id)

    assert job["current_state"] == "late"
    await until(lambda: site.ends == {job_id: 1}, message="its end was not told once")
    await until(site.is_idle, message="something is left")


# --- R18: where failures lead


async def gives_up(door: Door) -> str:
    await door.done(await door.task("w1"), "w1", **failure("INVALID_INPUT_ERROR", "bad csv"))
    return "INVALID_INPUT_ERROR"


async def runs_out_of_attempts(door: Door) -> str:
    for _ in range(3):
        await door.done(await door.task("w1"), "w1", **failure("TRANSIENT_ERROR", "bad csv"))
    return "TRANSIENT_ERROR"


@pytest.mark.parametrize("happens", [gives_up, runs_out_of_attempts])
async def test_after_a_failure_for_good_the_failure_state_runs_and_sees_the_error(
    open_site: OpenSite, happens: Any
) -> None:
    """R18, and R22: once the job has succeeded after all, it carries no error."""
    seen: list[dict[str, Any] | None] = []

    def mend(context: JobContext) -> None:
        seen.append(context.last_error)
        context.actions.transition_to("done")

    give_out = dispatch({"success": "done", "failure": "mend"})
    site = await open_site(a_blueprint("work", start=give_out, mend=mend), JOB_MAX_RETRIES="2")
    await site.door.register("w1")
    job_id = await site.door.create("work")

    code = await happens(site.door)

    job = await site.door.ended(job_id)
    assert (job["status"], job["error_message"], job["last_error"]) == ("finished", None, None)
    [error] = seen
    assert error is not None
    assert error["code"] == code
    assert "bad csv" in error["message"]


@pytest.mark.parametrize("has_failed_state", [True, False])
async def test_a_status_that_nobody_declared_leads_to_the_state_failed_if_there_is_one(
    open_site: OpenSite, *, has_failed_state: bool
) -> None:
    """R18."""
    runs: Counter[str] = Counter()

    def tidy_up(actions: ActionFactory) -> None:
        runs["failed"] += 1
        actions.transition_to("tidied_failed")

    states = {"failed": tidy_up} if has_failed_state else {"aside": go_to("done")}
    site = await open_site(
        a_blueprint(
            "work",
            ends=("done", "tidied_failed"),
            start=dispatch({"success": "done"}),
            **states,
        )
    )
    door = site.door
    await door.register("w1")
    job_id = await door.create("work")

    await door.done(await door.task("w1"), "w1", status="odd")

    job = await door.ended(job_id)
    assert job["status"] == "failed"
    assert job["error_message"] == "Worker returned unhandled status: odd"
    assert job["current_state"] == ("tidied_failed" if has_failed_state else "start")
    assert runs["failed"] == int(has_failed_state)
