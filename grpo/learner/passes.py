"""A row's pass, forward and backward: what goes in and what comes out, also of a row that is passed in two halves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.packing import Family, PackedRow, halves
from grpo.run.metrics import Metrics

MAX_HALF_FRAC = 0.8
"""The share of a row's tokens below which a half of it is worth a try: both halves of a group have its prompt."""


class RowTooLarge(RuntimeError):
    """The error of a row whose pass did not fit into memory."""

    def __init__(self, index: int, why: str) -> None:
        """Keep the row's place among those of the process. why: what the allocator said."""
        super().__init__(why)
        self.index = index


@dataclass(frozen=True, kw_only=True, slots=True)
class RowInputs:
    """A row, and what its loss needs beside the policy's scores."""

    row: PackedRow
    kept_T: Tensor
    """The mask of the tokens that the loss acts on: 1, else 0."""
    old_logps_T: Tensor | None
    """The policy's log-probs before the step's first update; None in that one, whose own are used."""
    reference_logps_T: Tensor | None
    """The reference's log-probs; None without a KL term in the loss."""

    def halves(self, family: Family) -> list[RowInputs]:
        """Return the inputs of the row's halves (`packing.halves`)."""
        rows = halves(self.row, family)
        lengths = [len(row.target_T) for row in rows]

        def parts(values_T: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * len(rows) if values_T is None else values_T.split(lengths)

        kept = self.kept_T.split(lengths)
        given = zip(rows, kept, parts(self.old_logps_T), parts(self.reference_logps_T), strict=True)
        return [
            RowInputs(row=row, kept_T=kept_T, old_logps_T=old_T, reference_logps_T=reference_T)
            for row, kept_T, old_T, reference_T in given
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPass:
    """The result of a row's forward and backward pass, beside the gradient."""

    old_logps_T: Tensor
    """The policy's log-probs before the step's first update."""
    is_finite: bool
    """Whether the loss was a finite number; if not, there are no metrics."""
    metrics: Metrics


def why_not_in_halves(row: PackedRow, family: Family, *, was_halved: bool) -> str:
    """Return why a row whose pass was too large can't be passed in two halves; empty if it can."""
    if sum(len(segment.rollouts) for segment in row.segments) == 1:
        return "it has one completion only"
    larger, num_tokens = max(len(half.input_ids_N) for half in halves(row, family)), len(row.input_ids_N)
    if larger >= MAX_HALF_FRAC * num_tokens:
        return f"the larger half of it would still have {larger}"
    return "so is one of a half" if was_halved else ""


def whole_pass(parts: Sequence[RowPass]) -> RowPass:
    """Return the result of a row from those of its halves, or of itself."""
    if len(parts) == 1:
        return parts[0]
    return RowPass(
        old_logps_T=torch.cat([part.old_logps_T for part in parts]),
        is_finite=all(part.is_finite for part in parts),
        metrics=sum((part.metrics for part in parts), Metrics(sums={"optim/split_rows": 1.0})),
    )
