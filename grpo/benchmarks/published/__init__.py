"""The published benchmarks: one small file for each, and here the table of them all."""

from __future__ import annotations

from grpo.benchmarks.benchmark import Benchmark
from grpo.benchmarks.published.egocross import EGOCROSS, EGOCROSS_OPEN
from grpo.benchmarks.published.egoplan import EGOPLAN, EGOPLAN2, EGOPLAN_FRAME, EGOPLAN_LETTERS
from grpo.benchmarks.published.egoschema import EGOSCHEMA, EGOSCHEMA_FULL
from grpo.benchmarks.published.egotaskqa import EGOTASKQA
from grpo.benchmarks.published.egotempo import EGOTEMPO, EGOTEMPO_CHOICES
from grpo.benchmarks.published.egothink import EGOTHINK
from grpo.benchmarks.published.grounding import CHARADES_STA, EGO4D_NLQ
from grpo.benchmarks.published.hd_epic import HD_EPIC
from grpo.benchmarks.published.hourvideo import HOURVIDEO
from grpo.benchmarks.published.openeqa import OPENEQA, OPENEQA_184
from grpo.benchmarks.published.qaego4d import QAEGO4D, QAEGO4D_CLOSED
from grpo.benchmarks.published.video_mme import VIDEO_MME
from grpo.benchmarks.published.vsi_bench import VSI_BENCH

BENCHMARKS: dict[str, Benchmark] = {
    each.name: each
    for each in (
        EGOSCHEMA,
        EGOSCHEMA_FULL,
        EGOCROSS,
        EGOCROSS_OPEN,
        EGOPLAN,
        EGOPLAN_FRAME,
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
