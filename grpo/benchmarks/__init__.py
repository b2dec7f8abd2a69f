"""The benchmarks by their names: one small file for each, and `benchmark.py`, the types that they share."""

from __future__ import annotations

from grpo.benchmarks.benchmark import Benchmark
from grpo.benchmarks.egocross import EGOCROSS, EGOCROSS_OPEN
from grpo.benchmarks.egoplan import EGOPLAN, EGOPLAN2, EGOPLAN_LETTERS
from grpo.benchmarks.egoschema import EGOSCHEMA, EGOSCHEMA_FULL
from grpo.benchmarks.egotaskqa import EGOTASKQA
from grpo.benchmarks.egotempo import EGOTEMPO, EGOTEMPO_CHOICES
from grpo.benchmarks.egothink import EGOTHINK
from grpo.benchmarks.grounding import CHARADES_STA, EGO4D_NLQ
from grpo.benchmarks.hd_epic import HD_EPIC
from grpo.benchmarks.hourvideo import HOURVIDEO
from grpo.benchmarks.openeqa import OPENEQA, OPENEQA_184
from grpo.benchmarks.qaego4d import QAEGO4D, QAEGO4D_CLOSED
from grpo.benchmarks.video_mme import VIDEO_MME
from grpo.benchmarks.vsi_bench import VSI_BENCH
from grpo.data import FORMATS
from rewards.scoring.loading import did_you_mean

BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        EGOSCHEMA,
        EGOSCHEMA_FULL,
        EGOCROSS,
        EGOCROSS_OPEN,
        EGOPLAN,
        EGOPLAN_LETTERS,
        EGOPLAN2,
        OPENEQA,
        OPENEQA_184,
        VSI_BENCH,
        QAEGO4D,
        QAEGO4D_CLOSED,
        EGOTEMPO,
        EGOTEMPO_CHOICES,
        EGOTHINK,
        CHARADES_STA,
        EGO4D_NLQ,
        VIDEO_MME,
        HD_EPIC,
        EGOTASKQA,
        HOURVIDEO,
    )  # fmt: skip
}
"""What is evaluated by name; beside these, each reader of `grpo.data.FORMATS` is a benchmark with our rules alone."""


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name, or the plain one of a reader; ValueError that lists the known ones."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    if name in FORMATS:
        return Benchmark(name=name, reader=name)
    known = [*BENCHMARKS, *(each for each in FORMATS if each not in BENCHMARKS)]
    raise ValueError(f"unknown benchmark {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
