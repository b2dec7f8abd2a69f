"""One update in each of the processes of torchrun, with all rows on the first; the first one stores the gradient.

torchrun --nproc_per_node 2 tests/support/learner_worker.py CASE ROWS_OF_THE_SECOND OUT.pt [lacks memory]
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from tests.learner.test_learner_options import CASES
from tests.support import tiny
from tests.support.learners import (
    LONG,
    SHORT,
    counts_of,
    gradient_of,
    lack_memory,
    moved_policy,
    packed,
    text_groups,
    updated,
)


def main(case: str, second: str, out: str, lacks: str = "") -> None:
    groups, policy = text_groups(lengths_of=LONG if lacks else SHORT), tiny.policy(seed=1)
    settings = CASES[case]
    dist.init_process_group("gloo")
    # A group in a row.
    rows = packed(groups, tokens_per_row=130 if lacks else 60, drop_flat=not settings.needs_flat_groups)
    own = rows[int(second) :] if dist.get_rank() == 0 else rows[: int(second)]
    if lacks and dist.get_rank() == 0:
        lack_memory(policy, max(len(row.input_ids_N) for row in own) - 1, way="backward")
    figures = updated(policy, own, counts_of(groups), loss=settings, reference=moved_policy())
    if dist.get_rank() == 0:
        torch.save((figures["loss"], gradient_of(policy), figures.get("optim/split_rows", 0)), out)
    dist.barrier()
    dist.destroy_process_group()  # without it a thread of gloo's may outlive the interpreter: SIGABRT, now and then


if __name__ == "__main__":
    main(*sys.argv[1:])
