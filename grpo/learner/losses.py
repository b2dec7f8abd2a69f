"""Policy losses per completion token (pure functions); `LOSSES` lists them, `row_loss` puts them together.

Read after `ratios.py`. Every axis T is the flat list of the completion tokens of a packed row. A row's loss is
`(weights_T * loss_T).sum()`, where the weights hold the *step's* counts: so the gradient depends neither
on how groups were packed into rows nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from grpo.config.learner import Level, LossConfig
from grpo.groups import ScoredGroup
from grpo.learner.ratios import Correction, importance_ratio_T, sampler_correction
from grpo.run.metrics import Mean, Metrics

if TYPE_CHECKING:
    from grpo.packing import PackedRow
    from grpo.policy.model import TokenScores


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCounts:
    """The counts over all processes that the loss is divided by, flat groups included."""

    num_completions: int
    """Completions that have a total. One that was cut off and is masked is among them, and its tokens are not among the
    others, as in trl: a mean over completions has 0 for it, a mean over tokens is of those that are trained on."""
    num_tokens: int
    """Tokens of the completions that have an advantage."""
    max_new_tokens: int


def step_counts(
    scored: Sequence[ScoredGroup],
    *,
    max_new_tokens: int,
    gather: Callable[[list[Any]], list[Any]] = list,
) -> StepCounts:
    """Return the counts of a step. gather: puts lists of all processes together."""
    lengths = [
        len(rollout.token_ids)
        for group in scored
        for rollout, advantage in zip(group.group.rollouts, group.advantages, strict=True)
        if advantage is not None
    ]
    num_completions = sum(total is not None for group in scored for total in group.table.totals)
    counts = gather([(num_completions, sum(lengths))])
    return StepCounts(
        num_completions=sum(completions for completions, _ in counts),
        num_tokens=sum(tokens for _, tokens in counts),
        max_new_tokens=max_new_tokens,
    )


def clipped_loss_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """PPO's clipped surrogate, negated; `epsilon_high` bounds the ratio from above (DAPO, arXiv 2503.14476).

    `delta` bounds the ratio where the advantage is negative, which neither epsilon does (arXiv 2505.07291).
    """
    clipped_T = ratio_T.clamp(1 - settings.epsilon, 1 + settings.upper_epsilon)
    if settings.delta is not None:
        ratio_T = ratio_T.clamp(max=settings.delta)
    return -torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)


def is_clipped_T(ratio_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """Return True for tokens at which the clip is active, which have no gradient."""
    low_T = (ratio_T < 1 - settings.epsilon) & (advantages_T < 0)
    high_T = (ratio_T > 1 + settings.upper_epsilon) & (advantages_T > 0)
    if settings.delta is not None:
        high_T = high_T | ((ratio_T > settings.delta) & (advantages_T < 0))
    return low_T | high_T


def cispo_loss_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """The REINFORCE loss with the ratio, capped at `epsilon_high`, as a constant weight: all tokens keep a gradient.

    CISPO, MiniMax-M1, arXiv 2506.13585; without a lower bound as in ScaleRL, arXiv 2510.13786.
    """
    return -ratio_T.clamp(max=settings.upper_epsilon).detach() * advantages_T * logps_T


def is_cispo_clipped_T(ratio_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """Return True for tokens whose weight is cut at its bound, whichever way their advantage points."""
    return (ratio_T > settings.upper_epsilon) & (advantages_T != 0)


def sapo_loss_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """The surrogate with a sigmoid of the ratio in place of the clip, steeper the higher its temperature.

    SAPO, arXiv 2511.20347.
    """
    temperature_T = torch.where(
        advantages_T > 0, settings.sapo_temperature_pos, settings.sapo_temperature_neg
    )
    return -torch.sigmoid(temperature_T * (ratio_T - 1)) * 4 / temperature_T * advantages_T


def nll_T(ratio_T: Tensor, logps_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """Minus the log-probs of given completions, whose advantages are all 1: with a mean over tokens, cross-entropy."""
    return -advantages_T * logps_T


def never_T(ratio_T: Tensor, advantages_T: Tensor, settings: LossConfig) -> Tensor:
    """Return False for every token: the loss has no clip."""
    return torch.zeros_like(ratio_T, dtype=torch.bool)


def completion_weights_T(lengths_T: Tensor, counts: StepCounts) -> Tensor:
    """Weights of a mean over completions of their token means. lengths_T: the length of each token's completion."""
    return 1.0 / (lengths_T * counts.num_completions)


def token_weights_T(lengths_T: Tensor, counts: StepCounts) -> Tensor:
    """Weights of a mean over all tokens of the step."""
    return torch.full_like(lengths_T, 1.0 / counts.num_tokens, dtype=torch.float32)


def budget_weights_T(lengths_T: Tensor, counts: StepCounts) -> Tensor:
    """Weights of a sum over tokens by the step's token budget: no length is preferred (Dr. GRPO, arXiv 2503.20783)."""
    num_tokens = counts.num_completions * counts.max_new_tokens
    return torch.full_like(lengths_T, 1.0 / num_tokens, dtype=torch.float32)


class Loss(NamedTuple):
    """The functions behind a `loss.type`."""

    token_T: Callable[[Tensor, Tensor, Tensor, LossConfig], Tensor]
    """The loss of each token, from ratios, log-probs and advantages."""
    is_clipped_T: Callable[[Tensor, Tensor, LossConfig], Tensor]
    """Whether the clip is active at each token, from ratios and advantages."""
    weights_T: Callable[[Tensor, StepCounts], Tensor]


LOSSES: dict[str, Loss] = {
    "grpo": Loss(clipped_loss_T, is_clipped_T, completion_weights_T),
    # GSPO's ratios are those of whole completions (`LossConfig.level`).
    "gspo": Loss(clipped_loss_T, is_clipped_T, completion_weights_T),
    "bnpo": Loss(clipped_loss_T, is_clipped_T, token_weights_T),
    "dapo": Loss(clipped_loss_T, is_clipped_T, token_weights_T),
    "dr_grpo": Loss(clipped_loss_T, is_clipped_T, budget_weights_T),
    "cispo": Loss(cispo_loss_T, is_cispo_clipped_T, token_weights_T),
    "sapo": Loss(sapo_loss_T, never_T, completion_weights_T),
    "nll": Loss(nll_T, never_T, token_weights_T),
}
"""The losses by `loss.type`. `bnpo` divides by the tokens of the batch, `dapo` by those of the whole step; trl's bnpo
takes a micro-batch for the batch. Here it is the step, or the gradient would depend on packing: both mean the same."""


def kl_T(
    logps_T: Tensor,
    reference_logps_T: Tensor,
    *,
    estimator: Literal["k1", "k2", "k3"],
    ratio_T: Tensor | None = None,
) -> Tensor:
    """An estimate of KL(policy || reference) per token (http://joschu.net/blog/kl-approx.html).

    k1 is unbiased and may be negative, k2 is biased and has the unbiased gradient on-policy, k3 is unbiased
    and never negative. ratio_T: the probability ratio to what the tokens were sampled with. Given, the
    estimate is multiplied by it, and then the gradient of k1 and k3 is unbiased too, also on-policy where
    the ratio is 1 (DeepSeek-V3.2, arXiv 2512.02556).
    """
    difference_T = reference_logps_T - logps_T
    if estimator == "k1":
        divergence_T = -difference_T
    elif estimator == "k2":
        divergence_T = 0.5 * difference_T**2
    else:
        divergence_T = torch.exp(difference_T) - difference_T - 1
    return divergence_T if ratio_T is None else divergence_T * ratio_T


def row_loss(
    row: PackedRow,
    scores: TokenScores,
    settings: LossConfig,
    counts: StepCounts,
    *,
    old_logps_T: Tensor,
    kept_T: Tensor,
    num_kept_tokens: float,
    reference_logps_T: Tensor | None,
) -> tuple[Tensor, Metrics]:
    """Return a row's part of the step's loss, a scalar, and the row's figures.

    old_logps_T: the policy's log-probs before the first update. kept_T: 1 where the policy loss and the entropy bonus
    act on a token, else 0. num_kept_tokens: the number of ones in all processes.
    reference_logps_T: None without a KL term.
    """
    kind, means = LOSSES[settings.type], {}
    # All 1 in a step's first update, with a gradient nonetheless.
    ratio_T = importance_ratio_T(
        scores.logps_T,
        old_logps_T,
        completion_T=row.completion_T,
        lengths_T=row.lengths_T,
        level=settings.level,
    )
    loss_T = kind.token_T(ratio_T, scores.logps_T, row.advantages_T, settings) * kept_T
    # The engine's probabilities differ slightly from the learner's.
    if (correction := engine_correction(row, old_logps_T, settings)) is not None:
        loss_T = loss_T * correction.weight_T
    if reference_logps_T is not None:
        divergence_T = kl_T(
            scores.logps_T,
            reference_logps_T,
            estimator=settings.kl_estimator,
            ratio_T=ratio_T if settings.use_bias_correction_kl else None,
        )
        loss_T = loss_T + settings.beta * divergence_T
        means["policy/kl"] = mean_of(divergence_T)
    # The weights hold the counts of the whole step, so that the rows of all processes add up to its loss.
    loss = (kind.weights_T(row.lengths_T, counts) * loss_T).sum()
    if settings.entropy_coef:
        loss = loss - settings.entropy_coef * (scores.entropy_T * kept_T).sum() / num_kept_tokens
    clips_T = kind.is_clipped_T(ratio_T, row.advantages_T, settings)
    means["policy/clip_fraction"] = mean_at(settings.level, clips_T, row.lengths_T)
    return loss, Metrics(means=means)


def engine_correction(row: PackedRow, old_logps_T: Tensor, settings: LossConfig) -> Correction | None:
    """Return the importance weights of a row's tokens against the engine that sampled them; None: they have none."""
    if not (settings.is_sampled and settings.vllm_importance_sampling_correction):
        return None
    return sampler_correction(
        old_logps_T,
        row.sampler_logps_T,
        row.completion_T,
        mode=settings.vllm_importance_sampling_mode,
        clip_min=settings.vllm_importance_sampling_clip_min,
        clip_max=settings.vllm_importance_sampling_clip_max,
    )


def sampling_metrics(row: PackedRow, scores: TokenScores, settings: LossConfig) -> Metrics:
    """Return a row's entropy, and its distance from the engine's log-probs: whether it samples from these weights.

    scores: those of the weights before the step's first update. Given completions were sampled from nothing.
    """
    logps_T = scores.logps_T.detach()
    figures = Metrics(
        means={"policy/entropy": mean_of(scores.entropy_T)}, sums={"tokens/computed": len(row.input_ids_N)}
    )
    if not settings.is_sampled:
        return figures
    gap_T = (logps_T - row.sampler_logps_T).abs()
    gaps = {"sampler/gap_mean": mean_of(gap_T)}
    figures += Metrics(means=gaps, maxima={"sampler/gap_max": gap_T.max().item()})
    if (correction := engine_correction(row, logps_T, settings)) is None:
        return figures
    return figures + Metrics(
        means={
            # Before it is cut: what is left of it is `weight_mean`.
            "sampler/ratio_mean": mean_at(settings.engine_level, correction.ratio_T, row.lengths_T),
            "sampler/weight_mean": mean_of(correction.weight_T),
            "sampler/outside_frac": mean_of(correction.outside_T),
        },
        maxima={"sampler/ratio_max": correction.ratio_T.max().item()},
    )


def mean_of(values_T: Tensor) -> Mean:
    """Return the mean over a row's tokens, with its count."""
    return Mean(values_T.sum().item(), len(values_T))


def mean_at(level: Level, values_T: Tensor, lengths_T: Tensor) -> Mean:
    """Return the mean over a row's tokens, or over its completions where values are those of whole completions."""
    if level == "token":
        return mean_of(values_T)
    # Each token has its share of its completion.
    return Mean((values_T / lengths_T).sum().item(), (1 / lengths_T).sum().item())
