"""A job that has ended runs again: it has back what its end took, and lives as any other."""

import asyncio

import pytest

from avtomatika_common.backend.ports import (
    DropAnswer,
    JobNotFound,
    ResultAnswer,
    StaleJob,
    StorageBackend,
    Stored,
)
from avtomatika_common.records import unpack_fact, unpack_notification
from avtomatika_core.events import (
    ChildFinished,
    Continue,
    JobSetAside,
    JobTimedOut,
    SignalReceived,
)
from avtomatika_core.job import Job, JobId, JobStatus, WorkerId
from avtomatika_core.machine import step
from avtomatika_core.outcomes import RunBlueprint
from avtomatika_core.redrive import redrive
from tests.contract.builders import (
    RULES,
    TO_END,
    WAIT,
    Claim,
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    errors,
    fire,
    next_due,
    parallel,
    take,
)
from tests.contract.conftest import Bench, Open, PassTime

ME = WorkerId("worker-1")


async def loaded(backend: StorageBackend, job_id: str) -> Stored:
    stored = await backend.jobs.load(JobId(job_id))
    assert stored is not None
    return stored


async def ended(executor: Executor, job: Job | None = None) -> Stored:
    """A job that is quarantined, as it is read then."""
    claim = await executor.raised(await executor.start(job), is_final=True)
    return await loaded(executor.backend, claim.job.id)


async def run_again(backend: StorageBackend, stored: Stored) -> None:
    await backend.jobs.redrive(stored, redrive(stored.job, backend.clock.now()))


async def carried(executor: Executor) -> Claim:
    """The job whose entry comes next, as an executor takes it up."""
    delivery = await executor.read()
    assert isinstance(delivery.event, Continue)
    assert await executor.backend.inbox.drop(delivery) is DropAnswer.CARRIES
    return Claim(await loaded(executor.backend, delivery.job_id), delivery)


async def test_a_redriven_job_is_carried_to_its_end(backend: StorageBackend) -> None:
    """R62."""
    executor = Executor(backend)
    stored = await ended(executor)

    await run_again(backend, stored)

    claim = await carried(executor)
    assert (claim.job.status, claim.job.state) == (JobStatus.RUNNING, "start")
    assert claim.job.run == stored.job.run + 1
    assert claim.stored.claim == claim.delivery.entry_id
    done = await executor.end(claim)
    assert done.job.status is JobStatus.FINISHED
    assert await backend.inbox.length() == 0


async def test_a_redriven_job_is_counted_once_and_off_the_quarantine_list(
    backend: StorageBackend,
) -> None:
    """R62."""
    executor = Executor(backend)
    stored = await ended(executor, a_job(backend, client="ann"))
    assert await backend.jobs.quarantined("ann") == [stored.job.id]

    await run_again(backend, stored)

    assert await backend.jobs.quarantined("ann") == []
    for owner in (None, "ann"):
        assert await backend.jobs.count_by_status(owner) == {JobStatus.RUNNING: 1}
    await executor.end(await carried(executor))
    for owner in (None, "ann"):
        assert await backend.jobs.count_by_status(owner) == {JobStatus.FINISHED: 1}


async def test_a_job_that_was_taken_off_the_list_can_be_redriven(backend: StorageBackend) -> None:
    """R62."""
    executor = Executor(backend)
    stored = await ended(executor)
    assert await backend.jobs.forget_quarantined(stored.job.id)

    await run_again(backend, stored)

    assert (await carried(executor)).job.status is JobStatus.RUNNING


async def test_a_redrive_and_a_removal_at_once_leave_a_running_job_that_is_not_listed(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    stored = await ended(executor)

    await asyncio.gather(run_again(backend, stored), backend.jobs.forget_quarantined(stored.job.id))

    assert await backend.jobs.quarantined() == []
    assert (await carried(executor)).job.status is JobStatus.RUNNING


async def test_a_redriven_job_does_not_end_with_the_retention_of_its_first_end(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    """R62."""
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    claim = await executor.dispatch()
    task = await take(backend)
    event = a_success(backend, task.task_id)
    await backend.board.end_lease(claim.job.id, ME, event)
    claim = await executor.apply(await executor.read())
    signal = SignalReceived(at=backend.clock.now(), name="paid")
    await backend.jobs.send_signal(claim.job.id, signal)
    await executor.apply(await executor.read())
    claim = Claim(await loaded(backend, claim.job.id), claim.delivery)
    claim = await executor.raised(claim, is_final=True)
    before = await bench.contents()

    await run_again(backend, await loaded(backend, claim.job.id))
    await pass_time(1.1)
    await backend.jobs.create(a_job(backend))  # makes the memory store forget what is over

    again = await loaded(backend, claim.job.id)
    assert again.job.status is JobStatus.RUNNING
    assert again.job.data.state_history == {"done": True}
    assert [one.name for one in again.job.signals.kept] == ["paid"]
    of_the_job = {key for key in before if claim.job.id in key}
    assert of_the_job <= set(await bench.contents())
    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED


async def test_the_second_end_forgets_the_job(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    """R62."""
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    stored = await ended(executor)
    await run_again(backend, stored)
    await executor.end(await carried(executor))

    await pass_time(1.1)

    assert await backend.jobs.load(stored.job.id) is None
    assert not [key for key in await bench.contents() if stored.job.id in key]


async def test_results_of_a_fan_out_are_there_for_the_aggregator_that_runs_again(
    open_backend: Open, pass_time: PassTime
) -> None:
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), parallel(a_task()))
    task = await take(backend)
    event = a_success(backend, task.task_id)
    await backend.board.end_lease(claim.job.id, ME, event)
    await executor.settle(await executor.read())
    joined = await executor.apply(await executor.read())
    await executor.raised(joined, is_final=True)

    await run_again(backend, await loaded(backend, claim.job.id))
    await pass_time(1.1)

    again = await carried(executor)
    assert (again.job.state, again.job.head.aggregating) == ("join", True)
    assert list(await backend.jobs.branch_results(again.job.id)) == [task.task_id]


async def test_a_job_whose_time_was_over_has_all_of_it_again(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    job = a_job(backend, timeout_seconds=0.5)
    await executor.start(job)
    await pass_time(0.51)
    await fire(backend)
    late = await executor.read()
    assert isinstance(late.event, JobTimedOut)
    failed = await executor.apply(late)
    assert failed.job.status is JobStatus.FAILED
    assert await next_due(backend) is None
    redriven_at = backend.clock.now()

    await run_again(backend, await loaded(backend, job.id))

    due = await next_due(backend)
    assert due is not None
    assert due == pytest.approx(redriven_at + 0.5, abs=0.2)
    await pass_time(0.75)
    assert await fire(backend) == 1
    assert (await loaded(backend, job.id)).job.cancelled


async def test_of_two_redrives_at_once_one_takes_effect(backend: StorageBackend) -> None:
    executor = Executor(backend)
    one = await ended(executor)
    other = await loaded(backend, one.job.id)

    outcomes = await asyncio.gather(
        run_again(backend, one), run_again(backend, other), return_exceptions=True
    )

    assert errors(outcomes) == [StaleJob]
    assert await backend.inbox.length() == 1
    assert await backend.jobs.count_by_status() == {JobStatus.RUNNING: 1}


async def test_a_repeated_call_changes_nothing(backend: StorageBackend) -> None:
    executor = Executor(backend)
    stored = await ended(executor)
    await run_again(backend, stored)
    fence = (await loaded(backend, stored.job.id)).fence

    await run_again(backend, stored)

    assert (await loaded(backend, stored.job.id)).fence == fence
    assert await backend.inbox.length() == 1


async def test_a_job_that_is_gone_is_not_redriven(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    """R64."""
    backend = await open_backend(retention_seconds=1)
    stored = await ended(Executor(backend))
    await pass_time(1.1)

    with pytest.raises(JobNotFound):
        await run_again(backend, stored)

    assert not [key for key in await bench.contents() if stored.job.id in key]
    assert await backend.inbox.length() == 0


async def test_a_redriven_job_can_be_cancelled(backend: StorageBackend) -> None:
    """R40."""
    executor = Executor(backend)
    stored = await ended(executor)
    await run_again(backend, stored)
    claim = await carried(executor)

    await backend.jobs.request_cancel(stored.job.id, a_cancel(backend))

    with pytest.raises(StaleJob):
        await executor.run(claim, TO_END)
    assert (await executor.apply(await executor.read())).job.status is JobStatus.CANCELLED


async def test_a_handler_that_ran_before_the_end_does_not_count_after_a_redrive(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    slow, executor = Executor(backend, "slow"), Executor(backend)
    claim = await slow.start(a_job(backend, timeout_seconds=0.5))
    await pass_time(0.51)
    await fire(backend)
    await executor.apply(await executor.read())
    await run_again(backend, await loaded(backend, claim.job.id))

    with pytest.raises(StaleJob):
        await slow.run(claim, TO_END)

    assert not await backend.jobs.is_wanted(claim.job.id, claim.job.run)
    assert await backend.inbox.drop(claim.delivery) is DropAnswer.DROPPED
    assert (await carried(executor)).job.state == "start"


async def test_a_signal_that_was_on_its_way_at_the_end_is_kept_for_the_redrive(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    signal = SignalReceived(at=backend.clock.now(), name="paid", data={"amount": 3})
    await backend.jobs.send_signal(claim.job.id, signal)
    ended = await executor.raised(claim, is_final=True)

    await executor.apply(await executor.read())

    assert await backend.inbox.length() == 0
    assert await backend.jobs.quarantined() == [ended.job.id]
    assert await backend.jobs.count_by_status() == {JobStatus.QUARANTINED: 1}
    await run_again(backend, await loaded(backend, ended.job.id))
    again = await executor.run(await carried(executor), WAIT)
    assert (again.job.state, again.job.data.state_history) == ("next", {"amount": 3})


async def test_a_signal_kept_after_the_end_does_not_lengthen_the_retention(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    claim = await executor.start()
    signal = SignalReceived(at=backend.clock.now(), name="paid")
    await backend.jobs.send_signal(claim.job.id, signal)
    await executor.raised(claim, is_final=True)
    await executor.apply(await executor.read())

    await pass_time(1.1)

    assert await backend.jobs.load(claim.job.id) is None
    assert not [key for key in await bench.contents() if claim.job.id in key]


async def test_tries_of_what_was_left_behind_do_not_count_for_a_redriven_job(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    dead, executor = Executor(backend, "dead"), Executor(backend)
    claim = await dead.start(a_job(backend, timeout_seconds=0.5))
    await pass_time(0.51)
    await fire(backend)
    await executor.apply(await executor.read())
    await backend.inbox.take_over("default", "dead", executor.name, 20)
    stored = await loaded(backend, claim.job.id)
    assert stored.tries == 1

    await run_again(backend, stored)

    assert (await loaded(backend, claim.job.id)).tries == 0


async def test_a_dead_event_of_a_redriven_job_does_not_bring_it_back_to_where_it_was(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    made = step(claim.job, JobSetAside(at=backend.clock.now(), reason="why"), RULES)
    await backend.jobs.commit(claim.stored, made, claim.delivery, set_aside="why")
    await run_again(backend, await loaded(backend, claim.job.id))
    again = await carried(executor)
    fence = again.stored.fence

    [dead] = await backend.dead_events.newest(10)
    assert await backend.dead_events.replay(dead.dead_id)

    assert (await loaded(backend, claim.job.id)).fence == fence
    assert await backend.inbox.drop(await executor.read()) is DropAnswer.DROPPED
    assert (await executor.end(again)).job.status is JobStatus.FINISHED


async def test_a_redrive_is_a_fact_and_so_is_each_end(open_backend: Open) -> None:
    """R62, R66."""
    backend = await open_backend(keep_facts=True)
    executor = Executor(backend)
    stored = await ended(executor)
    await run_again(backend, stored)
    await executor.end(await carried(executor))

    facts = [unpack_fact(entry.payload) for entry in await backend.facts.read("history-1", 100)]

    kinds = [fact.fact.kind for fact in facts]
    assert kinds == [
        "job_created", "step_failed", "job_completed", "job_redriven", "step", "step", "job_completed",
    ]  # fmt: skip
    assert [fact.order for fact in facts] == sorted({fact.order for fact in facts})
    assert len({fact.id for fact in facts}) == len(facts)
    redriven = facts[3]
    assert redriven.snapshot["status"] == "running"
    assert redriven.fact.details == {"previous_status": "quarantined", "previous_error": "no"}


async def test_each_end_is_told_by_a_webhook_of_its_own(backend: StorageBackend) -> None:
    executor = Executor(backend)
    stored = await ended(executor, a_job(backend, webhook_url="http://receiver/"))
    await run_again(backend, stored)
    await executor.end(await carried(executor))

    told = [unpack_notification(one.payload) for one in await backend.notifications.read("n", 10)]

    assert [notice.event for notice in told] == ["job_quarantined", "job_finished"]
    assert len({notice.id for notice in told}) == 2


async def test_a_parent_that_went_on_hears_nothing_more_of_its_redriven_child(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    action = RunBlueprint(
        blueprint="b", initial_data={}, transitions={"success": "end", "failure": "next"}
    )
    parent = await executor.run(await executor.start(), action)
    child = await executor.apply(await executor.read())
    await executor.raised(child, is_final=True)
    parent = await executor.apply(await executor.read())
    assert parent.job.state == "next"

    await run_again(backend, await loaded(backend, child.job.id))
    await executor.end(await carried(executor))

    answer = await executor.read()
    assert isinstance(answer.event, ChildFinished)
    assert step(parent.job, answer.event, RULES).job is parent.job
    assert await backend.inbox.drop(answer) is DropAnswer.DROPPED
