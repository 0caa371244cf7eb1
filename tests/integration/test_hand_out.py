"""The way of a task to a worker, cut at each moment: it comes to another one, uncounted."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from avtomatika_common.backend.ports import Mail, Match, StoreUnavailable
from avtomatika_core.job import WorkerId
from tests.conftest import OneRedis
from tests.integration.conftest import NewStorage, OpenSite
from tests.integration.connections import a_connection, body_of, poll_request, read, send, unread
from tests.integration.sites import SETTINGS, Site, impatient, once
from tests.interop.blueprints import branches, one_task
from tests.interop.door import WORKER_TOKEN, Door, ignored, result_of
from tests.processes import Process, a_process
from tests.proxy import proxy_to
from tests.support import until

pytestmark = pytest.mark.integration

OK = {"status": "ok"}
LARGE = 8_000_000
"""More bytes than the kernel keeps for a connection."""


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    return await open_site(one_task(), branches())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that resets a connection has more time to do so than a worker has."""
    monkeypatch.setattr("avtomatika_gateway.deliveries.RESET_SECONDS", 3.0)


# --- the moments


Moment = Callable[[Site, socket.socket], Awaitable[str]]
"""Polls as w1 and cuts the connection; the id of a job whose task it did not get."""


def sent_in_part(part: slice) -> Moment:
    async def moment(site: Site, poll: socket.socket) -> str:
        await send(poll, poll_request()[part])
        poll.close()
        return await site.door.create()

    return moment


async def parked(site: Site, poll: socket.socket) -> str:
    await send(poll, poll_request())
    await site.polls("w1", 1)
    poll.close()
    await site.polls("w1", 0)
    return await site.door.create()


def noticed(site: Site, poll: socket.socket) -> Callable[[], Awaitable[None]]:
    """Cuts the connection, and returns when the gateway knows it."""

    async def cut() -> None:
        knows = asyncio.Event()

        async def withdrawn() -> None:
            knows.set()

        once(site.storage.workers, "withdraw_credit", before=withdrawn)
        poll.close()
        async with asyncio.timeout(5):
            await knows.wait()

    return cut


def unnoticed(_site: Site, poll: socket.socket) -> Callable[[], Awaitable[None]]:
    """Cuts the connection; the gateway goes on before it can have read so."""

    async def cut() -> None:
        poll.close()

    return cut


async def just_matched(site: Site, poll: socket.socket) -> str:
    """The dispatcher has chosen it; its gateway hears of that when the poll is gone."""
    await before_mail_is_carried_out(site, noticed(site, poll))
    return await polled_until_cut(site, poll)


async def polled_until_cut(site: Site, poll: socket.socket) -> str:
    await send(poll, poll_request())
    job_id = await site.door.create()
    await until(lambda: poll.fileno() == -1, message="it was not cut")
    return job_id


Cut = Callable[[Site, socket.socket], Callable[[], Awaitable[None]]]


def before_the_lease(cutting: Cut) -> Moment:
    async def moment(site: Site, poll: socket.socket) -> str:
        once(site.storage.board, "lease", before=cutting(site, poll))
        return await polled_until_cut(site, poll)

    return moment


def after_the_lease(cutting: Cut) -> Moment:
    async def moment(site: Site, poll: socket.socket) -> str:
        once(site.storage.board, "lease", after=cutting(site, poll))
        return await polled_until_cut(site, poll)

    return moment


def read_in_part(share: float, rest: int = 0) -> Moment:
    """Of the answer that `share` and so many bytes were read when the worker's end went."""

    async def moment(site: Site, poll: socket.socket) -> str:
        await send(poll, poll_request())
        job_id = await site.door.create()
        answer = await unread(poll)
        count = int(len(answer) * share) + rest
        assert await read(poll, count) == answer[:count]
        poll.close()  # what was not read makes it a reset
        return job_id

    return moment


async def still_being_written(site: Site, poll: socket.socket) -> str:
    """The gateway waits for the connection to take the rest of a large answer."""
    await send(poll, poll_request())
    job_id = await site.door.create(params={"large": "x" * LARGE})
    await read(poll, 1000)
    poll.close()
    return job_id


NEVER_LEASED: dict[str, Moment] = {
    "half a request": sent_in_part(slice(40)),
    "a request but for its last byte": sent_in_part(slice(-1)),
    "parked": parked,
    "just matched": just_matched,
}
LEASED: dict[str, Moment] = {
    "before the lease, noticed": before_the_lease(noticed),
    "before the lease": before_the_lease(unnoticed),
    "leased, noticed": after_the_lease(noticed),
    "leased": after_the_lease(unnoticed),
    "written, not a byte read": read_in_part(0),
    "one byte read": read_in_part(0, 1),
    "half of it read": read_in_part(0.5),
    "all but one byte read": read_in_part(1, -1),
    "still being written": still_being_written,
}


async def goes_to_another(site: Site, job_id: str, *, leased_before: int) -> None:
    """w2 gets the job's task as if w1 had never been there, and the job ends once."""
    door = site.door
    await door.register("w2")
    async with asyncio.timeout(4):  # less than a delivery may take until it is given up
        (task,) = await door.tasks("w2", 1)
    late = await door.done(task, "w1")
    document = await door.document(job_id)

    assert (task["job_id"], task["attempt"]) == (job_id, 1)
    assert site.leases == [*[("w1", task["task_id"])] * leased_before, ("w2", task["task_id"])]
    assert ignored(late) == "worker_mismatch"
    assert document["task_worker_id"] == "w2"
    assert not document.get("task_retry_count")
    await site.holds("w1", 0)
    assert (await door.done(task, "w2")).json == OK
    assert (await door.ended(job_id))["status"] == "finished"
    await until(lambda: site.ends)
    assert site.ends == {job_id: 1}


@pytest.mark.parametrize("moment", NEVER_LEASED.values(), ids=NEVER_LEASED)
async def test_a_poll_that_is_cut_takes_no_task_with_it(site: Site, moment: Moment) -> None:
    """R5."""
    await site.door.register("w1")
    async with a_connection(site.door.port) as poll:
        job_id = await moment(site, poll)

    await goes_to_another(site, job_id, leased_before=0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("moment", LEASED.values(), ids=LEASED)
async def test_a_task_whose_answer_was_cut_goes_to_another_worker(
    site: Site, moment: Moment
) -> None:
    """R5."""
    await site.door.register("w1")
    async with a_connection(site.door.port, keeps=4096) as poll:
        job_id = await moment(site, poll)

        await goes_to_another(site, job_id, leased_before=1)


# --- an answer that vanished on its way, while nobody closed a connection


@asynccontextmanager
async def a_vanished_answer(site: Site) -> AsyncGenerator[str, None]:
    """A job whose task is w1's as far as the gateway knows; a proxy has swallowed the answer."""
    door = site.door
    if await site.storage.workers.get(WorkerId("w1")) is None:
        await door.register("w1")
    async with proxy_to(door.url) as (proxy, url), a_connection(port_of(url)) as poll:
        proxy.is_silent.set()
        await send(poll, poll_request())
        job_id = await door.create()
        await until(lambda: site.leases, message="nothing was handed out")
        await until(lambda: is_confirmed(site), message="the hand-out was not confirmed")
        yield job_id


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


async def is_confirmed(site: Site) -> bool:
    """The only task there is has left the board, and its timer gives time for its result."""
    due = await site.storage.timers.next_due(0)
    is_leased = await site.storage.board.length() == 0
    return is_leased and due is not None and due > site.storage.clock.now() + 60


async def heartbeat(site: Site, **news: Any) -> None:
    answer = await site.door.heartbeat("w1", {"status": "idle", **news})
    assert answer.status == 200, answer


async def stays(site: Site, job_id: str) -> None:
    """The task is still w1's."""
    assert await site.storage.board.length() == 0
    assert (await site.door.document(job_id))["task_worker_id"] == "w1"


async def test_two_heartbeats_that_do_not_name_a_task_bring_it_back(site: Site) -> None:
    """R5."""
    async with a_vanished_answer(site) as job_id:
        await heartbeat(site, current_tasks=[])
        await stays(site, job_id)
        await heartbeat(site, current_tasks=["another"])

        await goes_to_another(site, job_id, leased_before=1)


async def test_who_lost_a_task_on_its_way_may_get_it_again(site: Site) -> None:
    async with a_vanished_answer(site) as job_id:
        for _ in range(2):
            await heartbeat(site, current_tasks=[])

        (task,) = await site.door.tasks("w1", 1)

    assert (task["job_id"], task["attempt"]) == (job_id, 1)
    await heartbeat(site, current_tasks=[task["task_id"]])
    assert (await site.door.done(task, "w1")).json == OK
    assert (await site.door.ended(job_id))["status"] == "finished"


async def test_a_heartbeat_that_names_the_task_begins_the_count_anew(site: Site) -> None:
    async with a_vanished_answer(site) as job_id:
        [(_, task_id)] = site.leases
        await heartbeat(site, current_tasks=[])
        await heartbeat(site, current_tasks=[task_id])
        await heartbeat(site, current_tasks=[])
        await stays(site, job_id)
        await heartbeat(site, current_tasks=[])

        await goes_to_another(site, job_id, leased_before=1)


async def test_a_heartbeat_that_says_nothing_of_tasks_does_not_count(site: Site) -> None:
    async with a_vanished_answer(site) as job_id:
        await heartbeat(site, current_tasks=[])
        for body in (None, {}, {"load": 0.1}, {"current_tasks": None}):
            assert (await site.door.heartbeat("w1", body)).status == 200
            await stays(site, job_id)
        await heartbeat(site, current_tasks=[])

        await goes_to_another(site, job_id, leased_before=1)


async def test_a_heartbeat_that_began_before_the_hand_out_does_not_count(site: Site) -> None:
    await site.door.register("w1")
    async with a_connection(site.door.port) as early:
        body = json.dumps({"current_tasks": []}).encode()
        await send(
            early,
            f"PATCH /_worker/workers/w1 HTTP/1.1\r\nHost: here\r\n"
            f"X-Worker-Token: {WORKER_TOKEN}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode(),
        )
        assert (await read(early, 25)) == b"HTTP/1.1 100 Continue\r\n\r\n"
        async with a_vanished_answer(site) as job_id:
            await send(early, body)
            assert (await unread(early)).startswith(b"HTTP/1.1 200")
            await heartbeat(site, current_tasks=[])
            await stays(site, job_id)
            await heartbeat(site, current_tasks=[])

            await goes_to_another(site, job_id, leased_before=1)


async def test_an_answer_cut_behind_a_proxy_that_has_read_it_all_comes_back(site: Site) -> None:
    """R5: the gateway's own connection ends as that of any worker that is content."""
    door = site.door
    await door.register("w1")
    async with proxy_to(door.url) as (proxy, url), a_connection(port_of(url)) as poll:
        proxy.cut_replies_after(150)
        await send(poll, poll_request())
        job_id = await door.create()
        await until(lambda: proxy.cuts, message="nothing was cut")
        for _ in range(2):
            await heartbeat(site, current_tasks=[])

        await goes_to_another(site, job_id, leased_before=1)


async def test_an_answer_that_is_not_taken_is_given_up_in_time(
    open_site: OpenSite, new_storage: NewStorage
) -> None:
    """R5: the worker's end is there and does not read; so the answer is not written to its end."""
    site = await open_site(one_task(), storage=impatient(new_storage(), 1.5))
    await site.door.register("w1")
    async with a_connection(site.door.port, keeps=4096) as poll:
        await send(poll, poll_request())
        job_id = await site.door.create(params={"large": "x" * LARGE})
        await read(poll, 1000)

        await goes_to_another(site, job_id, leased_before=1)


async def test_a_worker_that_names_its_task_keeps_it_whatever_its_connection_did(
    site: Site,
) -> None:
    """It has read the answer, and then closed its end before the gateway called it certain."""
    door = site.door
    await door.register("w1")
    async with a_connection(door.port) as poll:
        await send(poll, poll_request())
        job_id = await door.create()
        answer = await read(poll, len(await unread(poll)))
    task = body_of(answer)
    for _ in range(3):
        await heartbeat(site, current_tasks=[task["task_id"]])

    await until(lambda: is_confirmed(site), message="the hand-out was not confirmed")
    await stays(site, job_id)
    assert (await door.done(task, "w1")).json == OK
    assert (await door.ended(job_id))["status"] == "finished"


# --- gateways that die, or sleep


async def test_a_task_that_its_gateway_never_answered_goes_to_another_worker(
    open_site: OpenSite, new_storage: NewStorage
) -> None:
    """R5: it is given up in time; what the gateway does when it is awake again changes nothing."""
    site = await open_site(one_task(), storage=impatient(new_storage(), 1.5))
    await site.door.register("w1")
    await site.door.register("w2")
    awake = asyncio.Event()
    once(site.storage.board, "lease", after=awake.wait)

    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(site.door.task("w1"))
        job_id = await site.door.offered()
        await until(lambda: site.leases, message="nothing was leased")
        (task,) = await site.door.tasks("w2", 1)
        awake.set()

    assert poll.result()["task_id"] == task["task_id"]
    assert site.leases == [("w1", task["task_id"]), ("w2", task["task_id"])]
    assert (task["job_id"], task["attempt"]) == (job_id, 1)
    await until(lambda: is_confirmed(site))
    assert ignored(await site.door.done(task, "w1")) == "worker_mismatch"
    assert (await site.door.done(task, "w2")).json == OK
    assert (await site.door.ended(job_id))["status"] == "finished"


def a_gateway(module: str, url: str, directory: Path) -> AbstractContextManager[Process]:
    return a_process(module, directory, REDIS_URL=url, **SETTINGS)


async def door_of(process: Process, session: aiohttp.ClientSession) -> Door:
    """Where the process listens, once it does."""
    said = "gateway serves clients and workers"
    await until(lambda: process.has_said(said), 20.0, "the gateway does not serve")
    line = next(line for line in process.stderr.splitlines() if said in line)

    async def killed() -> None:
        process.send(signal.SIGKILL)

    return Door(session, json.loads(line)["port"], stop=killed)


@pytest.mark.chaos
@pytest.mark.parametrize("new_storage", ["redis"], indirect=True)
async def test_a_gateway_killed_between_lease_and_answer_loses_no_task(
    site: Site, one_redis: OneRedis, tmp_path: Path
) -> None:
    """R5."""
    await site.door.register("w1")
    with a_gateway("tests.integration.gateway_that_dies", one_redis.url, tmp_path) as process:
        there = await door_of(process, site.door.session)
        async with a_connection(there.port) as poll:
            await send(poll, poll_request())
            await site.polls("w1", 1)
            job_id = await site.door.offered()
            await until(process.has_ended, message="it was not killed")
            assert process.exit_code == -signal.SIGKILL
        [waiting] = await site.storage.board.heads(0, 1) or [None]

        await goes_to_another(site, job_id, leased_before=0)
    assert waiting is None  # it was leased, by the one that died


@pytest.mark.chaos
@pytest.mark.parametrize("new_storage", ["redis"], indirect=True)
async def test_a_worker_whose_gateway_is_killed_goes_on_at_another(
    site: Site, one_redis: OneRedis, tmp_path: Path
) -> None:
    here = site.door
    await here.register("w1")
    with a_gateway("avtomatika_gateway", one_redis.url, tmp_path) as process:
        there = await door_of(process, here.session)
        async with a_connection(there.port) as poll:
            await send(poll, poll_request())
            await site.polls("w1", 1)
            await here.create()
            answer = await read(poll, len(await unread(poll)))
            held = body_of(answer)
            await there.stop()
        await heartbeat(site, current_tasks=[held["task_id"]])

        assert await is_confirmed(site)  # though who handed it out did not live to do so
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(here.task("w1"))
            job_id = await here.create()
        assert following.result()["job_id"] == job_id
        for task in (held, following.result()):
            assert (await here.done(task, "w1")).json == OK
            document = await here.ended(task["job_id"])
            assert (document["status"], document.get("task_retry_count", 0)) == ("finished", 0)


async def test_a_gateway_that_stops_leaves_its_workers_what_they_have(site: Site) -> None:
    await site.door.register("w1")
    async with site.another_gateway() as there:
        await site.door.create()
        task = await there.task("w1")

    assert await is_confirmed(site)
    assert (await site.door.done(task, "w1")).json == OK


# --- one worker at two gateways


async def test_places_of_a_worker_are_counted_over_all_gateways(site: Site) -> None:
    """R47."""
    await site.door.register("w1", resources={"max_concurrent_tasks": 2})
    async with site.another_gateway() as there, asyncio.TaskGroup() as tasks:
        polls: list[asyncio.Task[dict[str, Any]]] = []
        for door in (site.door, there) * 2:
            polls.append(tasks.create_task(door.task("w1")))
            await site.polls("w1", len(polls))
        job_ids = await offered(site, 3)

        # The latest polls first, so one at each gateway; the third task finds no place.
        first, second = await polls[3], await polls[2]
        await until(lambda: is_said(site, job_ids[2], "All suitable workers for task type"))
        assert not polls[1].done()
        assert not polls[0].done()
        assert (await site.door.done(first, "w1")).json == OK
        third = await polls[1]
        polls[0].cancel()

    assert [task["job_id"] for task in (first, second, third)] == job_ids


async def is_said(site: Site, job_id: str, reason: str) -> bool:
    """Whether that is why the job's task waits."""
    said = (await site.door.document(job_id)).get("waiting_reason") or ""
    return str(said).startswith(reason)


async def test_a_greedy_worker_at_two_gateways_never_has_too_much_in_hand(
    open_site: OpenSite,
) -> None:
    """R47."""
    soon = {"WORKER_POLL_TIMEOUT_SECONDS": "0.3"}
    site = await open_site(one_task(), **soon)
    job_ids = await offered(site, 40)
    await site.door.register("w1", resources={"max_concurrent_tasks": 2})
    in_hand: set[str] = set()
    most_in_hand = 0
    done: list[str] = []

    def is_enough() -> bool:
        """It has all it may have, or all there is."""
        return len(in_hand) > 1 or len(done) == len(job_ids) - 1

    async def work(door: Door) -> None:
        nonlocal most_in_hand
        while len(done) < len(job_ids):
            answer = await door.poll("w1")
            if answer.status == 204:
                continue
            task = answer.json
            in_hand.add(task["task_id"])
            most_in_hand = max(most_in_hand, len(in_hand))
            await until(is_enough)
            in_hand.discard(task["task_id"])  # from now on its place may be free
            assert (await door.done(task, "w1")).json == OK
            done.append(task["job_id"])

    async with (
        site.another_gateway(**soon) as there,
        asyncio.timeout(20),
        asyncio.TaskGroup() as tasks,
    ):
        for door in (site.door, there) * 3:
            tasks.create_task(work(door))

    assert most_in_hand == 2
    assert sorted(done) == sorted(job_ids)
    for job_id in job_ids:
        assert (await site.door.ended(job_id))["status"] == "finished"


# --- several tasks in one answer


async def offered(site: Site, count: int) -> list[str]:
    return [await site.door.offered() for _ in range(count)]


async def test_of_several_tasks_those_that_can_be_leased_are_handed_out(site: Site) -> None:
    door = site.door
    job_ids = await offered(site, 3)
    await door.register("w1", resources={"max_concurrent_tasks": 3})

    async def cancelled() -> None:
        await door.cancel(job_ids[1])

    await before_mail_is_carried_out(site, cancelled)
    tasks = await door.tasks("w1", 3)

    assert [task["job_id"] for task in tasks] == [job_ids[0], job_ids[2]]
    await site.holds("w1", 2)
    for task in tasks:
        assert (await door.done(task, "w1")).json == OK
    assert [(await door.ended(job_id))["status"] for job_id in job_ids] == [
        "finished", "cancelled", "finished",
    ]  # fmt: skip


async def test_where_none_of_several_can_be_leased_the_poll_stays_open(site: Site) -> None:
    door = site.door
    job_ids = await offered(site, 2)
    await door.register("w1")
    other: list[str] = []

    async def cancelled() -> None:
        for job_id in job_ids:
            await door.cancel(job_id)
        other.append(await door.create())

    await before_mail_is_carried_out(site, cancelled)

    assert [task["job_id"] for task in await door.tasks("w1", 2)] == other


async def test_a_lease_that_the_store_did_not_answer_holds_up_no_other(site: Site) -> None:
    door = site.door
    job_ids = await offered(site, 3)
    await door.register("w1", resources={"max_concurrent_tasks": 3})

    async def unanswered() -> None:
        raise StoreUnavailable("the store does not answer")

    once(site.storage.board, "lease", before=unanswered)
    async with asyncio.timeout(4):
        tasks = await door.tasks("w1", 3)
        last = await door.task("w1")

    assert [task["job_id"] for task in tasks] == job_ids[1:]
    assert last["job_id"] == job_ids[0]
    await site.holds("w1", 3)


async def test_an_answer_with_several_tasks_that_was_not_read_puts_all_back(
    site: Site, patient: None
) -> None:
    """R5."""
    door = site.door
    job_ids = await offered(site, 3)
    await door.register("w1")
    async with a_connection(door.port) as poll:
        await send(poll, poll_request(query="?max=3"))
        await unread(poll)

    await all_go_to_another(site, job_ids)


async def test_an_answer_with_several_tasks_that_cannot_be_written_puts_all_back(
    site: Site,
) -> None:
    """R5."""
    door = site.door
    job_ids = await offered(site, 3)
    await door.register("w1")
    async with a_connection(door.port) as poll:
        once(site.storage.board, "lease", after=noticed(site, poll))
        await send(poll, poll_request(query="?max=3"))
        await until(lambda: poll.fileno() == -1, message="it was not cut")

        await all_go_to_another(site, job_ids)


async def test_tasks_that_came_with_the_answer_to_results_go_back_too(
    site: Site, patient: None
) -> None:
    """R5: the results have counted, and are not asked for again."""
    door = site.door
    first = await door.held("w1")
    site.leases.clear()
    job_ids = await offered(site, 2)
    body = json.dumps({"results": [result_of(first, "w1")], "max": 2}).encode()
    async with a_connection(door.port) as connection:
        await send(
            connection,
            f"POST /_worker/tasks/results HTTP/1.1\r\nHost: here\r\n"
            f"X-Worker-Token: {WORKER_TOKEN}\r\nX-Worker-ID: w1\r\n"
            f"Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body,
        )
        await unread(connection)

    await all_go_to_another(site, job_ids)
    assert (await door.done(first, "w1")).json == OK  # as the first time
    assert (await door.ended(first["job_id"]))["status"] == "finished"


async def before_mail_is_carried_out(site: Site, act: Callable[[], Awaitable[None]]) -> None:
    """Act between the dispatcher's next choice and what the gateway makes of it."""
    mailbox = site.storage.mailbox
    original, is_waiting, acted = mailbox.read, asyncio.Event(), False

    async def read_mail(gateway: str, after: str) -> tuple[str, list[Mail]]:
        nonlocal acted
        is_waiting.set()
        position, mail = await original(gateway, after)
        if not acted and any(isinstance(letter, Match) for letter in mail):
            acted = True
            await act()
        return position, mail

    setattr(mailbox, "read", read_mail)  # noqa: B010 - a port's method, for this test
    async with asyncio.timeout(5):
        await is_waiting.wait()  # the read before that one is over


async def all_go_to_another(site: Site, job_ids: list[str]) -> None:
    """w2 gets the jobs' tasks in the order they had, and each job ends once."""
    door = site.door
    await door.register("w2")
    tasks: list[dict[str, Any]] = []
    async with asyncio.timeout(4):
        while len(tasks) < len(job_ids):
            tasks += await door.tasks("w2", len(job_ids))

    assert {("w1", task["task_id"]) for task in tasks} <= set(site.leases)
    assert len(site.leases) == 2 * len(job_ids)
    assert sorted(task["job_id"] for task in tasks) == sorted(job_ids)
    assert {task["attempt"] for task in tasks} == {1}
    await site.holds("w1", 0)
    for task in tasks:
        assert ignored(await door.done(task, "w1")) == "worker_mismatch"
        assert (await door.done(task, "w2")).json == OK
    for job_id in job_ids:
        assert (await door.ended(job_id))["status"] == "finished"
    await until(lambda: site.ends.keys() >= set(job_ids))
    assert set(site.ends.values()) == {1}
