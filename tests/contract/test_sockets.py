"""Workers' sockets: one each in the whole deployment, and commands that reach it."""

from typing import Any

from avtomatika_common.backend.ports import CloseSocket, Mail, StopTask, StorageBackend
from avtomatika_core.job import JobId, TaskId, WorkerId
from tests.contract.conftest import PassTime

ME = WorkerId("me")
TTL = 60.0
TASK, JOB = TaskId("task"), JobId("job")


def a_document() -> dict[str, Any]:
    return {"supported_tasks": ["t"]}


async def mail(backend: StorageBackend, gateway: str) -> list[Mail]:
    return (await backend.mailbox.read(gateway, "0"))[1]


async def test_a_command_goes_to_the_gateway_that_has_the_socket(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep("g"):
        await backend.workers.claim_socket(ME, "g", "c1")

        assert await backend.workers.stop_task(ME, TASK, JOB)

        assert await mail(backend, "g") == [
            StopTask(worker_id=ME, connection="c1", task_id=TASK, job_id=JOB)
        ]
    assert await backend.workers.to_stop(ME) == [TASK]


async def test_a_command_is_sent_to_a_socket_once(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep("g"):
        await backend.workers.claim_socket(ME, "g", "c1")

        assert [await backend.workers.stop_task(ME, TASK, JOB) for _ in range(2)] == [True, True]
        await backend.workers.end_hold(ME, TASK, stop=True)

        assert len(await mail(backend, "g")) == 1


async def test_after_a_flush_mail_reaches_who_has_read_before(backend: StorageBackend) -> None:
    """R25."""
    position = "0"
    for _ in range(3):
        async with backend.liveness.keep("g"):
            await backend.workers.register(ME, a_document(), TTL)
            await backend.workers.claim_socket(ME, "g", "c1")
            await backend.workers.stop_task(ME, TASK, JOB)

            position, letters = await backend.mailbox.read("g", position)

            assert [type(letter) for letter in letters] == [StopTask]
        await backend.flush_all()


async def test_without_a_live_socket_the_heartbeat_tells(backend: StorageBackend) -> None:
    await backend.workers.register(ME, a_document(), TTL)

    assert not await backend.workers.stop_task(ME, TASK, JOB)
    await backend.workers.claim_socket(ME, "dead gateway", "c1")
    assert not await backend.workers.stop_task(ME, TASK, JOB)

    beat = await backend.workers.beat(ME, None, TTL)
    assert beat is not None
    assert beat.cancel_task_ids == [TASK]


async def test_an_unknown_worker_is_told_nothing_and_nothing_is_stored(
    backend: StorageBackend,
) -> None:
    """R64."""
    assert not await backend.workers.stop_task(ME, TASK, JOB)

    assert await backend.workers.to_stop(ME) == []
    assert await backend.workers.get(ME) is None


async def test_the_newest_socket_wins_wherever_it_is(backend: StorageBackend) -> None:
    """R39."""
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep("g"), backend.liveness.keep("h"):
        await backend.workers.claim_socket(ME, "g", "old")
        await backend.workers.claim_socket(ME, "h", "new")
        await backend.workers.claim_socket(ME, "h", "new")

        assert await mail(backend, "g") == [CloseSocket(worker_id=ME, connection="old")]
        assert await backend.workers.renew_sockets("g", [(ME, "old")]) == [(ME, "old")]
        assert await backend.workers.renew_sockets("h", [(ME, "new")]) == []
        await backend.workers.stop_task(ME, TASK, JOB)
        assert [type(letter) for letter in await mail(backend, "h")] == [StopTask]


async def test_the_end_of_an_old_socket_leaves_the_new_one(backend: StorageBackend) -> None:
    """R39."""
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep("g"):
        await backend.workers.claim_socket(ME, "g", "old")
        await backend.workers.claim_socket(ME, "g", "new")
        await backend.workers.release_socket(ME, "old")

        assert await backend.workers.stop_task(ME, TASK, JOB)

        await backend.workers.release_socket(ME, "new")
        assert not await backend.workers.stop_task(ME, TaskId("another"), JOB)


async def test_registering_over_a_live_registration_closes_the_socket(
    backend: StorageBackend,
) -> None:
    await backend.workers.register(ME, a_document(), TTL)
    async with backend.liveness.keep("g"):
        await backend.workers.claim_socket(ME, "g", "c1")

        await backend.workers.register(ME, a_document(), TTL)

        assert await mail(backend, "g") == [CloseSocket(worker_id=ME, connection="c1")]
        assert not await backend.workers.stop_task(ME, TASK, JOB)


async def test_a_socket_may_come_before_its_registration(
    backend: StorageBackend, pass_time: PassTime
) -> None:
    async with backend.liveness.keep("g"):
        await backend.workers.claim_socket(ME, "g", "c1")
        await backend.workers.register(ME, a_document(), 0.05)
        await pass_time(0.06)
        await backend.workers.register(ME, a_document(), TTL)

        assert await backend.workers.stop_task(ME, TASK, JOB)
