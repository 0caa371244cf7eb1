"""The view of the free workers: always the best one, at a cost that does not grow with their number."""

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from avtomatika_common.backend.ports import Places, Worker
from avtomatika_core.job import WorkerId
from avtomatika_core.routing import (
    NEVER,
    Candidate,
    Demand,
    Unfit,
    demand_of,
    preference,
    profile_of,
    rank,
    unfitness,
)
from avtomatika_dispatcher.free_workers import FreeWorkers

THRESHOLD = 0.3
DEMANDS = [
    demand_of("t"),
    demand_of("t", strategy="round_robin"),
    demand_of("t", strategy="least_connections", max_cost=1),
    demand_of("u", {"cpu_cores": 2}, strategy="overflow"),
    demand_of("u", strategy="best_value"),
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
    reputation: float,
) -> Worker:
    return Worker(
        worker_id=WorkerId(f"w{number}"),
        document={
            "supported_tasks": tasks,
            "cost": cost,
            "reputation": reputation,
            "resources": {"cpu_cores": cores, "max_concurrent_tasks": limit},
        },
        places=Places(incarnation=1, room=polls, held=held, stamp=0),
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
    st.sampled_from([0.1, 0.2, 0.3, 1.0]),
)
worker_ids = st.sampled_from([WorkerId(f"w{number}") for number in range(6)])
changes: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("replace"), workers),
    st.tuples(st.just("replace all"), st.lists(workers, unique_by=lambda w: w.worker_id)),
    st.tuples(st.just("remove"), worker_ids),
    st.tuples(st.just("hold back"), worker_ids),
    st.tuples(st.just("match"), st.sampled_from(DEMANDS)),
)


def with_places(worker: Worker, **changes: int) -> Worker:
    return replace(worker, places=replace(worker.places, **changes))


def candidate(demand: Demand, worker: Worker) -> Candidate:
    """A worker by what the store says of it, looked at alone."""
    profile = profile_of(worker.worker_id, worker.document)
    limit = profile.max_concurrent_tasks
    return Candidate(
        profile=profile,
        is_free=worker.places.room > 0 and (limit is None or worker.places.held < limit),
        held=worker.places.held,
        last_turn=worker.turns.get(demand.type, NEVER),
    )


@given(st.lists(changes, max_size=20))
def test_the_best_is_always_the_one_a_look_at_all_would_choose(
    story: list[tuple[str, Any]],
) -> None:
    view, model = FreeWorkers(3, lambda: 0.0, THRESHOLD), dict[WorkerId, Worker]()
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
                view.hold_back(value, stamp=0)
                if value in model:
                    model[value] = with_places(model[value], room=0)
            case _ if (best := view.best_for(value)) is not None:
                view.take(best, value.type, now)
                old = model[best]
                model[best] = replace(
                    with_places(old, room=old.places.room - 1, held=old.places.held + 1),
                    turns={**old.turns, value.type: now},
                )
            case _:
                pass
        for demand in DEMANDS:
            ranked = rank(demand, [candidate(demand, w) for w in model.values()], 3, THRESHOLD)
            best = view.best_for(demand)
            assert (best is None) == (not ranked)
            if best is not None:
                chosen = candidate(demand, model[best])
                assert chosen in ranked
                assert preference(demand, chosen) == preference(demand, ranked[0])
            verdicts = {
                unfitness(demand, profile_of(worker.worker_id, worker.document), THRESHOLD)
                for worker in model.values()
            }
            can_be_done = None in verdicts or Unfit.REPUTATION in verdicts
            assert ("are busy" in view.reason(demand)) == can_be_done


def idle_worker(number: int, *, reputation: float = 1.0, open_polls: int = 1) -> Worker:
    return Worker(
        worker_id=WorkerId(f"w{number}"),
        document={"supported_tasks": ["t"], "reputation": reputation},
        places=Places(incarnation=1, room=open_polls, held=0, stamp=0),
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


def test_a_look_costs_the_same_however_many_workers_of_low_reputation_wait_behind() -> None:
    looks = 0

    def draw() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    view = FreeWorkers(3, draw, THRESHOLD)
    view.replace_all(idle_worker(number, reputation=0.1) for number in range(2000))
    better = idle_worker(2000, open_polls=0)
    view.replace(better)
    assert view.best_for(DEMANDS[0]) is None
    looks = 0

    for _ in range(1000):
        view.replace(idle_worker(2000))
        assert view.best_for(DEMANDS[0]) == better.worker_id
        view.take(better.worker_id, "t", 1.0)
        assert view.best_for(DEMANDS[0]) is None
    view.remove(better.worker_id)

    assert view.best_for(DEMANDS[0]) is not None
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
