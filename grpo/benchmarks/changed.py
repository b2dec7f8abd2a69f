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
    dark = [BLIND] if blind and sample.clip_source is not None else []
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
    place: dict[object, int] = {}
    for sample in samples:
        place.setdefault(sample.clip_source or sample.id, len(place))
    ordered = sorted(samples, key=lambda sample: place[sample.clip_source or sample.id])
    return [
        (changed(sample, variant), variant)
        for sample in ordered
        for variant in variants_of(sample, blind=blind, rotations=rotations)
    ]
