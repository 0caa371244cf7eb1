"""The guide for workers is true: the tests in it pass, and it names every setting."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from avtomatika_worker import config
from tests.e2e.markdown import module_of

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "workers.md"


async def test_the_tests_of_the_guide_pass(tmp_path: Path) -> None:
    module = module_of(GUIDE, tmp_path)
    tests: list[Callable[[], Awaitable[None]]] = [
        value for name, value in vars(module).items() if name.startswith("test_")
    ]

    for test in tests:
        await test()

    assert len(tests) == 2


@pytest.mark.parametrize(
    "name",
    sorted(
        set(
            re.findall(
                r'env\.(?:text|integer|number|boolean|json)\(\s*"(\w+)"',
                Path(config.__file__).read_text(),
            )
        )
    ),
)
def test_every_setting_is_in_the_guide(name: str) -> None:
    assert f"`{name}`" in GUIDE.read_text()
