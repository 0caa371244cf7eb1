"""The inbox in memory: entries wait in two lanes per executor group, then with who has read them."""

import msgspec

from avtomatika_common import codec
from avtomatika_common.backend.memory.liveness import MemoryLiveness
from avtomatika_common.backend.memory.tables import Entry, JobRecord, Tables
from avtomatika_common.backend.ports import Consumer, Delivery, DropAnswer, Inbox, LostClaim
from avtomatika_common.logs import get_logger
from avtomatika_core.events import InboxEvent, SignalReceived
from avtomatika_core.job import JobStatus

log = get_logger()


class MemoryInbox(Inbox):
    def __init__(self, tables: Tables, liveness: MemoryLiveness) -> None:
        self._tables = tables
        self._liveness = liveness

    async def read(self, group: str, consumer: str, room: int) -> list[Delivery]:
        def take() -> list[Delivery]:
            return self._take(group, consumer, room)

        seconds = self._tables.options.block_seconds
        return await self._tables.signals.wait_for(f"inbox {group}", take, seconds)

    def _take(self, name: str, consumer: str, room: int) -> list[Delivery]:
        group = self._tables.group(name)
        mine = group.consumers.setdefault(consumer, {})
        taken: list[Delivery] = []
        for lane in group.lanes.values():
            while lane and len(taken) < room:
                entry = lane.popleft()
                entry.consumer = consumer
                mine[entry.entry_id] = entry
                taken.append(self._delivery(entry, consumer))
        return taken

    def _delivery(self, entry: Entry, consumer: str) -> Delivery:
        return Delivery(
            job_id=entry.job_id,
            event=_event_of(entry),
            entry_id=entry.entry_id,
            lane=entry.lane,
            group=entry.group,
            consumer=consumer,
            partition=self._tables.partition_of(entry.job_id),
            is_branch=entry.is_branch,
            tries=entry.tries,
        )

    async def pending(self, group: str, consumer: str) -> list[Delivery]:
        mine = self._tables.group(group).consumers.get(consumer, {})
        return [self._delivery(entry, consumer) for entry in _oldest_first(mine)]

    # --- answering

    def _mine(self, delivery: Delivery) -> Entry:
        entry = self._tables.pending_entry(delivery.entry_id, delivery.consumer)
        if entry is None:
            raise LostClaim
        return entry

    async def drop(self, delivery: Delivery) -> DropAnswer:
        entry = self._tables.pending_entry(delivery.entry_id, delivery.consumer)
        if entry is None:
            return DropAnswer.LOST
        record = self._tables.job(entry.job_id)
        if (
            record is not None
            and record.status is JobStatus.RUNNING
            and record.claim == entry.entry_id
            and not record.cancelled
        ):
            return DropAnswer.CARRIES
        self._tables.answer(entry)
        return DropAnswer.DROPPED

    async def forward(self, delivery: Delivery, group: str) -> None:
        entry = self._mine(delivery)
        self._tables.answer(entry)
        record = self._tables.job(entry.job_id)
        if record is not None:
            record.group = group
        entry.group = group
        self._tables.requeue(entry)

    async def defer(self, delivery: Delivery, seconds: float, *, failed: bool = False) -> None:
        entry = self._mine(delivery)
        self._tables.answer(entry)
        record = self._tables.job(entry.job_id)
        if failed and entry.is_branch:
            entry.tries += 1
        elif failed and record is not None:
            record.tries += 1
        self._tables.deferred[entry.entry_id] = entry
        due = self._tables.clock.now() + seconds
        self._tables.set_timer("entry", entry.job_id, entry.entry_id, due)

    async def set_aside(self, delivery: Delivery, reason: str) -> None:
        self._tables.set_aside(self._mine(delivery), reason)

    # --- consumers

    async def consumers(self, group: str) -> list[Consumer]:
        return [
            Consumer(name=name, pending=len(mine), is_alive=self._liveness.has(name))
            for name, mine in self._tables.group(group).consumers.items()
        ]

    async def take_over(self, group: str, dead: str, consumer: str, room: int) -> list[Delivery]:
        if self._liveness.has(dead):
            return []
        consumers = self._tables.group(group).consumers
        theirs = consumers.get(dead, {})
        mine = consumers.setdefault(consumer, {})
        taken = _oldest_first(theirs)[:room]
        for entry in taken:
            del theirs[entry.entry_id]
            entry.consumer = consumer
            mine[entry.entry_id] = entry
            record = self._tables.job(entry.job_id)
            if record is not None and self._is_try(entry, record):
                record.tries += 1
        return [self._delivery(entry, consumer) for entry in taken]

    def _is_try(self, entry: Entry, record: JobRecord) -> bool:
        """A branch's event is settled without a commit of the job, which would count anew. Of signals
        a job may have many; one that runs nothing is none of its tries."""
        if entry.is_branch:
            return False
        is_signal = isinstance(_event_of(entry), SignalReceived)
        return not is_signal or record.claim == entry.entry_id

    async def remove_consumer(self, group: str, dead: str) -> bool:
        consumers = self._tables.group(group).consumers
        if self._liveness.has(dead) or consumers.get(dead):
            return False
        consumers.pop(dead, None)
        return True

    async def length(self) -> int:
        return len(self._tables.entries)


def _event_of(entry: Entry) -> InboxEvent | None:
    try:
        event: InboxEvent = codec.unpack_event(entry.event)
    except msgspec.MsgspecError as error:
        log.warning("inbox entry unreadable", entry=entry.entry_id, error=str(error))
        return None
    return event


def _oldest_first(entries: dict[str, Entry]) -> list[Entry]:
    return sorted(entries.values(), key=lambda entry: int(entry.entry_id))
