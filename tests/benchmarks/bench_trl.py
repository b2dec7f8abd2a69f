"""A learner pass on shared-prefix rows against trl's own, same weights, clip, question and completions, in one process.

    python -m tests.benchmarks.bench_trl [--prompt 1060] [--group-size 8] [--completion 128] [--rounds 3]

trl takes frames as images, a row of prompt and pixels for every completion. Prints JSON: seconds of forward and
backward of both, the median ratio of the rounds, and the tokens that each puts through the language model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from grpo.config.learner import LossConfig
from grpo.groups import ScoredGroup
from grpo.policy.model import Policy
from tests.benchmarks.bench_learner import bench_group, bench_policy, rows_of, seconds
from tests.learner.test_losses import trl_trainer


def trl_inputs(policy: Policy, group: ScoredGroup) -> dict[str, Any]:
    """What trl's loss takes: each completion behind a copy of the prompt, every frame an image."""
    config, clip = policy.family.config, group.group.prompt.clip
    assert clip is not None
    patches, grid = image_patches(policy, clip.frames_FHWC)
    tokens_per_image = len(patches) // clip.num_frames // config.vision_config.spatial_merge_size**2
    image = [
        config.vision_start_token_id,
        *[config.image_token_id] * tokens_per_image,
        config.vision_end_token_id,
    ]
    around = [
        token
        for token in group.group.prompt.token_ids
        if token not in (config.vision_start_token_id, config.video_token_id, config.vision_end_token_id)
    ]
    prompt = torch.tensor(image * clip.num_frames + around)
    size = len(group.group.rollouts)
    prompt_ids = prompt.repeat(size, 1)
    completion_ids = torch.tensor([rollout.token_ids for rollout in group.group.rollouts])
    types = torch.zeros_like(torch.cat([prompt_ids, completion_ids], dim=1))
    types[:, : len(prompt)] = (prompt_ids == config.image_token_id).long()
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.ones_like(prompt_ids),
        "completion_ids": completion_ids,
        "completion_mask": torch.ones_like(completion_ids),
        "advantages": torch.tensor(group.advantages),
        "num_items_in_batch": torch.tensor(completion_ids.numel()),
        "pixel_values": patches.repeat(size, 1),
        "image_grid_thw": grid.repeat(size, 1),
        "num_images": [clip.num_frames] * size,
        "mm_token_type_ids": types,
    }


def image_patches(policy: Policy, frames_FHWC: Any) -> tuple[Tensor, Tensor]:
    """The pixels of each frame by itself, as the processor makes them of images."""
    features = policy.family.processor.image_processor(
        images=list(frames_FHWC), do_resize=False, return_tensors="pt"
    )
    return features["pixel_values"], features["image_grid_thw"]


def trl_seconds(trainer: Any, inputs: dict[str, Any]) -> float:
    start = perf_counter()
    trainer._compute_loss(trainer.model, inputs).backward()
    trainer.model.zero_grad()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", type=int, default=1060)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    policy = bench_policy()
    group = bench_group(policy, args.prompt, args.group_size, args.completion)
    rows, inputs = rows_of(policy, group, shared=True), trl_inputs(policy, group)
    model = deepcopy(policy.model)
    model.model.language_model.config._attn_implementation = "sdpa"
    model.model.visual.config._attn_implementation = "sdpa"
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(LossConfig(), model, Path(folder), is_older=False)
        pairs = [(trl_seconds(trainer, inputs), seconds(policy, rows)) for _ in range(args.rounds + 1)][1:]
    result = {
        "prompt_tokens": args.prompt,
        "group_size": args.group_size,
        "completion_tokens": args.completion,
        "frames": len(inputs["image_grid_thw"]) // args.group_size,
        "trl_s": min(pair[0] for pair in pairs),
        "ours_s": min(pair[1] for pair in pairs),
        "speedup": median(a / b for a, b in pairs),
        "trl_tokens": inputs["mm_token_type_ids"].numel(),
        "our_tokens": sum(len(row.input_ids_N) for row in rows),
        "trl": version("trl"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
