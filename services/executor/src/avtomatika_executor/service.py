"""Advance jobs: one event in, one step committed, the next handler run, until the job waits or ends.

The entry that brought the event stays pending as the job's claim while its handlers run: it lives as
long as this instance is alive, and whoever lost it cannot write.
"""

import asyncio
import socket
from collections.abc import Iterable

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    Backend,
    Delivery,
    LostClaim,
    StoreUnavailable,
    UnreadableJob,
)
from avtomatika_common.blueprint import StateMachineBlueprint
from avtomatika_common.logs import get_logger
from avtomatika_executor.advances import Advances, InHand, OnCommit, UnreadableEvent
from avtomatika_executor.hosting import Hosting
from avtomatika_executor.runs import HandlerRuns
from avtomatika_executor.settings import Settings
from avtomatika_executor.takeover import TakeOver
from avtomatika_executor.threads import HandlerThreads

log = get_logger()

_AUDIT_SECONDS = 5.0
_WANTED_SECONDS = 1.0
_BACK_OFF_SECONDS = 0.5


_Place = tuple[int, str, str]


def _place_of(delivery: Delivery) -> _Place:
    """Entry ids are those of one stream: each lane of a partition counts its own."""
    return delivery.partition, delivery.lane, delivery.entry_id


class ExecutorService:
    name = "executor"

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        blueprints: Iterable[StateMachineBlueprint],
        *,
        on_commit: OnCommit | None = None,
        instance: str | None = None,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._jobs = backend.jobs
        self._inbox = backend.inbox
        self._clock = backend.clock
        self._blueprints = list(blueprints)
        self._on_commit = on_commit
        self.instance = f"{instance or socket.gethostname()}-{ids.new_id()[:8]}"
        """Name of this consumer: new at each start, so that no claim is ever shared."""
        self._in_hand: dict[_Place, InHand] = {}
        self._slot_free = asyncio.Event()
        self._audit_due = asyncio.Event()

    async def run(self, ready: asyncio.Event, stop: asyncio.Event) -> None:
        hosting = Hosting(self._settings, self._backend, self._blueprints)
        for blueprint in self._blueprints:
            blueprint.bind_data_stores(self._backend.key_values)
        await hosting.publish()
        runs = HandlerRuns(self._backend, hosting, HandlerThreads())
        take_over = TakeOver(
            self._inbox,
            self._backend.liveness,
            self._clock,
            self._settings.group,
            self.instance,
            self._room,
            self._start,
        )
        async with (
            self._backend.liveness.keep(self.instance),
            asyncio.TaskGroup() as self._tasks,
            asyncio.TaskGroup() as background,
        ):
            self._advances = Advances(
                self._settings,
                self._backend,
                hosting,
                runs,
                self._tasks,
                has_room=lambda: self._room() > 0,
                on_commit=self._on_commit,
            )
            loops = [
                background.create_task(self._read(), name="executor reads"),
                background.create_task(self._audit(), name="executor audits its claims"),
                background.create_task(self._watch_wanted(), name="executor watches cancels"),
                background.create_task(take_over.run(), name="executor takes over"),
                background.create_task(hosting.keep_published(), name="executor publishes"),
            ]
            log.info(
                "executor serves",
                group=self._settings.group,
                blueprints=sorted(hosting.blueprints),
                instance=self.instance,
            )
            ready.set()
            await stop.wait()
            self._advances.draining = True
            for task in loops:
                task.cancel()
            await self._drain()

    async def _drain(self) -> None:
        """Let handlers in hand finish; what does not is taken up by others after our liveness ends."""
        tasks = [one.task for one in self._in_hand.values() if one.task is not None]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_timeout_seconds)
        for task in late:
            task.cancel()
        if late:
            log.warning("handlers cut off by shutdown", count=len(late))

    # -- which entries are in hand

    def _room(self) -> int:
        return max(0, self._settings.max_concurrent_jobs - len(self._in_hand))

    def _start(self, delivery: Delivery) -> None:
        """Advance the entry's job, unless it is in hand already.

        Now and then a read brings an entry more than there is room for: that is for others.
        """
        place = _place_of(delivery)
        if place in self._in_hand or self._advances.draining:
            return
        if not (self._room() or delivery.is_branch):
            self._tasks.create_task(self._give_back(delivery))
            return
        in_hand = self._in_hand[place] = InHand(delivery.job_id)
        in_hand.task = self._tasks.create_task(self._handle(delivery, in_hand))

    async def _give_back(self, delivery: Delivery) -> None:
        try:
            await self._inbox.forward(delivery, delivery.group)
        except LostClaim:
            pass
        except StoreUnavailable:
            self._audit_due.set()

    async def _read(self) -> None:
        failing = False
        while True:
            room = self._room()
            if not room:
                self._slot_free.clear()
                await self._slot_free.wait()
                continue
            try:
                for delivery in await self._inbox.read(self._settings.group, self.instance, room):
                    self._start(delivery)
                failing = False
            except StoreUnavailable as error:
                if not failing:
                    log.warning("inbox cannot be read", error=str(error))
                failing = True
                self._audit_due.set()  # what the cut read had taken is pending
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _audit(self) -> None:
        """Find entries that are pending for us and not in hand: their read was lost on the way."""
        while True:
            try:
                async with asyncio.timeout(_AUDIT_SECONDS):
                    await self._audit_due.wait()
            except TimeoutError:
                pass
            self._audit_due.clear()
            try:
                for delivery in await self._inbox.pending(self._settings.group, self.instance):
                    self._start(delivery)
            except StoreUnavailable:
                await asyncio.sleep(_BACK_OFF_SECONDS)
                self._audit_due.set()

    async def _watch_wanted(self) -> None:
        """Stop handlers whose job was cancelled meanwhile; their outcome would be refused anyway."""
        while True:
            await asyncio.sleep(_WANTED_SECONDS)
            now = asyncio.get_running_loop().time()
            for in_hand in list(self._in_hand.values()):
                run, task = in_hand.run, in_hand.task
                if run is None or task is None or now - in_hand.since < _WANTED_SECONDS:
                    continue
                try:
                    wanted = await self._jobs.is_wanted(in_hand.job_id, run)
                except StoreUnavailable:
                    break
                if not wanted and in_hand.run == run:
                    in_hand.unwanted = True
                    task.cancel()

    # -- one entry

    async def _handle(self, delivery: Delivery, in_hand: InHand) -> None:
        try:
            await self._advances.advance(delivery, in_hand)
        except LostClaim:
            log.info("claim lost", job_id=delivery.job_id, entry=delivery.entry_id)
        except StoreUnavailable as error:
            log.warning("store unavailable", job_id=delivery.job_id, error=str(error))
            self._audit_due.set()
        except asyncio.CancelledError:
            if not in_hand.unwanted or self._advances.draining:
                raise
            log.info("handler stopped: no longer wanted", job_id=delivery.job_id)
            self._audit_due.set()  # which drops the entry
        except (UnreadableEvent, UnreadableJob) as error:
            log.error(
                "entry cannot be read",
                job_id=delivery.job_id,
                entry=delivery.entry_id,
                reason=str(error),
            )
            await self._advances.put_off(delivery, str(error))
        except Exception:
            log.exception(
                "entry cannot be handled", job_id=delivery.job_id, entry=delivery.entry_id
            )
            await self._advances.put_off(delivery, "The executor could not handle it; see its log.")
        finally:
            del self._in_hand[_place_of(delivery)]
            self._slot_free.set()
