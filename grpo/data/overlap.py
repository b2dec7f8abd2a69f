"""The search for held-out questions that training would give away: about the same clip, or the same question.

Datasets borrow from each other. A video is known by its file and by a copy's content; one that was encoded anew is
no proof of anything, but `namesakes` finds it where it kept its name, question and answer.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from itertools import chain, product
from operator import attrgetter
from pathlib import Path
from typing import Literal

from grpo.groups import Sample
from grpo.media.clip import ClipSource
from grpo.media.identity import identity
from rewards.spelling import folded

Allowed = Literal["nothing", "clips", "questions"]

QuestionKey = tuple[str, frozenset[str], frozenset[str]]
Asked = tuple[Sample, QuestionKey]
IMAGES = attrgetter("frames", "frame_fps", "frame_times_s")


def check_overlap(
    train: Iterable[Sample], held_out: Mapping[str, Sequence[Sample]], *, allowed: Allowed
) -> None:
    """Raise ValueError, with both samples' places, if a held-out set shares with training more than is allowed.

    nothing: no held-out question may share a stretch of the same video, an image or a stream's file with training.
    clips: only the same question (`question_key`) may not be asked about it. Questions about no clip are compared
    by their words, too. questions: nothing is compared.
    """
    if allowed == "questions" or not any(held_out.values()):
        return
    train = list(train)
    copy_of = _copies(_videos(train), _videos(chain.from_iterable(held_out.values())))
    known: dict[Hashable, list[Asked]] = defaultdict(list)
    for sample in train:
        for key in _keys(sample, copy_of)[0]:
            known[key].append((sample, question_key(sample)))
    for name, samples in held_out.items():
        found = [(sample, twin) for sample in samples if (twin := _twin(sample, known, copy_of, allowed))]
        if found:
            asked = [pair for pair in found if question_key(pair[0]) == question_key(pair[1])]
            sample, twin = (asked or found)[0]
            raise ValueError(
                f"{sample.source}: held-out sample {sample.id} {'asks' if asked else 'shows'} the same as training "
                f"sample {twin.id} ({twin.source}); {len(found)} of {len(samples)} samples of {name!r} have such a "
                f"twin, {len(asked)} with the same question. Take them out, or set "
                f"data.allow_overlap={'questions' if asked else 'clips'}"
            )


def _twin(
    sample: Sample, known: Mapping[Hashable, list[Asked]], copy_of: Mapping[str, str], allowed: Allowed
) -> Sample | None:
    """The training sample that gives this one away, first one with the same question; None if there is none."""
    question = question_key(sample)
    candidates = [pair for key in _keys(sample, copy_of)[1] for pair in known.get(key, ())]
    same = (other for other, asked in candidates if asked == question)
    rest = (other for other, asked in candidates if allowed == "nothing" and asked != question)
    return next((other for other in chain(same, rest) if _meet(sample, other, copy_of)), None)


def _keys(sample: Sample, copy_of: Mapping[str, str]) -> tuple[Set[Hashable], Set[Hashable]]:
    """The keys under which a sample is found, and those under which it finds others."""
    own: Set[Hashable] = _streams_of(sample) | (set() if sample.sources else {question_key(sample)})
    found = finds = own
    for source in sample.sources:
        its_found, its_finds = _keys_of(source, copy_of)
        found, finds = found | its_found, finds | its_finds
    return found, finds


def _streams_of(sample: Sample) -> frozenset[str]:
    return frozenset(map(_resolved, sample.streams.values()))


def _keys_of(source: ClipSource, copy_of: Mapping[str, str]) -> tuple[Set[Hashable], Set[Hashable]]:
    """The keys of one of the things that a sample shows."""
    if source.video is not None:
        file = _resolved(source.video)
        return {copy_of.get(file, file)}, {copy_of.get(file, file)}
    whole = _resolved(source.frames[0])
    if len(source.frames) == 1 and os.path.isdir(whole):
        return {whole}, {whole, (whole, "some images")}
    # Of many images not each one's links are followed, but those of their folder.
    many = {os.path.join(_resolved(folder), name) for folder, name in map(os.path.split, source.frames)}
    files = many if len(source.frames) > 1 else {whole}
    folders = {os.path.dirname(file) for file in files}
    return files | {(folder, "some images") for folder in folders}, files | folders


def namesakes(train: Iterable[Sample], held_out: Iterable[Sample]) -> list[tuple[Sample, Sample]]:
    """Held-out samples, each with a training sample of the same question and answer about another video of its name.

    It is probably the same video in another data set, but names like 0001.mp4 may be a coincidence.
    """
    known = {_named(sample, video): (sample, video) for sample, video in _with_videos(train)}
    pairs = [(sample, video, known.get(_named(sample, video))) for sample, video in _with_videos(held_out)]
    return [(sample, twin[0]) for sample, video, twin in pairs if twin is not None and video != twin[1]]


def _named(sample: Sample, video: str) -> Hashable:
    answer = sample.options[ord(sample.answer) - ord("A")] if sample.task == "choice" else sample.answer
    return Path(video).stem.casefold(), question_key(sample), _words(answer)


def question_key(sample: Sample) -> QuestionKey:
    """The words of a question and of its options and its streams, by which two about a clip are the same question."""
    return _words(sample.question), frozenset(map(_words, sample.options)), _streams_of(sample)


def _meet(some: Sample, other: Sample, copy_of: Mapping[str, str]) -> bool:
    """Whether two samples that share a file show the same at some time.

    Those with a common stream, and those of which one is about no clip, always meet.
    """
    if not some.sources or not other.sources or not _streams_of(some).isdisjoint(_streams_of(other)):
        return True
    # Of one clip each it is known which file they share.
    pairs = [*product(some.sources, other.sources)]
    return any(_show_the_same(*pair) for pair in pairs if len(pairs) == 1 or _share_a_file(*pair, copy_of))


def _share_a_file(some: ClipSource, other: ClipSource, copy_of: Mapping[str, str]) -> bool:
    found, finds = (_keys_of(each, copy_of) for each in (some, other))
    return not (found[0] | found[1]).isdisjoint(finds[0] | finds[1])


def _show_the_same(some: ClipSource, other: ClipSource) -> bool:
    if IMAGES(some) != IMAGES(other):
        # The times of images in two lists can't be compared, and that they share one is enough.
        return True
    if some.is_picture or other.is_picture:
        # A moment has no length, and a clip shows the frame at its end, too.
        return some.start_s <= _end_s(other) and other.start_s <= _end_s(some)
    return some.start_s < _end_s(other) and other.start_s < _end_s(some)


def _end_s(source: ClipSource) -> float:
    return math.inf if source.end_s is None else source.end_s


def _videos(samples: Iterable[Sample]) -> set[str]:
    return {_resolved(video) for _, video in _with_videos(samples)}


def _with_videos(samples: Iterable[Sample]) -> Iterator[tuple[Sample, str]]:
    """The samples about a video, each with its path."""
    for sample in samples:
        for source in sample.sources:
            if source.video is not None:
                yield sample, source.video


def _copies(train: Set[str], held_out: Set[str]) -> dict[str, str]:
    """Held-out files that have a training file's content, and that file. Only files of one size are opened."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in sorted(train):
        with suppress(OSError):
            # What is missing is another check's to say.
            by_size[os.stat(path).st_size].append(path)
    copy_of = {}
    for path in sorted(held_out - train):
        with suppress(OSError):
            for other in by_size.get(os.stat(path).st_size, ()):
                if identity(path)[2] == identity(other)[2]:
                    copy_of[path] = other
                    break
    return copy_of


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", folded(text).casefold()))


@cache
def _resolved(path: str) -> str:
    return os.path.realpath(path)
