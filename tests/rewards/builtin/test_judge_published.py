"""The judges' prompts that benchmarks publish: sent as they are, and their replies read as they ask for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewards.builtin.judge.client import JudgeError
from rewards.builtin.judge.prompt import load_prompt
from tests.support.judge_server import SAMPLE, recorded, rollout, score


def test_openeqas_own_prompt_is_sent_without_fences_and_with_the_extra_answers_as_a_list():
    with recorded(prompt="openeqa_mmbench") as (judge, sent):
        score(judge, rollout("{a} dog"))
        score(judge, rollout("a dog", replace(SAMPLE, columns={})))
    assert sent[0].prompt.endswith(
        "Your Turn:\nQuestion: What is on the chair?\nAnswer: a cat\nExtra Answers: ['a grey cat', 'the cat']\n"
        "Response: {a} dog"
    )
    assert sent[1].prompt.startswith(
        "You are an AI assistant who will help me to evaluate the response given"
    )
    assert sent[1].prompt.endswith("Question: What is on the chair?\nAnswer: a cat\nResponse: a dog")
    assert {**sent[0].body, "messages": None, "model": None} == {
        "model": None, "temperature": 0.2, "seed": 1234, "max_tokens": 32, "messages": None,
    }  # fmt: skip


def test_egocrosss_prompt_has_the_detailed_answer_and_its_mark_is_read_from_json():
    asked = replace(SAMPLE, columns={"detailed_answer": "a grey cat sits"})
    with recorded('{"mark": 4, "reason": "3 of 5 {x}"}', prompt="egocross") as (judge, sent):
        assert score(judge, rollout("a cat?", asked)) == 0.8  # 4 / 5
    assert "Correct ground truth: a cat \n        Detailed ground truth: a grey cat sits\n" in sent[0].prompt
    assert "Predicted Answer: a cat? \n" in sent[0].prompt and '"mark": 4,  # The score' in sent[0].prompt


def test_egotempos_reply_is_a_word():
    for reply, value in (
        ("{'pred': 'correct', 'score': 3, 'reason': 'near'}", 1.0),
        ('```python\n{"pred": "incorrect", "score": 2, "reason": "no"}\n```', 0.0),
    ):
        with recorded(reply, prompt="egotempo") as (judge, _):
            assert score(judge, rollout("a cat")) == value
    assert load_prompt("egotempo").read_score("The prediction is correct.") is None


def test_egothinks_rating_stands_in_double_brackets_and_its_system_turn_is_sent():
    with recorded("Close. Rating: [[0.5]]", prompt="egothink") as (judge, sent):
        assert score(judge, rollout("a cat")) == 0.5
    system, user = sent[0].body["messages"]
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert "[The Start of Reference Answer]\na cat\n[The End of Reference Answer]" in user["content"]
    assert [load_prompt("egothink").read_score(reply) for reply in ("[[1]]", "[[5]]", "[1]", "[[0]] [[1]]")] == [
        1.0, None, None, None,
    ]  # fmt: skip


def test_a_judge_that_does_not_keep_to_the_form_is_asked_for_the_form_and_not_for_a_number():
    with recorded("It is fine.", prompt="egotempo") as (judge, sent), pytest.raises(JudgeError):
        score(judge, rollout("a cat"))
    assert (
        sent[1]
        .body["messages"][-1]["content"]
        .endswith("in exactly the form that is asked for above, and write nothing else.")
    )
    with recorded("It is fine.") as (judge, sent), pytest.raises(JudgeError):
        score(judge, rollout("a cat"))
    assert "Write nothing but one number from 1 to 5" in sent[1].prompt
