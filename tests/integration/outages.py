"""A whole orchestrator at work while something happens to Redis: times, load, and what must come of it.

Times are a fraction of the real ones; their ratios are not.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from avtomatika import StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory
from avtomatika_common import leadership
from avtomatika_common.backend.ports import StorageBackend
from avtomatika_common.backend.redis import connection, hints, liveness, storage
from avtomatika_common.backend.redis.commands import Commands
from avtomatika_executor import takeover
from avtomatika_watcher import Settings as WatcherSettings
from tests.integration.sites import Site, a_site, persistently
from tests.interop.door import CLIENT_TOKEN, Door, result_of
from tests.support import until

LIFETIME_SECONDS = 1.0
"""Of liveness, of leases, of a worker's registration: nothing lives longer unless it is renewed."""
OUTAGE_SECONDS = 1.5
SETTINGS = {
    "WORKER_HEALTH_CHECK_INTERVAL_SECONDS": str(LIFETIME_SECONDS / 2),
    "WORKER_POLL_TIMEOUT_SECONDS": "0.5",
    "WATCHER_INTERVAL_SECONDS": "0.2",
    "RETRY_DELAY_SECONDS": "0.1",
    "SHUTDOWN_TIMEOUT_SECONDS": "1",
}


def scale_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the real ones."""
    monkeypatch.setattr(liveness, "_LIFETIME_MS", int(LIFETIME_SECONDS * 1000))
    monkeypatch.setattr(liveness, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(liveness, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(takeover, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(takeover, "_CALM_SECONDS", 1.0)
    monkeypatch.setattr(leadership, "LEASE_SECONDS", LIFETIME_SECONDS)
    monkeypatch.setattr(leadership, "RENEW_SECONDS", 0.3)
    monkeypatch.setattr(leadership, "STANDBY_SECONDS", 0.2)
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(hints, "_BLOCK_SECONDS", 1.0)
    usual = WatcherSettings.from_config

    def eager(config: Config) -> WatcherSettings:
        """The reconciler looks at everything all the time."""
        return replace(usual(config), pause_seconds=0.01, lap_seconds=0.1, quiet_seconds=0.0)

    monkeypatch.setattr(WatcherSettings, "from_config", eager)
    quick = partial(Commands, answer_seconds=0.5, give_up_seconds=1.0)
    monkeypatch.setattr(storage, "Commands", quick)


def the_work() -> StateMachineBlueprint:
    """A step, a task, two branches, the end."""
    blueprint = StateMachineBlueprint("work", api_version="v1", api_endpoint="/jobs/work")

    @blueprint.handler_for("start", is_start=True)
    async def start(actions: ActionFactory) -> None:
        actions.transition_to("task")

    @blueprint.handler_for("task")
    async def task(actions: ActionFactory) -> None:
        actions.dispatch_task("resize", {}, {"success": "spread"})

    @blueprint.handler_for("spread")
    async def spread(actions: ActionFactory) -> None:
        actions.dispatch_parallel([{"type": "resize"}] * 2, aggregate_into="join")

    @blueprint.aggregator_for("join")
    async def join(
        aggregation_results: dict[str, Any], state_history: dict[str, Any], actions: ActionFactory
    ) -> None:
        state_history["joined"] = len(aggregation_results)
        actions.transition_to("end")

    @blueprint.handler_for("end", is_end=True)
    async def end(job_id: str) -> None:
        pass

    return blueprint


class Load:
    """A client that makes jobs, and workers that do their tasks, through whatever happens."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.accepted: list[str] = []
        self.results = 0
        self.told: Counter[str] = Counter()
        """Results of each job that were acknowledged."""

    async def make_jobs(self) -> None:
        number = 0
        while True:
            number += 1
            headers = {"X-Client-Token": CLIENT_TOKEN, "Idempotency-Key": f"job-{number}"}
            ask = partial(
                self._door.call,
                "POST",
                "/api/v1/jobs/work",
                {"initial_data": {"n": number}},
                token=None,
                headers=headers,
            )
            answer = await persistently(ask)
            assert answer.status == 202, answer
            self.accepted.append(answer.json["job_id"])
            await asyncio.sleep(0.02)

    async def work(self, worker_id: str) -> None:
        registration = {"worker_id": worker_id, "supported_tasks": ["resize"]}
        await persistently(
            partial(self._door.call, "POST", "/_worker/workers/register", registration)
        )
        while True:
            answer = await persistently(partial(self._door.poll, worker_id))
            if answer.status == 404:
                await persistently(
                    partial(self._door.call, "POST", "/_worker/workers/register", registration)
                )
            if answer.status != 200:
                continue
            told = await persistently(partial(self._door.result, result_of(answer.json, worker_id)))
            assert told.status == 200, told
            self.results += 1
            self.told[answer.json["job_id"]] += told.json["status"] != "ignored"


@asynccontextmanager
async def a_loaded_site(
    storage: StorageBackend,
    *blueprints: StateMachineBlueprint,
    fails_over: bool = False,
    **settings: str,
) -> AsyncGenerator[tuple[Site, Load], None]:
    """An orchestrator on this storage, with jobs and workers until the block ends and all are done.

    A storage that fails over may have forgotten a step that was told already: its end is told again
    then, and there may be something to mend.
    """
    async with (
        a_site(storage, [the_work(), *blueprints], **SETTINGS, **settings) as site,
        asyncio.TaskGroup() as group,
    ):
        load = Load(site.door)
        makes = group.create_task(load.make_jobs())
        workers = [group.create_task(load.work(f"w{number}")) for number in range(3)]
        await until(lambda: load.results > 10, 10.0)
        yield site, load
        makes.cancel()
        try:
            await all_ended(site, load)
            if not fails_over:
                assert {site.ends[job_id] for job_id in load.accepted} == {1}
                assert await storage.inspection.mended() == {}
        finally:
            for worker in workers:
                worker.cancel()


async def all_ended(site: Site, load: Load) -> None:
    """Every job that was accepted has ended well, of steps that count once."""
    door = site.door
    for job_id in load.accepted:

        async def has_ended(job_id: str = job_id) -> bool:
            answer = await persistently(partial(door.ask, "GET", f"/jobs/{job_id}"))
            assert answer.status == 200, f"{job_id} was accepted and is lost: {answer}"
            return bool(answer.json["status"] == "finished")

        await until(has_ended, 10.0, f"{job_id} did not end")
    assert len(set(load.accepted)) == len(load.accepted)
    await until(lambda: all(site.ends[job_id] for job_id in load.accepted))
    for job_id in load.accepted:
        document = await door.document(job_id)
        assert document["state_history"] == {"joined": 2}
        assert document["transition_count"] == 4


async def goes_on(load: Load) -> None:
    """New jobs are accepted and tasks done again."""
    accepted, results = len(load.accepted), load.results
    await until(
        lambda: len(load.accepted) > accepted + 3 and load.results > results + 3,
        10.0,
        "it does not go on",
    )
