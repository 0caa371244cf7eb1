"""Who is fit for a task, who of those is preferred, and what is said when nobody can take it."""

import itertools
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from avtomatika_core.job import WorkerId
from avtomatika_core.routing import (
    STRATEGIES,
    Candidate,
    Demand,
    Unfit,
    WorkerProfile,
    demand_of,
    missing_resources,
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
    assert unfitness(demand_of("t"), worker(status="draining")) is Unfit.DRAINING
    assert unfitness(demand_of("t"), worker(status="busy")) is None


def test_a_worker_gets_only_the_types_it_may_be_given() -> None:
    may = worker(supported_tasks=["t", "u"], allowed_skills=["u"])

    assert unfitness(demand_of("t"), may) is Unfit.NOT_ALLOWED
    assert unfitness(demand_of("u"), may) is None


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


def test_an_installed_artifact_counts_as_an_installed_model() -> None:
    has = worker(installed_models=[{"name": "llama"}], installed_artifacts=[{"name": "whisper"}])

    assert unfitness(demand_of("t", {"installed_models": ["llama", "whisper"]}), has) is None


@pytest.mark.parametrize(
    ("wanted", "fits", "fails"),
    [
        (8, [8, 8.5, 100], [7.9, "8", True, [8], None]),
        (-5, [-5, 0], [-6]),
        ("eu", ["eu"], ["EU", "europe", ["eu"], None]),
        (True, [True], [False, 1, "true", None]),
        (False, [False], [True, 0, None]),
        (["a", 1, False], ["a", 1, 1.0, False], ["b", 2, True, 0, ["a"], None]),
        (None, [None, "anything"], []),
    ],
)
def test_a_property_is_at_least_a_number_equal_to_a_word_or_one_of_a_list(
    wanted: object, fits: list[object], fails: list[object]
) -> None:
    demand = demand_of("t", {"properties": {"p": wanted}})

    assert not demand.ignored
    assert not demand.unreadable
    for value in fits:
        assert unfitness(demand, worker(capabilities={"extra": {"p": value}})) is None
    for value in fails:
        has = worker(capabilities={"extra": {"p": value}})
        assert unfitness(demand, has) is Unfit.RESOURCES
    if wanted is not None:
        assert unfitness(demand, worker(capabilities={"extra": ["p"]})) is Unfit.RESOURCES


def test_demands_with_properties_that_python_takes_for_equal_stay_apart() -> None:
    def wish(value: object) -> Demand:
        return demand_of("t", {"properties": {"p": value}})

    assert len({wish(True), wish([1]), wish([True]), wish(1), wish("true")}) == 5
    assert demand_of("t", {"properties": {"a": 1, "b": 2}}) == demand_of(
        "t", {"properties": {"b": 2, "a": 1}}
    )


def test_the_cost_is_the_skills_then_per_second_then_plain_then_unknown() -> None:
    """R45."""
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
        ({"properties": ["ssd"]}, "properties"),
        ({"properties": {"zone": {"name": "eu"}}}, "properties.zone"),
        ({"properties": {"zone": []}}, "properties.zone"),
        ({"properties": {"zone": ["eu", ["us"]]}}, "properties.zone"),
        ({"properties": {"disk": float("inf")}}, "properties.disk"),
    ],
)
def test_a_requirement_that_cannot_be_read_is_met_by_nobody(
    requirements: dict[str, Any], name: str
) -> None:
    demand = demand_of("t", requirements)
    has_all = worker(
        resources={"cpu_cores": 99, "gpu_info": {"model": "A100", "vram_gb": 99}},
        installed_models=[{"name": "llama"}],
        capabilities={"extra": {"zone": "eu", "disk": 9}},
    )

    assert demand.unreadable == (name,)
    assert missing_resources(demand, has_all) == [f"requirement '{name}' cannot be read"]
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


def test_a_worker_is_hot_when_the_tasks_models_are_loaded_or_it_says_so() -> None:
    """R46."""
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


def test_best_value_is_cost_by_reputation_and_without_costs_reputation() -> None:
    """R52."""
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


def test_a_worker_of_low_reputation_is_taken_only_where_no_better_one_lives() -> None:
    low = Candidate(profile=worker("low", reputation=0.29, cost=0))
    lower = Candidate(profile=worker("lower", reputation=0.1, cost=1))
    good = Candidate(profile=worker("good", reputation=0.3, cost=9))
    busy = Candidate(profile=worker("busy", reputation=0.3), is_free=False)
    other = Candidate(profile=worker("other", supported_tasks=["u"]))
    demand = demand_of("t", strategy="cheapest")

    assert names(rank(demand, [low, good, lower], min_reputation=0.3)) == ["good"]
    assert names(rank(demand, [low, busy], min_reputation=0.3)) == []
    assert names(rank(demand, [lower, low, other], min_reputation=0.3)) == ["low", "lower"]
    assert names(rank(demand, [low, good])) == ["low", "good"]
    assert unfitness(demand, low.profile, 0.3) is Unfit.REPUTATION


properties = st.dictionaries(
    st.sampled_from(["p", "q"]), st.sampled_from([1, 2.5, True, False, "a", "b"]), max_size=2
)
wishes = st.dictionaries(
    st.sampled_from(["p", "q"]),
    st.sampled_from([1, 2, True, False, "a", ["a", 1], [True]]),
    max_size=2,
)
profiles = st.builds(
    WorkerProfile,
    worker_id=st.sampled_from([WorkerId(f"w{n}") for n in range(50)]),
    supported_tasks=st.sampled_from([frozenset({"t"}), frozenset({"t", "u"}), frozenset({"u"})]),
    is_draining=st.sampled_from([False, False, False, True]),
    gpu_model=st.sampled_from([None, "A100", "NVIDIA A100"]),
    vram_gb=st.sampled_from([0.0, 40.0, 80.0]),
    cpu_cores=st.sampled_from([0.0, 4.0]),
    models=st.frozensets(st.sampled_from(["m", "n"])),
    properties=properties,
    cost=st.sampled_from([0.0, 0.5, 1.0, float("inf")]),
    hot_skills=st.sampled_from([frozenset[str](), frozenset({"t"})]),
    load=st.sampled_from([0.0, 0.5]),
    reputation=st.sampled_from([0.0, 0.5, 1.0]),
)
candidates = st.builds(
    Candidate,
    profile=profiles,
    is_free=st.sampled_from([True, True, False]),
    held=st.integers(0, 4),
    last_turn=st.sampled_from([1.0, 2.0]),
    draw=st.floats(0, 1),
)


@st.composite
def _demands(draw: st.DrawFn) -> Demand:
    resources: dict[str, Any] = {
        "gpu": {
            "model": draw(st.sampled_from([None, "A100"])),
            "vram_gb": draw(st.sampled_from([0, 40])),
        },
        "cpu_cores": draw(st.sampled_from([0, 4])),
        "installed_models": draw(st.lists(st.sampled_from(["m", "n"]))),
        "properties": draw(wishes),
    }
    max_cost = draw(st.sampled_from([None, 0.5, 1.0]))
    return demand_of("t", resources, max_cost, draw(st.sampled_from(sorted(STRATEGIES))))


demands = _demands()


def has_property(profile: WorkerProfile, name: str, wanted: object) -> bool:
    """The rule of properties in words, apart from how `unfitness` follows it."""
    value = profile.properties.get(name)
    if isinstance(wanted, list):
        return any(type(value) is type(one) and value == one for one in cast("list[Any]", wanted))
    if isinstance(wanted, bool | str):
        return type(value) is type(wanted) and value == wanted
    assert isinstance(wanted, int | float)
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= wanted


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


@given(
    demand=demands, workers=st.lists(candidates, max_size=8), threshold=st.sampled_from([0, 0.3])
)
def test_the_chosen_one_meets_every_requirement_and_no_better_one_was_passed_over(
    demand: Demand, workers: list[Candidate], threshold: float
) -> None:
    ranked = rank(demand, workers, min_reputation=threshold)

    fit = [one for one in workers if meets(demand, one.profile)]
    well_reputed = [one for one in fit if one.profile.reputation >= threshold]
    assert sorted(ranked, key=id) == sorted(
        (one for one in well_reputed or fit if one.is_free), key=id
    )
    for before, after in itertools.pairwise(ranked):
        assert not is_better(demand.strategy, after, before)
        if not is_better(demand.strategy, before, after):
            assert (-before.profile.reputation, before.draw) <= (
                -after.profile.reputation,
                after.draw,
            )


def meets(demand: Demand, profile: WorkerProfile) -> bool:
    """What a task asks for, in words, apart from how `unfitness` writes it."""
    return (
        not profile.is_draining
        and "t" in profile.supported_tasks
        and demand.gpu_model in (profile.gpu_model or "")
        and profile.vram_gb >= demand.vram_gb
        and profile.cpu_cores >= demand.cpu_cores
        and profile.models >= demand.models
        and all(has_property(profile, w.name, json.loads(w.wanted)) for w in demand.properties)
        and (demand.max_cost is None or profile.cost <= demand.max_cost)
    )


@given(demand=demands, profile=profiles)
def test_whoever_is_unfit_for_its_resources_is_told_which(
    demand: Demand, profile: WorkerProfile
) -> None:
    profile = replace(profile, supported_tasks=frozenset({"t"}), is_draining=False)

    assert bool(missing_resources(demand, profile)) == (
        unfitness(demand, profile) is Unfit.RESOURCES
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
        ([Unfit.REPUTATION], "All suitable workers for task type 't' are busy"),
        ([Unfit.DRAINING, Unfit.NOT_ALLOWED], "No suitable workers for task type 't'"),
    ],
)  # fmt: skip
def test_a_waiting_task_says_what_the_nearest_workers_lack(
    verdicts: list[Unfit | None], text: str
) -> None:
    assert waiting_reason(demand_of("t", max_cost=0.0002), verdicts) == text


def test_what_a_worker_lacks_is_told_with_what_is_wanted() -> None:
    demand = demand_of(
        "t",
        {
            "gpu": {"model": "H100", "vram_gb": 80},
            "cpu_cores": 8,
            "installed_models": ["llama", "whisper"],
            "properties": {"disk": 100, "zone": ["eu", "us"], "ssd": True, "os": "linux"},
        },
    )
    has = worker(
        resources={"gpu_info": {"model": "T4", "vram_gb": 16}, "cpu_cores": 4},
        installed_models=[{"name": "llama"}],
        capabilities={"extra": {"disk": 50, "zone": "asia", "os": "linux"}},
    )

    assert missing_resources(demand, has) == [
        "has GPU 'T4', wanted is 'H100'",
        "has 16 GB of GPU memory, wanted are 80",
        "has 4 CPU cores, wanted are 8",
        "model whisper is not installed",
        "property 'disk' does not fit, wanted is at least 100",
        "property 'ssd' is not given, wanted is true",
        """property 'zone' does not fit, wanted is one of ["eu", "us"]""",
    ]
    assert missing_resources(demand_of("t", {"gpu": {"model": "H100"}}), worker()) == [
        "has no GPU, wanted is 'H100'"
    ]


def test_what_is_told_of_long_values_stays_short() -> None:
    demand = demand_of("t", {"properties": {"p": "x" * 1000}})

    [told] = missing_resources(demand, worker(capabilities={"extra": {"p": "y" * 1000}}))

    assert len(told) < 250
