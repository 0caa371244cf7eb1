"""`make model`: the larger worlds, and how much there was to see."""

import asyncio
import logging
import sys
import time

from tests.model.explorer import Broken, explore
from tests.model.scenarios import LARGE, SMALL
from tests.model.world import World


async def main(names: list[str]) -> int:
    logging.disable(logging.CRITICAL)
    broken, states, schedules = 0, 0, 0
    print(f"{'world':24}{'states':>10}{'moves':>10}{'schedules':>12}{'longest':>9}{'seconds':>9}")  # noqa: T201
    for name in names or LARGE:
        scenario, began = LARGE.get(name) or SMALL[name], time.perf_counter()
        try:
            seen = explore(World(scenario), most_states=2_000_000)
        except Broken as violation:
            broken += 1
            print(f"{name}: {violation}", flush=True)  # noqa: T201
            continue
        states, schedules = states + seen.states, schedules + seen.schedules
        print(  # noqa: T201
            f"{name:24}{seen.states:10}{seen.moves:10}{seen.schedules:12.3g}{seen.longest:9}"
            f"{time.perf_counter() - began:9.1f}",
            flush=True,
        )
    print(f"{states} states, {schedules:.3g} schedules, {broken} worlds broken")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
