"""Finds what has come apart in the store, and mends it: slowly, at a cost that does not grow.

One small script per pause, however many jobs there are; about the places of a worker up to three
commands for each partition. What looks wrong is looked at again in the next lap, and mended, by two
commands more, if nothing has happened to the job meanwhile and nothing can be on its way to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from avtomatika_common import ids
from avtomatika_common.backend.ports import (
    LOOKS_AT_ONCE,
    Backend,
    LiveJob,
    LookAt,
    Orphan,
    Seen,
    StoreUnavailable,
)
from avtomatika_common.backend.salvage import load_readable
from avtomatika_common.clock import LATENCY_SECONDS
from avtomatika_common.logs import get_logger
from avtomatika_core.consistency import Flaw, FlawKind, flaws, mend
from avtomatika_core.job import BranchesWait, ChildWait, Job, JobId, TaskId, WorkerId
from avtomatika_watcher.settings import Settings

log = get_logger()

_AT_ONCE = 100
"""Jobs or places; a script about them keeps Redis for a millisecond or two."""


Read = Callable[[str], Awaitable[tuple[str, Sequence[Orphan]]]]
"""From a cursor, as `Inspection.orphans`."""


class _Suspect(msgspec.Struct, frozen=True):
    """A job beside which something was missing."""

    group: str
    mark: str
    flaws: frozenset[Flaw]
    since: float


class Reconciler:
    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._inspection = backend.inspection
        self._jobs = backend.jobs
        self._clock = backend.clock
        self._suspects: dict[int, dict[JobId, _Suspect]] = {}
        self._orphans: dict[int, set[Orphan]] = {}
        self._groups: dict[int, set[str]] = {}
        """Of the live jobs of each partition."""
        self._orphan_places: set[Orphan] = set()
        self._places_seen_at = 0.0

    async def watch(self, partition: int) -> None:
        """Walk the live jobs of a partition, and what stands beside them, lap after lap."""
        self._suspects.pop(partition, None)
        self._orphans.pop(partition, None)
        await self._again_and_again(partial(self.lap, partition))

    async def watch_places(self) -> None:
        """Walk the places workers hold, lap after lap."""
        self._orphan_places = set()
        await self._again_and_again(self.lap_of_places)

    async def _again_and_again(self, lap: Callable[[], Awaitable[None]]) -> None:
        while True:
            begun_at = self._clock.now()
            try:
                await lap()
            except StoreUnavailable:
                raise
            except Exception:  # no reason to stop what runs beside
                log.exception("reconciler failed")
            await self._wait_until(begun_at + self._settings.lap_seconds)

    async def lap(self, partition: int) -> None:
        suspects = self._suspects.get(partition, {})
        self._suspects[partition] = await self._walk_jobs(partition, suspects)
        orphans = self._orphans.get(partition, set())
        reads: list[Read] = [
            lambda cursor: self._inspection.orphans(partition, cursor, _AT_ONCE),
            *(self._lost_entries_of(partition, group) for group in sorted(self._groups[partition])),
        ]
        found: set[Orphan] = set()
        for read in reads:
            found |= await self._walk_orphans(partition, read, orphans)
        self._orphans[partition] = found

    async def lap_of_places(self) -> None:
        before, since = self._orphan_places, self._places_seen_at
        self._orphan_places = await self._walk_places(before, since)
        self._places_seen_at = self._clock.now() + LATENCY_SECONDS

    async def _pause(self) -> None:
        await self._wait_until(self._clock.now() + self._settings.pause_seconds)

    async def _wait_until(self, when: float) -> None:
        await self._clock.wait_until(when, asyncio.Event())

    # --- jobs

    async def _walk_jobs(
        self, partition: int, before: dict[JobId, _Suspect]
    ) -> dict[JobId, _Suspect]:
        """One lap; the jobs beside which something is missing."""
        suspects: dict[JobId, _Suspect] = {}
        groups = self._groups[partition] = set[str]()
        awaited = await self._awaited(partition, before)
        cursor = ""
        while cursor != "0":
            cursor, jobs = await self._inspection.live(partition, cursor or "0", _AT_ONCE)
            groups |= {job.group for job in jobs if job.group}
            await self._pause()
            for looks in _at_once(
                _look_at(job, before.get(job.job_id), awaited)
                for job in jobs
                if self._is_quiet(job)
            ):
                rest = await self._look(partition, looks, before, suspects)
                await self._look_at_the_rest(partition, rest, before, suspects)
                await self._pause()
        return suspects

    def _is_quiet(self, job: LiveJob) -> bool:
        quiet_since = self._clock.now() - self._settings.quiet_seconds
        return job.head is None or job.head.updated_at <= quiet_since

    async def _awaited(self, partition: int, suspects: dict[JobId, _Suspect]) -> set[JobId]:
        """Those of the suspects that had an event in their lane when something was missing, and may yet."""
        until: dict[str, float] = {}
        for suspect in suspects.values():
            until[suspect.group] = max(suspect.since, until.get(suspect.group, 0.0))
        found: set[JobId] = set()
        for group, since in until.items():
            cursor = ""
            while cursor != "0":
                cursor, some = await self._inspection.awaited(
                    partition, group, since, cursor or "0", _AT_ONCE
                )
                found |= suspects.keys() & some
                await self._pause()
        return found

    async def _look(
        self,
        partition: int,
        looks: Sequence[LookAt],
        before: dict[JobId, _Suspect],
        suspects: dict[JobId, _Suspect],
    ) -> list[LookAt]:
        """Mend what was missing before, too, and note what is missing; which branches are left to look at."""
        rest: list[LookAt] = []
        for look, seen in zip(looks, await self._inspection.around(partition, looks), strict=True):
            if missing := _missing(look.job, seen):
                await self._judge(partition, look.job, seen, missing, before, suspects)
            if seen.is_current and seen.next_branches != "0":
                rest.append(replace(look, cursor=seen.next_branches, branches=_AT_ONCE))
        return rest

    async def _look_at_the_rest(
        self,
        partition: int,
        rest: Sequence[LookAt],
        before: dict[JobId, _Suspect],
        suspects: dict[JobId, _Suspect],
    ) -> None:
        """The open branches of large fan-outs that were not looked at with their job."""
        while rest:
            left: list[LookAt] = []
            for looks in _at_once(rest):
                await self._pause()
                left += await self._look(partition, looks, before, suspects)
            rest = left

    async def _judge(
        self,
        partition: int,
        job: LiveJob,
        seen: Seen,
        missing: frozenset[Flaw],
        before: dict[JobId, _Suspect],
        suspects: dict[JobId, _Suspect],
    ) -> None:
        suspect = before.get(job.job_id)
        if suspect is None or suspect.mark != seen.mark:
            suspect = _Suspect(job.group, seen.mark, frozenset(), seen.at)
        elif seen.at - suspect.since < self._settings.lap_seconds / 2:  # the same lap, as it were
            suspects[job.job_id] = suspect
            return
        to_mend = {
            flaw
            for flaw in missing & suspect.flaws
            if not (flaw.unless_event and seen.may_have_event)
        }
        for flaw in to_mend:
            await self._mend(partition, job, flaw, seen)
        if to_mend:  # it is seen anew
            before[job.job_id] = replace(suspect, flaws=suspect.flaws - to_mend)
            if noted := suspects.get(job.job_id):
                suspects[job.job_id] = replace(noted, flaws=noted.flaws - to_mend)
        if left := missing - to_mend:
            since = suspect.since if left <= suspect.flaws else seen.at
            _note(suspects, job.job_id, _Suspect(job.group, seen.mark, left, since))

    async def _mend(self, partition: int, job: LiveJob, flaw: Flaw, seen: Seen) -> None:
        child: Job | None = None
        if flaw.kind is FlawKind.CHILD:
            assert job.head is not None, "it waits for a sub-job"
            assert isinstance(job.head.wait, ChildWait), "it waits for a sub-job"
            child = await self._child(job.head.wait.child_id)
            if child is not None and not child.is_terminal:
                return
        made = mend(
            flaw, job.head, cancelled=job.cancelled, child=child, at=seen.at,
            fresh_id=TaskId(ids.new_id()),
        )  # fmt: skip
        if await self._inspection.mend(partition, job.job_id, seen.mark, made):
            await self._inspection.count_mended(flaw.kind)
            log.warning(
                "inconsistency mended", kind=flaw.kind.value, job_id=job.job_id, about=flaw.subject
            )

    async def _child(self, child_id: JobId) -> Job | None:
        stored = await load_readable(self._jobs, child_id)
        return None if stored is None else stored.job

    # --- what belongs to no job

    async def _walk_orphans(self, partition: int, read: Read, before: set[Orphan]) -> set[Orphan]:
        """Read them all; what was found for the first time."""
        found: set[Orphan] = set()
        cursor = ""
        while cursor != "0":
            cursor, some = await read(cursor or "0")
            found |= await self._removed(partition, some, before)
            await self._pause()
        return found

    async def _walk_places(self, before: set[Orphan], since: float) -> set[Orphan]:
        """One lap; what was found for the first time."""
        found: set[Orphan] = set()
        cursor = ""
        while cursor != "0":
            cursor, workers = await self._inspection.workers(cursor or "0", _AT_ONCE)
            await self._pause()
            for worker_id in workers:
                found |= await self._walk_orphans(0, self._places_of(worker_id, since), before)
        return found

    def _places_of(self, worker_id: WorkerId, since: float) -> Read:
        return lambda cursor: self._inspection.orphan_places(worker_id, cursor, _AT_ONCE, since)

    def _lost_entries_of(self, partition: int, group: str) -> Read:
        return lambda cursor: self._inspection.lost_entries(partition, group, cursor, _AT_ONCE)

    async def _removed(
        self, partition: int, orphans: Iterable[Orphan], before: set[Orphan]
    ) -> set[Orphan]:
        """Remove those that were there before, too; the others."""
        new: set[Orphan] = set()
        for orphan in orphans:
            if orphan not in before:
                new.add(orphan)
            elif await self._inspection.remove(partition, orphan):
                await self._inspection.count_mended(orphan.kind)
                log.warning(
                    "inconsistency mended",
                    kind=orphan.kind,
                    about=orphan.name,
                    worker_id=orphan.worker_id,
                )
        return new


def _look_at(job: LiveJob, suspect: _Suspect | None, awaited: set[JobId]) -> LookAt:
    if suspect is None:
        return LookAt(job=job)
    return LookAt(job=job, since=suspect.since, is_awaited=job.job_id in awaited)


def _missing(job: LiveJob, seen: Seen) -> frozenset[Flaw]:
    if job.head is None:
        return frozenset() if seen.mark else frozenset({Flaw(kind=FlawKind.LIVE)})
    if not seen.is_current:
        return frozenset()
    return frozenset(flaws(job.head, seen.around, cancelled=job.cancelled))


def _note(suspects: dict[JobId, _Suspect], job_id: JobId, found: _Suspect) -> None:
    """Beside what was noted of other branches of the job."""
    noted = suspects.get(job_id)
    if noted is not None and noted.mark == found.mark:
        since = max(noted.since, found.since)
        found = _Suspect(found.group, found.mark, noted.flaws | found.flaws, since)
    suspects[job_id] = found


def _at_once(looks: Iterable[LookAt]) -> Iterable[list[LookAt]]:
    """In portions of what one script may take."""
    portion: list[LookAt] = []
    size = 0
    for look in looks:
        head = look.job.head
        costs = 1
        if head is not None and isinstance(head.wait, BranchesWait):
            costs += 2 * look.branches  # a cursor may bring some more than were asked for
        if portion and size + costs > LOOKS_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(look)
        size += costs
    if portion:
        yield portion
