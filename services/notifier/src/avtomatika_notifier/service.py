"""Deliver webhooks: each notification is posted until its receiver says 2xx or its attempts are over.

An entry stays pending while it is tried, so a notifier that dies leaves it to another one. No
receiver waits for another: each has its own share of the requests and of the places in hand.
"""

import asyncio
from urllib.parse import urlsplit

import aiohttp
import msgspec

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import Backend, StoreUnavailable, StreamEntry
from avtomatika_common.logs import get_logger
from avtomatika_common.records import Notification, unpack_notification
from avtomatika_notifier.settings import Settings

log = get_logger()

_BACK_OFF_SECONDS = 0.5
_DRAIN_READ_SECONDS = 0.2


class _Receiver:
    """One host and port, while there is something for it."""

    def __init__(self, max_requests: int) -> None:
        self.turn = asyncio.Semaphore(max_requests)
        self.in_hand = 0


class NotifierService:
    name = "notifier"

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._stream = backend.notifications
        self.instance = f"{settings.instance}-{ids.new_id()[:8]}"
        self._in_hand: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._known: set[tuple[int, str]] = set()
        """In hand when we last asked what is pending, or begun since."""
        self._receivers: dict[str, _Receiver] = {}
        self._slot_free = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        self._requests = asyncio.Semaphore(self._settings.max_requests)
        async with (
            self._backend.liveness.keep(self.instance),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # `_requests` is the limit
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._settings.request_timeout_seconds),
            ) as self._session,
            asyncio.TaskGroup() as self._deliveries,
            asyncio.TaskGroup() as background,
        ):
            loops = [
                background.create_task(self._read(), name="notifier reads"),
                background.create_task(self._look(), name="notifier looks for what was left"),
            ]
            log.info("notifier serves", instance=self.instance)
            ready.set()
            await stop.wait()
            for task in loops:
                task.cancel()
            await self._drain()

    async def _drain(self) -> None:
        """Send what is there; what is not sent in time stays for another notifier."""
        settings = self._settings
        # A request that is under way is waited for however short the stop is to be.
        seconds = max(settings.shutdown_timeout_seconds, settings.request_timeout_seconds)
        try:
            async with asyncio.timeout(seconds):
                while await self._take_all():
                    await asyncio.wait(list(self._in_hand.values()))
        except TimeoutError:
            log.info("webhooks left to another notifier", count=len(self._in_hand))
        for task in self._in_hand.values():
            task.cancel()

    async def _take_all(self) -> bool:
        """Start what is pending for us or not read yet. False: nothing is in hand."""
        try:
            entries = await self._left_behind()
            if await self._stream.length() > len(self._in_hand) + len(entries):
                async with asyncio.timeout(_DRAIN_READ_SECONDS):
                    entries += await self._stream.read(self.instance, self._settings.max_requests)
        except (TimeoutError, StoreUnavailable):
            entries = []  # the rest is another one's, or out of reach
        for entry in entries:
            self._start(entry)
        return bool(self._in_hand)

    def _room(self) -> int:
        return self._settings.max_in_hand - len(self._in_hand)

    async def _read(self) -> None:
        while True:
            room = self._room()
            if room <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                at_once = min(room, self._settings.max_requests)
                for entry in await self._stream.read(self.instance, at_once):
                    self._start(entry)
            except StoreUnavailable as error:
                log.warning("notifications cannot be read", error=str(error))
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _look(self) -> None:
        """Find entries of dead notifiers, and our own: put off, or their read was lost on the way."""
        while True:
            try:
                entries = await self._left_behind()
                entries += await self._stream.take_over(self.instance, max(1, self._room()))
                for entry in entries:
                    self._start(entry)
            except StoreUnavailable as error:
                log.debug("no look at notifications left behind", error=str(error))
            await asyncio.sleep(self._settings.look_seconds)

    async def _left_behind(self) -> list[StreamEntry]:
        """Ours that are not in hand; one that is settled while we ask is not among them."""
        known = self._known = set(self._in_hand)
        entries = await self._stream.pending(self.instance)
        return [entry for entry in entries if (entry.partition, entry.entry_id) not in known]

    def _start(self, entry: StreamEntry) -> None:
        """Deliver the entry, unless it is in hand or its receiver has its share; then it waits."""
        key = (entry.partition, entry.entry_id)
        if key in self._in_hand:
            return
        try:
            notification = unpack_notification(entry.payload)
        except msgspec.MsgspecError as error:
            log.error("notification unreadable", entry=entry.entry_id, error=str(error))
            notification = None
        name = "" if notification is None else _receiver_of(notification.url)
        receiver = self._receivers.get(name)
        if receiver is None:
            receiver = self._receivers[name] = _Receiver(self._settings.max_requests_per_receiver)
        elif receiver.in_hand >= self._settings.max_in_hand_per_receiver:
            return
        receiver.in_hand += 1
        self._known.add(key)
        task = self._deliveries.create_task(self._deliver(entry, notification, receiver))
        self._in_hand[key] = task
        task.add_done_callback(lambda _: self._leave(key, name))

    def _leave(self, key: tuple[int, str], name: str) -> None:
        del self._in_hand[key]
        self._receivers[name].in_hand -= 1
        if not self._receivers[name].in_hand:
            del self._receivers[name]
        self._slot_free.set()

    async def _deliver(
        self, entry: StreamEntry, notification: Notification | None, receiver: _Receiver
    ) -> None:
        if notification is not None:
            async with receiver.turn:
                await self._post_until_taken(notification)
        try:
            await self._stream.acknowledge([entry])
        except StoreUnavailable as error:
            log.warning("webhook sent but not noted; it will be sent again", error=str(error))

    async def _post_until_taken(self, notification: Notification) -> None:
        body = codec.json_bytes(webhook_body(notification))
        reason = ""
        for pause in (*self._settings.pauses_seconds, None):
            async with self._requests:
                reason = await self._post(notification.url, body)
            if not reason:
                log.info(
                    "webhook delivered",
                    job_id=notification.job_id,
                    webhook_event=notification.event,
                )
                return
            if pause is not None:
                await asyncio.sleep(pause)
        log.error(
            "webhook given up",
            job_id=notification.job_id,
            webhook_event=notification.event,
            attempts=len(self._settings.pauses_seconds) + 1,
            reason=reason,
        )

    async def _post(self, url: str, body: bytes) -> str:
        """Why the receiver did not take it; empty: it did."""
        try:
            async with self._session.post(
                url,
                data=body,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as answer:
                return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return f"{type(error).__name__}: {error}"


def _receiver_of(url: str) -> str:
    """Host and port, however the rest of the address is written."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return url
    return f"{parts.hostname}:{port or parts.scheme}"


def webhook_body(notification: Notification) -> dict[str, object]:
    """What a receiver gets. `timestamp`: Unix seconds of the change."""
    body: dict[str, object] = {
        "event": notification.event,
        "job_id": notification.job_id,
        "status": notification.status,
        "result": {
            key: value for key, value in notification.result.items() if key != "progress_updates"
        },
        "error": notification.error,
        "event_id": notification.id,
        "timestamp": notification.at,
    }
    if notification.metadata:
        body["metadata"] = notification.metadata
    if notification.approval is not None:
        body["approval"] = notification.approval
    if notification.worker_event is not None:
        body["worker_event"] = notification.worker_event
    return body
