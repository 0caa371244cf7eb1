"""The requirements about workers, each from the worker's side of the door of a whole orchestrator."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from avtomatika import StateMachineBlueprint
from avtomatika.context import ActionFactory
from avtomatika_common import ids, leadership
from avtomatika_common.backend.ports import StoreUnavailable
from avtomatika_common.lifecycle import running
from avtomatika_dispatcher.service import DispatcherService
from avtomatika_dispatcher.settings import Settings as DispatcherSettings
from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from tests.integration.conftest import NewStorage, OpenSite
from tests.integration.connections import a_connection, impatient_poll, poll_request, send
from tests.integration.sites import Site, once, with_dispatchers
from tests.interop.door import CLIENT_TOKEN, WORKER_TOKEN, Door, ignored
from tests.support import until

pytestmark = pytest.mark.integration

OK = {"status": "ok"}


# --- blueprints


def _blueprint(name: str) -> StateMachineBlueprint:
    return StateMachineBlueprint(name, api_version="v1", api_endpoint=f"/jobs/{name}")


async def _end() -> None:
    pass


def one_task() -> StateMachineBlueprint:
    """One task; `options` of the initial data describe it."""
    blueprint = _blueprint("one_task")

    @blueprint.handler_for("start", is_start=True)
    async def start(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.dispatch_task(
            initial_data.get("type", "resize"),
            {},
            transitions={"success": "done"},
            **initial_data.get("options", {}),
        )

    blueprint.handler_for("done", is_end=True)(_end)
    return blueprint


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    return await open_site(one_task())


async def done(door: Door, task: dict[str, Any], worker_id: str) -> None:
    assert (await door.done(task, worker_id)).json == OK


async def finished(door: Door, *job_ids: str) -> None:
    for job_id in job_ids:
        assert (await door.ended(job_id))["status"] == "finished"


async def waits_because(door: Door, job_id: str, reason: str) -> None:
    """The dispatcher has looked for a worker and found none."""

    async def says_so() -> bool:
        return (await door.document(job_id)).get("waiting_reason") == reason

    await until(says_so, message=f"the job does not wait for the reason {reason!r}")


# --- R5, R6: what workers leave undone


async def test_workers_that_drop_every_poll_lose_no_task(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R5."""
    monkeypatch.setattr("avtomatika_gateway.deliveries.RESET_SECONDS", 3.0)
    names = ["w1", "w2", "w3", "w4"]
    for name in names:
        await site.door.register(name)
    job_ids = [await site.door.create() for _ in range(40)]
    done_by: dict[str, str] = {}
    dropped = 0

    async def work(name: str) -> None:
        nonlocal dropped
        while len(done_by) < len(job_ids):
            patience = random.choice((0.0, 0.0, 0.005, 0.05))
            task = await impatient_poll(site.door.port, name, patience)
            if task is None:
                dropped += 1
                continue
            await done(site.door, task, name)
            done_by[task["job_id"]] = name

    # At once: what is not put back comes only when its delivery was not confirmed for five seconds.
    async with asyncio.timeout(4.5), asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(work(name))

    assert dropped > len(names)
    assert done_by.keys() == set(job_ids)
    await finished(site.door, *job_ids)
    assert set(site.ends.values()) == {1}


async def test_another_worker_gets_the_task_of_one_that_was_killed(open_site: OpenSite) -> None:
    """R6."""
    ttl, watcher_interval = 1.0, 3.0
    site = await open_site(
        one_task(),
        WORKER_HEALTH_CHECK_INTERVAL_SECONDS=str(ttl / 2),
        WATCHER_INTERVAL_SECONDS=str(watcher_interval),
        WORKER_POLL_TIMEOUT_SECONDS="0.3",
    )
    clock = asyncio.get_running_loop()
    lost = await site.door.held("w1")
    heard_of = clock.time()
    await site.door.register("w2")

    while (answer := await site.door.poll("w2")).status == 204:
        assert clock.time() < heard_of + ttl + watcher_interval
    task = answer.json

    assert clock.time() > heard_of + ttl / 2
    assert task["job_id"] == lost["job_id"]
    assert task["task_id"] != lost["task_id"]
    assert ignored(await site.door.done(lost, "w1")) == "stale_task"
    await done(site.door, task, "w2")
    await finished(site.door, task["job_id"])


async def fail() -> None:
    raise StoreUnavailable("cut off")


@pytest.mark.parametrize("is_cut_off", [False, True])
async def test_all_tasks_of_a_killed_worker_come_to_another(
    open_site: OpenSite, monkeypatch: pytest.MonkeyPatch, *, is_cut_off: bool
) -> None:
    """R6: of each partition, also if who offers them anew is cut off from the store meanwhile."""
    monkeypatch.setattr(leadership, "STANDBY_SECONDS", 0.05)
    ttl, watcher_interval, partitions = 1.0, 8.0, 3
    site = await open_site(
        one_task(),
        AVTOMATIKA_PARTITIONS=str(partitions),
        WORKER_HEALTH_CHECK_INTERVAL_SECONDS=str(ttl / 2),
        WATCHER_INTERVAL_SECONDS=str(watcher_interval),
        WORKER_POLL_TIMEOUT_SECONDS="0.3",
    )
    door, clock = site.door, asyncio.get_running_loop()
    many = {"max_concurrent_tasks": 1000}
    await door.register("w1", resources=many)
    places: Counter[int] = Counter()
    lost: list[str] = []
    while len(places) < partitions or min(places.values()) < 2:
        lost.append((await door.held("w1"))["job_id"])
        places[ids.partition_of(lost[-1], partitions)] += 1
    if is_cut_off:
        once(site.storage.board, "return_leases", before=fail)
    heard_of = clock.time()
    await door.register("w2", resources=many)

    tasks: list[dict[str, Any]] = []
    while len(tasks) < len(lost):
        answer = await door.poll("w2")
        assert clock.time() < heard_of + ttl + watcher_interval
        tasks += [answer.json] if answer.status == 200 else []

    assert {task["job_id"] for task in tasks} == set(lost)
    for task in tasks:
        await done(door, task, "w2")
    await finished(door, *lost)


# --- R38, R39: workers of the SDK


def an_sdk_worker(door: Door, worker_id: str, folder: Path, **settings: str) -> Worker:
    config = WorkerConfig(
        {
            "WORKER_ID": worker_id,
            "WORKER_TOKEN": WORKER_TOKEN,
            "ORCHESTRATOR_URL": door.url,
            "TASK_FILES_DIR": str(folder / worker_id),
            "WORKER_HEARTBEAT_DEBOUNCE_DELAY": "0.01",
            "WORKER_SHUTDOWN_TIMEOUT": "1",
            "MAX_CONCURRENT_TASKS": "1",
            **settings,
        }
    )
    return Worker(config=config)


@asynccontextmanager
async def at_work(*workers: Worker) -> AsyncGenerator[None, None]:
    async with asyncio.TaskGroup() as tasks:
        for worker in workers:
            tasks.create_task(worker.main())
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()


async def are_listed(door: Door, names: set[str]) -> bool:
    client = {"X-Client-Token": CLIENT_TOKEN}
    answer = await door.call("GET", "/api/workers", token=None, headers=client)
    return {worker["worker_id"] for worker in answer.json} == names


async def test_workers_that_are_forgotten_register_again_within_a_heartbeat(
    site: Site, tmp_path: Path
) -> None:
    """R38."""
    interval, names = 1.0, {"w1", "w2", "w3"}
    workers = [
        an_sdk_worker(site.door, name, tmp_path, HEARTBEAT_INTERVAL=str(interval))
        for name in sorted(names)
    ]
    for worker in workers:

        @worker.task("resize")
        async def resize() -> None:
            pass

    clock = asyncio.get_running_loop()
    async with at_work(*workers):
        await until(lambda: are_listed(site.door, names))
        for name in names:  # they have begun, and said so in their first heartbeat
            await site.polls(name, 1)
            await until(lambda name=name: has_said(site, name, "current_tasks"))
        await site.storage.flush_all()
        flushed = clock.time()
        assert await are_listed(site.door, set())

        await until(lambda: are_listed(site.door, names), 10)
        took = clock.time() - flushed

    assert took < 2 * interval  # the polls that were open are held for five


async def has_said(site: Site, worker_id: str, key: str) -> bool:
    return key in (await site.worker(worker_id)).document


async def names_a_task(site: Site, worker_id: str) -> bool:
    return bool((await site.worker(worker_id)).document.get("current_tasks"))


def takes_long(worker: Worker, begun: set[str], stopped: dict[str, str]) -> None:
    """It does a type of task of its own, until it is told to stop."""

    @worker.task(f"long_{worker.worker_id}")
    async def take_long(job_id: str, send_progress: Callable[..., Awaitable[None]]) -> None:
        begun.add(job_id)
        await send_progress(0.5)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped[worker.worker_id] = job_id
            raise


async def test_sockets_of_two_sdk_workers_with_one_token_both_stay(
    site: Site, tmp_path: Path
) -> None:
    """R39: a command may come from another instance."""
    begun: set[str] = set()
    stopped: dict[str, str] = {}
    workers = [
        an_sdk_worker(site.door, name, tmp_path, WORKER_ENABLE_WEBSOCKETS="true")
        for name in ("w1", "w2")
    ]
    for worker in workers:
        takes_long(worker, begun, stopped)

    async with site.another_gateway() as there, at_work(*workers):
        jobs = {name: await site.door.create(type=f"long_{name}") for name in ("w1", "w2")}

        async def all_have_progress() -> bool:
            seen = [(await there.document(job_id)).get("progress") for job_id in jobs.values()]
            return seen == [0.5, 0.5]

        await until(all_have_progress, message="there is no progress")
        for name in jobs:  # its next heartbeat is far away
            await until(lambda name=name: names_a_task(site, name), message="it is not busy")
        answers = [(await there.cancel(job_id)).json for job_id in jobs.values()]
        await until(lambda: stopped == jobs, message="a worker was not told to stop")

    assert answers == [{"status": "cancellation_request_sent"}] * 2


# --- R40: cancel

RETRY_SECONDS = "600"
Reach = Callable[[Site, asyncio.Event], Awaitable[str]]
"""Brings a job into a status; handlers that were told to wait do so for the event."""


def blueprints_to_cancel(go_on: asyncio.Event) -> list[StateMachineBlueprint]:
    slow, raising = _blueprint("slow"), _blueprint("raising")
    fan_out, parent, approval = _blueprint("fan_out"), _blueprint("parent"), _blueprint("approval")

    @slow.handler_for("start", is_start=True)
    async def wait(actions: ActionFactory) -> None:
        await go_on.wait()
        actions.dispatch_task("resize", {}, transitions={"success": "done"})

    @raising.handler_for("start", is_start=True, targets=["done"])
    async def break_down() -> None:
        raise RuntimeError("not yet")

    @fan_out.handler_for("start", is_start=True)
    async def give_out(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize"}] * 3, aggregate_into="done")

    @parent.handler_for("start", is_start=True)
    async def have_children(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.run_blueprint(initial_data["child"], {}, transitions={"success": "done"})

    @approval.handler_for("start", is_start=True)
    async def ask(actions: ActionFactory) -> None:
        actions.await_human_approval("mail", "?", transitions={"yes": "done"}, timeout_seconds=600)

    for blueprint in (slow, raising, fan_out, parent, approval):
        blueprint.handler_for("done", is_end=True)(_end)
    return [one_task(), slow, raising, fan_out, parent, approval]


async def has_status(door: Door, job_id: str, status: str) -> bool:
    return bool((await door.document(job_id))["status"] == status)


def in_status(status: str, blueprint: str, **initial_data: str) -> Reach:
    async def reach(site: Site, _go_on: asyncio.Event) -> str:
        job_id = await site.door.create(blueprint, **initial_data)
        await until(lambda: has_status(site.door, job_id, status), message=f"it is not {status}")
        return job_id

    return reach


async def pending(site: Site, _go_on: asyncio.Event) -> str:
    """The only place for a handler is taken."""
    taking = await site.door.create("slow")
    await until(lambda: has_status(site.door, taking, "running"))
    job_id = await site.door.create()
    assert await has_status(site.door, job_id, "pending")
    return job_id


async def task_awaiting_retry(site: Site, _go_on: asyncio.Event) -> str:
    task = await site.door.held("w1")
    await site.door.done(task, "w1", status="failure", error="once more")
    await until(lambda: has_status(site.door, task["job_id"], "awaiting_retry"))
    return str(task["job_id"])


NOT_HELD: dict[str, Reach] = {
    "pending": pending,
    "running": in_status("running", "slow"),
    "task queued": in_status("waiting_for_worker", "one_task"),
    "branches queued": in_status("waiting_for_parallel_tasks", "fan_out"),
    "child with a task queued": in_status("waiting_for_sub_job", "parent", child="one_task"),
    "child with branches": in_status("waiting_for_sub_job", "parent", child="fan_out"),
    "child with a handler that runs": in_status("waiting_for_sub_job", "parent", child="slow"),
    "child with an approval": in_status("waiting_for_sub_job", "parent", child="approval"),
    "approval": in_status("waiting_for_human", "approval"),
    "task awaiting retry": task_awaiting_retry,
    "handler awaiting retry": in_status("awaiting_retry", "raising"),
}


@pytest.mark.parametrize("reach", NOT_HELD.values(), ids=NOT_HELD)
async def test_a_cancelled_job_ends_at_once_and_no_worker_gets_anything_of_it(
    open_site: OpenSite, reach: Reach
) -> None:
    """R21, R40."""
    go_on = asyncio.Event()
    site = await open_site(
        *blueprints_to_cancel(go_on),
        EXECUTOR_MAX_CONCURRENT_JOBS="1" if reach is pending else "10",
        RETRY_DELAY_SECONDS=RETRY_SECONDS,
    )
    door = site.door
    await door.register("w1")
    job_id = await reach(site, go_on)
    child_id = (await door.document(job_id)).get("child_job_id")

    assert (await door.cancel(job_id)).json == {"status": "cancellation_request_accepted"}
    following = await door.create()  # its task is what the worker gets next
    poll = asyncio.ensure_future(door.task("w1"))
    if reach is pending:
        go_on.set()
        other = await poll
        await done(door, other, "w1")
        poll = asyncio.ensure_future(door.task("w1"))
    task = await poll

    async with asyncio.timeout(2):
        assert (await door.ended(job_id))["status"] == "cancelled"
        if child_id is not None:
            assert (await door.ended(child_id))["status"] == "cancelled"
    assert task["job_id"] == following
    await done(door, task, "w1")
    await finished(door, following)
    go_on.set()
    await until(site.is_idle, message="something is left")
    assert (await door.document(job_id))["status"] == "cancelled"


HELD: dict[str, Reach] = {
    "task": in_status("waiting_for_worker", "one_task"),
    "branches": in_status("waiting_for_parallel_tasks", "fan_out"),
    "task of a child": in_status("waiting_for_sub_job", "parent", child="one_task"),
    "branches of a child": in_status("waiting_for_sub_job", "parent", child="fan_out"),
}


async def held_of(site: Site, job_id: str) -> list[dict[str, Any]]:
    """One task of the job or its child, or two of its three branches, in the hands of w1."""
    tasks = [await site.door.task("w1")]
    if (await site.door.document(tasks[0]["job_id"])).get("active_branches"):
        tasks.append(await site.door.task("w1"))
    of = {task["job_id"] for task in tasks}
    assert of <= {job_id, (await site.door.document(job_id)).get("child_job_id")}
    return tasks


@pytest.mark.parametrize("reach", HELD.values(), ids=HELD)
async def test_a_worker_without_a_socket_learns_of_a_cancel_by_its_heartbeat(
    open_site: OpenSite, reach: Reach
) -> None:
    """R40."""
    site = await open_site(*blueprints_to_cancel(asyncio.Event()))
    door = site.door
    await door.register("w1")
    job_id = await reach(site, asyncio.Event())
    tasks = await held_of(site, job_id)
    held = sorted(task["task_id"] for task in tasks)
    await door.cancel(job_id)

    async def is_told() -> bool:
        told = (await door.heartbeat("w1", {"current_tasks": held})).json
        return sorted(told.get("cancel_task_ids", [])) == held

    async with asyncio.timeout(2):
        assert (await door.ended(job_id))["status"] == "cancelled"
        await until(is_told, message="the heartbeat does not name the tasks")
    for task in tasks:
        assert ignored(await door.done(task, "w1")) == "job_cancelled"
    await until(site.is_idle, message="something is left")


@pytest.mark.parametrize("reach", HELD.values(), ids=HELD)
async def test_a_worker_with_a_socket_learns_of_a_cancel_by_it(
    open_site: OpenSite, reach: Reach
) -> None:
    """R40."""
    site = await open_site(*blueprints_to_cancel(asyncio.Event()))
    door = site.door
    await door.register("w1")
    job_id = await reach(site, asyncio.Event())
    tasks = await held_of(site, job_id)

    async with door.socket("w1") as socket:
        await door.cancel(job_id)
        told = [await socket.receive_json(timeout=2) for _ in tasks]

    assert sorted((command["command"], command["task_id"]) for command in told) == sorted(
        ("cancel_task", task["task_id"]) for task in tasks
    )


# --- R45, R46: who is chosen

COSTS: dict[str, dict[str, Any]] = {
    "of the skill": {
        "capabilities": {"cost_per_skill": {"resize": 0.0001}},
        "cost_per_second": 1.0,
        "cost": 1.0,
    },
    "per second": {
        "capabilities": {"cost_per_skill": {"other": 1.0}},
        "cost_per_second": 0.0001,
        "cost": 1.0,
    },
    "of the worker": {"cost": 0.0001},
}


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
async def test_the_cost_is_of_the_skill_then_per_second_then_of_the_worker(
    site: Site, costs: dict[str, Any]
) -> None:
    """R45."""
    door = site.door
    dear = {"capabilities": {"cost_per_skill": {"resize": 0.01}}, "cost_per_second": 0.0001}
    await door.register("dear", **dear, cost=0.0001)
    await door.register("unknown")
    async with asyncio.TaskGroup() as tasks:
        polls = [tasks.create_task(door.poll(name)) for name in ("dear", "unknown")]
        job_id = await door.create(options={"max_cost": 0.0002})
        await waits_because(
            door, job_id, "No worker meets the maximum cost (0.0002) for task 'resize'"
        )
        await door.register("cheap", **costs)

        task = await door.task("cheap")

        assert task["job_id"] == job_id
        for poll in polls:
            assert not poll.done()
            poll.cancel()


HOT: dict[str, dict[str, Any]] = {
    "it says so": {"hot_skills": ["resize"]},
    "its model is loaded": {
        "hot_cache": ["m1", "m2", "m3"],
        "skill_dependencies": {"resize": ["m1", "m2"]},
    },
    "the task's name is in the cache": {"hot_cache": ["resize"]},
}
COLD: dict[str, dict[str, Any]] = {
    "nothing is loaded": {"skill_dependencies": {"resize": ["m1", "m2"]}},
    "half is loaded": {
        "hot_cache": ["m1", "m3"],
        "skill_dependencies": {"resize": ["m1", "m2"]},
    },
    "another skill is hot": {"hot_skills": ["other"], "hot_cache": ["other"]},
}


async def chosen(site: Site, *names: str, **options: Any) -> str:
    """Which of the workers gets a new task, while all are free."""
    async with asyncio.TaskGroup() as tasks:
        polls = {name: tasks.create_task(site.door.task(name)) for name in names}
        for name in names:
            await site.polls(name, 1)
        await site.door.create(options=options)
        await asyncio.wait(polls.values(), return_when=asyncio.FIRST_COMPLETED)
        [name] = [name for name, poll in polls.items() if poll.done()]
        await done(site.door, polls[name].result(), name)
        for poll in polls.values():
            poll.cancel()
    return name


@pytest.mark.parametrize("news", HOT.values(), ids=HOT)
async def test_a_hot_worker_is_preferred_to_a_cheaper_one(site: Site, news: dict[str, Any]) -> None:
    """R46."""
    await site.door.register("cheap", cost=0.1)
    await site.door.register("hot", cost=0.2)
    assert await chosen(site, "cheap", "hot") == "cheap"

    await site.door.heartbeat("hot", news)

    assert await chosen(site, "cheap", "hot") == "hot"


@pytest.mark.parametrize("news", COLD.values(), ids=COLD)
async def test_a_worker_is_not_hot_for_what_it_has_not_loaded(
    site: Site, news: dict[str, Any]
) -> None:
    """R46."""
    await site.door.register("cheap", cost=0.1)
    await site.door.register("cold", cost=0.2, **news)

    assert await chosen(site, "cheap", "cold") == "cheap"


# --- R47, R48, R49: what workers are now


async def test_two_workers_share_the_work_and_neither_holds_too_much(
    open_site: OpenSite, new_storage: NewStorage
) -> None:
    """R47: whoever of two dispatchers gives them the tasks."""
    site = await open_site(
        one_task(),
        storage=with_dispatchers(new_storage(), 1, named="second"),
        AVTOMATIKA_PARTITIONS="2",
        WORKER_POLL_TIMEOUT_SECONDS="0.3",
    )
    second = DispatcherService(DispatcherSettings(instance_id="second"), site.storage)
    names, count = ("w1", "w2"), 60
    in_hand: dict[str, set[str]] = {name: set() for name in names}
    most: Counter[str] = Counter()
    by: Counter[str] = Counter()

    def is_enough() -> bool:
        """Both have all they may have, or there is not so much left."""
        return by.total() > count - 6 or all(len(held) == 2 for held in in_hand.values())

    async def work(name: str) -> None:
        while by.total() < count:
            answer = await site.door.poll(name)
            if answer.status == 204:
                continue
            task = answer.json
            in_hand[name].add(task["task_id"])
            most[name] = max(most[name], len(in_hand[name]))
            await until(is_enough)
            in_hand[name].discard(task["task_id"])  # from now on its place may be free
            await done(site.door, task, name)
            by[name] += 1

    async with running(second):
        job_ids = [await site.door.offered() for _ in range(count)]
        for name in names:
            await site.door.register(name, resources={"max_concurrent_tasks": 2})
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            for name in names * 4:
                tasks.create_task(work(name))

        assert most == {"w1": 2, "w2": 2}
        await finished(site.door, *job_ids)


@pytest.mark.parametrize("how", ["registration", "heartbeat"])
async def test_a_worker_gets_no_task_of_a_type_it_gave_up(site: Site, how: str) -> None:
    """R48."""
    door = site.door
    await door.register("w1", "resize", "other")
    async with asyncio.TaskGroup() as tasks:
        if how == "registration":
            await door.register("w1", "other")
            poll = tasks.create_task(door.task("w1"))
        else:
            poll = tasks.create_task(door.task("w1"))  # it is open already
            await site.polls("w1", 1)
            await door.heartbeat("w1", {"supported_tasks": ["other"]})
        given_up = await door.create()
        await waits_because(door, given_up, "No suitable workers for task type 'resize'")
        wanted = await door.create(type="other")

    assert poll.result()["job_id"] == wanted
    assert (await door.document(given_up))["status"] == "waiting_for_worker"


async def test_a_worker_whose_time_is_over_is_on_no_list_and_not_chosen(
    open_site: OpenSite,
) -> None:
    """R49."""
    site = await open_site(one_task(), WORKER_HEALTH_CHECK_INTERVAL_SECONDS="0.5")
    door = site.door
    await door.register("w1")
    assert await are_listed(door, {"w1"})
    async with a_connection(door.port) as poll:  # of a host that is gone without a word
        await send(poll, poll_request("w1"))
        await site.polls("w1", 1)

        await until(lambda: are_listed(door, set()), 3, "it is listed still")
        total = (await door.ask("GET", "/dashboard")).json["workers"]["total"]
        job_id = await door.create()
        await waits_because(door, job_id, "No suitable workers for task type 'resize'")

    assert total == 0
    assert site.leases == []


# --- R51, R52: turns


async def test_a_hundred_equal_tasks_are_done_in_their_order(site: Site) -> None:
    """R51."""
    await site.door.register("w1")
    job_ids = [await site.door.offered() for _ in range(100)]
    order: list[str] = []

    while len(order) < len(job_ids):
        task = await site.door.task("w1")
        order.append(task["job_id"])
        await done(site.door, task, "w1")

    assert order == job_ids
    await finished(site.door, *job_ids)


async def test_branches_of_equal_payload_are_all_done_in_their_order(open_site: OpenSite) -> None:
    """R51."""
    fan_out = _blueprint("fan_out")

    @fan_out.handler_for("start", is_start=True)
    async def give_out(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize", "params": {}}] * 100, aggregate_into="join")

    @fan_out.aggregator_for("join")
    async def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history["joined"] = len(aggregation_results)
        actions.transition_to("done")

    fan_out.handler_for("done", is_end=True)(_end)
    site = await open_site(fan_out)
    door = site.door
    await door.register("w1", resources={"max_concurrent_tasks": 100})
    job_id = await door.create("fan_out")
    first = await door.task("w1")
    asked = [first["task_id"], *(await door.document(job_id))["active_branches"]]
    await done(door, first, "w1")

    order = [first["task_id"]]
    while len(order) < 100:
        tasks = await door.tasks("w1", 30)
        order += [task["task_id"] for task in tasks]
        for task in tasks:
            await done(door, task, "w1")

    assert order == list(dict.fromkeys(asked))
    assert (await door.ended(job_id))["state_history"]["joined"] == 100


class Turns:
    """Three workers that do each task at once; which of them got the tasks of one strategy."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._names = ("w1", "w2", "w3")
        self.taken: list[str] = []
        self.partitions: Counter[int] = Counter()

    @asynccontextmanager
    async def at_work(self) -> AsyncGenerator[None, None]:
        for name in self._names:
            await self._site.door.register(name)
        async with asyncio.TaskGroup() as tasks:
            works = [tasks.create_task(self._work(name)) for name in self._names]
            yield
            for work in works:
                work.cancel()

    async def _work(self, name: str) -> None:
        while True:
            answer = await self._site.door.poll(name)
            if answer.status == 200:
                await done(self._site.door, answer.json, name)
                self.taken.append(name)

    async def take(self, count: int, *, talkative: str | None = None) -> None:
        """So many tasks, each when all three are free; one of them may have much to tell."""
        for number in range(count):
            if talkative is not None:
                await self._site.door.heartbeat(talkative, {"load": number})
            for name in self._names:
                await self._site.polls(name, 1)
                await self._site.holds(name, 0)
            expected = len(self.taken) + 1
            job_id = await self._site.door.create(options={"dispatch_strategy": "round_robin"})
            self.partitions[ids.partition_of(job_id, 2)] += 1
            await until(lambda expected=expected: len(self.taken) == expected)


@pytest.mark.timeout(120)
async def test_round_robin_is_fair_over_two_instances_that_dispatch(
    open_site: OpenSite, new_storage: NewStorage
) -> None:
    """R52."""
    storage = with_dispatchers(new_storage(), 1, named="second")
    site = await open_site(one_task(), storage=storage, AVTOMATIKA_PARTITIONS="2")
    second = DispatcherService(DispatcherSettings(instance_id="second"), site.storage)
    turns = Turns(site)

    async with running(second), turns.at_work():
        await turns.take(300)

    counted = Counter(turns.taken)
    assert all(95 <= counted[name] <= 105 for name in ("w1", "w2", "w3")), counted
    assert min(turns.partitions[0], turns.partitions[1]) > 90  # both had their part in it
    in_a_row = sum(one == other for one, other in pairwise(turns.taken))
    assert in_a_row < 10  # one in six, were each fair for itself alone


async def test_round_robin_is_fair_across_restarts_whatever_workers_have_to_tell(
    open_site: OpenSite, new_storage: NewStorage
) -> None:
    """R52."""
    storage = with_dispatchers(new_storage(), 0, named="restarted")
    site = await open_site(one_task(), storage=storage)
    turns = Turns(site)

    async with turns.at_work():
        for _ in range(5):
            settings = DispatcherSettings(instance_id="restarted")
            async with running(DispatcherService(settings, site.storage)):
                await turns.take(11, talkative="w1")  # so the next one to come is another each time

    for number in range(0, len(turns.taken) - 3, 3):
        assert len(set(turns.taken[number : number + 3])) == 3, turns.taken


# --- R54: being alive, and being who one is


async def test_a_worker_that_only_polls_stays_and_gets_its_task(open_site: OpenSite) -> None:
    """R54."""
    ttl = 1.0
    site = await open_site(
        one_task(),
        WORKER_HEALTH_CHECK_INTERVAL_SECONDS=str(ttl / 2),
        WORKER_POLL_TIMEOUT_SECONDS="0.3",
    )
    clock = asyncio.get_running_loop()
    await site.door.register("w1")
    began = clock.time()

    while clock.time() < began + 2 * ttl:
        assert (await site.door.poll("w1")).status == 204
    assert await are_listed(site.door, {"w1"})
    job_id = await site.door.create()
    while (answer := await site.door.poll("w1")).status == 204:
        pass

    assert answer.json["job_id"] == job_id
    await done(site.door, answer.json, "w1")
    await finished(site.door, job_id)


async def test_a_live_id_from_another_host_is_not_taken_silently(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """R54."""
    await site.door.register("w1", capabilities={"hostname": "earlier-host"})
    await site.door.register("w2", capabilities={"hostname": "another-host"})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    await site.door.register("w1", capabilities={"hostname": "later-host"})

    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    told = str(record.__dict__)
    assert "earlier-host" in told
    assert "later-host" in told
    assert "'w1'" in told
    assert "another-host" not in told
