"""What each mode of `loss.vllm_importance_sampling_mode` leaves of completions of different lengths, as JSON:

    python -m tests.benchmarks.bench_correction

The learner's log-probs are the engine's with normal noise at each token whose ratio has a mean of 1: nothing but
rounding, so that a weight far from 1 says something of the mode and not of the completion.
"""

from __future__ import annotations

import json
from typing import get_args

import torch

from grpo.config.learner import LossConfig
from grpo.learner.ratios import CorrectionMode, sampler_correction

LENGTHS = (128, 512, 2048)
NOISES = (0.02, 0.05, 0.1)
NUM_COMPLETIONS = 4000


def mean_weight(mode: CorrectionMode, length: int, noise: float, *, num_completions: int) -> float:
    """Return the mean over completions and their tokens of the weights, with the default bounds."""
    torch.manual_seed(0)
    sampler_T = torch.zeros(num_completions * length)
    # The mean of exp(x) is 1 for a normal x of mean -noise**2 / 2.
    learner_T = sampler_T + noise * torch.randn_like(sampler_T) - noise**2 / 2
    completion_T = torch.arange(num_completions).repeat_interleave(length)
    bounds = LossConfig()
    correction = sampler_correction(
        learner_T,
        sampler_T,
        completion_T,
        mode=mode,
        clip_min=bounds.vllm_importance_sampling_clip_min,
        clip_max=bounds.vllm_importance_sampling_clip_max,
    )
    return float(correction.weight_T.mean())


def main() -> None:
    for noise in NOISES:
        for mode in get_args(CorrectionMode):
            means = {
                length: round(mean_weight(mode, length, noise, num_completions=NUM_COMPLETIONS), 3)
                for length in LENGTHS
            }
            print(json.dumps({"noise_per_token": noise, "mode": mode, "mean_weight": means}))


if __name__ == "__main__":
    main()
