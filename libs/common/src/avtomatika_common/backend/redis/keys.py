"""Every key of ours in Redis, spelled once. Keys of one partition share its hash tag."""

import hashlib
from typing import Final

PREFIX: Final = "avtomatika:"
"""All our keys begin so: a flush touches nothing else."""

META: Final = f"{PREFIX}meta"
"""Hash: number of partitions, layout version."""
MENDED: Final = f"{PREFIX}mended"
"""Hash: how many inconsistencies of each kind were mended."""
CATALOGUE: Final = f"{PREFIX}{{cat}}:entries"
CATALOGUE_LOG: Final = f"{PREFIX}{{cat}}:log"
SCHEDULES: Final = f"{PREFIX}{{sched}}:"
SCHEDULE_NAMES: Final = f"{SCHEDULES}names"
SCHEDULE_LOG: Final = f"{SCHEDULES}log"


def partition(number: int) -> str:
    """Prefix of everything in one partition; scripts build its keys from it (see `lua/`)."""
    return f"{PREFIX}{{p{number:02d}}}:"


WORKERS: Final = f"{PREFIX}{{w00}}:"
"""Prefix of everything about workers."""


def job(p: str, job_id: str) -> str:
    return f"{p}j:{job_id}"


def task(p: str, task_id: str) -> str:
    return f"{p}t:{task_id}"


def alive(prefix: str, instance: str) -> str:
    """Of one instance; kept in every slot, as scripts there must be able to ask."""
    return f"{prefix}alive:{instance}"


def data_store(namespace: str) -> str:
    return f"{PREFIX}{{ds:{namespace}}}"


def schedule(name: str) -> str:
    return f"{SCHEDULES}s:{name}"


def lease(name: str) -> str:
    """A lease on a partition's work (`p<n>/<what>`) lies in its slot, so that scripts there can ask."""
    head, slash, _ = name.partition("/")
    if slash and head[:1] == "p" and head[1:].isdigit():
        return f"{partition(int(head[1:]))}lease:{name}"
    return f"{SCHEDULES}lease:{name}"


def lane(p: str, name: str, group: str) -> str:
    """Inbox stream of an executor group: `in` events of started jobs, `new` jobs."""
    return f"{p}{name}:{group}"


def idempotency(p: str, client: str, key: str) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return f"{p}idem:{client}:{digest}"
