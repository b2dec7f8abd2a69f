"""The settings of `egogrpo codec train`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import MISSING


@dataclass(frozen=True, kw_only=True)
class TermWeights:
    """Weights of the loss's terms beside that of the values, whose weight is 1; all are of standardised values."""

    velocity: Annotated[float, Ge(0)] = 0.5
    """The weight of the differences between neighbouring time steps."""
    commitment: Annotated[float, Ge(0)] = 0.1
    """The weight of the distance between what the encoder gives and its codes."""
    positions: Annotated[float, Ge(0)] = 0.0
    """The weight of what `positions_fn` makes of the values, in its unit."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    name: str = MISSING
    """The name of the codec, which its tokens begin with: lower-case letters and digits, as "motion"."""
    streams: Annotated[list[str], "path"] = MISSING
    """Files of streams (.npz), folders of them, or patterns such as walk/*.motion.npz."""
    out: Annotated[str, "path"] = MISSING
    """The codec's folder, with metrics.jsonl and curves.png of its training."""
    kind: Literal["residual", "product", "plain", "bins"] = "residual"
    """residual: each level quantises what those before it left; product: each level a part of the latent vector;
    plain: one codebook; bins: each channel of each time step by itself, without training."""
    levels: Annotated[int, Ge(1)] = 2
    """Codebooks of residual and product quantisation, whose codes of a step are that many tokens."""
    codebook_size: Annotated[int, Ge(2)] = 512
    """Codes of each level, or bins."""
    downsampling: Annotated[int, Ge(1)] = 4
    """Time steps of a code step; bins have 1."""
    coverage: Annotated[float, Gt(0), Le(1)] = 0.98
    """For bins, the share of a channel's values between the first bin and the last."""
    code_dim: Annotated[int, Ge(1)] = 64
    width: Annotated[int, Ge(1)] = 128
    depth: Annotated[int, Ge(1), Le(3)] = 2
    """Residual blocks of the encoder and of the decoder."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.9
    """The decay of the moving averages that codes follow."""
    dead_frac: Annotated[float, Ge(0), Lt(1)] = 0.1
    """A code is reset to a latent vector of the batch once it is used this much of what an even use would be."""
    window_steps: Annotated[int, Ge(2)] = 60
    """Time steps of a training window, a multiple of the downsampling."""
    batch_size: Annotated[int, Ge(1)] = 32
    """Windows of an update."""
    num_epochs: Annotated[int, Ge(1)] = 100
    """Passes over as many windows, drawn at random, as the streams are long."""
    warmup_frac: Annotated[float, Ge(0), Lt(1)] = 0.05
    """The share of epochs, the first ones, in which encoder and decoder are trained without codes."""
    lr: Annotated[float, Gt(0)] = 3e-3
    """The learning rate at its highest: it rises over the first twentieth of more than 20 updates, and falls as a
    cosine to 0."""
    terms: TermWeights = field(default_factory=TermWeights)
    positions_fn: str | None = None
    """package.module:function or FILE.py:function that makes positions of values in their units, (B, T, C) to any
    shape, differentiable, for the loss's term `positions`."""
    held_out_frac: Annotated[float, Gt(0), Lt(1)] = 0.1
    """The share of the streams that the codec is measured on and not trained, at least one."""
    seed: Annotated[int, Ge(0)] = 0
    device: str = "auto"
    """cpu, cuda, cuda:1; auto: a GPU if there is one."""

    @property
    def num_warmup_epochs(self) -> int:
        return min(round(self.warmup_frac * self.num_epochs), self.num_epochs - 1)


def contradictions(config: CodecConfig) -> Iterator[str]:
    """What is wrong with settings taken together."""
    if config.kind == "bins":
        return
    if config.window_steps % config.downsampling:
        yield f"window_steps={config.window_steps} is no multiple of downsampling={config.downsampling}"
    if config.terms.positions > 0 and config.positions_fn is None:
        yield "terms.positions has a weight, and positions_fn is not set"
