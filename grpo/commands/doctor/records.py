"""What is wrong with each record of a run's data and with its clip, where a run would stop at the first.

Nothing is decoded: clips are opened, and their packets listed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from grpo.data import Dataset, read_records, timed
from grpo.data.check import missing_media
from grpo.data.errors import BadRecords, DataError, Kind, placed, used_before
from grpo.data.fields import Span, holds_number, shown
from grpo.data.overlap import namesakes, question_key
from grpo.feed.planner import Planner, PromptPlan
from grpo.groups import Sample
from grpo.media.clip import ClipSource, MediaError
from grpo.media.frame_table import frame_table
from grpo.media.reading import describe, probe_source
from grpo.media.sampling import TooManyTokens, TooShort
from rewards.parsing import read_videos_span

Plans = list[tuple[Sample, PromptPlan]]

LATE_END_S = 1.0
"""Bounds are rounded, and a file's last frame ends a little early: only what lies further behind is odd."""


def read_set(dataset: Dataset) -> tuple[list[Sample], list[DataError]]:
    """The samples of the good records, and what is wrong with each bad one."""
    samples: list[Sample] = []
    problems: list[DataError] = []
    try:
        read = read_records(dataset)
    except BadRecords as error:
        read, problems = error.samples, [*error.problems]
    except OSError as error:
        return [], [error if isinstance(error, DataError) else DataError(dataset.path, str(error))]
    except ValueError as error:
        return [], [placed(error, dataset.path)]
    for sample in read:
        try:
            samples.append(timed(sample, dataset.frame_fps))
        except DataError as untimed:
            problems.append(untimed)
    return samples, problems


def shared_ids(sets: Iterable[Sequence[Sample]]) -> Iterator[DataError]:
    """Ids that are in several training sets."""
    seen: dict[str, Sample] = {}
    for sample in (sample for samples in sets for sample in samples):
        first = seen.setdefault(sample.id, sample)
        if first is not sample:
            yield used_before(sample, first)


def oddities(train: Sequence[Sample], held_out: Sequence[Sequence[Sample]]) -> Iterator[DataError]:
    """What no run stops at, but is hardly meant."""
    for samples in (train, *held_out):
        yield from _repeated_questions(samples)
        yield from wordy_numbers(samples)
    for sample, twin in namesakes(train, [sample for samples in held_out for sample in samples]):
        reason = f"{twin.source} asks the same with the same answer about a video of this name"
        yield _about(sample, reason, "repeated", is_fatal=False)


def _repeated_questions(samples: Sequence[Sample]) -> Iterator[DataError]:
    seen: dict[Hashable, Sample] = {}
    for sample in samples:
        first = seen.setdefault((sample.sources, question_key(sample)), sample)
        if first is not sample:
            same = (
                "with the same answer" if first.answer == sample.answer else f"and answers {first.answer!r}"
            )
            reason = f"{first.source} asks the same about the same clip, {same}"
            yield _about(sample, reason, "repeated", is_fatal=False)


def wordy_numbers(samples: Sequence[Sample]) -> Iterator[DataError]:
    """Questions for a number whose answer holds none: no completion is ever right."""
    for sample in samples:
        if sample.task in ("number", "regression") and not holds_number(sample.answer):
            reason = f"its task is {sample.task!r}, but its answer {shown(sample.answer)} holds none"
            yield _about(sample, reason, "record", is_fatal=False)


def examine(
    samples: Sequence[Sample], planner: Planner | None, *, num_clips: int | None, num_workers: int
) -> tuple[list[DataError], Plans]:
    """What is wrong with samples or their files, and the plans of those that are fine.

    num_clips: the number of clips, spread evenly, that are opened; None: all. planner: None where there is no model;
    then there are no plans.
    """
    problems: list[DataError] = [*missing_media(samples)]
    lacking = {problem.source for problem in problems}
    present = [sample for sample in samples if sample.source not in lacking]
    opened = spread_clips(present, num_clips)
    plans: Plans = []
    with ThreadPoolExecutor(num_workers) as pool:
        found = pool.map(lambda sample: _look(sample, planner), opened)
        bar = tqdm(found, "opening clips", len(opened), leave=False, delay=2)
        for sample, (plan, problem) in zip(opened, bar, strict=True):
            problems += [problem] if problem else []
            if plan is not None and not (problem and problem.is_fatal):
                plans.append((sample, plan))
    return problems, plans


def spread_clips(samples: Sequence[Sample], num_clips: int | None) -> list[Sample]:
    """The samples about num_clips clips, spread evenly, and those about none; None: all."""
    keys = [*dict.fromkeys(sample.sources for sample in samples if sample.sources)]
    if num_clips is None or num_clips >= len(keys):
        return [*samples]
    spread = np.linspace(0, len(keys) - 1, num_clips).round().astype(int) if num_clips else []
    kept = {(), *(keys[index] for index in spread)}
    return [sample for sample in samples if sample.sources in kept]


def _look(sample: Sample, planner: Planner | None) -> tuple[PromptPlan | None, DataError | None]:
    """A sample's plan, and what is wrong with it or its clip."""
    plan = None
    try:
        if planner is not None:
            plan = planner.plan(sample)
        for source in sample.sources if planner is None else ():
            probe_source(source)
        late = _late_end(sample)
    except Exception as error:
        # Whatever one file brings up, the others are looked at too.
        what = str(error) if isinstance(error, ValueError) else describe(error)
        return None, _about(sample, what, _kind(error))
    if planner is not None and plan is not None and (reason := planner.refusal(sample, plan)) is not None:
        return plan, DataError(sample.source, reason, "too long")
    return plan, late


def _late_end(sample: Sample) -> DataError | None:
    """What a record places behind its video's end; no run stops at it, but no reward for it can be earned."""
    answer = read_videos_span(sample.answer, sample.num_videos) if sample.task == "span" else None
    moments = (sample.keyframes_s, *sample.other_keyframes_s)
    # A lone frame of a video may lie behind its end too.
    sources = sample.videos or sample.sources
    for number, source in enumerate(sources, start=1):
        answer_s = answer[1] if answer and answer[0] == number else None
        spans_s = moments[number - 1] if number <= len(moments) else ()
        if late := _late_end_of(sample, source, answer_s, spans_s):
            return late
    return None


def _late_end_of(
    sample: Sample, source: ClipSource, answer_s: Span | None, spans_s: Sequence[Span]
) -> DataError | None:
    """The same of one of its videos, which the answer may be of, and of whose key moments the record has some."""
    if source.video is None:
        return None
    ends_s = {
        "the clip": source.end_s,
        "the answer": answer_s and source.start_s + answer_s[1],
        "a key moment": max((source.start_s + end_s for _, end_s in spans_s), default=None),
    }
    file_end_s = frame_table(source.video).end_s
    for what, end_s in ends_s.items():
        if end_s is not None and end_s > file_end_s + LATE_END_S:
            reason = f"{what} ends at {end_s:g} s, but the video at {file_end_s:g} s"
            # The others follow from the first.
            return _about(sample, reason, "too short", is_fatal=False)
    return None


def _kind(error: Exception) -> Kind:
    if not isinstance(error, MediaError):
        return "record" if isinstance(error, ValueError) else "unreadable"
    if isinstance(error.__cause__, TooManyTokens):
        return "too long"
    return "too short" if isinstance(error.__cause__, TooShort) else "unreadable"


def _about(sample: Sample, reason: str, kind: Kind, *, is_fatal: bool = True) -> DataError:
    return DataError(sample.source, f"sample {sample.id}: {reason}", kind, is_fatal=is_fatal)
