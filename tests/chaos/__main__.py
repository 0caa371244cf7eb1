"""`python -m tests.chaos --minutes 60 --seed 7`: the long run of the proof, see docs/proof.md."""

import argparse
import asyncio
import random
import sys

from tests.chaos.load import JOBS_PER_SECOND
from tests.chaos.proof import a_directory, keep_or_remove, prove, say


class Options(argparse.Namespace):
    minutes: float
    seed: int
    rate: float
    calm: bool


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="how long load and faults last")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--rate", type=float, default=JOBS_PER_SECOND, help="jobs per second")
    parser.add_argument("--calm", action="store_true", help="without any fault")
    options = parser.parse_args(namespace=Options())
    say(f"seed {options.seed}")
    directory = a_directory()
    outcome = asyncio.run(
        prove(options.seed, options.minutes * 60, options.rate, directory, calm=options.calm)
    )
    if outcome.violations:
        say(outcome.report)
    say(outcome.summary())
    keep_or_remove(directory, outcome.violations)
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
