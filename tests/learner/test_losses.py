"""Losses by hand, and against trl's GRPOTrainer on the same numbers."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from grpo.config.learner import LossConfig
from grpo.groups import Rollout, ScoredGroup
from grpo.learner.losses import LOSSES, StepCounts, kl_T
from grpo.learner.ratios import completion_sums_T, sampler_correction
from grpo.packing import PackedRow
from grpo.policy.model import Policy
from tests.support import tiny
from tests.support.learners import packed as rows_of
from tests.support.learners import updated

MAX_NEW_TOKENS = 24


def loss_of(kind: str, ratios: list[float], advantages: list[float], **settings: Any) -> list[float]:
    config = LossConfig(type=kind, **settings)  # pyright: ignore[reportArgumentType]
    ratio = torch.tensor(ratios)
    return LOSSES[kind].token_T(ratio, ratio.log(), torch.tensor(advantages), config).tolist()


def clipped_in(kind: str, ratios: list[float], advantages: list[float], **settings: Any) -> list[bool]:
    config = LossConfig(type=kind, **settings)  # pyright: ignore[reportArgumentType]
    return LOSSES[kind].is_clipped_T(torch.tensor(ratios), torch.tensor(advantages), config).tolist()


def test_every_loss_type_of_the_config_is_there() -> None:
    assert set(LOSSES) == set(get_args(get_type_hints(LossConfig)["type"]))


def test_the_clip_takes_the_pessimistic_side() -> None:
    # ratios 1.5 and 0.5; advantage +1: min(1.5, 1.28) and min(0.5, 0.8); advantage -1: -1.5 and -0.8
    case = [1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0]
    assert loss_of("grpo", *case, epsilon_high=0.28) == pytest.approx([-1.28, -0.5, 1.5, 0.8])
    assert clipped_in("grpo", *case, epsilon_high=0.28) == [True, False, False, True]


def test_epsilon_alone_clips_on_both_sides() -> None:
    case = [1.5, 0.5], [1.0, -1.0]
    assert loss_of("dapo", *case, epsilon=0.1) == pytest.approx([-1.1, 0.9])
    assert loss_of("dapo", *case, epsilon=0.1, epsilon_high=0.3) == pytest.approx([-1.3, 0.9])
    assert clipped_in("dapo", [1.15, 1.05], [1.0, 1.0], epsilon=0.1) == [True, False]


def test_delta_bounds_the_ratio_of_a_negative_advantage() -> None:
    case = [1.5, 9.0, 9.0], [-1.0, -1.0, 1.0]
    assert loss_of("dapo", *case, delta=4.0) == pytest.approx([1.5, 4.0, -1.2])
    assert clipped_in("dapo", *case, delta=4.0) == [False, True, True]


def test_a_ratio_at_a_bound_is_not_clipped_and_no_ratio_is_without_an_advantage() -> None:
    # All exact in binary: 1 - 0.25, 1 + 0.5, 2.
    settings = {"epsilon": 0.25, "epsilon_high": 0.5, "delta": 2.0}
    assert clipped_in("dapo", [0.75, 1.5, 2.0], [-1.0, 1.0, -1.0], **settings) == [False, False, False]
    assert clipped_in("dapo", [0.7, 1.6, 2.1], [-1.0, 1.0, -1.0], **settings) == [True, True, True]
    assert clipped_in("dapo", [0.1, 9.0], [0.0, 0.0], **settings) == [False, False]


def test_a_clipped_token_has_no_gradient() -> None:
    logps = torch.tensor([1.5, 1.2, 9.0]).log().requires_grad_()
    settings = LossConfig(epsilon_high=0.28, delta=4.0)
    advantages = torch.tensor([1.0, 1.0, -1.0])
    LOSSES["grpo"].token_T(logps.exp(), logps, advantages, settings).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == pytest.approx([0.0, -1.2, 0.0])


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    logps = torch.tensor([1.5, 9.0]).log().requires_grad_()
    settings = LossConfig(type="cispo", epsilon_high=5.0)
    LOSSES["cispo"].token_T(logps.exp(), logps, torch.tensor([1.0, -2.0]), settings).sum().backward()
    assert logps.grad is not None and logps.grad.tolist() == pytest.approx([-1.5, 10.0])
    # Not where the advantage is 0, and the weight of nothing is cut.
    found = clipped_in("cispo", [1.5, 9.0, 9.0, 9.0, 5.0], [1.0, -2.0, 2.0, 0.0, 1.0], epsilon_high=5.0)
    assert found == [False, True, True, False, False]


def test_sapo_has_the_plain_gradient_on_policy_and_less_far_from_it() -> None:
    # d/dr of 4/t * sigmoid(t * (r - 1)) is 4 * s * (1 - s): 1 at r = 1; at r = 3 and t = 2: s = 0.98201, 0.07065
    ratio = torch.tensor([1.0, 1.0, 3.0]).requires_grad_()
    settings = LossConfig(type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=3.0)
    LOSSES["sapo"].token_T(ratio, ratio.log(), torch.tensor([1.0, -1.0, 2.0]), settings).sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == pytest.approx([-1.0, 1.0, -0.1413], abs=1e-5)
    assert clipped_in("sapo", [9.0], [1.0]) == [False]
    # Any positive advantage has the positive temperature: 4 / 2 * sigmoid(2 * 2) * 0.5 = 0.98201
    positive = loss_of("sapo", [3.0], [0.5], sapo_temperature_pos=2.0, sapo_temperature_neg=9.0)
    assert positive == pytest.approx([-0.98201], abs=1e-5)


def test_weights_divide_by_the_steps_counts() -> None:
    lengths = torch.tensor([2, 2, 5, 5, 5, 5, 5])
    counts = StepCounts(num_completions=4, num_tokens=20, max_new_tokens=10)
    assert LOSSES["grpo"].weights_T(lengths, counts)[0].item() == pytest.approx(1 / 8)
    assert LOSSES["grpo"].weights_T(lengths, counts).sum().item() == pytest.approx(2 / 4)
    assert LOSSES["dapo"].weights_T(lengths, counts).tolist() == pytest.approx([1 / 20] * 7)
    assert LOSSES["dr_grpo"].weights_T(lengths, counts).tolist() == pytest.approx([1 / 40] * 7)


def test_divergences_by_hand() -> None:
    # d = reference - policy = 0.5: k1 = -0.5, k2 = 0.125, k3 = exp(0.5) - 0.5 - 1 = 0.14872; 0 at equality
    policy, reference = torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -0.5])
    for estimator, expected in {"k1": -0.5, "k2": 0.125, "k3": 0.14872}.items():
        found = kl_T(policy, reference, estimator=estimator)  # pyright: ignore[reportArgumentType]
        assert found.tolist() == pytest.approx([0.0, expected], abs=1e-5)
        doubled = kl_T(policy, reference, estimator=estimator, ratio_T=torch.tensor([1.0, 2.0]))  # pyright: ignore
        assert doubled.tolist() == pytest.approx([0.0, 2 * expected], abs=1e-5)


@pytest.mark.parametrize(("estimator", "corrected"), [("k1", True), ("k2", False), ("k3", True)])
def test_the_gradient_of_a_divergence_is_that_of_the_exact_one(estimator: str, corrected: bool) -> None:
    """Averaged over all of a small vocabulary with its probabilities, on-policy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    logps = logits.log_softmax(-1)
    reference = torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(-1)
    ratio = torch.exp(logps - logps.detach()) if corrected else None
    estimate = kl_T(logps, reference, estimator=estimator, ratio_T=ratio)  # pyright: ignore[reportArgumentType]
    (found,) = torch.autograd.grad((logps.detach().exp() * estimate).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((logps.exp() * (logps - reference)).sum(), logits)
    torch.testing.assert_close(found, expected)


# Against trl: one step of the real Learner on one packed row, and trl's on one padded row per completion.


def plain_policy() -> Policy:
    """Any token may be sampled: trl suppresses none, and its fused head gives no logits to change."""
    policy = tiny.policy(seed=1)
    policy.head.suppressed_ids = []
    return policy


@lru_cache
def reference_policy() -> Policy:
    policy = plain_policy()
    with torch.no_grad():  # near enough that exp(difference) does not blow up fp32's rounding
        policy.model.lm_head.weight *= 1.02
    return policy


@lru_cache
def older_policy() -> Policy:
    """What the policy was when it sampled: token by token some 40 % off, so that all clips are met."""
    policy = plain_policy()
    with torch.no_grad():
        weight = policy.model.lm_head.weight
        weight += noise_like(weight, 0.012, seed=2)
    return policy


def rollouts_of(groups: Sequence[ScoredGroup]) -> list[Rollout]:
    return [rollout for scored in groups for rollout in scored.group.rollouts]


def packed(groups: Sequence[ScoredGroup]) -> PackedRow:
    (row,) = rows_of(groups)
    return row


def noise_like(values: Tensor, scale: float, seed: int) -> Tensor:
    return scale * torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))


@lru_cache
def batch() -> list[ScoredGroup]:
    """Two groups of three about text alone, in a row's order, with ragged prompts and completions. The engine's
    log-probs differ from the policy's by up to some 30 %, token by token."""
    prompts = [tiny.prompt(tiny.sample(f"s{i}", question="Which" + " red" * i), None) for i in range(2)]
    groups = [
        tiny.ragged_group(prompt, lengths, seed=i)
        for i, (prompt, lengths) in enumerate(zip(prompts, ([3, 11, 1], [7, 9, 5]), strict=True))
    ]
    groups.sort(key=lambda scored: len(scored.group.prompt.token_ids))
    logps_T = plain_policy()(packed(groups)).logps_T.detach()
    sampler_T = logps_T - noise_like(logps_T, 0.15, seed=1)
    logprobs = iter(sampler_T.split([len(rollout.token_ids) for rollout in rollouts_of(groups)]))
    sampled = []
    for scored in groups:
        rollouts = tuple(replace(r, logprobs=tuple(next(logprobs).tolist())) for r in scored.group.rollouts)
        sampled.append(replace(scored, group=replace(scored.group, rollouts=rollouts)))
    return sampled


@lru_cache
def logps_before(*, is_older: bool) -> Tensor:
    """The batch's log-probs under the policy that sampled it."""
    policy = older_policy() if is_older else plain_policy()
    return policy(packed(batch())).logps_T.detach()


def our_loss(settings: LossConfig, *, is_older: bool) -> tuple[float, Tensor]:
    """The learner's loss, and its gradient on the language model."""
    groups = batch()
    row = packed(groups)
    counts = StepCounts(
        num_completions=len(rollouts_of(groups)), num_tokens=len(row.target_T), max_new_tokens=MAX_NEW_TOKENS
    )
    policy = plain_policy()
    old_logps = [logps_before(is_older=True)] if is_older else []
    figures = updated(policy, [row], counts, loss=settings, reference=reference_policy(), old_logps=old_logps)
    return figures["loss"], language_gradient(policy.model)


def trl_loss(
    settings: LossConfig, folder: Path, *, is_older: bool, is_given: bool = True
) -> tuple[float, Tensor]:
    """The same from trl's GRPOTrainer: given the engine's tokens and log-probs, it masks and corrects by itself.

    is_given: whether it is told the settings, or has its own.
    """
    groups = batch()
    rollouts = rollouts_of(groups)
    prompts = [scored.group.prompt for scored in groups for _ in scored.group.rollouts]
    model = plain_policy().model
    model.model.language_model.config._attn_implementation = "sdpa"  # it gets padded rows and a mask
    trainer = trl_trainer(settings if is_given else None, model, folder, is_older=is_older)
    trainer.use_vllm = settings.vllm_importance_sampling_correction
    trainer._last_loaded_step = trainer.state.global_step  # no vLLM is there to be sent weights
    trainer.rollout_func = lambda *_: {
        "prompt_ids": [list(prompt.token_ids) for prompt in prompts],
        "completion_ids": [list(rollout.token_ids) for rollout in rollouts],
        "logprobs": [list(rollout.logprobs) for rollout in rollouts],
    }
    if settings.beta:
        trainer.ref_model.load_state_dict(reference_policy().model.state_dict())
    own = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(older_policy().model.state_dict() if is_older else own)
    inputs = trainer._generate_and_score_completions([{"prompt": "x"} for _ in rollouts])
    inputs["advantages"] = torch.tensor([a for scored in groups for a in scored.advantages])
    model.load_state_dict(own)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), language_gradient(model)


def trl_trainer(settings: LossConfig | None, model: nn.Module, folder: Path, *, is_older: bool) -> Any:
    """Return trl's trainer; None: with its own settings of the loss."""
    same = ("epsilon", "epsilon_high", "delta", "sapo_temperature_pos", "sapo_temperature_neg", "beta",
            "use_bias_correction_kl", "entropy_coef", "top_entropy_quantile",
            "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
            "vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max")  # fmt: skip
    given: dict[str, Any] = {}
    if settings is not None:
        given = {name: getattr(settings, name) for name in same}
        given["loss_type"] = "grpo" if settings.type == "gspo" else settings.type
        given["importance_sampling_level"] = settings.level
    args = GRPOConfig(
        output_dir=str(folder),
        max_completion_length=MAX_NEW_TOKENS,
        **given,
        num_iterations=2 if is_older else 1,  # with 1 there are no old log-probs
        num_generations=3,
        per_device_train_batch_size=6,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=model,  # pyright: ignore[reportArgumentType]
        args=args,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "x"}]),
        processing_class=tiny.family().processor.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def language_gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [w.grad.flatten() for n, w in model.named_parameters() if "visual" not in n and w.grad is not None]
    )


PLAIN: dict[str, Any] = {"epsilon_high": 0.28, "vllm_importance_sampling_correction": False}
TYPES: dict[str, dict[str, Any]] = {name: PLAIN for name in LOSSES if name != "nll"} | {
    "cispo": PLAIN | {"epsilon_high": 1.3},
    "gspo": PLAIN | {"epsilon": 0.02, "epsilon_high": 0.03},
}
KL: dict[str, Any] = {"beta": 0.04}


def correction(mode: str, low: float | None, high: float) -> dict[str, Any]:
    bounds = {"clip_min": low, "clip_max": high}
    return {"vllm_importance_sampling_correction": True, "vllm_importance_sampling_mode": mode} | {
        f"vllm_importance_sampling_{name}": value for name, value in bounds.items()
    }


BY_TOKEN, BY_COMPLETION = correction("token_truncate", None, 1.1), correction("sequence_mask", 0.8, 1.2)
TERMS: dict[str, dict[str, Any]] = {"": {}, ", kl": KL, ", correction": BY_TOKEN, ", both": KL | BY_TOKEN}
OPTIONS: dict[str, dict[str, Any]] = {
    "gspo, correction by completion": TYPES["gspo"] | {"type": "gspo"} | BY_COMPLETION,
    "gspo, both by completion": TYPES["gspo"] | {"type": "gspo"} | BY_COMPLETION | KL,
    "biased kl": KL | {"use_bias_correction_kl": False},
    "epsilon alone": {"epsilon": 0.05, "epsilon_high": None},
    "epsilon alone, by sequence": TYPES["gspo"] | {"type": "gspo", "epsilon_high": None},
    "delta": {"type": "bnpo", "delta": 1.35},
    "sapo's temperatures": {"type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
    "dapo by sequence": {"importance_sampling_level": "sequence", "epsilon": 0.02},
    "entropy": {"type": "grpo", "entropy_coef": 0.03},
    "top entropy": {"top_entropy_quantile": 0.3},
    "top entropy, bonus, kl": {"top_entropy_quantile": 0.3, "entropy_coef": 0.03} | KL,
    "top entropy, correction": {"top_entropy_quantile": 0.5} | correction("token_mask", None, 1.1),
    "token_mask": correction("token_mask", 0.9, 1.1),
    "sequence_truncate": correction("sequence_truncate", 0.9, 1.2),
    "sequence_mask": BY_COMPLETION,
}
CASES: dict[str, dict[str, Any]] = {
    name + term: {"type": name} | settings | added
    for name, settings in TYPES.items()
    for term, added in TERMS.items()
} | {name: PLAIN | {"type": "dapo"} | settings for name, settings in OPTIONS.items()}


@pytest.mark.parametrize("is_older", [False, True], ids=["on-policy", "old log-probs"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_trls(case: str, is_older: bool, tmp_path: Path) -> None:
    settings = LossConfig(**CASES[case])
    loss, gradient = our_loss(settings, is_older=is_older)
    expected, expected_gradient = trl_loss(settings, tmp_path, is_older=is_older)
    assert loss == pytest.approx(expected, abs=1e-5)  # fp32; log-probs differ by 1e-6
    off = float((gradient - expected_gradient).norm() / expected_gradient.norm())
    assert off < 2e-5  # the ratio of a completion adds up its tokens' rounding


@pytest.mark.parametrize("is_older", [False, True], ids=["on-policy", "old log-probs"])
def test_with_its_correction_and_nothing_else_set_the_loss_is_trls_with_nothing_set(
    is_older: bool, tmp_path: Path
) -> None:
    settings = LossConfig(vllm_importance_sampling_mode="sequence_mask")
    loss, gradient = our_loss(settings, is_older=is_older)
    expected, expected_gradient = trl_loss(settings, tmp_path, is_older=is_older, is_given=False)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 2e-5


@pytest.mark.parametrize("is_older", [False, True], ids=["on-policy", "old log-probs"])
def test_the_corrections_of_the_oracle_do_something(is_older: bool) -> None:
    """Every bound of the cases above is met by some tokens and not by others."""
    row = packed(batch())
    for case in CASES.values():
        settings = LossConfig(**case)
        if settings.vllm_importance_sampling_correction:
            found = sampler_correction(
                logps_before(is_older=is_older),
                row.sampler_logps_T,
                row.completion_T,
                mode=settings.vllm_importance_sampling_mode,
                clip_min=settings.vllm_importance_sampling_clip_min,
                clip_max=settings.vllm_importance_sampling_clip_max,
            )
            assert 0 < found.outside_T.sum() < len(found.outside_T)


def test_a_row_knows_which_completion_a_token_belongs_to() -> None:
    groups = batch()
    row = packed(groups)
    lengths = [len(rollout.token_ids) for rollout in rollouts_of(groups)]
    expected = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    assert torch.equal(row.completion_T, expected)
    counted = completion_sums_T(torch.ones(len(expected)), row.completion_T)
    assert torch.equal(counted.long(), row.lengths_T)
