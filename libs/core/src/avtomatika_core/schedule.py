"""Schedules: jobs that are made again and again, and which of their times is due now.

A *time* of a schedule is when it says that a job is to be made, exact and without jitter: it names
the job, so that however often somebody tries, one job is made for it.
"""

import hashlib
import math
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice, takewhile
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from avtomatika_core.job import Client, Job, JobId, Origin, new_job
from avtomatika_core.wall_times import Times, is_same_day, times_after, times_until

PUNCTUAL_SECONDS: Final = 10.0
"""Later than this a time was missed. Another scheduler has taken over within it."""
CATCH_UP_LIMIT: Final = 100
_JUST_BEFORE: Final = 0.001


class Every(msgspec.Struct, frozen=True, kw_only=True, tag="every"):
    """Beats of one length, counted from the first run."""

    seconds: float


When = Every | Times


class Misfire(StrEnum):
    """What becomes of times that were missed."""

    FIRE_ONCE = "fire_once"
    """The last one of them is made up for; if it is by the calendar, on the same day only."""
    SKIP = "skip"
    CATCH_UP = "catch_up"
    """All of them are, the last `catch_up_limit`."""


class Overlap(StrEnum):
    """What becomes of a time that comes while the job before has not ended."""

    ALLOW = "allow"
    SKIP = "skip"
    QUEUE = "queue"
    CANCEL_PREVIOUS = "cancel_previous"


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Durations in seconds, moments in Unix seconds."""

    name: str
    blueprint: str
    when: When
    initial_data: dict[str, Any] = {}
    is_enabled: bool = True
    dispatch_timeout: float | None = None
    result_timeout: float | None = None
    misfire: Misfire = Misfire.FIRE_ONCE
    catch_up_limit: int = CATCH_UP_LIMIT
    overlap: Overlap = Overlap.ALLOW
    jitter_seconds: float = 0.0
    starts_at: float | None = None
    ends_at: float | None = None


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a schedule stands: what its leader leaves to the next one."""

    when: When | None = None
    """What it said when this was written; None: it was never looked at."""
    anchor: float | None = None
    """The first run of an interval."""
    settled: float = -math.inf
    """Every time up to this one was dealt with."""
    queued: float | None = None
    """A time that waits until the job before has ended."""
    begun: float | None = None
    """A time whose job is being made."""
    last_run: float | None = None
    """The last time a job was made for."""
    last_job_id: JobId | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    standing: Standing
    time: float | None
    """The one to make a job for now; None: there is none."""


def choose(
    schedule: Schedule, standing: Standing, now: float, resumed_at: float | None = None
) -> Choice:
    """Which time a job is to be made for now; those that are not made up for are settled.

    `resumed_at`: when the last pause ended. What came due before is not made up for.
    """
    standing = _looked_at(schedule, standing, now, resumed_at)
    if standing.queued is not None:
        return Choice(standing=standing, time=standing.queued)
    first = _first_run(schedule, standing, now)
    if first is not None:
        is_due = first <= now and _is_within(schedule, first)
        return Choice(standing=standing, time=first if is_due else None)
    due = _due_times(schedule, standing, now)
    last = next(due, None)
    if last is None:
        return Choice(standing=standing, time=None)

    def is_punctual(time: float) -> bool:
        return now - _moment(schedule, standing, time) <= PUNCTUAL_SECONDS

    wanted: float | None = None
    if schedule.misfire is Misfire.CATCH_UP:
        wanted = min(islice(due, schedule.catch_up_limit - 1), default=last)
    elif is_punctual(last):  # and none of those that are is left out, however short the interval
        wanted = min(takewhile(is_punctual, due), default=last)
    elif schedule.misfire is Misfire.FIRE_ONCE and _is_made_up(schedule, standing, last, now):
        wanted = last
    if wanted is None:
        standing = replace(standing, settled=last)
    return Choice(standing=standing, time=wanted)


def next_moment(schedule: Schedule, standing: Standing, now: float) -> float:
    """When to look again at a schedule of which nothing is due; inf: never."""
    return next(_moments_after(schedule, standing, now), math.inf)


def upcoming(
    schedule: Schedule,
    standing: Standing,
    now: float,
    count: int,
    resumed_at: float | None = None,
) -> list[float]:
    """The next moments when jobs are made, if nothing is in their way."""
    if not schedule.is_enabled:
        return []
    standing = _looked_at(schedule, standing, now, resumed_at)
    return list(islice(_moments_after(schedule, standing, now), count))


def begin(standing: Standing, time: float) -> Standing:
    """Its job is about to be made."""
    is_first = isinstance(standing.when, Every) and standing.anchor is None
    return replace(
        standing,
        anchor=time if is_first else standing.anchor,
        settled=max(standing.settled, time),
        queued=None,
        begun=time,
    )


def queue(standing: Standing, time: float) -> Standing:
    """Its job is made when the one before has ended. What comes meanwhile may be missed."""
    begun = begin(standing, time)
    return replace(begun, begun=None, queued=time)


def skip(standing: Standing, time: float) -> Standing:
    """No job is made for it."""
    return replace(begin(standing, time), begun=None)


def end(standing: Standing, job_id: JobId) -> Standing:
    """The job of the time that was begun was made."""
    return replace(standing, begun=None, last_run=standing.begun, last_job_id=job_id)


def laid_off(standing: Standing) -> Standing:
    """It is switched off: what comes meanwhile is not missed."""
    return replace(standing, when=None, queued=None, begun=None)


def scheduled_job(
    schedule: Schedule, job_id: JobId, *, group: str, start_state: str, created_at: float
) -> Job:
    """A job of this schedule; it belongs to nobody."""
    origin = Origin(
        blueprint=schedule.blueprint,
        group=group,
        start_state=start_state,
        initial_data=schedule.initial_data,
        client=Client(
            plan="system",
            token="internal-scheduler",  # noqa: S106 - a name that handlers see, no secret
            params={"source": f"scheduler:{schedule.name}"},
        ),
        created_at=created_at,
        dispatch_timeout=schedule.dispatch_timeout,
        result_timeout=schedule.result_timeout,
    )
    return new_job(job_id, origin)


def _looked_at(
    schedule: Schedule, standing: Standing, now: float, resumed_at: float | None
) -> Standing:
    """Where it stands by what the schedule says now."""
    if standing.when != schedule.when:
        if isinstance(schedule.when, Every):
            anchor = standing.last_run
            known_from = now - schedule.when.seconds  # the last beat may be due since the last run
        else:
            anchor = None
            known_from = now // 60 * 60 - _JUST_BEFORE  # this very minute counts from its beginning
        standing = replace(
            standing,
            when=schedule.when,
            anchor=anchor,
            settled=max(standing.settled, known_from),
        )
    if resumed_at is not None and resumed_at > standing.settled:
        standing = replace(standing, settled=resumed_at)
        if standing.queued is not None and standing.queued <= resumed_at:
            standing = replace(standing, queued=None)
    return standing


def _first_run(schedule: Schedule, standing: Standing, now: float) -> float | None:
    """When an interval that never ran begins; None: it has, or it is no interval."""
    if not isinstance(schedule.when, Every) or standing.anchor is not None:
        return None
    return max(now, -math.inf if schedule.starts_at is None else schedule.starts_at)


def _is_made_up(schedule: Schedule, standing: Standing, time: float, now: float) -> bool:
    when = schedule.when
    return isinstance(when, Every) or is_same_day(when, _moment(schedule, standing, time), now)


def _due_times(schedule: Schedule, standing: Standing, now: float) -> Iterator[float]:
    """Times that are due and not settled, the last one first."""
    ends_at = math.inf if schedule.ends_at is None else schedule.ends_at
    for time in _times_until(schedule.when, standing.anchor, min(now, ends_at)):
        if time <= standing.settled or not _is_within(schedule, time):
            return
        if _moment(schedule, standing, time) <= now:
            yield time


def _moments_after(schedule: Schedule, standing: Standing, now: float) -> Iterator[float]:
    first = _first_run(schedule, standing, now)
    anchor = standing.anchor
    if first is not None:
        if _is_within(schedule, first):
            yield first
        standing = begin(standing, first)
        anchor = first
    after = max(standing.settled, now - schedule.jitter_seconds - _JUST_BEFORE)
    if schedule.starts_at is not None:
        after = max(after, schedule.starts_at - _JUST_BEFORE)
    for time in _times_after(schedule.when, anchor, after):
        if not _is_within(schedule, time):
            return
        if (moment := _moment(schedule, standing, time)) > now:
            yield moment


def _is_within(schedule: Schedule, time: float) -> bool:
    starts_at, ends_at = schedule.starts_at, schedule.ends_at
    return (starts_at is None or starts_at <= time) and (ends_at is None or time <= ends_at)


def _moment(schedule: Schedule, standing: Standing, time: float) -> float:
    """When its job is made: late by a share of the jitter, always the same, before the next time."""
    if not schedule.jitter_seconds or time == standing.anchor:
        return time
    following = next(_times_after(schedule.when, standing.anchor, time), math.inf)
    spread = min(schedule.jitter_seconds, following - time)
    digest = hashlib.blake2b(f"{schedule.name}\n{time:.3f}".encode(), digest_size=6).digest()
    share = int.from_bytes(digest, "big") / 2**48
    return time + math.floor(share * spread * 1000) / 1000


def _times_after(when: When, anchor: float | None, moment: float) -> Iterator[float]:
    if isinstance(when, Times):
        yield from times_after(when, moment)
        return
    assert anchor is not None, "an interval counts from its first run"
    beat = max(0, math.floor((moment - anchor) / when.seconds))
    while True:
        if (time := _beat(when, anchor, beat)) > moment:
            yield time
        beat += 1


def _times_until(when: When, anchor: float | None, moment: float) -> Iterator[float]:
    if isinstance(when, Times):
        yield from times_until(when, moment)
        return
    assert anchor is not None, "an interval counts from its first run"
    for beat in range(math.floor((moment - anchor) / when.seconds) + 1, -1, -1):
        if (time := _beat(when, anchor, beat)) <= moment:
            yield time


def _beat(when: Every, anchor: float, beat: int) -> float:
    """The first one is the first run itself: rounded, it could come later and be due once more."""
    return round(anchor + beat * when.seconds, 3) if beat else anchor
