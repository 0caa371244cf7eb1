"""A store that leaves a law out is found out, and the schedule that shows it is told."""

from functools import partial

import pytest

from tests.model.explorer import Broken, explore
from tests.model.planted import FAULTS, FaultyStorage, Part
from tests.model.scenarios import LARGE, SMALL
from tests.model.world import World


@pytest.mark.parametrize(("part", "name", "what"), FAULTS)
async def test_a_law_that_is_left_out_is_missed(part: Part, name: str, what: str) -> None:
    world = World(SMALL.get(name) or LARGE[name], partial(FaultyStorage, part))

    with pytest.raises(Broken, match=what) as broken:
        explore(world, most_states=50_000)

    assert broken.value.schedule
