"""Deliver webhooks: each notification is posted until its receiver says 2xx or its attempts are over.

An entry stays pending while it is tried, so a notifier that dies leaves it to another one.
"""

import asyncio
from collections import defaultdict
from urllib.parse import urlsplit

import aiohttp
import msgspec

from avtomatika_common import codec, ids
from avtomatika_common.backend.ports import Backend, StoreUnavailable, StreamEntry
from avtomatika_common.logs import get_logger
from avtomatika_common.records import Notification, unpack_notification
from avtomatika_notifier.settings import Settings

log = get_logger()

_LOOK_SECONDS = 5.0
_BACK_OFF_SECONDS = 0.5
_DRAIN_READ_SECONDS = 0.2


class NotifierService:
    name = "notifier"

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._stream = backend.notifications
        self.instance = f"{settings.instance}-{ids.new_id()[:8]}"
        self._in_hand: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._slot_free = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        settings = self._settings
        self._per_receiver: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(settings.max_requests_per_receiver)
        )
        timeout = aiohttp.ClientTimeout(total=settings.request_timeout_seconds)
        async with (
            self._backend.liveness.keep(self.instance),
            aiohttp.ClientSession(timeout=timeout) as self._session,
            asyncio.TaskGroup() as self._deliveries,
            asyncio.TaskGroup() as background,
        ):
            loops = [
                background.create_task(self._read(), name="notifier reads"),
                background.create_task(self._take_over(), name="notifier takes over"),
            ]
            log.info("notifier serves", instance=self.instance)
            ready.set()
            await stop.wait()
            for task in loops:
                task.cancel()
            await self._drain()

    async def _drain(self) -> None:
        """Send what is there; what is not sent in time stays for another notifier."""
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout_seconds):
                while await self._stream.length() > len(self._in_hand):
                    async with asyncio.timeout(_DRAIN_READ_SECONDS):
                        entries = await self._stream.read(
                            self.instance, self._settings.max_requests
                        )
                    for entry in entries:
                        self._start(entry)
                if self._in_hand:
                    await asyncio.wait(list(self._in_hand.values()))
        except (TimeoutError, StoreUnavailable):
            log.info("webhooks left to another notifier")
        if self._in_hand:
            await asyncio.wait(
                list(self._in_hand.values()), timeout=self._settings.request_timeout_seconds
            )
        for task in self._in_hand.values():
            task.cancel()

    def _room(self) -> int:
        return self._settings.max_requests - len(self._in_hand)

    def _start(self, entry: StreamEntry) -> None:
        key = (entry.partition, entry.entry_id)
        if key not in self._in_hand:
            self._in_hand[key] = self._deliveries.create_task(self._deliver(entry))

    async def _read(self) -> None:
        while True:
            room = self._room()
            if room <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                for entry in await self._stream.read(self.instance, room):
                    self._start(entry)
            except StoreUnavailable as error:
                log.warning("notifications cannot be read", error=str(error))
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _take_over(self) -> None:
        """Entries of dead notifiers, and our own whose read was lost on the way."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                entries = await self._stream.pending(self.instance)
                entries += await self._stream.take_over(self.instance, max(1, self._room()))
                for entry in entries:
                    self._start(entry)
            except StoreUnavailable:
                continue

    async def _deliver(self, entry: StreamEntry) -> None:
        try:
            try:
                notification = unpack_notification(entry.payload)
            except msgspec.MsgspecError as error:
                log.error("notification unreadable", entry=entry.entry_id, error=str(error))
            else:
                receiver = urlsplit(notification.url).netloc
                async with self._per_receiver[receiver]:
                    await self._post_until_taken(notification)
            await self._stream.acknowledge([entry])
        except StoreUnavailable as error:
            log.warning("webhook sent but not noted; it will be sent again", error=str(error))
        finally:
            del self._in_hand[entry.partition, entry.entry_id]
            self._slot_free.set()

    async def _post_until_taken(self, notification: Notification) -> None:
        body = codec.json_bytes(webhook_body(notification))
        reason = ""
        for pause in (*self._settings.pauses_seconds, None):
            try:
                async with self._session.post(
                    notification.url,
                    data=body,
                    headers={"Content-Type": "application/json"},
                    allow_redirects=False,
                ) as answer:
                    if 200 <= answer.status < 300:
                        log.info(
                            "webhook delivered",
                            job_id=notification.job_id,
                            webhook_event=notification.event,
                        )
                        return
                    reason = f"HTTP {answer.status}"
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                reason = f"{type(error).__name__}: {error}"
            if pause is not None:
                await asyncio.sleep(pause)
        log.error(
            "webhook given up",
            job_id=notification.job_id,
            webhook_event=notification.event,
            attempts=len(self._settings.pauses_seconds) + 1,
            reason=reason,
        )


def webhook_body(notification: Notification) -> dict[str, object]:
    """What a receiver gets. `timestamp`: Unix seconds of the change."""
    body: dict[str, object] = {
        "event": notification.event,
        "job_id": notification.job_id,
        "status": notification.status,
        "result": notification.result,
        "error": notification.error,
        "event_id": notification.id,
        "timestamp": notification.at,
    }
    if notification.approval is not None:
        body["approval"] = notification.approval
    return body
