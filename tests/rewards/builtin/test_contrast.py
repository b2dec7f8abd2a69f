"""Rewards that compare with completions about changed frames."""

from __future__ import annotations

from dataclasses import replace

import pytest

from grpo.commands.check import check_reward
from grpo.groups import Group, Rollout
from rewards import hostile
from rewards.builtin.contrast import blank_contrast, other_clip_contrast, t_grpo
from rewards.hostile import make_group, synthetic_samples, with_counterfactuals
from rewards.scoring.loading import load_reward
from rewards.scoring.specs import RewardSpec

SAMPLE = synthetic_samples({})[0]  # the answer is B


def rollouts(answers: str) -> tuple[Rollout, ...]:
    return make_group([f"<answer>{letter}</answer>" for letter in answers], SAMPLE).rollouts


def group(answers: str, frames: str, changed: str) -> tuple[Rollout, ...]:
    """Rollouts with these letters, beside completions about changed frames with those."""
    others = rollouts(changed)
    return tuple(replace(each, counterfactuals={frames: others}) for each in rollouts(answers))


@pytest.mark.parametrize(
    ("ordered", "shuffled", "slack", "expected"),
    [
        ("BBAA", "BA", 0.8, "++00"),  # 1/2 >= 0.8 * 1/2
        ("BAAA", "AA", 0.8, "+000"),  # 1/4 >= 0
        ("BAAA", "BA", 0.8, "0000"),  # 1/4 < 0.8 * 1/2
        ("BBBA", "BB", 0.8, "0000"),  # 3/4 < 0.8
        ("BBBBA", "BB", 0.8, "++++0"),  # 4/5 = 0.8: equal is enough
        ("BBBAA", "BBBA", 0.8, "+++00"),  # 3/5 = 0.8 * 3/4, which floats make 0.6000000000000001
        ("BBBBA", "BB", 1.0, "00000"),
        ("BBBB", "BB", 1.0, "++++"),
        ("BBBA", "BB", 0.0, "+++0"),
        ("AAAA", "AA", 0.8, "0000"),  # 0 >= 0, but nobody is right
        ("AAAA", "BB", 0.8, "0000"),
    ],
)
def test_t_grpo_pays_the_right_ones_if_the_group_holds_its_own(
    ordered: str, shuffled: str, slack: float, expected: str
) -> None:
    values = t_grpo(group(ordered, "shuffled", shuffled), slack=slack)
    assert values == [{"+": 0.3, "0": 0.0}[each] for each in expected]


def test_t_grpo_takes_its_bonus_as_an_argument() -> None:
    assert t_grpo(group("BA", "shuffled", "A"), bonus=0.7) == [0.7, 0.0]


@pytest.mark.parametrize(("fn", "frames"), [(blank_contrast, "blank"), (other_clip_contrast, "other_clip")])
@pytest.mark.parametrize(
    ("answer", "changed", "expected"),
    [
        ("B", "AAAA", 1.0),
        ("B", "BAAA", 0.75),
        ("B", "BBBB", 0.0),
        ("A", "AAAA", 0.0),
        ("A", "BBBB", 0.0),  # a wrong answer is not worth less than nothing
    ],
)
def test_a_contrast_is_the_share_of_an_answer_that_the_frames_bring(
    fn, frames: str, answer: str, changed: str, expected: float
) -> None:
    assert fn(group(answer, frames, changed)[0]) == pytest.approx(expected)


def test_what_could_not_be_sampled_is_no_value() -> None:
    assert t_grpo(group("BA", "shuffled", "")) == [None, None]
    assert blank_contrast(group("B", "blank", "")[0]) is None
    assert other_clip_contrast(group("B", "other_clip", "")[0]) is None


def test_a_set_that_nobody_attached_is_an_error_and_not_an_abstention() -> None:
    for call in (lambda: t_grpo(rollouts("BA")), lambda: blank_contrast(rollouts("B")[0])):
        with pytest.raises(KeyError):
            call()


def test_the_tolerance_is_that_of_accuracy() -> None:
    sample = replace(SAMPLE, task="number", answer="42", options=())
    right, changed = make_group(["<answer>41</answer>", "<answer>40</answer>"], sample).rollouts
    of = replace(right, counterfactuals={"blank": (changed,), "shuffled": (changed,)})
    assert (blank_contrast(of), t_grpo([of])) == (0.0, [0.0])
    assert (blank_contrast(of, tolerance=1), t_grpo([of], tolerance=1)) == (1.0, [0.3])


def test_answers_that_are_partly_right_are_judged_by_the_reward_that_is_named() -> None:
    """Nine of ten words are right with the frames in order, none with the frames shuffled or black."""
    ocr = replace(SAMPLE, task="ocr", answer="one two three four five six seven eight nine ten", options=())
    near = "<answer>one two three four five six seven eight nine x</answer>"
    seeing, blind = make_group([near] * 4, ocr).rollouts, make_group(["<answer>x</answer>"] * 2, ocr).rollouts
    made = [replace(each, counterfactuals={"shuffled": blind, "blank": blind}) for each in seeing]
    assert t_grpo(made) == [0.0] * 4  # strictly, all are wrong
    assert t_grpo(made, right_by="video_r1_accuracy") == [0.3] * 4
    assert t_grpo(made, right_by="graded_accuracy", right_above=0.95) == [0.0] * 4
    assert t_grpo(made, right_by="number") == [None] * 4  # which abstains on texts
    assert blank_contrast(made[0], right_by="graded_accuracy") == pytest.approx(0.9)
    assert blank_contrast(made[0], right_by="number") is None
    with pytest.raises(ValueError, match="tolerance belongs to right_by: accuracy, not to graded_accuracy"):
        t_grpo(made, right_by="graded_accuracy", tolerance=1)


@pytest.mark.parametrize("name", ["t_grpo", "blank_contrast", "other_clip_contrast"])
def test_hostile_completions_get_a_finite_number_or_none(name: str) -> None:
    reward = load_reward(name, RewardSpec())
    assert reward.counterfactuals
    groups: list[Group] = [with_counterfactuals(each, reward.counterfactuals) for each in hostile.groups()]
    findings, tracebacks = check_reward(reward, groups)
    assert all(finding.ok for finding in findings), (findings, tracebacks)
