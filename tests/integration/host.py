"""A whole orchestrator as the process of a host of its own: its uptime, and when it is to be killed.

`UPTIME_SECONDS` is what its monotonic clock says at the start, `CLOCK_AHEAD_SECONDS` how wrong its
time of day is. `DIES_AT` (`<operation> <number>
<before|after>`) names the operation of the store at which it is killed, as far as the job is
concerned whose initial data say so, too. Times are a fifth of the real ones.
"""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from avtomatika import OrchestratorEngine, RedisStorage, StateMachineBlueprint
from avtomatika.config import Config
from avtomatika.context import ActionFactory
from avtomatika_common import leadership
from avtomatika_common.backend.opening import open_redis
from avtomatika_common.backend.ports import Stored, StoreOptions
from avtomatika_common.backend.redis import liveness
from avtomatika_core.job import Job, JobId, TaskId
from avtomatika_executor import takeover
from tests.integration.blueprints import a_blueprint, dispatch

LIFETIME_SECONDS = 1.0


def scale_times() -> None:
    named: list[tuple[object, str, float]] = [
        (liveness, "_LIFETIME_MS", int(LIFETIME_SECONDS * 1000)),
        (liveness, "_PAUSE_SECONDS", 0.2),
        (takeover, "_LOOK_SECONDS", 0.2),
        (takeover, "_CALM_SECONDS", 1.0),
        (leadership, "LEASE_SECONDS", LIFETIME_SECONDS),
        (leadership, "RENEW_SECONDS", 0.3),
        (leadership, "STANDBY_SECONDS", 0.2),
    ]
    for module, name, value in named:
        setattr(module, name, value)


def boot(uptime_seconds: float, ahead_seconds: float) -> None:
    """The host has been up for so long, and its clock is that much ahead."""
    monotonic, time_of_day = time.monotonic, time.time  # noqa: TID251 - what the product asks
    started_at = monotonic()
    time.monotonic = lambda: monotonic() - started_at + uptime_seconds
    time.time = lambda: time_of_day() + ahead_seconds  # noqa: TID251


class Death:
    """Kills the process at the n-th call of one operation that is about one job."""

    def __init__(self, point: str) -> None:
        self._point = point
        self._operation, number, self._when = point.split()
        self._left = int(number)
        self._job_id = ""

    def to(self, storage: RedisStorage) -> None:
        jobs, board = storage.jobs, storage.board
        self._hook(jobs, "create", self._creates_it)
        self._hook(jobs, "commit", self._commits_it)
        self._hook(board, "lease", self._leases_it)
        self._hook(board, "end_lease", self._ends_its_lease)

    def _creates_it(self, job: Job, **_: object) -> bool:
        return self._is_it(job)

    def _commits_it(self, stored: Stored, *_: object, **__: object) -> bool:
        return self._is_it(stored.job)

    def _leases_it(self, _task_id: TaskId, job_id: JobId, *_: object, **__: object) -> bool:
        return job_id == self._job_id

    def _ends_its_lease(self, job_id: JobId, *_: object) -> bool:
        return job_id == self._job_id

    def _is_it(self, job: Job) -> bool:
        if job.initial_data.get("point") != self._point:
            return False
        self._job_id = job.id
        return True

    def _hook(self, port: object, name: str, is_about_it: Callable[..., bool]) -> None:
        original = getattr(port, name)

        async def hooked(*args: Any, **kwargs: Any) -> Any:
            counts = is_about_it(*args, **kwargs) and name == self._operation
            self._left -= counts
            dies = counts and self._left == 0
            if dies and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = await original(*args, **kwargs)
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        setattr(port, name, hooked)


def one_task() -> StateMachineBlueprint:
    """A task, then a step that notes that it was there."""

    def note(state_history: dict[str, Any], actions: ActionFactory) -> None:
        state_history.setdefault("notes", []).append("here")
        actions.transition_to("done")

    return a_blueprint("work", start=dispatch({"success": "then"}), then=note)


def nap() -> StateMachineBlueprint:
    def sleep(initial_data: dict[str, Any], actions: ActionFactory) -> None:
        actions.sleep(initial_data["seconds"], next_state="done")

    return a_blueprint("nap", start=sleep)


def main() -> None:
    config = Config()
    scale_times()
    given = os.environ  # noqa: TID251 - no settings of the product
    boot(float(given["UPTIME_SECONDS"]), float(given["CLOCK_AHEAD_SECONDS"]))
    storage = open_redis(config.service_redis_url())
    open_storage = storage.open

    async def opened(options: StoreOptions) -> None:
        await open_storage(options)
        if point := given.get("DIES_AT"):
            Death(point).to(storage)

    setattr(storage, "open", opened)  # noqa: B010 - as a test would
    engine = OrchestratorEngine(storage, config)
    for blueprint in (one_task(), nap()):
        engine.register_blueprint(blueprint)
    engine.run()


if __name__ == "__main__":
    main()
