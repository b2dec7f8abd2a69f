"""Every setting, in one place: name, type, limits, default, meaning. A new one is a line here.

`limits.py` has the words `Positive`, `Free` and the like; what contradicts each other is in `rules.py`. Keys that mean
what trl's `GRPOConfig` means carry its names (`loss.epsilon`, `loss.beta`, `optim.max_grad_norm`, ...).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from omegaconf import MISSING

from grpo.config.learner import LossConfig, OptimConfig
from grpo.config.limits import FilePath, Frac, Free, NotNegative, Positive, PositiveFrac
from grpo.config.model import ModelConfig
from grpo.media.sampling import MediaSettings
from rewards.scoring.loading import reads_cited_moments
from rewards.scoring.specs import RewardSpec, WorkerSettings

SHARE_UNITS = 10_000
"""Shares are rounded to a ten-thousandth: then their pattern repeats, and no step depends on those before it."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    system: str | None = None
    """The system's turn before the user's, in place of those that records have; None: the record's, or else the
    model's own, as its chat template has it."""
    template: str = "{question}\n{options}\n{instruction}"
    """The user's turn after the clip."""
    option: str = "{letter}. {text}"
    """One line of `{options}`."""
    tags: list[str] | None = None
    """Output tags to ask for, in order; None: think, keyframes (for built-ins that read them), answer."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    reader: str = "jsonl"
    path: FilePath[str] = MISSING
    media_root: FilePath[str | None] = None
    """Folder that the records' media paths start from, and that they can't leave; None: the folder of `path`."""
    follow_links: bool = False
    """Whether media may be symbolic links that lead out of that folder."""
    frame_fps: float | None = None
    """How many of the frames that a record lists are shown per second, where the record does not say it."""
    name: str | None = None
    """What the set is called in the metrics; None: the file's name without its ending."""
    share: Annotated[float | None, Ge(1 / SHARE_UNITS), Le(1)] = None
    """How many of the prompts are from this training set, whatever its size: with 0.1 one in ten, held at every step
    to within one prompt. None: the sets without one share the rest as if they were one set."""
    benchmark: str | None = None
    """A held-out set's benchmark (docs/evaluation.md), whose reader and rules are used: greedy answers get
    `eval/<set>/ours` and `eval/<set>/official` too."""
    official_prompt: bool = False
    """Ask a benchmark's questions in its own prompt, not in training's; then rewards don't score the answers. Where its
    official rule takes the option of lowest loss (EgoPlan-Bench), the learner computes the losses."""
    judge: dict[str, Any] = field(default_factory=dict)
    """The judge of a benchmark that wants one, in the arguments of the reward `judge`: base_url, model, ...
    (docs/judge.md). The benchmark states the prompt, and replies are kept in the run's `eval_judge.sqlite`."""

    @property
    def label(self) -> str:
        """What the set is called in the metrics."""
        return self.name or Path(self.path).stem


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: list[DatasetConfig] = field(default_factory=list)
    eval: Free[list[DatasetConfig]] = field(default_factory=list)
    target: str = "{target}"
    """The completion that `loss.type=nll` trains on, made of a record's `target`: `<answer>{target}</answer>`, say."""
    allow_overlap: Free[Literal["nothing", "clips", "questions"]] = "nothing"
    """What held-out sets may have in common with training: clips that other questions are asked about, or the same
    questions too."""
    probe_clips: Free[NotNegative[int]] = 64
    """Clips of each set whose header is opened before training, spread evenly. That a file exists is
    checked for all."""

    @property
    def files(self) -> list[str]:
        """The files, or folders, of all sets."""
        return [dataset.path for dataset in [*self.train, *self.eval]]


@dataclass(frozen=True, kw_only=True)
class MediaConfig(MediaSettings):
    cache_gib: Free[NotNegative[float]] = 4.0
    """Decoded frames and features of a frozen vision tower that are kept in memory, per process."""
    cache_dir: Free[FilePath[str | None]] = None
    """Folder of decoded frames on disk, shared by processes and runs. None: `clip_cache` beside the run's folder, on
    the disk that was chosen for checkpoints, so that all runs there share it. A node's own disk is faster."""
    cache_disk_gib: Free[NotNegative[float]] = 16.0
    """Limit of that folder, beyond which the clips used longest ago are removed; 0: no frames on disk."""
    num_workers: Free[Positive[int]] = 2
    """Processes that decode clips, for each process that trains."""
    timeout_s: Free[Positive[float]] = 120.0
    """Seconds that a clip may take to be read, on a file system that may hang; then its group is lost. It is tried
    once more in a later step."""
    prefetch_steps: Free[NotNegative[int]] = 2
    """Steps whose clips are decoded ahead of the one whose prompts are made: during an update that is the next one."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    engine: Literal["vllm", "vllm_process", "vllm_server", "transformers", "none"] = "vllm"
    """vllm: in the process that trains. vllm_process: in one of its own, which the run starts on the same machine.
    vllm_server: in servers that you start, on any machine. none: for `loss.type=nll` without held-out questions, where
    nothing is sampled."""
    group_size: Annotated[int, Ge(2)] = 8
    """Completions per prompt (G); one alone would have no group to be compared with."""
    max_new_tokens: Positive[int] = 768
    temperature: Positive[float] = 1.0
    stop: list[str] = field(default_factory=list)
    """Texts that end a completion and stay a part of it, `</answer>` say, beside the model's own end of a turn."""
    overlap: bool = False
    """Sample the next step's completions while the learner updates on this step's, from weights that are one step
    older than those that learn from them (docs/overlap.md)."""
    partial_tokens: Positive[int | None] = None
    """The most tokens of a completion that a step samples with `overlap`; a longer one goes on in the next step, and
    its group is trained on when all of it is there. None: a step waits for the longest."""
    partial_max_steps: Positive[int] = 2
    """How many steps a group may wait for such completions; then they are finished at once."""
    max_model_tokens: int = 8192
    """Prompt and completion together. A prompt is never cut: a run with one that can't fit does not start."""
    gpu_memory_frac: Free[PositiveFrac[float]] = 0.3
    """Share of a GPU's memory that vLLM takes for weights and cache. The GPU of vllm_process has room for 0.9."""
    sleep: Free[bool] = False
    """Free vLLM's GPU memory during the update (vLLM's sleep mode; no effect on CPU). The weights are loaded anew from
    the policy after it; with `lora: adapters` those that don't train wait in main memory."""
    tensor_parallel_size: Free[Positive[int]] = 1
    """Processes that share an engine, each with a part of its weights, for a model that is too large for one GPU. A
    divisor of the number of processes on a machine."""
    lora: Free[Literal["auto", "adapters", "merge"]] = "auto"
    """How vLLM gets LoRA adapters. adapters: beside its weights, in the precision of the passes, which is slower to
    sample with. merge: added to the weights, which in 16 bits rounds what they change. auto: adapters on a GPU, but
    merge with `model.load_in_4bit` and above rank 512, where vLLM can't, and on a CPU, where nothing is rounded."""
    prove_sync_every: Free[NotNegative[int]] = 20
    """The syncs from one proof that the engine has the policy's weights to the next, by a fixed question; each of the
    first three is proven too. 0: none."""
    servers: Free[list[str]] = field(default_factory=list)
    """Addresses of the servers of vllm_server (`egogrpo serve --for-training`), as in `[http://127.0.0.1:8000]`."""
    process_gpus: Free[str | None] = None
    """GPUs of vllm_process, in the way of CUDA_VISIBLE_DEVICES: the first of them is used, and the learner must not use
    it. None: there are no GPUs."""
    server_timeout_s: Free[Positive[float]] = 600.0
    """How long a server may take to answer with a group, and how long a run waits when no server is left."""
    server_tries: Free[Positive[int]] = 3
    """How many servers, one after another, a group is asked of; then it is left out of its step."""
    transfer_dir: Free[FilePath[str | None]] = None
    """Folder through which weights go to servers that take them as files, and which they see too. None: the run's."""
    max_gap: Free[NotNegative[float | None]] = None
    """Stop when the mean difference between engine and learner log-probs exceeds this in three steps in a row, or four
    times this in one; with `overlap`, those steps count that measure it. None: 0.001 in fp32 and 0.05 in bf16, where
    the two run different kernels; 0: never stop."""

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a completion."""
        return self.max_model_tokens - self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    baseline: Literal["mean", "loo"] = "mean"
    """What a total is compared with: the mean of its group, or of the group's other totals (leave-one-out, RLOO)."""
    scale: Literal["group_std", "batch", "none"] = "group_std"
    """What a total's distance from its baseline is divided by: its group's std, the whole batch's, or nothing."""
    min_std: NotNegative[float] = 0.0
    """The smallest std of a group's totals that counts: a group below it is flat, as one of equal totals is. What is
    left of a judge's noise (0.001, say) has advantages as large as any otherwise, since they are divided by it."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """normalize_then_sum (GDPO): each reward is normalised within its group before the weighted sum, and the sums by
    the batch; `scale` has no effect then."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every_steps: NotNegative[int] = 50
    """0: never. Otherwise also before the first step and after the last."""
    max_samples: Positive[int | None] = None
    """The first so many of each set; None: all."""
    sampled: bool = True
    """Score an answer sampled at the rollout temperature, beside the greedy one."""
    batch_prompts: Positive[int] = 64
    """Questions per request to the engine, in each process, whose clips and the next so many's are in memory."""
    blind: list[Literal["blank", "shuffled", "reversed"]] = field(default_factory=list)
    """Answer once more about changed frames (black, in random order, backwards), for `eval/<set>/blank/accuracy` and
    the like: what is left shows how much is answered without looking. Empty: not at all."""
    blind_samples: NotNegative[int] = 64
    """The first so many of each set for that."""
    judge_timeout_s: Positive[float] = 300.0
    """How long an evaluation waits for the judge of a held-out set; answers that have no mark by then are unjudged."""
    best_metric: str | None = None
    """The metric of an evaluation by which the best checkpoint is kept, such as `eval/egoschema/official`; None: the
    mean, over held-out sets, of the greedy answers' rewards as they are weighted in training."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: NotNegative[int] = 50
    """0: only the final model."""
    keep: Positive[int] = 2
    """The newest so many stay, and beside them the one with the best held-out score and the newest of which the run
    still learned."""
    stop_within_s: Free[Positive[float]] = 600.0
    """How long a run that is told to stop (SIGTERM, SIGUSR1, Ctrl-C) may go on until its step is finished and saved.
    Then it ends without a checkpoint."""
    final_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """The precision of the weights in `final/`."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    rollouts_every_steps: NotNegative[int] = 1
    """Completions with their rewards, as Parquet; 0: never."""
    live: bool = True
    """In a terminal the latest figures, the time that is left and warnings stay at the bottom. False, and without a
    terminal: a line for each step."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = field(default_factory=list)
    """Where the figures of each step go besides `metrics.jsonl`. A tracker that fails does not stop the run."""
    pictures_every_steps: NotNegative[int] = 50
    """How often the trackers get pictures of a few groups: frames, question, completions, rewards; 0: never."""


@dataclass(frozen=True, kw_only=True)
class DynamicSamplingConfig:
    max_resample_times: NotNegative[int] = 0
    """How often a step may replace its groups without signal by groups of other questions; 0: they stay."""
    skip_epochs: NotNegative[float] = 0.0
    """How long a question is left out, for another one, after its completions were all right or all wrong."""
    reward: str = "accuracy"
    """The reward whose mean over a group tells whether a question is solved or hopeless."""
    solved_from: float = 1.0
    """A question counts as solved if that mean is so high or higher."""
    hopeless_to: float = 0.0
    """A question counts as hopeless if that mean is so low or lower."""


@dataclass(frozen=True, kw_only=True)
class Config:
    run_dir: Free[FilePath[str]] = MISSING
    """Everything about the run goes here. The same command with the same folder resumes."""
    seed: int = 0
    num_steps: Free[Positive[int]] = MISSING
    """Another number stretches or shortens the rest of a cosine schedule when a run is resumed."""
    rewards_max_error_frac: Free[Frac[float]] = 0.01
    """Share of a step's completions that may lack a total, since a reward failed on them, before the run stops and
    names the reward."""
    model: ModelConfig = field(default_factory=ModelConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: dict[str, RewardSpec] = field(default_factory=dict)
    rewards_workers: Free[WorkerSettings] = field(default_factory=WorkerSettings)
    advantages: AdvantageConfig = field(default_factory=AdvantageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    eval: Free[EvalConfig] = field(default_factory=EvalConfig)
    checkpoint: Free[CheckpointConfig] = field(default_factory=CheckpointConfig)
    log: Free[LogConfig] = field(default_factory=LogConfig)

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
