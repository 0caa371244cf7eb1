"""What Prometheus is told."""

from importlib.machinery import ModuleSpec

import pytest
from services.gateway.tests.door import Door

from avtomatika_gateway import metrics

PATH = "/_public/metrics"
NAME = "avtomatika_reconciler_mended_total"


def sample(text: str, kind: str) -> float:
    [line] = [one for one in text.splitlines() if one.startswith(f'{NAME}{{kind="{kind}"}} ')]
    return float(line.rpartition(" ")[2])


async def test_what_the_watchers_mended_is_counted_by_kind(door: Door) -> None:
    for kind in ("claim", "claim", "hold"):
        await door.backend.inspection.count_mended(kind)

    answer = await door.ask("GET", PATH)

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert f"# TYPE {NAME} counter" in answer.body
    assert sample(answer.body, "claim") == 2
    assert sample(answer.body, "hold") == 1


async def test_a_kind_that_never_was_is_zero(door: Door) -> None:
    answer = await door.ask("GET", PATH)

    assert sample(answer.body, "timer") == 0


async def test_who_accepts_openmetrics_gets_it(door: Door) -> None:
    accepted = {"Accept": "application/openmetrics-text; version=1.0.0"}

    answer = await door.ask("GET", PATH, headers=accepted)

    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.body.endswith("# EOF\n")


async def test_without_the_extra_it_says_what_to_install(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(_: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(metrics, "find_spec", find_nothing)

    answer = await door.ask("GET", PATH)

    assert answer.status == 501
    assert answer.body == {"error": "Metrics need the extra 'telemetry'."}
