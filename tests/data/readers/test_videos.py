"""NExT-QA's CSV, Charades-STA and Time-R1, EgoLife's clock, and EgoThink."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.data import READERS
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from tests.support.clips import video_of
from tests.support.readers import (
    CHARADES,
    EGOLIFE,
    EGOTHINK,
    NEXTQA,
    Record,
    touch,
    write_json,
    write_nextqa,
    write_parquet,
)

QUESTION = (
    'When does the video show "a person puts a book down"? Answer with a span in seconds, such as 3.0-4.5.'
)


def test_nextqas_row_is_a_choice_about_a_vidor_video(tmp_path: Path) -> None:
    path = write_nextqa(tmp_path, NEXTQA)
    assert READERS["nextqa"](str(path), "/NExTVideo") == [
        Sample(
            id="val/4010069381_6",
            question="what does the dog do",
            answer="C",
            task="choice",
            source=f"{path}: record 1",
            options=tuple(f"it does {number}" for number in range(5)),
            clip_source=ClipSource(video="/NExTVideo/1164/4010069381.mp4"),
            columns={"video": "4010069381", "frame_count": "369", "qid": "6", "type": "CW"},
        )
    ]


def test_nextqa_may_be_open_a_table_or_without_the_map(tmp_path: Path) -> None:
    for record, answer in (
        (NEXTQA, "C"),
        (NEXTQA | {"answer": "it does 4"}, "E"),  # as NExT-GQA's
        (
            {key: NEXTQA[key] for key in ("video", "question", "qid", "type")} | {"answer": "it barks"},
            "it barks",
        ),
        ({"video_id" if key == "video" else key: value for key, value in NEXTQA.items()}, "C"),
    ):
        for path in (write_nextqa(tmp_path / "csv", record), write_parquet(tmp_path / "table", record)):
            (path.parent / "map_vid_vidorID.json").unlink(missing_ok=True)
            [sample] = READERS["nextqa"](str(path), None)
            assert (sample.answer, sample.task) == (answer, "choice" if sample.options else "open")
            assert video_of(sample) == str(path.parent / "4010069381.mp4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 5}, "answer '5' is neither 0 to 4 nor the text of an option"),
        ({"answer": ""}, "'answer' must be a text that is not empty"),
        ({"a3": ""}, "'a0 to a4' must be a text that is not empty"),
        ({"video": 7}, "'7' is missing"),
    ],
)
def test_what_nextqa_cannot_mean_is_refused(changes: Record, message: str, tmp_path: Path) -> None:
    path = write_nextqa(tmp_path, NEXTQA | changes)
    with pytest.raises(ValueError, match=f"^{path}: record 1: {message}"):
        READERS["nextqa"](str(path), None)


def test_charades_and_time_r1_ask_for_the_same_spans(tmp_path: Path) -> None:
    other = {
        "duration": 33.7,
        "timestamps": [[2.5, 6.9], [7, 12.3]],
        "sentences": [*CHARADES["sentences"], "x"],
    }
    one = {
        "video": "AO8RW",
        "timestamp": [2.5, 6.9],
        "sentence": "a person puts a book down.",
        "duration": 33.7,
    }
    for name, content, number in (
        ("a.txt", "AO8RW 2.5 6.9##a person puts a book down.\r\nB 0.0 3##she smiles.\n", 2),
        ("b.json", json.dumps({"AO8RW": other}), 2),
        ("c.json", json.dumps([one]), 1),
        ("d.jsonl", json.dumps(one | {"video": "AO8RW.mp4"}), 1),
    ):
        first, *more = READERS["charades_sta"](str(write_json(tmp_path / name, content)), None)
        assert (first.question, first.answer, first.task) == (QUESTION, "2.5-6.9", "span")
        assert (first.keyframes_s, len(more)) == (((2.5, 6.9),), number - 1)
        assert video_of(first) == str(tmp_path / "AO8RW.mp4")
    assert first.columns == {"video": "AO8RW.mp4", "duration": 33.7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("AO8RW 2.5##a person", ":1: a line is `name start end##sentence`, not 'AO8RW 2.5##a person'"),
        (
            "A 2.5 2.5##a person",
            ":1: 'answer' must be a span in seconds, such as 3.0-4.5, not \\[2.5, 2.5\\]",
        ),
    ],
)
def test_a_line_of_charades_that_is_none_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.txt", content)
    with pytest.raises(ValueError, match=f"^{path}{message}"):
        READERS["charades_sta"](str(path), None)


def test_charades_span_may_have_its_end_first_and_its_video_another_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "B.webm").touch()
    path = write_json(tmp_path / "a.txt", "A 6.9 2.5 ##she smiles.\nB  0.0 3##he sits.\n")
    first, second = READERS["charades_sta"](str(path), None)
    assert (first.answer, first.keyframes_s) == ("2.5-6.9", ((2.5, 6.9),))
    assert [video_of(each) for each in (first, second)] == [f"{tmp_path}/A.mp4", f"{tmp_path}/B.webm"]
    assert f"spans whose end stands first are turned round: 1, e.g. {path}:1" in caplog.text


def test_time_r1s_lists_must_be_as_long_as_each_other(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"A": CHARADES | {"timestamps": []}})
    with pytest.raises(
        ValueError, match=f"^{path}: record 1: 'timestamps' must be a list with a span for each"
    ):
        READERS["charades_sta"](str(path), None)


def egolife(folder: Path, *changes: Record, name: str = "EgoLifeQA_A1_JAKE.json") -> list[Sample]:
    for clock in ("11143000", "11150010", "11153002"):
        touch(folder / f"A1_JAKE/DAY1/DAY1_A1_JAKE_{clock}.mp4")
    records = [EGOLIFE | {"ID": str(number)} | change for number, change in enumerate(changes)]
    return READERS["egolife"](str(write_json(folder / name, records)), None)


def test_egolifes_clip_is_the_file_that_shows_the_moment(tmp_path: Path) -> None:
    """11:15:24 and 8 frames of 20 per second is 23.9 s behind 11:15:00 and 10 frames."""
    [sample] = egolife(tmp_path, {})
    assert video_of(sample) == str(tmp_path / "A1_JAKE/DAY1/DAY1_A1_JAKE_11150010.mp4")
    assert sample.keyframes_s == ((pytest.approx(23.9), pytest.approx(23.9)),)
    assert (sample.answer, sample.options) == ("B", ("Person a", "Person b", "Person c", "Person d"))
    assert sample.columns["query_time"] == EGOLIFE["query_time"]
    [named] = egolife(tmp_path, {"identity": "A1_JAKE"}, name="merged.json")
    assert named.clip_source == sample.clip_source


def test_egolifes_questions_about_several_moments_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several: list[dict[str, Any]] = [
        {"date": "DAY1", "time_list": ["11152408", "11153008"]},
        {"date": "DAY1", "time": "11152408DAY2_11153008"},
    ]
    samples = egolife(tmp_path, {}, *({"target_time": each} for each in several))
    assert [sample.id for sample in samples] == ["EgoLifeQA_A1_JAKE/0"]
    assert "questions about several moments are left out: 2, e.g. 1" in caplog.text


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"date": "DAY2", "time": "11152408"}, "no such folder of videos: .*A1_JAKE/DAY2"),
        ({"date": "DAY1", "time": "11142900"}, "no file in .*A1_JAKE/DAY1 shows 11142900"),
        ({"date": "DAY1", "time": "11160200"}, "no file in .*A1_JAKE/DAY1 shows 11160200"),
        ({"date": "../..", "time": "11160200"}, "'A1_JAKE/../..' leads out of the media root"),
    ],
)
def test_a_moment_that_no_file_shows_is_named(target: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"record 1: {message}"):
        egolife(tmp_path, {"target_time": target})


def test_egolife_has_to_know_who_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="record 1: whose videos.* 'identity' is missing"):
        egolife(tmp_path, {}, name="qa.json")


def test_egothinks_tasks_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for task in ("Activity", "Forecast"):
        path = write_json(tmp_path / task / "annotations.json", [EGOTHINK])
        [sample] = READERS["egothink"](str(path), None)
        picture = str(tmp_path / task / "images/1.jpg")
        assert (sample.id, sample.clip_source) == (f"{task}/1", ClipSource(frames=(picture,)))
        assert (sample.task, sample.answer, sample.question) == ("open", "A brush.", "What am I holding?")
    path = write_json(path, [EGOTHINK | {"image_path": ["1.jpg", "2.jpg"]}])
    with pytest.raises(ValueError, match="record 1: 'image_path' must be a list of one picture"):
        READERS["egothink"](str(path), None)
