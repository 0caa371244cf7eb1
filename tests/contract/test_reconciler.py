"""What has come apart in a store is seen, and mended at the second look; what is whole is let alone."""

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from avtomatika_common.backend.memory.timetable import Kind
from avtomatika_common.backend.ports import StorageBackend
from avtomatika_core.events import (
    BranchesDone,
    CancelRequested,
    ChildFinished,
    Continue,
    JobCreated,
    JobTimedOut,
    TaskFailed,
)
from avtomatika_core.job import ChildWait, JobId, JobStatus, TaskId, WorkerId
from avtomatika_core.outcomes import Action, RunBlueprint, Sleep
from avtomatika_core.redrive import redrive
from avtomatika_core.retry_policy import RetryPolicy
from avtomatika_watcher import Settings
from avtomatika_watcher.reconciler import Reconciler
from tests.contract.breaking import Hands, no_job
from tests.contract.builders import (
    APPROVAL,
    WAIT,
    Claim,
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    fire,
    lease,
    take,
    waiting_tasks,
)
from tests.contract.conftest import Bench, Open, PassTime
from tests.support import match_one

WORKER = WorkerId("worker-1")
CHILD = RunBlueprint(blueprint="b", initial_data={}, transitions={"success": "next"})
LAP = 0.02

MakeOf = Callable[..., Awaitable[Claim]]


@pytest.fixture
async def backend(open_backend: Open) -> StorageBackend:
    return await open_backend(delivery_timeout_seconds=60.0)


@pytest.fixture
def hands(backend: StorageBackend, bench: Bench) -> Hands:
    return bench.hands()


@pytest.fixture
def executor(backend: StorageBackend) -> Executor:
    return Executor(backend)


class Laps:
    def __init__(self, backend: StorageBackend, settings: Settings, pass_time: PassTime) -> None:
        self.inspection = backend.inspection
        self.reconciler = Reconciler(settings, backend)
        self.pass_time = pass_time

    async def run(self, count: int = 1) -> dict[str, int]:
        """Go round so many times; what was mended so far."""
        for _ in range(count):
            await self.pass_time(LAP)
            await self.reconciler.lap(0)
            await self.reconciler.lap_of_places()
        return dict(await self.inspection.mended())


@pytest.fixture
def laps(backend: StorageBackend, pass_time: PassTime) -> Laps:
    settings = Settings(pause_seconds=0.0, lap_seconds=LAP, quiet_seconds=0.0)
    return Laps(backend, settings, pass_time)


async def a_job_with_a_leased_task(executor: Executor) -> Claim:
    claim = await executor.dispatch()
    await take(executor.backend)
    return claim


# --- a job that is to run


async def test_a_new_job_without_its_entry_gets_one(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    job = a_job(backend)
    await backend.jobs.create(job)
    await hands.lose_claim(job.id)

    assert await laps.run() == {}
    assert await laps.run() == {"claim": 1}

    delivery = await executor.read()
    assert isinstance(delivery.event, JobCreated)
    assert (await executor.apply(delivery)).job.status is JobStatus.RUNNING


async def test_a_running_job_without_its_entry_goes_on(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.start()
    await hands.lose_claim(claim.job.id)

    assert await laps.run(2) == {"claim": 1}

    delivery = await executor.read()
    assert isinstance(delivery.event, Continue)
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.claim == delivery.entry_id
    assert (await executor.end(Claim(stored, delivery))).job.status is JobStatus.FINISHED


async def test_a_cancelled_job_whose_cancel_is_lost_is_cancelled(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.dispatch()
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    await hands.lose_claim(claim.job.id)

    assert await laps.run(2) == {"claim": 1}

    delivery = await executor.read()
    assert isinstance(delivery.event, CancelRequested)
    assert (await executor.apply(delivery)).job.status is JobStatus.CANCELLED


async def test_a_deferred_entry_carries_its_job(
    backend: StorageBackend, laps: Laps, executor: Executor
) -> None:
    claim = await executor.start()
    await backend.inbox.defer(claim.delivery, 60.0)

    assert await laps.run(3) == {}


async def test_a_deferred_entry_without_its_timer_is_delivered(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.start()
    await backend.inbox.defer(claim.delivery, 60.0)
    await hands.lose_all_timers()

    assert await laps.run(2) == {"deferred": 1}

    await fire(backend)
    assert (await executor.read()).job_id == claim.job.id


# --- a job that waits for a task


async def test_a_task_that_is_gone_has_failed(hands: Hands, laps: Laps, executor: Executor) -> None:
    claim = await executor.dispatch()
    await hands.lose_task(claim.job.id, claim.task_id)

    assert await laps.run(2) == {"task": 1}

    delivery = await executor.read()
    assert isinstance(delivery.event, TaskFailed)
    after = await executor.apply(delivery)
    assert after.job.status is JobStatus.AWAITING_RETRY
    assert after.job.head.error_message == "The task was lost by the store."


async def test_a_task_whose_result_is_on_its_way_is_let_alone_however_long_that_takes(
    backend: StorageBackend, laps: Laps, executor: Executor
) -> None:
    claim = await a_job_with_a_leased_task(executor)
    await backend.board.end_lease(claim.job.id, WORKER, a_success(backend, claim.task_id))

    assert await laps.run(3) == {}
    delivery = await executor.read()
    assert await laps.run(3) == {}
    await backend.inbox.forward(delivery, "default")
    assert await laps.run(3) == {}
    await backend.inbox.defer(await executor.read(), 0.01)
    assert await laps.run(3) == {}
    await fire(backend)
    assert await laps.run(3) == {}

    assert (await executor.apply(await executor.read())).job.state == "next"


async def test_a_handler_that_runs_for_long_hides_no_lost_task_of_another_job(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await a_job_with_a_leased_task(executor)
    await backend.board.end_lease(claim.job.id, WORKER, a_success(backend, claim.task_id))
    running = await executor.apply(await executor.read())
    assert running.job.status is JobStatus.RUNNING
    other = await executor.dispatch()
    await hands.lose_task(other.job.id, other.task_id)

    assert await laps.run(2) == {"task": 1}


async def test_a_result_that_is_lost_on_its_way_makes_the_task_fail(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await a_job_with_a_leased_task(executor)
    await backend.board.end_lease(claim.job.id, WORKER, a_success(backend, claim.task_id))
    assert await laps.run(2) == {}
    await hands.lose_events()

    assert await laps.run(2) == {"task": 1}
    await executor.backend.inbox.pending("default", executor.name)  # its group is made again

    assert isinstance((await executor.read()).event, TaskFailed)


async def test_a_task_that_fell_off_the_board_is_back_on_it(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.dispatch()
    await hands.lose_place(claim.task_id)
    assert await waiting_tasks(backend) == []

    assert await laps.run(2) == {"board": 1}

    [task] = await waiting_tasks(backend)
    assert task.task_id == claim.task_id


@pytest.mark.parametrize(("leased", "kind"), [(False, "dispatch"), (True, "result")])
async def test_a_task_without_a_timer_has_it_again(
    hands: Hands, laps: Laps, executor: Executor, leased: bool, kind: Kind
) -> None:
    claim = await executor.dispatch(a_task(dispatch_timeout_seconds=500.0))
    if leased:
        await take(executor.backend)
    assert await hands.has_timer(kind, claim.job.id, claim.task_id)
    await hands.lose_all_timers()

    assert await laps.run(2) == {"task_timer": 1}

    assert await hands.has_timer(kind, claim.job.id, claim.task_id)


async def test_a_lease_the_worker_is_not_said_to_hold_is_noted_again(
    hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await a_job_with_a_leased_task(executor)
    await hands.lose_lease(WORKER, claim.task_id)

    assert await laps.run(2) == {"lease": 1}

    assert await hands.holds(WORKER) == 1


# --- other waits


async def test_a_retry_without_its_timer_has_it_again(
    hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.raised(await executor.start())
    await hands.lose_all_timers()

    assert await laps.run(2) == {"timer": 1}

    assert await hands.has_timer("wait", claim.job.id, str(claim.job.run))


ASKED = replace(APPROVAL, transitions={"yes": "go", "timeout": "end"}, timeout_seconds=0.4)
TOLD = replace(WAIT, transitions={"received": "next", "timeout": "end"}, timeout_seconds=0.4)
SLEEP = Sleep(seconds=0.4, next_state="end")


@pytest.mark.parametrize("wait", [SLEEP, TOLD, ASKED])
async def test_a_wait_without_its_timer_has_it_again_and_ends_on_time(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor, wait: Action
) -> None:
    claim = await executor.run(await executor.start(), wait)
    due = await backend.timers.next_due(0)
    await hands.lose_timer("wait", claim.job.id, str(claim.job.run))

    assert await laps.run(2) == {"timer": 1}
    assert await backend.timers.next_due(0) == due
    assert await laps.run(2) == {"timer": 1}

    await laps.pass_time(0.4)
    assert await fire(backend) == 1
    woken = await executor.apply(await executor.read())
    assert (woken.job.status, woken.job.state) == (JobStatus.RUNNING, "end")
    assert (await executor.run(woken, None)).job.status is JobStatus.FINISHED


async def test_a_wait_without_a_timeout_misses_no_timer(laps: Laps, executor: Executor) -> None:
    await executor.run(await executor.start(), WAIT)

    assert await laps.run(3) == {}


async def test_a_holder_that_falls_silent_is_late_also_when_the_timer_of_its_heartbeat_was_lost(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    task = a_task(heartbeat_timeout_seconds=0.3, retry=RetryPolicy(attempts=1))
    claim = await executor.dispatch(task)
    await take(backend)
    await hands.lose_timer("result", claim.job.id, claim.task_id)

    assert await laps.run(2) == {"task_timer": 1}
    due = await backend.timers.next_due(0)
    assert due == pytest.approx(backend.clock.now() + 0.3, abs=0.1)

    await laps.pass_time(0.31)
    assert await fire(backend) == 1
    assert (await executor.apply(await executor.read())).job.status is JobStatus.QUARANTINED


async def test_a_timer_that_fired_is_not_missed_while_its_event_waits(
    backend: StorageBackend, laps: Laps, executor: Executor, pass_time: PassTime
) -> None:
    await executor.raised(await executor.start())
    await pass_time(0.08)
    assert await fire(backend) == 1

    assert await laps.run(3) == {}


async def test_an_approval_whose_decision_is_lost_is_open_again(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.run(await executor.start(), APPROVAL)
    await hands.close_approval(claim.job.id)

    assert await laps.run(2) == {"approval": 1}

    token = str(claim.job.run)
    await backend.jobs.decide_approval(claim.job.id, token=token, decision="yes", at=1.0)
    assert (await executor.apply(await executor.read())).job.state == "go"


async def test_the_task_of_a_branch_that_is_gone_has_failed(
    hands: Hands, laps: Laps, executor: Executor, backend: StorageBackend
) -> None:
    claim = await executor.fan_out(3)
    [first, *_] = await waiting_tasks(backend)
    await hands.lose_task(claim.job.id, first.task_id)

    assert await laps.run(2) == {"branch": 1}

    delivery = await executor.read()
    assert delivery.is_branch
    assert isinstance(delivery.event, TaskFailed)
    await executor.settle(delivery)
    view = await backend.jobs.view(claim.job.id)
    assert view is not None
    assert len(view.branches) == 3  # the next attempt waits for its time
    assert await laps.run(3) == {"branch": 1}


async def test_a_branch_whose_task_is_gone_is_found_among_many(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.fan_out(2000)
    while await fire(backend):
        pass
    waiting = await waiting_tasks(backend)
    await hands.lose_task(claim.job.id, waiting[250].task_id)

    assert await laps.run(2) == {"branch": 1}


async def test_miscounted_branches_are_counted_again(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.fan_out(2)
    await hands.miscount_branches(claim.job.id)
    assert await laps.run(2) == {"branches": 1}

    for task in await waiting_tasks(backend):
        await backend.board.lease(task.task_id, task.job_id, 1, WORKER, 1)
        await backend.board.end_lease(task.job_id, WORKER, a_success(backend, task.task_id))
        await executor.settle(await executor.read())

    assert isinstance((await executor.read()).event, BranchesDone)


async def test_the_end_of_all_branches_is_told_again_when_that_is_lost(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await executor.fan_out(1)
    [task] = await waiting_tasks(backend)
    await backend.board.lease(task.task_id, task.job_id, 1, WORKER, 1)
    await backend.board.end_lease(task.job_id, WORKER, a_success(backend, task.task_id))
    await executor.settle(await executor.read())
    assert await laps.run(3) == {}
    await hands.lose_events()

    assert await laps.run(2) == {"branches": 1}

    await backend.inbox.pending("default", executor.name)  # its group is made again
    assert isinstance((await executor.read()).event, BranchesDone)


async def test_the_end_of_a_sub_job_is_told_again_when_that_is_lost(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await executor.run(await executor.start(), CHILD)
    child = await executor.end(await executor.apply(await executor.read()))
    assert child.job.status is JobStatus.FINISHED
    assert await laps.run(3) == {}
    await hands.lose_events()

    assert await laps.run(2) == {"child": 1}

    await backend.inbox.pending("default", executor.name)  # its group is made again
    event = (await executor.read()).event
    assert isinstance(event, ChildFinished)
    assert (event.status, event.final_state) == ("finished", "end")


async def test_a_sub_job_that_is_gone_has_failed(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    parent = await executor.run(await executor.start(), CHILD)
    wait = parent.job.head.wait
    assert isinstance(wait, ChildWait)
    await hands.lose_job(wait.child_id)

    mended = await laps.run(2)

    assert mended["child"] == 1
    await backend.inbox.pending("default", executor.name)  # its group is made again
    event = (await executor.read()).event
    assert isinstance(event, ChildFinished)
    assert event.error_message == "The sub-job was lost by the store."


# --- a job's own time


async def timed_out(executor: Executor, laps: Laps, seconds: float) -> Claim:
    """The job as it is after its time was over; its timer fires once."""
    await laps.pass_time(seconds)
    assert await fire(executor.backend) == 1
    late = [one for one in await executor.read_all() if isinstance(one.event, JobTimedOut)]
    assert len(late) == 1
    return await executor.apply(late[0])


@pytest.mark.parametrize("make", [Executor.start, Executor.dispatch])
async def test_a_deadline_without_its_timer_has_it_again_and_ends_the_job(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor, make: MakeOf
) -> None:
    claim = await make(executor, job=a_job(backend, timeout_seconds=0.4))
    due = claim.job.origin.created_at + 0.4
    await hands.lose_timer("job", claim.job.id, "")

    assert await laps.run(2) == {"deadline": 1}
    found = await backend.timers.next_due(0)
    assert found is not None
    assert 0 <= found - due < 0.002
    assert await laps.run(2) == {"deadline": 1}

    ended = await timed_out(executor, laps, 0.4)
    assert ended.job.status is JobStatus.FAILED
    assert ended.job.head.error_message == "Job timed out after 0.4 seconds."


async def test_a_job_whose_lost_deadline_has_passed_ends_at_once(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.dispatch(job=a_job(backend, timeout_seconds=0.05))
    await hands.lose_timer("job", claim.job.id, "")
    await laps.pass_time(0.06)

    assert await laps.run(2) == {"deadline": 1}

    assert (await timed_out(executor, laps, 0.0)).job.status is JobStatus.FAILED


async def test_a_job_whose_time_is_over_is_let_alone_while_that_waits_to_be_read(
    backend: StorageBackend, laps: Laps, executor: Executor
) -> None:
    """Also beside a handler that a cancel led to, and that runs on without the mark."""
    wait = replace(WAIT, transitions=WAIT.transitions | {"cancelled": "tidy"})
    job = a_job(backend, timeout_seconds=0.05)
    await executor.run(await executor.start(job), wait)
    await backend.jobs.request_cancel(job.id, a_cancel(backend))
    await laps.pass_time(0.06)
    assert await fire(backend) == 1
    assert await laps.run(3) == {}
    cancel, late = await executor.read_all()

    tidying = await executor.apply(cancel)
    assert not tidying.job.cancelled
    assert await laps.run(3) == {}

    assert (await executor.apply(late)).job.status is JobStatus.FAILED
    assert await laps.run(3) == {}


async def test_a_job_whose_end_at_its_deadline_is_lost_times_out_and_is_not_cancelled(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await executor.dispatch(job=a_job(backend, timeout_seconds=0.05))
    await laps.pass_time(0.06)
    assert await fire(backend) == 1
    await hands.lose_events()

    assert await laps.run(2) == {"deadline": 1}
    assert await fire(backend) == 1

    await backend.inbox.pending("default", executor.name)  # its group is made again
    assert (await executor.apply(await executor.read())).job.status is JobStatus.FAILED


async def test_a_redriven_job_s_deadline_is_mended_to_its_new_time(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.start(a_job(backend, timeout_seconds=60.0))
    await executor.raised(claim, is_final=True)
    await laps.pass_time(0.1)
    broken = await backend.jobs.load(claim.job.id)
    assert broken is not None
    again = redrive(broken.job, backend.clock.now())
    await backend.jobs.redrive(broken, again)
    assert again.deadline is not None
    assert again.deadline > claim.job.origin.created_at + 60.05
    await hands.lose_timer("job", claim.job.id, "")

    assert await laps.run(2) == {"deadline": 1}

    found = await backend.timers.next_due(0)
    assert found is not None
    assert 0 <= found - again.deadline < 0.002


# --- what belongs to nothing


@pytest.mark.parametrize(
    "kind", ["wait", "branch", "job", "dispatch", "delivery", "result", "entry"]
)
async def test_a_timer_of_nothing_is_removed(hands: Hands, laps: Laps, kind: Kind) -> None:
    job_id = no_job()
    await hands.add_timer(kind, job_id, "token")

    assert await laps.run(2) == {"timer": 1}

    assert not await hands.has_timer(kind, job_id, "token")


async def test_an_id_of_nothing_leaves_the_quarantine_list(
    backend: StorageBackend, hands: Hands, laps: Laps
) -> None:
    await hands.quarantine(no_job())

    assert await laps.run(2) == {"quarantine": 1}

    assert await backend.jobs.quarantined() == []


async def test_a_lease_of_nothing_is_forgotten(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await backend.workers.register(WORKER, {}, 60.0)
    await a_job_with_a_leased_task(executor)
    await relay(backend)
    await hands.add_lease(WORKER, TaskId("gone"))

    assert await laps.run(2) == {"lease": 1}

    assert await hands.holds(WORKER) == 1


async def relay(backend: StorageBackend) -> None:
    while await backend.relay.run_once(0):
        pass


async def held_by(backend: StorageBackend) -> int:
    worker = await backend.workers.get(WORKER)
    assert worker is not None
    return worker.places.held


async def test_a_place_for_a_task_the_worker_does_not_have_is_free_again(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    async with backend.liveness.keep("door"):
        registered = await backend.workers.register(WORKER, {}, 60.0)
        until = backend.clock.now() + 60
        await backend.workers.announce_credit(WORKER, "poll", "door", until, 60.0)
        await executor.dispatch()
        [task] = await waiting_tasks(backend)
        await match_one(backend.workers, WORKER, task)
        await backend.board.lease(task.task_id, task.job_id, 1, WORKER, registered.incarnation)
        assert await laps.run(3) == {}  # not yet known to be held
        await relay(backend)
        await hands.take_place(WORKER, TaskId("gone"))
        assert await held_by(backend) == 2

        assert await laps.run(2) == {"hold": 1}

        assert await held_by(backend) == 1


async def a_worker_with_tasks(backend: StorageBackend, executor: Executor, count: int) -> None:
    """It has them all, and its directory knows."""
    registered = await backend.workers.register(WORKER, {}, 600.0)
    await executor.fan_out(count)
    while await fire(backend):
        pass
    while tasks := await waiting_tasks(backend):
        for task in tasks:
            await lease(backend, task, WORKER, incarnation=registered.incarnation)
            await backend.board.confirm(task.task_id, task.job_id, WORKER)
    await relay(backend)
    assert await held_by(backend) == count


async def test_of_many_leases_those_of_nothing_are_forgotten_wherever_they_stand(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await a_worker_with_tasks(backend, executor, 600)
    for number in range(30):
        await hands.add_lease(WORKER, TaskId(f"gone-{number}"))

    assert await laps.run(2) == {"lease": 30}

    assert await hands.holds(WORKER) == 600


async def test_of_many_places_those_for_nothing_are_free_again_wherever_they_stand(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await a_worker_with_tasks(backend, executor, 600)
    for number in range(30):
        await hands.take_place(WORKER, TaskId(f"gone-{number}"))

    assert await laps.run(2) == {"hold": 30}

    assert await held_by(backend) == 600


async def test_a_place_for_nothing_is_seen_also_while_others_change_all_the_time(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await a_worker_with_tasks(backend, executor, 1)
    await hands.take_place(WORKER, TaskId("gone"))

    for _ in range(2):
        await laps.pass_time(3 * LAP)
        await executor.dispatch()
        await lease(backend, worker=WORKER)
        await laps.run()
        await relay(backend)

    assert await backend.inspection.mended() == {"hold": 1}


async def test_the_places_of_many_workers_are_looked_at(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    await a_worker_with_tasks(backend, executor, 1)
    for number in range(300):
        await backend.workers.register(WorkerId(f"other-{number}"), {}, 600.0)
    await hands.take_place(WORKER, TaskId("gone"))

    assert await laps.run(2) == {"hold": 1}


# --- what is whole


Make = Callable[[Executor], Awaitable[Claim]]


async def a_parent(executor: Executor) -> Claim:
    return await executor.run(await executor.start(), CHILD)


async def an_approval(executor: Executor) -> Claim:
    return await executor.run(await executor.start(), APPROVAL)


async def a_retry(executor: Executor) -> Claim:
    return await executor.raised(await executor.start())


async def a_job_whose_task_is_on_its_way(executor: Executor) -> Claim:
    claim = await executor.dispatch()
    assert await lease(executor.backend) is not None
    return claim


async def a_large_fan_out(executor: Executor) -> Claim:
    return await executor.fan_out(300)


async def a_job_that_ended(executor: Executor) -> Claim:
    return await executor.end(await executor.start())


@pytest.mark.parametrize(
    "make",
    [
        Executor.start, Executor.dispatch, a_job_whose_task_is_on_its_way, a_job_with_a_leased_task,
        a_parent, an_approval, a_retry, a_large_fan_out, a_job_that_ended,
    ],
)  # fmt: skip
async def test_a_whole_job_is_let_alone(
    backend: StorageBackend, executor: Executor, laps: Laps, make: Make
) -> None:
    claim = await make(executor)
    before = await backend.jobs.load(claim.job.id)

    assert await laps.run(3) == {}

    after = await backend.jobs.load(claim.job.id)
    assert before is not None
    assert after is not None
    assert after.fence == before.fence


async def test_a_job_that_moved_on_between_two_looks_is_let_alone(
    backend: StorageBackend, hands: Hands, laps: Laps, executor: Executor
) -> None:
    claim = await executor.dispatch()
    await hands.lose_task(claim.job.id, claim.task_id)
    await laps.run()
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    assert await laps.run(3) == {}


async def test_all_jobs_are_looked_at_also_when_they_are_many(
    backend: StorageBackend, hands: Hands, laps: Laps
) -> None:
    jobs = [a_job(backend) for _ in range(1200)]
    for job in jobs:
        await backend.jobs.create(job)
    lost: list[JobId] = [jobs[0].id, jobs[600].id, jobs[-1].id]
    for job_id in lost:
        await hands.lose_claim(job_id)

    assert await laps.run(2) == {"claim": 3}
