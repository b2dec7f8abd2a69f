"""The learner's settings, a part of `schema.py`: loss and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from grpo.config.limits import Frac, Free, NotNegative, Positive, PositiveFrac

Level = Literal["token", "sequence"]


@dataclass(frozen=True, kw_only=True)
class CareConfig:
    """GRPO-CARE's bonus for answers that the reference finds likely after the completion's reasoning
    (arXiv 2506.16141). It takes a reference, also without a KL term; one that moves: `loss.sync_ref_model`."""

    bonus: NotNegative[float] = 0.0
    """The addition to the total of a likely completion, times its accuracy; 0: nothing. GRPO-CARE: 0.5."""
    reward: str = "accuracy"
    """The reward that tells which completions are right: above 0.1, and at least the group's mean."""
    cap: PositiveFrac[float] = 0.95
    """The largest likelihood that counts: those above are as good as it."""
    margin: NotNegative[float] = 0.01
    """How far below the mean likelihood of the group's right completions one may be."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    type: Literal["grpo", "gspo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "nll"] = "dapo"
    """`dapo` (and `bnpo`): the mean over all completion tokens of the step; `grpo`: the mean over completions of
    their token means; `gspo`: grpo with the ratio of whole completions; `dr_grpo`: the sum over tokens by
    `rollout.max_new_tokens` and the number of completions; `cispo`: dapo, but the ratio is clipped as a constant
    weight; `sapo`: grpo with a soft gate in place of the clip. `nll`: nothing is sampled; the mean over all tokens of
    minus the log-probs of records' `target` texts, which is supervised fine-tuning."""
    importance_sampling_level: Level | None = None
    """Whose probability ratio a token gets: its own, or its completion's geometric mean. None: sequence for gspo,
    token for the others."""
    epsilon: NotNegative[float] = 0.2
    """Lower clip of the probability ratio, and the upper one too unless `epsilon_high` is set."""
    epsilon_high: NotNegative[float | None] = None
    """Upper clip of the probability ratio; larger than `epsilon`: asymmetric, as in DAPO (0.28). With cispo the
    largest weight itself (ScaleRL: 5). None: `epsilon`."""
    delta: Positive[float | None] = None
    """Upper bound of the ratio where the advantage is negative (two-sided clipping); above 1 + `epsilon_high`."""
    sapo_temperature_pos: Positive[float] = 1.0
    """How steeply sapo's gate closes where the advantage is positive."""
    sapo_temperature_neg: Positive[float] = 1.05
    """How steeply sapo's gate closes where the advantage is not positive."""
    beta: NotNegative[float] = 0.0
    """Weight of the KL divergence to the reference, the frozen start: with LoRA the model without its adapters, else
    a second copy; 0: none."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    use_bias_correction_kl: bool = True
    """Multiply the KL estimate by the probability ratio, which makes its gradient unbiased."""
    reference_offload: Free[bool] = False
    """Keep the reference's weights in main memory. They visit the GPU once a step, before the update, for the
    log-probs of all rows. It does nothing without a reference, or with LoRA, whose reference has no weights of its
    own."""
    kl_in_reward: bool = False
    """Subtract `beta` times a completion's summed divergence from its total, in place of a term in the loss."""
    sync_ref_model: bool = False
    """Move the reference towards the policy every `ref_model_sync_steps` steps (TR-DPO)."""
    ref_model_sync_steps: Positive[int] = 512
    ref_model_mixup_alpha: PositiveFrac[float] = 0.6
    """The policy's share in the new reference; 1: a copy of it."""
    care: CareConfig = field(default_factory=CareConfig)
    vllm_importance_sampling_correction: bool = True
    """Weigh tokens by their probability under the learner over that under the rollout engine, whichever engine:
    the two compute slightly differently."""
    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "token_truncate"
    """Ratios of single tokens or of whole completions; beyond the bounds they are cut, or the tokens left out. A
    completion's ratio is the product over its tokens: the longer it is, the further rounding alone takes it from 1,
    and the less it weighs once it is cut."""
    vllm_importance_sampling_clip_max: Positive[float | None] = 3.0
    vllm_importance_sampling_clip_min: float | None = None
    mask_truncated_completions: bool = False
    """Leave completions that hit the token limit out of the loss; they still count in their group's advantages."""
    entropy_coef: float = 0.0
    """Weight of the mean token entropy, which is added to the objective."""
    top_entropy_quantile: Frac[float] = 1.0
    """Share of the step's tokens, those of highest entropy, that the policy loss and the entropy bonus act on. Below
    1 each update costs one more forward pass over all completions. The paper recommends 0.2 (arXiv 2506.01939)."""

    @property
    def upper_epsilon(self) -> float:
        """How far above 1 the probability ratio is clipped; with cispo, at which value."""
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    @property
    def level(self) -> Level:
        """Whose probability ratio a token gets."""
        return self.importance_sampling_level or ("sequence" if self.type == "gspo" else "token")

    @property
    def engine_level(self) -> Level:
        """Whose probability ratio to the engine a token gets."""
        return "sequence" if self.vllm_importance_sampling_mode.startswith("sequence") else "token"

    @property
    def is_sampled(self) -> bool:
        """Completions are sampled by an engine, not given by records."""
        return self.type != "nll"

    @property
    def needs_reference(self) -> bool:
        """A frozen start is compared with."""
        return self.beta > 0 or self.care.bonus > 0

    @property
    def reference_parts(self) -> tuple[str, ...]:
        """The parts of a completion's total that the reference gives."""
        return ("kl",) * self.kl_in_reward + ("care",) * (self.care.bonus > 0)

    @property
    def needs_flat_groups(self) -> bool:
        """Groups without signal have a gradient too."""
        return self.entropy_coef != 0 or (self.beta > 0 and not self.kl_in_reward)


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """Keeping a fine-tuned model near its start, for robustness to other data than it was tuned on."""

    method: Literal["none", "spd", "l2_sp"] = "none"
    """spd: Selective Projection Decay, which pulls back only tensors that move against their gradient (arXiv
    2411.01713); l2_sp: weight decay towards the start in place of zero. Of LoRA's adapters the start is zero."""
    strength: NotNegative[float] = 0.0
    """The strength of the pull. spd: 1 keeps a tensor that moves against its gradient at its previous distance from
    the start, less lets it out, more pulls it in; not multiplied by the learning rate. l2_sp: multiplied by it, as
    `weight_decay` is."""
    spd_accumulates: bool = False
    """What tells a tensor that moves against its gradient: the current step, as in the published code, or the sum over
    all steps so far, as on the authors' slides."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: its moments in 8 bits (bitsandbytes, arXiv 2110.02861), 2 bytes a trained weight in place of 8."""
    lr: Positive[float] = 1e-6
    schedule: Literal["constant", "cosine"] = "cosine"
    min_lr_frac: Frac[float] = 0.0
    """Where the cosine ends, as a share of `lr`."""
    warmup_steps: NotNegative[int] = 0
    weight_decay: NotNegative[float] = 0.0
    """The decay of matrices; norms and biases have none, as in transformers."""
    betas: Annotated[tuple[float, float], Ge(0), Lt(1)] = (0.9, 0.999)
    max_grad_norm: Positive[float] = 1.0
    max_skipped_updates: Free[NotNegative[int]] = 3
    """An update whose loss or gradient is not finite is skipped, and its rows are kept in `bad_rows/`. More than so
    many in a row stop the run."""
    max_idle_steps: Free[NotNegative[int]] = 50
    """Steps in a row that had no group with a signal, or made no update, before the run stops: the policy is ruined
    then, or has nothing left to learn. After a fifth of them comes a warning. 0: never stop."""
    spike_factor: Free[NotNegative[float]] = 10.0
    """A gradient norm so many times as large as the median of the last 50 is noted in `failures.jsonl` with the
    groups that weigh most in it; 0: never."""
    robust: RobustConfig = field(default_factory=RobustConfig)
    num_iterations: Positive[int] = 1
    """Updates per batch of rollouts; from the second on, the ratio to the first one's log-probs is clipped."""
    prompts_per_step: Positive[int] = 8
    """Over all processes."""
    tokens_per_row: Free[Positive[int]] = 16384
    """Tokens of one forward pass. Several groups share a row where they fit; a group that does not fit
    is split between completions."""
    sequence_parallel_size: Free[Positive[int]] = 1
    """Processes that compute each row together, a part of its tokens each, for prompts that are too long for one GPU
    (DeepSpeed-Ulysses, arXiv 2309.14509). A divisor of the number of processes, and of the model's attention heads."""
