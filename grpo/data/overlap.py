"""Held-out questions that training would give away: about the same clip, or the same question about it."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

from grpo.groups import Sample

Allowed = Literal["nothing", "clips", "questions"]

QuestionKey = tuple[str, frozenset[str]]


def check_overlap(
    train: Iterable[Sample], held_out: Mapping[str, Sequence[Sample]], *, allowed: Allowed
) -> None:
    """Raise ValueError, with both samples' places, if a held-out set shares with training more than is allowed.

    nothing: no clip of a held-out question may share a stretch of the same file with a clip of training.
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
            sample, twin = found[0]
            same = question_key(sample) == question_key(twin)
            raise ValueError(
                f"{sample.source}: held-out sample {sample.id} {'asks the same' if same else 'shows the same'} as "
                f"training sample {twin.id} ({twin.source}); {len(found)} of {len(samples)} samples of {name!r} have "
                f"such a twin. Take them out, or set data.allow_overlap={'questions' if same else 'clips'}"
            )


class _Index:
    """Training samples by file, and by file and question."""

    def __init__(self, train: Iterable[Sample]) -> None:
        self._of_file: dict[str | None, list[Sample]] = defaultdict(list)
        self._of_question: dict[tuple[str | None, QuestionKey], list[Sample]] = defaultdict(list)
        for sample in train:
            file = _file(sample)
            self._of_file[file].append(sample)
            self._of_question[file, question_key(sample)].append(sample)

    def twin(self, sample: Sample, allowed: Allowed) -> Sample | None:
        """The training sample that gives this one away: first one with the same question."""
        file = _file(sample)
        candidates = [*self._of_question.get((file, question_key(sample)), ())]
        if file is not None and allowed == "nothing":
            candidates += self._of_file.get(file, ())
        return next((other for other in candidates if _meet(sample, other)), None)


def question_key(sample: Sample) -> QuestionKey:
    """What makes two questions about a clip the same one: their words and their options' words."""
    return _words(sample.question), frozenset(map(_words, sample.options))


def _meet(some: Sample, other: Sample) -> bool:
    """Their parts of one file have a stretch of time in common."""
    (start_s, end_s), (other_start_s, other_end_s) = _part(some), _part(other)
    return start_s < other_end_s and other_start_s < end_s


def _file(sample: Sample) -> str | None:
    """Of several images, the first one stands for all."""
    return None if sample.clip_source is None else _resolved(sample.clip_source.path)


def _part(sample: Sample) -> tuple[float, float]:
    return sample.start_s, math.inf if sample.end_s is None else sample.end_s


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


@cache
def _resolved(path: str) -> str:
    return os.path.realpath(path)
