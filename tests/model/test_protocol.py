"""No schedule of small worlds breaks a promise: every one is tried."""

import pytest

from tests.model.explorer import explore
from tests.model.scenarios import SMALL
from tests.model.world import World


@pytest.mark.parametrize("name", SMALL)
async def test_every_schedule_keeps_the_promises(name: str) -> None:
    explored = explore(World(SMALL[name]), most_states=10_000)

    assert explored.states > 100
    assert explored.schedules > explored.states // 10
