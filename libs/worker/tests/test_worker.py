"""The worker against scripted orchestrators."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from avtomatika_worker import Worker
from avtomatika_worker.config import WorkerConfig
from rxon import (
    Heartbeat,
    HeartbeatAnswer,
    ResultAnswer,
    ResultBatchAnswer,
    RxonError,
    RxonNetworkError,
    TaskError,
    TaskPayload,
    TaskResult,
    TokenResponse,
    WorkerRegistration,
)
from rxon.exceptions import RequestRefused, RxonAuthError
from rxon.testing import MockTransport

SETTINGS = {
    "WORKER_ID": "w",
    "WORKER_TOKEN": "secret",
    "HEARTBEAT_INTERVAL": "0.02",
    "WORKER_HEARTBEAT_DEBOUNCE_DELAY": "0",
    "TASK_POLL_ERROR_DELAY": "0.01",
    "RESULT_RETRY_INITIAL_DELAY": "0.001",
    "IDLE_POLL_DELAY": "0.001",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For the files of tasks and for results that could not be sent."""
    monkeypatch.setitem(SETTINGS, "TASK_FILES_DIR", str(tmp_path))
    return tmp_path


class Scripted(MockTransport):
    """An orchestrator that first raises what was put in for each call."""

    def __init__(self) -> None:
        super().__init__("w", "secret")
        self.register_errors: list[RxonError] = []
        self.poll_errors: list[RxonError] = []
        self.heartbeat_errors: list[RxonError] = []
        self.result_errors: list[RxonError] = []
        self.cancelled: tuple[str, ...] = ()
        self.polled_at: list[float] = []
        self.result_attempts = 0
        self.batches: list[int] = []
        self.knows_no_batches = False
        self.can_be_left = True

    async def leave(self) -> None:
        if not self.can_be_left:
            raise refused(404)
        await super().leave()

    @property
    def polls(self) -> int:
        return len(self.polled_at)

    async def register(self, registration: WorkerRegistration) -> None:
        if self.register_errors:
            raise self.register_errors.pop(0)
        await super().register(registration)

    async def poll_task(self, timeout_seconds: float) -> TaskPayload | None:
        self.polled_at.append(asyncio.get_running_loop().time())
        if self.poll_errors:
            raise self.poll_errors.pop(0)
        return await super().poll_task(timeout_seconds)

    async def send_heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        if self.heartbeat_errors:
            raise self.heartbeat_errors.pop(0)
        await super().send_heartbeat(heartbeat)
        return HeartbeatAnswer(cancel_task_ids=self.cancelled)

    async def send_result(self, result: TaskResult) -> ResultAnswer:
        self.result_attempts += 1
        if self.result_errors:
            raise self.result_errors.pop(0)
        return await super().send_result(result)

    async def send_results(
        self, results: Sequence[TaskResult], most: int | None = None
    ) -> ResultBatchAnswer:
        self.batches.append(len(results))
        if self.knows_no_batches:
            raise refused(405)
        self.result_attempts += len(results)
        if self.result_errors:
            raise self.result_errors.pop(0)
        return await super().send_results(results, most)


def refused(status: int, retry_after: float | None = None) -> RequestRefused:
    return RequestRefused("refused", status=status, body="", retry_after=retry_after)


def a_task(task_id: str = "t-1", name: str = "work") -> TaskPayload:
    return TaskPayload(job_id="j-1", task_id=task_id, type=name, params={"n": 1})


def a_config(**changes: float | str) -> WorkerConfig:
    config = WorkerConfig(SETTINGS)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def a_worker(*orchestrators: MockTransport, config: WorkerConfig | None = None) -> Worker:
    """Its orchestrators are called a, b, c in the order in which they fail over."""
    return Worker(
        config=config or a_config(),
        clients=[
            ({"url": name}, transport)
            for name, transport in zip("abc", orchestrators, strict=False)
        ],
    )


@asynccontextmanager
async def working(worker: Worker) -> AsyncGenerator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.main())
        try:
            yield
        finally:
            worker.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


def result(
    status: str, data: dict[str, object] | None = None, error: TaskError | None = None
) -> TaskResult:
    return TaskResult(
        job_id="j-1", task_id="t-1", worker_id="w", status=status, data=data, error=error
    )


async def test_a_task_is_run_and_its_result_sent() -> None:
    transport = Scripted()
    worker = a_worker(transport)

    @worker.task("work")
    async def work(params: dict[str, int]) -> dict[str, int]:
        return {"doubled": params["n"] * 2}

    async with working(worker):
        transport.push_task(a_task())
        await until(lambda: transport.results)

    assert transport.results == [result("success", {"doubled": 2})]
    assert not transport.connected


async def test_an_unknown_task_fails_for_good() -> None:
    transport = Scripted()

    async with working(a_worker(transport)):
        transport.push_task(a_task(name="nobody-knows"))
        await until(lambda: transport.results)

    assert transport.results[0].error == TaskError(
        code="PERMANENT_ERROR", message="Unsupported task: nobody-knows"
    )


async def test_the_registration_says_who_comes_and_what_it_can() -> None:
    transport = Scripted()
    config = a_config(HOSTNAME="h", IP_ADDRESS="10.0.0.1")
    config.COST_PER_SECOND = 0.5
    worker = Worker("gpu", 2, config=config, clients=[({"url": "a"}, transport)])
    worker.task("work")(lambda: None)

    async with working(worker):
        await until(lambda: transport.registered)

    registration = transport.registered[0]
    assert (registration.worker_id, registration.worker_type) == ("w", "gpu")
    assert registration.supported_tasks == ("work",)
    assert registration.resources.max_concurrent_tasks == 2
    assert registration.resources.cpu_cores == 4
    assert registration.capabilities.hostname == "h"
    assert registration.cost_per_second == 0.5


def test_a_worker_without_a_name_takes_the_one_its_transports_are_made_for() -> None:
    nameless = {name: value for name, value in SETTINGS.items() if name != "WORKER_ID"}

    taken = Worker(
        config=WorkerConfig(nameless), clients=[({"url": "a"}, MockTransport("w1", "secret"))]
    )
    kept = Worker(config=a_config(), clients=[({"url": "a"}, MockTransport("w1", "secret"))])
    drawn = Worker(
        config=WorkerConfig(nameless),
        clients=[({"url": name}, MockTransport(name, "secret")) for name in ("a", "b")],
    )

    assert (taken.worker_id, kept.worker_id) == ("w1", "w")
    assert drawn.worker_id.startswith("worker-")


async def test_nobody_is_warned_of_a_token_that_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenless = {name: value for name, value in SETTINGS.items() if name != "WORKER_TOKEN"}

    async with working(a_worker(Scripted(), config=WorkerConfig(tokenless))):
        pass

    assert "WORKER_TOKEN" not in caplog.text


async def test_a_registration_that_fails_is_tried_again_and_says_what_to_do(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transport = Scripted()
    transport.register_errors = [
        RxonNetworkError("away"),
        RxonAuthError("no"),
        refused(404),
        refused(409),
    ]

    async with working(a_worker(transport)):
        await until(lambda: transport.registered)

    assert transport.register_errors == []
    failed = [vars(one) for one in caplog.records if one.message == "registration failed"]
    assert [one.get("hint") for one in failed] == [
        "check that it runs, and its URL",
        "set WORKER_TOKEN to a token this orchestrator knows",
        "no orchestrator takes workers there: check its URL",
        None,
    ]


async def test_a_worker_says_who_it_is_before_anybody_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    worker = a_worker(Scripted())
    worker.task("resize")(lambda: None)

    async with working(worker), working(a_worker(Scripted())):
        pass

    started, idle = (vars(one) for one in caplog.records if one.message == "started")
    assert (started["worker_id"], started["tasks"], started["places"]) == ("w", "resize", 10)
    assert (idle["tasks"], idle["orchestrators"]) == ("", "a")
    assert caplog.text.count("no tasks are registered") == 1


@pytest.mark.parametrize("call", ["poll_errors", "heartbeat_errors"])
async def test_a_worker_that_is_not_known_any_more_registers_again(call: str) -> None:
    """R38."""
    transport = Scripted()
    worker = a_worker(transport)
    worker.task("work")(lambda: None)

    async with working(worker):
        await until(lambda: transport.polls and transport.heartbeats)
        getattr(transport, call).append(refused(404))
        transport.push_task(a_task())  # ends the open poll, so that the next one fails
        await until(lambda: len(transport.registered) == 2)
        transport.push_task(a_task("t-2"))
        await until(lambda: len(transport.results) == 2)


async def test_a_worker_that_registers_again_asks_again() -> None:
    """R38. Nobody knows of the poll from before."""
    transport = Scripted()
    worker = a_worker(transport)
    worker.task("work")(lambda: None)

    async with working(worker):
        await until(lambda: transport.polls and transport.heartbeats)
        polls = transport.polls
        transport.heartbeat_errors.append(refused(404))
        await until(lambda: len(transport.registered) == 2)
        await until(lambda: transport.polls > polls)


async def test_a_heartbeat_that_fails_does_not_register_again() -> None:
    transport = Scripted()
    transport.heartbeat_errors = [RxonNetworkError("away"), refused(500)]

    async with working(a_worker(transport)):
        await until(lambda: transport.heartbeats)

    assert len(transport.registered) == 1


async def test_a_poll_that_fails_waits_as_long_as_it_was_told() -> None:
    transport = Scripted()
    transport.poll_errors = [refused(429, retry_after=0.2)]

    async with working(a_worker(transport, config=a_config(TASK_POLL_ERROR_DELAY=60))):
        await until(lambda: transport.polls == 2)

    first, second = transport.polled_at
    assert second - first >= 0.2


@pytest.mark.parametrize(
    "error", [RxonNetworkError("away"), refused(503), refused(500), refused(429)]
)
async def test_a_result_is_repeated_while_that_can_help(error: RxonError) -> None:
    transport = Scripted()
    transport.result_errors = [error, error]
    worker = a_worker(transport)
    worker.task("work")(lambda: None)

    async with working(worker):
        transport.push_task(a_task())
        await until(lambda: transport.results)

    assert transport.result_attempts == 3


async def test_a_result_that_will_never_be_taken_is_given_up_and_the_place_is_free() -> None:
    transport = Scripted()
    transport.result_errors = [refused(400), refused(400)]  # of the batch, and of the result
    worker = a_worker(transport, config=a_config(MAX_CONCURRENT_TASKS=1))
    worker.task("work")(lambda: None)

    async with working(worker):
        transport.push_task(a_task())
        await until(lambda: transport.result_attempts == 2 and transport.polls == 2)

    assert transport.results == []


async def test_there_are_never_more_tasks_than_places() -> None:
    transport = Scripted()
    worker = a_worker(transport, config=a_config(MAX_CONCURRENT_TASKS=2))
    go_on = asyncio.Event()
    running = 0

    @worker.task("work")
    async def work() -> None:
        nonlocal running
        running += 1
        await go_on.wait()

    async with working(worker):
        for number in range(3):
            transport.push_task(a_task(f"t-{number}"))
        await until(lambda: transport.heartbeats and transport.heartbeats[-1].status == "busy")
        heartbeat = transport.heartbeats[-1]
        assert (running, transport.polls) == (2, 1)
        go_on.set()
        await until(lambda: len(transport.results) == 3)
        await until(lambda: transport.heartbeats[-1].status == "idle")

    assert heartbeat.load == 2.0
    assert heartbeat.current_tasks == ("t-0", "t-1")
    assert heartbeat.supported_tasks == ()


async def test_a_class_of_tasks_keeps_its_limit_even_if_too_many_come() -> None:
    transport = Scripted()
    worker = Worker(
        task_type_limits={"gpu": 1}, config=a_config(), clients=[({"url": "a"}, transport)]
    )
    most = running = 0

    @worker.task("work", task_type="gpu")
    async def work() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with working(worker):
        for number in range(5):
            transport.push_task(a_task(f"t-{number}"))
        await until(lambda: len(transport.results) == 5)

    assert most == 1


async def test_a_task_that_comes_twice_runs_once() -> None:
    transport = Scripted()
    worker = a_worker(transport)
    go_on = asyncio.Event()
    started: list[str] = []

    @worker.task("work")
    async def work(task_id: str) -> None:
        started.append(task_id)
        await go_on.wait()

    async with working(worker):
        transport.push_task(a_task())
        transport.push_task(a_task())
        await until(lambda: transport.polls == 2)
        go_on.set()
        await until(lambda: transport.results)

    assert started == ["t-1"]
    assert len(transport.results) == 1


async def test_a_task_nobody_wants_is_cancelled() -> None:
    transport = Scripted()
    worker = a_worker(transport)
    cleaned_up = False
    started = asyncio.Event()

    @worker.task("work")
    async def work() -> None:
        nonlocal cleaned_up
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # several heartbeats repeat the order meanwhile
            cleaned_up = True

    async with working(worker):
        transport.push_task(a_task())
        await started.wait()
        transport.cancelled = ("t-1", "of-somebody-else")
        await until(lambda: transport.results)

    assert transport.results == [result("cancelled")]
    assert cleaned_up


async def test_a_thread_sees_that_its_task_is_not_wanted() -> None:
    transport = Scripted()
    worker = a_worker(transport)

    started = threading.Event()

    @worker.task("work")
    def work(task_id: str) -> dict[str, object]:
        started.set()
        unwanted = False
        for _ in range(5000):
            unwanted = asyncio.run(worker.check_for_cancellation(task_id))
            if unwanted:
                break
            threading.Event().wait(0.001)
        return {"status": "cancelled", "data": {"saw_it": unwanted}}

    async with working(worker):
        transport.push_task(a_task())
        await until(started.is_set)
        transport.cancelled = ("t-1",)
        await until(lambda: transport.results)

    assert transport.results == [result("cancelled", {"saw_it": True})]
    assert not await worker.check_for_cancellation("t-1")


async def test_a_worker_that_stops_finishes_what_is_in_hand() -> None:
    transport = Scripted()
    worker = a_worker(transport)
    go_on = asyncio.Event()

    @worker.task("work")
    async def work() -> dict[str, str]:
        await go_on.wait()
        return {"done": "yes"}

    async with working(worker):
        transport.push_task(a_task())
        await until(lambda: transport.heartbeats and transport.heartbeats[-1].load == 1)
        worker.stop()
        await until(lambda: transport.heartbeats[-1].status == "draining")
        polls = transport.polls
        seen = len(transport.heartbeats)
        await until(lambda: len(transport.heartbeats) > seen + 1)  # it stays alive meanwhile
        transport.push_task(a_task("t-2"))  # its poll is closed: nobody takes this one
        go_on.set()

    assert transport.results == [result("success", {"done": "yes"})]
    assert transport.polls == polls
    assert {heartbeat.status for heartbeat in transport.heartbeats[seen:]} == {"draining"}


@pytest.mark.parametrize("can_be_left", [True, False])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_task_that_does_not_end_in_time_is_left_to_another_worker(
    in_thread: bool, can_be_left: bool
) -> None:
    transport = Scripted()
    transport.can_be_left = can_be_left
    worker = a_worker(transport, config=a_config(SHUTDOWN_TIMEOUT=0.02))
    go_on = threading.Event()
    started = False

    async def never() -> None:
        nonlocal started
        started = True
        await asyncio.Event().wait()

    def too_long() -> None:
        nonlocal started
        started = True
        go_on.wait()

    worker.task("work")(too_long if in_thread else never)

    async with working(worker):
        transport.push_task(a_task())
        await until(lambda: started)
    go_on.set()

    stopped = TaskError(code="TRANSIENT_ERROR", message="The worker stopped before the task ended.")
    assert transport.has_left == can_be_left
    assert transport.results == ([] if can_be_left else [result("failure", error=stopped)])


async def test_the_hot_cache_is_told_at_once() -> None:
    transport = Scripted()
    worker = Worker(
        skill_dependencies={"work": ["llama"], "draw": ["sd"]},
        config=a_config(HEARTBEAT_INTERVAL=60),
        clients=[({"url": "a"}, transport)],
    )

    @worker.task("work")
    def work(add_to_hot_cache: Callable[[str], None]) -> None:
        add_to_hot_cache("llama")

    async with working(worker):
        transport.push_task(a_task())
        await until(lambda: transport.heartbeats and transport.heartbeats[-1].hot_cache)
        heartbeat = transport.heartbeats[-1]
        worker.remove_from_hot_cache("llama")
        await until(lambda: not transport.heartbeats[-1].hot_cache)

    assert heartbeat.hot_cache == ("llama",)
    assert heartbeat.hot_skills == ("work",)
    assert heartbeat.skill_dependencies == {"work": ("llama",), "draw": ("sd",)}
    assert worker.get_hot_cache() == set()


async def test_tasks_without_capacity_are_not_advertised() -> None:
    transport = Scripted()

    def has_room(task_name: str) -> bool:
        if task_name == "broken":
            raise ValueError("no idea")
        return task_name != "work"

    worker = Worker(
        capacity_checker=has_room, config=a_config(), clients=[({"url": "a"}, transport)]
    )
    for name in ("work", "rest", "broken"):
        worker.task(name)(lambda: None)

    async with working(worker):
        await until(lambda: transport.heartbeats)

    assert transport.heartbeats[0].supported_tasks == ("rest",)


async def test_the_second_orchestrator_is_asked_only_while_the_first_fails() -> None:
    first, second = Scripted(), Scripted()
    first.poll_errors = [RxonNetworkError("away")] * 10_000
    worker = a_worker(first, second, config=a_config(TASK_POLL_TIMEOUT=0.05))
    worker.task("work")(lambda: None)

    async with working(worker):
        second.push_task(a_task("t-2"))
        await until(lambda: second.results)
        first.poll_errors.clear()
        failed = first.polls
        await until(lambda: first.polls > failed)
        asked = second.polls
        first.push_task(a_task("t-1"))
        await until(lambda: first.results and first.polls > failed + 2)

    assert [one.task_id for one in second.results] == ["t-2"]
    assert [one.task_id for one in first.results] == ["t-1"]
    assert second.polls == asked


async def test_after_a_failed_poll_the_next_orchestrator_is_asked_at_once() -> None:
    first, second = Scripted(), Scripted()
    first.poll_errors = [RxonNetworkError("away")] * 1000
    worker = a_worker(first, second, config=a_config(IDLE_POLL_DELAY=60.0))

    async with working(worker):
        await until(lambda: second.polls)


async def test_a_task_that_is_cancelled_before_it_could_start_never_runs() -> None:
    transport = Scripted()
    worker = Worker(
        task_type_limits={"gpu": 1}, config=a_config(), clients=[({"url": "a"}, transport)]
    )
    go_on = asyncio.Event()
    started: list[str] = []

    @worker.task("work", task_type="gpu")
    async def work(task_id: str) -> None:
        started.append(task_id)
        await go_on.wait()

    async with working(worker):
        transport.push_task(a_task("t-0"))
        transport.push_task(a_task("t-1"))
        await until(lambda: transport.heartbeats and transport.heartbeats[-1].load == 2)
        transport.cancelled = ("t-1",)
        await until(lambda: transport.results)
        go_on.set()

    assert transport.results[0] == result("cancelled")
    assert started == ["t-0"]


async def test_round_robin_asks_in_turn() -> None:
    first, second = Scripted(), Scripted()
    config = a_config(MULTI_ORCHESTRATOR_MODE="ROUND_ROBIN", TASK_POLL_TIMEOUT=0.005)

    async with working(a_worker(first, second, config=config)):
        await until(lambda: first.polls + second.polls >= 20)

    assert abs(first.polls - second.polls) <= 2


async def test_in_turn_a_task_does_not_wait_for_the_poll_at_another_orchestrator() -> None:
    first, second = Scripted(), Scripted()
    config = a_config(MULTI_ORCHESTRATOR_MODE="ROUND_ROBIN", TASK_POLL_TIMEOUT=60.0)
    worker = a_worker(first, second, config=config)
    worker.task("work")(lambda: None)

    async with working(worker):
        await until(lambda: first.polls and second.polls)
        for orchestrator in (second, first):
            for number in range(3):
                orchestrator.push_task(a_task(f"t-{number}"))
                await until(lambda one=orchestrator, done=number: len(one.results) > done)


async def test_a_worker_with_wrong_settings_does_not_start() -> None:
    with pytest.raises(ValueError, match="No orchestrators configured"):
        await a_worker(config=_without_orchestrators()).main()


def _without_orchestrators() -> WorkerConfig:
    config = a_config()
    config.ORCHESTRATORS = []
    return config


async def test_sigterm_stops_a_worker_that_runs_alone() -> None:
    transport = Scripted()

    async with working(a_worker(transport)):
        await until(lambda: transport.heartbeats)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: not transport.connected)

    assert transport.heartbeats[-1].status == "draining"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_an_application_keeps_its_own_signal_handlers() -> None:
    transport = Scripted()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    try:
        async with working(a_worker(transport)):
            await until(lambda: transport.heartbeats)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await told.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_worker_with_a_certificate_keeps_its_access_token_fresh(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = folder / "w.crt"
    certificate.write_text("nobody reads it: the transports are given")

    class Issuing(Scripted):
        renewals = 0

        async def refresh_token(self) -> TokenResponse:
            self.renewals += 1
            if self.renewals == 1:
                raise RxonAuthError("not yet")
            return TokenResponse(access_token="a", expires_in=0.02, worker_id="w")

    for name in ("FIRST_TOKEN_SECONDS", "TOKEN_PAUSE_SECONDS"):
        monkeypatch.setattr(f"avtomatika_worker.link.{name}", 0.001)
    with_certificate, without = Issuing(), Issuing()

    async with (
        working(a_worker(with_certificate, config=a_config(TLS_CERT_PATH=str(certificate)))),
        working(a_worker(without)),
    ):
        await until(lambda: with_certificate.renewals == 4)

    assert without.renewals == 0


@pytest.mark.parametrize("set_up", [False, True])
async def test_a_setting_without_effect_is_said(
    set_up: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = a_config(S3_ENDPOINT_URL="http://s3" if set_up else "", ENABLE_WEBSOCKETS=True)

    async with working(a_worker(Scripted(), config=config)):
        pass

    without_effect = [
        vars(record)["setting"]
        for record in caplog.records
        if record.message == "setting has no effect in this version"
    ]
    assert without_effect == (["S3_ENDPOINT_URL"] if set_up else [])


async def test_what_may_be_misspelt_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = a_config(MULTI_ORCHESTRATOR_MODE="round robin")
    config.ORCHESTRATORS = [{"url": "http://o", "prio": 1}]

    async with working(a_worker(Scripted(), config=config)):
        pass

    said = {record.message: vars(record) for record in caplog.records}
    assert said["unknown mode counts as FAILOVER"]["value"] == "round robin"
    assert said["keys without effect"]["keys"] == ["prio"]


def test_a_worker_has_at_least_one_place() -> None:
    with pytest.raises(ValueError, match="max_concurrent_tasks must be at least 1"):
        Worker(max_concurrent_tasks=0)


def test_a_task_has_a_name_of_its_own() -> None:
    worker = a_worker()
    worker.task("work")(lambda: None)

    with pytest.raises(ValueError, match="Task 'work' is already registered"):
        worker.task("work")
    with pytest.raises(ValueError, match="Invalid task name: 'a b'"):
        worker.task("a b")
