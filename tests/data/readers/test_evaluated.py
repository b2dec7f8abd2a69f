"""VSI-Bench, Video-MME, HD-EPIC, EgoTaskQA and HourVideo."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo.benchmarks.published.hd_epic import prompt as hd_epic_prompt
from grpo.data.readers.egotaskqa import read_egotaskqa
from grpo.data.readers.hd_epic import read_hd_epic
from grpo.data.readers.hourvideo import read_hourvideo
from grpo.data.readers.video_mme import read_video_mme
from grpo.data.readers.vsi_bench import read_vsi_bench
from grpo.media.clip import ClipSource
from tests.support.readers import (
    CLIP_UID,
    EGOTASKQA,
    HD_EPIC,
    HOURVIDEO,
    VIDEO_MME,
    VSI_BENCH,
    WRITERS,
    Record,
    write_json,
)


def test_vsi_benchs_table_has_choices_and_numbers(tmp_path: Path):
    """Its published file is a table, in which a question without options has a null for them."""
    counted = VSI_BENCH | {
        "id": 4,
        "question_type": "object_counting",
        "ground_truth": "6",
        "options": None,
    }
    path = tmp_path / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist([VSI_BENCH, counted]), path)
    chosen, number = read_vsi_bench(path, "/m")
    assert (chosen.id, chosen.task, chosen.answer) == ("test-00000-of-00001/3", "choice", "B")
    assert chosen.options == ("lamp", "chair", "door")
    assert chosen.clip_source == ClipSource(video="/m/scannet/scene0011_00.mp4")
    assert (number.task, number.answer, number.options) == ("regression", "6", ())
    assert number.columns == {
        "id": 4,
        "dataset": "scannet",
        "scene_name": "scene0011_00",
        "question_type": "object_counting",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ground_truth": "D"}, "answer 'D' is not one of the options A to C"),
        ({"options": None}, "'ground_truth' must be a number without options, not 'B'"),
        ({"options": ["lamp"]}, r"'options' must be a list of 2 to 26 texts"),
    ],
)
def test_what_vsi_bench_cannot_mean_is_refused(changes: Record, message: str, tmp_path: Path):
    path = write_json(tmp_path / "test.json", [VSI_BENCH | changes])
    with pytest.raises(ValueError, match=f"record 1: {message}"):
        read_vsi_bench(path)


def test_video_mmes_record_is_translated(tmp_path: Path):
    [sample] = read_video_mme(write_json(tmp_path / "test.json", [VIDEO_MME]), "/m")
    assert (sample.id, sample.answer, sample.options) == (
        "test/001-1",
        "B",
        ("Four.", "Nine.", "Five.", "Two."),
    )
    assert sample.clip_source == ClipSource(video="/m/fFjv93ACGo8.mp4")
    assert {"duration", "domain", "sub_category", "task_type", "video_id"} < sample.columns.keys()


def hd_epic(tmp_path: Path, **changes: Any):
    return read_hd_epic(WRITERS["hd_epic"](tmp_path, HD_EPIC | changes), "/m")


def test_hd_epics_times_and_boxes_are_those_of_the_clip(tmp_path: Path):
    """00:01:50.900 - 00:01:19.170 is 110 - 79 = 31 whole seconds; a box is in pixels of 1408:
    100.5 / 1408 * 1000 = 71.4, 20 / 1408 * 1000 = 14.2, 704 / 1408 * 1000 = 500.
    """
    clip = {"id": "P01-20240203-123350", "start_time": "00:01:19.170", "end_time": "01:20:21.250"}
    question = "What is at <TIME 00:01:50.900 video 1> in <BBOX 100.5 20 1408 704.0>?"
    later = ["at <TIME 01:12:00.100 video 1>", "at <TIME 01:21:20.000 video 1>", "a", "b", "c"]
    [sample] = hd_epic(tmp_path, inputs={"video 1": clip}, question=question, choices=later)
    assert sample.question == "What is at 00:31 in (71, 14, 1000, 500)?"
    assert sample.options[:2] == ("at 01:10:41", "at 01:20:01")
    assert sample.clip_source == ClipSource(
        video="/m/P01/P01-20240203-123350.mp4", start_s=79.17, end_s=4821.25
    )
    assert sample.columns["prototype"] == "fine_grained_how_recognition"
    assert sample.answer == "D"


def test_hd_epics_published_spellings_are_read(tmp_path: Path):
    """Times as `3d_perception_object_contents_retrieval.json` has them, and lists of `ingredient_ingredients_order`."""
    orders = [["coffee", "whole milk"], ["whole milk", "coffee"], ["a"], ["b"], ["c"]]
    whole = {"video 1": {"id": "P01-20240202-195538"}}
    question = "What did I put at <TIME 00:05:3.633 video 1>?"
    [sample] = hd_epic(tmp_path, inputs=whole, question=question, choices=orders)
    assert sample.question == "What did I put at 05:03?"
    assert sample.options[0] == "['coffee', 'whole milk']"


def test_hd_epics_whole_video_and_picture(tmp_path: Path):
    [whole] = hd_epic(tmp_path, inputs={"video 1": {"id": "P05-1"}})
    assert whole.clip_source == ClipSource(video="/m/P05/P05-1.mp4")
    [picture] = hd_epic(tmp_path, inputs={"image 1": {"id": "P05-1", "time": "00:00:07.500"}})
    assert picture.clip_source == ClipSource(video="/m/P05/P05-1.mp4", start_s=7.5, end_s=8.5)


def test_hd_epics_several_inputs_stand_behind_their_names_with_times_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """00:00:12 in a video from 00:00:10 on is 2 s, and in one from its start 12 s."""
    late = {"id": "P05-1", "start_time": "00:00:10.000", "end_time": "00:00:20.000"}
    inputs = {"video 1": {"id": "P05-2"}, "video 2": late}
    question = "At <TIME 00:00:12.000 video 1> or <TIME 00:00:12.000 video 2>?"
    [sample] = hd_epic(tmp_path, inputs=inputs, question=question)
    assert sample.question == "video 1: <video>video 2: <video>At 00:12 or 00:02?"
    assert sample.media == (
        ClipSource(video="/m/P05/P05-2.mp4"),
        ClipSource(video="/m/P05/P05-1.mp4", start_s=10, end_s=20),
    )
    assert hd_epic_prompt(sample).startswith("video 1: <video>video 2: <video>Question: At 00:12 or 00:02?.")
    with pytest.raises(ValueError, match="a time is of 'video 3', and 'inputs' has video 1, video 2"):
        hd_epic(tmp_path, inputs=inputs, question="At <TIME 00:00:12.000 video 3>?")
    many = HD_EPIC | {"inputs": {f"video {number}": {"id": "P05-1"} for number in range(1, 34)}}
    path = WRITERS["hd_epic"](tmp_path, HD_EPIC, many)
    with caplog.at_level(logging.WARNING):
        assert len(read_hd_epic(path)) == 1
    left_out = (
        "questions about more than 32 videos or pictures are left out: 1, e.g. fine_grained_how_recognition_1"
    )
    assert left_out in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct_idx": 5}, "'correct_idx' must be 0 to 4, not 5"),
        ({"correct_idx": True}, "'correct_idx' must be 0 to 4, not True"),
        ({"inputs": {}}, "'inputs' must be an object of videos, not {}"),
        ({"choices": [[], ["a"]]}, r"'choices' must be a text that is not empty, not \[\]"),
        (
            {"inputs": {"video 1": {"id": "P05-1", "start_time": "1:2", "end_time": "00:00:02.0"}}},
            "a time is HH:MM:SS.fff, not '1:2'",
        ),
        (
            {"inputs": {"video 1": {"id": "P05-1", "start_time": "00:00:02.0", "end_time": "00:00:02.0"}}},
            r"'end_time' \(2\) must lie behind 'start_time' \(2\)",
        ),
    ],
)
def test_what_hd_epic_cannot_mean_is_refused(changes: Record, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"record 1: {message}"):
        hd_epic(tmp_path, **changes)


def test_egotaskqas_options_are_in_the_order_of_their_letters(tmp_path: Path):
    turned = {letter: EGOTASKQA["option"][letter] for letter in "EDCBA"}
    [sample] = read_egotaskqa(write_json(tmp_path / "test.json", [EGOTASKQA | {"option": turned}]), "/m")
    assert (sample.options, sample.answer) == (tuple(f"do {letter}" for letter in "ABCDE"), "D")
    assert sample.clip_source == ClipSource(video="/m/qa_videos/one.mp4")
    path = write_json(tmp_path / "test.json", [EGOTASKQA | {"option": {"A": "x", "C": "y"}}])
    with pytest.raises(ValueError, match="record 1: 'option' must be an object with the keys A, B and so on"):
        read_egotaskqa(path)


def test_hourvideos_prediction_ends_where_the_future_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """01:02:03 is 3600 + 120 + 3 s."""
    future = HOURVIDEO | {
        "qid": "hv_2",
        "task": "reasoning/predictive",
        "relevant_timestamps": "01:02:03 - 01:05:00",
    }
    pictures = HOURVIDEO | {"qid": "hv_3", "task": "reasoning/spatial/layout", "answer_1": "images/a.jpg"}
    path = WRITERS["hourvideo"](tmp_path, HOURVIDEO, future, pictures)
    with caplog.at_level(logging.WARNING):
        whole, cut = read_hourvideo(path, "/m")
    assert whole.clip_source == ClipSource(video=f"/m/{CLIP_UID}.mp4")
    assert cut.clip_source == ClipSource(video=f"/m/{CLIP_UID}.mp4", end_s=3723.0)
    assert (whole.answer, whole.options[2]) == ("C", "thing 3")
    assert "questions whose options are pictures are left out: 1, e.g. hv_3" in caplog.text
    assert json.loads(path.read_text())[CLIP_UID]["video_metadata"] == {}
