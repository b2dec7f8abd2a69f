"""A model's figures from made-up answers, each with its arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.benchmarks.benchmark import Benchmark, ScoredAnswer, StoredAnswer
from grpo.benchmarks.changed import all_asked, changed, rotated
from grpo.benchmarks.figures import figures_of, majority
from grpo.benchmarks.results import Results, as_json, as_markdown, submissions
from grpo.benchmarks.scoring import score_answers
from grpo.commands.evaluate.page import Strips, item
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from grpo.media.sampling import MediaSettings
from tests.support.tiny import sample

PLAIN = Benchmark(name="plain", reader="jsonl", groups=("domain",))
COSTS = {"num_tokens": 4, "times_s": (0.0, 0.5), "num_prompt_tokens": 10}


def answer(of: str, text: str, index: int = 0, **fields: object) -> StoredAnswer:
    known = {"finish": "stop", **COSTS, **fields}
    return StoredAnswer(sample_id=of, index=index, text=text, **known)  # pyright: ignore[reportArgumentType]


def question(name: str, video: str, **fields: object) -> Sample:
    return sample(name, clip_source=ClipSource(video=video), **fields)


def scored(
    asked: Sequence[tuple[Sample, str]],
    answers: Sequence[StoredAnswer],
    benchmark: Benchmark = PLAIN,
    n: int = 1,
) -> list[ScoredAnswer]:
    stored = {(each.sample_id, each.variant, each.index): each for each in answers}
    return score_answers(benchmark, asked, stored, num_samples=n)


def test_every_question_counts_and_what_went_wrong_is_told_apart():
    samples = [question(name, f"{name}.mp4", columns={"domain": name in "ab"}) for name in "abcde"]
    answers = [
        answer("a", "A"),
        answer("b", "B"),
        answer("c", "a hand"),
        answer("d", "It is", finish="length"),
        answer("e", "no such file", finish="failed", times_s=(), num_tokens=0, num_prompt_tokens=0),
    ]
    figures = figures_of(PLAIN, scored([(each, "") for each in samples], answers))
    assert figures["num_questions"] == figures["num_videos"] == 5
    assert figures["score"] == 0.2  # 1 of 5
    assert figures["outcomes"] == {"right": 1, "wrong": 1, "unparsed": 1, "truncated": 1, "failed": 1}
    assert figures["groups"]["domain"]["True"]["score"] == 0.5
    assert figures["groups"]["domain"]["False"]["num_questions"] == 3
    assert figures["costs"] == {"mean_frames": 2.0, "mean_tokens": 4.0, "mean_prompt_tokens": 10.0}
    assert figures["baselines"] == {"constant": 1.0, "constant_answer": "A", "chance": 0.25}
    assert figures["letters"]["answered"] == {"A": 1, "B": 1, "C": 0, "D": 0}


def test_an_official_rule_has_a_mean_and_a_denominator_of_its_own():
    first_letter = replace(PLAIN, official=lambda s, text: float(text[0] == s.answer) if text else None)
    samples = [question(name, "one.mp4") for name in "abc"]
    answers = [answer("a", "A"), answer("b", "A knife"), answer("c", "")]
    figures = figures_of(first_letter, scored([(each, "") for each in samples], answers, first_letter))
    assert (figures["score"], figures["official"], figures["num_official"]) == (pytest.approx(1 / 3), 1.0, 2)


def test_a_question_without_a_published_answer_is_in_the_submission_alone():
    submits = replace(PLAIN, submission=lambda rows: {"a.txt": "".join(row.answer.text for row in rows)})
    samples = [question("a", "a.mp4"), question("b", "b.mp4", answer="")]
    found = scored([(each, "") for each in samples], [answer("a", "A"), answer("b", "C")], submits)
    results = results_of(submits, one=found)
    assert (results.figures["one"]["num_questions"], results.figures["one"]["num_unpublished"]) == (1, 1)
    assert [*submissions(results)] == [("one", "a.txt", "AC")]


def test_several_answers_have_a_mean_a_majority_and_pass_at_k():
    asked = [(question("a", "a.mp4"), ""), (question("b", "b.mp4"), "")]
    texts = {"a": ["A", "A", "B", "?"], "b": ["B", "B", "A", "B"]}
    answers = [answer(of, text, index) for of, some in texts.items() for index, text in enumerate(some)]
    found = scored(asked, answers, n=4)
    figures = figures_of(PLAIN, found)
    assert figures["score"] == (2 / 4 + 1 / 4) / 2
    samples = figures["samples"]
    assert samples["majority"] == 0.5 and samples["mean_majority_share"] == (2 / 4 + 3 / 4) / 2
    # a: 1 - 1/6 of pairs hold none of its two right answers; b: 1 - 3/6.
    assert samples["pass_at_k"] == {"1": 0.375, "2": pytest.approx((5 / 6 + 1 / 2) / 2), "4": 1.0}
    # Right at a confidence of 0.5, wrong at 0.75: gaps of 0.5 and 0.75.
    assert samples["calibration_error"] == pytest.approx(0.625)
    assert majority([each for each in found if each.answer.text == "?"]) == (0.0, 0.0)


def test_rotating_moves_the_right_option_with_its_letter():
    moved = rotated(sample("s", answer="D"), 1)
    assert moved.options == ("white", "red", "green", "blue") and moved.answer == "A"
    assert changed(sample("s", answer="B"), "rotated/3").options == ("green", "blue", "white", "red")


def test_a_letter_that_is_always_answered_shows_over_rotations():
    one = question("a", "a.mp4")
    asked = all_asked([one], blind=True, rotations=True)
    assert [variant for _, variant in asked] == ["", "blind", "rotated/1", "rotated/2", "rotated/3"]
    found = scored(asked, [answer("a", "A", variant=variant) for _, variant in asked])
    figures = figures_of(PLAIN, found)
    assert figures["score"] == 1.0 and figures["blind"] == {"score": 1.0, "score_interval": None, "drop": 0.0}
    letters = figures["letters"]
    assert letters["score_by_place"] == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    # One of four at 1: sqrt(1/4 - 1/16).
    assert letters["always_right"] == 0.0 and letters["place_std"] == pytest.approx(0.4330127)


def test_questions_about_one_clip_are_asked_together():
    samples = [question("a", "x.mp4"), question("b", "y.mp4"), question("c", "x.mp4"), sample("d")]
    assert [each.id for each, _ in all_asked(samples, blind=False, rotations=False)] == ["a", "c", "b", "d"]


def test_cited_moments_are_compared_where_spans_are_annotated():
    one, other = (question(name, f"{name}.mp4", keyframes_s=((2.0, 3.0),)) for name in "ab")
    cited = "<keyframes>2.5</keyframes><answer>A</answer>"
    found = scored([(one, ""), (other, "")], [answer("a", cited), answer("b", "<answer>A</answer>")])
    moments = figures_of(PLAIN, found)["moments"]
    assert (moments["num_answers"], moments["cited_frac"], moments["hit"]) == (2, 0.5, 0.5)
    assert "moments" not in figures_of(PLAIN, scored([(one, "")], [answer("a", "A")]))


def test_cited_moments_and_frames_of_all_videos_count():
    """Of two videos' moments the one of the second is cited, as its own and as the first's; 2 and 3 frames are 5."""
    media = (ClipSource(video="a.mp4"), ClipSource(video="b.mp4"))
    asked = {"media": media, "keyframes_s": (), "other_keyframes_s": (((3.0, 4.5),),)}
    one, two = (question(name, "a.mp4", **asked) for name in "ab")
    texts = [f"<keyframes>{cited}</keyframes><answer>A</answer>" for cited in ("2: 3.5", "1: 3.5")]
    times_s = ((0.0, 1.0, 2.0),)
    answers = [answer(of, text, other_times_s=times_s) for of, text in zip("ab", texts, strict=True)]
    figures = figures_of(PLAIN, scored([(one, ""), (two, "")], answers))
    assert (figures["moments"]["num_answers"], figures["moments"]["hit"]) == (2, 0.5)
    assert figures["costs"]["mean_frames"] == 5.0


def test_answers_that_are_not_there_yet_are_counted():
    asked = [(question(name, "x.mp4"), "") for name in "ab"]
    with pytest.raises(ValueError, match=r"1 of 2 answers are not there yet \(the first is to b\)"):
        scored(asked, [answer("a", "A")])


def results_of(benchmark: Benchmark, **scored: list[ScoredAnswer]) -> Results:
    return Results(
        benchmark=benchmark,
        prompt={"kind": "direct", "digest": "0"},
        num_missing=0,
        paths={name: name for name in scored},
        folders={name: name for name in scored},
        scored=scored,
        timings={name: {} for name in scored},
        manifest={},
    )


def test_two_models_are_compared_question_by_question():
    asked = [(question(name, f"{name}.mp4"), "") for name in "abcd"]
    first = scored(asked, [answer(name, text) for name, text in zip("abcd", "ABAB", strict=True)])
    second = scored(asked, [answer(name, text) for name, text in zip("abcd", "AAAB", strict=True)])
    results = results_of(PLAIN, base=first, trained=second)
    found = results.differences["trained"]
    assert (found.mean, found.only_first, found.only_second) == (0.25, 1, 0)
    assert as_json(results)["differences"]["trained"]["mean"] == 0.25
    text = as_markdown(results)
    assert "| trained | +0.250 | " in text and "| base | 0.500 | " in text


def test_a_name_with_a_bar_does_not_break_the_table():
    results = results_of(PLAIN, **{"a|b": scored([(question("a", "a.mp4"), "")], [answer("a", "A")])})
    assert "| a\\|b | 1.000 |" in as_markdown(results)


def test_key_moments_are_compared_in_the_video_that_they_are_of(tmp_path: Path) -> None:
    """Of the second video 2 to 4 s are annotated, and the model cites 3 s of it, then 3 s of the first one.

    Hit is (1 + 0) / 2. Widened by .5 s to both sides, 1 s is cited of the 3 s that are annotated: IoU is (1/3 + 0) / 2.
    """
    sources = (ClipSource(video="a.mp4"), ClipSource(video="b.mp4"))
    about: dict[str, Any] = {
        "media": sources,
        "clip_source": sources[0],
        "other_keyframes_s": (((2.0, 4.0),),),
    }
    samples = [sample(name, **about) for name in "xy"]
    cited = (
        "<keyframes>2: 3.0</keyframes><answer>A</answer>",
        "<keyframes>3.0</keyframes><answer>A</answer>",
    )
    answers = [answer(of.id, text) for of, text in zip(samples, cited, strict=True)]
    found = figures_of(PLAIN, scored([(each, "") for each in samples], answers))["moments"]
    assert found == {"num_answers": 2, "cited_frac": 1.0, "hit": 0.5, "iou": pytest.approx(1 / 6)}
    strips = Strips(folder=tmp_path, media=MediaSettings())
    pages = [item([each], (), strips) for each in scored([(each, "") for each in samples], answers)]
    assert [each["annotated"] for each in pages[0]["media"]] == [[], [[2.0, 4.0]]]
    assert [page["answers"][0]["cited_by_video"] for page in pages] == [
        [[], [(3.0, 3.0)]],
        [[(3.0, 3.0)], []],
    ]
