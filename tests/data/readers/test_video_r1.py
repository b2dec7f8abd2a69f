"""Video-R1's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo.data.fields import without_letters
from grpo.data.readers.video_r1 import read_video_r1
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from tests.support.readers import VIDEO_R1, Record, write_json


def read(folder: Path, **changes: Any) -> list[Sample]:
    return read_video_r1(write_json(folder / "Video-R1-260k.json", [VIDEO_R1 | changes]))


def test_a_record_is_translated(tmp_path: Path) -> None:
    assert read(tmp_path, process="<think>Hm.</think>") == [
        Sample(
            id="Video-R1-260k/2",
            question="What does the hand take?",
            answer="B",
            task="choice",
            source=f"{tmp_path}/Video-R1-260k.json: record 1",
            options=("a cup", "a knife", "a plate"),
            clip_source=ClipSource(video=str(tmp_path / "STAR/one.mp4")),
            columns={"problem_id": 2, "data_source": "STAR", "process": "<think>Hm.</think>"},
        )
    ]


@pytest.mark.parametrize(
    ("problem_type", "task"),
    [("numerical", "number"), ("OCR", "ocr"), ("free-form", "open"), ("open-ended", "open")]
    + [("regression", "regression")],
)
def test_every_problem_type_has_its_task(problem_type: str, task: str, tmp_path: Path) -> None:
    changes = {"problem_type": problem_type, "options": [], "solution": "<answer> 3.14\n</answer>"}
    [sample] = read(tmp_path, **changes)
    assert (sample.task, sample.answer, sample.options) == (task, "3.14", ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_type": "audio"}, "'data_type' must be video or image, not 'audio'"),
        ({"problem_type": "riddle"}, "unknown 'problem_type' 'riddle'; there are multiple choice, "),
        ({"solution": "B"}, "'solution' must be <answer>...</answer>, not 'B'"),
        ({"solution": "<answer> </answer>"}, "'solution' must be <answer>...</answer>"),
        ({"solution": "<answer>D</answer>"}, "answer 'D' is not one of the options A to C"),
        ({"options": []}, "'options' must be a list of 2 to 26 texts, not []"),
        ({"options": ["A. x", "C. y"]}, "of the options only 1 begin with their letters"),
        ({"options": ["A. x", "A. y"]}, "of the options only 1 begin with their letters"),
        ({"options": ["B. x", "C. y", "D. z"]}, "of the options only 2 begin with their letters"),
        ({"options": ["C. x", "A. y", "z"]}, "of the options only 2 begin with their letters"),
        (
            {"problem_type": "temporal grounding"},
            "'answer' must be a span in seconds, such as 3.0-4.5, not 'B'",
        ),
        ({"options": ["A. x", "B."]}, "'options' must be a text that is not empty"),
        ({"options": ["A. x", 3]}, "'options' must be a text that is not empty, not 3"),
        ({"problem": ""}, "'problem' must be a text that is not empty"),
        ({"path": None}, "'path' is missing"),
    ],
)
def test_what_cannot_be_translated_is_refused(changes: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, **changes)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/Video-R1-260k.json: record 1: ") and message in said


def test_options_go_by_their_letters_whatever_their_order(tmp_path: Path) -> None:
    listed = ["D. Repairing a bicycle.", "A. Cooking a meal.", "B. Folding clothes.", "C. Watering plants."]
    [sample] = read(tmp_path, options=listed, solution="<answer>A</answer>")
    assert sample.options == (
        "Cooking a meal.",
        "Folding clothes.",
        "Watering plants.",
        "Repairing a bicycle.",
    )
    assert sample.answer == "A"


@pytest.mark.parametrize(
    "written", ['{"time": [12.3, 25.75]}', "[12.3, 25.75]", "12.3 to 25.75", " 12.30 - 25.75 "]
)
def test_temporal_grounding_asks_for_a_span(written: str, tmp_path: Path) -> None:
    changes = {"problem_type": "temporal grounding", "options": [], "solution": f"<answer>{written}</answer>"}
    [sample] = read(tmp_path, **changes)
    assert (sample.task, sample.answer) == ("span", "12.3-25.75")
    assert sample.question == "What does the hand take? Answer with a span in seconds, such as 3.0-4.5."


def test_only_an_options_own_letter_is_taken_off() -> None:
    assert without_letters(["A. x", "B) y", "(C) z", "D: A. w"]) == ("x", "y", "z", "A. w")
    assert without_letters(["U.S.", "Canada"]) == ("U.S.", "Canada")
    assert without_letters(["apple", "Beer"]) == ("apple", "Beer")
    assert without_letters(["Grant", "A. Lincoln"]) == ("Grant", "A. Lincoln")
