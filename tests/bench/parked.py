"""Thousands of polls parked at one gateway: what one costs, how a task finds its worker, what is left.

The gateway is a process of its own, so that its memory is nobody else's; the bare server beside it
holds as many open requests.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.children import ROOT, Child
from tests.bench.report import percentiles, row
from tests.bench.worlds import REST_SECONDS, Options, World, a_world

WARM_UP = 200
CHOSEN = 500
SETTLING_SECONDS = 120.0
_LISTEN, _TIME_WAIT = "0A", "06"
_SETTINGS = {
    "LOG_LEVEL": "ERROR",
    "WORKER_POLL_TIMEOUT_SECONDS": "600",
    "WORKER_HEALTH_CHECK_INTERVAL_SECONDS": "600",
}


class Watched:
    """A server's process: what it takes, as the kernel tells."""

    def __init__(self, pid: int) -> None:
        self._directory = Path(f"/proc/{pid}")

    def kibibytes(self) -> int:
        """Its resident memory."""
        status = (self._directory / "status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def open_files(self) -> int:
        return len(list((self._directory / "fd").iterdir()))


def connections(port: int) -> int:
    """Of clients with the server that listens there."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = f":{port:04X}"
    return sum(1 for row in rows if row[1].endswith(mine) and row[3] not in {_LISTEN, _TIME_WAIT})


class Cycle:
    """A server's memory (KiB) and open files before, while and after polls were parked at it."""

    def __init__(self, before: int, parked: int, after: int, files_left: int) -> None:
        self.before = before
        self.parked = parked
        self.after = after
        self.files_left = files_left


@contextmanager
def a_gateway(redis: str) -> Generator[tuple[int, int], None, None]:
    """Its process id and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = {"REDIS_URL": redis, "API_HOST": "127.0.0.1", "API_PORT": str(port), **_SETTINGS}
    gateway = subprocess.Popen(
        [sys.executable, "-m", "avtomatika_gateway"],
        cwd=ROOT,
        env={"PATH": os.defpath, **settings},
    )
    try:
        until(lambda: answers(port), "the gateway to listen")
        yield gateway.pid, port
    finally:
        gateway.terminate()
        gateway.wait()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLING_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {SETTLING_SECONDS:g} s for {what}")
        time.sleep(0.1)


def memory_of(cycle: Cycle) -> str:
    return " / ".join(f"{part / 1024:.0f}" for part in (cycle.before, cycle.parked, cycle.after))


def park(
    worker: Child,
    server: Watched,
    port: int,
    count: int,
    prefix: str,
    parked: Callable[[], int],
    meanwhile: Callable[[], None] = lambda: None,
) -> Cycle:
    """Park `count` workers at the server, measure, do something meanwhile, close them all."""
    before, files = server.kibibytes(), server.open_files()
    worker.ask(
        "work", port=port, workers=count, connections=1, prefix=prefix, task_types=["only-{n}"]
    )
    until(lambda: parked() == count, f"{count} polls to be parked")
    taken = server.kibibytes()
    meanwhile()
    worker.ask("finish")
    until(lambda: parked() == 0, "no poll to be left")
    until(lambda: connections(port) == 0, "connections to close")
    return Cycle(before, taken, server.kibibytes(), server.open_files() - files)


def run(options: Options) -> None:
    count = options.parked
    with a_world() as world:
        bare = Watched(world.bare.pid)

        def held() -> int:
            return int(world.bare.ask("parked")["count"])

        park(world.worker, bare, world.bare_port, WARM_UP, "/parked", held)
        floor = park(world.worker, bare, world.bare_port, count, "/parked", held)
    floor_each = (floor.parked - floor.before) / count
    row("parked, floor: bare aiohttp server", f"{floor_each:.1f}", f"KiB for each of {count:,}")
    row("floor before / parked / closed", memory_of(floor), "MiB resident")
    with a_world(**_SETTINGS) as world, a_gateway(world.redis) as (pid, port):
        _gateway(world, Watched(pid), port, count)


def _gateway(world: World, gateway: Watched, port: int, count: int) -> None:
    chosen = min(CHOSEN, count)
    task_types = [f"only-{number * count // chosen}" for number in range(chosen)]
    received: list[float] = []

    def credits_open() -> int:
        return int(world.engine.ask("left")["credits"])

    def send_to_chosen_ones() -> None:
        world.engine.ask("one_by_one", task_types=task_types, rest_seconds=REST_SECONDS)
        received.extend(world.worker.ask("so_far")["since_submit"])

    park(world.worker, gateway, port, WARM_UP, "/_worker", credits_open)
    first = park(world.worker, gateway, port, count, "/_worker", credits_open, send_to_chosen_ones)
    row(
        "parked, gateway",
        f"{(first.parked - first.before) / count:.1f}",
        f"KiB for each of {count:,} (asked: 20)",
    )
    row(
        "parked, submit to a chosen worker, p50 / p99",
        percentiles(received),
        f"ms, {len(received):,} tasks (asked: p50 10)",
    )
    second = park(world.worker, gateway, port, count, "/_worker", credits_open)
    row(
        "parked, gateway before / parked / closed",
        memory_of(first),
        "MiB resident",
    )
    row(
        "the same, a second time",
        memory_of(second),
        "MiB resident",
    )
    left = world.engine.ask("left")
    row(
        "left: open files / open polls / tasks in hand",
        f"{second.files_left} / {left['credits']} / {left['holds']}",
    )
