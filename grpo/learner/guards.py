"""A guard over the updates: it notes skipped ones, whose loss or gradient was not finite, and unusual gradients.

All processes judge alike, since they all see the same gradient norms.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from grpo.learner.update import UpdateResult
from grpo.media.clip import Clip
from grpo.packing import PackedRow

MEDIAN_OF = 50
"""The number of latest gradient norms whose median is the usual one."""

MAX_STORED_ROWS = 32
"""The most rows that a process stores in a run: a row holds the frames of its clips."""

MAX_NAMED = 5
"""The number of each process's groups that are named when a gradient is much larger than usual."""

ORDER = "sum of |advantage| over the group's tokens, largest first"
"""The order in which groups are suspected of a large gradient: a token's gradient is a multiple of its advantage.
Which group is really behind it would take a backward pass for each."""

LEAST_NORMS = 10
"""The number of norms before one can be called unusual: the first of a run have nothing to be compared with."""


def stored(row: PackedRow) -> dict[str, Any]:
    """Return what is stored of a row: its tensors, its layout and its prompts, each clip once however many show it."""
    # The tensors have the tokens of the segments' completions.
    own = {field.name: getattr(row, field.name) for field in fields(row) if field.name != "segments"}
    return plain({**own, "prompts": row.prompts}, {})


def plain(value: Any, clips: dict[Clip, Any]) -> Any:
    """Return a value in dicts, lists, tensors and plain values, so that reading it runs no code (`weights_only`).

    clips: what stands for each clip met so far. It is the same object wherever the clip is, which `torch.save` writes
    once.
    """
    if isinstance(value, Clip):
        if value not in clips:
            frames_FHWC = torch.tensor(value.frames_FHWC)
            clips[value] = {"facts": plain(value.facts, clips), "frames_FHWC": frames_FHWC}
        return clips[value]
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name), clips) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each, clips) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, clips) for each in value]
    return value if isinstance(value, Tensor | str | int | float | None) else repr(value)


def heaviest(rows: Sequence[PackedRow]) -> list[str]:
    """The ids of the samples whose groups have the largest sums of |advantage| over their tokens in these rows."""
    sums: dict[str, float] = {}
    for row in rows:
        sizes = [block.completion_PGL.shape[1] for block in row.layout.blocks for _ in block.prompt_PS]
        prompt_T = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[row.completion_T]
        for index, prompt in enumerate(row.prompts):
            own = float(row.advantages_T[prompt_T == index].abs().sum())
            sums[prompt.sample.id] = sums.get(prompt.sample.id, 0.0) + own
    return sorted(sums, key=lambda name: -sums[name])[:MAX_NAMED]


class Guard:
    """The memory of how the updates went, which is a part of checkpoints."""

    def __init__(
        self, folder: Path, *, max_skipped: int, max_idle: int, spike_factor: float, process: int
    ) -> None:
        """Make a guard; `folder` takes the rows that can't be trained on, and the limits are those of `OptimConfig`."""
        self.folder, self.process = folder, process
        self.max_skipped, self.max_idle, self.spike_factor = max_skipped, max_idle, spike_factor
        # Since the last update that was not skipped, and since the last step that had a signal and an update.
        self.num_skipped = self.num_idle = 0
        self.norms: deque[float] = deque(maxlen=MEDIAN_OF)

    def watch(
        self, step: int, result: UpdateResult, rows: Sequence[PackedRow], *, is_blamed: bool = False
    ) -> list[dict[str, Any]]:
        """Return this process's records of a step for `failures.jsonl`. is_blamed: some process has a bad row."""
        found: list[dict[str, Any]] = []
        for norm in result.norms:
            finite = math.isfinite(norm)
            self.num_skipped = 0 if finite else self.num_skipped + 1
            if not finite or not rows or not self._is_spike(norm):
                continue
            usual = median(self.norms)
            record = {"step": step, "kind": "grad_norm", "norm": norm, "median": usual}
            found.append({**record, "sample_ids": heaviest(rows), "order": ORDER})
        self.norms.extend(filter(math.isfinite, result.norms))
        # A loss can be finite and its gradient not: then any row may be to blame.
        suspects = result.bad_rows if result.bad_rows or is_blamed else rows
        # Each row once, however many iterations it spoiled.
        bad_rows = {id(row): row for row in suspects} if result.num_skipped else {}
        return found + [self._dump(step, index, row) for index, row in enumerate(bad_rows.values())]

    def check(self, step: int, figures: Mapping[str, float]) -> None:
        """Raise RuntimeError if too many updates in a row were skipped, or too many steps taught nothing.

        figures: the step's row of metrics, the same in all processes.
        """
        self._count_idle(step, figures)
        if self.num_skipped > self.max_skipped:
            raise RuntimeError(
                f"step {step}: the loss or gradient of {self.num_skipped} updates in a row was not finite, more than "
                f"optim.max_skipped_updates={self.max_skipped}; the rows are in {self.folder}"
            )

    def _count_idle(self, step: int, figures: Mapping[str, float]) -> None:
        # Steps whose groups all wait for their longest completions say nothing of the policy.
        if figures.get("groups/unfinished") and "groups/no_signal" not in figures:
            return
        teaches = figures.get("groups/no_signal", 1.0) < 1 and "optim/grad_norm" in figures
        self.num_idle = 0 if step == 0 or teaches else self.num_idle + 1
        found = f"step {step}: in {self.num_idle} steps in a row no group had a signal, or no update was made"
        # A run that is resumed with a lower limit may be beyond it.
        if self.max_idle and self.num_idle >= self.max_idle:
            raise RuntimeError(
                f"{found} (optim.max_idle_steps): the policy is ruined, or has nothing left to learn"
            )
        warns_at = -(-self.max_idle // 5)
        if self.max_idle and self.num_idle == warns_at and self.process == 0:
            tqdm.write(f"warning: {found}; the run stops after {self.max_idle} (optim.max_idle_steps)")

    def _is_spike(self, norm: float) -> bool:
        if not self.spike_factor or len(self.norms) < LEAST_NORMS:
            return False
        return norm > self.spike_factor * median(self.norms)

    def _dump(self, step: int, index: int, row: PackedRow) -> dict[str, Any]:
        """Store a whole row as dicts, lists and tensors, which `torch.load` reads, and return the record of it."""
        self.folder.mkdir(exist_ok=True)
        own = f"process_{self.process}"
        file = self.folder / f"step_{step:06d}_{own}_row_{index}.pt"
        has_room = len(list(self.folder.glob(f"*_{own}_*"))) < MAX_STORED_ROWS
        if has_room:
            torch.save(stored(row), file)
        return {
            "step": step,
            "kind": "not_finite",
            "sample_ids": [prompt.sample.id for prompt in row.prompts],
            "prompt_tokens": [len(prompt.token_ids) for prompt in row.prompts],
            "completion_tokens": row.completion_T.bincount().tolist(),
            "row": file.name if has_room else None,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"num_skipped": self.num_skipped, "num_idle": self.num_idle, "norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_skipped, self.num_idle = state["num_skipped"], state["num_idle"]
        self.norms = deque(state["norms"], maxlen=MEDIAN_OF)
