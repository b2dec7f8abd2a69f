"""Streams of a few waves, and settings of a codec that learns them in a second."""

from typing import Any

import numpy as np

from grpo.codec.settings import CodecConfig
from grpo.codec.streams import Stream

TINY: dict[str, Any] = dict(
    name="wave", streams=["waves"], out="codec", codebook_size=16, code_dim=4, width=16, depth=1, window_steps=16,
    batch_size=16, num_epochs=6, lr=1e-2, device="cpu",
)  # fmt: skip


def config(**settings) -> CodecConfig:
    return CodecConfig(**(TINY | settings))


def waves(count: int, num_steps: int = 48) -> list[Stream]:
    """Waves of random phases and heights in three channels: x and y in metres, and a turn in degrees a second."""
    return [wave(index, num_steps) for index in range(count)]


def wave(index: int, num_steps: int) -> Stream:
    draw = np.random.default_rng(index)
    phase_T = 2 * np.pi * (draw.uniform() + np.arange(num_steps) / 16)
    height = draw.uniform(0.5, 1.0)
    values_TC = np.stack(
        [height * np.sin(phase_T), height * np.cos(phase_T), 100 + 90 * height * np.sin(2 * phase_T)], 1
    )
    return Stream(
        values_TC=values_TC.astype(np.float32),
        rate_hz=20.0,
        start_s=0.0,
        channels=("x", "y", "turn"),
        units=("m", "m", "deg/s"),
    )
