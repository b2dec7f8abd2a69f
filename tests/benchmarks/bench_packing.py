"""How much of what a learner computes is waste, on a mix of lengths as real data have.

    python -m tests.benchmarks.bench_packing [--tokens-per-row 16384] [--groups 64]

Prompts and completions have log-normal lengths (medians 2,100 and 128 tokens, sigma 0.5 and 0.7; 8 completions a
group). Prints JSON: tokens that rows repeat because a group did not fit into one, as a share of all; and the
padding inside attention's batches, as a share of their queries, and as a share of a pass's FLOPs in a language model
of the shape of Qwen2.5-VL-3B (PyTorch's kernels; flash-attn and FlexAttention have none).
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from grpo.groups import ScoredGroup
from tests.gpu.__main__ import attention_flops, num_flops, policy_3b
from tests.support import tiny
from tests.support.learners import packed


def mixed_groups(count: int) -> list[ScoredGroup]:
    rng = np.random.default_rng(0)
    groups = []
    for index in range(count):
        words = int(np.clip(rng.lognormal(np.log(2100), 0.5), 200, 12_000))
        question = " ".join(["red"] * words)
        lengths = np.clip(rng.lognormal(np.log(128), 0.7, size=8), 8, 768).astype(int).tolist()
        prompt = tiny.prompt(tiny.sample(f"s{index}", question=question), None)
        groups.append(tiny.ragged_group(prompt, lengths, seed=index))
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens-per-row", type=int, default=16_384)
    parser.add_argument("--groups", type=int, default=64)
    args = parser.parse_args()
    groups = mixed_groups(args.groups)
    rows = packed(groups, tokens_per_row=args.tokens_per_row)
    needed = sum(
        len(scored.group.prompt.token_ids) + sum(len(rollout.token_ids) for rollout in scored.group.rollouts)
        for scored in groups
    )
    computed = sum(len(row.input_ids_N) for row in rows)
    blocks = [block for row in rows for block in row.layout.blocks]
    queries = sum(block.prompt_PS.numel() + block.completion_PGL.numel() for block in blocks)
    policy = policy_3b(torch.device("meta"))
    padding_flops = attention_flops(policy, rows, is_padded=True) - attention_flops(policy, rows)
    result = {
        "groups": len(groups),
        "rows": len(rows),
        "mean_prompt_tokens": round(np.mean([len(scored.group.prompt.token_ids) for scored in groups])),
        "tokens_needed": needed,
        "tokens_computed": computed,
        "waste_frac": round(1 - needed / computed, 4),
        "row_fill_frac": round(computed / (len(rows) * args.tokens_per_row), 4),
        "attention_padding_frac": round(1 - computed / queries, 4),
        "padding_flops_frac": round(padding_flops / (num_flops(policy, rows) + padding_flops), 4),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
