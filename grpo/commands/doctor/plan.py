"""What a run will take, worked out before it: tokens, memory, the speed of decoding, and time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from itertools import chain
from typing import Any

import numpy as np

from grpo.commands.doctor.memory import sizes_of, table
from grpo.commands.doctor.records import Plans, spread_clips
from grpo.config.schema import Config
from grpo.data.errors import DataError
from grpo.media.clip import MediaError
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy

GIB = 2**30
BYTES_TRAINED = {"adamw": 16, "adamw_8bit": 10}
"""Bytes per trained parameter: fp32 weights, gradients and Adam's two moments."""


def tokens_and_caches(
    config: Config,
    outline: Policy,
    plans: Plans,
    *,
    num_clips: int,
    eval_sizes: Sequence[int],
    num_processes: int,
) -> dict[str, Any]:
    """Tokens of prompts and steps, and the space of clips and weights. eval_sizes: the held-out sets' questions."""
    pairs = (zip(sample.sources, plan.clips, strict=True) for sample, plan in plans)
    clips = dict(chain.from_iterable(pairs))
    sizes = [clip.num_bytes for clip in clips.values()] or [0]
    family = outline.family
    patches, width = family.patches, family.feature_width
    model = memory_of(config, outline)
    # Features are kept of a frozen tower alone.
    bf16 = 0 if model["trains_vision"] else 2
    features = [clip.num_tokens(patches) * width * bf16 for clip in clips.values()] or [0]
    rollout, optim = config.rollout, config.optim
    longest = max(plan.num_tokens for _, plan in plans)
    row_tokens = max(longest + rollout.max_new_tokens, optim.tokens_per_row)
    # As many of the longest clips as whole groups go into a row.
    groups_in_row = max(1, row_tokens // (longest + rollout.group_size * rollout.max_new_tokens))
    most_vision = max(plan.num_vision_tokens for _, plan in plans)
    completions = optim.prompts_per_step * rollout.group_size * rollout.max_new_tokens
    return {
        "num_opened": len(clips),
        "tokens": {
            "prompt": spread([plan.num_tokens for _, plan in plans]),
            "text": spread([plan.num_text_tokens for _, plan in plans]),
            "vision": spread([plan.num_vision_tokens for _, plan in plans]),
            "frames": spread([clip.num_frames for clip in clips.values()]),
            "prompt_limit": rollout.max_prompt_tokens,
            "step_at_most": optim.prompts_per_step * longest + completions,
            "longest_row": row_tokens,
            "tokens_per_row": optim.tokens_per_row,
            "processes_per_row": optim.sequence_parallel_size,
        },
        "cached": {
            "clip_mib": spread([size / 2**20 for size in sizes]),
            "frames_gib": float(np.mean(sizes)) * num_clips / GIB,
            "features_gib": float(np.mean(features)) * num_clips / GIB,
            "ahead_gib": max(sizes) * most_clips_ahead(config, eval_sizes) / GIB,
            "cache_gib": config.media.cache_gib,
            "cache_disk_gib": config.media.cache_disk_gib,
        },
        "model": model,
        "memory": table(
            config,
            outline,
            row_tokens=row_tokens,
            row_vision_tokens=groups_in_row * most_vision,
            processes=num_processes,
        ),
    }


def most_clips_ahead(config: Config, eval_sizes: Iterable[int]) -> int:
    """Clips that a process holds beside those it has handed over, where it is the only one."""
    step, later = config.optim.prompts_per_step, config.media.prefetch_steps * config.optim.prompts_per_step
    evaluated = max(num_asked(config, eval_sizes), default=0) if config.eval.every_steps else 0
    return later + max(step, min(2 * config.eval.batch_prompts, evaluated))


def num_asked(config: Config, eval_sizes: Iterable[int]) -> list[int]:
    """How many questions of each held-out set an evaluation asks."""
    limit = config.eval.max_samples
    return [size if limit is None else min(size, limit) for size in eval_sizes]


def memory_of(config: Config, policy: Policy) -> dict[str, float]:
    """What is known without activations, which come on top."""
    model = config.model
    text = policy.family.config.text_config
    head_size = policy.model.model.language_model.layers[0].self_attn.head_dim
    sizes = sizes_of(config, policy)
    second_copy = config.loss.needs_reference and not model.lora.is_on
    return {
        "num_trained": sizes.trained,
        "num_frozen": sizes.frozen,
        "trains_vision": policy.trains_vision,
        "trained_gib": sizes.trained * BYTES_TRAINED[config.optim.optimizer] / GIB,
        "frozen_gib": (sizes.frozen * (2 if model.lora.is_on else 4) - 1.5 * sizes.frozen_4bit) / GIB,
        "reference_gib": 4 * sizes.total / GIB if second_copy else 0.0,
        "engine_bf16_gib": sizes.total * 2 / GIB,
        "kv_bytes_per_token_bf16": 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head_size,
    }


def decoding(
    config: Config, family: ModelFamily, plans: Plans, num_decoded: int
) -> tuple[list[DataError], dict[str, Any]]:
    """Clips that turn out damaged, how fast the run's own workers decode, and how long they need for a step."""
    some = spread_clips([sample for sample, plan in plans if plan.clips], num_decoded)
    samples = {source: sample for sample in some for source in sample.sources}
    workers = config.media.num_workers
    reader = ClipReader(settings=config.media, patches=family.patches)
    loader = ClipLoader(reader, cache_gib=0, num_workers=workers, timeout_s=config.media.timeout_s)
    damaged = []
    with closing(loader):
        with suppress(MediaError):
            # The processes have started now.
            loader.get(next(iter(samples)))
        begun_s = time.perf_counter()
        loader.prefetch(samples)
        for source, sample in samples.items():
            try:
                loader.get(source)
            except MediaError as error:
                damaged.append(DataError(sample.source, f"sample {sample.id}: {error}", "unreadable"))
        per_clip_s = (time.perf_counter() - begun_s) / len(samples)
    return damaged, {
        "num_decoded": len(samples),
        "num_workers": workers,
        "clips_per_s": 1 / per_clip_s,
        "prompts_per_step": config.optim.prompts_per_step,
        "step_s": per_clip_s * config.optim.prompts_per_step,
    }


def duration(
    config: Config, tokens: dict[str, Any], decode_step_s: float, speeds: tuple[float, float], num_asked: int
) -> dict[str, float]:
    """How long a step, an evaluation and the run take if completions are as long as they may be.

    speeds: tokens per second of all GPUs together, in sampling and in the update. Clips are decoded meanwhile.
    """
    sampled_per_s, updated_per_s = speeds
    rollout, steps = config.rollout, config.num_steps
    sampled = config.optim.prompts_per_step * rollout.group_size * rollout.max_new_tokens
    computed_s = (
        sampled / sampled_per_s + tokens["step_at_most"] * config.optim.num_iterations / updated_per_s
    )
    step_s = max(decode_step_s, computed_s)
    answers = num_asked * (1 + config.eval.sampled)
    eval_s = answers * rollout.max_new_tokens / sampled_per_s
    every = config.eval.every_steps
    num_evals = 1 + -(-steps // every) if every and num_asked else 0
    return {
        "step_s": step_s,
        "eval_s": eval_s,
        "run_h": (steps * step_s + num_evals * eval_s) / 3600,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median, 95 % and most."""
    if not values:
        return {}
    low, middle, high, most = np.percentile(values, [0, 50, 95, 100])
    return {"min": float(low), "median": float(middle), "p95": float(high), "max": float(most)}
