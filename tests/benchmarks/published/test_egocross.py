"""EgoCross with options and with open answers, from a made-up file in the form of the published one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.benchmarks import BENCHMARKS
from tests.support.benchmarks import FAILED, official, ours, outcomes, prompt, questions, scored, submitted
from tests.support.readers import EGOCROSS, Record, write_json

EXAMPLE = '{\n    "prediction": "B",\n    "reason": "Paris is the capital city of France."\n}\n'


def frames(*names: str, folder: str = "EgoPet/generated/8/frames/ai_q1") -> list[str]:
    return [f"/egocross_testbed/{folder}/{name}" for name in names]


def egocross(folder: Path, *changes: Record, name: str = "egocross_testbed_answers.json") -> Path:
    records = [
        {**EGOCROSS, "id": number, "question_id": f"q{number}", **change}
        for number, change in enumerate(changes, start=1)
    ]
    return write_json(folder / name, records)


def test_the_closed_prompt_is_the_official_one_with_what_it_forgot(tmp_path: Path):
    """There is nothing between the last option and the rates, nor between these and the instruction; the rate is 1 for
    the .png frames of CholecTrack20 alone."""
    surgery = {"dataset": "CholecTrack20", "original_video_fps": 25.0}
    path = egocross(
        tmp_path,
        {},
        {**surgery, "video_path": frames("1.png", folder="a")},
        {**surgery, "video_path": frames("1.jpg", folder="b")},
    )
    animal, dense, sparse = questions("egocross", path)
    assert prompt("egocross", animal) == (
        "Please carefully read the question and its options, then select the most appropriate answer. Question: What "
        "animal wears the camera?\n\nOptions:\nA: Cat\nB: Dog\nC: Turtle\nD: CatThe original FPS of the video is 30.0. "
        "This image set is obtained by sampling at 0.5 fps.Respond in JSON format with two fields: 'prediction' (the "
        "correct option letter: A, B, C, or D) and 'reason' (a brief explanation of your choice). Do not include any "
        "other content.\n\nExample response:\n" + EXAMPLE
    )
    assert "video is 25.0. This image set is obtained by sampling at 1.0 fps." in prompt("egocross", dense)
    assert "obtained by sampling at 0.5 fps." in prompt("egocross", sparse)


def test_the_micro_average_and_the_domains(tmp_path: Path):
    """Right is B each time. Ours: two of five, since `B.` and `B: Dog` name the option and the rest can't be read or is
    wrong. Official: the letter alone counts, so 1 of 5. By domain: 1 of 2 animals, 1 of 2 in surgery, 0 of 1."""
    path = egocross(
        tmp_path,
        {},
        {},
        {"dataset": "CholecTrack20"},
        {"dataset": "EgoSurgery"},
        {"dataset": "ENIGMA", "primary_category": "Counting", "question_type": "object counting"},
    )
    samples = questions("egocross", path)
    said = [
        '{"prediction": "b", "reason": "it barks"}',
        '{"prediction": "A", "reason": "B it is not"}',
        '```json\n{"prediction": "B: Dog", "reason": ""}\n```',
        "The answer is B.",
        '{"prediction": "C"}',
    ]
    answers = scored("egocross", samples, said)
    assert outcomes(answers) == ["right", "wrong", "right", "unparsed", "wrong"]
    assert (ours(answers), official(answers)) == (pytest.approx(2 / 5), pytest.approx(1 / 5))
    assert [sample.columns["domain"] for sample in samples] == [
        "Animal",
        "Animal",
        "Surgery",
        "Surgery",
        "Industry",
    ]
    assert BENCHMARKS["egocross"].groups == ("domain", "primary_category", "question_type")
    assert samples[4].columns["primary_category"] == "Counting"


@pytest.mark.parametrize(
    ("text", "published", "strict"),
    [
        ('{"prediction": "B", "reason": "x"}', 1.0, "right"),
        ('Sure: {"prediction": "B", "reason": "x"}', 1.0, "right"),
        ("B", 0.0, "right"),  # no JSON
        ('{"prediction": "B."}', 0.0, "right"),
        ('Sure: {"prediction": "B", "reason": "a {brace}"}', 0.0, "right"),  # cut at the first }
        ('{"prediction": 2}', 0.0, "unparsed"),
        ('{"prediction": "A"} no, {"prediction": "B"}', 0.0, "unparsed"),
        ('{"prediction": "B"', 0.0, "unparsed"),
        ("[" * 100_000, 0.0, "unparsed"),
    ],
)
def test_the_official_parser_with_its_mistakes(text: str, published: float, strict: str, tmp_path: Path):
    [answer] = scored("egocross", questions("egocross", egocross(tmp_path, {})), [text])
    assert answer.official == published
    assert outcomes([answer]) == [strict]


def test_the_test_set_without_answers_is_asked_and_submitted(tmp_path: Path):
    """A JSON list of the ids and datasets with a letter each, which is empty where none was given."""
    unknown = ("correct_option_letter", "answer_text", "detailed_answer", "question_id")
    published = [
        {key: value for key, value in {**EGOCROSS, "id": number}.items() if key not in unknown}
        for number in (1, 2, 3)
    ]
    published[2] |= {"correct_option_letter": None}
    samples = questions("egocross", write_json(tmp_path / "egocross_testbed_imgs.json", published))
    assert [sample.answer for sample in samples] == ["", "", ""]
    answers = scored("egocross", samples, ['{"prediction": "C", "reason": ""}', "hm", FAILED])
    assert [each.verdict for each in answers] == [None, None, None]
    assert json.loads(submitted("egocross", answers)["submission.json"]) == [
        {"id": 1, "dataset": "EgoPet", "answer": "C"},
        {"id": 2, "dataset": "EgoPet", "answer": ""},
        {"id": 3, "dataset": "EgoPet", "answer": ""},
    ]


def test_open_answers_succeed_at_mark_4(tmp_path: Path):
    """The judge gives 4, 3 and nothing; the fourth is unreadable. Ours: 1 of 4. Official: the answer "2" stands in
    "12", which needs no judge, so 2 of 4; without a mark it is wrong."""
    path = egocross(tmp_path, {"answer_text": "Dog"}, {"answer_text": "2"}, {}, {})
    samples = questions("egocross_open", path)
    said = [
        '{"prediction": "a puppy", "reason": ""}',
        '{"prediction": "12", "reason": ""}',
        '{"prediction": "a fish", "reason": ""}',
        '{"prediction": ',
    ]
    answers = scored("egocross_open", samples, said, marks={"a puppy": 4 / 5, "12": 3 / 5})
    assert outcomes(answers) == ["right", "wrong", "unjudged", "unparsed"]
    assert (ours(answers), official(answers)) == (0.25, 0.5)
    assert [each.official for each in answers] == [1.0, 1.0, 0.0, 0.0]


def test_the_open_prompt_is_the_official_one(tmp_path: Path):
    [sample] = questions("egocross_open", egocross(tmp_path, {}))
    assert prompt("egocross_open", sample) == (
        "Please carefully read the question and the provided context, then provide a clear and concise answer based "
        "on your understanding. Question: What animal wears the camera?\nThe original FPS of the video is 30.0. This "
        "image set is obtained by sampling at 0.5 fps.Your answer should be reasoned and directly address the "
        "question. Respond in JSON format with two fields: 'prediction' (your answer as text) and 'reason' (a brief "
        "explanation of your reasoning). Do not include any other content.\n\nExample response:\n{\n    "
        '"prediction": "The time duration of the video is 10 seconds.",\n    "reason": "The total number of frames '
        'is 240 and the frame rate is 24 FPS, so 240 / 24 = 10 seconds."\n}\n'
    )
