"""Our strict rule: an answer that can't be read is told from one that is wrong, and never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.benchmarks import BENCHMARKS, find_benchmark
from grpo.benchmarks.benchmark import Benchmark, StoredAnswer
from grpo.benchmarks.prompts import direct
from grpo.benchmarks.rules import verdict_of
from grpo.benchmarks.scoring import by_rules
from grpo.media.clip import ClipSource
from grpo.policy.prompt_text import user_text
from tests.support.tiny import sample

PLAIN = Benchmark(name="plain", reader="jsonl")
TWO = (ClipSource(video="a.mp4"), ClipSource(video="b.mp4"))


def verdict(
    text: str, *, has_tags: bool = False, finish: str = "stop", benchmark: Benchmark = PLAIN, **fields: object
):
    answer = StoredAnswer(sample_id="s", index=0, text=text, finish=finish)  # pyright: ignore[reportArgumentType]
    found = verdict_of(benchmark, sample("s", **fields), answer, has_tags=has_tags)
    return found and (found.outcome, found.score)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("A", "right"),
        ("(a)", "right"),
        ("A. red", "right"),
        ("red", "right"),
        ("B", "wrong"),
        ("<think>B it is not</think><answer>A</answer>", "right"),
        ("Answer: A", "unparsed"),
        ("A hand takes the green one, so B", "unparsed"),
        ("E", "unparsed"),
        ("", "unparsed"),
        ("<answer>A</answer><answer>B</answer>", "unparsed"),
    ],
)
def test_a_choice_is_read_strictly(text: str, outcome: str):
    assert verdict(text) == (outcome, float(outcome == "right"))


def test_a_reasoning_prompt_wants_the_tags():
    assert verdict("A", has_tags=True) == ("unparsed", 0.0)
    assert verdict("<think>I", has_tags=True, finish="length") == ("truncated", 0.0)
    assert verdict("<think>I</think><answer>A</answer>", has_tags=True, finish="length") == ("right", 1.0)


def test_a_question_that_could_not_be_asked_failed():
    assert verdict("its clip is missing", finish="failed") == ("failed", 0.0)


def test_numbers_spans_and_words():
    assert verdict("3.0", task="number", answer="3", options=()) == ("right", 1.0)
    assert verdict("three", task="number", answer="3", options=()) == ("unparsed", 0.0)
    assert verdict("A Spoon", task="text", answer="a spoon", options=()) == ("right", 1.0)
    # 2 to 4 and 3 to 5 share one of three seconds.
    assert verdict("3-5", task="span", answer="2-4", options=()) == ("partial", 1 / 3)
    assert verdict("at 3", task="span", answer="2-4", options=()) == ("unparsed", 0.0)


def test_a_span_is_right_in_its_own_video_alone():
    """2 to 4 s of the second video; 3 to 5 s of it share one of three seconds with that."""
    fields: dict[str, Any] = {
        "task": "span",
        "answer": "2: 2.0-4.0",
        "options": (),
        "media": TWO,
        "clip_source": TWO[0],
    }
    assert verdict("2: 2-4", **fields) == ("right", 1.0)
    assert verdict("2: 3-5", **fields) == ("partial", pytest.approx(1 / 3))
    assert verdict("2-4", **fields) == ("wrong", 0.0)
    assert verdict("3: 2-4", **fields) == ("unparsed", 0.0)
    for asked in (
        direct(sample("s", **fields)),
        user_text(sample("s", **fields), template="{instruction}", option="", tags=["answer"]),
    ):
        assert "only the number of the video" in asked and "such as 2: 3.0-4.5" in asked


def test_a_question_without_a_published_answer_has_no_verdict():
    assert verdict("A", answer="") is None


def test_an_unknown_benchmark_names_the_known_ones():
    assert find_benchmark("jsonl").reader == "jsonl"
    with pytest.raises(ValueError, match=r"did you mean 'egoschema'.*there are .*openeqa"):
        find_benchmark("egoshema")


def test_every_benchmark_is_under_its_own_name():
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())


@pytest.mark.parametrize(
    ("text", "finish", "has_tags", "official"),
    [
        ("no file", "failed", False, 0.0),
        ("<think>First (A) is tempting", "length", True, 0.0),
        ("A, I think", "stop", True, 0.0),
        ("<think>not B</think><answer>A</answer>", "stop", True, 1.0),
        ("(A) is tempting", "stop", False, 1.0),
    ],
)
def test_the_official_rule_is_not_asked_about_what_is_no_answer(
    text: str, finish: Any, has_tags: bool, official: float
):
    benchmark = Benchmark(
        name="lots", reader="jsonl", official=lambda sample, text: float("A" in text or not text)
    )
    answer = StoredAnswer(sample_id="s", index=0, text=text, finish=finish)
    assert by_rules(benchmark, sample("s"), answer, has_tags=has_tags).official == official
