"""What can be wrong with settings of the right types: values that no run could use, keys that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo.config.learner import validate_loss, validate_robust
from grpo.config.model import validate_model
from grpo.config.schema import Config, DataConfig, DynamicSamplingConfig
from rewards.parsing import TAGS
from rewards.scoring.specs import RewardSpec

SHARE_UNITS = 10_000
"""Shares are rounded to a ten-thousandth: then their pattern repeats, and no step depends on those before it."""


def validate(config: Config) -> None:
    """Raise ValueError with the key's name for values that no run could use."""
    positive = {
        "rewards_workers.memory_gib": config.rewards_workers.memory_gib,
        "num_steps": config.num_steps,
        "media.num_workers": config.media.num_workers,
        "media.timeout_s": config.media.timeout_s,
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
        "rollout.temperature": config.rollout.temperature,
        "optim.num_iterations": config.optim.num_iterations,
        "optim.prompts_per_step": config.optim.prompts_per_step,
        "optim.tokens_per_row": config.optim.tokens_per_row,
        "eval.batch_prompts": config.eval.batch_prompts,
        "checkpoint.keep": config.checkpoint.keep,
        "optim.lr": config.optim.lr,
        "optim.max_grad_norm": config.optim.max_grad_norm,
    }
    for key, value in positive.items():
        if value <= 0:
            raise ValueError(f"config: {key} must be above 0, not {value}")
    not_negative = {
        "rewards_workers.max_workers": config.rewards_workers.max_workers,
        "media.cache_gib": config.media.cache_gib,
        "media.cache_disk_gib": config.media.cache_disk_gib,
        "loss.beta": config.loss.beta,
        "loss.epsilon": config.loss.epsilon,
        "loss.epsilon_high": config.loss.epsilon_high,
        "optim.max_skipped_updates": config.optim.max_skipped_updates,
        "optim.spike_factor": config.optim.spike_factor,
        "optim.warmup_steps": config.optim.warmup_steps,
        "optim.weight_decay": config.optim.weight_decay,
        "eval.every_steps": config.eval.every_steps,
        "eval.blind_samples": config.eval.blind_samples,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "log.rollouts_every_steps": config.log.rollouts_every_steps,
    }
    for key, value in not_negative.items():
        if value < 0:
            raise ValueError(f"config: {key} must not be negative, not {value}")
    if config.rollout.max_new_tokens >= config.rollout.max_model_tokens:
        raise ValueError(
            "config: rollout.max_new_tokens leaves no room for a prompt in rollout.max_model_tokens"
        )
    _validate_prompt(config)
    _validate_aggregation(config)
    validate_model(config.model)
    validate_loss(config.loss)
    _validate_reference(config)
    validate_robust(config.optim)
    if config.rollout.group_size < 2:
        raise ValueError("config: rollout.group_size must be at least 2: one completion has no group")
    _validate_data(config.data)
    _validate_rewards(config.rewards)
    has_kl_or_entropy = config.loss.needs_flat_groups or config.loss.kl_in_reward
    validate_dynamic_sampling(config.dynamic_sampling, config.rewards, flat_groups_teach=has_kl_or_entropy)
    if not 0 < config.rollout.gpu_memory_frac <= 1:
        raise ValueError("config: rollout.gpu_memory_frac must lie in (0, 1]")


def _validate_data(data: DataConfig) -> None:
    if not data.train:
        raise ValueError("config: data.train lists no dataset")
    check_shares([dataset.share for dataset in data.train])
    if any(dataset.share is not None for dataset in data.eval):
        raise ValueError("config: data.eval: only training sets have a share")


def _validate_prompt(config: Config) -> None:
    if unknown := sorted(set(config.tags) - set(TAGS)):
        raise ValueError(f"config: prompt.tags: no tag {unknown[0]!r}; there are {', '.join(TAGS)}")
    fields = {"template": ("question", "options", "instruction"), "option": ("letter", "text")}
    for key, names in fields.items():
        text = getattr(config.prompt, key)
        try:
            text.format(**dict.fromkeys(names, ""))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"config: prompt.{key}: {error} in {text!r}; it may use {{{'}, {'.join(names)}}}, and {{{{ for a brace"
            ) from error


def _validate_rewards(rewards: Mapping[str, RewardSpec]) -> None:
    if not rewards:
        raise ValueError("config: rewards is empty")
    if not any(reward.weight for reward in rewards.values()):
        raise ValueError("config: rewards: every weight is 0, so there is nothing to learn from")


def _validate_aggregation(config: Config) -> None:
    if config.loss.kl_in_reward and "kl" in config.rewards:
        raise ValueError(
            "config: rewards.kl: loss.kl_in_reward takes that name; call the reward something else"
        )
    if config.advantages.multi_objective_aggregation == "normalize_then_sum":
        for key, is_set in {
            "loss.kl_in_reward": config.loss.kl_in_reward,
            "advantages.baseline=loo": config.advantages.baseline == "loo",
        }.items():
            if is_set:
                raise ValueError(f"config: {key} does not go with advantages.multi_objective_aggregation")


def _validate_reference(config: Config) -> None:
    """With LoRA the reference is the model without adapters, which has no weights of its own."""
    if not config.model.lora.is_on:
        return
    if config.loss.sync_ref_model:
        raise ValueError("config: loss.sync_ref_model does not go with model.lora: its reference can't move")
    if config.loss.reference_offload:
        raise ValueError(
            "config: loss.reference_offload has no effect with model.lora: there is no second copy"
        )


def check_shares(shares: Sequence[float | None]) -> None:
    """Raise ValueError with the key's name for shares that no mixture has."""
    stated = [share for share in shares if share is not None]
    for number, share in enumerate(shares):
        if share is not None and not 1 / SHARE_UNITS <= share <= 1:
            raise ValueError(
                f"config: data.train.{number}.share must lie in [{1 / SHARE_UNITS}, 1], not {share}"
            )
    total = sum(stated)
    if len(stated) == len(shares) and shares and abs(total - 1) > 1e-3:
        raise ValueError(f"config: data.train: every set has a share, and they sum up to {total:g}, not 1")
    if len(stated) < len(shares) and total > 1 - 1 / SHARE_UNITS:
        raise ValueError(f"config: data.train: shares of {total:g} leave nothing to the sets without one")


def validate_dynamic_sampling(
    config: DynamicSamplingConfig, rewards: Mapping[str, object], *, flat_groups_teach: bool
) -> None:
    """Raise ValueError with the key's name for values that mean nothing."""
    key = "config: dynamic_sampling"
    if config.max_resample_times and flat_groups_teach:
        raise ValueError(
            f"{key}.max_resample_times: with loss.beta or loss.entropy_coef, groups of equal rewards have a gradient "
            "too; they must not be replaced"
        )
    if config.max_resample_times < 0 or config.skip_epochs < 0:
        name = "max_resample_times" if config.max_resample_times < 0 else "skip_epochs"
        raise ValueError(f"{key}.{name} must not be negative")
    if config.skip_epochs and config.reward not in rewards:
        raise ValueError(f"{key}.reward: no reward is called {config.reward!r}")
    if config.hopeless_to >= config.solved_from:
        raise ValueError(f"{key}.hopeless_to must be below solved_from")
