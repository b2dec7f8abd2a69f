"""GRPO for a video model in one file: `python docs/minimal_loop.py`, from the repository's folder, without a GPU.

The same pure functions as the trainer, in a plain loop: packing, advantages, the loss, rewards, and the engine that
needs no vLLM. What the trainer has and this has not: several processes, checkpoints, decoding ahead, rewards in
workers, evaluation, and failures that cost a group and not the run.

The choices that this GRPO makes: one update per batch of rollouts, so the probability ratio is 1 and nothing is
clipped; no KL term; advantages are distances from the group's mean, over its standard deviation; the loss is the mean
over all completion tokens of the step.

Axes: P prompts, G completions of each, T completion tokens of a row.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from grpo.config.learner import LossConfig
from grpo.data.readers import read_synthetic
from grpo.groups import Group, Prompt, Rollout, Sample
from grpo.learner.advantages import Moments, as_totals, group_advantages
from grpo.learner.losses import StepCounts, clipped_loss_T, token_weights_T
from grpo.learner.ratios import importance_ratio_T
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from grpo.packing import PackedRow, Segment, pack
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model import Policy
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from rewards.builtin.accuracy import accuracy
from rewards.builtin.format import format as well_formed

MODEL = "grpo/demo/base_policy"  # 1.1 M parameters
DATA = "runs/demo_clips/train.jsonl"  # rendered on first use
PROMPTS_PER_STEP = 16
TOKENS_PER_ROW = 4096
SAMPLING = Sampling(group_size=8, max_new_tokens=24, temperature=1.0)
MEDIA = MediaSettings(fps=2.0, max_frames=16, min_pixels=784, max_pixels=3136)
LOSS = LossConfig()


def prompt_of(sample: Sample, family: ModelFamily) -> Prompt:
    """The question with its clip: frames and tokens are made here once, and everything after takes them from here."""
    assert sample.clip_source is not None
    clip = read_source(sample.clip_source, settings=MEDIA, patches=family.patches)
    template = "{question} Answer.\n{options}"
    return family.render(sample, clip, template=template, option="{letter} {text}", tags=("think", "answer"))


def total(rollout: Rollout) -> float:
    """The weighted sum of two rewards."""
    return accuracy(rollout) + 0.5 * (well_formed(rollout) or 0.0)


def segments_of(groups: Sequence[Group], totals_PG: np.ndarray) -> list[Segment]:
    """The groups that teach something, with an advantage for each completion."""
    advantages_PG = group_advantages(
        as_totals(totals_PG), scale="group_std", batch=Moments(totals_PG.mean(), totals_PG.std())
    )
    return [
        Segment(prompt=group.prompt, rollouts=group.rollouts, advantages=tuple(advantages))
        for group, advantages in zip(groups, advantages_PG.tolist(), strict=True)
        if any(advantages)
    ]


def loss_of(policy: Policy, row: PackedRow, counts: StepCounts) -> torch.Tensor:
    """A row's part of the step's loss. One forward pass: each prompt once, then its G completions behind it."""
    logps_T = policy(row).logps_T
    # Before the first update the old policy is the policy itself: the ratio is 1, and only its gradient matters.
    ratio_T = importance_ratio_T(
        logps_T, logps_T.detach(), completion_T=row.completion_T, lengths_T=row.lengths_T, level="token"
    )
    loss_T = clipped_loss_T(ratio_T, logps_T, row.advantages_T, LOSS)
    return (token_weights_T(row.lengths_T, counts) * loss_T).sum()


def main(num_steps: int = 50) -> list[float]:
    """Train, and print each step's mean total; the totals are returned."""
    family = load_family(MODEL)
    policy = Policy(family.load_model(torch.float32), family, temperature=SAMPLING.temperature)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
    engine = TransformersEngine(policy)
    samples = read_synthetic(DATA, None)
    means = []
    for step in range(1, num_steps + 1):
        # 1. Questions.
        chosen = np.random.default_rng(step).choice(len(samples), PROMPTS_PER_STEP, replace=False)
        prompts = [prompt_of(samples[index], family) for index in chosen]
        # 2. A group of completions of each.
        seeds = [1000 * step + place for place in range(len(prompts))]
        groups = engine.generate(prompts, SAMPLING, seeds)
        # 3. Rewards, and how much better each completion is than its siblings.
        totals_PG = np.array([[total(rollout) for rollout in group.rollouts] for group in groups])
        # 4. Rows without padding. Counts are those of the whole step, whatever is left out of the rows.
        rows = pack(segments_of(groups, totals_PG), family, tokens_per_row=TOKENS_PER_ROW)
        counts = StepCounts(
            num_completions=totals_PG.size,
            num_tokens=sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts),
            max_new_tokens=SAMPLING.max_new_tokens,
        )
        # 5. The gradient, a row at a time, and one update.
        for row in rows:
            loss_of(policy, row, counts).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # 6. The engine samples with the policy's own weights here; another one would get the new weights now.
        engine.sync()
        means.append(float(totals_PG.mean()))
        print(f"step {step}: mean total {means[-1]:.2f}", flush=True)
    return means


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
