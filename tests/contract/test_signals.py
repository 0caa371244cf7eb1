"""Signals: numbered, never lost beside a running handler, and no more kept than a job may have."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    ApprovalNotOpen,
    DropAnswer,
    IdempotencyKey,
    IdempotencyKeyReused,
    JobIsTerminal,
    JobNotFound,
    StaleJob,
    StorageBackend,
    Stored,
    TooManySignals,
)
from avtomatika_core.events import SignalReceived
from avtomatika_core.job import JobId, JobStatus
from avtomatika_core.signals import MOST_WAITING
from tests.contract.builders import (
    APPROVAL,
    TO_NEXT,
    WAIT,
    Claim,
    Executor,
    a_cancel,
    a_job,
    errors,
    fire,
    next_due,
)
from tests.contract.conftest import Bench, Open, PassTime


async def send(
    backend: StorageBackend,
    job_id: str,
    name: str = "paid",
    *,
    key: IdempotencyKey | None = None,
    **data: Any,
) -> None:
    signal = SignalReceived(at=backend.clock.now(), name=name, data=data)
    await backend.jobs.send_signal(JobId(job_id), signal, idempotency=key)


def a_key(fingerprint: str = "f") -> IdempotencyKey:
    return IdempotencyKey(client="ann", key="k", fingerprint=fingerprint)


async def loaded(backend: StorageBackend, claim: Claim) -> Stored:
    stored = await backend.jobs.load(claim.job.id)
    assert stored is not None
    return stored


# --- sending


async def test_signals_come_numbered_into_the_inbox(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    await send(backend, claim.job.id, amount=3)
    await send(backend, claim.job.id, "other")

    events = [delivery.event for delivery in await executor.read_all()]
    assert [type(event) for event in events] == [SignalReceived, SignalReceived]
    assert [(e.number, e.name, e.data) for e in events if isinstance(e, SignalReceived)] == [
        (1, "paid", {"amount": 3}),
        (2, "other", {}),
    ]


async def test_signals_sent_at_once_have_numbers_of_their_own(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    await asyncio.gather(*(send(backend, claim.job.id) for _ in range(20)))

    events = [delivery.event for delivery in await executor.read_all()]
    numbers = [event.number for event in events if isinstance(event, SignalReceived)]
    assert sorted(numbers) == list(range(1, 21))


async def test_an_unknown_or_ended_job_gets_no_signal(backend: StorageBackend) -> None:
    executor = Executor(backend)
    ended = await executor.end(await executor.start())

    with pytest.raises(JobNotFound):
        await send(backend, ids.new_id())
    with pytest.raises(JobIsTerminal) as refused:
        await send(backend, ended.job.id)

    assert refused.value.status == "finished"
    assert await backend.inbox.length() == 0


async def test_an_idempotency_key_sends_one_signal(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()

    for _ in range(3):
        await send(backend, claim.job.id, key=a_key())
    with pytest.raises(IdempotencyKeyReused):
        await send(backend, claim.job.id, key=a_key("another body"))

    assert len(await executor.read_all()) == 1


async def test_a_repeat_of_a_signal_is_answered_when_the_job_has_ended(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    waiting = await executor.run(await executor.start(), WAIT)
    await send(backend, waiting.job.id, key=a_key())
    await executor.end(await executor.apply(await executor.read()))

    await send(backend, waiting.job.id, key=a_key())

    assert await backend.inbox.length() == 0


async def test_jobs_and_signals_share_their_idempotency_keys(backend: StorageBackend) -> None:
    claim = await Executor(backend).start()
    await send(backend, claim.job.id, key=a_key("signal"))

    with pytest.raises(IdempotencyKeyReused):
        await backend.jobs.create(a_job(backend), idempotency=a_key("job"))


async def test_a_key_is_for_one_request_over_all_partitions(open_backend: Open) -> None:
    backend = await open_backend(partitions=4)
    place = ids.partition_of_key("ann", "k", 4)
    executor = Executor(backend)
    jobs = [a_job(backend, partition=partition) for partition in range(4)]
    claims = [await executor.start(job) for job in jobs]
    first, *others = sorted(claims, key=lambda claim: ids.partition_of(claim.job.id, 4) == place)

    for _ in range(3):
        await send(backend, first.job.id, key=a_key("signal"))
    for other in others:
        with pytest.raises(IdempotencyKeyReused):
            await send(backend, other.job.id, key=a_key("another signal"))
    with pytest.raises(IdempotencyKeyReused):
        await backend.jobs.create(a_job(backend, partition=place), idempotency=a_key("job"))

    [delivery] = await executor.read_all()
    assert delivery.job_id == first.job.id


@pytest.mark.parametrize("partition", range(4))
async def test_a_key_of_a_job_sends_no_signal_to_any_partition(
    open_backend: Open, partition: int
) -> None:
    backend = await open_backend(partitions=4)
    executor = Executor(backend)
    claim = await executor.start(a_job(backend, partition=partition))
    made = a_job(backend, partition=ids.partition_of_key("ann", "k", 4), group="others")
    await backend.jobs.create(made, idempotency=a_key("job"))

    with pytest.raises(IdempotencyKeyReused):
        await send(backend, claim.job.id, key=a_key("signal"))

    assert await executor.read_all() == []


async def test_the_hundred_and_first_signal_that_waits_is_refused(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    outcomes = await asyncio.gather(
        *(send(backend, claim.job.id) for _ in range(MOST_WAITING + 3)), return_exceptions=True
    )
    assert errors(outcomes) == [TooManySignals] * 3
    for delivery in await executor.read_all():
        claim = Claim(await loaded(backend, claim), delivery)
        await executor.commit(claim, delivery.event)
    with pytest.raises(TooManySignals):
        await send(backend, claim.job.id)

    [carrying] = await executor.pending()
    await executor.run(Claim(await loaded(backend, claim), carrying), WAIT)

    await send(backend, claim.job.id)
    with pytest.raises(TooManySignals):
        await send(backend, claim.job.id)


# --- a signal and its wait


async def test_the_wait_takes_the_signal_and_its_timer_goes(backend: StorageBackend) -> None:
    """R8."""
    executor = Executor(backend)
    wait = replace(WAIT, timeout_seconds=60.0)
    claim = await executor.run(await executor.start(), wait)
    assert claim.job.status is JobStatus.WAITING_FOR_SIGNAL
    assert await next_due(backend) is not None

    await send(backend, claim.job.id, amount=3)
    received = await executor.apply(await executor.read())

    stored = await loaded(backend, received)
    assert (stored.job.status, stored.job.state) == (JobStatus.RUNNING, "next")
    assert stored.job.data.state_history == {"amount": 3}
    assert stored.job.signals.taken == 1
    assert stored.claim == received.delivery.entry_id
    assert await next_due(backend) is None


async def test_a_signal_that_does_not_come_times_out(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    await executor.run(await executor.start(), replace(WAIT, timeout_seconds=0.05))
    await pass_time(0.06)

    assert await fire(backend) == 1

    assert (await executor.apply(await executor.read())).job.state == "late"


async def test_of_a_signal_and_its_timeout_at_once_one_takes_effect(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    """R16."""
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), replace(WAIT, timeout_seconds=0.05))
    await pass_time(0.06)
    await asyncio.gather(send(backend, claim.job.id), fire(backend))

    first, second = await executor.read_all()
    went_on = await executor.apply(first)
    if isinstance(first.event, SignalReceived):
        assert went_on.job.state == "next"
        assert await backend.inbox.drop(second) is DropAnswer.DROPPED
    else:
        assert went_on.job.state == "late"
        await executor.apply(second)
        assert len((await loaded(backend, claim)).job.signals.kept) == 1
    assert await executor.pending() == [went_on.delivery]


# --- a signal beside what the job does


async def test_a_signal_beside_a_running_handler_leaves_it_its_claim(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    await send(backend, claim.job.id, n=1)
    delivery = await executor.read()

    beside = await executor.apply(delivery)

    stored = await loaded(backend, claim)
    assert beside.stored.claim == stored.claim == claim.delivery.entry_id
    assert stored.job.run == claim.job.run
    assert [signal.data for signal in stored.job.signals.kept] == [{"n": 1}]
    assert await executor.pending() == [claim.delivery]
    assert await backend.inbox.drop(claim.delivery) is DropAnswer.CARRIES
    with pytest.raises(StaleJob):
        await executor.run(claim, TO_NEXT)
    await executor.run(Claim(stored, claim.delivery), TO_NEXT)


async def test_a_commit_beside_that_is_repeated_is_done_once(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    await send(backend, claim.job.id)
    delivery = await executor.read()
    stored = await loaded(backend, claim)
    once = await executor.commit(Claim(stored, delivery), delivery.event)

    again = await executor.commit(Claim(stored, delivery), delivery.event)

    assert again.stored.fence == once.stored.fence
    assert (await loaded(backend, claim)).fence == once.stored.fence


async def test_a_kept_signal_is_taken_with_the_step_that_waits_for_it(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    await send(backend, claim.job.id, amount=3)
    await executor.apply(await executor.read())

    stored = await loaded(backend, claim)
    await executor.run(Claim(stored, claim.delivery), replace(WAIT, timeout_seconds=60.0))

    job = (await loaded(backend, claim)).job
    assert (job.status, job.state) == (JobStatus.RUNNING, "next")
    assert job.data.state_history == {"amount": 3}
    assert (job.signals.kept, job.signals.taken) == ((), 1)
    assert await next_due(backend) is None


async def test_a_signal_for_a_job_that_has_not_begun_lets_it_begin(
    backend: StorageBackend,
) -> None:
    executor = Executor(backend)
    job = a_job(backend)
    await backend.jobs.create(job)
    await send(backend, job.id)
    entries = sorted(await executor.read_all(), key=lambda delivery: delivery.lane)

    signal, created = entries
    await executor.apply(signal)
    begun = await executor.apply(created)

    assert begun.job.status is JobStatus.RUNNING
    assert len((await loaded(backend, begun)).job.signals.kept) == 1


async def test_signals_that_a_dead_executor_had_are_no_tries_of_their_job(
    backend: StorageBackend,
) -> None:
    dead, mine = Executor(backend, "dead"), Executor(backend, "mine")
    claim = await dead.start()
    for number in range(6):
        await send(backend, claim.job.id, n=number)
    await dead.read_all()

    taken = await backend.inbox.take_over("default", "dead", "mine", 20)

    assert len(taken) == 7
    assert (await loaded(backend, claim)).tries == 1
    for signal in (one for one in taken if isinstance(one.event, SignalReceived)):
        await mine.apply(signal)
    assert (await loaded(backend, claim)).tries == 1, (
        "signals hide that its handler kills executors"
    )


async def test_a_signal_that_carries_a_run_is_a_try(backend: StorageBackend) -> None:
    dead = Executor(backend, "dead")
    claim = await dead.run(await dead.start(), WAIT)
    await send(backend, claim.job.id)
    await dead.apply(await dead.read())

    await backend.inbox.take_over("default", "dead", "mine", 20)

    assert (await loaded(backend, claim)).tries == 1


async def test_a_deferred_signal_keeps_its_number_and_its_data(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    executor = Executor(backend)
    claim = await executor.start()
    for amount in (1, 2):
        await send(backend, claim.job.id, amount=amount)
    first, second = await executor.read_all()
    await backend.inbox.defer(first, 0.05)
    await executor.apply(second)
    await pass_time(0.06)
    await fire(backend)

    await executor.apply(await executor.read())

    kept = (await loaded(backend, claim)).job.signals.kept
    assert [signal.data for signal in kept] == [{"amount": 1}, {"amount": 2}]


async def test_a_signal_that_failed_and_comes_again_is_no_other_try_of_its_job(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    dead = Executor(backend, "dead")
    claim = await dead.run(await dead.start(), WAIT)
    await send(backend, claim.job.id)
    await backend.inbox.defer(await dead.read(), 0.05, failed=True)
    failed = (await loaded(backend, claim)).tries
    await pass_time(0.06)
    await fire(backend)
    await dead.read()

    await backend.inbox.take_over("default", "dead", "mine", 20)

    assert (failed, (await loaded(backend, claim)).tries) == (1, 1)


async def test_a_replayed_signal_reaches_its_job_once(backend: StorageBackend) -> None:
    executor = Executor(backend, "dead")
    claim = await executor.run(await executor.start(), WAIT)
    await send(backend, claim.job.id, amount=3)
    await backend.inbox.set_aside(await executor.read(), "no")
    [dead] = await backend.dead_events.newest(10)

    replays = [await backend.dead_events.replay(dead.dead_id) for _ in range(2)]

    [again] = await executor.read_all()
    [taken] = await backend.inbox.take_over("default", "dead", "mine", 20)
    assert replays == [True, False]
    assert taken.event == again.event
    assert (await loaded(backend, claim)).tries == 0
    await Executor(backend, "mine").apply(taken)
    job = (await loaded(backend, claim)).job
    assert (job.state, job.data.state_history, job.signals.taken) == ("next", {"amount": 3}, 1)


async def test_a_signal_opens_no_approval_that_was_decided(backend: StorageBackend) -> None:
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), APPROVAL)
    token = str(claim.job.run)
    await backend.jobs.decide_approval(claim.job.id, token=token, decision="yes", at=1.0)
    await send(backend, claim.job.id)
    decided, signal = await executor.read_all()

    await executor.apply(signal)

    with pytest.raises(ApprovalNotOpen):
        await backend.jobs.decide_approval(claim.job.id, token=token, decision="no", at=1.0)
    assert (await executor.apply(decided)).job.state == "go"


async def test_a_signal_takes_no_cancel_mark_away(backend: StorageBackend) -> None:
    """R40."""
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), WAIT)
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))
    await send(backend, claim.job.id)
    cancel, signal = await executor.read_all()

    await executor.apply(signal)

    assert (await loaded(backend, claim)).job.cancelled
    assert (await executor.apply(cancel)).job.status is JobStatus.CANCELLED


async def test_a_waiting_job_that_is_cancelled_leaves_no_timer(backend: StorageBackend) -> None:
    """R8, R40."""
    executor = Executor(backend)
    claim = await executor.run(await executor.start(), replace(WAIT, timeout_seconds=60.0))
    await backend.jobs.request_cancel(claim.job.id, a_cancel(backend))

    ended = await executor.apply(await executor.read())

    assert ended.job.status is JobStatus.CANCELLED
    assert await next_due(backend) is None


async def test_nothing_of_a_job_s_signals_outlives_its_retention(
    open_backend: Open, bench: Bench, pass_time: PassTime
) -> None:
    backend = await open_backend(retention_seconds=1)
    executor = Executor(backend)
    claim = await executor.start()
    await send(backend, claim.job.id)
    await executor.apply(await executor.read())
    stored = await loaded(backend, claim)
    await executor.end(Claim(stored, claim.delivery))

    await pass_time(1.1)
    await fire(backend)

    assert await backend.jobs.load(claim.job.id) is None
    assert not [key for key in await bench.contents() if claim.job.id in key]
