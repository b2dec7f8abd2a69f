"""The model's settings, a part of `schema.py`: what trains, in which form and precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from grpo.config.limits import FilePath, Free, NotNegative, Positive

Part = Literal["language", "vision", "merger"]
"""The language model with embeddings and head; the vision tower; the layers that lead from it to the language model."""

PARTS: tuple[Part, ...] = ("language", "vision", "merger")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraTargets:
    """For each part, names of linear layers as they end (`q_proj`, `attn.qkv`), or `all-linear`; empty: none."""

    language: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    vision: list[str] = field(default_factory=list)
    merger: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685) train in place of the model's own weights, which stay as they are.

    There is no dropout: the engine samples without it, and the learner would train on another policy's log-probs.
    """

    r: NotNegative[int] = 0
    """Rank of the adapters; 0: none, the weights themselves train."""
    alpha: Positive[int] = 32
    """An adapter's output is scaled by alpha / r."""
    targets: LoraTargets = field(default_factory=LoraTargets)

    @property
    def is_on(self) -> bool:
        return self.r > 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: FilePath[str] = MISSING
    """A Hugging Face model folder, or a hub name that is in the local cache."""
    freeze: list[Part] = field(default_factory=list)
    """Parts that keep their weights. With LoRA everything but the adapters does anyway."""
    freeze_vision: bool = False
    """Train the language model only; short for `freeze: [vision, merger]`."""
    new_rows_only: bool = False
    """Train nothing but the rows that `egogrpo codec grow` has added to the embedding and the head."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    load_in_4bit: bool = False
    """QLoRA (arXiv 2305.14314): the language model's linear layers are kept in 4 bits (bitsandbytes, NF4). The engine
    samples from the same rounded weights, at its own precision."""
    attention: Free[Literal["auto", "sdpa", "split", "flex", "flash_attn"]] = "auto"
    """Kernel for packed rows. auto: flash-attn where it is installed and the passes run in 16 bits on a GPU, else
    PyTorch's own: sdpa on a GPU, split on a CPU. split: the prompt's keys are not repeated for each completion; on a
    GPU it computes in 16 bits only, and has not been tried. flex: FlexAttention, which a GPU has to compile first."""
    cast_lm_head_to_fp32: bool = False
    """Learner and engine keep the products of the output head in fp32, so that their log-probs are nearer where passes
    run in bf16. It costs a copy of the head in fp32."""
    gradient_checkpointing: Free[bool] = False
    """Recompute activations in the backward pass: about a third more compute for far less memory."""
    activation_offloading: Free[bool] = False
    """Keep what gradient checkpointing still stores, each layer's input, in main memory until the backward pass."""

    @property
    def frozen(self) -> frozenset[Part]:
        """The parts that keep their weights."""
        return frozenset(self.freeze) | (
            frozenset(("vision", "merger")) if self.freeze_vision else frozenset()
        )
