"""How well a codec does: the error of what it makes of streams, in their units, and how much of its codes it uses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grpo.codec.codec import Codec
from grpo.codec.collection import varies
from grpo.codec.streams import Stream


def held_out_errors(codec: Codec, streams: Sequence[Stream]) -> dict[str, float]:
    """The mean absolute error of each unit's channels, in that unit, and the share of the variance that is lost.

    The share is the squared error of a unit's channels over their variance in these streams, and the mean over the
    units whose channels are not constant; it can be compared between streams of any units.
    """
    given_NC = np.concatenate([stream.values_TC for stream in streams]).astype(np.float64)
    made_NC = np.concatenate([rebuilt(codec, stream) for stream in streams])
    error_C = np.abs(made_NC - given_NC).mean(axis=0)
    units = np.array(codec.spec.units)
    errors = {f"held_out/error/{unit}": float(error_C[units == unit].mean()) for unit in dict.fromkeys(units)}
    squared_C, variance_C = np.square(made_NC - given_NC).mean(axis=0), given_NC.var(axis=0)
    varying = dict.fromkeys(units[varies(given_NC, codec.spec.units)])
    lost = [squared_C[units == unit].sum() / variance_C[units == unit].sum() for unit in varying]
    return errors | ({"held_out/lost_frac": float(np.mean(lost))} if lost else {})


def rebuilt(codec: Codec, stream: Stream) -> np.ndarray:
    """What a codec makes of a stream's values, of the stream's length."""
    return codec.decode(codec.encode(stream))[: len(stream.values_TC)]


def code_use(codes_NQ: np.ndarray, codebook_size: int) -> dict[str, float]:
    """For each level the share of its codes that occur, and the perplexity: e to the entropy of their frequencies."""
    metrics = {}
    for level, codes_N in enumerate(codes_NQ.T):
        counts = np.bincount(codes_N, minlength=codebook_size)
        frac = counts[counts > 0] / len(codes_N)
        metrics[f"codes/used_frac/{level}"] = len(frac) / codebook_size
        metrics[f"codes/perplexity/{level}"] = float(np.exp(-(frac * np.log(frac)).sum()))
    return metrics
