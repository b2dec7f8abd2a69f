"""The start of new rows of an embedding or a head: codes whose vectors are near each other get rows that are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_MEASURED = 8192
"""The existing rows, evenly spread, whose mean and size are measured."""


def rows_of_codes(codebooks: Sequence[np.ndarray], name: str, existing_VD: Tensor) -> Tensor:
    """Return a codec's rows in fp32: those of its two tags, then one for each code, level by level.

    codebooks: for each level a vector per code. name: the codec's. existing_VD: the rows of trained tokens.

    Each level's vectors, around their mean, are turned by random orthonormal directions of its own, which keep their
    distances (where they have more dimensions than a row, a Gaussian projection, which about keeps them), and scaled
    so that they are as far from the mean of the existing rows as those are in the mean square. A tag is a random
    direction as far from it.
    """
    step = max(1, len(existing_VD) // MAX_MEASURED)
    measured_VD = existing_VD[::step].float()
    mean_D = measured_VD.mean(0)
    size = _size(measured_VD - mean_D)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tags = torch.randn(2, len(mean_D), generator=generator)
    turned = [tags, *(_turned(torch.from_numpy(each).float(), len(mean_D), generator) for each in codebooks)]
    return torch.cat([mean_D + each * (size / _size(each)) for each in turned])


def _turned(vectors_CE: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return vectors around their mean, in as many dimensions as a row has."""
    directions_DE = torch.randn(width, vectors_CE.shape[1], generator=generator)
    if vectors_CE.shape[1] <= width:
        directions_DE = torch.linalg.qr(directions_DE).Q
    return (vectors_CE - vectors_CE.mean(0)) @ directions_DE.T


def _size(rows_ND: Tensor) -> float:
    """Return the root of the mean square of the rows' norms; 1 for rows of zeros, which stay."""
    return float(rows_ND.square().sum(-1).mean().sqrt()) or 1.0
