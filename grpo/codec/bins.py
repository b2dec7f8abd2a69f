"""Uniform bins: each channel of each time step is a code of its own, as in RT-2 and OpenVLA; the baseline of codecs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo.codec.collection import spec_of
from grpo.codec.spec import CodecSpec
from grpo.codec.streams import Stream

COVERAGE = 0.98
"""The share of a channel's values that its bins span, as OpenVLA's from the 1st to the 99th percentile."""


@dataclass(frozen=True, eq=False)
class Bins:
    """Bins of equal width between two values of each channel; a value outside them is in the first or the last one."""

    low_C: np.ndarray
    high_C: np.ndarray
    num_bins: int

    @classmethod
    def load(cls, spec: CodecSpec, statistics: Mapping[str, Any]) -> Bins:
        low_C, high_C = (np.array(statistics[name], dtype=np.float64) for name in ("low", "high"))
        if (spec.levels, spec.downsampling) != (len(spec.channels), 1):
            raise ValueError(f"bins have a level per channel and step, not {spec.levels} levels")
        if low_C.shape != (spec.levels,) or high_C.shape != low_C.shape or not (low_C <= high_C).all():
            raise ValueError("its statistics are not a low and a high value of each channel")
        return cls(low_C, high_C, spec.codebook_size)

    def encode(self, values_TC: np.ndarray) -> np.ndarray:
        places_TC = (values_TC.astype(np.float64) - self.low_C) / self._width_C
        return np.clip(np.floor(places_TC), 0, self.num_bins - 1).astype(np.int64)

    def decode(self, codes_KQ: np.ndarray) -> np.ndarray:
        return self._centres(codes_KQ).astype(np.float32)

    def codebooks(self) -> list[np.ndarray]:
        """Each bin's place between the first and the last, -1 to 1."""
        return [np.linspace(-1, 1, self.num_bins, dtype=np.float32)[:, None] for _ in self.low_C]

    def statistics(self) -> dict[str, Any]:
        return {"low": self.low_C.tolist(), "high": self.high_C.tolist()}

    def weights(self) -> None:
        return None

    @property
    def _width_C(self) -> np.ndarray:
        """Each channel's width of a bin; that of a constant one has no meaning, and is not 0."""
        return np.where(self.high_C > self.low_C, self.high_C - self.low_C, 1.0) / self.num_bins

    def _centres(self, codes_KQ: np.ndarray) -> np.ndarray:
        centres_KQ = self.low_C + (codes_KQ + 0.5) * self._width_C
        return np.where(self.high_C > self.low_C, centres_KQ, self.low_C)


def fit_bins(
    name: str, streams: Sequence[Stream], *, codebook_size: int = 256, coverage: float = COVERAGE
) -> tuple[CodecSpec, Bins]:
    """The spec and the bins of streams of one kind, between percentiles of their values."""
    values_NC = np.concatenate([stream.values_TC for stream in streams])
    tail = (1 - coverage) / 2
    low_C, high_C = np.quantile(values_NC.astype(np.float64), [tail, 1 - tail], axis=0)
    spec = spec_of(name, "bins", streams[0], levels=low_C.size, codebook_size=codebook_size, downsampling=1)
    return spec, Bins(low_C, high_C, codebook_size)
