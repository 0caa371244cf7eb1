"""The board: a task waits its turn, is with one worker, and ends once."""

import asyncio
from functools import partial

import pytest

from avtomatika_common import ids
from avtomatika_common.backend.ports import ResultAnswer, StorageBackend, WaitingTask
from avtomatika_core.events import TaskFailed, TaskSucceeded, TaskTimedOut
from avtomatika_core.job import JobId, JobStatus, TaskId, WorkerId
from avtomatika_core.outcomes import DispatchTask
from tests.contract.builders import (
    Claim,
    Executor,
    a_cancel,
    a_failure,
    a_job,
    a_success,
    a_task,
    fire,
    lease,
    next_due,
    parallel,
    take,
    the_waiting_task,
    waiting_tasks,
)
from tests.contract.conftest import Open, PassTime

ME, OTHER = WorkerId("worker-1"), WorkerId("worker-2")


# --- order


async def test_equal_tasks_are_handed_out_in_the_order_they_came(backend: StorageBackend) -> None:
    executor = Executor(backend)  # R51
    asked = [(await executor.dispatch()).task_id for _ in range(100)]

    given: list[str] = []
    while tasks := await backend.board.heads(0, 1):
        leased = await lease(backend, tasks[0])
        assert leased is not None
        given.append(leased.task_id)

    assert given == asked


async def test_higher_priority_comes_first(backend: StorageBackend) -> None:
    executor = Executor(backend)  # R51
    asked = {
        priority: (await executor.dispatch(a_task(priority=priority))).task_id
        for priority in (0.0, 5.0, -1.5, 9.0)
    }

    tasks = await backend.board.heads(0, 10)

    assert [task.task_id for task in tasks] == [asked[p] for p in (9.0, 5.0, 0.0, -1.5)]
    assert [task.priority for task in tasks] == [9.0, 5.0, 0.0, -1.5]
    assert [task.task_id for task in await backend.board.heads(0, 1)] == [tasks[0].task_id]


async def test_each_shape_shows_its_own_heads(backend: StorageBackend) -> None:
    executor = Executor(backend)
    gpu = {"gpu": {"vram_gb": 8}}
    for _ in range(3):
        await executor.dispatch(a_task("render", resource_requirements=gpu, max_cost=0.5))
        await executor.dispatch(a_task("scan", strategy="cheapest"))

    heads = await backend.board.heads(0, 2)

    assert sorted(task.type for task in heads) == ["render", "render", "scan", "scan"]
    render = next(task for task in heads if task.type == "render")
    assert (render.resource_requirements, render.max_cost) == (gpu, 0.5)
    assert render.offer_number == 1
    assert {task.strategy for task in heads if task.type == "scan"} == {"cheapest"}
    assert await backend.board.length() == 6


async def test_a_job_shows_which_of_its_tasks_wait(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(
        a_task("render", resource_requirements={"cpu_cores": 2}, max_cost=0.5, priority=3.0)
    )
    other = await executor.dispatch()

    [task] = await backend.board.waiting(claim.job.id, 100)

    assert task.task_id == claim.task_id
    assert task in await backend.board.heads(0, 1)
    assert (task.type, task.resource_requirements, task.max_cost) == (
        "render", {"cpu_cores": 2}, 0.5,
    )  # fmt: skip
    assert [t.task_id for t in await backend.board.waiting(other.job.id, 100)] == [other.task_id]
    await lease(backend, task)
    assert await backend.board.waiting(claim.job.id, 100) == []
    assert await backend.board.waiting(JobId(ids.new_id()), 100) == []


async def test_branches_that_wait_are_shown_in_the_order_of_the_board(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    tasks = [a_task(f"t{number}", priority=float(number == 4)) for number in range(6)]
    claim = await executor.run(await executor.start(), parallel(*tasks))
    for task in (await waiting_tasks(backend))[1:3]:
        await lease(backend, task)

    shown = await backend.board.waiting(claim.job.id, 100)

    assert [task.type for task in shown] == ["t4", "t2", "t3", "t5"]
    assert shown == await waiting_tasks(backend)
    assert len(await backend.board.waiting(claim.job.id, 2)) == 2


async def test_a_wide_fan_out_shows_as_many_as_are_asked_for(backend: StorageBackend) -> None:
    claim = await Executor(backend).fan_out(250)

    shown = await backend.board.waiting(claim.job.id, 100)

    assert len({task.task_id for task in shown}) == 100
    assert len(await backend.board.waiting(claim.job.id, 1000)) == 250


async def test_a_task_has_its_type_while_it_is_open(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch(a_task("scan"))
    job_id, task_id = claim.job.id, claim.task_id
    assert await backend.board.type_of(task_id, job_id) == "scan"
    await take(backend)

    assert await backend.board.type_of(task_id, job_id) == "scan"
    assert await backend.board.type_of(task_id, JobId(ids.new_id())) is None
    assert await backend.board.type_of(TaskId(ids.new_id()), job_id) is None
    await backend.board.end_lease(job_id, ME, a_success(backend, task_id))
    assert await backend.board.type_of(task_id, job_id) is None


# --- handing out


async def test_the_worker_gets_the_task_as_the_handler_described_it(
    backend: StorageBackend,
) -> None:
    claim = await Executor(backend).dispatch(a_task("scan", params={"path": ["/a"]}))

    leased = await lease(backend)

    assert leased is not None
    assert leased.task_id == claim.task_id
    assert leased.job_id == claim.job.id
    assert (leased.type, leased.params) == ("scan", {"path": ["/a"]})
    assert leased.params_metadata is None
    assert await backend.board.length() == 0


async def test_one_of_many_pollers_gets_a_task(backend: StorageBackend) -> None:
    await Executor(backend).dispatch()
    task = await the_waiting_task(backend)

    answers = await asyncio.gather(
        *(lease(backend, task, f"worker-{number}") for number in range(20))
    )

    assert len([answer for answer in answers if answer is not None]) == 1


async def test_an_earlier_offer_of_a_task_is_not_leased(backend: StorageBackend) -> None:
    await Executor(backend).dispatch()
    first_offer = await the_waiting_task(backend)
    await lease(backend, first_offer)
    await backend.board.undeliver(first_offer.task_id, first_offer.job_id, ME)

    assert await lease(backend, first_offer) is None

    second_offer = await the_waiting_task(backend)
    assert second_offer.offer_number == first_offer.offer_number + 1
    assert await lease(backend, second_offer) is not None


async def test_a_task_that_could_not_be_delivered_keeps_its_place(backend: StorageBackend) -> None:
    executor = Executor(backend)  # R51
    asked = [
        (await executor.dispatch(a_task(priority=priority))).task_id for priority in (5.0, 5.0, 0.0)
    ]
    first = (await waiting_tasks(backend))[0]
    await lease(backend, first)

    await backend.board.undeliver(first.task_id, first.job_id, ME)

    assert [task.task_id for task in await waiting_tasks(backend)] == asked
    assert [task.task_id for task in await waiting_tasks(backend, 1)] == asked[:1]
    view = await backend.jobs.view(first.job_id)
    assert view is not None
    assert view.job.head.task_retry_count == 0
    assert view.task is not None
    assert view.task.worker_id is None
    assert await backend.inbox.length() == 0


async def test_a_delivery_nobody_confirmed_goes_back_to_its_place(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    asked = [(await executor.dispatch()).task_id for _ in range(2)]
    await lease(backend, (await waiting_tasks(backend))[0])
    assert await fire(backend) == 0

    await pass_time(0.11)

    assert await fire(backend) == 1
    assert [task.task_id for task in await waiting_tasks(backend)] == asked
    assert await backend.inbox.length() == 0


async def test_a_confirmed_delivery_stays_with_the_worker(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    await Executor(backend).dispatch()
    leased = await take(backend)

    await backend.board.undeliver(leased.task_id, leased.job_id, ME)
    await pass_time(0.11)

    assert await fire(backend) == 0
    assert await waiting_tasks(backend) == []


async def test_only_the_holder_confirms_or_gives_back(backend: StorageBackend) -> None:
    await Executor(backend).dispatch()
    leased = await lease(backend)
    assert leased is not None
    due = await next_due(backend)

    await backend.board.confirm(leased.task_id, leased.job_id, OTHER)
    await backend.board.undeliver(leased.task_id, leased.job_id, OTHER)

    assert await next_due(backend) == due
    assert await waiting_tasks(backend) == []


async def test_readers_see_who_has_the_task_and_until_when(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch(a_task(result_timeout_seconds=60.0))
    before = backend.clock.now()
    await take(backend)

    view = await backend.jobs.view(claim.job.id)

    assert view is not None
    assert view.task is not None
    assert view.task.worker_id == ME
    assert view.task.picked_up_at == pytest.approx(before, abs=0.5)
    assert view.task.result_deadline == pytest.approx((view.task.picked_up_at or 0) + 60, abs=0.01)


async def test_readers_see_why_a_task_waits(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()
    task = await the_waiting_task(backend)

    await backend.board.explain(task, "no worker for 't'")

    document = await backend.get_job_state(claim.job.id)
    assert document is not None
    assert document["waiting_reason"] == "no worker for 't'"
    await backend.board.explain(task, None)
    document = await backend.get_job_state(claim.job.id)
    assert document is not None
    assert "waiting_reason" not in document


# --- deadlines


async def test_timers_exist_exactly_as_long_as_the_wait(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R8."""
    executor = Executor(backend)
    await executor.dispatch(a_task(dispatch_timeout_seconds=30.0))
    dispatched_at = backend.clock.now()
    assert await next_due(backend) == pytest.approx(dispatched_at + 30.0, abs=0.5)

    await pass_time(0.03)
    leased = await lease(backend)
    assert leased is not None
    assert leased.leased_at is not None
    assert await next_due(backend) == pytest.approx(leased.leased_at + 0.1, abs=0.002)

    await pass_time(0.03)
    await backend.board.confirm(leased.task_id, leased.job_id, ME)
    assert await next_due(backend) == pytest.approx(leased.leased_at + 60.0, abs=0.002)

    event = a_success(backend, leased.task_id)
    assert await backend.board.end_lease(leased.job_id, ME, event) is ResultAnswer.APPLIED
    assert await next_due(backend) is None


async def test_an_undelivered_task_has_its_dispatch_deadline_again(
    backend: StorageBackend,
) -> None:
    """R7, R8."""
    await Executor(backend).dispatch(a_task(dispatch_timeout_seconds=30.0))
    deadline = await next_due(backend)
    leased = await lease(backend)
    assert leased is not None

    await backend.board.undeliver(leased.task_id, leased.job_id, ME)

    assert await next_due(backend) == deadline


@pytest.mark.parametrize("is_confirmed", [False, True])
async def test_a_task_that_came_back_has_no_timer_of_its_lease(
    backend: StorageBackend, *, is_confirmed: bool
) -> None:
    """R8."""
    await Executor(backend).dispatch(a_task(dispatch_timeout_seconds=0.0))
    leased = await lease(backend)
    assert leased is not None
    if is_confirmed:
        await backend.board.confirm(leased.task_id, leased.job_id, ME)
    assert await next_due(backend) is not None

    await backend.board.return_leases(0, ME, 1, lost=False)

    assert await backend.board.length() == 1
    assert await next_due(backend) is None


async def test_a_task_without_dispatch_timeout_waits_for_ever(backend: StorageBackend) -> None:
    await Executor(backend).dispatch(a_task(dispatch_timeout_seconds=0.0))

    assert await next_due(backend) is None
    assert await backend.board.length() == 1


async def test_a_task_no_worker_took_in_time_leaves_the_board(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R7."""
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(dispatch_timeout_seconds=0.05))
    task = await the_waiting_task(backend)
    await backend.board.explain(task, "no worker for 't'")

    await pass_time(0.06)
    assert await fire(backend) == 1

    assert await backend.board.length() == 0
    assert await lease(backend, task) is None
    event = (await executor.read()).event
    assert isinstance(event, TaskTimedOut)
    assert (event.timeout, event.task_id, event.worker_id) == ("dispatch", claim.task_id, None)
    assert event.waiting_reason == "no worker for 't'"
    assert event.leased_at is None
    assert event.fresh_id
    assert await fire(backend) == 0


async def test_a_result_that_did_not_come_in_time_is_a_timeout(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(result_timeout_seconds=0.05))
    before = backend.clock.now()
    await take(backend)

    await pass_time(0.06)
    assert await fire(backend) == 1

    event = (await executor.read()).event
    assert isinstance(event, TaskTimedOut)
    assert (event.timeout, event.task_id, event.worker_id) == ("result", claim.task_id, ME)
    assert event.leased_at == pytest.approx(before, abs=0.5)
    late = await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))
    assert late is ResultAnswer.DEADLINE_EXCEEDED
    assert await executor.read_all() == []


# --- results


async def test_the_holder_s_result_becomes_one_event(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    before = backend.clock.now()
    await take(backend)
    event = a_success(backend, claim.task_id)

    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED

    delivery = await executor.read()
    assert isinstance(delivery.event, TaskSucceeded)
    assert delivery.event.data == {"done": True}
    assert delivery.event.leased_at == pytest.approx(before, abs=0.5)
    assert not delivery.is_branch
    after = await executor.apply(delivery)
    assert after.job.state == "next"
    assert after.job.data.state_history == {"done": True}


async def test_a_repeated_result_is_answered_as_the_first_time(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    event = a_success(backend, claim.task_id)

    answers = [await backend.board.end_lease(claim.job.id, ME, event) for _ in range(2)]
    await executor.apply(await executor.read())
    answers.append(await backend.board.end_lease(claim.job.id, ME, event))

    assert answers == [ResultAnswer.APPLIED] * 3
    assert await executor.read_all() == []


async def test_a_repeat_is_ok_even_after_the_job_has_ended(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    event = a_success(backend, claim.task_id)
    await backend.board.end_lease(claim.job.id, ME, event)
    await executor.end(await executor.apply(await executor.read()))

    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED


async def test_of_results_at_once_one_counts(backend: StorageBackend) -> None:
    """R15."""
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)

    answers = await asyncio.gather(
        *(
            backend.board.end_lease(
                claim.job.id, WorkerId(worker), a_success(backend, claim.task_id, worker)
            )
            for worker in ["worker-3", "worker-1", "worker-2", "worker-1"]
        )
    )

    assert answers.count(ResultAnswer.APPLIED) == 2  # the holder's, and its repeat
    assert len(await executor.read_all()) == 1


async def test_a_result_may_come_before_its_delivery_is_confirmed(backend: StorageBackend) -> None:
    """R8."""
    claim = await Executor(backend).dispatch()
    await lease(backend)

    event = a_success(backend, claim.task_id)
    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED

    await backend.board.confirm(claim.task_id, claim.job.id, ME)
    assert await next_due(backend) is None


async def test_a_result_for_an_unknown_job(backend: StorageBackend) -> None:
    event = a_success(backend, ids.new_id())

    answer = await backend.board.end_lease(JobId(ids.new_id()), ME, event)

    assert answer is ResultAnswer.JOB_NOT_FOUND


async def test_a_result_for_a_task_the_job_does_not_have(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()

    answer = await backend.board.end_lease(claim.job.id, ME, a_success(backend, ids.new_id()))

    assert answer is ResultAnswer.STALE_TASK


async def test_a_result_for_another_job_s_task(backend: StorageBackend) -> None:
    executor = Executor(backend)
    mine, other = await executor.start(), await executor.dispatch()
    await take(backend)

    answer = await backend.board.end_lease(mine.job.id, ME, a_success(backend, other.task_id))

    assert answer is ResultAnswer.STALE_TASK
    assert await executor.read_all() == []


@pytest.mark.parametrize("holder", ["nobody", "another"])
async def test_a_result_from_a_worker_that_does_not_hold_the_task(
    backend: StorageBackend, holder: str
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    if holder == "another":
        await take(backend, OTHER)

    answer = await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))

    assert answer is ResultAnswer.WORKER_MISMATCH
    assert await executor.read_all() == []


async def test_a_result_for_an_earlier_attempt(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    first = await executor.dispatch()
    await take(backend, OTHER)
    await backend.board.end_lease(first.job.id, OTHER, a_failure(backend, first.task_id, OTHER))
    await executor.apply(await executor.read())
    await pass_time(0.07)
    await fire(backend)
    second = await executor.apply(await executor.read())
    await take(backend)

    answer = await backend.board.end_lease(first.job.id, ME, a_success(backend, first.task_id))

    assert second.task_id != first.task_id
    assert answer is ResultAnswer.STALE_TASK
    assert await executor.read_all() == []


async def test_a_result_for_a_cancelled_job(backend: StorageBackend) -> None:
    """R15: also while the cancel is on its way to the job."""
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    event = a_success(backend, claim.task_id)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    marked = await backend.board.end_lease(claim.job.id, ME, event)
    ended = await executor.apply(await executor.read())

    assert await executor.read_all() == []
    assert marked is ResultAnswer.JOB_CANCELLED
    assert ended.job.status is JobStatus.CANCELLED
    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.JOB_CANCELLED


async def test_a_result_for_a_job_that_has_ended_otherwise(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(dispatch_timeout_seconds=0.05))
    await pass_time(0.06)
    await fire(backend)
    ended = await executor.apply(await executor.read())
    assert ended.job.is_terminal

    answer = await backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id))

    assert answer is ResultAnswer.JOB_TERMINATED


async def test_of_result_and_timer_and_loss_at_once_one_ends_the_task(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch(a_task(result_timeout_seconds=0.05))
    await take(backend)
    await pass_time(0.06)

    answer, fired, returned = await asyncio.gather(
        backend.board.end_lease(claim.job.id, ME, a_success(backend, claim.task_id)),
        fire(backend),
        backend.board.return_leases(0, ME, 1, lost=True),
    )

    assert (answer is ResultAnswer.APPLIED) + fired + returned == 1
    assert len(await executor.read_all()) == 1
    assert await next_due(backend) is None


# --- workers that are gone


async def test_a_lost_worker_s_tasks_count_as_failed(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claims = [await executor.dispatch() for _ in range(2)]
    for task in await waiting_tasks(backend):
        await lease(backend, task)

    assert await backend.board.return_leases(0, ME, 1, lost=True) == 2

    events = [delivery.event for delivery in await executor.read_all()]
    for event in events:
        assert isinstance(event, TaskFailed)
        assert event.worker_id == ME
        assert event.message == "Worker 'worker-1' was lost."
        assert event.leased_at is not None
    assert await backend.board.length() == 0
    assert await next_due(backend) is None
    late = await backend.board.end_lease(
        claims[0].job.id, ME, a_success(backend, claims[0].task_id)
    )
    assert late is ResultAnswer.STALE_TASK


async def test_tasks_of_a_worker_that_left_go_back_uncounted(backend: StorageBackend) -> None:
    executor = Executor(backend)
    asked = [(await executor.dispatch()).task_id for _ in range(3)]
    first = (await waiting_tasks(backend))[0]
    await lease(backend, first)
    await backend.board.confirm(first.task_id, first.job_id, ME)

    assert await backend.board.return_leases(0, ME, 1, lost=False) == 1

    assert [task.task_id for task in await waiting_tasks(backend)] == asked
    assert await executor.read_all() == []


async def test_leases_of_a_later_registration_stay(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend, incarnation=2)

    assert await backend.board.return_leases(0, ME, 1, lost=True) == 0

    event = a_success(backend, claim.task_id)
    assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED


async def test_a_registration_that_was_given_up_gets_no_more_tasks(
    backend: StorageBackend,
) -> None:
    """R6: a task it got now would be overlooked."""
    await Executor(backend).dispatch()
    task = await the_waiting_task(backend)
    await backend.board.return_leases(0, ME, 1, lost=True)

    assert await lease(backend, task, incarnation=1) is None
    assert await lease(backend, task, incarnation=2) is not None


# --- partitions


async def test_every_partition_has_its_own_board(open_backend: Open) -> None:
    backend = await open_backend(partitions=3)
    executor = Executor(backend)
    claims: list[Claim] = []
    for partition in range(3):
        claim = await executor.start(a_job(backend, partition=partition))
        claims.append(await executor.run(claim, DispatchTask(task=a_task())))

    heads: list[list[WaitingTask]] = [await backend.board.heads(n, 10) for n in range(3)]

    assert [[task.task_id for task in here] for here in heads] == [
        [claim.task_id] for claim in claims
    ]
    assert await backend.board.length() == 3
    for claim, [task] in zip(claims, heads, strict=True):
        assert await lease(backend, task) is not None
        event = a_success(backend, claim.task_id)
        assert await backend.board.end_lease(claim.job.id, ME, event) is ResultAnswer.APPLIED
    found: dict[JobId, int] = {}
    while len(found) < 3:
        found |= {d.job_id: d.partition for d in await executor.read_all()}
    assert found == {claim.job.id: number for number, claim in enumerate(claims)}


async def test_a_task_of_another_job_is_not_leased(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim, other = await executor.dispatch(), await executor.start()

    task_id = TaskId(claim.task_id)

    assert await backend.board.lease(task_id, other.job.id, 1, ME, 1) is None
    assert await backend.board.length() == 1


async def test_a_promise_that_is_over_gives_no_task(backend: StorageBackend) -> None:
    """The worker's place may be another task's by now."""
    executor = Executor(backend)
    await executor.dispatch()
    task = await the_waiting_task(backend)
    ask = partial(backend.board.lease, task.task_id, task.job_id, task.offer_number, ME, 1)

    late = await ask(until=backend.clock.now() - 1)

    assert late is None
    assert await backend.board.length() == 1
    assert await ask(until=backend.clock.now() + 5) is not None
