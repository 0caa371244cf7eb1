from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from services.executor.tests.world import World, a_world

from avtomatika_executor import service, takeover


@pytest_asyncio.fixture
async def world() -> AsyncGenerator[World, None]:
    async with a_world() as made:
        yield made


@pytest.fixture(autouse=True)
def scaled_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a second or five takes hundredths of it: their ratio counts."""
    monkeypatch.setattr(service, "_AUDIT_SECONDS", 0.05)
    monkeypatch.setattr(service, "_WANTED_SECONDS", 0.02)
    monkeypatch.setattr(service, "_BACK_OFF_SECONDS", 0.01)
    monkeypatch.setattr(takeover, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(takeover, "_CALM_SECONDS", 0.1)
