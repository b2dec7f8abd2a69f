"""Shared-prefix rows against one forward and backward per completion, in the same process.

    python -m tests.benchmarks.bench_learner [--prompt 2100] [--group-size 8] [--completion 128] [--rounds 3]

Prints JSON: seconds and peak memory of both, their ratio, and the ratio that counting tokens allows; and what share
of a pass a frozen vision tower takes when a clip comes for the first and for the second time. The model is a random
Qwen2.5-VL of 6 layers, hidden size 256, built from the shipped policy's config.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from grpo.config.model import Part
from grpo.groups import Group, Prompt, Rollout, Sample, ScoredGroup
from grpo.media.memory_cache import MemoryCache
from grpo.packing import PackedRow, pack, segments_of
from grpo.policy.model import Policy
from grpo.policy.vision_features import FeatureCache
from tests.support import tiny
from tests.support.clips import clip_of


def bench_policy(frozen: Collection[Part] = ()) -> Policy:
    """6 layers, hidden size 256: the size at which the layout was designed."""
    family = tiny.family()
    config = family.config.__class__.from_dict(family.config.to_dict())
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 256, 768, 6
    text.num_attention_heads, text.num_key_value_heads = 8, 4
    text.layer_types = ["full_attention"] * 6
    config.vision_config.out_hidden_size = 256
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    return Policy(model, replace(family, config=config), temperature=1.0, frozen=frozen).train()


def bench_group(policy: Policy, prompt_tokens: int, group_size: int, completion_tokens: int) -> ScoredGroup:
    """A group whose prompt is a clip of 16 x 16 patches a frame, with text up to the wanted length."""
    rng = np.random.default_rng(0)
    num_frames = 2 * max(1, (prompt_tokens - 40) // 64)
    frames = rng.integers(0, 256, (num_frames, 224, 224, 3), dtype=np.uint8)
    clip = clip_of(frames)
    sample = Sample(id="bench", question="Q", answer="A", task="text", source="bench")
    prompt = policy.family.render(sample, clip, template="{question}", option="", tags=())
    filler = tuple(rng.integers(0, 300, prompt_tokens - len(prompt.token_ids)).tolist())
    prompt = Prompt(sample=sample, clip=clip, token_ids=prompt.token_ids + filler, tags=())
    rollouts = tuple(
        Rollout(
            sample=sample,
            clip=clip,
            tags=(),
            text="",
            token_ids=tuple(rng.integers(0, 300, completion_tokens).tolist()),
            logprobs=(0.0,) * completion_tokens,
            stopped=True,
        )
        for _ in range(group_size)
    )
    advantages = tuple(rng.normal(size=group_size).tolist())
    return ScoredGroup(
        group=Group(prompt=prompt, rollouts=rollouts),
        table=tiny.table(advantages),
        advantages=advantages,
    )


def as_text(group: ScoredGroup) -> ScoredGroup:
    """The same number of tokens, none of them of a clip."""
    tokens = tuple(index % 300 for index in range(len(group.group.prompt.token_ids)))
    prompt = replace(group.group.prompt, clip=None, token_ids=tokens)
    return replace(group, group=Group(prompt=prompt, rollouts=group.group.rollouts))


def rows_of(policy: Policy, group: ScoredGroup, *, shared: bool) -> list[PackedRow]:
    """One row for the group, or a row of its own for every completion."""
    tokens_per_row = 10**9 if shared else 1
    segments = segments_of([group], tokens_per_row=tokens_per_row, drop_flat=True, trained=True)
    return pack(segments, policy.family, tokens_per_row=tokens_per_row)


def seconds(policy: Policy, rows: list[PackedRow]) -> float:
    """Forward and backward of some rows."""
    start = perf_counter()
    for row in rows:
        (policy(row).logps_T * row.advantages_T).sum().backward()
    policy.zero_grad()
    return perf_counter() - start


def tower_shares(sizes: tuple[int, int, int]) -> list[float]:
    """The frozen vision tower's share of the time of a clip's first and second pass."""
    policy = bench_policy(frozen=("vision", "merger"))
    tower, spent = policy.model.model.visual, []
    policy.feature_cache = FeatureCache(tower, memory=MemoryCache(max_gib=1.0))
    tower.register_forward_pre_hook(lambda *_: spent.append(-perf_counter()))
    tower.register_forward_hook(lambda *_: spent.append(perf_counter()))
    rows, shares = rows_of(policy, bench_group(policy, *sizes), shared=True), []
    for _ in range(2):
        spent.clear()
        whole_s = seconds(policy, rows)
        shares.append(sum(spent) / whole_s)
    return shares


def peak_mib(layout: str, prompt: int, group_size: int, completion: int) -> float:
    """Peak resident memory of one pass, above what the process had before; in a process of its own.

    layout: shared, the same with a frozen vision tower, separate, or text: one causal sequence of as many tokens, as
    many of them predicted, without a clip.
    """
    policy = bench_policy(frozen=("vision", "merger") if layout == "shared_frozen_tower" else ())
    group = bench_group(
        policy, prompt, *((1, group_size * completion) if layout == "text" else (group_size, completion))
    )
    rows = rows_of(policy, as_text(group) if layout == "text" else group, shared=layout != "separate")
    before = resident_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew (Linux)
    seconds(policy, rows)
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=2100)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sizes = (args.prompt, args.group_size, args.completion)
    policy = bench_policy()
    group = bench_group(policy, *sizes)
    shared, separate = (rows_of(policy, group, shared=flag) for flag in (True, False))
    pairs = [(seconds(policy, separate), seconds(policy, shared)) for _ in range(args.rounds + 1)][1:]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = pool.starmap(
            peak_mib,
            [(name, *sizes) for name in ("shared", "shared_frozen_tower", "separate", "text")],
            chunksize=1,
        )
    shares = tower_shares(sizes)
    tokens = [sum(len(row.input_ids_N) for row in rows) for rows in (separate, shared)]
    result = {
        "prompt_tokens": args.prompt,
        "group_size": args.group_size,
        "completion_tokens": args.completion,
        "separate_s": min(pair[0] for pair in pairs),
        "shared_s": min(pair[1] for pair in pairs),
        "speedup": float(np.median([a / b for a, b in pairs])),
        "token_ratio": tokens[0] / tokens[1],
        "share_of_token_ratio": float(np.median([a / b for a, b in pairs])) / (tokens[0] / tokens[1]),
        "shared_peak_mib": peaks[0],
        "shared_frozen_tower_peak_mib": peaks[1],
        "separate_peak_mib": peaks[2],
        "text_row_peak_mib": peaks[3],
        "shared_to_text_row_peak": peaks[0] / peaks[3],
        "shared_frozen_tower_to_text_row_peak": peaks[1] / peaks[3],
        "frozen_tower_frac_first_visit": shares[0],
        "frozen_tower_frac_second_visit": shares[1],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
