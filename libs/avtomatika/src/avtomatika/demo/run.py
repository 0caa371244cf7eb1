"""Running the demo: an engine in this process, two workers in theirs, and a client over HTTP."""

import asyncio
import importlib.util
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import aiohttp
import msgspec

from avtomatika.demo.blueprint import STANDARD_LIBRARY, code_survey
from avtomatika.demo.screen import (
    HistoryRow,
    Moment,
    Screen,
    largest_files_lines,
    moments_of,
    summary_lines,
    timeline_lines,
)
from avtomatika.demo.survey import Summary
from avtomatika.engine import OrchestratorEngine
from avtomatika_common.backend.memory.storage import MemoryStorage
from avtomatika_common.config import Config
from avtomatika_common.lifecycle import StartupError
from avtomatika_common.logs import configure_logging
from avtomatika_common.process import make_loop
from rxon.constants import AUTH_HEADER_CLIENT

WORKERS: Final = ("demo-worker-1", "demo-worker-2")
TASKS_PER_WORKER: Final = 4
LOOK_SECONDS: Final = 0.3
PATIENCE_SECONDS: Final = 60.0
"""How long the job may stand still before the demo gives up."""
STOP_SECONDS: Final = 10.0
HISTORY_SECONDS: Final = 10.0
LOG_LINES: Final = 15

INTERRUPTED: Final = 130
"""Exit code of a run that was stopped, as a shell has it for Ctrl-C."""

T = TypeVar("T")


class DemoFailed(Exception):
    """The demo cannot go on; the text is for whoever runs it."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the blueprint leaves in `state_history`."""

    files: int = 0
    summary: Summary | None = None


class JobDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a job document that the demo looks at; times in Unix seconds."""

    status: str
    state_history: State = State()
    active_branches: tuple[str, ...] = ()
    error_message: str | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None

    @property
    def done(self) -> int:
        return self.state_history.files - len(self.active_branches)


class Accepted(msgspec.Struct, frozen=True):
    job_id: str


def run_demo(directory: Path | None = None) -> int:
    """Survey `directory` (None: Python's standard library); the exit code, 0 for a finished job."""
    screen = Screen(sys.stdout, is_terminal=sys.stdout.isatty())
    target = STANDARD_LIBRARY if directory is None else str(directory.resolve())
    with (
        tempfile.TemporaryDirectory(prefix="avtomatika-demo-", ignore_cleanup_errors=True) as name,
        asyncio.Runner(loop_factory=make_loop) as runner,
    ):
        logs = Path(name)
        try:
            return runner.run(_interruptible(screen, target, logs))
        except (DemoFailed, StartupError) as reason:
            screen.line()
            screen.line(f"The demo failed: {reason}")
            screen.lines(_last_words(logs))
            return 1


async def _interruptible(screen: Screen, directory: str, logs: Path) -> int:
    """A signal cancels the run, which then stops its workers and its engine."""
    run = asyncio.current_task()
    assert run is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, run.cancel)
    try:
        return await _demo(screen, directory, logs)
    except asyncio.CancelledError:
        screen.line()
        screen.line("Stopped.")
        return INTERRUPTED


async def _demo(screen: Screen, directory: str, logs: Path) -> int:
    config = _config(logs)
    with (logs / "engine.log").open("w") as log_file:
        configure_logging(config, log_file)
        async with (
            _engine(config) as door,
            _workers(door, config.GLOBAL_WORKER_TOKEN, logs) as workers,
            aiohttp.ClientSession(
                door, headers={AUTH_HEADER_CLIENT: config.CLIENT_TOKEN}
            ) as session,
        ):
            screen.heading("Avtomatika demo")
            screen.line(f"  engine   {door}, on memory, in this process")
            screen.line(f"  workers  {' and '.join(WORKERS)}, a process each")
            screen.line(f"  job      survey the Python files of {directory}")
            screen.line()
            return await _survey(screen, Client(session), workers, directory)


def _config(directory: Path) -> Config:
    """The demo's own settings: whatever the environment says is meant for something else."""
    settings = {
        "API_HOST": "127.0.0.1",
        "API_PORT": "0",
        "CLIENT_TOKEN": secrets.token_urlsafe(),
        "GLOBAL_WORKER_TOKEN": secrets.token_urlsafe(),
        "RATE_LIMITING_ENABLED": "false",
        "LOG_FORMAT": "text",
    }
    if importlib.util.find_spec("aiosqlite"):
        settings["HISTORY_DATABASE_URI"] = f"sqlite:{directory / 'history.db'}"
    return Config(settings)


@asynccontextmanager
async def _engine(config: Config) -> AsyncGenerator[str, None]:
    """An engine for as long as the block lasts; gives the URL of its HTTP door."""
    engine = OrchestratorEngine(MemoryStorage(), config)
    engine.register_blueprint(code_survey)
    await engine.start()
    try:
        yield f"http://127.0.0.1:{engine.port}"
    finally:
        await engine.stop()


@asynccontextmanager
async def _workers(
    door: str, token: str, logs: Path
) -> AsyncGenerator[Sequence[asyncio.subprocess.Process], None]:
    """Worker processes for as long as the block lasts; none outlives it."""
    environment = {
        **os.environ,  # noqa: TID251 - handed on: PATH and the like
        "ORCHESTRATOR_URL": door,
        "ORCHESTRATORS_CONFIG": "",
        "WORKER_TOKEN": token,
        "WORKER_INDIVIDUAL_TOKEN": "",
        "MAX_CONCURRENT_TASKS": str(TASKS_PER_WORKER),
    }
    processes: list[asyncio.subprocess.Process] = []
    try:
        for worker_id in WORKERS:
            with (logs / f"{worker_id}.log").open("wb") as log_file:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "avtomatika_worker", "run"),
                    *("--app", "avtomatika.demo.worker:worker"),
                    env={**environment, "WORKER_ID": worker_id},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                )
            processes.append(process)
        yield processes
    finally:
        await _stop(processes)


async def _stop(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """Let them drain, and end those that take too long, also when waiting is interrupted."""
    running = [process for process in processes if process.returncode is None]
    for process in running:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            for process in running:
                await process.wait()
    except TimeoutError:
        pass
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()


class Client:
    """What a client of the demo's job asks over HTTP. Every method may raise DemoFailed."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def submit(self, directory: str) -> str:
        """Create the job; its id."""
        body = {"initial_data": {"directory": directory}}
        async with self._session.post("/api/v1/jobs/code_survey", json=body) as response:
            return (await _answer(response, Accepted)).job_id

    async def look(self, job_id: str) -> JobDocument:
        """The job as it is now, without what its tasks brought: that may be large."""
        fields = ",".join(JobDocument.__struct_fields__)
        path = f"/api/v1/jobs/{job_id}"
        async with self._session.get(path, params={"fields": fields}) as response:
            return await _answer(response, JobDocument)

    async def history(self, job_id: str) -> list[HistoryRow]:
        """What has been archived so far, oldest first; nothing where there is no archive."""
        async with self._session.get(f"/api/v1/jobs/{job_id}/history") as response:
            return await _answer(response, list[HistoryRow])


async def _answer(response: aiohttp.ClientResponse, kind: type[T]) -> T:
    body = await response.read()
    if response.status >= 400:
        raise DemoFailed(f"{response.url} answers {response.status}: {body.decode()}")
    return msgspec.json.decode(body, type=kind)


async def _survey(
    screen: Screen, client: Client, workers: Sequence[asyncio.subprocess.Process], directory: str
) -> int:
    job_id = await client.submit(directory)
    job, seen = await _watch(screen, client, workers, job_id)
    summary = job.state_history.summary
    if summary is not None:
        screen.heading(f"Python files of {directory}")
        screen.lines(summary_lines(summary))
        screen.heading("Largest files, in lines")
        screen.lines(largest_files_lines(summary))
    screen.heading(f"Timeline of job {job_id}")
    moments = await _archived(client, job_id) or seen
    screen.lines(timeline_lines(moments))
    screen.line()
    took = (job.finished_at or job.created_at) - job.created_at
    if job.status != "finished":
        screen.line(f"The job ended as {job.status} after {took:.1f} s: {job.error_message}")
        return 1
    screen.line(f"The job is finished after {took:.1f} s.")
    return 0


async def _watch(
    screen: Screen, client: Client, workers: Sequence[asyncio.subprocess.Process], job_id: str
) -> tuple[JobDocument, list[Moment]]:
    """Follow the job to its end; the timeline is what could be seen from outside."""
    loop = asyncio.get_running_loop()
    fan_out_at: float | None = None
    done = -1
    seen: list[Moment] = []
    try:
        async with asyncio.timeout(PATIENCE_SECONDS) as patience:
            while True:
                job = await client.look(job_id)
                now = loop.time()
                if not seen:
                    seen.append(Moment(at=job.created_at, what="job created"))
                if job.active_branches and fan_out_at is None:
                    fan_out_at = now
                    what = f"{job.state_history.files:,} tasks given to the workers"
                    seen.append(Moment(at=job.updated_at, what=what))
                if job.finished_at is not None:
                    break
                if fan_out_at is not None and job.done > done:
                    done = job.done
                    patience.reschedule(now + PATIENCE_SECONDS)
                    screen.progress(done, job.state_history.files, now - fan_out_at)
                _demand_alive(workers)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise DemoFailed(f"the job stood still for {PATIENCE_SECONDS:g} seconds.") from None
    if fan_out_at is not None and job.status == "finished":
        screen.progress(job.done, job.state_history.files, now - fan_out_at)
    screen.end_progress()
    seen.append(Moment(at=job.finished_at, what=f"job {job.status}"))
    return job, seen


def _demand_alive(workers: Sequence[asyncio.subprocess.Process]) -> None:
    """A worker that ended will not come back, and the job might wait for it for long."""
    for worker_id, process in zip(WORKERS, workers, strict=True):
        if process.returncode is not None:
            raise DemoFailed(f"{worker_id} ended with exit code {process.returncode}.")


async def _archived(client: Client, job_id: str) -> list[Moment]:
    """The timeline from history, once the archive has caught up with the end of the job."""
    try:
        async with asyncio.timeout(HISTORY_SECONDS):
            while rows := await client.history(job_id):
                if any(row.event_type == "job_completed" for row in rows):
                    return moments_of(rows)
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        pass
    return []


def _last_words(logs: Path) -> list[str]:
    """The end of every log, for whoever has to find out."""
    lines: list[str] = []
    for path in sorted(logs.glob("*.log")):
        said = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
        if said:
            lines += ["", f"{path.name}:", *(f"  {line}" for line in said)]
    return lines
