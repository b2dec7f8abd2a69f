"""Questions that are asked once more in another form: about black frames, or with their options in other places."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

from grpo.groups import Sample

PLAIN, BLIND, ROTATED = "", "blind", "rotated/"


def variants_of(sample: Sample, *, blind: bool, rotations: bool) -> list[str]:
    """The forms in which a question is asked: as it is, and then those that were wanted and that it can have."""
    rotated = range(1, len(sample.options)) if rotations and sample.task == "choice" and sample.answer else ()
    dark = [BLIND] if blind and sample.sources else []
    return [PLAIN, *dark, *(f"{ROTATED}{places}" for places in rotated)]


def changed(sample: Sample, variant: str) -> Sample:
    """The question in the form of a variant; what is shown of its clip is changed where it is asked."""
    if not variant.startswith(ROTATED):
        return sample
    return rotated(sample, int(variant.removeprefix(ROTATED)))


def rotated(sample: Sample, places: int) -> Sample:
    """The question with each option so many places further on, and the last ones at the front."""
    count = len(sample.options)
    options = tuple(sample.options[(index - places) % count] for index in range(count))
    letter = string.ascii_uppercase[(string.ascii_uppercase.index(sample.answer) + places) % count]
    return replace(sample, options=options, answer=letter)


def all_asked(samples: Sequence[Sample], *, blind: bool, rotations: bool) -> list[tuple[Sample, str]]:
    """Each question in each of its forms, those about one clip together, so that it is decoded once."""
    place = _places(samples)
    ordered = sorted(samples, key=lambda sample: place[_about(sample)])
    return [
        (changed(sample, variant), variant)
        for sample in ordered
        for variant in variants_of(sample, blind=blind, rotations=rotations)
    ]


def share_of(
    asked: Sequence[tuple[Sample, str]], *, rank: int, num_processes: int
) -> list[tuple[Sample, str]]:
    """A process's share of what is asked: all about a clip is in one share.

    It depends on all that is asked and not on what is answered by now, which processes may see differently.
    """
    place = _places([sample for sample, _ in asked])
    return [pair for pair in asked if place[_about(pair[0])] % num_processes == rank]


def _about(sample: Sample) -> object:
    return sample.sources or sample.id


def _places(samples: Sequence[Sample]) -> dict[object, int]:
    """The clips' numbers, in the order in which they come."""
    return {clip: number for number, clip in enumerate(dict.fromkeys(map(_about, samples)))}
