"""What can be read of a job whose document cannot be decoded as a whole."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from avtomatika_common import codec
from avtomatika_core.job import Client, Head, Job, JobData, JobId, JobStatus, Origin

T = TypeVar("T")


def salvaged_job(
    job_id: JobId,
    origin: bytes,
    head: bytes,
    data: bytes,
    *,
    status: str,
    group: str,
    owner: str | None,
    run: int,
    now: float,
) -> Job:
    """The job, with something plain for each part that cannot be decoded."""
    plain_origin = Origin(
        blueprint="", group=group, start_state="", client=Client(name=owner), created_at=now
    )
    read_origin = _read(codec.unpack_origin, origin, plain_origin)
    known = status in frozenset(JobStatus)
    plain_head = Head(
        status=JobStatus(status) if known else JobStatus.RUNNING,
        state=read_origin.start_state,
        updated_at=now,
    )
    return Job(
        id=job_id,
        origin=read_origin,
        head=_read(codec.unpack_head, head, plain_head),
        data=_read(codec.unpack_data, data, JobData()),
        run=run,
    )


def _read(unpack: Callable[[bytes], T], packed: bytes, otherwise: T) -> T:
    try:
        return unpack(packed)
    except msgspec.MsgspecError:
        return otherwise
