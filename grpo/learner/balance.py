"""Load balancing: segments move between processes before the update, so that all have about as many tokens.

Where several processes compute each row together, segments move between such teams.

A step takes as long as its slowest process, and prompts and completions are of any length. All processes compute the
same moves from the same sizes; then the segments are sent with their clips. The gradient is that of the whole step
either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object

from grpo.packing import Segment
from grpo.policy.sequence_split import ALONE, SequenceSplit

MIN_GAIN_FRAC = 0.02
"""The share of the fullest process's tokens that a move has to save."""


class Move(NamedTuple):
    """A segment that goes from one process to another, by its index in the one that it leaves."""

    source: int
    index: int
    target: int


def plan_moves(tokens: Sequence[Sequence[int]]) -> list[Move]:
    """Plan moves from the fullest to the emptiest process while they help. tokens: sizes of each process's segments.

    No segment moves twice, so there is an end, and the largest sum never rises.
    """
    left = [dict(enumerate(own)) for own in tokens]
    sums = [sum(own) for own in tokens]
    moves: list[Move] = []
    while True:
        source, target = sums.index(max(sums)), sums.index(min(sums))
        gap = sums[source] - sums[target]
        # A segment of half the gap would be best. One as large as the gap or larger only reverses it.
        helping = {index: size for index, size in left[source].items() if 0 < size < gap}
        if not helping:
            return moves
        index = min(helping, key=lambda each: (abs(gap - 2 * helping[each]), each))
        size = left[source].pop(index)
        if min(size, gap - size) < MIN_GAIN_FRAC * sums[source]:
            return moves
        sums[source] -= size
        sums[target] += size
        moves.append(Move(source, index, target))


def balanced(
    segments: Sequence[Segment], accelerator: Accelerator, split: SequenceSplit = ALONE
) -> list[Segment]:
    """Exchange segments between all processes, and return those that this one has then.

    split: the processes that compute each row together; all of them get the segments of them all.
    """
    if accelerator.num_processes == 1:
        return [*segments]
    sizes = gather_object([[segment.num_tokens for segment in segments]])
    own, received = dict(enumerate(segments)), []
    teams = [range(first, first + split.size) for first in range(0, len(sizes), split.size)]
    places = [[(each, index) for each in team for index in range(len(sizes[each]))] for team in teams]
    moves = plan_moves([[size for each in team for size in sizes[each]] for team in teams])
    # In batches: NCCL would make a communicator for every pair of processes otherwise, each with buffers on the GPU.
    options: dict[str, Any] = {"device": accelerator.device, "use_batch": True}
    for source_team, place, target_team in moves:
        source, index = places[source_team][place]
        target = teams[target_team][source % split.size]
        if accelerator.process_index == source:
            dist.send_object_list([own.pop(index)], dst=target, **options)
        elif accelerator.process_index == target:
            arrived: list[Segment] = [None]  # pyright: ignore[reportAssignmentType]
            dist.recv_object_list(arrived, src=source, **options)
            received += arrived
    return split.shared([*own.values(), *received], accelerator.device)
