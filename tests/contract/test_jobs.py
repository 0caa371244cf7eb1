"""Jobs: created once, loaded as copies, committed all or nothing by one writer."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobNotFound,
    LostClaim,
    Progress,
    StaleJob,
    StorageBackend,
    StoreFull,
)
from avtomatika_common.codec import NotJson, pack_data
from avtomatika_common.records import unpack_fact, unpack_notification
from avtomatika_core.events import ApprovalDecided, Continue, JobCreated, SignalReceived, TimerFired
from avtomatika_core.job import JobData, JobId, JobStatus, WorkerId
from avtomatika_core.machine import step
from avtomatika_core.outcomes import DispatchTask, RunBlueprint
from tests.contract.builders import (
    APPROVAL,
    RULES,
    TO_END,
    TO_NEXT,
    Claim,
    Executor,
    a_cancel,
    a_job,
    a_success,
    a_task,
    errors,
    fire,
    lease,
    next_due,
    the_waiting_task,
    waiting_tasks,
)
from tests.contract.conftest import Bench, Open, PassTime


def a_key(client: str = "ann", key: str = "k", fingerprint: str = "f") -> IdempotencyKey:
    return IdempotencyKey(client=client, key=key, fingerprint=fingerprint)


# --- creating


async def test_a_new_job_is_stored_as_given_with_its_first_event(backend: StorageBackend) -> None:
    job = a_job(backend, client="ann", initial_data={"n": [1, {"x": None}]})

    created = await backend.jobs.create(job)

    stored = await backend.jobs.load(job.id)
    delivery = await Executor(backend).read()
    assert created.job_id == job.id
    assert not created.is_repeat
    assert stored is not None
    assert stored.job == job
    assert delivery.job_id == job.id
    assert delivery.lane == "new"
    assert delivery.event == JobCreated(at=job.origin.created_at)


async def test_the_same_id_makes_one_job(backend: StorageBackend) -> None:
    job = a_job(backend)

    answers = [await backend.jobs.create(job) for _ in range(3)]

    assert [answer.is_repeat for answer in answers] == [False, True, True]
    assert await backend.inbox.length() == 1
    assert await backend.jobs.count_by_status() == {JobStatus.PENDING: 1}


async def test_an_idempotency_key_gives_the_first_job_again(backend: StorageBackend) -> None:
    first = await backend.jobs.create(a_job(backend), idempotency=a_key())

    second = await backend.jobs.create(a_job(backend), idempotency=a_key())

    assert second.job_id == first.job_id
    assert second.is_repeat
    assert await backend.inbox.length() == 1


async def test_an_idempotency_key_is_for_one_request_only(backend: StorageBackend) -> None:
    await backend.jobs.create(a_job(backend), idempotency=a_key(fingerprint="this"))
    other = a_job(backend)

    with pytest.raises(IdempotencyKeyReused):
        await backend.jobs.create(other, idempotency=a_key(fingerprint="that"))

    assert await backend.jobs.load(other.id) is None


async def test_clients_do_not_share_idempotency_keys(backend: StorageBackend) -> None:
    ann = await backend.jobs.create(a_job(backend), idempotency=a_key("ann"))

    bob = await backend.jobs.create(a_job(backend), idempotency=a_key("bob"))

    assert bob.job_id != ann.job_id
    assert not bob.is_repeat


async def test_one_of_many_requests_with_one_key_makes_the_job(backend: StorageBackend) -> None:
    jobs = [a_job(backend) for _ in range(20)]

    answers = await asyncio.gather(*(backend.jobs.create(job, idempotency=a_key()) for job in jobs))

    assert len({answer.job_id for answer in answers}) == 1
    assert [answer.is_repeat for answer in answers].count(False) == 1


# --- reading


async def test_what_was_read_is_a_copy(backend: StorageBackend) -> None:  # R63
    given: dict[str, Any] = {"list": [1]}
    job = a_job(backend, initial_data=given)
    await backend.jobs.create(job)
    await Executor(backend).start(a_job(backend))

    given["list"].append(2)
    loaded = await backend.jobs.load(job.id)
    assert loaded is not None
    loaded.job.origin.initial_data["list"].append(3)
    loaded.job.data.state_history["new"] = 1
    document = await backend.get_job_state(job.id)
    assert document is not None
    document["initial_data"]["list"].append(4)

    again = await backend.jobs.load(job.id)
    assert again is not None
    assert again.job.origin.initial_data == {"list": [1]}
    assert again.job.data.state_history == {}


async def test_what_was_committed_is_a_copy(backend: StorageBackend) -> None:  # R63
    executor = Executor(backend)
    claim = await executor.start()
    history: dict[str, Any] = {"seen": [1]}

    await executor.run(claim, TO_NEXT, data=JobData(state_history=history))
    history["seen"].append(2)

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job.data.state_history == {"seen": [1]}


async def test_an_unknown_job_is_none_everywhere(backend: StorageBackend) -> None:
    nobody = JobId(ids.new_id())

    assert await backend.jobs.load(nobody) is None
    assert await backend.jobs.view(nobody) is None
    assert await backend.jobs.origin(nobody) is None
    assert await backend.jobs.branch_results(nobody) == {}
    assert await backend.get_job_state(nobody) is None
    assert not await backend.jobs.is_wanted(nobody, 0)
    assert not await backend.jobs.forget_quarantined(nobody)


async def test_a_text_that_is_no_id_is_an_unknown_job(backend: StorageBackend) -> None:
    assert await backend.get_job_state("no-such-job!") is None


async def test_the_document_shows_where_the_job_stands(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch(a_task("scan", params={"path": "/a"}))

    document = await backend.get_job_state(claim.job.id)

    assert document is not None
    assert document["id"] == claim.job.id
    assert document["status"] == "waiting_for_worker"
    assert document["current_task_id"] == claim.task_id
    assert document["current_task_info"]["params"] == {"path": "/a"}
    assert document["task_worker_id"] is None


# --- committing


async def test_a_step_is_stored_and_its_entry_stays_the_claim(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    after = await executor.run(claim, TO_NEXT, context_updates={"n": 1})

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job == after.job
    assert stored.job.state == "next"
    assert stored.job.data.state_history == {"n": 1}
    assert stored.claim == claim.delivery.entry_id
    assert [pending.entry_id for pending in await executor.pending()] == [stored.claim]


async def test_a_chain_goes_on_from_what_the_last_commit_gave_back(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    for number in range(20):
        claim = await executor.run(claim, TO_NEXT, context_updates={f"n{number}": number})
    claim = await executor.end(claim)

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job.status is JobStatus.FINISHED
    assert len(stored.job.data.state_history) == 20
    assert await backend.inbox.length() == 0


async def test_data_the_caller_has_packed_is_stored(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    made = step(claim.job, executor.returned(claim, TO_NEXT, context_updates={"n": 1}), RULES)

    await backend.jobs.commit(
        claim.stored, made, claim.delivery, packed_data=pack_data(made.job.data)
    )

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job.data.state_history == {"n": 1}


async def test_a_job_that_waits_has_answered_its_entry(backend: StorageBackend) -> None:
    executor = Executor(backend)

    claim = await executor.dispatch()

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.claim is None
    assert await backend.inbox.length() == 0


async def test_a_requeued_job_goes_on_under_a_new_entry(backend: StorageBackend) -> None:
    """R3."""
    executor = Executor(backend)
    claim = await executor.start()

    after = await executor.commit(claim, executor.returned(claim, TO_NEXT), requeue=True)

    assert await executor.pending() == []
    [delivery] = await executor.read_all()
    assert isinstance(delivery.event, Continue)
    assert delivery.lane == "in"
    assert delivery.entry_id == after.stored.claim
    assert (await executor.run(Claim(after.stored, delivery), TO_NEXT)).job.state == "next"


@pytest.mark.parametrize(
    ("action", "requeue"),
    [(TO_NEXT, False), (TO_NEXT, True), (DispatchTask(task=a_task()), False)],
    ids=["goes on", "requeued", "waits"],
)
async def test_a_commit_whose_answer_was_lost_is_repeated_and_applied_once(
    backend: StorageBackend, action: Any, requeue: bool
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    made = step(claim.job, executor.returned(claim, action), RULES)
    jobs = backend.jobs

    first = await jobs.commit(claim.stored, made, claim.delivery, requeue=requeue)
    second = await jobs.commit(claim.stored, made, claim.delivery, requeue=requeue)

    assert replace(second, next_nonce=first.next_nonce) == first
    assert await backend.inbox.length() == (1 if action is TO_NEXT else 0)
    assert await backend.board.length() == (0 if action is TO_NEXT else 1)
    stored = await jobs.load(claim.job.id)
    assert stored is not None
    assert stored.fence == first.fence


async def test_one_of_many_writers_wins(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    loads = [await backend.jobs.load(claim.job.id) for _ in range(20)]
    claims = [Claim(stored, claim.delivery) for stored in loads if stored is not None]

    outcomes = await asyncio.gather(
        *(
            executor.run(each, TO_NEXT, context_updates={"writer": number})
            for number, each in enumerate(claims)
        ),
        return_exceptions=True,
    )

    assert errors(outcomes) == [StaleJob] * 19
    [winner] = [outcome for outcome in outcomes if isinstance(outcome, Claim)]
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job == winner.job


async def test_a_refused_commit_writes_nothing(open_backend: Open) -> None:
    """R3, R10: nor does it answer the entry."""
    backend = await open_backend(keep_facts=True)
    executor = Executor(backend)
    claim = await executor.start(a_job(backend, webhook_url="http://x"))
    late = await backend.jobs.load(claim.job.id)
    assert late is not None
    await executor.run(claim, TO_NEXT)
    facts = await backend.facts.length()

    for action in (DispatchTask(task=a_task()), APPROVAL):
        with pytest.raises(StaleJob):
            await executor.run(Claim(late, claim.delivery), action, context_updates={"n": 1})

    assert [mine.entry_id for mine in await executor.pending()] == [claim.delivery.entry_id]
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job.state == "next"
    assert stored.job.data.state_history == {}
    assert await waiting_tasks(backend) == []
    assert await next_due(backend) is None
    assert await backend.facts.length() == facts
    assert await backend.notifications.length() == 0
    assert [delivery.entry_id for delivery in await executor.pending()] == [stored.claim]


async def test_data_that_is_no_json_is_refused_whole(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    with pytest.raises(NotJson):
        await executor.run(claim, DispatchTask(task=a_task()), context_updates={"s": {1, 2}})

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job == claim.job
    assert await backend.board.length() == 0
    assert (await executor.run(claim, TO_NEXT)).job.state == "next"


async def test_an_old_commit_cannot_come_back(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    made = step(claim.job, executor.returned(claim, DispatchTask(task=a_task())), RULES)
    await backend.jobs.commit(claim.stored, made, claim.delivery)
    task = await the_waiting_task(backend)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    ended = await executor.apply(await executor.read())

    with pytest.raises(LostClaim):
        await backend.jobs.commit(claim.stored, made, claim.delivery)

    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    assert stored.job.status is ended.job.status is JobStatus.CANCELLED
    assert task not in await waiting_tasks(backend)


# --- what is counted and kept


async def test_jobs_are_counted_by_status_and_client(backend: StorageBackend) -> None:
    executor = Executor(backend)
    await executor.end(await executor.start(a_job(backend, client="ann")))
    await executor.dispatch(job=a_job(backend, client="ann"))
    await executor.start(a_job(backend, client="bob"))
    await backend.jobs.create(a_job(backend))

    assert await backend.jobs.count_by_status() == {
        JobStatus.FINISHED: 1,
        JobStatus.WAITING_FOR_WORKER: 1,
        JobStatus.RUNNING: 1,
        JobStatus.PENDING: 1,
    }
    assert await backend.jobs.count_by_status("ann") == {
        JobStatus.FINISHED: 1,
        JobStatus.WAITING_FOR_WORKER: 1,
    }
    assert await backend.jobs.count_by_status("nobody") == {}


async def test_quarantined_jobs_are_listed_newest_first(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    found: list[JobId] = []
    for client in ("ann", "bob", "ann"):
        claim = await executor.start(a_job(backend, client=client))
        await executor.raised(claim, is_final=True)
        found.insert(0, claim.job.id)
        await pass_time(0.01)

    assert await backend.jobs.quarantined() == found
    assert await backend.get_quarantined_jobs() == found
    assert await backend.jobs.quarantined("ann") == [found[0], found[2]]

    assert await backend.jobs.forget_quarantined(found[0])
    assert not await backend.jobs.forget_quarantined(found[0])
    assert await backend.jobs.quarantined() == found[1:]
    assert await backend.jobs.load(found[0]) is not None


async def test_an_ended_job_is_forgotten_after_its_retention(
    open_backend: Open, pass_time: PassTime
) -> None:
    """R63."""
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    ended = await executor.start()
    await executor.raised(ended, is_final=True)
    open_job = await executor.dispatch()
    assert await backend.jobs.load(ended.job.id) is not None

    await pass_time(1.1)

    assert await backend.jobs.load(ended.job.id) is None
    assert await backend.get_job_state(ended.job.id) is None
    assert await backend.jobs.quarantined() == []
    assert await backend.jobs.load(open_job.job.id) is not None
    with pytest.raises(JobNotFound):
        await backend.jobs.decide_approval(ended.job.id, token="1", decision="yes", at=0.0)


async def test_what_stood_beside_an_ended_job_is_forgotten_with_it(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    """R63: results of branches, progress, closed tasks, signals."""
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    worker = WorkerId("worker-1")
    job_id = (await executor.fan_out(2)).job.id
    for task in await waiting_tasks(backend):
        await lease(backend, task)
        said = Progress(progress=0.5, message="", at=backend.clock.now(), task_id=task.task_id)
        await backend.board.record_progress(task.task_id, job_id, worker, said, None)
        await backend.board.end_lease(job_id, worker, a_success(backend, task.task_id))
        await executor.settle(await executor.read())
    signal = SignalReceived(at=backend.clock.now(), name="paid", data={})
    await backend.jobs.send_signal(job_id, signal)
    joining = await executor.apply(await executor.read())
    await executor.apply(await executor.read())
    stored = await backend.jobs.load(job_id)
    assert stored is not None
    await executor.end(Claim(stored, joining.delivery))
    assert len(await backend.jobs.branch_results(job_id)) == 2

    await pass_time(1.1)

    assert await backend.jobs.load(job_id) is None
    assert await backend.jobs.branch_results(job_id) == {}
    assert [name for name in await bench.contents() if job_id in name] == []


async def test_retention_zero_keeps_jobs_for_ever(open_backend: Open, pass_time: PassTime) -> None:
    backend = await open_backend(retention_seconds=0)
    executor = Executor(backend)
    claim = await executor.end(await executor.start())

    await pass_time(0.05)

    assert await backend.jobs.load(claim.job.id) is not None


async def test_facts_tell_a_job_s_story_in_order_and_once(open_backend: Open) -> None:
    backend = await open_backend(keep_facts=True)
    executor = Executor(backend)
    claim = await executor.start()
    made = step(claim.job, executor.returned(claim, TO_END), RULES)
    stored = await backend.jobs.commit(claim.stored, made, claim.delivery)
    await backend.jobs.commit(claim.stored, made, claim.delivery)  # its answer was lost
    await executor.run(Claim(stored, claim.delivery), None)

    facts = [unpack_fact(entry.payload) for entry in await backend.facts.read("history-1", 100)]

    assert [fact.fact.kind for fact in facts] == ["job_created", "step", "step", "job_completed"]
    assert [fact.order for fact in facts] == sorted({fact.order for fact in facts})
    assert len({fact.id for fact in facts}) == 4
    assert {fact.job_id for fact in facts} == {claim.job.id}
    assert facts[-1].snapshot["status"] == "finished"


async def test_without_an_archive_no_facts_are_kept(backend: StorageBackend) -> None:
    executor = Executor(backend)

    await executor.end(await executor.start())

    assert await backend.facts.length() == 0


async def test_only_a_job_with_a_webhook_leaves_a_notification(backend: StorageBackend) -> None:
    executor = Executor(backend)
    await executor.end(await executor.start())

    told = await executor.end(await executor.start(a_job(backend, webhook_url="http://x")))

    [entry] = await backend.notifications.read("notifier-1", 10)
    notification = unpack_notification(entry.payload)
    assert notification.event == "job_finished"
    assert notification.job_id == told.job.id
    assert notification.url == "http://x"


# --- handler runs


async def test_a_run_is_wanted_until_the_next_one(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    assert await backend.jobs.is_wanted(claim.job.id, claim.job.run)

    await executor.run(claim, TO_NEXT)

    assert not await backend.jobs.is_wanted(claim.job.id, claim.job.run)
    assert await backend.jobs.is_wanted(claim.job.id, claim.job.run + 1)


async def test_a_handler_that_raised_runs_again_when_its_timer_fires(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    waiting = await executor.raised(await executor.start())
    assert await next_due(backend) is not None

    await pass_time(0.1)
    assert await fire(backend) == 1

    delivery = await executor.read()
    assert isinstance(delivery.event, TimerFired)
    again = await executor.apply(delivery)
    assert again.job.status is JobStatus.RUNNING
    assert again.job.run == waiting.job.run + 1
    assert await next_due(backend) is None


# --- approvals


async def test_one_of_many_decisions_counts(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), replace(APPROVAL, timeout_seconds=60.0))
    job_id, token = claim.job.id, str(claim.job.run)
    assert await next_due(backend) is not None

    outcomes = await asyncio.gather(
        *(
            backend.jobs.decide_approval(job_id, token=token, decision=decision, at=1.0)
            for decision in ["yes", "no"] * 5
        ),
        return_exceptions=True,
    )

    assert errors(outcomes) == [ApprovalNotOpen] * 9
    assert await next_due(backend) is None
    [delivery] = await executor.read_all()
    assert isinstance(delivery.event, ApprovalDecided)
    assert delivery.event.token == token
    assert (await executor.apply(delivery)).job.state in {"go", "stop"}


async def test_a_decision_needs_the_open_wait_s_token(backend: StorageBackend) -> None:
    executor = Executor(backend)
    running = await executor.start()
    with pytest.raises(ApprovalNotOpen):
        await backend.jobs.decide_approval(running.job.id, token="1", decision="yes", at=1.0)
    with pytest.raises(ApprovalNotOpen):
        await backend.jobs.decide_approval(running.job.id, token="", decision="yes", at=1.0)

    claim = await executor.run(running, APPROVAL)

    with pytest.raises(ApprovalNotOpen):
        await backend.jobs.decide_approval(claim.job.id, token="other", decision="yes", at=1.0)
    assert await backend.inbox.length() == 0


async def test_a_task_s_id_decides_no_approval(backend: StorageBackend) -> None:
    claim = await Executor(backend).dispatch()

    with pytest.raises(ApprovalNotOpen):
        await backend.jobs.decide_approval(
            claim.job.id, token=claim.task_id, decision="yes", at=1.0
        )

    assert await backend.inbox.length() == 0


async def test_an_approval_that_expired_cannot_be_decided(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), replace(APPROVAL, timeout_seconds=0.05))
    await pass_time(0.06)
    await fire(backend)

    with pytest.raises(ApprovalNotOpen):
        await backend.jobs.decide_approval(
            claim.job.id, token=str(claim.job.run), decision="yes", at=1.0
        )

    assert (await executor.apply(await executor.read())).job.status is JobStatus.FAILED


# --- when too much waits


async def test_new_jobs_are_refused_while_too_many_wait(open_backend: Open) -> None:
    backend = await open_backend(most_new_jobs=3)
    executor = Executor(backend)
    jobs = [a_job(backend) for _ in range(3)]
    for job in jobs:
        await backend.jobs.create(job)

    with pytest.raises(StoreFull):
        await backend.jobs.create(a_job(backend))

    assert (await backend.jobs.create(jobs[0])).is_repeat
    other = await backend.jobs.create(a_job(backend, group="gpu"))
    assert not other.is_repeat
    claim = await executor.apply(await executor.read())
    await executor.end(claim)
    assert not (await backend.jobs.create(a_job(backend))).is_repeat


async def test_a_sub_job_is_made_however_many_wait(open_backend: Open) -> None:
    backend = await open_backend(most_new_jobs=1)
    executor = Executor(backend)
    claim = await executor.start()
    await backend.jobs.create(a_job(backend, group="default"))

    action = RunBlueprint(blueprint="b", initial_data={}, transitions={"success": "next"})
    parent = await executor.run(claim, action)

    assert parent.job.status is JobStatus.WAITING_FOR_SUB_JOB


async def test_of_many_jobs_those_are_told_that_have_not_ended(open_backend: Open) -> None:
    backend = await open_backend(partitions=3)
    executor = Executor(backend)
    waiting = [await executor.start(a_job(backend, partition=number)) for number in range(3)]
    ended = await executor.end(await executor.start(a_job(backend, partition=1)))
    unknown = [JobId(ids.new_id()) for _ in range(600)]

    asked = [*unknown, ended.job.id, *(claim.job.id for claim in waiting)]
    found = await backend.jobs.not_ended(asked)

    assert found == {claim.job.id for claim in waiting}
    assert await backend.jobs.not_ended([]) == set()
