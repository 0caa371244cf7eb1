"""What can be read of a job whose document cannot be decoded as a whole."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from avtomatika_common import codec
from avtomatika_common.backend.ports import JobStore, Stored, UnreadableJob
from avtomatika_core.job import (
    BranchesWait,
    Client,
    Head,
    Job,
    JobData,
    JobId,
    JobStatus,
    Origin,
    TaskId,
    TaskWait,
    Wait,
)
from avtomatika_core.outcomes import TaskRequest

T = TypeVar("T")


async def load_readable(jobs: JobStore, job_id: JobId) -> Stored | None:
    """The job, or what can be read of it; None: there is none."""
    try:
        return await jobs.load(job_id)
    except UnreadableJob as error:
        return error.salvaged


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
    task_id: str,
    now: float,
) -> Job:
    """The job, with something plain for each part that cannot be decoded.

    `task_id`: of the task it waits for, or empty. So the job's end closes what it waited for.
    """
    plain_origin = Origin(
        blueprint="", group=group, start_state="", client=Client(name=owner), created_at=now
    )
    read_origin = _read(codec.unpack_origin, origin, plain_origin)
    known = status in frozenset(JobStatus)
    plain_head = Head(
        status=JobStatus(status) if known else JobStatus.RUNNING,
        state=read_origin.start_state,
        wait=_plain_wait(status, task_id, now),
        updated_at=now,
    )
    return Job(
        id=job_id,
        origin=read_origin,
        head=_read(codec.unpack_head, head, plain_head),
        data=_read(codec.unpack_data, data, JobData()),
        run=run,
    )


def _plain_wait(status: str, task_id: str, now: float) -> Wait | None:
    if status == JobStatus.WAITING_FOR_PARALLEL_TASKS:
        return BranchesWait(token="", aggregate_into="", count=0)
    if status != JobStatus.WAITING_FOR_WORKER or not task_id:
        return None
    request = TaskRequest(type="", transitions={})
    return TaskWait(
        task_id=TaskId(task_id),
        request=request,
        attempt=1,
        dispatched_at=now,
        result_timeout_seconds=0.0,
    )


def _read(unpack: Callable[[bytes], T], packed: bytes, otherwise: T) -> T:
    try:
        return unpack(packed)
    except msgspec.MsgspecError:
        return otherwise
