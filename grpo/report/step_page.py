"""What the page shows of a step's completions: figures of all in the index, and everything in the step's own file.

The index has a row per completion in columns, and one per group. The step's file is loaded when one of its groups is
looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from grpo.groups import Rollout, Sample, ScoredGroup
from grpo.report.page_files import finite, short
from grpo.report.thumbnails import SeenClip
from grpo.report.tokens import Pieces
from rewards.builtin.accuracy import accuracy
from rewards.builtin.moments import annotated_moments, by_video, cited_moments
from rewards.parsing import ANSWER, only_block
from rewards.scoring.compose import conditions_of, gates_open
from rewards.scoring.specs import RewardSpec

ANSWER_CHARACTERS = 24
"""The length at which an answer is cut in the index."""
CATEGORIES = ("category", "question_type", "problem_type", "type")
"""The columns of a sample, the first that is there, that name its category; without one it is the sample's task."""


@dataclass(frozen=True, kw_only=True)
class StepPage:
    """A step's completions as the page takes them."""

    columns: Mapping[str, Any]
    """The figures for the index."""
    content: Mapping[str, Any]
    """The groups for the step's file."""
    clips: Mapping[str, SeenClip]
    """The clips by the name of their strip."""


def step_page(
    groups: Sequence[ScoredGroup],
    specs: Mapping[str, RewardSpec],
    pieces: Pieces | None,
    learner_logps: Sequence[Sequence[float] | None] = (),
) -> StepPage:
    """Return what is shown of groups as they were scored.

    learner_logps: the learner's log-probs of each completion's tokens, where the run stored them.
    """
    rollouts = [rollout for scored in groups for rollout in scored.group.rollouts]
    learner = [*learner_logps] or [None] * len(rollouts)
    token_ids = (token_id for rollout in rollouts for token_id in rollout.token_ids)
    starts = np.cumsum([0, *(len(scored.group.rollouts) for scored in groups)]).tolist()
    clips = [clip for scored in groups for clip in seen_clips(scored)]
    return StepPage(
        columns={
            "groups": {
                "sample": [scored.group.prompt.sample.id for scored in groups],
                "category": [category_of(scored) for scored in groups],
                "expected": [scored.group.prompt.sample.answer[:ANSWER_CHARACTERS] for scored in groups],
                "size": [len(scored.group.rollouts) for scored in groups],
            },
            "columns": columns_of(groups, rollouts, learner),
        },
        content={
            "pieces": pieces.of(token_ids) if pieces else None,
            "groups": [
                group_page(scored, specs, learner[start : start + len(scored.group.rollouts)])
                for start, scored in zip(starts[:-1], groups, strict=True)
            ],
        },
        clips={clip.name: clip for clip in clips},
    )


def columns_of(
    groups: Sequence[ScoredGroup], rollouts: Sequence[Rollout], learner: Sequence[Sequence[float] | None]
) -> dict[str, list[Any]]:
    """Return the figures of completions, a list of each."""
    names = {name: None for scored in groups for name in scored.table.columns}
    parts = {name: None for scored in groups for name in scored.table.parts}
    raw = {name: _column(groups, lambda scored, name=name: scored.table.columns[name]) for name in names}
    judged = raw.get("accuracy", [None] * len(rollouts))
    return {
        "total": _column(groups, lambda scored: scored.table.totals),
        "advantage": _column(groups, lambda scored: scored.advantages),
        "tokens": [len(rollout.token_ids) for rollout in rollouts],
        "stopped": [int(rollout.stopped) for rollout in rollouts],
        "right": [is_right(each, value) for each, value in zip(rollouts, judged, strict=True)],
        "answer": [(answer_of(rollout) or "")[:ANSWER_CHARACTERS] for rollout in rollouts],
        "logp": [short(float(np.mean(each.logprobs))) if each.logprobs else None for each in rollouts],
        "gap": [gap_of(rollout, each) for rollout, each in zip(rollouts, learner, strict=True)],
        **{f"raw/{name}": column for name, column in raw.items()},
        **{
            f"part/{name}": _column(groups, lambda scored, name=name: scored.table.parts[name])
            for name in parts
        },
    }  # fmt: skip


def group_page(
    scored: ScoredGroup, specs: Mapping[str, RewardSpec], learner: Sequence[Sequence[float] | None]
) -> dict[str, Any]:
    """Return all that is shown of a group."""
    prompt = scored.group.prompt
    sample, clips = prompt.sample, seen_clips(scored)
    others = _distinct_counterfactuals(scored.group.rollouts)
    return {
        "sample": sample.id,
        "question": sample.question,
        "options": list(sample.options),
        "answer": sample.answer,
        "task": sample.task,
        "source": sample.source,
        "category": category_of(scored),
        "columns": finite(sample.columns),
        "annotated": [list(span) for span in sample.keyframes_s],
        "prompt": prompt.text,
        "clip": clips[0].strip() if clips else None,
        "media": shown_media(sample, [clip.strip() for clip in clips]) if sample.media else [],
        "gates": _gates(scored, specs),
        "counterfactuals": [{"frames": frames, "answers": answers} for frames, answers in others],
        "completions": [
            _completion(scored, index, learner[index], others) for index in range(len(scored.group.rollouts))
        ],
    }


def _completion(
    scored: ScoredGroup,
    index: int,
    learner: Sequence[float] | None,
    others: Sequence[tuple[str, list[dict[str, Any]]]],
) -> dict[str, Any]:
    rollout, table = scored.group.rollouts[index], scored.table
    cited = by_video(cited_moments(rollout), rollout.sample.num_videos)
    return {
        "text": rollout.text,
        "ids": list(rollout.token_ids),
        "logps": finite(np.round(rollout.logprobs, 3).tolist()),
        # A step that the learner has diverged in is stored as well.
        "learner": None if learner is None else finite(np.round(learner, 3).tolist()),
        "stopped": rollout.stopped,
        "raw": {name: short(column[index]) for name, column in table.columns.items()},
        "part": {name: short(column[index]) for name, column in table.parts.items()},
        "total": short(table.totals[index]),
        "advantage": short(scored.advantages[index]),
        "cited": [list(span) for span in cited[0]],
        "cited_by_video": [[list(span) for span in spans] for spans in cited] if rollout.sample.media else [],
        "counterfactuals": [others.index(each) for each in _counterfactuals(rollout)],
    }


def _gates(scored: ScoredGroup, specs: Mapping[str, RewardSpec]) -> dict[str, Any]:
    """Return the conditions of the gated rewards, and on which completions they are open."""
    columns = scored.table.columns
    gated = {name: spec for name, spec in specs.items() if name in columns and conditions_of(name, spec)}
    return {
        name: {
            "only_if": spec.only_if,
            "only_unless": spec.only_unless,
            "open": gates_open(name, spec, columns),
        }
        for name, spec in gated.items()
        if all(gate.reward in columns for gate in conditions_of(name, spec).values())
    }


def _distinct_counterfactuals(rollouts: Iterable[Rollout]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the answers about changed frames, each list once, though several completions share it."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for rollout in rollouts:
        found += [each for each in _counterfactuals(rollout) if each not in found]
    return found


def _counterfactuals(rollout: Rollout) -> list[tuple[str, list[dict[str, Any]]]]:
    return [
        (
            frames,
            [{"text": each.text, "answer": answer_of(each), "right": is_right(each)} for each in several],
        )
        for frames, several in rollout.counterfactuals.items()
    ]


def seen_clips(scored: ScoredGroup) -> list[SeenClip]:
    """Return the clips that a group is about, in order."""
    prompt = scored.group.prompt
    # A question may have been asked without what its record shows.
    pairs = zip(prompt.sample.sources, prompt.clips, strict=bool(prompt.clips))
    return [SeenClip(source, clip.facts) for source, clip in pairs]


def shown_media(sample: Sample, strips: Iterable[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Return several media in order, each with its strip, and a video with its index among videos and its spans."""
    spans = by_video(annotated_moments(sample), sample.num_videos)
    videos = count()
    media = []
    for source, strip in zip(sample.media, strips, strict=False):
        video = None if source.is_picture else next(videos)
        annotated = [] if video is None else [list(span) for span in spans[video]]
        media.append({"clip": strip, "video": video, "annotated": annotated})
    return media


def category_of(scored: ScoredGroup) -> str:
    """Return the category that a sample's record names, or its task."""
    sample = scored.group.prompt.sample
    named = (sample.columns.get(name) for name in CATEGORIES)
    return next((each for each in named if isinstance(each, str) and each), sample.task)


def answer_of(rollout: Rollout) -> str | None:
    """Return what stands in the completion's one block of an answer; None if it can't be read."""
    block = only_block(rollout.text, ANSWER)
    return None if block is None else block.strip()


def is_right(rollout: Rollout, value: Any = None) -> int | None:
    """Return 1 for a right answer, 0 for a wrong one; None if there is no telling.

    value: that of the run's reward `accuracy`; where there is none, the built-in of that name judges.
    """
    known = value if isinstance(value, float | int) else accuracy(rollout)
    return None if known is None else int(known > 0)


def gap_of(rollout: Rollout, learner: Sequence[float] | None) -> float | None:
    """Return the mean distance between the learner's and the engine's log-probs of a completion."""
    if learner is None or not rollout.logprobs:
        return None
    return short(float(np.abs(np.subtract(learner, rollout.logprobs)).mean()))


def _column(groups: Sequence[ScoredGroup], get: Any) -> list[float | None]:
    return [short(value) for scored in groups for value in get(scored)]
