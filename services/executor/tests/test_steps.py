"""One step: the handler runs on a copy, and what it asked for is stored as a whole."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from services.executor.tests.world import World, a_blueprint, dispatch, go_to

from avtomatika_common.actions import ActionFactory
from avtomatika_common.backend.ports import Stored
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.context import JobContext
from avtomatika_common.lifecycle import running
from avtomatika_core.commands import Step
from avtomatika_core.job import ApprovalWait, JobId, JobStatus
from avtomatika_executor import ExecutorService, Settings
from tests.support import until

# --- the six outcomes


async def test_a_transition_runs_the_next_state(world: World) -> None:
    blueprint = a_blueprint({"a": go_to("end")})
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    facts = [
        (f.fact.kind, f.fact.followed_by, f.fact.next_state) for f in await world.facts(job.id)
    ]
    assert (job.status, job.state) == (JobStatus.FINISHED, "end")
    assert facts == [
        ("job_created", None, None),
        ("step", "transition", "end"),
        ("step", "end", None),
        ("job_completed", None, None),
    ]


async def test_the_error_message_of_a_transition_is_the_jobs(world: World) -> None:
    def start(actions: ActionFactory) -> None:
        actions.transition_to("failed", error_message="broke")

    blueprint = a_blueprint({"a": start}, ends=("failed",))
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert (job.status, job.head.error_message) == (JobStatus.FAILED, "broke")


async def test_a_dispatched_task_waits_on_the_board_with_its_timer(world: World) -> None:
    blueprint = a_blueprint({"a": dispatch({"success": "end"}, dispatch_timeout_seconds=7.0)})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        job = await world.until_status(job_id, JobStatus.WAITING_FOR_WORKER)
        on_board = await world.board()
        until_timer = await world.seconds_to_timer()

    assert [task.job_id for task in on_board] == [job.id]
    assert until_timer == pytest.approx(7.0)
    assert [f.fact.followed_by for f in await world.facts(job.id)] == [None, "task"]
    assert await world.store.inbox.length() == 0


async def test_an_approval_asks_and_waits_without_a_deadline_of_its_own(world: World) -> None:
    def ask(actions: ActionFactory) -> None:
        actions.await_human_approval("mail", "Shall we?", {"yes": "end"})

    blueprint = a_blueprint({"a": ask})
    async with running(world.executor(blueprint)):
        job_id = await world.create_with(blueprint, webhook_url="http://x")
        waiting = await world.until_status(job_id, JobStatus.WAITING_FOR_HUMAN)
        [notice] = await world.notifications()
        due = await world.next_due()
        wait = waiting.head.wait
        assert isinstance(wait, ApprovalWait)
        await world.store.jobs.decide_approval(
            job_id, token=wait.token, decision="yes", at=world.clock.now()
        )
        job = await world.end_of(job_id)

    assert due is None
    assert notice.event == "approval_requested"
    assert notice.approval is not None
    assert notice.approval["decisions"] == ["yes"]
    assert notice.approval["token"]
    assert job.status is JobStatus.FINISHED


async def test_an_approval_nobody_gives_in_time_fails_the_job(world: World) -> None:
    def ask(actions: ActionFactory) -> None:
        actions.await_human_approval("mail", "Shall we?", {"yes": "end"}, timeout_seconds=5)

    blueprint = a_blueprint({"a": ask})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        await world.until_status(job_id, JobStatus.WAITING_FOR_HUMAN)
        assert await world.pass_time(4.9) == 0
        assert await world.pass_time(0.2) == 1
        job = await world.end_of(job_id)

    assert job.status is JobStatus.FAILED
    assert job.head.error_message == "Nobody decided on the approval 'mail' within 5 seconds."


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("end", JobStatus.FINISHED),
        ("finished", JobStatus.FINISHED),
        ("timed_out", JobStatus.FAILED),
        ("import_error", JobStatus.FAILED),
        ("cancelled", JobStatus.CANCELLED),
    ],
)
async def test_an_end_state_ends_the_job_as_its_name_says(
    world: World, end: str, status: JobStatus
) -> None:
    """R20."""
    blueprint = a_blueprint({"a": go_to(end)}, ends=(end,))
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert (job.status, job.state, job.head.error_message) == (status, end, None)


async def test_a_declared_outcome_goes_before_the_name(world: World) -> None:
    blueprint = StateMachineBlueprint("b")

    @blueprint.handler_for("done", is_start=True, is_end=True, outcome="failure")
    async def done() -> None:
        pass

    blueprint.validate()
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FAILED


async def test_a_handler_without_an_action_fails_the_job_and_names_its_state(world: World) -> None:
    """R19."""
    blueprint = a_blueprint({"idle": lambda: None})
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FAILED
    assert job.head.error_message == "Handler for state 'idle' set no action."


# --- a handler that fails


async def test_a_raising_handler_is_run_again_later_each_time_and_at_last_given_up(
    world: World,
) -> None:
    """R23: the delay doubles, within 20 %."""
    runs: list[str] = []

    def handler(job_id: str) -> None:
        runs.append(job_id)
        raise ValueError("no luck")

    blueprint = a_blueprint({"a": handler})
    delays: list[float] = []
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        for repeat in range(1, 4):
            delays.append(await world.fire_next())
            assert len(runs) == repeat
        job = await world.end_of(job_id)

    assert delays == [pytest.approx(d, rel=0.2) for d in (1.0, 2.0, 4.0)]
    assert len(runs) == 4
    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == "Handler for state 'a' raised ValueError: no luck"
    assert [f.fact.kind for f in await world.facts(job_id)].count("step_failed") == 4
    assert await world.next_due() is None


async def test_a_raising_handler_leaves_no_data_and_a_later_success_no_error(world: World) -> None:
    """R22, R23."""
    runs: list[str] = []

    async def handler(
        state_history: dict[str, Any], initial_data: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history.setdefault("entries", []).append("here")
        initial_data["deep"]["count"] += 1
        actions.transition_to("end")
        runs.append("run")
        if len(runs) == 1:
            raise KeyError("first")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint, deep={"count": 0})
        failed = await world.until_status(job_id, JobStatus.AWAITING_RETRY)
        await world.pass_time(2.0)
        job = await world.end_of(job_id)

    assert failed.data.state_history == {}
    assert failed.initial_data == {"deep": {"count": 0}}
    assert job.data.state_history == {"entries": ["here"]}
    assert job.initial_data == {"deep": {"count": 1}}
    assert (job.status, job.head.error_message) == (JobStatus.FINISHED, None)


async def test_each_state_has_its_own_retries(world: World) -> None:
    """R22."""
    failures = {"a": 3, "b": 3}

    def flaky(context: JobContext) -> None:
        if failures[context.current_state]:
            failures[context.current_state] -= 1
            raise OSError("again")
        context.actions.transition_to("b" if context.current_state == "a" else "end")

    blueprint = a_blueprint({"a": flaky, "b": flaky})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        for _ in range(6):
            await world.fire_next()
        job = await world.end_of(job_id)

    assert (job.status, job.head.error_message) == (JobStatus.FINISHED, None)


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_handler_that_exits_or_cancels_itself_only_fails(
    world: World, *, is_async: bool
) -> None:
    """Such an error would end the executor, or leave the job where it is."""
    errors: list[type[BaseException]] = [SystemExit, asyncio.CancelledError]

    def plain(actions: ActionFactory) -> None:
        actions.transition_to("end")
        if errors:
            raise errors.pop()

    async def coroutine(actions: ActionFactory) -> None:
        plain(actions)

    blueprint = a_blueprint({"a": coroutine if is_async else plain})
    messages: list[str | None] = []
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        for _ in range(2):
            await until(world.next_due)
            messages.append((await world.job(job_id)).head.error_message)
            await world.fire_next()
        job = await world.end_of(job_id)

    assert messages == [
        "Handler for state 'a' raised CancelledError: ",
        "Handler for state 'a' raised SystemExit: ",
    ]
    assert job.status is JobStatus.FINISHED


async def test_two_actions_in_one_step_are_an_error_of_the_handler(world: World) -> None:
    def both(actions: ActionFactory) -> None:
        actions.transition_to("end")
        actions.dispatch_task("t", {}, {})

    blueprint = a_blueprint({"a": both})
    async with running(world.executor(blueprint, max_retries=0)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == (
        "Handler for state 'a' raised RuntimeError: Cannot set multiple actions in the same step. "
        "An action (transition, task, blueprint, or parallel) has already been defined."
    )
    assert await world.board() == []


async def test_a_job_that_ends_badly_is_one_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    blueprint = a_blueprint({"a": dispatch({"success": "end"})})
    async with running(world.executor(blueprint, max_retries=1)):
        job_id = await world.create(blueprint)
        await world.fail(await world.take(), message="no disk")
        await world.fire_next()
        await world.fail(await world.take(), message="no disk")
        job = await world.end_of(job_id)
        await world.until_all_is_answered()

    assert job.status is JobStatus.QUARANTINED
    [line] = [one for one in caplog.records if one.message.startswith("job ")]
    assert (line.levelno, line.message) == (logging.WARNING, "job quarantined")
    assert vars(line)["job_id"] == job_id
    assert vars(line)["blueprint"] == "b"
    assert vars(line)["error"] == "Task failed after 2 attempts: no disk"


async def test_a_signal_that_comes_after_a_bad_end_is_kept_and_no_second_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    blueprint = a_blueprint({"a": dispatch({"success": "end"})})
    async with running(world.executor(blueprint, max_retries=0)):
        job_id = await world.create(blueprint)
        await world.fail(await world.take())
        await world.send(job_id)
        await world.end_of(job_id)
        await world.until_all_is_answered()

    assert len((await world.job(job_id)).signals.kept) == 1
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == [
        "job quarantined"
    ]


@pytest.mark.parametrize(("end", "words"), [("failed", ["job failed"]), ("end", [])])
async def test_only_a_bad_end_state_is_a_warning(
    world: World, caplog: pytest.LogCaptureFixture, end: str, words: list[str]
) -> None:
    blueprint = a_blueprint({"a": go_to(end)}, ends=("end", "failed"))
    async with running(world.executor(blueprint)):
        await world.end_of(await world.create(blueprint))
        await world.until_all_is_answered()

    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == words


async def test_a_failing_handler_is_logged_once_with_ids_and_without_data(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """R61."""

    def handler(secret: str) -> None:
        raise ValueError("no")

    blueprint = a_blueprint({"a": handler})
    with caplog.at_level(logging.INFO, "avtomatika"):
        async with running(world.executor(blueprint)):
            job_id = await world.create(blueprint, secret="hush-hush")
            await world.until_status(job_id, JobStatus.AWAITING_RETRY)

    [line] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.getMessage() == "handler raised"
    assert vars(line)["job_id"] == job_id
    assert vars(line)["state"] == "a"
    assert line.exc_info is not None
    assert "hush-hush" not in caplog.text + repr([vars(record) for record in caplog.records])


# --- definition errors


async def quarantined_at_once(world: World, blueprint: StateMachineBlueprint) -> str | None:
    """R24: the error of a job of this blueprint, after one attempt."""
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))
    assert job.status is JobStatus.QUARANTINED
    assert [f.fact.kind for f in await world.facts(job.id)].count("step_failed") == 1
    assert job.head.retry_count == 0
    return job.head.error_message


async def test_an_argument_that_nothing_supplies_is_named(world: World) -> None:
    def handler(nowhere: str) -> None:
        raise AssertionError(nowhere)

    error = await quarantined_at_once(world, a_blueprint({"a": handler}))

    assert error is not None
    assert "'nowhere'" in error


async def test_a_state_without_a_handler_is_named(world: World) -> None:
    blueprint = StateMachineBlueprint("b")

    @blueprint.handler_for("a", is_start=True, targets=[])
    async def handler(initial_data: dict[str, str], actions: ActionFactory) -> None:
        actions.transition_to(initial_data.get("to", "nirvana"))

    blueprint.validate()
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == (
        "No suitable handler found for state 'nirvana' in blueprint 'b' for the given context."
    )


async def test_conditional_handlers_only_and_none_that_matches(world: World) -> None:
    """R55, R57."""
    blueprint = StateMachineBlueprint("b")

    @blueprint.handler_for("a", is_start=True, is_end=True).when("context.initial_data.n > 3")
    async def handler() -> None:
        pass

    blueprint.validate()
    async with running(world.executor(blueprint)):
        bad = await world.end_of(await world.create(blueprint, n="a"))
        good = await world.end_of(await world.create(blueprint, n=4))

    assert bad.status is JobStatus.QUARANTINED
    assert bad.head.error_message == (
        "No suitable handler found for state 'a' in blueprint 'b' for the given context."
    )
    assert good.status is JobStatus.FINISHED


async def test_an_unknown_sub_blueprint_is_named(world: World) -> None:
    def handler(actions: ActionFactory) -> None:
        actions.run_blueprint("nobodys", {}, {"success": "end"})

    error = await quarantined_at_once(world, a_blueprint({"a": handler}))

    assert error == "Blueprint 'nobodys' not found."


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"at": datetime(2026, 1, 1, tzinfo=UTC)}, "state_history.kept.at as datetime"),
        ([0, {1, 2}], "state_history.kept[1] as set"),
        ({1: "one"}, "state_history.kept as dict with a key of type int"),
        (b"raw", "state_history.kept as bytes"),
        (2**70, "state_history.kept as int of more than 64 bits"),
    ],
)
async def test_data_json_cannot_carry_is_named(world: World, value: object, problem: str) -> None:
    def handler(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["kept"] = value
        actions.transition_to("end")

    error = await quarantined_at_once(world, a_blueprint({"a": handler}))

    assert error == f"Handler for state 'a' left {problem}, which JSON cannot carry."


async def test_params_json_cannot_carry_are_named(world: World) -> None:
    def handler(actions: ActionFactory) -> None:
        actions.dispatch_task("t", {"when": datetime(2026, 1, 1, tzinfo=UTC)}, {"success": "end"})

    error = await quarantined_at_once(world, a_blueprint({"a": handler}))

    assert error == ("Handler for state 'a' left params.when as datetime, which JSON cannot carry.")
    assert await world.board() == []


async def test_a_job_whose_blueprint_nobody_hosts_is_quarantined(world: World) -> None:
    unknown = a_blueprint({"a": go_to("end")}, name="gone")
    known = a_blueprint({"a": go_to("end")}, name="known")
    async with running(world.executor(known)):
        job = await world.end_of(await world.create(unknown))

    assert job.status is JobStatus.QUARANTINED
    assert job.head.error_message == "Blueprint 'gone' not found."


# --- data


async def test_data_comes_back_as_json_and_as_a_copy(world: World) -> None:
    """R63."""
    kept: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []

    async def first(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["pair"] = (1, 2)
        kept.append(state_history)
        actions.transition_to("second")

    async def second(state_history: dict[str, Any], actions: ActionFactory) -> None:
        kept[0]["pair"] = "changed behind the store's back"
        seen.append(state_history)
        actions.transition_to("third")

    async def third(state_history: dict[str, Any], actions: ActionFactory) -> None:
        seen.append(state_history)
        actions.transition_to("end")

    blueprint = a_blueprint({"first": first, "second": second, "third": third})
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert seen == [{"pair": [1, 2]}, {"pair": [1, 2]}]
    assert job.data.state_history == {"pair": [1, 2]}


async def test_context_updates_are_merged_with_the_step(world: World) -> None:
    async def handler(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["own"] = 1
        actions.update_context({"more": [2]})
        actions.transition_to("end")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job = await world.end_of(await world.create(blueprint))

    assert job.data.state_history == {"own": 1, "more": [2]}


async def test_an_event_a_handler_sends_goes_out_with_its_step(world: World) -> None:
    raises = [True]

    def handler(context: JobContext) -> None:
        context.actions.send_event("priced", {"total": 3})
        if raises:
            raises.pop()
            raise OSError("not yet")
        context.actions.transition_to("end")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create_with(blueprint, webhook_url="http://hook/")
        await world.until_status(job_id, JobStatus.AWAITING_RETRY)
        of_the_failed_run = await world.notifications()
        await world.fire_next()
        await world.end_of(job_id)
    priced, finished = await world.notifications()

    assert of_the_failed_run == []
    assert (priced.event, priced.status) == ("worker_event:priced", "running")
    assert priced.worker_event is not None
    assert (priced.worker_event["worker_id"], priced.worker_event["payload"]) == (
        None,
        {"total": 3},
    )
    assert finished.event == "job_finished"


async def test_an_event_that_json_cannot_carry_is_named(world: World) -> None:
    def handler(context: JobContext) -> None:
        context.actions.send_event("priced", {"when": datetime(2026, 1, 1, tzinfo=UTC)})
        context.actions.transition_to("end")

    error = await quarantined_at_once(world, a_blueprint({"a": handler}))

    assert error == (
        "Handler for state 'a' left send_event[0].when as datetime, which JSON cannot carry."
    )


async def test_a_handler_gets_webhook_url_client_and_the_other_fields(world: World) -> None:
    """R60."""
    seen: list[tuple[object, ...]] = []

    def handler(context: JobContext) -> None:
        seen.append(
            (context.job_id, context.current_state, context.webhook_url, context.client.plan)
        )
        context.actions.transition_to("end")

    blueprint = a_blueprint({"a": handler})
    async with running(world.executor(blueprint)):
        job_id = await world.create_with(blueprint, webhook_url="http://hook")
        await world.end_of(job_id)

    assert seen == [(job_id, "a", "http://hook", "unknown")]


# --- what limits and follows a step


async def test_a_loop_is_ended(world: World) -> None:
    blueprint = a_blueprint({"a": go_to("b"), "b": go_to("a")})
    async with running(world.executor(blueprint, max_transitions=20)):
        job = await world.end_of(await world.create(blueprint))

    assert job.status is JobStatus.FAILED
    assert job.head.transition_count == 20
    assert "MAX_TRANSITIONS_PER_JOB" in (job.head.error_message or "")


async def test_whoever_asked_is_told_of_each_commit_in_order(world: World) -> None:
    told: list[tuple[str, str]] = []

    async def note(stored: Stored, step: Step) -> None:
        assert step.job is stored.job
        told.append((stored.job.state, stored.job.status))

    blueprint = a_blueprint({"a": go_to("end")})
    executor = ExecutorService(Settings(), world.store, [blueprint], on_commit=note)
    async with running(executor):
        await world.end_of(await world.create(blueprint))

    assert told == [("a", "running"), ("end", "running"), ("end", "finished")]


@pytest.mark.parametrize(
    ("way", "status", "event"),
    [
        ("end", JobStatus.FINISHED, "job_finished"),
        ("failed", JobStatus.FAILED, "job_failed"),
        ("cancelled", JobStatus.CANCELLED, "job_cancelled"),
        ("raise", JobStatus.QUARANTINED, "job_quarantined"),
        ("nothing", JobStatus.FAILED, "job_failed"),
        ("cancel", JobStatus.CANCELLED, "job_cancelled"),
    ],
)
async def test_each_way_to_end_is_recorded_and_told_once(
    world: World, way: str, status: JobStatus, event: str
) -> None:
    """R17."""

    async def handler(job_id: str, state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history["way"] = way
        if way == "raise":
            raise ValueError("no")
        if way == "cancel":
            await world.cancel(JobId(job_id))
        if way != "nothing":
            actions.transition_to("end" if way == "cancel" else way)

    blueprint = a_blueprint({"a": handler}, ends=("end", "failed", "cancelled"))
    async with running(world.executor(blueprint, max_retries=0)):
        job_id = await world.create_with(blueprint, webhook_url="http://hook")
        job = await world.end_of(job_id)
        await world.until_all_is_answered()

    [notice] = await world.notifications()
    [*_, last] = facts = await world.facts(job_id)
    assert (job.status, job.head.finished_at) == (status, world.clock.now())
    assert (notice.event, notice.status, notice.url) == (event, status, "http://hook")
    assert notice.result == job.data.state_history
    assert [fact.fact.kind for fact in facts].count("job_completed") == 1
    assert last.fact.kind == "job_completed"
    assert last.snapshot["status"] == status


async def test_an_event_of_an_ended_job_changes_nothing(world: World) -> None:
    blueprint = a_blueprint({"a": dispatch({"success": "end"})})
    async with running(world.executor(blueprint)):
        job_id = await world.create(blueprint)
        task = await world.take()
        await world.succeed(task)
        job = await world.end_of(job_id)
        before = (world.record(job_id).fence, world.record(job_id).head)
        answer = await world.succeed(task)
        await world.until_all_is_answered()

    assert answer == "ok"  # the same result once more
    assert (world.record(job_id).fence, world.record(job_id).head) == before
    assert job.status is JobStatus.FINISHED
