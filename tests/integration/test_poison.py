"""What no executor can handle ends its job as any other end does, and does not come again by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from avtomatika.context import ActionFactory
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.backend.ports import Delivery, StorageBackend, StoreOptions
from avtomatika_core.job import JobStatus
from avtomatika_executor import Settings
from tests.contract.breaking import Hands, MemoryHands, RedisHands
from tests.integration.blueprints import a_blueprint, dispatch, go_to, run
from tests.integration.conftest import NewStorage, OpenSite
from tests.integration.hooks import Hooks
from tests.integration.sites import Site
from tests.interop.door import Door
from tests.support import until

pytestmark = pytest.mark.integration

UNREADABLE = "An event of the job could not be read."


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be handled comes again at once."""
    usual = Settings.from_config

    def eager(config: Any) -> Settings:
        return replace(usual(config), again_seconds=0.01)

    monkeypatch.setattr(Settings, "from_config", eager)


class Poison:
    """While it works, executors cannot handle an event of jobs whose blueprint has this name."""

    def __init__(self, blueprint: str) -> None:
        self.works = True
        self.tries = 0
        self._blueprint = blueprint

    async def is_in(self, delivery: Delivery, storage: StorageBackend) -> bool:
        found = await storage.jobs.origin(delivery.job_id)
        taken = self.works and found is not None and found[0].blueprint == self._blueprint
        self.tries += taken
        return taken


def unreadable(storage: StorageBackend, poison: Poison) -> None:
    """As if a newer version had written it."""
    inbox = storage.inbox
    read = inbox.read

    async def garbled(*args: Any, **kwargs: Any) -> list[Delivery]:
        return [
            replace(one, event=None) if await poison.is_in(one, storage) else one
            for one in await read(*args, **kwargs)
        ]

    inbox.read = garbled  # type: ignore[method-assign]


def breaking(storage: StorageBackend, poison: Poison) -> None:
    """Whoever writes what they make of the job breaks."""
    commit = storage.jobs.commit

    async def broken(stored: Any, step: Any, delivery: Delivery, **kwargs: Any) -> Any:
        if kwargs.get("set_aside") is None and await poison.is_in(delivery, storage):
            raise ZeroDivisionError
        return await commit(stored, step, delivery, **kwargs)

    storage.jobs.commit = broken  # type: ignore[method-assign]


Spoil = Callable[[StorageBackend, Poison], None]


def spoiled(storage: StorageBackend, spoil: Spoil, poison: Poison) -> StorageBackend:
    """From the first read on."""
    original = storage.open

    async def opened(options: StoreOptions) -> None:
        await original(options)
        spoil(storage, poison)

    storage.open = opened  # type: ignore[method-assign]
    return storage


async def create(door: Door, blueprint: str, hooks: Hooks) -> str:
    body = {"initial_data": {}, "webhook_url": hooks.url}
    job_id: str = (await door.ask("POST", f"/jobs/{blueprint}", body)).json["job_id"]
    return job_id


async def the_dead_event(door: Door) -> dict[str, Any]:
    [dead] = (await door.ask("GET", "/admin/dead-events")).json
    found: dict[str, Any] = dead
    return found


async def replay(door: Door) -> None:
    dead = await the_dead_event(door)
    assert (await door.ask("POST", f"/admin/dead-events/{dead['id']}/replay")).status == 202


async def row_kinds(door: Door, job_id: str) -> list[str]:
    rows = (await door.ask("GET", f"/jobs/{job_id}/history")).json
    return [row["event_type"] for row in rows]


@pytest.mark.parametrize("spoil", [unreadable, breaking])
async def test_poison_has_a_webhook_and_a_history_and_counts_as_ended(
    open_site: OpenSite, new_storage: NewStorage, hooks: Hooks, tmp_path: Path, spoil: Spoil
) -> None:
    poison = Poison("b")
    storage = spoiled(new_storage(), spoil, poison)
    history = {"HISTORY_DATABASE_URI": f"sqlite:{tmp_path / 'history.db'}"}
    site = await open_site(a_blueprint("b", start=go_to("done")), storage=storage, **history)
    job_id = await create(site.door, "b", hooks)

    job = await site.door.ended(job_id)
    await until(site.is_idle, message="something is left")

    dead = await the_dead_event(site.door)
    assert (job["status"], dead["job_id"]) == ("quarantined", job_id)
    assert dead["reason"] == job["error_message"]
    assert poison.tries == 5
    assert [post["event"] for post in hooks.of(job_id)] == ["job_quarantined"]
    assert (await row_kinds(site.door, job_id)).count("job_completed") == 1
    assert site.ends == {job_id: 1}
    client = job["client_config"]["name"]
    for whose in (None, client):
        assert await site.storage.jobs.count_by_status(whose) == {JobStatus.QUARANTINED: 1}
    assert (await site.door.ask("GET", "/jobs/quarantined")).json


@pytest.mark.parametrize("spoil", [unreadable, breaking])
@pytest.mark.parametrize("way", ["redrive", "replay"])
async def test_a_job_that_was_poison_runs_again_when_somebody_says_so(
    open_site: OpenSite,
    new_storage: NewStorage,
    hooks: Hooks,
    tmp_path: Path,
    spoil: Spoil,
    way: str,
) -> None:
    """R62."""
    poison = Poison("b")
    storage = spoiled(new_storage(), spoil, poison)
    history = {"HISTORY_DATABASE_URI": f"sqlite:{tmp_path / 'history.db'}"}
    site = await open_site(a_blueprint("b", start=go_to("done")), storage=storage, **history)
    door = site.door
    job_id = await create(door, "b", hooks)
    await door.ended(job_id)
    poison.works = False

    if way == "redrive":
        assert (await door.ask("POST", f"/jobs/{job_id}/redrive")).status == 202
        assert (await door.ended(job_id))["status"] == "finished"
    await replay(door)  # late, after a redrive

    async def is_finished() -> bool:
        return (await door.document(job_id))["status"] == "finished"

    await until(is_finished)
    await until(site.is_idle, message="something is left")
    told = [post["event"] for post in hooks.of(job_id)]
    assert told == ["job_quarantined", "job_finished"]
    assert await site.storage.jobs.count_by_status() == {JobStatus.FINISHED: 1}
    assert await site.storage.jobs.quarantined() == []
    assert (await door.ask("GET", "/admin/dead-events")).json == []


async def told_to_stop(door: Door, *tasks: dict[str, Any]) -> None:
    """The worker is, by heartbeats, once that has reached its gateway: these tasks and no others."""
    expected = sorted(task["task_id"] for task in tasks)

    async def is_told() -> bool:
        return sorted((await door.heartbeat("w1")).json["cancel_task_ids"]) == expected

    await until(is_told, message="the worker goes on")


ON = {"success": "done", "failure": "broken"}


@pytest.mark.parametrize("spoil", [unreadable, breaking])
async def test_the_parent_of_poison_goes_on_by_its_failure(
    open_site: OpenSite, new_storage: NewStorage, spoil: Spoil
) -> None:
    poison = Poison("child")
    site = await open_site(
        a_blueprint("parent", ends=("done", "broken"), start=run("child", ON)),
        a_blueprint("child", start=go_to("done")),
        storage=spoiled(new_storage(), spoil, poison),
    )
    parent_id = await site.door.create("parent")

    parent = await site.door.ended(parent_id)

    assert (parent["status"], parent["current_state"]) == ("finished", "broken")
    child_id = (await the_dead_event(site.door))["job_id"]
    assert (await site.door.document(child_id))["parent_job_id"] == parent_id
    poison.works = False
    await replay(site.door)
    await until(lambda: site.ends[child_id] == 2, message="the replay does not run it")
    await until(site.is_idle, message="something is left")
    assert (await site.door.document(child_id))["status"] == "finished"
    assert site.ends == {parent_id: 1, child_id: 2}


def spread(actions: ActionFactory) -> None:
    actions.dispatch_parallel([{"type": "resize"}] * 3, aggregate_into="join")


def a_fan_out(name: str) -> Any:
    blueprint = a_blueprint(name, start=spread)
    blueprint.aggregator_for("join", targets=["done"])(go_to("done"))
    return blueprint


async def test_poison_of_a_branch_ends_the_fan_out_and_stops_the_others(
    open_site: OpenSite, new_storage: NewStorage
) -> None:
    poison = Poison("child")
    poison.works = False
    site = await open_site(
        a_blueprint("parent", ends=("done", "broken"), start=run("child", ON)),
        a_fan_out("child"),
        storage=spoiled(new_storage(), unreadable, poison),
    )
    door = site.door
    await door.register("w1")
    parent_id = await door.create("parent")
    tasks = [await door.task("w1") for _ in range(2)]
    poison.works = True

    await door.done(tasks[0], "w1")

    parent = await door.ended(parent_id)
    assert (parent["status"], parent["current_state"]) == ("finished", "broken")
    dead = await the_dead_event(door)
    assert (dead["job_id"], dead["reason"]) == (tasks[0]["job_id"], UNREADABLE)
    assert poison.tries == 5
    await until(site.is_idle, message="something is left")
    await told_to_stop(door, tasks[1])
    await site.holds("w1", 0)


# --- documents nobody can read


@pytest.fixture
async def hands_of(one_redis: Any) -> Any:
    clients: list[Redis] = []

    def hands(site: Site) -> Hands:
        if isinstance(site.storage, MemoryStorage):
            return MemoryHands(site.storage)
        clients.append(Redis.from_url(one_redis.url))
        return RedisHands(clients[-1])

    yield hands
    for client in clients:
        await client.aclose()


async def test_the_end_of_a_document_nobody_can_read_closes_what_it_waited_for(
    open_site: OpenSite, hands_of: Callable[[Site], Hands]
) -> None:
    """And its parent goes on."""
    site = await open_site(
        a_blueprint("parent", ends=("done", "broken"), start=run("child", ON)),
        a_fan_out("child"),
    )
    door = site.door
    await door.register("w1")
    parent_id = await door.create("parent")
    tasks = [await door.task("w1") for _ in range(2)]
    child_id = tasks[0]["job_id"]
    await hands_of(site).spoil_head(child_id)

    await door.cancel(child_id)

    parent = await door.ended(parent_id)
    assert (parent["status"], parent["current_state"]) == ("finished", "broken")
    assert (await door.document(child_id))["status"] == "quarantined"
    await until(site.is_idle, message="something is left")
    await told_to_stop(door, *tasks)
    await site.holds("w1", 0)


async def test_the_end_of_a_document_nobody_can_read_closes_its_task(
    open_site: OpenSite, hands_of: Callable[[Site], Hands]
) -> None:
    site = await open_site(a_blueprint("b", start=dispatch({"success": "done"})))
    door = site.door
    await door.register("w1")
    job_id = await door.create("b")
    task = await door.task("w1")
    await hands_of(site).spoil_head(task["job_id"])

    await door.cancel(job_id)

    assert (await door.ended(job_id))["status"] == "quarantined"
    await until(site.is_idle, message="something is left")
    await told_to_stop(door, task)
    await site.holds("w1", 0)
