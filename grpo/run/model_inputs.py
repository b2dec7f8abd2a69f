"""How a model is asked: the settings of its clips and prompts, which a saved model takes along as `inputs.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from grpo.config.limits import Positive, refusals
from grpo.config.load import one_line_errors, read_layers, to_layer
from grpo.config.rules import media_contradictions, stop_contradictions
from grpo.config.schema import Config, PromptConfig, RolloutConfig
from grpo.media.sampling import MediaSettings
from grpo.policy.model_folder import INPUTS, find_model_folder, read_json
from grpo.policy.prompt_text import Wording
from rewards.parsing import TAGS

TEXT_TOKENS = 1024
"""The tokens of a prompt that are left to its text where a model does not say how it is asked."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The settings `rollout.*` that a model is asked with, as they are in a run's config."""

    max_new_tokens: Positive[int] = RolloutConfig.max_new_tokens
    max_model_tokens: Positive[int] = RolloutConfig.max_model_tokens
    stop: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """How a model is asked, by the keys that the same settings have in a run's config."""

    media: MediaSettings = field(default_factory=MediaSettings)
    prompt: PromptConfig = field(default_factory=lambda: PromptConfig(tags=[*TAGS]))
    rollout: Lengths = field(default_factory=Lengths)

    @classmethod
    def of(cls, config: Config) -> ModelInputs:
        """Return how a run asks its model."""
        media = {each.name: getattr(config.media, each.name) for each in fields(MediaSettings)}
        prompt = {**asdict(config.prompt), "tags": [*config.tags]}
        lengths = {each.name: getattr(config.rollout, each.name) for each in fields(Lengths)}
        return cls(media=MediaSettings(**media), prompt=PromptConfig(**prompt), rollout=Lengths(**lengths))

    @property
    def wording(self) -> Wording:
        """The settings of a prompt's text, as a family takes them."""
        prompt = self.prompt
        tags = TAGS if prompt.tags is None else prompt.tags
        return Wording(system=prompt.system, template=prompt.template, option=prompt.option, tags=tags)

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for a completion."""
        return self.rollout.max_model_tokens - self.rollout.max_new_tokens

    def write(self, folder: Path) -> None:
        """Write the settings into a model's folder."""
        (folder / INPUTS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_inputs(model_path: str, overrides: Sequence[str] = ()) -> ModelInputs:
    """Return how a model is asked, with `key=value` overrides.

    A model that does not say it is asked as a run's defaults have it, with clips that leave room for the question.
    Raises ValueError that names the key for settings that can't be.
    """
    for each in overrides:
        if "=" not in each:
            raise ValueError(f"{each!r} is no setting: key=value, as in media.max_frames=64")
    file = find_model_folder(model_path) / INPUTS
    stored = _stored(file) if file.is_file() else None
    with one_line_errors("settings"):
        defaults = OmegaConf.structured(ModelInputs)
        layer = to_layer(stored) if stored is not None else OmegaConf.create({})
        merged = OmegaConf.merge(defaults, layer, *read_layers(overrides))
        inputs = cast(ModelInputs, OmegaConf.to_object(merged))
    for problem in (
        *refusals(inputs),
        *media_contradictions(inputs.media),
        *stop_contradictions(inputs.rollout.stop),
    ):
        raise ValueError(problem)
    if inputs.max_prompt_tokens <= 0:
        raise ValueError("rollout.max_new_tokens leaves no room for a prompt in rollout.max_model_tokens")
    room = inputs.max_prompt_tokens - TEXT_TOKENS
    if stored is None and inputs.media.max_tokens is None and room > 0:
        return replace(inputs, media=replace(inputs.media, max_tokens=room))
    return inputs


def _stored(file: Path) -> ModelInputs:
    read = read_json(file)
    try:
        return ModelInputs(
            media=MediaSettings(**read["media"]),
            prompt=PromptConfig(**read["prompt"]),
            rollout=Lengths(**read["rollout"]),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} is of another version: {error}") from error
