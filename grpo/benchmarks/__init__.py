"""The benchmarks by their names: each of `published/` is one, and `benchmark.py` has the types that they share.

The other files ask the questions, score the answers, and say how sure a score is.
"""

from __future__ import annotations

from grpo.benchmarks.benchmark import Benchmark
from grpo.benchmarks.published import BENCHMARKS
from grpo.data import FORMATS
from rewards.scoring.loading import did_you_mean


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, or the plain one of a reader; ValueError that lists the known ones."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name in FORMATS:
        return Benchmark(name=name, reader=name)
    known = [*BENCHMARKS, *(each for each in FORMATS if each not in BENCHMARKS)]
    raise ValueError(f"unknown benchmark {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
