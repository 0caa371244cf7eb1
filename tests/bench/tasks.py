"""Tasks over HTTP: an engine process, raw workers in another, and Redis, on loopback.

`python tests/bench/tasks.py` prints, each beside the floor that was measured in the same run:

  plain      jobs of one task per second, one task per poll and one result per request
  batched    the same with several tasks per poll and several results per request
  latency    from making a job until a parked worker has its task, one job at a time; at once and
             when everybody has rested
  parked     memory of a gateway for each of 10,000 parked polls, from making a job until the
             chosen worker has its task, and what is left when all connections are closed
  fanout     time per branch of a job with 100 branches and of one with 10,000

It asserts no times. `--only plain` (or several, with commas) runs a part.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench import parked
from tests.bench.report import percentiles, row
from tests.bench.worlds import REST_SECONDS, Options, World, a_world

FLOOR_SECONDS = 2.0


class Throughput(NamedTuple):
    per_second: float
    cpu: str


def run_jobs(world: World, options: Options, batch: int) -> Throughput:
    world.worker.ask(
        "work",
        port=world.engine_port,
        workers=options.workers,
        connections=options.connections_for(batch),
        batch=batch,
    )
    ran = world.engine.ask("jobs", count=options.jobs, in_flight=options.in_flight)
    finished = world.worker.ask("finish")
    if finished["refused"]:
        row("results that the engine refused", f"{finished['refused']:,}")
    each = 1e6 / options.jobs
    cpu = (
        f"{ran['cpu'] * each:,.0f} / {finished['cpu'] * each:,.0f} / {ran['redis_cpu'] * each:,.0f}"
    )
    return Throughput(options.jobs / ran["seconds"], cpu)


def floor_per_second(world: World, options: Options, batch: int) -> float:
    world.worker.ask(
        "work",
        port=world.bare_port,
        workers=options.workers,
        connections=options.connections_for(batch),
        batch=batch,
    )
    time.sleep(FLOOR_SECONDS)
    finished = world.worker.ask("finish")
    return float(finished["done"] / finished["seconds"])


def throughput(options: Options, batch: int, name: str, asked: str) -> None:
    floor, best = 0.0, Throughput(0.0, "")
    with a_world() as world:
        if batch:
            probe = world.worker.ask("has_batches", port=world.engine_port)
            if not probe["is_there"]:
                row(f"{name}, jobs of one task", "not there", f"tasks/results: {probe['answer']}")
                return
        for _ in range(options.rounds):  # in turns: the machine's mood hits both alike
            floor = max(floor, floor_per_second(world, options, batch))
            best = max(best, run_jobs(world, options, batch))
    unit = f"tasks/s in batches of {batch}" if batch else "pairs of poll and result/s"
    row(f"{name}, floor: bare aiohttp server", f"{floor:,.0f}", unit)
    row(
        f"{name}, jobs of one task",
        f"{best.per_second:,.0f}",
        f"jobs/s, {best.per_second / floor:.2f} of the floor (asked: {asked})",
    )
    row(f"{name}, CPU: engine / workers / Redis", best.cpu, "µs per job")


def plain(options: Options) -> None:
    throughput(options, 0, "plain", "2,000 jobs/s or 0.25")


def batched(options: Options) -> None:
    throughput(options, options.batch, "batched", "3,500 jobs/s")


def latency(options: Options) -> None:
    count = min(options.jobs, 1000)
    with a_world() as world:
        bare = world.worker.ask("round_trips", port=world.bare_port, count=2000)["milliseconds"]
        row("latency, bare aiohttp round trip, p50 / p99", percentiles(bare), "ms")
        for rest_seconds, when in (
            (0.0, ""),
            (REST_SECONDS, f", after {REST_SECONDS:g} s of rest"),
        ):
            asked = {"count": count, "rest_seconds": rest_seconds}
            redis = world.engine.ask("round_trips", **asked)["milliseconds"]
            world.worker.ask("work", port=world.engine_port, workers=1, connections=1)
            world.engine.ask(
                "one_by_one",
                task_types=["echo"] * count,
                rest_seconds=rest_seconds,
                worker_id="bench-0",
            )
            finished: dict[str, Any] = world.worker.ask("finish")
            submit, dispatch = finished["since_submit"], finished["since_dispatch"]
            floor = statistics.median(redis)
            times = f"{statistics.median(submit) / floor:.0f} of them"
            row(f"bare EVALSHA round trip{when}", percentiles(redis), "ms")
            row(f"submit to worker{when}", percentiles(submit), f"ms, {times} (asked p50 2)")
            row(f"of it handler to worker{when}", percentiles(dispatch), "ms")


def fan_out(options: Options) -> None:
    """Time per branch of a job with few branches and of one with many."""
    few = 100
    with a_world() as world:
        probe = world.worker.ask("has_batches", port=world.engine_port)
        batch = options.batch if probe["is_there"] else 0

        def per_branch(branches: int, times: int) -> float:
            """Milliseconds, the median of so many jobs."""
            took = [world.engine.ask("fan_out", branches=branches)["seconds"] for _ in range(times)]
            return 1000 * statistics.median(took) / branches

        world.worker.ask(
            "work",
            port=world.engine_port,
            workers=options.workers,
            connections=options.connections_for(batch),
            batch=batch,
        )
        per_branch(few, 3)
        small = per_branch(few, 20)
        large = per_branch(options.branches, options.rounds)
        world.worker.ask("finish")
    protocol = f"batches of {batch}" if batch else "plain protocol"
    row(f"fan-out, {few} branches", f"{small:.3f}", f"ms per branch, {protocol}")
    row(
        f"fan-out, {options.branches:,} branches",
        f"{large:.3f}",
        f"ms per branch, {large / small:.2f} of that (asked: 1.3)",
    )


PARTS: dict[str, Callable[[Options], None]] = {
    "plain": plain,
    "batched": batched,
    "latency": latency,
    "parked": parked.run,
    "fanout": fan_out,
}


def parts(names: str) -> list[str]:
    chosen = names.split(",")
    if unknown := set(chosen) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}"
        )
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=5000, help="jobs per round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts (%(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="workers (%(default)s)")
    parser.add_argument(
        "--connections", type=int, default=16, help="open polls of each worker (%(default)s)"
    )
    parser.add_argument(
        "--batch-connections", type=int, default=2, help="the same, batched (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="tasks per poll (%(default)s)")
    parser.add_argument("--in-flight", type=int, default=200, help="jobs at a time (%(default)s)")
    parser.add_argument("--parked", type=int, default=10_000, help="parked polls (%(default)s)")
    parser.add_argument(
        "--branches", type=int, default=10_000, help="branches of the large job (%(default)s)"
    )
    parser.add_argument(
        "--only", type=parts, default=list(PARTS), metavar="NAME[,NAME]", help="parts to run"
    )
    options = parser.parse_args(namespace=Options())
    print(
        f"\nTasks over HTTP: {options.jobs:,} jobs, best of {options.rounds},"
        f" {options.workers} workers of {options.connections} connections,"
        f" {options.in_flight} jobs at a time\n"
    )
    for name in options.only:
        PARTS[name](options)


if __name__ == "__main__":
    main()
