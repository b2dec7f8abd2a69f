"""Rows that several processes compute together: each has a part of the positions, and in attention a part of the heads.

All of a decoder layer but attention looks at one position alone. Before attention the processes exchange positions for
heads, so that each has all positions of some heads, which any kernel for whole rows takes; then they exchange back
(DeepSpeed-Ulysses, arXiv 2309.14509). The vision tower looks at one temporal patch alone, so that each process runs it
over a part of each clip's, and the head at one completion token alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from grpo.media.clip import Clip
from grpo.packing import PackedRow
from grpo.policy.attention_backends import QKV


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SequenceSplit:
    """The split of each row over the processes of a group, and this one's number among them; alone by default.

    All processes of the group make the same passes of the same rows. What one computes of a row has its share of the
    gradient: the sum over the group is the whole.
    """

    size: int = 1
    rank: int = 0
    group: Any = None
    """The process group; None for a process alone."""
    _parts: WeakKeyDictionary[Clip, Clip] = field(default_factory=WeakKeyDictionary)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for its group, whose processes all know the same of a row."""
        return self.rank == 0

    def bounds(self, count: int) -> list[int]:
        """Return where the parts of an axis of so many begin, and the end of the last one."""
        return [count * number // self.size for number in range(self.size + 1)]

    def part(self, row: PackedRow) -> PackedRow:
        """Return the row with the tokens, positions and vision tokens of this process alone; the rest stays whole.

        Padding at the row's end, which no token sees, makes the parts equally long.
        """
        if self.size == 1:
            return row
        length = self._part_length(len(row.input_ids_N))
        padding = (0, self.size * length - len(row.input_ids_N))
        own = slice(self.rank * length, (self.rank + 1) * length)
        return replace(
            row,
            input_ids_N=F.pad(row.input_ids_N, padding)[own],
            positions_3N=F.pad(row.positions_3N, padding)[:, own],
            vision_index_M=row.vision_index_M[self._have(row)[self.rank]] - own.start,
        )

    def to_heads(self, states: QKV, num_tokens: int) -> QKV:
        """Exchange the states of this process's positions for those of a part of the heads, at all positions.

        num_tokens: N, without padding. A key's head goes to each process that has queries of it.
        """
        if self.size == 1:
            return states
        return QKV(*(self._to_heads(each)[:, :num_tokens] for each in states))

    def _to_heads(self, states_ANE: Tensor) -> Tensor:
        num_heads = len(states_ANE)
        states_ANE = states_ANE.repeat_interleave(math.lcm(num_heads, self.size) // num_heads, dim=0)
        # The heads of each process in its turn, at this one's positions; then this one's heads, at each process's.
        return self._swapped(states_ANE).unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)

    def to_positions(self, output_NAE: Tensor) -> Tensor:
        """Exchange attention's output for a part of the heads for that of all heads at this process's positions."""
        if self.size == 1:
            return output_NAE
        padding = self.size * self._part_length(len(output_NAE)) - len(output_NAE)
        padded_NAE = F.pad(output_NAE, (0, 0, 0, 0, 0, padding))
        return self._swapped(padded_NAE).unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)

    def _swapped(self, rows: Tensor) -> Tensor:
        """Send an equal part of the rows to each process, and return what came from them."""
        counts = [len(rows) // self.size] * self.size
        return Exchange.apply(rows, counts, counts, self.group)

    def predicting(self, hidden_ND: Tensor, row: PackedRow) -> tuple[Tensor, slice]:
        """Return the hidden states that this process's share of the completion tokens is predicted from, and where in
        them it is.

        hidden_ND: those at this process's positions. A token may be predicted from a position of any process.
        """
        if self.size == 1:
            return hidden_ND[row.source_T], slice(None)
        shares = [slice(*bounds) for bounds in pairwise(self.bounds(len(row.target_T)))]
        starts = [number * len(hidden_ND) for number in range(self.size + 1)]
        hidden_TD = self.fetched(hidden_ND, starts, [row.source_T[share] for share in shares])
        return hidden_TD, shares[self.rank]

    def assembled(self, own_T: Tensor, count: int) -> Tensor:
        """Return the values of all processes' shares of so many tokens; each process's gradient is that of its own."""
        if self.size == 1:
            return own_T
        start, end = self.bounds(count)[self.rank : self.rank + 2]
        return Assembly.apply(own_T, start, end, count, self.group)

    def own_clips(self, row: PackedRow) -> list[Clip]:
        """Return the parts of the row's clips that this process runs the vision tower over."""
        if self.size == 1:
            return row.clips
        parts = []
        for number, clip in enumerate(dict.fromkeys(row.clips)):
            first, end = self._patch_bounds(clip, number)[self.rank : self.rank + 2]
            if first < end:
                parts.append(self._clip_part(clip, first, end))
        return parts

    def features(self, held_MD: Tensor, row: PackedRow) -> Tensor:
        """Return the features of the vision tokens at this process's positions.

        held_MD: those of its own clips. All clips together must have as many as the row has vision tokens.
        """
        if self.size == 1:
            return held_MD
        starts, places = self._places(list(dict.fromkeys(row.clips)))
        places_M = torch.cat([places[clip] for clip in row.clips]).to(held_MD.device)
        return self.fetched(held_MD, starts, [places_M[is_own_M] for is_own_M in self._have(row)])

    def _places(self, clips: Sequence[Clip]) -> tuple[list[int], dict[Clip, Tensor]]:
        """Return where each process's features begin if those of all stand one after another, and each clip's there."""
        starts, parts = [0], {clip: [] for clip in clips}
        bounds = [self._patch_bounds(clip, number) for number, clip in enumerate(clips)]
        for rank in range(self.size):
            end = starts[-1]
            for clip, of_clip in zip(clips, bounds, strict=True):
                count = (of_clip[rank + 1] - of_clip[rank]) * _tokens_of_patch(clip)
                parts[clip].append(torch.arange(end, end + count))
                end += count
            starts.append(end)
        return starts, {clip: torch.cat(own) for clip, own in parts.items()}

    def _patch_bounds(self, clip: Clip, number: int) -> list[int]:
        """Return the bounds of the processes' temporal patches of a clip, the row's so and so many-th.

        A clip of fewer patches than processes goes to one of them, the next one's to the next.
        """
        count = clip.num_frames // clip.patches.temporal_frames
        if count >= self.size:
            return self.bounds(count)
        return [count * (rank > number % self.size) for rank in range(self.size + 1)]

    def _clip_part(self, clip: Clip, first: int, end: int) -> Clip:
        """Return some temporal patches of a clip: the same object each time, as long as the bounds are the same."""
        frames = slice(*(bound * clip.patches.temporal_frames for bound in (first, end)))
        times_s = clip.times_s[frames]
        if (part := self._parts.get(clip)) is None or part.times_s != times_s:
            part = Clip(replace(clip.facts, times_s=times_s), clip.frames_FHWC[frames])
            self._parts[clip] = part
        return part

    def fetched(self, held: Tensor, starts: Sequence[int], wanted: Sequence[Tensor]) -> Tensor:
        """Return rows of an axis of which each process holds a part.

        starts: where each part begins, and the end of the last one. wanted: the places on the axis of the rows that
        each process is to get.
        """
        first, end = starts[self.rank : self.rank + 2]
        sent = [places[(places >= first) & (places < end)] - first for places in wanted]
        own = wanted[self.rank]
        # The number of the process that holds each row: that of the last part which begins at its place or before.
        holder = torch.bucketize(own, own.new_tensor(starts[1:-1]), right=True)
        received = holder.bincount(minlength=self.size).tolist()
        rows = Exchange.apply(held[torch.cat(sent)], [*map(len, sent)], received, self.group)
        # They come process by process, those of one in the order in which they are wanted.
        return rows[holder.argsort(stable=True).argsort()]

    def _have(self, row: PackedRow) -> list[Tensor]:
        """Return, for each process, which of the row's vision tokens are at its positions, (M,)."""
        holder_M = row.vision_index_M // self._part_length(len(row.layout.restore_N))
        return [holder_M == rank for rank in range(self.size)]

    def _part_length(self, num_tokens: int) -> int:
        return -(-num_tokens // self.size)

    def shared(self, items: Sequence[Any], device: torch.device) -> list[Any]:
        """Return what all processes of the group have, in the order of the processes."""
        if self.size == 1:
            return [*items]
        found: list[Any] = []
        for rank in range(self.size):
            box = [[*items] if rank == self.rank else None]
            dist.broadcast_object_list(
                box, src=dist.get_global_rank(self.group, rank), group=self.group, device=device
            )
            found += items if rank == self.rank else box[0] or []
        return found


ALONE = SequenceSplit()
"""The split of rows that a process computes alone."""


class Exchange(torch.autograd.Function):
    """Rows sent to the processes of a group, and those that came from them, in the processes' order.

    The arguments are the rows, how many of them go to each process, how many come from each, and the group. Gradients
    go the same way back.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int], group: Any) -> Tensor:
        ctx.way_back = received, sent, group
        found = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(found, rows.contiguous(), [*received], [*sent], group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return Exchange.apply(gradients[0], *ctx.way_back), None, None, None


class Assembly(torch.autograd.Function):
    """The values of all processes from each one's share, without an exchange of gradients on the way back.

    All processes go on to compute the same from all values, so that each has the whole gradient of its own.
    """

    @staticmethod
    def forward(ctx: Any, own_T: Tensor, start: int, end: int, count: int, group: Any) -> Tensor:
        ctx.own = slice(start, end)
        # The sum with zeros is the value itself.
        whole_T = own_T.new_zeros(count)
        whole_T[start:end] = own_T
        dist.all_reduce(whole_T, group=group)
        return whole_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0][ctx.own], None, None, None, None


def _tokens_of_patch(clip: Clip) -> int:
    """Return the vision tokens of a temporal patch of a clip."""
    return (clip.height_px // clip.patches.token_px) * (clip.width_px // clip.patches.token_px)
