from collections.abc import AsyncGenerator

import pytest_asyncio
from services.gateway.tests.door import Door, open_door


@pytest_asyncio.fixture
async def door() -> AsyncGenerator[Door, None]:
    async with open_door() as opened:
        yield opened
