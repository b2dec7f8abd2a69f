"""Held-out questions that training would give away: about the same clip, or the same question about it."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Literal, NamedTuple

from grpo.groups import Sample

Allowed = Literal["nothing", "clips", "questions"]

QuestionKey = tuple[str, frozenset[str]]


def check_overlap(
    train: Iterable[Sample], held_out: Mapping[str, Sequence[Sample]], *, allowed: Allowed
) -> None:
    """Raise ValueError, with both samples' places, if a held-out set shares with training more than is allowed.

    nothing: no clip of a held-out question may share a stretch of the same file, or an image, with a clip of training.
    clips: only the same question (`question_key`) may not be asked about it. Questions about no clip are compared
    by their words alone. questions: nothing is compared.
    """
    if allowed == "questions" or not any(held_out.values()):
        return
    index = _Index(train)
    for name, samples in held_out.items():
        pairs = [(sample, index.twin(sample, allowed)) for sample in samples]
        found = [(sample, twin) for sample, twin in pairs if twin is not None]
        if found:
            asked = [pair for pair in found if question_key(pair[0]) == question_key(pair[1])]
            sample, twin = (asked or found)[0]
            raise ValueError(
                f"{sample.source}: held-out sample {sample.id} {'asks' if asked else 'shows'} the same as training "
                f"sample {twin.id} ({twin.source}); {len(found)} of {len(samples)} samples of {name!r} have such a "
                f"twin, {len(asked)} with the same question. Take them out, or set "
                f"data.allow_overlap={'questions' if asked else 'clips'}"
            )


class _Index:
    """Training samples by what they show."""

    def __init__(self, train: Iterable[Sample]) -> None:
        self._showing: dict[Hashable, list[tuple[Sample, QuestionKey]]] = defaultdict(list)
        for sample in train:
            question = question_key(sample)
            for key in _shown(sample).own:
                self._showing[key].append((sample, question))

    def twin(self, sample: Sample, allowed: Allowed) -> Sample | None:
        """The training sample that gives this one away: first one with the same question."""
        question, any_question = question_key(sample), allowed == "nothing"
        candidates = [pair for key in _shown(sample).met for pair in self._showing.get(key, ())]
        same = (other for other, asked in candidates if asked == question)
        rest = (other for other, asked in candidates if any_question and asked != question)
        return next((other for other in chain(same, rest) if _meet(sample, other)), None)


def question_key(sample: Sample) -> QuestionKey:
    """What makes two questions about a clip the same one: their words and their options' words."""
    return _words(sample.question), frozenset(map(_words, sample.options))


def _meet(some: Sample, other: Sample) -> bool:
    """They show the same at some time, given that they share a file."""
    if (some.frames, some.frame_fps, some.frame_times_s) != (
        other.frames,
        other.frame_fps,
        other.frame_times_s,
    ):
        return True  # images of two lists: their times can't be compared, and the shared files are enough
    (start_s, end_s), (other_start_s, other_end_s) = _part(some), _part(other)
    return start_s < other_end_s and other_start_s < end_s


class _Shown(NamedTuple):
    """Under which keys a sample is found, and under which it finds others."""

    own: list[Hashable]
    met: list[Hashable]


def _shown(sample: Sample) -> _Shown:
    """Of a video its file, of images their folder and names, of no clip the question."""
    if not sample.frames:
        keys: list[Hashable] = [question_key(sample) if sample.video is None else _resolved(sample.video)]
        return _Shown(keys, keys)
    if len(sample.frames) == 1:
        file = _resolved(sample.frames[0])
        if os.path.isdir(file):
            whole = (file, "all its images")
            return _Shown([whole], [whole, (file, "some of its images")])
        files = [file]
    else:
        files = [os.path.join(_resolved(folder), name) for folder, name in map(os.path.split, sample.frames)]
    folders = {os.path.dirname(file) for file in files}
    return _Shown(
        [*files, *((folder, "some of its images") for folder in folders)],
        [*files, *((folder, "all its images") for folder in folders)],
    )


def _part(sample: Sample) -> tuple[float, float]:
    return sample.start_s, math.inf if sample.end_s is None else sample.end_s


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


@cache
def _resolved(path: str) -> str:
    return os.path.realpath(path)
