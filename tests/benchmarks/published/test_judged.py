"""Benchmarks with a judge: OpenEQA, EgoTempo and EgoThink. What the judge says is written in the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.benchmarks import BENCHMARKS
from grpo.benchmarks.published.openeqa import prediction
from grpo.groups import Sample
from tests.support.benchmarks import (
    FAILED,
    metrics,
    official,
    ours,
    outcomes,
    prompt,
    questions,
    scored,
    submitted,
)
from tests.support.readers import CLIP_UID, EGOTEMPO, EGOTHINK, OPENEQA, WRITERS, Record, touch, write_json

SAMPLE = Sample(id="f/1", question="What am I holding?", answer="A brush.", task="open", source="s")
SLICE = Path(__file__).parents[2] / "data/readers/files/open_eqa_slice.json"


def openeqa(folder: Path, *ids: str) -> Path:
    touch(folder / "hm3d-v0/000-hm3d-One.mp4")
    return write_json(folder / "data/open-eqa-v0.json", [OPENEQA | {"question_id": each} for each in ids])


def test_openeqas_llm_match_by_its_formula(tmp_path: Path):
    """Marks 5, 3, 1 and none: C = 100 * mean of (mark - 1) / 4 over the judged = 100 * (1 + 1/2 + 0) / 3 = 50. Ours
    counts all four: (1 + 1/2 + 0 + 0) / 4."""
    samples = questions("openeqa", openeqa(tmp_path, *"abcd"))
    marks = {"On the desk.": 1.0, "In the room": 0.5, "no": 0.0}
    answers = scored("openeqa", samples, ["On the desk. It is", "In the room", "no", "what"], marks)
    assert outcomes(answers) == ["right", "partial", "wrong", "unjudged"]
    assert metrics("openeqa", answers) == {"llm_match": pytest.approx(50.0)}
    assert ours(answers) == pytest.approx(0.375)


def test_an_empty_answer_is_0_for_openeqa_and_costs_no_judge(tmp_path: Path):
    [answer] = scored("openeqa", questions("openeqa", openeqa(tmp_path, "a")), [" "])
    assert outcomes([answer]) == ["unparsed"] and answer.official == 0.0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("On the desk", "On the desk"),
        ("On the desk. And the", "On the desk."),
        ("It is 1.5 m", "It is 1."),  # as there: a stop in a number is one
        ("", None),
    ],
)
def test_what_the_judge_sees_ends_at_the_last_full_stop(text: str, shown: str | None, tmp_path: Path):
    [sample] = questions("openeqa", openeqa(tmp_path, "a"))
    assert prediction(sample, text) == shown


def test_openeqas_results_file_has_all_ids(tmp_path: Path):
    samples = questions("openeqa", openeqa(tmp_path, *"abc"))
    files = submitted("openeqa", scored("openeqa", samples, ["On the desk.", FAILED, " "]))
    assert json.loads(files["open-eqa-v0-results.json"]) == [
        {"question_id": "a", "answer": "On the desk."},
        {"question_id": "b", "answer": None},
        {"question_id": "c", "answer": None},
    ]


def test_openeqas_subset_is_that_of_its_repositorys_file(tmp_path: Path):
    path = openeqa(tmp_path, *"abc")
    with pytest.raises(
        FileNotFoundError, match=r"data/open-eqa-v0-184-questions.json: no such file; it is in"
    ):
        questions("openeqa_184", path)
    write_json(tmp_path / "assets/open-eqa-v0-184-questions.json", ["c", "a"])
    assert [each.columns["question_id"] for each in questions("openeqa_184", path)] == ["a", "c"]
    write_json(path.with_name("open-eqa-v0-184-questions.json"), {"a": 1})
    with pytest.raises(ValueError, match="expected a list of question ids"):
        questions("openeqa_184", path)


def test_openeqas_published_records_are_asked_in_its_own_words():
    """A slice of the published file (MIT License, beside it)."""
    samples = questions("openeqa", SLICE)
    assert {"category"} < samples[0].columns.keys()
    assert prompt("openeqa", samples[0]) == (
        "You are an intelligent question answering agent. I will ask you questions about an indoor space and you must "
        "provide an answer.\nYou will be shown a set of images that have been collected from a single location.\nGiven "
        "a user query, you must output `text` to answer to the question asked by the user.\nUser Query: "
        f"{samples[0].question}"
    )


def egotempo(folder: Path, *changes: Record) -> Path:
    records = [
        EGOTEMPO | {"question_id": f"{CLIP_UID}_{number}"} | change for number, change in enumerate(changes)
    ]
    return WRITERS["egotempo"](folder, *records)


def test_egotempo_is_the_share_of_correct_answers(tmp_path: Path):
    """Correct, incorrect, and a judgement that can't be read: ours 1 / 3; official leaves the last one out: 1 / 2."""
    samples = questions("egotempo", egotempo(tmp_path, {}, {}, {}))
    answers = scored("egotempo", samples, ["washing", "eating", "hm"], {"washing": 1.0, "eating": 0.0})
    assert outcomes(answers) == ["right", "wrong", "unjudged"]
    assert (ours(answers), official(answers)) == (pytest.approx(1 / 3), 0.5)
    assert prompt("egotempo", samples[0]) == (
        "These are frames from a video that I want to upload. Use the visual cues to answer the question: What is done "
        "after the tap is opened?. You need to answer the question in any case and not demand additional context "
        "information. Note: All actions mentioned refer to the person recording the video."
    )


def test_egotempo_as_choices_takes_other_answers_of_the_type(tmp_path: Path):
    """Options depend on the question alone, not on the order of the file; an equal answer is never among them."""
    said = (
        "The cup is washed.",
        "the cup is  washed.",
        "Bread is cut.",
        "The pan is taken.",
        "A door is shut.",
    )
    other = {"answer": "Twice.", "question_type": "counting"}
    changes = [{"answer": answer} for answer in said]
    samples = questions("egotempo", egotempo(tmp_path, *changes))
    chosen = questions("egotempo_choices", egotempo(tmp_path, *changes))
    for sample, choice in zip(samples, chosen, strict=True):
        assert choice.options["ABCD".index(choice.answer)] == sample.answer
        assert len({option.casefold() for option in choice.options}) == 4
        assert (choice.task, choice.id) == ("choice", f"{sample.id}#choice")
    assert {"the cup is  washed."}.isdisjoint(chosen[0].options)
    assert questions("egotempo_choices", egotempo(tmp_path, *changes)) == chosen
    with pytest.raises(ValueError, match="record 6: only 0 other answers of the type 'counting'"):
        questions("egotempo_choices", egotempo(tmp_path, *changes, other))
    answers = scored("egotempo_choices", chosen, [choice.answer for choice in chosen])
    assert ours(answers) == 1.0


def test_egothinks_average_is_that_of_its_tasks(tmp_path: Path):
    """Activity: 1, 0.5 and no rating; Counting: 0. Official: (mean of 1 and 0.5, that is 75 %, + 0 %) / 2 = 37.5. Ours:
    (1 + 0.5 + 0 + 0) / 4."""
    activity = write_json(tmp_path / "Activity/annotations.json", [EGOTHINK] * 3)
    counting = write_json(tmp_path / "Reasoning/counting/annotations.json", [EGOTHINK])
    samples = questions("egothink", activity) + questions("egothink", counting)
    assert [each.columns["task"] for each in samples] == ["Activity"] * 3 + ["counting"]
    marks = {"a brush": 1.0, "a tool": 0.5, "a cat": 0.0}
    answers = scored("egothink", samples, ["a brush", "a tool", "hm", "a cat"], marks)
    assert outcomes(answers) == ["right", "partial", "unjudged", "wrong"]
    assert metrics("egothink", answers) == {"average_of_tasks": pytest.approx(37.5)}
    assert ours(answers) == pytest.approx(0.375)
    assert (
        prompt("egothink", samples[0])
        == "Please let your answer be as short as possible. Question: What am I holding? Short answer:"
    )


def test_egothinks_judge_sees_what_stands_behind_an_echo_of_the_prompt():
    """As gpt_eval.py cuts it (fbafe8f); its system turn is part of the prompt too."""
    benchmark = BENCHMARKS["egothink"]
    assert benchmark.system == "You are a helpful assistant." and benchmark.judge is not None
    shown = [
        benchmark.judge.prediction(SAMPLE, text)
        for text in ("Short Answer: a brush", "a brush", "short answer: x", "")
    ]
    assert shown == ["a brush", "a brush", "short answer: x", None]


def test_gpt_4vs_published_average_is_the_mean_of_its_row():
    """That the average is over tasks: the row of GPT-4V in EgoThink's README, whose first number is 65.5."""
    row = (62.0, 82.0, 58.0, 59.5, 86.0, 62.0, 42.0, 48.0, 83.0, 55.0, 64.0, 84.0)
    assert round(sum(row) / len(row), 1) == 65.5
