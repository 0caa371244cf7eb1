"""What a worker says it can take."""

import pytest

from avtomatika_worker.advertise import Advertised, advertise, hot_skills
from avtomatika_worker.handlers import Handler, read_handler
from avtomatika_worker.orchestrators import Orchestrator, Turns, read_orchestrators


def a_task(name: str, task_type: str | None = None) -> Handler:
    return read_handler(name, task_type, lambda: None)


def advertised(
    *running: str | None, places: int = 3, limit: int = 1, refused: str = ""
) -> Advertised:
    return advertise(
        [a_task("read"), a_task("render", "gpu"), a_task("train", "gpu")],
        running=running,
        places=places,
        limits={"gpu": limit},
        has_capacity=lambda name: name != refused,
    )


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        (advertised(), Advertised(status="idle", supported_tasks=("read", "render", "train"))),
        (advertised("gpu"), Advertised(status="idle", supported_tasks=("read",))),
        (
            advertised("gpu", limit=2),
            Advertised(status="idle", supported_tasks=("read", "render", "train")),
        ),
        (
            advertised(refused="read"),
            Advertised(status="idle", supported_tasks=("render", "train")),
        ),
        (advertised("gpu", refused="read"), Advertised(status="busy", supported_tasks=())),
        (advertised(None, None, None), Advertised(status="busy", supported_tasks=())),
    ],
)
def test_only_what_could_start_now_is_advertised(offer: Advertised, expected: Advertised) -> None:
    assert offer == expected


def test_a_skill_is_hot_when_all_its_models_are_loaded() -> None:
    needs = {"draw": ("sd",), "chat": ("llama", "voice"), "count": ()}

    assert hot_skills(needs, {"sd", "llama"}) == ("draw",)
    assert hot_skills(None, {"sd"}) is None


def test_the_first_orchestrator_is_the_one_with_the_lowest_priority_then_url() -> None:
    orchestrators = read_orchestrators(
        [
            {"url": "http://c", "priority": 1},
            {"url": "http://b"},
            {"url": "http://a"},
        ]
    )

    assert [one.url for one in orchestrators] == ["http://c", "http://a", "http://b"]


def test_turns_follow_the_weights_without_bursts() -> None:
    turns = Turns()
    both = [Orchestrator(url="a", weight=3), Orchestrator(url="b")]

    assert "".join(turns.choose(both).url for _ in range(8)) == "aabaaaba"
