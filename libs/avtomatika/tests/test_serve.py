"""`avtomatika serve` starts what it names, says why it cannot, and ends well when told to."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.programs import Client, door_is_open, environment, program, said_in
from tests.servers import free_port, redis_binaries, running_redis

pytestmark = pytest.mark.integration

NO_REDIS = "redis://127.0.0.1:1/0"


def serve(what: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "avtomatika", "serve", what],
        env=environment(API_PORT="0", **variables),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


@pytest.mark.parametrize(
    ("what", "variables", "reason"),
    [
        ("all", {}, "There is no blueprint to run: set AVTOMATIKA_BLUEPRINTS"),
        ("all", {"JOB_MAX_RETRIES": "x"}, "JOB_MAX_RETRIES: 'x' is not an integer"),
        ("all", {"AVTOMATIKA_BLUEPRINTS": "no_such"}, "names 'no_such', which cannot be loaded"),
        (
            "all",
            {"AVTOMATIKA_BLUEPRINTS": "examples.greetings:greetings", "REDIS_URL": NO_REDIS},
            "Redis at 127.0.0.1:1/0 cannot be used",
        ),
        (
            "all",
            {
                "AVTOMATIKA_BLUEPRINTS": "examples.greetings:greetings",
                "HISTORY_DATABASE_URI": "mysql://h/db",
            },
            "HISTORY_DATABASE_URI has the scheme 'mysql'",
        ),
        ("executor", {"TZ": "Mars"}, "TZ: 'Mars' is not the name of a time zone"),
        ("executor", {"REDIS_URL": NO_REDIS}, "Redis at 127.0.0.1:1/0 cannot be used"),
        ("history", {"REDIS_URL": "http://h"}, "REDIS_URL is not an address of a Redis server"),
        ("notifier", {"REDIS_URL": NO_REDIS}, "Redis at 127.0.0.1:1/0 cannot be used"),
    ],
)
def test_what_cannot_start_says_why_in_one_line(
    what: str, variables: dict[str, str], reason: str
) -> None:  # R75
    ended = serve(what, **variables)

    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    assert last.startswith("avtomatika: ")
    assert reason in last
    assert "Traceback" not in ended.stderr


def test_an_executor_without_blueprints_does_not_start() -> None:
    binaries = redis_binaries()
    if not binaries:
        pytest.skip("no Redis here: `make setup` installs one")
    with running_redis(binaries[max(binaries)]) as url:
        ended = serve("executor", REDIS_URL=url)

    assert ended.returncode == 1
    assert "avtomatika: There is no blueprint to run" in ended.stderr


def test_a_service_nobody_knows_is_refused() -> None:
    ended = serve("kitchen")

    assert ended.returncode == 2
    assert "invalid choice: 'kitchen'" in ended.stderr


async def test_serve_all_runs_jobs_and_ends_with_0_when_told(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    door = f"http://127.0.0.1:{port}"
    variables = {
        "API_PORT": str(port),
        "AVTOMATIKA_BLUEPRINTS": "examples.quick_start:my_blueprint",
        "CLIENT_TOKEN": "c",
    }
    client = Client(door, "c")

    async with program("-m", "avtomatika", "serve", "all", variables=variables, log=log) as process:
        await door_is_open(door, process, log)
        _, answer = await client.ask("POST", "/api/v1/jobs/my_flow", {"type": "urgent"})
        job = await client.ended(answer["job_id"])
        process.send_signal(signal.SIGTERM)
        code = await process.wait()

    said = said_in(log)
    assert job["status"] == "finished"
    assert code == 0, said
    assert "Traceback" not in said
    for service in ("gateway", "executor", "dispatcher", "watcher", "scheduler", "notifier"):
        assert f'"{service}"' in said
    [serving] = [line for line in said.splitlines() if '"message": "serving"' in line]
    assert json.loads(serving)["address"] == door
