"""How benchmarks print: one aligned line for each figure."""

import statistics
from collections.abc import Sequence


def row(name: str, value: str, note: str = "") -> None:
    print(f"  {name:<44}{value:>16}   {note}", flush=True)


def percentiles(values: Sequence[float], digits: int = 3) -> str:
    """p50 / p99."""
    cut = statistics.quantiles(values, n=100)
    return f"{cut[49]:.{digits}f} / {cut[98]:.{digits}f}"
