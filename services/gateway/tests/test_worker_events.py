"""What workers tell of, over real HTTP: who may, what of it counts, and who hears of it."""

import asyncio
from typing import Any

import pytest
from services.gateway.tests.door import UNKNOWN, Answer, Door, an_entry, open_door

from avtomatika_common.records import unpack_notification
from avtomatika_core.job import JobId
from avtomatika_core.outcomes import DispatchTask, TaskRequest
from tests.support import until

EVENTS = "/_worker/events"
ACCEPTED = {"status": "event_accepted"}
LEADS_ON = DispatchTask(
    task=TaskRequest(
        type="resize", transitions={"success": "done"}, event_transitions={"halfway": "look"}
    )
)
SCHEMA = {"type": "object", "properties": {"pages": {"type": "integer"}}}


async def a_held_task(door: Door, **body: Any) -> dict[str, Any]:
    """The payload of a task that worker `w` holds."""
    await door.new_job(**body)
    await door.handler_returns(LEADS_ON)
    await door.register("w")
    async with asyncio.TaskGroup() as tasks:
        poll = tasks.create_task(door.poll("w"))
        await door.match("w")
    payload: dict[str, Any] = poll.result().body
    return payload


def about(task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "event_id": "e-1",
        "worker_id": "w",
        "origin_worker_id": "w",
        "event_type": "halfway",
        "payload": {"pages": 7},
        "target_job_id": task["job_id"],
        "target_task_id": task["task_id"],
        **changes,
    }


async def tell(door: Door, event: dict[str, Any], **request: Any) -> Answer:
    return await door.worker("POST", EVENTS, json=event, **request)


async def the_webhooks(door: Door) -> list[dict[str, Any]]:
    """The events of workers that wait to be sent to the job's webhook."""
    entries = await door.backend.notifications.read("notifier", 100)
    told = [unpack_notification(entry.payload) for entry in entries]
    return [
        {"event": notice.event, "status": notice.status, **(notice.worker_event or {})}
        for notice in told
    ]


async def test_an_event_of_the_holder_moves_its_job_on(door: Door) -> None:
    task = await a_held_task(door)

    answer = await tell(door, about(task))
    job = await door.handler_returns(LEADS_ON)

    assert (answer.status, answer.body) == (200, ACCEPTED)
    assert (job.state, job.data.state_history) == ("look", {"pages": 7})


async def test_an_event_may_name_its_task_as_its_origin(door: Door) -> None:
    task = await a_held_task(door)
    event = about(task, target_task_id=None, origin_task_id=task["task_id"])

    answer = await tell(door, event)

    assert (answer.status, await door.backend.inbox.length()) == (200, 1)


async def test_the_sender_need_not_be_named_twice(door: Door) -> None:
    task = await a_held_task(door)
    event = about(task)
    del event["worker_id"], event["origin_worker_id"]

    nameless = await tell(door, event)
    answer = await tell(door, event, headers={"X-Worker-ID": "w"})

    assert nameless.status == 400
    assert nameless.body == {"error": "Missing required field: worker_id"}
    assert answer.status == 200


async def test_a_repeated_event_is_accepted_once(door: Door) -> None:
    task = await a_held_task(door, initial_data={}, webhook_url="http://127.0.0.1:9/hook")

    answers = [await tell(door, about(task)) for _ in range(3)]
    await door.handler_returns(LEADS_ON)
    answers.append(await tell(door, about(task)))

    assert [(answer.status, answer.body) for answer in answers] == [(200, ACCEPTED)] * 4
    assert await door.backend.inbox.length() == 0
    assert len(await the_webhooks(door)) == 1


async def test_an_event_nobody_waits_for_is_told_to_the_webhook_only(door: Door) -> None:
    task = await a_held_task(door, initial_data={}, webhook_url="http://127.0.0.1:9/hook")

    answer = await tell(door, about(task, event_type="beat"))

    assert answer.status == 200
    assert await door.backend.inbox.length() == 0
    [told] = await the_webhooks(door)
    assert (told["event"], told["status"]) == ("worker_event:beat", "waiting_for_worker")
    assert (told["event_id"], told["worker_id"], told["payload"]) == ("e-1", "w", {"pages": 7})
    assert told["target_task_id"] == task["task_id"]


# --- what is refused


async def refused(door: Door, task: dict[str, Any], event: dict[str, Any]) -> Answer:
    """The answer to an event that must change nothing."""
    before = await door.backend.jobs.view(JobId(task["job_id"]))
    answer = await tell(door, event)
    assert await door.backend.jobs.view(JobId(task["job_id"])) == before
    assert await door.backend.inbox.length() == 0
    return answer


async def test_an_event_of_an_unknown_job_is_not_found(door: Door) -> None:
    """R64."""
    for unknown in (UNKNOWN, "no id"):
        answer = await tell(door, about({"job_id": unknown, "task_id": UNKNOWN}))

        assert (answer.status, answer.body) == (404, {"error": "Job not found"})
    assert await door.backend.jobs.load(JobId(UNKNOWN)) is None


async def test_only_the_holder_of_the_task_may_tell(door: Door) -> None:
    """R39."""
    task = await a_held_task(door)

    of_another = await refused(door, task, about(task, worker_id="other", origin_worker_id="other"))
    for_another = await tell(door, about(task), headers={"X-Worker-ID": "other"})

    assert (of_another.status, of_another.body) == (
        403,
        {
            "error": f"Forbidden: Worker 'other' does not hold the task '{task['task_id']}'"
            f" of job '{task['job_id']}'."
        },
    )
    assert (for_another.status, for_another.body) == (
        403,
        {
            "error": "Forbidden: Authenticated worker 'other' cannot send events"
            " for another worker 'w'."
        },
    )


async def test_an_event_about_a_task_that_is_over_is_a_conflict_that_says_so(door: Door) -> None:
    task = await a_held_task(door)
    ids = {"job_id": task["job_id"], "task_id": task["task_id"]}
    await door.worker("POST", "/_worker/tasks/result", json={**ids, "worker_id": "w"})
    stale = await tell(door, about(task))
    await door.client("POST", f"/api/v1/jobs/{task['job_id']}/cancel")
    cancelled = await tell(door, about(task))

    assert (stale.status, stale.body) == (
        409,
        {
            "error": "The event was not accepted: the task is neither the job's current task"
            " nor an open branch."
        },
    )
    assert cancelled.body == {"error": "The event was not accepted: the job was cancelled."}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"event_id": None}, "event_id and event_type are required"),
        ({"payload": "text"}, "Invalid event: Expected `object`, got `str` - at `$.payload`"),
        (
            {"target_job_id": None},
            "target_job_id and target_task_id are required: the task of yours the event is about",
        ),
        (
            {"target_task_id": None},
            "target_job_id and target_task_id are required: the task of yours the event is about",
        ),
    ],
)
async def test_an_event_that_breaks_the_rules_is_refused(
    door: Door, changes: dict[str, Any], text: str
) -> None:
    task = await a_held_task(door)

    answer = await refused(door, task, about(task, **changes))

    assert (answer.status, answer.body) == (400, {"error": text})


# --- declared events


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"event_type": "odd"}, "it declares only these events: beat, halfway"),
        (
            {"payload": {"pages": "secret"}},
            'its payload does not fit the schema: the value is not of type "integer" - at `$.pages`',
        ),
    ],
)
async def test_an_event_that_is_not_as_declared_is_refused(
    door: Door, changes: dict[str, Any], problem: str
) -> None:
    await door.backend.catalogue.publish([an_entry(events={"halfway": SCHEMA, "beat": None})])
    task = await a_held_task(door)
    event = about(task, **changes)

    answer = await refused(door, task, event)

    text = f"Event '{event['event_type']}' is not valid for blueprint 'images': {problem}"
    assert (answer.status, answer.body) == (400, {"error": text})
    assert (await tell(door, about(task))).status == 200


async def test_without_strict_validation_it_is_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_door(STRICT_EVENT_VALIDATION="false") as door:
        await door.backend.catalogue.publish([an_entry(events={"halfway": SCHEMA})])
        task = await a_held_task(door)

        answer = await tell(door, about(task, payload={"pages": "secret"}))

    assert answer.status == 200
    [record] = [r for r in caplog.records if r.getMessage() == "worker event is not as declared"]
    assert "secret" not in vars(record)["reason"]


# --- callbacks


async def test_callbacks_hear_of_an_event_the_first_time_only() -> None:
    heard: list[tuple[str, dict[str, Any]]] = []

    async def on_worker_event(worker_id: str, event: dict[str, Any]) -> None:
        heard.append((worker_id, event))

    async with open_door(on_worker_event=on_worker_event) as door:
        task = await a_held_task(door)
        for _ in range(2):
            await tell(door, about(task))
        await refused_by_another(door, task)
        await until(lambda: bool(heard))

    [(worker_id, event)] = heard
    assert worker_id == "w"
    assert {key: event[key] for key in about(task)} == about(task)


async def refused_by_another(door: Door, task: dict[str, Any]) -> None:
    answer = await tell(door, about(task, worker_id="other"))
    assert answer.status == 403


async def test_the_worker_does_not_wait_for_a_callback() -> None:
    go_on, ended = asyncio.Event(), asyncio.Event()

    async def on_worker_event(worker_id: str, event: dict[str, Any]) -> None:
        await go_on.wait()
        ended.set()

    async with open_door(on_worker_event=on_worker_event) as door:
        answer = await tell(door, about(await a_held_task(door)))
        was_over = ended.is_set()
        go_on.set()

    assert (answer.status, was_over) == (200, False)
    assert ended.is_set(), "a stop lets callbacks finish"


async def test_a_stop_does_not_wait_for_a_callback_for_ever() -> None:
    stopped = asyncio.Event()

    async def on_worker_event(worker_id: str, event: dict[str, Any]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with (
        asyncio.timeout(10),
        open_door(on_worker_event=on_worker_event, SHUTDOWN_TIMEOUT_SECONDS="0.05") as door,
    ):
        await tell(door, about(await a_held_task(door)))

    assert stopped.is_set()
