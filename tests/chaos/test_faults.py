"""A seed says what fails and when."""

from tests.chaos.faults import plan

MEMBERS = ["executor-1", "executor-2", "gateway-1"]
LINKS = ["clients", "executor-1"]


def test_a_seed_gives_one_plan() -> None:
    assert plan(7, 120, MEMBERS, LINKS) == plan(7, 120, MEMBERS, LINKS)
    assert plan(7, 120, MEMBERS, LINKS) != plan(8, 120, MEMBERS, LINKS)


def test_a_process_fails_every_two_seconds() -> None:
    faults = plan(7, 120, MEMBERS, LINKS)

    of_processes = [
        fault for fault in faults if fault.target in MEMBERS and _is_of_process(fault.kind)
    ]
    assert len(of_processes) == 60
    assert faults == sorted(faults, key=lambda fault: fault.at)


def test_a_plan_of_some_minutes_has_every_kind_of_fault() -> None:
    kinds = {fault.kind for fault in plan(7, 600, MEMBERS, LINKS)}

    assert kinds == {
        "kill",
        "restart",
        "short pause",
        "long pause",
        "cut",
        "delay",
        "half-open",
        "redis restart",
        "redis pause",
    }


def _is_of_process(kind: str) -> bool:
    return kind in {"kill", "restart", "short pause", "long pause"}
