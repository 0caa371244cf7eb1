"""Who is fit for a task, who of those is preferred, and what is said when nobody can take it."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtomatika_core.job import WorkerId
from avtomatika_core.routing import (
    STRATEGIES,
    Candidate,
    Demand,
    Unfit,
    WorkerProfile,
    demand_of,
    profile_of,
    rank,
    unfitness,
    waiting_reason,
)

W = WorkerId("w")


def worker(name: str = "w", /, **said: Any) -> WorkerProfile:
    return profile_of(WorkerId(name), {"supported_tasks": ["t"], **said})


def names(ranked: list[Candidate]) -> list[str]:
    return [candidate.profile.worker_id for candidate in ranked]


# --- fitness --------------------------------------------------------------------------------------


def test_a_worker_is_fit_when_it_does_the_type_and_nothing_more_is_asked() -> None:
    assert unfitness(demand_of("t", {}), worker()) is None
    assert unfitness(demand_of("t", None), worker()) is None
    assert unfitness(demand_of("other"), worker()) is Unfit.TYPE


def test_a_draining_worker_gets_nothing_new() -> None:
    assert unfitness(demand_of("t"), worker(status="draining")) is Unfit.TYPE
    assert unfitness(demand_of("t"), worker(status="busy")) is None


@pytest.mark.parametrize("name", ["gpu_info", "gpu"])
def test_a_gpu_is_enough_by_part_of_its_name_and_its_memory(name: str) -> None:
    has = worker(resources={"gpu_info": {"model": "NVIDIA A100 80GB", "vram_gb": 80}})

    assert unfitness(demand_of("t", {name: {"model": "A100", "vram_gb": 80}}), has) is None
    assert unfitness(demand_of("t", {name: {"model": "H100"}}), has) is Unfit.RESOURCES
    assert unfitness(demand_of("t", {name: {"vram_gb": 81}}), has) is Unfit.RESOURCES
    assert unfitness(demand_of("t", {name: {"vram_gb": 1}}), worker()) is Unfit.RESOURCES
    assert unfitness(demand_of("t", {name: None}), worker()) is None


def test_all_models_must_be_installed_and_the_cores_be_enough() -> None:
    has = worker(
        resources={"cpu_cores": 4}, installed_models=[{"name": "llama"}, {"name": "whisper"}]
    )

    assert unfitness(demand_of("t", {"installed_models": ["llama"], "cpu_cores": 4}), has) is None
    assert unfitness(demand_of("t", {"installed_models": ["llama", "x"]}), has) is Unfit.RESOURCES
    assert unfitness(demand_of("t", {"cpu_cores": 5}), has) is Unfit.RESOURCES


def test_the_cost_is_the_skills_then_per_second_then_plain_then_unknown() -> None:  # R45
    costs: dict[str, Any] = {
        "capabilities": {"cost_per_skill": {"t": 0.1}},
        "cost_per_second": 2.0,
        "cost": 3.0,
    }

    assert worker(**costs).cost_of("t") == 0.1
    assert worker(**costs).cost_of("other") == 2.0
    assert worker(cost=3).cost_of("t") == 3.0
    assert unfitness(demand_of("t", max_cost=0.2), worker(**costs)) is None
    assert unfitness(demand_of("t", max_cost=0.05), worker(**costs)) is Unfit.COST
    assert unfitness(demand_of("t", max_cost=1e9), worker()) is Unfit.COST


def test_names_a_demand_does_not_know_are_ignored_and_told() -> None:
    demand = demand_of("t", {"color": "red", "gpu": {"cores": 3}})

    assert demand.ignored == ("color", "gpu.cores")
    assert unfitness(demand, worker()) is None


@pytest.mark.parametrize(
    ("requirements", "name"),
    [
        ({"cpu_cores": "four"}, "cpu_cores"),
        ({"cpu_cores": float("nan")}, "cpu_cores"),
        ({"gpu": "A100"}, "gpu"),
        ({"gpu_info": {"vram_gb": True}}, "gpu_info.vram_gb"),
        ({"gpu_info": {"model": 100}}, "gpu_info.model"),
        ({"installed_models": "llama"}, "installed_models"),
        ({"installed_models": [{"name": "llama"}]}, "installed_models"),
    ],
)
def test_a_requirement_that_cannot_be_read_is_met_by_nobody(
    requirements: dict[str, Any], name: str
) -> None:
    demand = demand_of("t", requirements)
    has_all = worker(
        resources={"cpu_cores": 99, "gpu_info": {"model": "A100", "vram_gb": 99}},
        installed_models=[{"name": "llama"}],
    )

    assert demand.unreadable == (name,)
    assert unfitness(demand, has_all) is Unfit.RESOURCES


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["model", "vram_gb", "name", "t", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
DOCUMENT_KEYS = [
    "status", "supported_tasks", "load", "hot_cache", "hot_skills", "skill_dependencies", "cost",
    "cost_per_second", "resources", "installed_models", "capabilities", "reputation",
]  # fmt: skip


@given(
    document=st.dictionaries(st.sampled_from(DOCUMENT_KEYS), json_values),
    requirements=st.none()
    | st.dictionaries(
        st.sampled_from(["gpu_info", "gpu", "cpu_cores", "installed_models", "else"]), json_values
    ),
    strategy=st.sampled_from([*sorted(STRATEGIES), "no such"]),
)
def test_whatever_worker_and_task_say_they_can_be_judged_and_ordered(
    document: dict[str, Any], requirements: dict[str, Any] | None, strategy: str
) -> None:
    profile = profile_of(W, {**document, "supported_tasks": ["t"]})
    profile_of(W, document)
    demand = demand_of("t", requirements, 1.0, strategy)
    hash(demand)

    ranked = rank(demand, [Candidate(profile=profile, draw=n) for n in (0.5, 0.25)])

    assert [one.draw for one in ranked] in ([], [0.25, 0.5])


# --- strategies -----------------------------------------------------------------------------------


def test_default_prefers_hot_then_cheap_then_well_reputed_workers() -> None:
    hot = Candidate(profile=worker("hot", hot_skills=["t"], cost=9))
    good = Candidate(profile=worker("good", cost=1, reputation=0.9))
    cheap = Candidate(profile=worker("cheap", cost=0.5, reputation=0.1))
    poor = Candidate(profile=worker("poor", cost=1, reputation=0.2))

    ranked = rank(demand_of("t"), [poor, good, cheap, hot])

    assert names(ranked) == ["hot", "cheap", "good", "poor"]


def test_a_worker_is_hot_when_the_tasks_models_are_loaded_or_it_says_so() -> None:  # R46
    assert worker(hot_cache=["t"]).is_hot_for("t")
    assert worker(hot_skills=["t"]).is_hot_for("t")
    needs: dict[str, Any] = {"skill_dependencies": {"t": ["m", "n"], "u": []}}
    assert worker(**needs, hot_cache=["m", "n", "o"]).is_hot_for("t")
    assert not worker(**needs, hot_cache=["m"]).is_hot_for("t")
    assert not worker(**needs, hot_cache=["m"]).is_hot_for("u")


def test_round_robin_prefers_who_waits_longest_and_first_who_never_had_one() -> None:
    late = Candidate(profile=worker("late"), last_turn=20)
    early = Candidate(profile=worker("early"), last_turn=10)
    never = Candidate(profile=worker("never"))

    assert names(rank(demand_of("t", strategy="round_robin"), [late, early, never])) == [
        "never", "early", "late",
    ]  # fmt: skip


def test_least_connections_looks_at_tasks_held_then_at_load() -> None:
    one = Candidate(profile=worker("one", load=0.0), held=1)
    busy = Candidate(profile=worker("busy", load=0.9))
    calm = Candidate(profile=worker("calm", load=0.1))

    assert names(rank(demand_of("t", strategy="least_connections"), [one, busy, calm])) == [
        "calm", "busy", "one",
    ]  # fmt: skip


def test_best_value_is_cost_by_reputation_and_without_costs_reputation() -> None:  # R52
    fair = Candidate(profile=worker("fair", cost=2, reputation=1.0))
    bad = Candidate(profile=worker("bad", cost=1, reputation=0.1))
    none = Candidate(profile=worker("none", cost=0, reputation=0))
    unknown = Candidate(profile=worker("unknown"))
    worse = Candidate(profile=worker("worse", reputation=0.5))
    demand = demand_of("t", strategy="best_value")

    assert names(rank(demand, [none, bad, fair])) == ["fair", "bad", "none"]
    assert names(rank(demand, [none, worse, unknown])) == ["unknown", "worse", "none"]


def test_overflow_takes_the_cheapest_below_the_limit_then_who_holds_fewest() -> None:
    full = Candidate(profile=worker("full", cost=1), held=2)
    fuller = Candidate(profile=worker("fuller", cost=0), held=3)
    dear = Candidate(profile=worker("dear", cost=9), held=1)

    ranked = rank(demand_of("t", strategy="overflow"), [fuller, full, dear], soft_limit=2)

    assert names(ranked) == ["dear", "full", "fuller"]


def test_an_unknown_strategy_is_the_default_one() -> None:
    assert demand_of("t", strategy="quickest") == demand_of("t")


profiles = st.builds(
    WorkerProfile,
    worker_id=st.sampled_from([WorkerId(f"w{n}") for n in range(50)]),
    supported_tasks=st.sampled_from([frozenset({"t"}), frozenset({"t", "u"}), frozenset({"u"})]),
    is_draining=st.sampled_from([False, False, False, True]),
    gpu_model=st.sampled_from([None, "A100", "NVIDIA A100"]),
    vram_gb=st.sampled_from([0.0, 40.0, 80.0]),
    cpu_cores=st.sampled_from([0.0, 4.0]),
    models=st.frozensets(st.sampled_from(["m", "n"])),
    cost=st.sampled_from([0.0, 0.5, 1.0, float("inf")]),
    hot_skills=st.sampled_from([frozenset[str](), frozenset({"t"})]),
    load=st.sampled_from([0.0, 0.5]),
    reputation=st.sampled_from([0.0, 0.5, 1.0]),
)
candidates = st.builds(
    Candidate,
    profile=profiles,
    held=st.integers(0, 4),
    last_turn=st.sampled_from([1.0, 2.0]),
    draw=st.floats(0, 1),
)
demands = st.builds(
    Demand,
    type=st.just("t"),
    strategy=st.sampled_from(sorted(STRATEGIES)),
    max_cost=st.sampled_from([None, 0.5, 1.0]),
    gpu_model=st.sampled_from(["", "A100"]),
    vram_gb=st.sampled_from([0.0, 40.0]),
    cpu_cores=st.sampled_from([0.0, 4.0]),
    models=st.frozensets(st.sampled_from(["m", "n"])),
)


def is_better(strategy: str, one: Candidate, other: Candidate) -> bool:
    """The order of each strategy in words, apart from how `preference` writes it."""
    a, b = one.profile, other.profile
    match strategy:
        case "round_robin":
            return one.last_turn < other.last_turn
        case "least_connections":
            return one.held < other.held or (one.held == other.held and a.load < b.load)
        case "cheapest":
            return a.cost < b.cost
        case "best_value":
            return a.cost * b.reputation < b.cost * a.reputation and a.reputation > 0
        case "overflow":
            if (one.held < 3) != (other.held < 3):
                return one.held < 3
            return a.cost < b.cost if one.held < 3 else one.held < other.held
        case _:
            if a.is_hot_for("t") != b.is_hot_for("t"):
                return a.is_hot_for("t")
            return a.cost < b.cost


@given(demand=demands, workers=st.lists(candidates, max_size=8))
def test_the_chosen_one_meets_every_requirement_and_no_better_one_was_passed_over(
    demand: Demand, workers: list[Candidate]
) -> None:
    ranked = rank(demand, workers)

    for candidate in ranked:
        profile = candidate.profile
        assert not profile.is_draining
        assert "t" in profile.supported_tasks
        assert demand.gpu_model in (profile.gpu_model or "")
        assert profile.vram_gb >= demand.vram_gb
        assert profile.cpu_cores >= demand.cpu_cores
        assert profile.models >= demand.models
        assert demand.max_cost is None or profile.cost <= demand.max_cost
    for passed_over in workers:
        if passed_over not in ranked:
            assert unfitness(demand, passed_over.profile) is not None
    for before, after in itertools.pairwise(ranked):
        assert not is_better(demand.strategy, after, before)
        if not is_better(demand.strategy, before, after):
            assert (-before.profile.reputation, before.draw) <= (
                -after.profile.reputation,
                after.draw,
            )


# --- reasons --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        ([], "No suitable workers for task type 't'"),
        ([Unfit.TYPE], "No suitable workers for task type 't'"),
        ([Unfit.TYPE, Unfit.RESOURCES], "No worker satisfies the resource requirements for task 't'"),
        ([Unfit.RESOURCES, Unfit.COST], "No worker meets the maximum cost (0.0002) for task 't'"),
        ([Unfit.COST, None], "All suitable workers for task type 't' are busy"),
    ],
)  # fmt: skip
def test_a_waiting_task_says_what_the_nearest_workers_lack(
    verdicts: list[Unfit | None], text: str
) -> None:
    assert waiting_reason(demand_of("t", max_cost=0.0002), verdicts) == text
