"""The view of the free workers: always the best one, at a cost that does not grow with their number."""

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from avtomatika_common.backend.ports import Worker
from avtomatika_core.job import WorkerId
from avtomatika_core.routing import Candidate, Demand, demand_of, preference, profile_of, unfitness
from avtomatika_dispatcher.free_workers import FreeWorkers

DEMANDS = [
    demand_of("t"),
    demand_of("t", strategy="round_robin"),
    demand_of("t", strategy="least_connections", max_cost=1),
    demand_of("u", {"cpu_cores": 2}, strategy="overflow"),
]


def a_worker(
    number: int,
    tasks: list[str],
    cost: int,
    cores: int,
    limit: int | None,
    polls: int,
    held: int,
    turns: dict[str, float],
) -> Worker:
    return Worker(
        worker_id=WorkerId(f"w{number}"),
        document={
            "supported_tasks": tasks,
            "cost": cost,
            "resources": {"cpu_cores": cores, "max_concurrent_tasks": limit},
        },
        incarnation=1,
        open_polls=polls,
        held=held,
        turns=turns,
    )


workers = st.builds(
    a_worker,
    st.integers(0, 5),
    st.lists(st.sampled_from(["t", "u"]), unique=True),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, 1, 2]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.dictionaries(st.sampled_from(["t", "u"]), st.sampled_from([1.0, 2.0])),
)
worker_ids = st.sampled_from([WorkerId(f"w{number}") for number in range(6)])
changes: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("replace"), workers),
    st.tuples(st.just("replace all"), st.lists(workers, unique_by=lambda w: w.worker_id)),
    st.tuples(st.just("remove"), worker_ids),
    st.tuples(st.just("hold back"), worker_ids),
    st.tuples(st.just("match"), st.sampled_from(DEMANDS)),
)


def place(demand: Demand, worker: Worker) -> tuple[float, ...] | None:
    """Where a free and fit worker stands, by looking at it alone."""
    profile = profile_of(worker.worker_id, worker.document)
    limit = profile.max_concurrent_tasks
    is_free = worker.open_polls > 0 and (limit is None or worker.held < limit)
    if not is_free or unfitness(demand, profile) is not None:
        return None
    turn = worker.turns.get(demand.type, float("-inf"))
    return preference(demand, Candidate(profile=profile, held=worker.held, last_turn=turn))


@given(st.lists(changes, max_size=20))
def test_the_best_is_always_the_one_a_look_at_all_would_choose(
    story: list[tuple[str, Any]],
) -> None:
    view, model = FreeWorkers(3, draw=lambda: 0.0), dict[WorkerId, Worker]()
    for now, (what, value) in enumerate(story, start=10):
        match what:
            case "replace":
                view.replace(value)
                model[value.worker_id] = value
            case "replace all":
                view.replace_all(value)
                model = {worker.worker_id: worker for worker in value}
            case "remove":
                view.remove(value)
                model.pop(value, None)
            case "hold back":
                view.hold_back(value)
                if value in model:
                    model[value] = replace(model[value], open_polls=0)
            case _ if (best := view.best_for(value)) is not None:
                view.take(best, value.type, now)
                old = model[best]
                model[best] = replace(
                    old,
                    open_polls=old.open_polls - 1,
                    held=old.held + 1,
                    turns={**old.turns, value.type: now},
                )
            case _:
                pass
        for demand in DEMANDS:
            places = [p for worker in model.values() if (p := place(demand, worker)) is not None]
            best = view.best_for(demand)
            best_place = None if best is None else place(demand, model[best])
            assert best_place == min(places, default=None)
            verdicts = {
                unfitness(demand, profile_of(worker.worker_id, worker.document))
                for worker in model.values()
            }
            assert ("are busy" in view.reason(demand)) == (None in verdicts)


def idle_worker(number: int) -> Worker:
    return Worker(
        worker_id=WorkerId(f"w{number}"),
        document={"supported_tasks": ["t"]},
        incarnation=1,
        open_polls=1,
        held=0,
        turns={},
    )


def test_a_match_looks_at_one_worker_however_many_are_free() -> None:
    looks = 0

    def draw() -> float:  # once for each worker that is put in its place
        nonlocal looks
        looks += 1
        return random.random()

    view = FreeWorkers(3, draw)
    view.replace_all(idle_worker(number) for number in range(2000))
    view.best_for(DEMANDS[0])
    looks = 0

    for _ in range(1000):
        best = view.best_for(DEMANDS[0])
        assert best is not None
        view.take(best, "t", 1.0)
        view.replace(idle_worker(int(best[1:])))

    assert looks == 1000


def test_equal_workers_take_turns_by_chance() -> None:
    view = FreeWorkers(3, random.Random(1).random)
    view.replace_all(idle_worker(number) for number in range(3))
    taken = list[WorkerId]()

    for _ in range(300):
        best = view.best_for(DEMANDS[0])
        assert best is not None
        view.take(best, "t", 1.0)
        view.replace(idle_worker(int(best[1:])))
        taken.append(best)

    assert all(70 < taken.count(worker) < 130 for worker in set(taken))
    assert len(set(taken)) == 3
