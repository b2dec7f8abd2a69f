"""Everything that is wrong with a run's data, record by record, where a run would stop at the first (for the doctor).

Nothing is decoded: clips are opened, and their packets listed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grpo.data import Dataset, read_records, timed
from grpo.data.check import missing_files
from grpo.data.errors import BadRecords, DataError, used_before
from grpo.data.fields import holds_number, shown
from grpo.data.overlap import namesakes, question_key
from grpo.feed.planner import Planner, PromptPlan
from grpo.groups import Sample
from grpo.media.clip import MediaError
from grpo.media.decode import frame_table
from grpo.media.reading import describe
from grpo.media.sampling import TooManyTokens, TooShort
from rewards.parsing import read_span

Kind = Literal["record", "duplicate", "missing", "unreadable", "too short", "too long", "repeated", "config"]

LATE_END_S = 1.0
"""Bounds are rounded, and a file's last frame ends a little early: only what lies further behind is odd."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something wrong, and where."""

    kind: Kind
    source: str
    """File and line or record, or the config's key."""
    reason: str
    is_fatal: bool = True
    """The run stops at it or loses the sample; otherwise it is only odd."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What was found about some samples."""

    findings: list[Finding]
    plans: list[tuple[Sample, PromptPlan]]
    """Of the samples whose clips were opened, and that are fine."""


def read_set(dataset: Dataset) -> tuple[list[Sample], list[Finding]]:
    """The samples of the good records, and a finding for each bad one."""
    samples: list[Sample] = []
    findings: list[Finding] = []
    try:
        read = read_records(dataset)
    except BadRecords as error:
        read, findings = error.samples, [_of_data(problem) for problem in error.problems]
    except DataError as error:
        return [], [_of_data(error)]
    except (ValueError, OSError) as error:
        return [], [Finding(kind="record", source=dataset.path, reason=str(error))]
    for sample in read:
        try:
            samples.append(timed(sample, dataset.frame_fps))
        except DataError as untimed:
            findings.append(_of_data(untimed))
    return samples, findings


def shared_ids(sets: Iterable[Sequence[Sample]]) -> list[Finding]:
    """Ids of several training sets."""
    seen: dict[str, Sample] = {}
    findings = []
    for sample in (sample for samples in sets for sample in samples):
        first = seen.setdefault(sample.id, sample)
        if first is not sample:
            findings.append(_of_data(used_before(sample, first)))
    return findings


def repeated_questions(samples: Sequence[Sample]) -> list[Finding]:
    """Records that ask what another one asks about the same clip; no run stops at them."""
    seen: dict[Hashable, Sample] = {}
    findings = []
    for sample in samples:
        first = seen.setdefault((sample.clip_source, question_key(sample)), sample)
        if first is not sample:
            same = (
                "with the same answer" if first.answer == sample.answer else f"and answers {first.answer!r}"
            )
            reason = f"sample {sample.id}: {first.source} asks the same about the same clip, {same}"
            findings.append(Finding(kind="repeated", source=sample.source, reason=reason, is_fatal=False))
    return findings


def alike(train: Sequence[Sample], held_out: Sequence[Sample]) -> list[Finding]:
    """Held-out questions that may be training's from another dataset."""
    return [
        Finding(
            kind="repeated",
            source=sample.source,
            reason=f"sample {sample.id}: {twin.source} asks the same with the same answer about a video of this name",
            is_fatal=False,
        )
        for sample, twin in namesakes(train, held_out)
    ]


def wordy_numbers(samples: Sequence[Sample]) -> list[Finding]:
    """Questions for a number whose answer holds none; no run stops at them, but no number is ever right."""
    return [
        Finding(
            kind="record",
            source=sample.source,
            reason=f"sample {sample.id}: its task is {sample.task!r}, but its answer {shown(sample.answer)} holds none",
            is_fatal=False,
        )
        for sample in samples
        if sample.task in ("number", "regression") and not holds_number(sample.answer)
    ]


def examine(
    samples: Sequence[Sample], planner: Planner, *, num_clips: int | None, num_workers: int
) -> Examined:
    """That all files are there, and what becomes of the prompts: of all, or of num_clips clips spread evenly."""
    findings = [missing for sample in samples if (missing := _missing(sample)) is not None]
    lacking = {finding.source for finding in findings}
    present = [sample for sample in samples if sample.source not in lacking]
    opened = spread_clips(present, num_clips)
    with ThreadPoolExecutor(num_workers) as pool:
        outcomes = pool.map(_planned(planner), opened)
    plans: list[tuple[Sample, PromptPlan]] = []
    for sample, (plan, found) in zip(opened, outcomes, strict=True):
        findings += found
        if plan is not None and not any(finding.is_fatal for finding in found):
            plans.append((sample, plan))
    return Examined(findings=findings, plans=plans)


def spread_clips(samples: Sequence[Sample], num_clips: int | None) -> list[Sample]:
    """The samples about num_clips clips, spread evenly, and those about none; None: all."""
    keys = [*dict.fromkeys(key for sample in samples if (key := sample.clip_source) is not None)]
    if num_clips is None or num_clips >= len(keys):
        return [*samples]
    spread = np.linspace(0, len(keys) - 1, num_clips).round().astype(int) if num_clips else []
    kept = {None, *(keys[index] for index in spread)}
    return [sample for sample in samples if sample.clip_source in kept]


def _missing(sample: Sample) -> Finding | None:
    source = sample.clip_source
    if source is None or not (paths := missing_files(source)):
        return None
    what = "video file" if source.video else "image"
    others = f" ({len(paths) - 1} more of its images are missing)" if len(paths) > 1 else ""
    reason = f"sample {sample.id}: no such {what}: {paths[0]}{others}"
    return Finding(kind="missing", source=sample.source, reason=reason)


def _planned(planner: Planner) -> Callable[[Sample], tuple[PromptPlan | None, list[Finding]]]:
    def look(sample: Sample) -> tuple[PromptPlan | None, list[Finding]]:
        try:
            plan = planner.plan(sample)
            late = _late_end(sample)
        except Exception as error:  # whatever one file brings up, the others are looked at too
            what = error if isinstance(error, ValueError) else describe(error)
            return None, [
                Finding(kind=_kind(error), source=sample.source, reason=f"sample {sample.id}: {what}")
            ]
        reason = planner.refusal(sample, plan)
        if reason is not None:
            return plan, [Finding(kind="too long", source=sample.source, reason=reason)]
        return plan, late

    return look


def _late_end(sample: Sample) -> list[Finding]:
    """What a record places behind its video's end; no run stops at it, but no reward for it can be earned."""
    source = sample.clip_source
    if source is None or source.video is None:
        return []
    answer_s = read_span(sample.answer) if sample.task == "span" else None
    ends_s = {
        "the clip": source.end_s,
        "the answer": answer_s and source.start_s + answer_s[1],
        "a key moment": max((source.start_s + end_s for _, end_s in sample.keyframes_s), default=None),
    }
    file_end_s = frame_table(source.video).end_s
    reasons = [
        f"sample {sample.id}: {what} ends at {end_s:g} s, but the video at {file_end_s:g} s"
        for what, end_s in ends_s.items()
        if end_s is not None and end_s > file_end_s + LATE_END_S
    ]
    return [
        Finding(kind="too short", source=sample.source, reason=reason, is_fatal=False)
        for reason in reasons[:1]  # the others follow from it
    ]


def _kind(error: Exception) -> Kind:
    if not isinstance(error, MediaError):
        return "record" if isinstance(error, ValueError) else "unreadable"
    if isinstance(error.__cause__, TooManyTokens):
        return "too long"
    return "too short" if isinstance(error.__cause__, TooShort) else "unreadable"


def _of_data(error: DataError) -> Finding:
    return Finding(kind=error.kind, source=error.source, reason=error.reason)
