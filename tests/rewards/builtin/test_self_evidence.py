"""Does the answer hold on the cited frames alone? And what is cited where there is no video?"""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo.groups import Rollout
from grpo.media.clip import Clip, ClipSource
from rewards.builtin.keyframe import few_moments, self_evidence, self_evidence_cut
from rewards.hostile import COMPLETIONS, make_group, moving_clip, synthetic_samples

SAMPLE = synthetic_samples({})[0]
CLIP = moving_clip()  # 8 seconds
EVIDENCE = [(self_evidence, "cited_in_place"), (self_evidence_cut, "cited")]


def citing(cited: str, answer: str = "B") -> Rollout:
    text = f"<think>x</think><keyframes>{cited}</keyframes><answer>{answer}</answer>"
    return make_group([text], SAMPLE, clip=CLIP).rollouts[0]


def of_pictures(cited: str) -> Rollout:
    """A completion about two pictures and no video."""
    picture = Clip(replace(CLIP.facts, is_picture=True), CLIP.frames)
    sources = (ClipSource(frames=("a.png",)), ClipSource(frames=("b.png",)))
    sample = replace(SAMPLE, media=sources, clip_source=sources[0])
    return replace(citing(cited), sample=sample, clip=picture, media=(picture, picture))


def with_answers(rollout: Rollout, frames: str, answers: str) -> Rollout:
    again = make_group([f"<answer>{each}</answer>" for each in answers], rollout.sample, clip=CLIP).rollouts
    return replace(rollout, counterfactuals={frames: again})


@pytest.mark.parametrize(("fn", "frames"), EVIDENCE)
@pytest.mark.parametrize(
    ("cited", "answer", "again", "expected"),
    [
        ("3.5", "B", "B", 0.75),  # 2 of 16 frames are a quarter of the half that may be cited
        ("3.5", "B", "A", 0.0),  # it does not hold
        ("3.5", "A", "B", 0.0),  # the rollout's own is wrong
        ("3.5", "A", "A", 0.0),  # it holds, and is wrong
        ("3.5", "B", "BA", 0.75 / 2),
        ("0-2.5", "B", "B", 0.25),  # 6 of 16 frames
        ("0-3.5", "B", "B", 0.0),  # 8 of 16 frames: half
        ("0, 2, 4, 6", "B", "B", 0.0),  # every second pair of frames, which shows almost everything
        ("0, 4", "B", "B", 0.5),
        ("0, 0.5, 1, 1.5", "B", "B", 0.5),  # four moments in two pairs
        ("x", "B", "", 0.0),
        ("9", "B", "", 0.0),
        ("3.5", "B", "", None),
    ],
)
def test_self_evidence_is_a_right_answer_that_holds_and_the_fewer_frames_the_better(
    fn, frames: str, cited: str, answer: str, again: str, expected: float | None
) -> None:
    assert fn(with_answers(citing(cited, answer), frames, again)) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(("fn", "frames"), EVIDENCE)
def test_self_evidence_is_about_clips_and_needs_its_second_answers(fn, frames: str) -> None:
    text_only = make_group([COMPLETIONS["right"]], replace(SAMPLE, clip_source=None)).rollouts[0]
    assert fn(replace(text_only, counterfactuals={frames: ()})) is None
    assert fn(replace(of_pictures("3.5"), counterfactuals={frames: ()})) is None
    with pytest.raises(KeyError):
        fn(citing("3.5"))


def test_self_evidence_of_a_graded_answer_is_what_the_second_answer_is_worth() -> None:
    sample = replace(SAMPLE, task="ocr", answer="a red cup there", options=())
    text = "<keyframes>3.5</keyframes><answer>a red cup there</answer>"
    own = make_group([text], sample, clip=CLIP).rollouts[0]
    again = make_group(["<answer>a red cup</answer>"], sample, clip=CLIP).rollouts
    rollout = replace(own, counterfactuals={"cited_in_place": again})
    assert self_evidence(rollout) == 0.0  # strictly, the second answer is wrong
    assert self_evidence(rollout, right_by="ocr") == pytest.approx(0.75 * 0.75)  # three of four words
    assert self_evidence(rollout, right_by="ocr", right_above=1.0) == 0.0
    assert self_evidence(rollout, right_by="number") is None


def test_the_share_that_may_be_cited_is_an_argument() -> None:
    rollout = with_answers(citing("3.5"), "cited_in_place", "B")
    assert self_evidence(rollout, max_frac=0.125) == 0.0  # 2 of 16 frames
    assert self_evidence(rollout, max_frac=0.25) == pytest.approx(1 / 2)
    fours = replace(CLIP.facts, patches=replace(CLIP.patches, temporal_frames=4))
    assert self_evidence(replace(rollout, clip=Clip(fours, CLIP.frames)), max_frac=0.25) == 0.0


def test_citing_much_of_several_pictures_is_a_matter_of_how_many_moments() -> None:
    assert few_moments(of_pictures("0-8, 1, 2, 3"), max_moments=4) == 0.0
    assert few_moments(of_pictures("0-8, 1, 2, 3"), max_moments=3) == pytest.approx(-1 / 3)
