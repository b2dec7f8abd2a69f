"""`python -m tests.motion.seeds OUT OUT...` makes one table of several runs of `python -m grpo.motion.recipe`.

Held-out errors in millimetres, the mean over seeds with the 95% interval of Student's t; and what the clip, GRPO and
the best of several answers win, which is taken seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from grpo.commands.sweeps.intervals import student_interval
from grpo.motion.recipe import Sizes, codec_error_mm, measured

Key = tuple[str, str, str]
"""The input, the arm and the way of answering."""
Means = Mapping[Key, tuple[float, float]]
"""A seed's mean errors over clips, of the whole body and of the legs."""

CLIP, BLIND = "with video", "without"
GREEDY, MEAN, BEST = "greedy", *(f"{what} of {Sizes().group_size}" for what in ("mean", "best"))
DIFFERENCES: Mapping[str, tuple[Key, Key]] = {
    "video: supervised with - without": ((CLIP, "supervised", GREEDY), (BLIND, "supervised", GREEDY)),
    "more supervised - supervised": ((CLIP, "more", GREEDY), (CLIP, "supervised", GREEDY)),
    "GRPO - supervised": ((CLIP, "grpo", GREEDY), (CLIP, "supervised", GREEDY)),
    "GRPO - more supervised": ((CLIP, "grpo", GREEDY), (CLIP, "more", GREEDY)),
    "GRPO - more supervised, sampled": ((CLIP, "grpo", MEAN), (CLIP, "more", MEAN)),
    f"GRPO - supervised, {BEST}": ((CLIP, "grpo", BEST), (CLIP, "supervised", BEST)),
    f"supervised: {BEST} - greedy": ((CLIP, "supervised", BEST), (CLIP, "supervised", GREEDY)),
    f"GRPO: {BEST} - greedy": ((CLIP, "grpo", BEST), (CLIP, "grpo", GREEDY)),
}
"""What is compared, in the same seed."""


def means(out: Path) -> Means:
    """A run's errors."""
    return {(each.given, each.arm, each.answer): each.means_mm for each in measured(out, Sizes())}


def table(seeds: Sequence[Means]) -> str:
    """Errors and differences over seeds as Markdown."""
    rows = {", ".join(key): [each[key] for each in seeds] for key in seeds[0]}
    less = {
        name: [tuple(a - b for a, b in zip(each[own], each[other], strict=True)) for each in seeds]
        for name, (own, other) in DIFFERENCES.items()
    }
    parts = []
    for what, found in {"policy": rows, "difference": less}.items():
        lines = [f"| {what} | full body, mm | legs, mm |", "| --- | --- | --- |"]
        for name, values in found.items():
            lines.append(f"| {name} | {' | '.join(map(_shown, zip(*values, strict=True)))} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _shown(values: Sequence[float]) -> str:
    interval = student_interval(values)
    mean = sum(values) / len(values)
    return f"{mean:.1f} ± {interval[1] - mean:.1f}" if interval else f"{mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="the recipe's folders, one for each seed")
    runs = parser.parse_args().runs
    print(table([means(out) for out in runs]))
    print(f"\nThe codec alone: {_shown([codec_error_mm(out) for out in runs])} mm.")


if __name__ == "__main__":
    main()
