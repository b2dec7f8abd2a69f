"""The network of a vector-quantised codec: a convolutional encoder and decoder over time with codebooks between them.

T time steps have C channels, K code steps Q levels, latent vectors D numbers. Encoding and decoding need torch alone;
training (`training.py`) learns the codebooks with vector-quantize-pytorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from grpo.codec.spec import CodecSpec

BATCH = 1024
"""Code steps whose distances to all codes are in memory at once."""
DILATIONS = (1, 3, 9)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a network."""

    width: int
    """Channels between the convolutions."""
    depth: int
    """Residual blocks of encoder and decoder: 1 to 3, with kernels that reach farther each time."""
    code_dim: int
    """Numbers of a codebook's vectors."""

    def __post_init__(self) -> None:
        if min(self.width, self.code_dim) < 1 or not 1 <= self.depth <= len(DILATIONS):
            raise ValueError(f"a network of width {self.width}, depth {self.depth}, codes of {self.code_dim}")


class Network(nn.Module):
    """Encoder, codebooks (Q, V, D) and decoder, on standardised values.

    Residual levels quantise what those before them left of a latent vector, product levels a part of it each.
    """

    def __init__(self, spec: CodecSpec, shape: Shape) -> None:
        super().__init__()
        self.is_product = spec.kind == "product"
        latent_dim = shape.code_dim * (spec.levels if self.is_product else 1)
        self.encoder = _encoder(len(spec.channels), latent_dim, spec, shape)
        self.decoder = _decoder(len(spec.channels), latent_dim, spec, shape)
        codebooks_QVD = torch.zeros(spec.levels, spec.codebook_size, shape.code_dim)
        self.codebooks_QVD: Tensor
        self.register_buffer("codebooks_QVD", codebooks_QVD)

    def latents(self, values_BTC: Tensor) -> Tensor:
        """Latent vectors (B, K, D) of values whose steps are a multiple of the downsampling."""
        return self.encoder(values_BTC.mT).mT

    def values(self, latents_BKD: Tensor) -> Tensor:
        """Standardised values (B, T, C)."""
        return self.decoder(latents_BKD.mT).mT

    def nearest(self, latents_KD: Tensor) -> Tensor:
        """The codes (K, Q) of latent vectors."""
        return torch.cat([self._nearest(part_KD) for part_KD in latents_KD.split(BATCH)])

    def _nearest(self, latents_KD: Tensor) -> Tensor:
        parts = latents_KD.chunk(len(self.codebooks_QVD), dim=1) if self.is_product else ()
        codes, rest_KD = [], latents_KD
        for level, codebook_VD in enumerate(self.codebooks_QVD):
            given_KD = parts[level] if self.is_product else rest_KD
            # The squared distance without the vector's own length, which is the same for all codes.
            distances_KV = codebook_VD.square().sum(1) - 2 * given_KD @ codebook_VD.T
            codes.append(distances_KV.argmin(dim=1))
            if not self.is_product:
                rest_KD = rest_KD - codebook_VD[codes[-1]]
        return torch.stack(codes, dim=1)

    def vectors(self, codes_KQ: Tensor) -> Tensor:
        """The latent vectors (K, D) that codes stand for."""
        parts = [
            codebook_VD[codes_K] for codebook_VD, codes_K in zip(self.codebooks_QVD, codes_KQ.T, strict=True)
        ]
        return torch.cat(parts, dim=1) if self.is_product else torch.stack(parts).sum(dim=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """Vector quantisation as a codec's `Quantiser`."""

    network: Network
    shape: Shape
    mean_C: np.ndarray
    """Each channel's mean over the streams that the codec was trained on, in its unit; float64, as the scale."""
    scale_C: np.ndarray
    """What counts as 1 of each channel's unit."""

    @classmethod
    def load(cls, spec: CodecSpec, statistics: Mapping[str, Any], weights: bytes | None) -> Vectors:
        mean_C, scale_C = (np.array(statistics[name], dtype=np.float64) for name in ("mean", "scale"))
        num_channels = len(spec.channels)
        if mean_C.shape != (num_channels,) or scale_C.shape != (num_channels,) or not (scale_C > 0).all():
            raise ValueError("its statistics are not a mean and a scale of each channel")
        if weights is None:
            raise ValueError(f"a codec of kind {spec.kind} has weights")
        shape = Shape(**statistics["network"])
        with torch.device("meta"):
            network = Network(spec, shape)
        try:
            network.load_state_dict(load(weights), assign=True)
        except RuntimeError as error:
            raise ValueError(f"its weights are of another network: {error}".splitlines()[0]) from error
        return cls(network=network.eval(), shape=shape, mean_C=mean_C, scale_C=scale_C)

    @torch.no_grad()
    def encode(self, values_TC: np.ndarray) -> np.ndarray:
        standard_TC = ((values_TC - self.mean_C) / self.scale_C).astype(np.float32)
        return self.network.nearest(self.network.latents(torch.from_numpy(standard_TC)[None])[0]).numpy()

    @torch.no_grad()
    def decode(self, codes_KQ: np.ndarray) -> np.ndarray:
        latents_KD = self.network.vectors(torch.from_numpy(codes_KQ.astype(np.int64)))
        standard_TC = self.network.values(latents_KD[None])[0].numpy()
        return (standard_TC * self.scale_C + self.mean_C).astype(np.float32)

    def codebooks(self) -> list[np.ndarray]:
        return list(self.network.codebooks_QVD.numpy())

    def statistics(self) -> dict[str, Any]:
        return {"mean": self.mean_C.tolist(), "scale": self.scale_C.tolist(), "network": vars(self.shape)}

    def weights(self) -> bytes:
        return save(self.network.state_dict())


class _Residual(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.wide, self.narrow = _conv(width, width, dilation=dilation), nn.Conv1d(width, width, 1)

    def forward(self, hidden_BWT: Tensor) -> Tensor:
        return hidden_BWT + self.narrow(nn.functional.silu(self.wide(nn.functional.silu(hidden_BWT))))


def _encoder(num_channels: int, latent_dim: int, spec: CodecSpec, shape: Shape) -> nn.Sequential:
    # All blocks are at the rate of codes, so that an update costs little: time steps are folded into channels at once.
    step = nn.Conv1d(num_channels, shape.width, spec.downsampling, stride=spec.downsampling)
    return nn.Sequential(step, *_residuals(shape), nn.Conv1d(shape.width, latent_dim, 1))


def _decoder(num_channels: int, latent_dim: int, spec: CodecSpec, shape: Shape) -> nn.Sequential:
    steps = nn.ConvTranspose1d(shape.width, num_channels, spec.downsampling, stride=spec.downsampling)
    return nn.Sequential(nn.Conv1d(latent_dim, shape.width, 1), *_residuals(shape), steps)


def _residuals(shape: Shape) -> list[nn.Module]:
    return [_Residual(shape.width, dilation) for dilation in DILATIONS[: shape.depth]]


def _conv(num_in: int, num_out: int, dilation: int = 1) -> nn.Conv1d:
    # Replicated, as a stream's end is filled: zeros would be a jump to the mean at both ends.
    return nn.Conv1d(num_in, num_out, 3, padding=dilation, dilation=dilation, padding_mode="replicate")
