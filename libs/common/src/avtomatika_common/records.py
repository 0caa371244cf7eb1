"""What leaves a commit for the outside: facts for the archive and notifications for webhooks.

Their ids come from the job and the fence of the commit that wrote them, so a repeat is the same record.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from avtomatika_common import codec
from avtomatika_common.documents import base_document
from avtomatika_core.commands import Notify, RecordFact
from avtomatika_core.job import Job, JobId, Origin, TaskId

_NAMESPACE: Final[UUID] = uuid5(NAMESPACE_URL, "avtomatika:record")


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to a job, as the archive reads it. Times in Unix seconds."""

    id: str
    job_id: JobId
    blueprint: str
    client_name: str | None
    order: int
    """Place within the job's commits; -1 for a branch's, which are written beside them."""
    fact: RecordFact
    snapshot: dict[str, Any]
    """The job's document after the change."""


class Notification(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One webhook to send."""

    id: str
    job_id: JobId
    url: str
    event: str
    at: float
    status: str
    result: dict[str, Any]
    """The job's `state_history`."""
    error: str | None = None
    metadata: dict[str, Any] = {}
    """The job's, as its client gave it."""
    approval: dict[str, Any] | None = None
    """Of `Notify`, and the `url` (a path of the gateway) that takes the decision."""


unpack_fact: Final = msgspec.msgpack.Decoder(Fact).decode
unpack_notification: Final = msgspec.msgpack.Decoder(Notification).decode


def _id_of(job_id: JobId, fence: str, index: int) -> str:
    return str(uuid5(_NAMESPACE, f"{job_id}/{fence}/{index}"))


def pack_fact(job: Job, command: RecordFact, fence: str, index: int) -> bytes:
    """`fence` is the one the commit writes (`<version>:<nonce>`), `index` the command's place in it."""
    version = int(fence.partition(":")[0])
    return codec.pack(
        Fact(
            id=_id_of(job.id, fence, index),
            job_id=job.id,
            blueprint=job.origin.blueprint,
            client_name=job.origin.client.name,
            order=version * 1000 + index,
            fact=command,
            snapshot=base_document(job),
        )
    )


def pack_notification(job: Job, command: Notify, fence: str, index: int) -> bytes | None:
    """None: the job has no webhook."""
    if job.origin.webhook_url is None:
        return None
    return codec.pack(
        Notification(
            id=_id_of(job.id, fence, index),
            job_id=job.id,
            url=job.origin.webhook_url,
            event=command.event,
            at=command.at,
            status=job.status.value,
            result=job.data.state_history,
            error=job.head.error_message,
            metadata=job.origin.metadata,
            approval=None if command.approval is None else open_approval(job.id, command.approval),
        )
    )


def open_approval(job_id: JobId, approval: Mapping[str, Any]) -> dict[str, Any]:
    """What an approver is told: `{integration, message, decisions, deadline, token, url}`.

    `url` is a path: how the gateway is reached from outside is not known here.
    """
    return {**approval, "url": f"/_public/webhooks/approval/{job_id}"}


def pack_branch_fact(job_id: JobId, origin: Origin, command: RecordFact, task_id: TaskId) -> bytes:
    """A fact about a branch: written beside the job, so without a snapshot of it."""
    return codec.pack(
        Fact(
            id=str(uuid5(_NAMESPACE, f"{job_id}/branch/{task_id}/{command.kind}")),
            job_id=job_id,
            blueprint=origin.blueprint,
            client_name=origin.client.name,
            order=-1,
            fact=command,
            snapshot={},
        )
    )
