"""vLLM in each of the processes of torchrun, with an engine of its own or one that they share.

    torchrun --nproc_per_node 2 -m tests.support.engine_worker TENSOR_PARALLEL_SIZE OUT

Each process asks other prompts, and stores its groups and how far they are from the learner's log-probs.
"""

from __future__ import annotations

import os
import sys

import torch

from grpo.learner.launching import make_accelerator
from grpo.rollout.sync_proof import SyncProof, make_prompt
from tests.rollout.test_rollout import SAMPLING, SEEDS, TEMPERATURE, gap, prompts
from tests.support import tiny
from tests.support.engines import vllm_engine


def main(tensor_parallel_size: str, out: str) -> None:
    make_accelerator()
    rank = int(os.environ["RANK"])
    policy = tiny.policy(temperature=TEMPERATURE)
    proof = SyncProof(
        policy=policy, prompt=make_prompt(policy.family), dtype=torch.float32, max_gap=2e-3, every=1
    )
    engine = vllm_engine(policy, proof=proof, tensor_parallel_size=int(tensor_parallel_size))
    # One has more prompts than the other, and later none.
    own = [slice(0, 4), slice(4, 6)][rank]
    told: list[int] = []
    before = engine.generate(
        prompts()[own], SAMPLING, SEEDS[own], on_group=lambda group: told.append(len(group.rollouts))
    )
    tiny.stir(dict(policy.named_parameters()), 5)
    engine.sync()
    after = engine.generate(prompts()[own], SAMPLING, SEEDS[own])
    few = engine.generate(prompts()[:1][rank:], SAMPLING, SEEDS[:1][rank:])
    found = {
        "tokens": [[rollout.token_ids for rollout in group.rollouts] for group in before],
        "moved": [[rollout.token_ids for rollout in group.rollouts] for group in after],
        "gaps": (gap(policy, after), gap(policy, few) if few else 0.0),
        "told": told,
        "few": len(few),
    }
    corrupted = dict(policy.named_weights())
    name = "model.language_model.layers.1.self_attn.k_proj.weight"
    engine.weights.load((n, -w if n == name else w) for n, w in [*corrupted.items(), _head(policy)])
    found["differing"] = engine._differing()
    torch.save(found, f"{out}.{rank}")
    engine.close()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _head(policy) -> tuple[str, torch.Tensor]:
    return "lm_head.weight", policy.model.lm_head.weight.detach()


if __name__ == "__main__":
    main(*sys.argv[1:])
