"""The processes that a benchmark of tasks runs between, and what its user may choose."""

import argparse
from collections.abc import Generator
from contextlib import contextmanager

from tests.bench.children import Child, a_child
from tests.servers import redis_binaries, running_redis

REST_SECONDS = 0.005
"""After which the processors of most machines sleep, and take their time to wake."""


class Options(argparse.Namespace):
    jobs: int
    rounds: int
    workers: int
    connections: int
    batch_connections: int
    batch: int
    in_flight: int
    parked: int
    branches: int
    only: list[str]

    def connections_for(self, batch: int) -> int:
        return self.batch_connections if batch else self.connections


class World:
    """The processes of one part."""

    def __init__(
        self,
        redis: str,
        engine: Child,
        engine_port: int,
        bare: Child,
        bare_port: int,
        worker: Child,
    ) -> None:
        self.redis = redis
        self.engine = engine
        self.engine_port = engine_port
        self.bare = bare
        self.bare_port = bare_port
        self.worker = worker


@contextmanager
def a_world(**settings: str) -> Generator[World, None, None]:
    """A fresh Redis, an engine over it, a bare server, and a process for workers."""
    binary = next(iter(redis_binaries().values()))
    with (
        running_redis(binary) as redis,
        a_child("tests.bench.engine_process") as engine,
        a_child("tests.bench.bare_server") as bare,
        a_child("tests.bench.raw_worker") as worker,
    ):
        engine_port = engine.ask("start", redis=redis, settings=settings)["port"]
        yield World(redis, engine, engine_port, bare, bare.ask("start")["port"], worker)
