"""Benchmarks with options: EgoSchema, EgoPlan, Video-MME, HD-EPIC, EgoTaskQA and HourVideo.

Each is read from a made-up file in its published form, answered by hand, and its scores are worked out beside the
answers.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from grpo.benchmarks import BENCHMARKS
from grpo.benchmarks.benchmark import StoredAnswer
from grpo.benchmarks.prompts import official_wording
from grpo.benchmarks.published.egoschema import read
from grpo.benchmarks.replies import letter_of
from grpo.groups import Sample
from tests.support import tiny
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
from tests.support.readers import (
    EGOPLAN,
    EGOSCHEMA,
    EGOTASKQA,
    HD_EPIC,
    HOURVIDEO,
    VIDEO_MME,
    WRITERS,
    write_json,
)

CHOICE = Sample(
    id="f/1",
    question="What is done?",
    answer="B",
    task="choice",
    source="s",
    options=("a cup is taken", "a red bowl is washed", "an onion is cut", "a tap runs", "nothing"),
)


def egoschema(folder: Path) -> Path:
    """Four questions, the answers of three of which are published: B, D and E."""
    uids = ("u-1", "u-2", "u-3", "u-hidden")
    write_json(folder / "subset_answers.json", {"u-1": 1, "u-2": 3, "u-3": 4})
    return write_json(folder / "questions.json", [EGOSCHEMA | {"q_uid": uid} for uid in uids])


def test_egoschemas_scores_of_the_public_answers(tmp_path: Path):
    """Right answers B, D, E. Ours: `B` right, `Answer: D` can't be read, the sentence neither: 1 / 3.
    lmms-eval reads D in the second, and draws in the third, one in five: (1 + 1 + 1/5) / 3.
    """
    samples = questions("egoschema", egoschema(tmp_path))
    answers = scored("egoschema", samples, ["B", "Answer: D", "no idea"])
    assert outcomes(answers) == ["right", "unparsed", "unparsed"]
    assert ours(answers) == pytest.approx(1 / 3)
    assert official(answers) == pytest.approx((1 + 1 + 0.2) / 3)


def test_egoschemas_prompt_is_lmms_evals(tmp_path: Path):
    [sample, *_] = questions("egoschema", egoschema(tmp_path))
    assert prompt("egoschema", sample) == (
        "What is the overall goal?\nA. Goal 0.\nB. Goal 1.\nC. Goal 2.\nD. Goal 3.\nE. Goal 4.\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("Answer: B", "B"),
        ("(B) it is", "B"),
        ("the answer is B, not A", "A"),  # `B,` is no mention to it
        ("A hand is seen, so B", "A"),  # an article
        ("NASA showed it", "A"),  # the end of a word
        ("I am sure that it's b. a red bowl is washed", "B"),  # its options carry their letters
        ("I am sure that a red bowl is washed", ""),  # an option is drawn
        ("I am sure", ""),
        ("b", ""),
    ],
)
def test_egoschemas_official_rule_with_its_mistakes(text: str, letter: str):
    assert read(CHOICE, text) == letter


def test_egoschemas_submissions_have_all_questions_and_the_published_forms(tmp_path: Path):
    """JSON `{q_uid: 0 to 4}` and a CSV with the header `q_uid,answer`. What can't be read is missing in one and -1 in
    the other, never a guess."""
    samples = questions("egoschema_full", egoschema(tmp_path))
    assert [sample.answer for sample in samples] == ["B", "D", "E", ""]
    answers = scored("egoschema_full", samples, ["B", "who knows", FAILED, "(C)"])
    assert answers[3].verdict is None and ours(answers) == pytest.approx(1 / 3)
    files = submitted("egoschema_full", answers)
    assert json.loads(files["egoschema.json"]) == {"u-1": 1, "u-hidden": 2}
    table = files["egoschema.csv"]
    assert table.splitlines()[0] == "q_uid,answer"
    assert [*csv.DictReader(io.StringIO(table))] == [
        {"q_uid": "u-1", "answer": "1"},
        {"q_uid": "u-2", "answer": "-1"},
        {"q_uid": "u-3", "answer": "-1"},
        {"q_uid": "u-hidden", "answer": "2"},
    ]


def egoplan(folder: Path) -> Path:
    """Three questions of EgoPlan-Val (right: C) and one of EgoPlan-Test, whose answer is not published."""
    hidden = {key: EGOPLAN[key] for key in EGOPLAN.keys() - {"golden_choice_idx", "answer"}}
    records = [EGOPLAN | {"sample_id": number} for number in range(3)] + [hidden | {"sample_id": 3}]
    return write_json(folder / "EgoPlan_validation.json", records)


def test_egoplan_is_answered_by_the_likeliest_option_to_the_records_question(tmp_path: Path):
    samples = questions("egoplan", egoplan(tmp_path))
    candidates = BENCHMARKS["egoplan"].candidates
    assert candidates is not None
    assert candidates(samples[0]) == ("open tap", "take cup", "close tap", "take spoon")
    assert prompt("egoplan", samples[0]) == "What action should I take next in order to make tea?"
    answers = scored("egoplan", samples, ["C", "A", "C", "D"])  # the letters of the lowest losses
    assert ours(answers) == official(answers) == pytest.approx(2 / 3)


def test_egoplan_takes_a_null_for_an_answer_that_is_not_published(tmp_path: Path):
    record = EGOPLAN | {"golden_choice_idx": None}
    [sample] = questions("egoplan", write_json(tmp_path / "EgoPlan_test.json", [record]))
    assert sample.answer == "" and len(sample.options) == 4


def test_egoplan_in_lmms_evals_words_and_by_its_rule(tmp_path: Path):
    """Right is C each time. Ours: `C` right, `Answer: C` unread, `A cup, so C` unread: 1 / 3. Official: the first
    capital A to D is C, the A of Answer, and A: 1 / 3."""
    samples = questions("egoplan_letters", egoplan(tmp_path))
    answers = scored("egoplan_letters", samples, ["C", "Answer: C", "A cup, so C", "C"])
    assert outcomes(answers) == ["right", "unparsed", "unparsed"]
    assert (ours(answers), official(answers)) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert answers[1].official == 0.0
    assert prompt("egoplan_letters", samples[0]) == (
        "My current task is to make tea. The task's progress is demonstrated in the provided video. My current field "
        "of view is shown in the provided image. What should be my next action? Please output the most reasonable "
        "action you think, expressed in a short phrase.\nA. open tap\nB. take cup\nC. close tap\nD. take "
        "spoon\nAnswer with the option's letter from the given choices"
    )
    gerund = replace(samples[0], columns={"task_goal": "making tea"})
    assert prompt("egoplan_letters", gerund).startswith("I am tasked with making tea. ")


def test_egoplan_with_its_current_observation_as_a_picture(tmp_path: Path):
    """The clip, then the frame at its end, and the question of the authors' model, whose goal is in small letters."""
    record = EGOPLAN | {"sample_id": 1, "task_goal": "Make tea."}
    [sample] = questions("egoplan_frame", write_json(tmp_path / "EgoPlan_validation.json", [record]))
    clip, now = sample.media
    assert now.is_picture and (now.video, now.start_s) == (clip.video, clip.end_s) and not clip.is_picture
    assert prompt("egoplan_frame", sample).startswith(
        "My current task is to make tea. The task's progress is"
    )
    assert prompt("egoplan_frame", sample).endswith("expressed in a short phrase.")
    candidates = BENCHMARKS["egoplan_frame"].candidates
    assert candidates is not None and candidates(sample) == (
        "open tap",
        "take cup",
        "close tap",
        "take spoon",
    )


def test_egoplans_submission_is_a_list_of_whole_numbers_and_letters(tmp_path: Path):
    samples = questions("egoplan_letters", egoplan(tmp_path))
    answers = scored("egoplan_letters", samples, ["C", "no idea", FAILED, "close tap"])
    assert json.loads(submitted("egoplan_letters", answers)["submission.json"]) == [
        {"sample_id": 0, "label": "C"},
        {"sample_id": 1, "label": "N/A"},
        {"sample_id": 2, "label": "N/A"},
        {"sample_id": 3, "label": "C"},
    ]


def test_egoplan_bench2_in_its_own_words(tmp_path: Path):
    """Right is C. Its rule knows the prefix `Answer:`, but not that an article is no letter: official 2 / 3, ours
    1 / 3."""
    uid = "0a1b2c3d-0000-4000-8000-000000000001"
    record = {key: EGOPLAN[key] for key in EGOPLAN.keys() - {"video_source", "video_id", "question"}}
    records = [
        record
        | {"sample_id": f"{uid}_{number}", "domain": "daily", "scenario": "cooking", "task_start_frame": 60}
        for number in range(3)
    ]
    samples = questions("egoplan2", write_json(tmp_path / "EgoPlan-Bench2.json", records))
    answers = scored("egoplan2", samples, ["C", "Answer: C", "A cup, so C"])
    assert (ours(answers), official(answers)) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert prompt("egoplan2", samples[0]) == (
        "\nSelect the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n\nConsidering the progress shown in the video and my current "
        "observation in the last frame, what action should I take next in order to make tea?\n\n"
        "A. open tap\nB. take cup\nC. close tap\nD. take spoon\n"
    )
    assert {samples[0].columns[key] for key in BENCHMARKS["egoplan2"].groups} == {"daily", "cooking"}


def video_mme(folder: Path) -> Path:
    records = [VIDEO_MME | {"question_id": f"001-{number}"} for number in range(1, 4)]
    other = VIDEO_MME | {"question_id": "002-1", "video_id": "002", "videoID": "x"}
    return write_json(folder / "test.json", [*records, other])


def test_video_mmes_official_rule_leaves_out_what_it_cannot_read(tmp_path: Path):
    """Right is B each time. Ours, of 4: `B.` right, the rest unread: 1 / 4. Official, of 3: `B.` and `The answer is B`
    are B, `A knife, so B` is A, and the last has no letter at all: 2 / 3."""
    samples = questions("video_mme", video_mme(tmp_path))
    [said] = scored("video_mme", samples[:1], ["Answer: B"])  # `Answer:` is one of the words that are cut out
    assert said.official == 1.0
    answers = scored("video_mme", samples, ["B.", "The answer is B", "A knife, so B", "a lot"])
    assert outcomes(answers) == ["right", "unparsed", "unparsed", "unparsed"]
    assert [each.official for each in answers] == [1.0, 1.0, 0.0, None]
    assert (ours(answers), official(answers)) == (0.25, pytest.approx(2 / 3))
    assert prompt("video_mme", samples[0]) == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nHow many jars are found?\nA. Four.\nB. Nine.\nC. Five.\n"
        "D. Two.\nThe best answer is:"
    )


def test_video_mmes_results_file_is_that_of_its_template(tmp_path: Path):
    samples = questions("video_mme", video_mme(tmp_path))
    files = submitted("video_mme", scored("video_mme", samples, ["B.", "A", FAILED, "C"]))
    first, second = json.loads(files["video_mme_results.json"])
    assert {key: first[key] for key in first.keys() - {"questions"}} == {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "missing": False,
    }
    assert [each["response"] for each in first["questions"]] == ["B.", "A", ""]
    assert first["questions"][0] == {
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many jars are found?",
        "options": ["A. Four.", "B. Nine.", "C. Five.", "D. Two."],
        "answer": "B",
        "response": "B.",
    }
    assert second["video_id"] == "002" and len(second["questions"]) == 1


def test_hd_epics_official_rule_reads_the_first_capital_letter(tmp_path: Path):
    """Right is D. `D` is right; `The answer is D` is the T of The; `d` has no capital; `I think D` is I."""
    path = WRITERS["hd_epic"](tmp_path, *[HD_EPIC] * 4)
    samples = questions("hd_epic", path)
    answers = scored("hd_epic", samples, ["D", "The answer is D", "d", "I think D"])
    assert [each.official for each in answers] == [1.0, 0.0, 0.0, 0.0]
    assert outcomes(answers) == ["right", "unparsed", "right", "unparsed"]
    assert (ours(answers), official(answers)) == (0.5, 0.25)
    # 00:00:02.900 is a whole second behind 00:00:01.170.
    assert prompt("hd_epic", samples[0]) == (
        "video 1: <video>Question: What happens at 00:01?. Answers: (A) a jar is opened. (B) a jar is closed. (C) the "
        "tap runs. (D) a cup falls. (E) nothing. Correct: "
    )
    wording = official_wording(BENCHMARKS["hd_epic"])
    text = tiny.family().prompt_text(samples[0], ["video"], template="", option="", **wording)
    assert "video 1: <|vision_start|><|video_pad|><|vision_end|>Question: What happens" in text


def test_hd_epics_means_of_prototypes_and_of_categories(tmp_path: Path):
    """Three prototypes of two categories with 1 of 1, 0 of 1 and 1 of 2 right: the mean of the prototypes is
    (1 + 0 + 1/2) / 3, that of the categories (1 of 2 and 1 of 2) 1/2."""
    names = (
        "gaze_gaze_estimation_0",
        "gaze_interaction_anticipation_0",
        "nutrition_nutrition_change_0",
        "nutrition_nutrition_change_1",
    )
    samples = questions("hd_epic", write_json(tmp_path / "all.json", dict.fromkeys(names, HD_EPIC)))
    assert {sample.columns["category"] for sample in samples} == {"gaze", "nutrition"}
    found = metrics("hd_epic", scored("hd_epic", samples, ["D", "A", "D", "A"]))
    assert found == {"mean_of_prototypes": pytest.approx(50.0), "mean_of_categories": 50.0}


def test_egotaskqa_by_lmms_evals_rule(tmp_path: Path):
    """Right is D. `D` and `(D)` are right; `A knife, so D` is A to it; `answer: do d` names the option's text."""
    samples = questions("egotaskqa", write_json(tmp_path / "test.json", [EGOTASKQA] * 4))
    answers = scored("egotaskqa", samples, ["D", "(D)", "A knife, so D", "answer: do d"])
    assert [each.official for each in answers] == [1.0, 1.0, 0.0, 1.0]
    assert outcomes(answers) == ["right", "right", "unparsed", "unparsed"]
    assert prompt("egotaskqa", samples[0]) == (
        "Select the best answer to the following multiple-choice question based on the video.\nWhat is the first "
        "action of the person?\nOptions:\n(A) do A\n(B) do B\n(C) do C\n(D) do D\n(E) do E\n\nAnswer with the "
        "option's letter from the given choices directly and only give the best option. The best answer is: "
    )


def test_hourvideos_tasks_are_averaged(tmp_path: Path):
    """Right is C. A task with 1 of 2 right and one with 1 of 1: micro 2 / 3, mean of tasks 75 %. Official: the first
    character."""
    other = HOURVIDEO | {"qid": "hv_3", "task": "perception/tracking"}
    path = WRITERS["hourvideo"](tmp_path, HOURVIDEO, HOURVIDEO | {"qid": "hv_2"}, other)
    samples = questions("hourvideo", path)
    answers = scored("hourvideo", samples, ["C", "The answer is C", "C. thing 3"])
    assert official(answers) == ours(answers) == pytest.approx(2 / 3)
    assert metrics("hourvideo", answers) == {"mean_of_tasks": 75.0}
    [spaced] = scored("hourvideo", samples[:1], [" C"])
    assert (spaced.official, outcomes([spaced])) == (0.0, ["right"])
    assert prompt("hourvideo", samples[0]) == (
        "Question: What did the camera wearer mainly do?\nAnswers:\nA. thing 1\nB. thing 2\nC. thing 3\nD. thing 4\n"
        "E. thing 5\nAnswer with only the letter of the right option."
    )


def test_the_letter_to_submit_is_read_by_our_rule_and_empty_for_what_failed():
    [answer] = scored("egoschema", [replace(CHOICE, answer="")], ["(B)"])
    assert answer.verdict is None and letter_of(answer) == "B"
    failed = StoredAnswer(sample_id="f/1", index=0, text="B", finish="failed")
    assert letter_of(replace(answer, answer=failed)) == ""
