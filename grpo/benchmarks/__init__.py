"""The benchmarks by their names: one small file for each, and `benchmark.py`, the types that they share."""

from __future__ import annotations

from grpo.benchmarks.benchmark import Benchmark
from grpo.data import FORMATS
from rewards.scoring.loading import did_you_mean

BENCHMARKS: dict[str, Benchmark] = {}
"""What is evaluated by name; beside these, each reader of `grpo.data.FORMATS` is a benchmark with our rules alone."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, or the plain one of a reader; ValueError that lists the known ones."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name in FORMATS:
        return Benchmark(name=name, reader=name)
    known = [*BENCHMARKS, *(each for each in FORMATS if each not in BENCHMARKS)]
    raise ValueError(f"unknown benchmark {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
