"""The store as a whole: what it must not create, what it must not leave, what it must not touch."""

import pytest

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    CatalogueEntry,
    JobNotFound,
    ResultAnswer,
    StorageBackend,
    StoreOptions,
)
from avtomatika_common.lifecycle import StartupError
from avtomatika_core.events import SignalReceived, WorkerEventArrived
from avtomatika_core.job import JobId, TaskId, WorkerId
from avtomatika_core.schedule import Every, Schedule
from tests.contract.builders import (
    APPROVAL,
    Executor,
    a_cancel,
    a_job,
    a_success,
    next_due,
    take,
    waiting_tasks,
)
from tests.contract.conftest import ON_REDIS, Bench, Open, RedisBench, client_of, keys_of

NOBODY = WorkerId("nobody")


async def test_an_open_backend_answers(backend: StorageBackend) -> None:
    assert await backend.ping()
    assert backend.partitions == 1


async def test_an_update_of_an_unknown_id_creates_nothing(
    backend: StorageBackend, bench: Bench
) -> None:  # R64
    executor = Executor(backend)
    await executor.read_all()  # whatever reading itself must make is there
    job, task = JobId(ids.new_id()), TaskId(ids.new_id())
    before = await bench.contents()

    with pytest.raises(JobNotFound):
        await backend.jobs.request_cancel(job, a_cancel(backend))
    with pytest.raises(JobNotFound):
        await backend.jobs.decide_approval(job, token="1", decision="yes", at=0.0)
    event = a_success(backend, task)
    assert await backend.board.end_lease(job, NOBODY, event) is ResultAnswer.JOB_NOT_FOUND
    assert await backend.board.lease(task, job, 1, NOBODY, 1) is None
    await backend.board.confirm(task, job, NOBODY)
    await backend.board.undeliver(task, job, NOBODY)
    assert not await backend.jobs.forget_quarantined(job)
    signal = SignalReceived(at=0.0, name="paid", data={})
    with pytest.raises(JobNotFound):
        await backend.jobs.send_signal(job, signal)
    told = WorkerEventArrived(
        at=0.0, task_id=task, worker_id=NOBODY, event_id="e", event_type="halfway", payload={}
    )
    reported = await backend.board.report_event(
        job, task, NOBODY, "e", event=told, notification=None
    )
    assert reported.answer is ResultAnswer.JOB_NOT_FOUND
    assert await backend.schedules.set_paused("none", is_paused=True, at=0.0) is None
    await backend.schedules.note_asked("none", job, 0.0)
    assert not await backend.dead_events.replay("0-1-0")
    assert await backend.workers.beat(NOBODY, {"load": 1}, 60.0) is None
    until = backend.clock.now() + 60.0
    assert await backend.workers.announce_credit(NOBODY, "p", "g", until, 60.0) is None
    await backend.workers.withdraw_credit(NOBODY, "p")
    await backend.workers.end_hold(NOBODY, task)
    await backend.workers.end_hold(NOBODY, task, stop=True)
    assert not await backend.workers.stop_task(NOBODY, task, job)
    assert not await backend.workers.leave(NOBODY)

    assert await bench.contents() == before


async def fill(backend: StorageBackend) -> Executor:
    """Something of everything."""
    executor = Executor(backend)
    await backend.workers.register(WorkerId("worker-1"), {"supported_tasks": ["t"]}, 60.0)
    await executor.dispatch(job=a_job(backend, client="ann", webhook_url="http://x"))
    await take(backend)
    await executor.fan_out(3)
    await executor.run(await executor.start(), APPROVAL)
    quarantined = await executor.start(a_job(backend, webhook_url="http://x"))
    await executor.raised(quarantined, is_final=True)
    await executor.start()
    await backend.jobs.create(a_job(backend))
    await backend.key_values.set("store", "k", b"v")
    entry = CatalogueEntry(
        name="b", group="g", start_state="s", api_endpoint=None, api_version=None, dot=""
    )
    await backend.catalogue.publish([entry])
    lease = await backend.leases.acquire("scheduler", "s-1", 60.0)
    assert lease is not None
    nightly = Schedule(name="nightly", blueprint="b", when=Every(seconds=1))
    await backend.schedules.publish(lease, [nightly])
    await backend.jobs.create(a_job(backend), once=True)
    return executor


async def test_a_flush_leaves_nothing(open_backend: Open) -> None:  # R63
    backend = await open_backend(keep_facts=True)
    executor = await fill(backend)
    many = [str(number) for number in range(1500)]  # more than are found at once
    for name in many:
        await backend.key_values.set(name, "k", b"v")

    await backend.flush_all()

    assert await executor.read_all() == []
    assert await executor.pending() == []
    assert await backend.inbox.length() == await backend.get_job_queue_length() == 0
    assert await waiting_tasks(backend) == []
    assert await next_due(backend) is None
    assert await backend.jobs.count_by_status() == {}
    assert await backend.jobs.quarantined() == []
    assert await backend.workers.count() == 0
    assert await backend.relay.return_lost() == 0
    assert await backend.facts.length() == await backend.notifications.length() == 0
    assert [await backend.key_values.get(name, "k") for name in ("store", *many)] == [None] * 1501
    assert (await backend.catalogue.entries())[1] == []
    assert (await backend.schedules.entries())[1] == []
    assert await backend.leases.acquire("scheduler", "s-2", 60.0) is not None


async def test_after_a_flush_everything_works_again(backend: StorageBackend) -> None:  # R25
    executor = await fill(backend)
    await backend.flush_all()

    claim = await executor.dispatch()
    await take(backend)
    event = a_success(backend, claim.task_id)
    await backend.board.end_lease(claim.job.id, WorkerId("worker-1"), event)

    assert (await executor.apply(await executor.read())).job.state == "next"


@pytest.mark.parametrize("bench", ON_REDIS, indirect=True)
async def test_a_flush_touches_no_key_of_others(open_backend: Open, bench: RedisBench) -> None:
    backend = await open_backend()
    await fill(backend)
    async with client_of(bench.url) as client:
        await client.set("avto", "theirs")
        await client.set("my:avtomatika:key", "theirs")

        await backend.flush_all()

        keys = set(await keys_of(client))
        assert {key for key in keys if not key.startswith("avtomatika:")} == {
            "avto",
            "my:avtomatika:key",
        }
        assert keys - {"avto", "my:avtomatika:key"} <= {"avtomatika:meta"}


async def test_nothing_but_the_job_is_left_when_it_has_ended(
    backend: StorageBackend, bench: Bench
) -> None:
    """Live work is what takes room: a job's end leaves its document, counted and to be forgotten."""
    executor = Executor(backend)
    claim = await executor.dispatch()
    await take(backend)
    event = a_success(backend, claim.task_id)
    await backend.board.end_lease(claim.job.id, WorkerId("worker-1"), event)
    ended = await executor.end(await executor.apply(await executor.read()))
    while await backend.relay.run_once(0):
        pass

    assert ended.job.is_terminal
    assert await backend.inbox.length() == 0
    assert await backend.board.length() == 0
    assert await next_due(backend) is None
    assert await backend.relay.run_once(0) == 0
    left = [name for name in await bench.contents() if claim.task_id in name]
    assert left == []


async def test_the_number_of_partitions_is_fixed(open_backend: Open, bench: Bench) -> None:
    backend = await open_backend(partitions=2)
    await backend.jobs.create(a_job(backend))

    with pytest.raises(StartupError, match="partitions"):
        await bench.opened(StoreOptions(partitions=3))


@pytest.mark.parametrize("bench", ON_REDIS, indirect=True)
async def test_a_flush_leaves_the_number_of_partitions(
    open_backend: Open, bench: RedisBench
) -> None:
    """Processes that go on over it have as many as before."""
    backend = await open_backend(partitions=2)
    await backend.flush_all()

    with pytest.raises(StartupError, match="partitions"):
        await bench.opened(StoreOptions(partitions=3))


async def test_jobs_of_all_partitions_are_read_and_counted(open_backend: Open) -> None:
    backend = await open_backend(partitions=4)
    executor = Executor(backend)
    jobs = [a_job(backend, partition=number % 4) for number in range(12)]
    for job in jobs:
        await backend.jobs.create(job)
    assert await backend.inbox.length() == 12

    found = await executor.read_all()
    while len(found) < 12:
        news = await executor.read_all()
        assert news
        found += news

    assert {delivery.job_id for delivery in found} == {job.id for job in jobs}
    assert len(await executor.pending()) == 12
    assert sum((await backend.jobs.count_by_status()).values()) == 12
    [consumer] = await backend.inbox.consumers("default")
    assert consumer.pending == 12
