"""Rows that several processes compute together: the gradient, log-probs and update of one process.

    torchrun --nproc_per_node 2 -m tests.support.split_worker CASE SIZE OUT.pt

SIZE is how many of them share each row. The first process stores what was found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import grpo.policy.model
from grpo.config.learner import LossConfig, OptimConfig
from grpo.groups import ScoredGroup
from grpo.learner.balance import balanced
from grpo.learner.launching import make_accelerator, shards_weights, split_over
from grpo.learner.losses import step_counts
from grpo.learner.update import Learner
from grpo.media.memory_cache import MemoryCache
from grpo.packing import PackedRow, Segment, build_row, by_completion, pack, segments_of
from grpo.policy.model import Policy
from grpo.policy.sequence_split import SequenceSplit
from grpo.policy.vision_features import FeatureCache
from tests.support import grown, tiny
from tests.support.launched import allow_fsdp_on_cpu
from tests.support.learners import gradient_of, moved_policy
from tests.support.sharded_worker import family_of

FROZEN: dict[str, Any] = {"frozen": ("vision", "merger")}
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "checkpointed": {"gradient_checkpointing": True},
    "frozen tower": FROZEN,
    "lora": {"lora": tiny.LORA},
    "text alone": {},
    "full of qwen2_vl": {},
    "full of qwen3_vl": {},
    "frozen tower of qwen3_vl": FROZEN,
    "full of qwen3_vl_untied_grown": {},
    "lora of qwen2_5_vl_grown": {"lora": tiny.LORA},
}
TOKENS_PER_ROW = 600
OPTIM = OptimConfig(lr=1e-3, max_grad_norm=0.01, num_iterations=2)
# All terms of a loss that a split might count twice.
LOSS = LossConfig(beta=0.04, top_entropy_quantile=0.5, entropy_coef=0.01)


def found(case: str, size: int) -> dict[str, Any]:
    """What a learner finds, whose rows are computed by so many processes each; each samples its share of the groups."""
    with patch.object(grpo.policy.model, "HEAD_CHUNK_TOKENS", 16):
        return found_by(make_accelerator(), case, size)


def found_by(accelerator: Accelerator, case: str, size: int) -> dict[str, Any]:
    split = split_over(accelerator, size)
    policy = make_policy(case, accelerator)
    learner = Learner(
        policy,
        accelerator,
        loss=LOSS,
        optim=OPTIM,
        num_steps=10,
        load_reference=lambda _: moved_policy(),
        split=split,
    )
    groups = [each for each in groups_of(policy) if case != "text alone" or not each.group.prompt.clips]
    # In each group one completion that is only watched.
    groups = [replace(each, advantages=(None, *each.advantages[1:])) for each in groups]
    own = groups[accelerator.process_index :: accelerator.num_processes]
    counts = step_counts(own, max_new_tokens=24, gather=gather_object)
    rows, watched = (rows_of(own, accelerator, split, trained=trained) for trained in (True, False))
    of_own = [row_of(scored, policy) for scored in own]
    references = by_completion(zip(of_own, learner.reference_logps_of_own(of_own), strict=True))
    num_uploads = len(policy.uploads._kept)
    gradient = None
    # DeepSpeed makes its step as soon as it has the gradient, and FSDP2 has a part of it.
    if accelerator.distributed_type in ("NO", "MULTI_CPU"):
        learner.forward_backward(learner.prepare(rows, counts, watched))
        gradient = gradient_of(policy)
        learner.optimizer.zero_grad()
    result = learner.update(rows, counts, 1, watched=watched)
    return {
        "gradient": gradient,
        "references": merged(references),
        "logps": merged(result.logps),
        "figures": result.metrics.reduced(gather_object),
        "weights": {name: weight.clone() for name, weight in policy.named_weights()},
        "rows": len(rows),
        "watched": len(watched),
        "uploads": num_uploads,
    }


def groups_of(policy: Policy) -> list[ScoredGroup]:
    """Ragged groups, of a model with codes also some that have codes."""
    coded = grown.coded_groups() if policy.family.vocabulary is not None else []
    return [*tiny.with_several_media(), *coded]


def rows_of(
    own: Sequence[ScoredGroup], accelerator: Accelerator, split: SequenceSplit, *, trained: bool
) -> list[PackedRow]:
    """A process's rows of the completions that are trained on, or of those that are only watched."""
    segments = segments_of(own, tokens_per_row=TOKENS_PER_ROW, drop_flat=False, trained=trained)
    return pack(balanced(segments, accelerator, split), tiny.family(), tokens_per_row=TOKENS_PER_ROW)


def make_policy(case: str, accelerator: Accelerator) -> Policy:
    policy = tiny.policy(seed=1, sharded=shards_weights(accelerator), **CASES[case])
    if "frozen tower" in case and not policy.sharded:
        policy.feature_cache = FeatureCache(policy.model.model.visual, memory=MemoryCache(max_gib=0.1))
    return policy


def row_of(scored: ScoredGroup, policy: Policy) -> PackedRow:
    zeros = (0.0,) * len(scored.group.rollouts)
    return build_row(
        [Segment(prompt=scored.group.prompt, rollouts=scored.group.rollouts, advantages=zeros)], policy.family
    )


def merged(of_process: Any) -> dict[bytes, list[float]]:
    """The completions of all processes, each of which one process alone may name."""
    parts = gather_object([dict(of_process)])
    whole = {key: values for part in parts for key, values in part.items()}
    assert len(whole) == sum(map(len, parts))
    return whole


def main(case: str, size: str, out: str) -> None:
    allow_fsdp_on_cpu()
    with tiny.of_family(family_of(case)):
        # A model that is made later is split among the processes.
        tiny.family()
        result = found(case, int(size))
    if torch.distributed.get_rank() == 0:
        torch.save(result, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
