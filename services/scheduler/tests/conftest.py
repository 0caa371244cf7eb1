from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from services.scheduler.tests.world import World, a_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World, None]:
    async with a_world(tmp_path) as made:
        yield made
