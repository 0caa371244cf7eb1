"""A world that is gone through state by state says the same thing thousands of times."""

import logging
from collections.abc import Generator

import pytest


@pytest.fixture(autouse=True)
def quiet() -> Generator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
