"""Counterfactuals: completions of the same questions about changed frames, for the rewards that declare them.

A reward declares them with `rewards.counterfactual`. They are sampled beside the groups, stored in the rollouts that
they are compared with, and never trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from grpo.feed.prompts import Render, rollout_seed
from grpo.groups import Group, Prompt, Rollout
from grpo.media import variants
from grpo.media.clip import Clip
from grpo.rollout import Engine, Sampling
from rewards import Counterfactual, Frames
from rewards.builtin.moments import cited_patches_by_video, videos_of

IN_ORDER: frozenset[Frames] = frozenset({"shuffled", "reversed"})
"""The kinds of frames that differ from the clip's own by their order alone."""
PER_ROLLOUT: frozenset[Frames] = frozenset({"cited", "cited_in_place"})
"""The kinds of frames that depend on what a completion cites."""

Plan = Mapping[Frames, Sampling]
"""The sampling of completions about each kind of changed frames."""


@dataclass(frozen=True, slots=True)
class _Question:
    """The key of a changed prompt: what differs from the others. Rollouts that cite the same frames share one."""

    group_index: int
    frames: Frames
    patches: tuple[tuple[int, ...], ...] = ()
    """The cited temporal patches of each video; empty unless the frames are the cited ones."""


_Asked = Mapping[Frames, _Question | None]
"""The questions that one rollout is compared with; None where there is nothing to change."""


def make_plan(declared: Iterable[Counterfactual], sampling: Sampling) -> dict[Frames, Sampling]:
    """Return the sampling for each kind of frames: that of training, except for what the rewards declare.

    Rewards that read the same frames share the completions, as many as the one that asks for most. Raises ValueError
    where one wants them greedy and another does not.
    """
    plan: dict[Frames, Sampling] = {}
    for each in declared:
        temperature = 0.0 if each.greedy else sampling.temperature
        wanted = replace(sampling, group_size=num_samples(each, sampling), temperature=temperature)
        known = plan.setdefault(each.frames, wanted)
        if known.temperature != wanted.temperature:
            raise ValueError(
                f"rewards: one reads greedy completions about {each.frames} frames, another sampled ones; "
                "they can't be in the same run"
            )
        plan[each.frames] = max(known, wanted, key=lambda one: one.group_size)
    return plan


def num_samples(wanted: Counterfactual, sampling: Sampling) -> int:
    """Return the number of completions to sample: as declared, else half a group; greedy ones are all alike, so one."""
    if wanted.greedy or sampling.temperature == 0:
        return 1
    return max(1, sampling.group_size // 2) if wanted.num_samples is None else wanted.num_samples


def add_counterfactuals(
    groups: Sequence[Group],
    seeds: Sequence[int],
    plan: Plan,
    *,
    engine: Engine,
    render: Render,
    max_prompt_tokens: int,
) -> list[Group]:
    """Sample the plan's counterfactuals, and return the groups with `counterfactuals[frames]` in every rollout.

    An empty tuple stands for what can't be sampled: a question without a clip, another order of a single
    picture, a completion that cites no moment inside the clip, another clip where the batch has none or one too
    long. The seeds are the groups' own. With the same groups and seeds the completions are the same; only which
    clip is "another" depends on the batch.
    """
    asked = [_questions(index, group, plan) for index, group in enumerate(groups)]
    prompts: dict[_Question, Prompt] = {}
    for question in _distinct(asked):
        clips = _changed_clips(question, groups, seeds[question.group_index])
        prompt = render(groups[question.group_index].prompt.sample, clips) if clips else None
        if prompt is not None and len(prompt.token_ids) <= max_prompt_tokens:
            prompts[question] = prompt
    sampled = _sample(prompts, seeds, plan, engine)
    return [_attached(group, of_group, sampled) for group, of_group in zip(groups, asked, strict=True)]


def _questions(index: int, group: Group, plan: Plan) -> list[_Asked]:
    """Return the questions that each rollout of group `index` is compared with."""
    return [{frames: _question(index, frames, rollout) for frames in plan} for rollout in group.rollouts]


def _question(index: int, frames: Frames, rollout: Rollout) -> _Question | None:
    """Return the question that a rollout is compared with; None if there is nothing to change."""
    if rollout.clip is None or frames in IN_ORDER and not any(map(_has_order, rollout.clips)):
        return None
    if frames not in PER_ROLLOUT:
        return _Question(index, frames)
    patches = cited_patches_by_video(rollout)
    return _Question(index, frames, patches) if any(patches) else None


def _has_order(clip: Clip) -> bool:
    """Return whether a clip has several temporal patches; of a picture, an order can't be told."""
    return clip.num_frames > clip.patches.temporal_frames


def _distinct(asked: Iterable[Iterable[_Asked]]) -> list[_Question]:
    """Return each question once, in the order of the groups."""
    every = [question for of_group in asked for of_one in of_group for question in of_one.values()]
    return [question for question in dict.fromkeys(every) if question is not None]


def _changed_clips(question: _Question, groups: Sequence[Group], group_seed: int) -> list[Clip]:
    """Return the clips to ask about, changed; empty if one is another question's, and there is none."""
    clips = groups[question.group_index].prompt.clips
    match question.frames:
        case "shuffled":
            seed = rollout_seed(group_seed, "order of frames")
            return [variants.shuffled(clip, seed=seed) for clip in clips]
        case "reversed":
            return [*map(variants.backwards, clips)]
        case "blank":
            return [*map(variants.blank, clips)]
        case "other_clip":
            return _with_another_clip(groups, question.group_index)
    # What was cited is of the videos: a picture beside them stays.
    patches_of = dict(zip(videos_of(clips), question.patches, strict=True))
    is_cut = question.frames == "cited"
    return [_kept(clip, patches_of[clip], is_cut) if clip in patches_of else clip for clip in clips]


def _kept(clip: Clip, patches: Sequence[int], is_cut: bool) -> Clip:
    """Return a clip's cited patches alone, or in their place; of a video of which nothing is cited, black frames."""
    return variants.cut_to(clip, patches) if is_cut and patches else variants.black_but(clip, patches)


def _with_another_clip(groups: Sequence[Group], index: int) -> list[Clip]:
    """Return a group's clips, the main one replaced by that of the next group, wrapping around, of another file."""
    own = groups[index].prompt.clip
    following = [group.prompt.clip for group in (*groups[index + 1 :], *groups[:index])]
    others = (clip for clip in following if clip and own and clip.path != own.path)
    other = next((clip for clip in others if own and clip.is_picture == own.is_picture), None)
    return [other if clip is own else clip for clip in groups[index].prompt.clips] if other else []


def _sample(
    prompts: Mapping[_Question, Prompt], seeds: Sequence[int], plan: Plan, engine: Engine
) -> dict[_Question | None, tuple[Rollout, ...]]:
    """Sample the completions of each prompt, with one request to the engine for each way of sampling."""
    sampled: dict[_Question | None, tuple[Rollout, ...]] = {}
    for sampling in dict.fromkeys(plan.values()):
        asked = [question for question in prompts if plan[question.frames] == sampling]
        own_seeds = [
            rollout_seed(seeds[each.group_index], "counterfactual", each.frames, *_cited(each))
            for each in asked
        ]
        made = engine.generate([prompts[question] for question in asked], sampling, own_seeds)
        rollouts = {id(group.prompt): group.rollouts for group in made}
        sampled |= {question: rollouts.get(id(prompts[question]), ()) for question in asked}
    return sampled


def _cited(question: _Question) -> Iterator[int | str]:
    """Yield what tells the cited frames of a question from others."""
    for number, patches in enumerate(question.patches, start=1):
        yield from patches if number == 1 else (f"video {number}", *patches)


def _attached(
    group: Group, asked: Sequence[_Asked], sampled: Mapping[_Question | None, tuple[Rollout, ...]]
) -> Group:
    """Return the group with each rollout's counterfactuals in it."""
    rollouts = [
        replace(rollout, counterfactuals={frames: sampled.get(each, ()) for frames, each in of_one.items()})
        for rollout, of_one in zip(group.rollouts, asked, strict=True)
    ]
    return replace(group, rollouts=tuple(rollouts))
