"""Webhooks arrive once their receiver can take them, whatever dies and whoever else hangs."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from avtomatika_common import ids
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import StoreOptions
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import running
from avtomatika_common.records import Notification, unpack_notification
from avtomatika_core.commands import Notify, Step
from avtomatika_core.job import JobId, Origin, new_job
from avtomatika_notifier import NotifierService, Settings
from avtomatika_notifier.service import webhook_body
from tests.support import until


class Post(NamedTuple):
    body: dict[str, Any]
    content_type: str
    at: float
    """Seconds of the event loop."""


class Receiver:
    """An HTTP server that answers as told: statuses in turn, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self._statuses = list(statuses or (200,))
        self.posts: list[Post] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.at_once = 0
        self.most_at_once = 0
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return str(self._server.make_url("/hook"))

    @property
    def job_ids(self) -> list[str]:
        return [post.body["job_id"] for post in self.posts]

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Receiver", None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._take)
        self._server = TestServer(app)
        async with self._server:
            try:
                yield self
            finally:
                self.may_answer.set()

    async def _take(self, request: web.Request) -> web.Response:
        now = asyncio.get_running_loop().time()
        self.paths.append(f"{request.method} {request.path}")
        self.posts.append(Post(await request.json(), request.content_type, now))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.may_answer.wait()
        finally:
            self.at_once -= 1
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def store() -> MemoryStorage:
    made = MemoryStorage()
    await made.open(StoreOptions(block_seconds=0.05))
    return made


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    async with Receiver().open() as opened:
        yield opened


def notifier(store: MemoryStorage, **settings: Any) -> NotifierService:
    described: dict[str, Any] = {"pauses_seconds": (0.02, 0.04), "look_seconds": 0.05, **settings}
    return NotifierService(Settings(**described), store)


async def notify(store: MemoryStorage, url: str) -> JobId:
    """A job that tells `url` that it finished."""
    now = store.clock.now()
    origin = Origin(
        blueprint="b", group="default", start_state="s", created_at=now, webhook_url=url
    )
    job_id = JobId(ids.new_id())
    await store.jobs.create(new_job(job_id, origin))
    [delivery] = await store.inbox.read("default", "executor", 1)
    stored = await store.jobs.load(job_id)
    assert stored is not None
    step = Step(stored.job, (Notify(event="job_finished", at=now),))
    await store.jobs.commit(stored, step, delivery)
    return job_id


async def all_settled(store: MemoryStorage) -> None:
    async def is_empty() -> bool:
        return await store.notifications.length() == 0

    await until(is_empty, message="notifications are left")


def a_notification(**changes: Any) -> Notification:
    described: dict[str, Any] = {
        "id": "e",
        "job_id": JobId("j"),
        "url": "http://h/",
        "event": "job_finished",
        "at": 12.5,
        "status": "finished",
        "result": {"x": 1},
    }
    return Notification(**{**described, **changes})


def test_the_body_tells_what_happened() -> None:
    assert webhook_body(a_notification()) == {
        "event": "job_finished",
        "job_id": "j",
        "status": "finished",
        "result": {"x": 1},
        "error": None,
        "event_id": "e",
        "timestamp": 12.5,
    }


def test_the_body_leaves_progress_out_and_carries_error_metadata_approval_and_event() -> None:
    body = webhook_body(
        a_notification(
            result={"x": 1, "progress_updates": [{}]},
            error="boom",
            metadata={"ticket": 7},
            approval={"token": "t"},
            worker_event={"event_type": "halfway"},
        )
    )

    assert body["result"] == {"x": 1}
    assert (body["error"], body["metadata"]) == ("boom", {"ticket": 7})
    assert body["approval"] == {"token": "t"}
    assert body["worker_event"] == {"event_type": "halfway"}


def test_the_documented_times_are_the_default() -> None:
    settings = Settings.from_config(Config({}))

    assert (settings.request_timeout_seconds, settings.pauses_seconds) == (10.0, (2.0, 4.0))


async def test_a_webhook_is_posted_as_json_once(store: MemoryStorage, receiver: Receiver) -> None:
    async with running(notifier(store)):
        job_id = await notify(store, receiver.url)
        [entry] = store._tables.notifications.entries.values()  # pyright: ignore[reportPrivateUsage]
        sent = webhook_body(unpack_notification(entry.payload))
        await all_settled(store)

    [post] = receiver.posts
    assert (post.body, post.content_type) == (sent, "application/json")
    assert post.body["job_id"] == job_id


async def test_a_refused_webhook_is_repeated_twice_with_the_same_event_id(
    store: MemoryStorage, caplog: pytest.LogCaptureFixture
) -> None:
    async with Receiver(503, 404, 500).open() as refusing, running(notifier(store)):
        with caplog.at_level(logging.ERROR, "avtomatika"):
            await notify(store, refusing.url)
            await all_settled(store)

    first, second, third = refusing.posts
    assert first.body == second.body == third.body
    assert second.at - first.at >= 0.02
    assert third.at - second.at >= 0.04
    [record] = caplog.records
    assert (record.getMessage(), vars(record)["reason"]) == ("webhook given up", "HTTP 500")


async def test_a_webhook_that_is_taken_at_last_is_not_sent_again(store: MemoryStorage) -> None:
    async with Receiver(500, 204).open() as slow, running(notifier(store)):
        await notify(store, slow.url)
        await all_settled(store)

    assert len(slow.posts) == 2


async def test_redirects_are_not_followed(store: MemoryStorage) -> None:
    async with Receiver(302, 307, 301).open() as redirecting, running(notifier(store)):
        await notify(store, redirecting.url)
        await all_settled(store)

    assert redirecting.paths == ["POST /hook"] * 3


async def test_a_receiver_that_takes_too_long_has_failed(store: MemoryStorage) -> None:
    settings: dict[str, Any] = {"request_timeout_seconds": 0.1, "pauses_seconds": ()}
    async with Receiver().open() as hanging, running(notifier(store, **settings)):
        hanging.may_answer.clear()
        await notify(store, hanging.url)
        await all_settled(store)

    assert len(hanging.posts) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/", "http://[broken", "http://h:port/", "no address", "ftp://h/"]
)
async def test_an_address_nobody_answers_at_delays_nobody(
    store: MemoryStorage, receiver: Receiver, url: str
) -> None:
    async with running(notifier(store)):
        await notify(store, url)
        job_id = await notify(store, receiver.url)
        await all_settled(store)

    assert receiver.job_ids == [job_id]


async def test_a_receiver_that_hangs_does_not_delay_another(
    store: MemoryStorage, receiver: Receiver
) -> None:  # R42
    settings = {
        "max_requests": 8,
        "max_requests_per_receiver": 3,
        "max_in_hand": 10,
        "max_in_hand_per_receiver": 5,
    }
    async with Receiver().open() as hanging:
        hanging.may_answer.clear()
        many = [await notify(store, hanging.url) for _ in range(30)]
        async with running(notifier(store, **settings)):
            job_id = await notify(store, receiver.url)
            await until(lambda: receiver.posts, 1.0, "the other webhook waits")
            await until(lambda: hanging.at_once == 3)
            hanging.may_answer.set()
            await all_settled(store)

    assert receiver.job_ids == [job_id]
    assert hanging.most_at_once == 3
    assert sorted(hanging.job_ids) == sorted(many)


async def test_ways_to_write_an_address_do_not_give_a_larger_share(store: MemoryStorage) -> None:
    async with Receiver().open() as hanging:
        hanging.may_answer.clear()
        for number in range(6):
            await notify(store, hanging.url.replace("//", f"//user{number}@"))
        async with running(notifier(store, max_requests_per_receiver=2)):
            await until(lambda: hanging.at_once == 2)
            hanging.may_answer.set()
            await all_settled(store)

    assert (hanging.most_at_once, len(hanging.posts)) == (2, 6)


async def test_a_webhook_of_a_killed_notifier_is_sent_by_another(
    store: MemoryStorage, receiver: Receiver
) -> None:  # R42
    async with store.liveness.keep("killed"):
        job_id = await notify(store, receiver.url)
        assert len(await store.notifications.read("killed", 10)) == 1
        async with running(notifier(store)):
            other = await notify(store, receiver.url)
            await until(lambda: receiver.posts)
            assert receiver.job_ids == [other]
    async with running(notifier(store)):
        await all_settled(store)

    assert receiver.job_ids == [other, job_id]


async def test_a_webhook_whose_read_was_lost_on_the_way_is_sent(
    store: MemoryStorage, receiver: Receiver
) -> None:
    service = notifier(store)
    await notify(store, receiver.url)
    assert len(await store.notifications.read(service.instance, 10)) == 1

    async with running(service):
        await all_settled(store)

    assert len(receiver.posts) == 1


async def test_a_stop_sends_what_is_there(store: MemoryStorage, receiver: Receiver) -> None:
    async with running(notifier(store, max_requests=5, max_in_hand_per_receiver=4)):
        jobs = [await notify(store, receiver.url) for _ in range(20)]

    assert sorted(receiver.job_ids) == sorted(jobs)
    assert await store.notifications.length() == 0


async def test_what_is_not_taken_in_time_is_left_to_the_next_notifier(
    store: MemoryStorage,
) -> None:
    settings = {"shutdown_timeout_seconds": 0.1, "request_timeout_seconds": 0.1}
    async with Receiver().open() as hanging:
        hanging.may_answer.clear()
        async with running(notifier(store, pauses_seconds=(60.0,), **settings)):
            await notify(store, hanging.url)
            await until(lambda: hanging.posts)
        assert await store.notifications.length() == 1
        hanging.may_answer.set()
        async with running(notifier(store)):
            await all_settled(store)

    first, second = hanging.posts
    assert first.body == second.body


async def test_a_notification_that_cannot_be_read_is_logged_and_dropped(
    store: MemoryStorage, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await notify(store, receiver.url)
    store._tables.notifications.unread[0].payload = b"\xc1"  # pyright: ignore[reportPrivateUsage]

    with caplog.at_level(logging.ERROR, "avtomatika"):
        async with running(notifier(store)):
            await all_settled(store)

    assert [record.getMessage() for record in caplog.records] == ["notification unreadable"]
    assert receiver.posts == []
