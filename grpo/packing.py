"""Groups packed into rows: a prompt once, then its completions, several groups in a row. Read after `groups.py`.

A row is one flat sequence of N tokens without padding:

    [prompt 1][its completions one after another][prompt 2][its completions] ...

A completion sees its own prompt and itself; its positions restart right after the prompt's. Only the
attention needs a rectangle: `Layout` says which flat positions to gather for it (see `attention.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Protocol

import torch
from torch import Tensor

from grpo.groups import Prompt, Rollout, Sample, ScoredGroup, completion_key
from grpo.media.clip import Clip


class Family(Protocol):
    """The part of a model family that packing uses."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    @property
    def vision_token_ids(self) -> tuple[int, ...]: ...

    def positions(self, prompt: Prompt) -> Tensor:
        """Return the position ids of a prompt's tokens, (3, S)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Segment:
    """A prompt and completions of it that share one row: a group, or a part of a group that is too large for a row."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    advantages: tuple[float, ...]
    """The rollouts' advantages; NaN for one that has none, which is only among those that nothing trains on."""

    def __post_init__(self) -> None:
        # Counterfactuals have clips of their own, which would be sent and stored along. Nothing trains on them.
        own = tuple(replace(rollout, counterfactuals={}) for rollout in self.rollouts)
        object.__setattr__(self, "rollouts", own)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.token_ids) + sum(len(rollout.token_ids) for rollout in self.rollouts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Block:
    """P prompts of equal length S with G completions each, padded to the longest, L."""

    prompt_PS: Tensor
    """The flat positions of the prompts' tokens."""
    completion_PGL: Tensor
    """The flat positions of the completions' tokens. Padding repeats a completion's first one; its outputs are
    dropped."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """The layout of a flat row for attention."""

    blocks: tuple[Block, ...]
    restore_N: Tensor
    """The index of each flat position's output in the concatenation of all blocks' outputs."""
    prompt_N: Tensor
    """The number of the prompt that each flat position is of, or that its completion is of."""
    completion_N: Tensor
    """The number of the completion, among the row's, that each flat position is of; -1 for a prompt's own token."""
    offset_N: Tensor
    """The tokens between each flat position and its prompt's start, as if the completion were the only one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedRow:
    """One forward pass of the learner: N tokens, of which T are completion tokens."""

    segments: tuple[Segment, ...]
    """What the row holds, in its order."""
    input_ids_N: Tensor
    positions_3N: Tensor
    layout: Layout
    vision_index_M: Tensor
    """The flat positions of the prompts' vision pad tokens."""
    source_T: Tensor
    """The flat position whose output predicts each completion token."""
    target_T: Tensor
    """The id of each completion token."""
    lengths_T: Tensor
    """The length of the completion that each token belongs to."""
    completion_T: Tensor
    """The number of the completion, among the row's, that each token belongs to. No completion is split over rows."""
    advantages_T: Tensor
    sampler_logps_T: Tensor

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(segment.prompt for segment in self.segments)

    @property
    def clips(self) -> list[Clip]:
        """All that the row's prompts show, in order."""
        return [clip for prompt in self.prompts for clip in prompt.clips]

    def to(self, device: torch.device) -> PackedRow:
        """Return the row with its tensors on a device."""
        moved = {name: value.to(device) for name, value in _tensors(self).items()}
        blocks = tuple(
            Block(**{name: value.to(device) for name, value in _tensors(block).items()})
            for block in self.layout.blocks
        )
        layout = Layout(blocks=blocks, **{n: value.to(device) for n, value in _tensors(self.layout).items()})
        return PackedRow(segments=self.segments, layout=layout, **moved)


def segments_of(
    scored: Sequence[ScoredGroup], *, tokens_per_row: int, drop_flat: bool, trained: bool
) -> list[Segment]:
    """Split each group's rollouts that have an advantage into as few segments as the budget of a row allows.

    drop_flat: leave out groups without signal, which have no gradient unless a KL or an entropy term is used.
    trained: False for the other rollouts, all that are not trained on.
    """
    return [part for group in scored for part in _segments(group, tokens_per_row, drop_flat, trained)]


def pack(segments: Sequence[Segment], family: Family, *, tokens_per_row: int) -> list[PackedRow]:
    """Pack segments into rows up to a token budget, first fit by decreasing size."""
    bins: list[list[Segment]] = []
    room: list[int] = []
    for segment in sorted(segments, key=lambda segment: -segment.num_tokens):
        # A segment larger than the budget has a row of its own.
        fitting = next((i for i, left in enumerate(room) if segment.num_tokens <= left), None)
        if fitting is None:
            bins.append([segment])
            room.append(tokens_per_row - segment.num_tokens)
        else:
            bins[fitting].append(segment)
            room[fitting] -= segment.num_tokens
    return [build_row(row, family) for row in bins]


def build_row(segments: Sequence[Segment], family: Family) -> PackedRow:
    """Lay segments out in one row; segments of equal shape stand together and share attention calls."""
    segments = sorted(segments, key=_shape)
    pads = frozenset(family.vision_token_ids)
    starts: list[int] = []
    token_ids: list[int] = []
    position_parts: list[Tensor] = []
    vision_index: list[int] = []
    source: list[int] = []
    for segment in segments:
        prompt_ids = segment.prompt.token_ids
        start, length = len(token_ids), len(prompt_ids)
        prompt_positions_3S = family.positions(segment.prompt)
        # Where each completion goes on, as if it were the only one behind its prompt.
        next_position = int(prompt_positions_3S.max()) + 1
        starts.append(start)
        vision_index += [start + i for i, token in enumerate(prompt_ids) if token in pads]
        token_ids += prompt_ids
        position_parts.append(prompt_positions_3S)
        for rollout in segment.rollouts:
            first, count = len(token_ids), len(rollout.token_ids)
            # The prompt's last token predicts the first token of each completion, which predicts the second, and so on.
            source += [start + length - 1, *range(first, first + count - 1)]
            token_ids += rollout.token_ids
            # Text has one position in time, height and width: (3, count).
            position_parts.append((next_position + torch.arange(count)).expand(3, -1))
    rollouts = [rollout for segment in segments for rollout in segment.rollouts]
    # One number per completion; `repeat_interleave(lengths)` makes it one per token, (T,).
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts], dtype=torch.long)
    advantages = torch.tensor([a for segment in segments for a in segment.advantages], dtype=torch.float32)
    return PackedRow(
        segments=tuple(segments),
        input_ids_N=torch.tensor(token_ids),
        positions_3N=torch.cat(position_parts, dim=1),
        layout=_layout(segments, starts, len(token_ids)),
        vision_index_M=torch.tensor(vision_index, dtype=torch.long),
        source_T=torch.tensor(source, dtype=torch.long),
        target_T=torch.tensor([t for rollout in rollouts for t in rollout.token_ids], dtype=torch.long),
        lengths_T=lengths.repeat_interleave(lengths),
        completion_T=torch.arange(len(rollouts)).repeat_interleave(lengths),
        advantages_T=advantages.repeat_interleave(lengths),
        sampler_logps_T=torch.tensor(
            [value for rollout in rollouts for value in rollout.logprobs], dtype=torch.float32
        ),
    )


def halves(row: PackedRow, family: Family) -> list[PackedRow]:
    """Return two rows with about half of a row's tokens each, or the row itself if it has one completion only.

    They have its completions in its order: first the groups are parted, then the completions of a group.
    """
    whole, *others = row.segments
    if others:
        cut = _middle([segment.num_tokens for segment in row.segments])
        parts = [row.segments[:cut], row.segments[cut:]]
    else:
        if len(whole.rollouts) == 1:
            return [row]
        cut = _middle([len(rollout.token_ids) for rollout in whole.rollouts])
        parts = [
            [replace(whole, rollouts=whole.rollouts[own], advantages=whole.advantages[own])]
            for own in (slice(cut), slice(cut, None))
        ]
    return [build_row(part, family) for part in parts]


def by_completion(rows: Iterable[tuple[PackedRow, Tensor]]) -> dict[bytes, list[float]]:
    """Return rows' values of completion tokens, (T,) each, as a list for each completion, by `completion_key`."""
    found: dict[bytes, list[float]] = {}
    for row, values_T in rows:
        rollouts = [rollout for segment in row.segments for rollout in segment.rollouts]
        parts = values_T.float().cpu().split([len(rollout.token_ids) for rollout in rollouts])
        found |= {
            completion_key(rollout): part.tolist() for rollout, part in zip(rollouts, parts, strict=True)
        }
    return found


def padding_row(family: Family) -> PackedRow:
    """Return a row of three tokens without advantage, for a process that has fewer rows than another."""
    token_id = family.eos_ids[0]
    sample = Sample(id="padding", question="", answer="", task="text", source="padding")
    prompt = Prompt(sample=sample, clip=None, token_ids=(token_id, token_id), tags=())
    rollout = Rollout(
        sample=sample, clip=None, tags=(), text="", token_ids=(token_id,), logprobs=(0.0,), stopped=True
    )
    segment = Segment(prompt=prompt, rollouts=(rollout,), advantages=(0.0,))
    return build_row([segment], family)


def _segments(scored: ScoredGroup, budget: int, drop_flat: bool, trained: bool) -> list[Segment]:
    """Return a group's rollouts, those that are trained on or the others, in as few segments as fit a row; each has
    the prompt again.
    """
    is_dropped = drop_flat and not scored.has_signal
    pairs = [
        (rollout, math.nan if advantage is None else advantage)
        for rollout, advantage in zip(scored.group.rollouts, scored.advantages, strict=True)
        if trained == (advantage is not None and not is_dropped)
    ]
    if not pairs:
        return []
    prompt = scored.group.prompt
    parts: list[list[tuple[Rollout, float]]] = [[]]
    room = budget - len(prompt.token_ids)
    for rollout, advantage in pairs:
        if parts[-1] and len(rollout.token_ids) > room:
            parts.append([])
            room = budget - len(prompt.token_ids)
        parts[-1].append((rollout, advantage))
        room -= len(rollout.token_ids)
    return [
        Segment(prompt=prompt, rollouts=tuple(r for r, _ in part), advantages=tuple(a for _, a in part))
        for part in parts
    ]


def _middle(sizes: Sequence[int]) -> int:
    """Return where to cut a list of sizes so that the two sums differ least."""
    sums = [*accumulate(sizes)]
    return 1 + min(range(len(sizes) - 1), key=lambda index: abs(2 * sums[index] - sums[-1]))


def _layout(segments: Sequence[Segment], starts: Sequence[int], num_tokens: int) -> Layout:
    """Return the layout of segments that are sorted by shape and begin at given flat positions."""
    blocks: list[Block] = []
    slots: list[Tensor] = []
    for _, same_shape in groupby(zip(segments, starts, strict=True), key=lambda pair: _shape(pair[0])):
        block, lengths_PG = _block(list(same_shape))
        blocks.append(block)
        # What attention gives out for a block is in this order: the prompts, then the completions, padding included.
        # -1 marks padding, whose output belongs to no flat position.
        padding_PGL = torch.arange(block.completion_PGL.shape[-1]) >= lengths_PG[..., None]
        completion_PGL = block.completion_PGL.masked_fill(padding_PGL, -1)
        slots += [block.prompt_PS.flatten(), completion_PGL.flatten()]
    # The flat position of each output, turned round: the output of each flat position.
    flat = torch.cat(slots)
    real = (flat >= 0).nonzero()[:, 0]
    restore_N = torch.empty(num_tokens, dtype=torch.long)
    restore_N[flat[real]] = real
    prompt, completion, offset = zip(*_places(segments), strict=True)
    return Layout(
        blocks=tuple(blocks),
        restore_N=restore_N,
        prompt_N=torch.tensor(prompt),
        completion_N=torch.tensor(completion),
        offset_N=torch.tensor(offset),
    )


def _places(segments: Sequence[Segment]) -> Iterator[tuple[int, int, int]]:
    """Yield the numbers of each flat position's prompt and completion, and its offset, as `Layout` has them."""
    num_completions = 0
    for number, segment in enumerate(segments):
        num_prompt = len(segment.prompt.token_ids)
        yield from ((number, -1, offset) for offset in range(num_prompt))
        for completion, rollout in enumerate(segment.rollouts, num_completions):
            yield from ((number, completion, num_prompt + i) for i in range(len(rollout.token_ids)))
        num_completions += len(segment.rollouts)


def _block(pairs: Sequence[tuple[Segment, int]]) -> tuple[Block, Tensor]:
    """Return the block of segments of one shape, and their completions' lengths, (P, G)."""
    num_prompt, group_size = _shape(pairs[0][0])
    lengths = [len(rollout.token_ids) for segment, _ in pairs for rollout in segment.rollouts]
    longest = max(lengths, default=0)
    completions: list[list[int]] = []
    for segment, start in pairs:
        first = start + num_prompt
        for rollout in segment.rollouts:
            count = len(rollout.token_ids)
            # A completion's own flat positions, then its first one in the place of padding.
            completions.append([*range(first, first + count), *([first] * (longest - count))])
            first += count
    block = Block(
        prompt_PS=torch.tensor([start for _, start in pairs])[:, None] + torch.arange(num_prompt),
        completion_PGL=torch.tensor(completions, dtype=torch.long).view(len(pairs), group_size, longest),
    )
    return block, torch.tensor(lengths, dtype=torch.long).view(len(pairs), group_size)


def _shape(segment: Segment) -> tuple[int, int]:
    """Return the length of a segment's prompt and the number of its completions; one shape makes one block."""
    return len(segment.prompt.token_ids), len(segment.rollouts)


def _tensors(holder: Block | Layout | PackedRow) -> dict[str, Tensor]:
    values = {name: getattr(holder, name) for name in holder.__slots__}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
