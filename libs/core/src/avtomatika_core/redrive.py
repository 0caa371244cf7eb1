"""What a job that has ended is made of when somebody lets it run again.

It is no event: whatever comes late to a job that has ended leaves it as it is.
"""

import msgspec
from msgspec.structs import replace

from avtomatika_core.commands import RecordFact
from avtomatika_core.job import REDRIVABLE, Head, Job, JobStatus


class Redriven(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job that runs again, and what is written with it."""

    job: Job
    fact: RecordFact
    deadline: float | None
    """When its own time is over: it has all of it again. Unix seconds."""


def redrive(job: Job, at: float) -> Redriven:
    """A `REDRIVABLE` job, running: the handler of its state is wanted, with fresh counters.

    Its data, its signals, the results of its last fan-out and `last_error` are what that handler may
    read, and stay. What the job waited for when it ended was closed then: the handler asks for it
    again, a task or a sub-job. A parent has its answer already and hears nothing new, for the token
    of its wait was used up.
    """
    assert job.status in REDRIVABLE, "the caller has looked"
    head = Head(
        status=JobStatus.RUNNING,
        state=job.head.state,
        aggregating=job.head.aggregating,
        last_error=job.head.last_error,
        updated_at=at,
        redriven_at=at,
    )
    timeout = job.origin.timeout_seconds
    details = {"previous_status": job.status.value, "previous_error": job.head.error_message}
    return Redriven(
        job=replace(job, head=head, run=job.run + 1, cancelled=False),
        fact=RecordFact(kind="job_redriven", at=at, state=head.state, details=details),
        deadline=None if timeout is None else at + timeout,
    )
