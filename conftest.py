"""For every test: properties have no deadline, and where everything has to run nothing is skipped."""

import os
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

EVERYTHING_HAS_TO_RUN = os.environ.get("CI") == "true"  # noqa: TID251 - about the run, no setting


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and EVERYTHING_HAS_TO_RUN:
        skipped: Any = report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, though everything has to run: {skipped}"
    return report
