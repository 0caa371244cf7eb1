"""Sites of the SDK's tests: each way in, on each backend."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from avtomatika import OrchestratorEngine
from tests.integration.sdk_site import Site


@pytest.fixture(params=["memory-http", "memory-in-process", "redis-http", "redis-in-process"])
def site(request: pytest.FixtureRequest, one_redis: Callable[[], str], tmp_path: Path) -> Site:
    backend, _, way = request.param.partition("-")
    return Site(way, one_redis() if backend == "redis" else None, tmp_path)


@pytest.fixture
async def engine(site: Site) -> AsyncGenerator[OrchestratorEngine, None]:
    async with site.engine() as engine:
        yield engine
