"""GRPO-CARE's bonus: its table by hand, and the likelihoods that it is given by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from grpo.config.learner import CareConfig, LossConfig
from grpo.groups import Group, RewardTable
from grpo.learner.reference_reward import add_reference_parts, answer_tokens, care_bonuses
from tests.support import tiny
from tests.support.learners import make_learner, moved_policy, packed, text_groups


@pytest.mark.parametrize(
    ("accuracies", "likelihoods", "care", "bonuses"),
    [
        # Right: .9, .5 and .4, mean .6, less .01: one is above it. The wrong one's likelihood counts nowhere.
        ([1, 1, 1, 0], [0.9, 0.5, 0.4, 0.99], {}, [0.5, 0, 0, 0]),
        # .5 and .52: mean .51; .5 is just within the margin, and without one it is not.
        ([1, 1, 0, 0], [0.5, 0.52, 0.1, 0.1], {}, [0.5, 0.5, 0, 0]),
        ([1, 1, 0, 0], [0.5, 0.52, 0.1, 0.1], {"margin": 0.0}, [0, 0.5, 0, 0]),
        # Both count as .95; without the cap .96 would be below the mean of .98 by more than the margin.
        ([1, 1], [0.96, 1.0], {}, [0.5, 0.5]),
        ([1, 1], [0.96, 1.0], {"cap": 1.0}, [0, 0.5]),
        # Graded: the mean is .5, .4 is below it, and the bonus is a share of the accuracy.
        ([0.8, 0.4, 0.3], [0.5, 0.9, 0.9], {"bonus": 0.25}, [0.2, 0, 0]),
        ([0.1, 0.1], [0.9, 0.9], {}, [0, 0]),  # not above 0.1
        ([1, 1, None], [None, 0.3, 0.9], {}, [0, 0.5, 0]),  # no answer to be read; no accuracy
        ([1, 1, 1], [0.1 + 0.2, 0.3, 0.3], {"margin": 0.0}, [0.5] * 3),  # equal but for rounding
        ([0, 0], [0.9, 0.9], {}, [0, 0]),
    ],
)
def test_the_bonus_is_for_the_likelier_ones_of_the_right_answers(
    accuracies: Sequence[float | None],
    likelihoods: Sequence[float | None],
    care: dict[str, float],
    bonuses: Sequence[float],
) -> None:
    settings = CareConfig(**({"bonus": 0.5} | care))  # pyright: ignore[reportArgumentType]
    assert care_bonuses(accuracies, likelihoods, settings) == pytest.approx(bonuses)


def ids_of(text: str) -> list[int]:
    return tiny.family().processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("content", ["B", " red", "a knife in the hand", "3.0-4.5"])
def test_the_answers_tokens_are_those_of_the_blocks_content(content: str) -> None:
    before, after = "<think>it is red</think><answer>", "</answer>"
    token_ids = [*ids_of(before + content + after), tiny.family().eos_ids[0]]
    tokens = answer_tokens(token_ids, tiny.family().decode)
    assert tokens is not None
    held = tiny.family().decode(token_ids[tokens])
    # A token may reach over the block's border; each of them holds a part of the content.
    assert content in held
    assert content not in tiny.family().decode(token_ids[tokens.start + 1 : tokens.stop])
    assert content not in tiny.family().decode(token_ids[tokens.start : tokens.stop - 1])


@pytest.mark.parametrize(
    "text", ["B", "<answer>B", "<answer></answer>", "<answer>A</answer><answer>B</answer>"]
)
def test_without_one_answer_there_are_no_tokens_of_it(text: str) -> None:
    assert answer_tokens(ids_of(text), tiny.family().decode) is None


def test_a_part_of_a_character_belongs_to_the_answer() -> None:
    """Tokens of single bytes: an é has two of them."""

    def decode(token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    text = "<answer>née</answer>".encode()
    tokens = answer_tokens([*text], decode)
    assert tokens is not None and text[tokens].decode() == "née"


def test_the_bonus_is_given_by_the_references_likelihood_of_the_answer() -> None:
    prompt = text_groups()[0].group.prompt
    texts = ["<think>red</think><answer>A</answer>", "<answer>A</answer>", "<answer>B</answer>"]
    rollouts = tuple(tiny.rollout(prompt, ids_of(text), text=text) for text in texts)
    table = RewardTable(
        columns={"accuracy": (1.0, 1.0, 0.0)}, parts={"accuracy": (1.0, 1.0, 0.0)}, totals=(1.0, 1.0, None), failures=()
    )  # fmt: skip
    group = Group(prompt=prompt, rollouts=rollouts)
    settings = LossConfig(care=CareConfig(bonus=0.5, margin=0.0))
    learner = make_learner(tiny.policy(), loss=settings, reference=moved_policy())
    (found,), metrics = add_reference_parts(
        [group], [table], learner.reference_logps, settings, tiny.family()
    )
    first, second = (likelihood_of(group, index) for index in (0, 1))
    expected = [0.5 * (each >= (first + second) / 2) for each in (first, second)]
    assert abs(first - second) > 1e-4 and found.parts["care"] == (*expected, 0.0)
    assert found.totals == (1 + expected[0], 1 + expected[1], None)
    figures = metrics.reduced()
    assert figures["care/given"] == pytest.approx(1 / 3)
    assert figures["care/likelihood"] == pytest.approx(
        (first + second + likelihood_of(group, 2)) / 3, rel=1e-4
    )


def likelihood_of(group: Group, index: int) -> float:
    """exp of the mean log-prob of an answer's tokens under the reference, from a row of its own."""
    rollout = group.rollouts[index]
    alone = replace(text_groups()[0], group=replace(group, rollouts=(rollout,)), advantages=(1.0,))
    logps_T = moved_policy()(packed([alone])[0]).logps_T
    tokens = answer_tokens(rollout.token_ids, tiny.family().decode)
    assert tokens is not None
    return math.exp(logps_T[tokens].mean().item())
