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
from avtomatika_core.outcomes import SentEvent
from rxon import WorkerEvent

_FACTS_OF_A_COMMIT: Final = 1000
"""More than there are; the last place is that of branches that end before the next commit."""
_NAMESPACE: Final[UUID] = uuid5(NAMESPACE_URL, "avtomatika:record")


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened to a job, as the archive reads it. Times in Unix seconds."""

    id: str
    job_id: JobId
    blueprint: str
    client_name: str | None
    order: int
    """Place in the job's history. The branches of one fan-out share theirs."""
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
    worker_event: dict[str, Any] | None = None
    """The event of a worker, or of a handler, as a wire message."""


unpack_fact: Final = msgspec.msgpack.Decoder(Fact).decode
unpack_notification: Final = msgspec.msgpack.Decoder(Notification).decode


def version_of(fence: str) -> int:
    """How often the job was changed; a fence is `<version>:<nonce>`."""
    return int(fence.partition(":")[0])


def record_id(job_id: JobId, fence: str, index: int) -> str:
    """Of what the command at place `index` wrote, in the commit that wrote `fence`."""
    return str(uuid5(_NAMESPACE, f"{job_id}/{fence}/{index}"))


def pack_fact(job: Job, command: RecordFact, fence: str, index: int) -> bytes:
    """`fence` is the one the commit writes (`<version>:<nonce>`), `index` the command's place in it."""
    return codec.pack(
        Fact(
            id=record_id(job.id, fence, index),
            job_id=job.id,
            blueprint=job.origin.blueprint,
            client_name=job.origin.client.name,
            order=version_of(fence) * _FACTS_OF_A_COMMIT + index,
            fact=command,
            snapshot=base_document(job),
        )
    )


def pack_notification(job: Job, command: Notify, fence: str, index: int) -> bytes | None:
    """None: the job has no webhook."""
    if job.origin.webhook_url is None:
        return None
    notice = Notification(
        id=record_id(job.id, fence, index),
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
    if command.sent is not None:
        event = sent_event(job.id, command.sent, event_id=notice.id, at=command.at)
        notice = _about(notice, event)
    return codec.pack(notice)


def pack_event_notification(job: Job, event: WorkerEvent, at: float) -> bytes | None:
    """Of an event that came from a worker; a repeat of it is the same record. None: no webhook."""
    if job.origin.webhook_url is None:
        return None
    notice = Notification(
        id=str(uuid5(_NAMESPACE, f"{job.id}/event/{event.worker_id}/{event.event_id}")),
        job_id=job.id,
        url=job.origin.webhook_url,
        event="worker_event",
        at=at,
        status=job.status.value,
        result=job.data.state_history,
        error=job.head.error_message,
        metadata=job.origin.metadata,
    )
    return codec.pack(_about(notice, msgspec.to_builtins(event)))


def _about(notice: Notification, event: dict[str, Any]) -> Notification:
    return msgspec.structs.replace(
        notice, event=f"worker_event:{event['event_type']}", worker_event=event
    )


def sent_event(job_id: JobId, sent: SentEvent, *, event_id: str, at: float) -> dict[str, Any]:
    """An event of a handler in the form of one of a worker's; no worker has sent it."""
    message = WorkerEvent(
        event_id=event_id,
        worker_id="",
        origin_worker_id="",
        event_type=sent.event_type,
        payload=sent.payload,
        target_job_id=job_id,
        timestamp=at,
    )
    return {**msgspec.to_builtins(message), "worker_id": None, "origin_worker_id": None}


def open_approval(job_id: JobId, approval: Mapping[str, Any]) -> dict[str, Any]:
    """What an approver is told: `{integration, message, decisions, deadline, token, url}`.

    `url` is a path: how the gateway is reached from outside is not known here.
    """
    return {**approval, "url": f"/_public/webhooks/approval/{job_id}"}


def pack_branch_fact(
    job_id: JobId, origin: Origin, version: int, command: RecordFact, task_id: TaskId
) -> bytes:
    """A fact about a branch: written beside the job, so without a snapshot of it.

    It comes behind what the commit wrote that made the job's `version`, whatever the clocks say.
    """
    return codec.pack(
        Fact(
            id=str(uuid5(_NAMESPACE, f"{job_id}/branch/{task_id}/{command.kind}")),
            job_id=job_id,
            blueprint=origin.blueprint,
            client_name=origin.client.name,
            order=(version + 1) * _FACTS_OF_A_COMMIT - 1,
            fact=command,
            snapshot={},
        )
    )
