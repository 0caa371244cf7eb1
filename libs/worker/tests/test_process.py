"""A worker process over real HTTP, from the command line to SIGTERM."""

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from avtomatika_worker.__main__ import main

APP = """
    import asyncio
    from avtomatika_worker import Worker

    worker = Worker(worker_type="cpu")

    @worker.task("double")
    async def double(params, job_id):
        return {"doubled": params["n"] * 2, "job": job_id}

    @worker.task("fail")
    def fail():
        raise ValueError("out of luck")

    @worker.task("slow")
    async def slow():
        await asyncio.sleep(1)
        return {"slow": True}
"""


@dataclass
class Orchestrator:
    """A small one: forgets its workers when told to, and refuses each result once."""

    tasks: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue[dict[str, Any]])
    registrations: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    heartbeats: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    results: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    refused: set[str] = field(default_factory=set[str])
    polls: int = 0
    known: bool = False
    url: str = ""

    async def register(self, request: web.Request) -> web.Response:
        self.registrations.append(await request.json())
        self.known = True
        return web.json_response({"status": "registered", "version": "1.0b2"})

    async def heartbeat(self, request: web.Request) -> web.Response:
        if not self.known:
            return web.json_response({"error": "Worker not found"}, status=404)
        self.heartbeats.append(await request.json())
        return web.json_response(self.heartbeats[-1])

    async def poll(self, _: web.Request) -> web.Response:
        self.polls += 1
        try:
            async with asyncio.timeout(0.1):
                return web.json_response(await self.tasks.get())
        except TimeoutError:
            return web.Response(status=204)

    async def result(self, request: web.Request) -> web.Response:
        result = await request.json()
        if result["task_id"] not in self.refused:
            self.refused.add(result["task_id"])
            return web.Response(status=503)
        self.results.append(result)
        return web.json_response({"status": "ok"})


def a_task(task_id: str, name: str) -> dict[str, Any]:
    return {
        "job_id": "j-1",
        "task_id": task_id,
        "type": name,
        "params": {"n": 21},
        "tracing_context": {},
        "params_metadata": None,
    }


@pytest.fixture
async def orchestrator() -> AsyncGenerator[Orchestrator]:
    one = Orchestrator()
    app = web.Application()
    app.add_routes(
        [
            web.post("/_worker/workers/register", one.register),
            web.patch("/_worker/workers/w", one.heartbeat),
            web.get("/_worker/workers/w/tasks/next", one.poll),
            web.post("/_worker/tasks/result", one.result),
        ]
    )
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "localhost", 0).start()
    one.url = f"http://localhost:{runner.addresses[0][1]}"
    try:
        yield one
    finally:
        await runner.cleanup()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_app.py").write_text(textwrap.dedent(APP))
    return tmp_path


@asynccontextmanager
async def worker_process(
    folder: Path, orchestrator: Orchestrator, *options: str, stderr: int = PIPE, **settings: str
) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "avtomatika_worker", "run", "--app", "my_app:worker", *options),
        cwd=folder,
        stderr=stderr,
        env={
            "WORKER_ID": "w",
            "WORKER_TOKEN": "secret",
            "ORCHESTRATOR_URL": orchestrator.url,
            "HEARTBEAT_INTERVAL": "0.05",
            "RESULT_RETRY_INITIAL_DELAY": "0.01",
            "LOG_FORMAT": "json",
            "TASK_FILES_DIR": str(folder),
            **settings,
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.mark.integration
async def test_a_process_works_is_forgotten_and_drains(
    folder: Path, orchestrator: Orchestrator
) -> None:
    async with worker_process(folder, orchestrator) as process:
        orchestrator.tasks.put_nowait(a_task("t-1", "double"))
        orchestrator.tasks.put_nowait(a_task("t-2", "fail"))
        await until(lambda: len(orchestrator.results) == 2)
        orchestrator.known = False
        await until(lambda: len(orchestrator.registrations) == 2)
        beats = len(orchestrator.heartbeats)
        await until(
            lambda: len(orchestrator.heartbeats) > beats
        )  # the old poll is given up by then
        orchestrator.tasks.put_nowait(a_task("t-3", "slow"))
        await until(
            lambda: any(beat["current_tasks"] == ["t-3"] for beat in orchestrator.heartbeats)
        )
        process.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(process.communicate(), 20)

    assert process.returncode == 0, log.decode()
    first = {result["task_id"]: result for result in orchestrator.results}
    assert first["t-1"]["data"] == {"doubled": 42, "job": "j-1"}
    assert first["t-2"]["error"] == {
        "code": "TRANSIENT_ERROR",
        "message": "out of luck",
        "details": None,
    }
    assert first["t-3"]["data"] == {"slow": True}
    assert orchestrator.heartbeats[-1]["status"] == "draining"
    assert orchestrator.registrations[0]["supported_tasks"] == ["double", "fail", "slow"]
    assert b'"event":"stopped"' in log
    assert b"secret" not in log


@pytest.mark.integration
async def test_a_health_check_is_answered_while_the_worker_runs(
    folder: Path, orchestrator: Orchestrator
) -> None:
    async with (
        worker_process(folder, orchestrator, "--health-check", WORKER_PORT="0") as process,
        aiohttp.ClientSession() as session,
        asyncio.timeout(20),
    ):
        assert process.stderr is not None
        line: dict[str, Any] = {}
        while line.get("event") != "health check listens":
            line = json.loads(await process.stderr.readline())
        async with session.get(f"http://127.0.0.1:{line['port']}/health") as answer:
            assert (answer.status, await answer.text()) == (200, "OK")
        async with session.get(f"http://127.0.0.1:{line['port']}/") as answer:
            assert answer.status == 404
        process.send_signal(signal.SIGINT)
        await process.communicate()

    assert process.returncode == 0


@pytest.mark.integration
async def test_a_terminal_shows_colours_and_what_goes_on(
    folder: Path, orchestrator: Orchestrator
) -> None:
    ours, theirs = os.openpty()
    try:
        async with worker_process(
            folder, orchestrator, stderr=theirs, LOG_FORMAT="text"
        ) as process:
            orchestrator.tasks.put_nowait(a_task("t-3", "slow"))
            await until(lambda: orchestrator.results)
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), 20)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)

    assert "\x1b[32mINFO   \x1b[0m registered" in shown
    assert "\r\x1b[K1 running · 0 done" in shown
    assert "stopped" in shown


MISTAKES = {
    "import_of_nothing": "import no_such_library\n",
    "wrong_argument": """
        from avtomatika_worker import Worker
        worker = Worker()
        @worker.task("work")
        def work(parms): ...
    """,
    "wrong_name": """
        from avtomatika_worker import Worker
        worker = Worker()
        @worker.task("do work")
        def work(): ...
    """,
}


def run_worker(folder: Path, app: str, *options: str, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of a worker that does not get far."""
    for name, code in MISTAKES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
    run = subprocess.run(
        [str(Path(sys.executable).with_name("worker")), "run", "--app", app, *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return run.returncode, run.stderr


@pytest.mark.integration
@pytest.mark.parametrize(
    ("app", "environment", "text"),
    [
        ("my_app", {}, "--app must be module:attribute, not 'my_app'."),
        (
            "no_such_app:worker",
            {},
            "There is no module 'no_such_app' in {folder}, nor an installed one.",
        ),
        ("my_app:double", {}, "'double' in module 'my_app' is not a Worker."),
        ("my_app:worker", {"CPU_CORES": "x"}, "CPU_CORES must be a whole number, not 'x'."),
        (
            "my_app:worker",
            {"WORKER_ID": "a b"},
            "Invalid WORKER_ID: 'a b'. Must be alphanumeric, underscores, or hyphens only.",
        ),
        (
            "my_app:worker",
            {"TLS_CA_PATH": "no.pem"},
            "TLS_CA_PATH: cannot read 'no.pem': No such file or directory.",
        ),
        (
            "my_app:worker",
            {"TLS_CA_PATH": "my_app.py"},
            "TLS_CA_PATH, TLS_CERT_PATH and TLS_KEY_PATH must be PEM files of",
        ),
        (
            "wrong_argument:worker",
            {},
            "{folder}/wrong_argument.py, line 4: The handler of task 'work' takes 'parms', which",
        ),
        (
            "wrong_name:worker",
            {},
            "{folder}/wrong_name.py, line 4: Invalid task name: 'do work'. Must be",
        ),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    folder: Path, app: str, environment: dict[str, str], text: str
) -> None:
    code, said = run_worker(folder, app, **environment)

    assert code == 2
    assert said.startswith(f"worker: {text.format(folder=folder)}")
    assert said.count("\n") == 1


@pytest.mark.integration
def test_a_module_that_raises_is_shown_from_its_own_line_on(folder: Path) -> None:
    code, said = run_worker(folder, "import_of_nothing:worker")

    assert code == 2
    assert said == textwrap.dedent(
        f"""\
        Traceback (most recent call last):
          File "{folder}/import_of_nothing.py", line 1, in <module>
            import no_such_library
        ModuleNotFoundError: No module named 'no_such_library'
        worker: Module 'import_of_nothing' cannot be imported.
        """
    )


@pytest.mark.integration
def test_a_port_that_is_taken_is_said_in_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = run_worker(folder, "my_app:worker", "--health-check", WORKER_PORT=port)

    assert code == 2
    assert said == (
        f"worker: WORKER_PORT: cannot listen on port {port}: Address already in use."
        " Set it to a free one.\n"
    )


class Once:
    """As much of watchfiles as is used: runs the target, once."""

    PythonFilter = object

    def __init__(self) -> None:
        self.ran: list[subprocess.CompletedProcess[str]] = []

    def run_process(self, folder: str, *, target: str, target_type: str, **_: object) -> None:
        assert target_type == "command"
        self.ran.append(
            subprocess.run(
                shlex.split(target), cwd=folder, capture_output=True, text=True, check=False
            )
        )


@pytest.mark.integration
def test_reload_runs_the_same_command_without_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watchfiles = Once()
    monkeypatch.setitem(sys.modules, "watchfiles", watchfiles)
    monkeypatch.chdir(folder)

    code = main(["run", "--app", "my_app:nobody", "--health-check", "--reload"])

    (ran,) = watchfiles.ran
    assert code == 0
    assert ran.args[1:] == [
        *("-m", "avtomatika_worker", "run", "--app", "my_app:nobody", "--health-check")
    ]
    assert ran.stderr == "worker: 'nobody' in module 'my_app' is not a Worker.\n"


def test_reload_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)

    code = main(["run", "--app", "my_app:worker", "--reload"])

    assert code == 2
    assert capsys.readouterr().err == (
        "worker: --reload needs the package watchfiles: pip install watchfiles\n"
    )
