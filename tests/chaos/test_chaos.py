"""The proof in two minutes: the whole suite under load, and something dies all the time."""

import random
from pathlib import Path

import pytest

from tests.chaos.load import JOBS_PER_SECOND
from tests.chaos.points import pass_points
from tests.chaos.proof import a_directory, keep_or_remove, prove
from tests.chaos.suite import SERVICES
from tests.conftest import REDIS_BINARIES, missing

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

SECONDS = 120.0
FAULTS_IN_THAT_TIME = 60
"""At least; one of processes is due every two seconds."""


@pytest.fixture
def directory() -> Path:
    if not REDIS_BINARIES:
        missing("Redis")
    return a_directory()


async def test_whatever_dies_every_promise_is_kept(directory: Path) -> None:
    """R1-R26, R51, R62-R65, R70: `make chaos SEED=…` repeats what is printed when this fails."""
    outcome = await prove(random.randrange(1_000_000), SECONDS, JOBS_PER_SECOND, directory)
    keep_or_remove(directory, outcome.violations)

    assert not outcome.violations, f"{outcome.report}\n{outcome.summary()}"
    assert outcome.faults.total() >= FAULTS_IN_THAT_TIME
    assert outcome.accepted >= SECONDS * JOBS_PER_SECOND * 0.9


async def test_a_service_may_die_at_any_of_its_writes(directory: Path) -> None:
    """A sample: one write of each service, before and after it; `make chaos-points` takes them all."""
    died = await pass_points(directory, list(SERVICES), first=random.randrange(1, 4), most=1)
    keep_or_remove(directory, died.violations)

    assert not died.violations, died.report
    assert len(died.at) >= len(SERVICES)
