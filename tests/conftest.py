"""Servers for the tests that need one. Each worker of pytest-xdist has its own."""

from collections.abc import Generator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.servers import (
    postgres_package,
    redis_answers,
    redis_binaries,
    running_postgres,
    running_redis,
)

REDIS_BINARIES = redis_binaries()


def missing(server: str) -> None:
    """Its tests are left out; a failure where everything has to run (`conftest.py` of the root)."""
    pytest.skip(f"no {server} here: `make setup` installs one")


@pytest.fixture(scope="session", params=sorted(REDIS_BINARIES, reverse=True) or [None])
def redis_server(request: pytest.FixtureRequest) -> Generator[str, None, None]:
    """URL of a server for this run: on each kind of server that this machine has."""
    kind: str | None = request.param
    if kind is None:
        missing("Redis")
    else:
        with running_redis(REDIS_BINARIES[kind]) as url:
            yield url


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of an empty Redis."""
    assert redis_answers(urlsplit(redis_server).port or 0, "FLUSHALL", "+OK")
    return redis_server


class OneRedis:
    """A Redis of one kind for this run, started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._url: str | None = None

    @property
    def url(self) -> str:
        if self._url is None:
            if not REDIS_BINARIES:
                missing("Redis")
            self._url = self._stack.enter_context(running_redis(max(REDIS_BINARIES.items())[1]))
        return self._url

    def __call__(self) -> str:
        """Its URL, with nothing in it."""
        assert redis_answers(urlsplit(self.url).port or 0, "FLUSHALL", "+OK")
        return self.url


@pytest.fixture(scope="session")
def one_redis() -> Generator[OneRedis, None, None]:
    with ExitStack() as stack:
        yield OneRedis(stack)


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str, None, None]:
    """URL of a PostgreSQL database for this run; who makes tables in it uses a schema of its own."""
    package = postgres_package()
    if package is None:
        missing("PostgreSQL")
    else:
        with running_postgres(package) as url:
            yield url
