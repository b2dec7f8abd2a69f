"""The settings of `egogrpo evaluate`. What they share with a training run is the run's own sections."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from grpo.config.limits import FilePath, NotNegative, Positive
from grpo.config.load import load_settings
from grpo.config.model import PARTS, ModelConfig
from grpo.config.rules import (
    media_contradictions,
    prompt_contradictions,
    server_contradictions,
    stop_contradictions,
)
from grpo.config.schema import Config, MediaConfig, PromptConfig, RolloutConfig

PromptKind = Literal["official", "direct", "think"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkFiles:
    path: FilePath[str] = MISSING
    """The benchmark's file of questions, in its official layout."""
    media_root: FilePath[str | None] = None
    """Folder that the records' media paths start from, and that they can't leave; None: the folder of `path`."""
    follow_links: bool = False
    """Whether media may be symbolic links that lead out of that folder."""
    frame_fps: float | None = None
    """How many of the frames that a record lists are shown per second, where the record does not say it."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    path: FilePath[str | None] = None
    """A Hugging Face model folder, such as a run's `final/`, or a hub name that is in the local cache."""
    name: str | None = None
    """What it is called in tables; None: the last parts of its path."""


@dataclass(frozen=True, kw_only=True)
class AnswerConfig:
    engine: Literal["vllm", "vllm_server", "transformers"] = "vllm"
    servers: list[str] = field(default_factory=list)
    """Addresses of the servers of vllm_server (`egogrpo serve --for-training`), which get each model's weights."""
    num_samples: Positive[int] = 1
    """Answers to each question (n); more than one want a temperature."""
    temperature: NotNegative[float] = 0.0
    """0: greedy."""
    stop: list[str] = field(default_factory=list)
    """Texts that end an answer and stay a part of it: those of the run that trained the model."""
    regex: str = ""
    """A regular expression that each answer matches as a whole, by vLLM's structured output; empty: none."""
    max_new_tokens: Positive[int] = 1024
    max_model_tokens: Positive[int] = 16384
    """Prompt and answer together. A prompt is never cut: a question that does not fit has failed, and counts."""
    gpu_memory_frac: NotNegative[float] = 0.85
    """Share of a GPU's memory that vLLM takes for weights and cache."""
    batch_prompts: Positive[int] = 64
    """Questions per request to the engine, whose clips and the next so many's are in memory."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    out_dir: FilePath[str] = MISSING
    """Answers and results go here. The same command with the same folder goes on."""
    benchmark: str = MISSING
    """A benchmark (docs/benchmarks.md lists them), or a reader of data sets for questions of one's own."""
    data: BenchmarkFiles = field(default_factory=BenchmarkFiles)
    model: EvaluatedModel = field(default_factory=EvaluatedModel)
    models: dict[str, str] = field(default_factory=dict)
    """Several models in one table, by their names; the first is the one that the others are compared with."""
    prompt: PromptKind = "official"
    """official: the benchmark's own, byte for byte (direct, where it has none). direct: the answer alone. think: that
    of training, with reasoning in tags."""
    think: PromptConfig = field(default_factory=PromptConfig)
    """The wording of `prompt=think`, as in the run that trained the model."""
    media: MediaConfig = field(default_factory=MediaConfig)
    rollout: AnswerConfig = field(default_factory=AnswerConfig)
    judge: dict[str, Any] = field(default_factory=dict)
    """The judge of benchmarks that want one, in the arguments of the reward `judge`: base_url, model, ...
    (docs/judge.md). The benchmark states the prompt, and replies are kept in `judge.sqlite` in out_dir."""
    blind: bool = False
    """Ask once more about black frames: what is answered without looking."""
    rotations: bool = False
    """Ask each choice once more for each place that its right option can have."""
    likeliest: bool = False
    """Answer with the candidate of lowest loss, where the benchmark's official rule is that, instead of generating."""
    max_samples: Positive[int | None] = None
    """The first so many questions; None: all."""
    allow_missing: bool = False
    """Leave out questions whose video is missing, and print the score with its n; otherwise there is no score."""
    page_items: NotNegative[int] = 1000
    """The first so many questions are on the page of items; 0: no page."""
    seed: int = 0

    @property
    def paths(self) -> dict[str, str]:
        """The models by their names."""
        if not self.model.path:
            return dict(self.models)
        return {self.model.name or label(self.model.path): self.model.path, **self.models}

    @property
    def tags(self) -> tuple[str, ...]:
        """The output tags that prompts ask for."""
        if self.prompt != "think":
            return ()
        return tuple(self.think.tags) if self.think.tags is not None else ("think", "answer")

    def as_run(self, model_path: str) -> Config:
        """The settings of the run whose parts (loader, engine, prompts) the evaluation of a model shares."""
        sampled = replace(
            RolloutConfig(),
            engine=self.rollout.engine,
            servers=[*self.rollout.servers],
            max_new_tokens=self.rollout.max_new_tokens,
            max_model_tokens=self.rollout.max_model_tokens,
            stop=[*self.rollout.stop],
            gpu_memory_frac=self.rollout.gpu_memory_frac,
            # The head divides logits by it, and greedy answers are those of any temperature.
            temperature=self.rollout.temperature or 1.0,
        )
        return Config(
            run_dir=self.out_dir,
            seed=self.seed,
            num_steps=1,
            model=ModelConfig(path=model_path, freeze=[*PARTS]),
            prompt=replace(self.think, tags=[*self.tags]),
            media=self.media,
            rollout=sampled,
        )


def load_evaluation(argv: list[str]) -> EvaluateConfig:
    """Layer YAML files, then key=value overrides, on the defaults; ValueError names what is wrong."""
    try:
        return load_settings(argv, EvaluateConfig, contradictions)
    except ValueError:
        for file in map(Path, argv):
            if file.is_file() and re.search(
                r"^(run_dir|rewards|optim):", file.read_text("utf-8"), re.MULTILINE
            ):
                raise ValueError(
                    f"config: {file} is a training run's; configs/eval/ has evaluations"
                ) from None
        raise


def contradictions(config: EvaluateConfig) -> Iterator[str]:
    """What is wrong with the settings taken together."""
    if not config.paths:
        yield "model.path is not set"
    if config.model.path and (config.model.name or label(config.model.path)) in config.models:
        name = config.model.name or label(config.model.path)
        yield f"models: two are called {name!r}: {config.model.path} (model.path) is; model.name=... calls it otherwise"
    for name in config.paths:
        if not name or name.startswith(".") or "/" in name:
            yield f"models: {name!r} is no name for a folder"
    if config.rollout.num_samples > 1 and not config.rollout.temperature:
        yield "rollout.num_samples: greedy answers are all alike; set rollout.temperature"
    yield from server_contradictions(config.rollout.engine, config.rollout.servers)
    if config.rollout.max_new_tokens >= config.rollout.max_model_tokens:
        yield "rollout.max_new_tokens leaves no room for a prompt in rollout.max_model_tokens"
    if config.likeliest and (config.rollout.num_samples > 1 or config.rollout.engine != "transformers"):
        yield "likeliest: losses are of the transformers engine (rollout.engine), with one answer to a question"
    if config.likeliest and config.rollout.stop:
        yield "rollout.stop: likeliest generates nothing that a text could end"
    yield from stop_contradictions(config.rollout.stop)
    yield from _regex_contradictions(config.rollout)
    yield from prompt_contradictions(config.think, config.tags, "think")
    yield from media_contradictions(config.media)


def _regex_contradictions(rollout: AnswerConfig) -> Iterator[str]:
    if rollout.regex and rollout.engine == "transformers":
        yield "rollout.regex: structured output is vLLM's (rollout.engine=vllm or vllm_server)"
    try:
        re.compile(rollout.regex)
    except re.error as error:
        yield f"rollout.regex: {rollout.regex!r} is no regular expression: {error}"


def label(path: str) -> str:
    """What a model is called by its path: a run's `final/` by the run."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return "-".join(parts[-2:] if parts[-1:] == ["final"] else parts[-1:])
