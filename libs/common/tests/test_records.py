"""Facts and notifications are the same records however often a commit is repeated."""

from typing import Any

import msgspec

from avtomatika_common.records import (
    pack_branch_fact,
    pack_event_notification,
    pack_fact,
    pack_notification,
    record_id,
    sent_event,
    unpack_fact,
    unpack_notification,
)
from avtomatika_core.commands import Notify, RecordFact
from avtomatika_core.job import Head, Job, JobData, JobId, JobStatus, Origin, TaskId
from avtomatika_core.outcomes import SentEvent
from rxon import WorkerEvent

WIRE = {
    "origin_task_id": None,
    "bubbling_chain": None,
    "target_job_id": "j",
    "target_task_id": None,
    "trace_context": None,
    "priority": None,
    "timestamp": None,
    "metadata": None,
}
FENCE = "7:nonce"
NOTICE = Notify(event="job_failed", at=120.0)
FACT = RecordFact(kind="job_completed", at=120.0, state="end")


def a_job(**origin: Any) -> Job:
    return Job(
        id=JobId("j"),
        origin=Origin(blueprint="b", group="g", start_state="s", created_at=100.0, **origin),
        head=Head(status=JobStatus.FAILED, state="end", error_message="boom", updated_at=120.0),
        data=JobData(state_history={"x": 1}),
    )


def test_a_repeated_commit_writes_the_same_bytes() -> None:
    job = a_job(webhook_url="http://h/")

    assert pack_fact(job, FACT, FENCE, 2) == pack_fact(job, FACT, FENCE, 2)
    assert pack_notification(job, NOTICE, FENCE, 3) == pack_notification(job, NOTICE, FENCE, 3)


def test_every_record_has_an_id_of_its_own() -> None:
    job = a_job()
    others = [(FENCE, 2), (FENCE, 3), ("8:nonce", 2), ("7:other", 2)]

    ids = {unpack_fact(pack_fact(job, FACT, fence, index)).id for fence, index in others}

    assert len(ids) == len(others)


def test_facts_are_ordered_by_commit_and_place() -> None:
    places = [("7:a", 0), ("7:a", 11), ("8:b", 1), ("12:c", 0)]

    orders = [unpack_fact(pack_fact(a_job(), FACT, f, index)).order for f, index in places]

    assert orders == sorted(set(orders))


def test_a_fact_shows_the_job_after_the_change() -> None:
    fact = unpack_fact(pack_fact(a_job(), FACT, FENCE, 0))

    assert fact.fact == FACT
    assert (fact.snapshot["status"], fact.snapshot["error_message"]) == ("failed", "boom")


def test_a_fact_of_a_branch_stands_between_two_commits() -> None:
    job = a_job()

    first = unpack_fact(pack_branch_fact(job.id, job.origin, 3, FACT, TaskId("t")))
    again = unpack_fact(pack_branch_fact(job.id, job.origin, 3, FACT, TaskId("t")))
    other = unpack_fact(pack_branch_fact(job.id, job.origin, 3, FACT, TaskId("u")))

    before = unpack_fact(pack_fact(job, FACT, "3:n", 10))
    after = unpack_fact(pack_fact(job, FACT, "4:n", 0))

    assert (first, first.snapshot) == (again, {})
    assert first.id != other.id
    assert before.order < first.order == other.order < after.order


def test_a_job_without_a_webhook_notifies_nobody() -> None:
    assert pack_notification(a_job(), NOTICE, FENCE, 0) is None


def test_a_notification_carries_what_the_receiver_is_told() -> None:
    job = a_job(webhook_url="http://h/", metadata={"ticket": 7})

    packed = pack_notification(job, NOTICE, FENCE, 0)

    assert packed is not None
    told = unpack_notification(packed)
    assert (told.job_id, told.url, told.event, told.at) == ("j", "http://h/", "job_failed", 120.0)
    assert (told.status, told.result, told.error) == ("failed", {"x": 1}, "boom")
    assert (told.metadata, told.approval) == ({"ticket": 7}, None)


def test_who_is_to_approve_is_told_where() -> None:
    asked = {"integration": "chat", "message": "?", "decisions": ["yes"], "token": "t"}
    notice = Notify(event="approval_requested", at=1.0, approval=asked)

    packed = pack_notification(a_job(webhook_url="http://h/"), notice, FENCE, 0)

    assert packed is not None
    told = unpack_notification(packed)
    assert told.approval == {**asked, "url": "/_public/webhooks/approval/j"}


def test_an_event_of_a_handler_is_told_as_one_of_a_worker_that_nobody_is() -> None:
    sent = SentEvent(event_type="priced", payload={"total": 3})
    job = a_job(webhook_url="http://h/")

    packed = pack_notification(job, Notify(event="worker_event", at=1.0, sent=sent), FENCE, 4)

    assert packed is not None
    told = unpack_notification(packed)
    assert (told.event, told.id) == ("worker_event:priced", record_id(job.id, FENCE, 4))
    assert told.worker_event == sent_event(job.id, sent, event_id=told.id, at=1.0)
    assert told.worker_event == {
        **WIRE,
        "event_id": told.id,
        "worker_id": None,
        "origin_worker_id": None,
        "event_type": "priced",
        "payload": {"total": 3},
        "timestamp": 1.0,
    }


def test_a_repeated_event_of_a_worker_is_the_same_notification() -> None:
    event = WorkerEvent(
        event_id="e",
        worker_id="w",
        origin_worker_id="w",
        event_type="halfway",
        payload={"pages": 7},
        target_job_id="j",
    )
    job = a_job(webhook_url="http://h/")

    first, later = (pack_event_notification(job, event, at) for at in (1.0, 2.0))
    other = pack_event_notification(job, msgspec.structs.replace(event, event_id="f"), 1.0)

    assert first is not None
    assert later is not None
    assert other is not None
    told = unpack_notification(first)
    assert unpack_notification(later).id == told.id != unpack_notification(other).id
    assert (told.event, told.url, told.result) == ("worker_event:halfway", "http://h/", {"x": 1})
    assert told.worker_event is not None
    assert (told.worker_event["worker_id"], told.worker_event["payload"]) == ("w", {"pages": 7})
    assert pack_event_notification(a_job(), event, 1.0) is None
