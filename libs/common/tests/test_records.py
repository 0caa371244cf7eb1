"""Facts and notifications are the same records however often a commit is repeated."""

from typing import Any

from avtomatika_common.records import (
    pack_branch_fact,
    pack_fact,
    pack_notification,
    unpack_fact,
    unpack_notification,
)
from avtomatika_core.commands import Notify, RecordFact
from avtomatika_core.job import Head, Job, JobData, JobId, JobStatus, Origin, TaskId

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


def test_a_fact_of_a_branch_stands_beside_the_commits() -> None:
    job = a_job()

    first = unpack_fact(pack_branch_fact(job.id, job.origin, FACT, TaskId("t")))
    again = unpack_fact(pack_branch_fact(job.id, job.origin, FACT, TaskId("t")))
    other = unpack_fact(pack_branch_fact(job.id, job.origin, FACT, TaskId("u")))

    assert (first, first.order, first.snapshot) == (again, -1, {})
    assert first.id != other.id


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
