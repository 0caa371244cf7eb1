"""The whole suite as processes over a Redis that keeps its data: killed ones are started again."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from tests.chaos.links import Link, a_link
from tests.chaos.marks import VARIABLE
from tests.servers import RedisServer, free_port, free_ports, redis_answers, redis_binaries

ROOT: Final = Path(__file__).parents[2]
SCHEDULE_SECONDS: Final = 2
SCHEDULES: Final = f"""
[tick]
blueprint = "ticks"
interval_seconds = {SCHEDULE_SECONDS}
misfire = "catch_up"
catch_up_limit = 1000
initial_data = {{key = "tick"}}
"""
SERVICES: Final[Mapping[str, int]] = {
    "executor": 3,
    "gateway": 2,
    "dispatcher": 2,
    "watcher": 2,
    "scheduler": 2,
    "history": 1,  # of one SQLite file
    "notifier": 2,
}
WORKERS: Final = 3
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.05
_LOST_REDIS: Final = "avtomatika: Redis"
_SERVES: Final = '"serving"'


class Member:
    """A place in the suite, and the process that has it now."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.log = log
        self.starts = 0
        self.complaints: list[str] = []
        """What a process did that none should."""
        self.next_environment: dict[str, str] = {}
        """What only the next process has in its environment; it may end when it likes."""
        self._command = command
        self._environment = environment
        self._popen: subprocess.Popen[bytes] | None = None
        self._start_at = 0.0
        self._may_end = False
        self._asked_at: float | None = None
        self._offset = 0

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen is not None

    def start(self) -> None:
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        environment = {**self._environment, **self.next_environment}
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                self._command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
        self.starts += 1
        self._may_end = bool(self.next_environment)
        self.next_environment = {}
        self._asked_at = None

    def look(self, now: float, *, restart: bool) -> None:
        """Note that it has ended; start it again when it is time."""
        if self._popen is not None:
            code = self._popen.poll()
            if code is not None:
                self._note_end(code)
                self._popen = None
            elif self._asked_at is not None and now - self._asked_at > STOP_SECONDS:
                self.complaints.append(f"{self.name} did not stop in {STOP_SECONDS:g} s")
                self._asked_at = None
                self._popen.kill()
        if self._popen is None and restart and now >= self._start_at:
            self.start()

    def _note_end(self, code: int) -> None:
        if self._asked_at is not None:
            if code != 0 and not self._start_was_cut(code) and not self._could_not_start():
                self.complaints.append(f"{self.name} was asked to stop and exited with {code}")
        elif not self._may_end:
            if not self._could_not_start():
                said = self.said_since_start()[-1000:]
                self.complaints.append(f"{self.name} ended by itself with {code}:\n{said}")
            self._start_at = time.monotonic() + 0.5

    def _start_was_cut(self, code: int) -> bool:
        """It was told to stop before it could hear of it."""
        return code == -signal.SIGTERM and _SERVES not in self.said_since_start()

    def _could_not_start(self) -> bool:
        """Redis was away; it says so in one line."""
        said = self.said_since_start()
        return _SERVES not in said and _LOST_REDIS in said

    def said_since_start(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._offset)
            return log.read().decode(errors="replace")

    def kill(self, down_seconds: float) -> None:
        self._may_end, self._asked_at = True, None
        self._start_at = time.monotonic() + down_seconds
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        self._may_end = True
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        self._start_at = 0.0
        self._send(signal.SIGTERM)

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self._popen is not None:
            with suppress(ProcessLookupError):
                os.kill(self._popen.pid, number)

    def end(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None


class Suite:
    def __init__(self, directory: Path, redis: RedisServer) -> None:
        self.directory = directory
        self.redis = redis
        self.members: dict[str, Member] = {}
        self.links: dict[str, Link] = {}
        self.retired: set[str] = set()
        """Members that are not to be started again."""
        self.redis_is_down = False

    @property
    def marks(self) -> Path:
        return self.directory / "marks"

    @property
    def door(self) -> str:
        return f"http://127.0.0.1:{self.links['clients'].port}"

    def of_kind(self, *kinds: str) -> list[Member]:
        return [member for member in self.members.values() if member.kind in kinds]

    async def supervise(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_LOOK_SECONDS)

    def _look(self) -> None:
        now = time.monotonic()
        for member in self.members.values():
            restart = member.name not in self.retired and not self.redis_is_down
            member.look(now, restart=restart)

    async def retire(self, members: Sequence[Member]) -> None:
        """End these for good, as their operator would."""
        for member in members:
            self.retired.add(member.name)
            member.terminate()
        deadline = time.monotonic() + STOP_SECONDS + 5
        while any(member.is_running for member in members) and time.monotonic() < deadline:  # noqa: ASYNC110 - a process tells nobody when it ends
            await asyncio.sleep(_LOOK_SECONDS)

    async def restart_redis(self, down_seconds: float) -> None:
        self.redis.kill()
        self.redis_is_down = True
        await asyncio.sleep(down_seconds)
        await asyncio.to_thread(self.redis.start)
        await asyncio.to_thread(self._until_loaded)
        self.redis_is_down = False

    def _until_loaded(self) -> None:
        deadline = time.monotonic() + 30
        while not redis_answers(self.redis.port, "PING", "+PONG"):
            assert time.monotonic() < deadline, "Redis does not come back"
            time.sleep(0.02)

    def log_lines(self) -> list[tuple[str, str]]:
        """Member and line, of all that was logged."""
        return [
            (member.name, line)
            for member in self.members.values()
            if member.log.exists()
            for line in member.log.read_text(errors="replace").splitlines()
        ]


def aof_redis(directory: Path) -> RedisServer:
    """A server that loses nothing when only its process ends.

    With `everysec` it may: what it has answered while a sync takes its time is not in the file yet.
    """
    binary = max(redis_binaries().items())[1]
    port = free_port()
    options = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), *options]
    directory.mkdir()
    return RedisServer(command, directory, port)


@asynccontextmanager
async def a_suite(
    directory: Path,
    *,
    retention_seconds: float,
    services: Mapping[str, int] = SERVICES,
    workers: int = WORKERS,
    has_raw_workers: bool = True,
    entry_point: str = "",
) -> AsyncGenerator[Suite, None]:
    """Everything is started, and ended when the block is left.

    `entry_point`: a module that is given a service's name, instead of the service's own.
    """
    redis = aof_redis(directory / "redis")
    suite = Suite(directory, redis)
    for name in ("marks", "logs"):
        (directory / name).mkdir()
    (directory / "schedules.toml").write_text(SCHEDULES)
    async with AsyncExitStack() as stack:
        stack.callback(redis.kill)
        redis.start()
        doors = free_ports(services["gateway"])
        for name in ("clients", "workers"):
            suite.links[name] = await stack.enter_async_context(a_link(name, doors))
        ports = iter(doors)
        for kind, count in services.items():
            command = [entry_point, kind] if entry_point else [f"avtomatika_{kind}"]
            for number in range(1, count + 1):
                name = f"{kind}-{number}"
                link = await stack.enter_async_context(a_link(name, [redis.port]))
                suite.links[name] = link
                settings = _service_settings(suite, link, name, retention_seconds)
                if kind == "gateway":
                    settings["API_PORT"] = str(next(ports))
                _add(suite, name, ["-m", *command], settings)
        for number in range(1, workers + 1):
            name = f"worker-{number}"
            _add(suite, name, ["-m", "tests.chaos.worker"], _worker_settings(suite, name))
        if has_raw_workers:
            door = f"http://127.0.0.1:{suite.links['workers'].port}"
            _add(suite, "raw-1", ["-m", "tests.chaos.raw_worker", door], {})
        stack.callback(_end_all, suite)
        supervision = asyncio.create_task(suite.supervise())  # noqa: TID251 - cancelled below
        stack.callback(supervision.cancel)
        await _until_serving(suite)
        yield suite


def _add(suite: Suite, name: str, arguments: list[str], settings: Mapping[str, str]) -> None:
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": str(ROOT),
        VARIABLE: str(suite.marks),
        **settings,
    }
    log = suite.directory / "logs" / f"{name}.log"
    suite.members[name] = Member(name, [sys.executable, *arguments], environment, log)


def _end_all(suite: Suite) -> None:
    for member in suite.members.values():
        member.end()


def _service_settings(
    suite: Suite, link: Link, name: str, retention_seconds: float
) -> dict[str, str]:
    return {
        "REDIS_URL": f"redis://127.0.0.1:{link.port}/0",
        "AVTOMATIKA_BLUEPRINTS": "tests.chaos.blueprints",
        "HISTORY_DATABASE_URI": f"sqlite:{suite.directory / 'history.db'}",
        "SCHEDULES_CONFIG_PATH": str(suite.directory / "schedules.toml"),
        "INSTANCE_ID": name,
        "API_HOST": "127.0.0.1",
        "JOB_RETENTION_SECONDS": str(retention_seconds),
        "WORKER_HEALTH_CHECK_INTERVAL_SECONDS": "2",
        "WORKER_POLL_TIMEOUT_SECONDS": "5",
        "RETRY_DELAY_SECONDS": "0.2",
        "SHUTDOWN_TIMEOUT_SECONDS": "3",
        "RATE_LIMITING_ENABLED": "false",
    }


def _worker_settings(suite: Suite, name: str) -> dict[str, str]:
    return {
        "ORCHESTRATOR_URL": f"http://127.0.0.1:{suite.links['workers'].port}",
        "WORKER_TOKEN": "secure-worker-token",
        "WORKER_ID": name,
        "TASK_FILES_DIR": str(suite.directory / "files" / name),
        "MAX_CONCURRENT_TASKS": "4",
        "HEARTBEAT_INTERVAL": "1",
        "TASK_POLL_TIMEOUT": "8",
        "TASK_POLL_ERROR_DELAY": "0.3",
        "RESULT_RETRY_INITIAL_DELAY": "0.3",
        "WORKER_SHUTDOWN_TIMEOUT": "3",
        "WORKER_ENABLE_WEBSOCKETS": "true" if name == "worker-1" else "false",
    }


async def _until_serving(suite: Suite) -> None:
    services = suite.of_kind(*SERVICES)
    deadline = time.monotonic() + START_SECONDS
    while not all(
        member.starts and '"serving"' in member.said_since_start() for member in services
    ):
        if time.monotonic() > deadline:
            late = [member for member in services if '"serving"' not in member.said_since_start()]
            said = "\n".join(f"{one.name}: {one.said_since_start()[-500:]}" for one in late)
            raise TimeoutError(f"the suite did not start:\n{said}")
        await asyncio.sleep(_LOOK_SECONDS)
