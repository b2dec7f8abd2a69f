"""Every setting, in one place: name, type, default, meaning.

Files overlay left to right, then `key=value` overrides, all strict. Only `train.py`, the trainer and
the reward set see `Config`; everything else takes plain parameters. Keys that mean what trl's
`GRPOConfig` means carry its names (`loss.epsilon`, `loss.beta`, `optim.max_grad_norm`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo.config.learner import LossConfig, OptimConfig, validate_loss, validate_robust
from grpo.config.model import ModelConfig, validate_model
from grpo.feed.dynamic_sampling import DynamicSamplingConfig, validate_dynamic_sampling
from grpo.feed.mixture import check_shares
from grpo.media.sampling import MediaSettings
from rewards.parsing import TAGS
from rewards.scoring.loading import reads_cited_moments
from rewards.scoring.specs import RewardSpec, WorkerSettings


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    template: str = "{question}\n{options}\n{instruction}"
    """The user's turn after the clip."""
    option: str = "{letter}. {text}"
    """One line of `{options}`."""
    tags: list[str] | None = None
    """Output tags to ask for, in order; None: think, keyframes (for built-ins that read them), answer."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    reader: str = "jsonl"
    path: str = MISSING
    media_root: str | None = None
    """Folder that the records' media paths start from, and that they can't leave; None: the folder of `path`."""
    frame_fps: float | None = None
    """How many of the frames that a record lists are shown per second, where the record does not say it."""
    name: str | None = None
    """What the set is called in the metrics; None: the file's name without its ending."""
    share: float | None = None
    """How many of the prompts are from this training set, whatever its size: with 0.1 one in ten, held at every step
    to within one prompt. None: the sets without one share the rest as if they were one set."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: list[DatasetConfig] = field(default_factory=list)
    eval: list[DatasetConfig] = field(default_factory=list)
    allow_overlap: Literal["nothing", "clips", "questions"] = "nothing"
    """What held-out sets may have in common with training: clips that other questions are asked about, or the same
    questions too."""
    probe_clips: int = 64
    """Clips of each set whose header is opened before training, spread evenly. That a file exists is
    checked for all."""


@dataclass(frozen=True, kw_only=True)
class MediaConfig(MediaSettings):
    cache_gib: float = 4.0
    """Decoded frames and features of a frozen vision tower that are kept in memory, per process."""
    cache_dir: str | None = None
    """Folder of decoded frames on disk, shared by processes and runs. None: `clip_cache` beside the run's folder, on
    the disk that was chosen for checkpoints, so that all runs there share it. A node's own disk is faster."""
    cache_disk_gib: float = 16.0
    """Limit of that folder, beyond which the clips used longest ago are removed; 0: no frames on disk."""
    num_workers: int = 2
    """Processes that decode clips, for each process that trains."""
    timeout_s: float = 120.0
    """Seconds that a clip may take to be read, on a file system that may hang; then its group is lost. It is tried
    once more in a later step."""
    prefetch_steps: int = 2
    """Steps whose clips are decoded ahead."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    engine: Literal["vllm", "transformers"] = "vllm"
    group_size: int = 8
    """Completions per prompt (G)."""
    max_new_tokens: int = 768
    temperature: float = 1.0
    max_model_tokens: int = 8192
    """Prompt and completion together. A prompt is never cut: a run with one that can't fit does not start."""
    gpu_memory_frac: float = 0.3
    """Share of a GPU's memory that vLLM takes for weights and cache."""
    sleep: bool = False
    """Free vLLM's GPU memory during the update (vLLM's sleep mode; no effect on CPU)."""
    max_gap: float | None = None
    """Stop when the mean difference between engine and learner log-probs in a step exceeds this. None:
    0.001 in fp32 and 0.05 in bf16, where the two run different kernels; 0: never stop."""


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    baseline: Literal["mean", "loo"] = "mean"
    """What a total is compared with: the mean of its group, or of the group's other totals (leave-one-out, RLOO)."""
    scale: Literal["group_std", "batch", "none"] = "group_std"
    """What a total's distance from its baseline is divided by: its group's std, the whole batch's, or nothing."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """normalize_then_sum (GDPO): each reward is normalised within its group before the weighted sum, and the sums by
    the batch; `scale` has no effect then."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every_steps: int = 50
    """0: never. Otherwise also before the first step and after the last."""
    max_samples: int | None = None
    """The first so many of each set; None: all."""
    sampled: bool = True
    """Beside the greedy answer, score one sampled at the rollout temperature."""
    batch_prompts: int = 64
    """Questions per request to the engine, in each process, whose clips and the next so many's are in memory."""
    blind: list[Literal["blank", "shuffled", "reversed"]] = field(default_factory=list)
    """Answer once more about changed frames (black, in random order, backwards), for `eval/<set>/blank/accuracy` and
    the like: what is left shows how much is answered without looking. Empty: not at all."""
    blind_samples: int = 64
    """The first so many of each set for that."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 50
    """0: only the final model."""
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    rollouts_every_steps: int = 1
    """Completions with their rewards, as Parquet; 0: never."""


@dataclass(frozen=True, kw_only=True)
class Config:
    run_dir: str = MISSING
    """Everything about the run goes here. The same command with the same folder resumes."""
    seed: int = 0
    num_steps: int = MISSING
    rewards_max_error_frac: float = 0.01
    """Share of a step's completions that may lack a total, since a reward failed on them, before the run stops and
    names the reward."""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: dict[str, RewardSpec] = field(default_factory=dict)
    rewards_workers: WorkerSettings = field(default_factory=WorkerSettings)
    advantages: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def tags(self) -> tuple[str, ...]:
        """The output tags that prompts ask for."""
        if self.prompt.tags is not None:
            return tuple(self.prompt.tags)
        cites = any(reads_cited_moments(reward.fn or name) for name, reward in self.rewards.items())
        return ("think", "keyframes", "answer") if cites else ("think", "answer")

    @property
    def clip_cache(self) -> Path:
        """The folder of decoded frames."""
        return Path(self.media.cache_dir or Path(self.run_dir).absolute().parent / "clip_cache")


def load_config(argv: Sequence[str]) -> Config:
    """Layer YAML files, then key=value overrides, on the defaults; later ones win.

    An unknown key, a wrong type or an impossible combination raises ValueError here, before a model is loaded.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *_files(argv), _overrides(argv))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ValueError(f"config: {missing[0]} is not set")
        config = cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_one_line(error)}") from error
    except TypeError as error:  # a list met something else; OmegaConf does not say which
        raise ValueError(f"config: {error}; lists are set whole: data.train=[{{path: FILE}}]") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config: no YAML: {' '.join(str(error).split())}") from error
    validate(config)
    return config


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


def to_yaml(config: Config) -> str:
    """The resolved config, as a file that `load_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


FREE_TO_CHANGE = (
    "run_dir", "num_steps", "eval", "checkpoint", "log", "rewards_max_error_frac", "rewards_workers",
    "data.eval", "data.probe_clips", "data.allow_overlap",
    "media.num_workers", "media.timeout_s", "media.cache_gib", "media.cache_dir", "media.cache_disk_gib",
    "media.prefetch_steps", "model.attention", "model.gradient_checkpointing", "model.activation_offloading",
    "loss.reference_offload", "rollout.gpu_memory_frac", "rollout.sleep", "rollout.max_gap", "optim.tokens_per_row",
    "optim.max_skipped_updates", "optim.spike_factor",
)  # fmt: skip
"""What a resumed run may set anew: how it is run and watched, and how long. (Another `num_steps` stretches the rest
of a cosine schedule.)"""


def check_same_run(old: Path, config: Config) -> None:
    """Raise ValueError if a run folder's config file differs in a key that would make it another run."""
    before = _flat(OmegaConf.to_container(OmegaConf.load(old)))
    now = _flat(OmegaConf.to_container(OmegaConf.structured(config)))
    for key in sorted(before.keys() | now.keys()):
        is_free = any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE) or (
            key.startswith("rewards.") and key.endswith((".timeout_s", ".cache"))
        )
        if before.get(key) != now.get(key) and not is_free:
            raise ValueError(
                f"run_dir: {old.parent} holds a run with {key}={before.get(key)}, not {now.get(key)}; "
                "choose another run_dir, or remove that folder"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return {prefix: value}
    return {
        k: v
        for name, part in pairs
        for k, v in _flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _files(argv: Sequence[str]) -> list[Any]:
    paths = [Path(arg) for arg in argv if "=" not in arg]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"config: no file {path}")
    return [OmegaConf.load(path) for path in paths]


def _overrides(argv: Sequence[str]) -> Any:
    return OmegaConf.from_dotlist([arg for arg in argv if "=" in arg])


def _one_line(error: OmegaConfBaseException) -> str:
    first = str(error).splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first
