"""EgoPlan, QaEgo4D and Ego4D's natural language queries: annotated spans become key moments."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.data.readers.ego4d_nlq import QUESTION, read_ego4d_nlq
from grpo.data.readers.egoplan import read_egoplan, read_egoplan_frame
from grpo.data.readers.qaego4d import read_qaego4d
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from rewards.parsing import read_span
from tests.support.clips import source_of
from tests.support.readers import CLIP_UID, EGOPLAN, NLQ_QUERY, QAEGO4D, Record, nlq, write_json

EGOPLAN_IT: Record = {
    **{
        key: EGOPLAN[key]
        for key in ("sample_id", "video_source", "video_id", "task_goal", "question", "answer")
    },
    "current_observation_frame": 900,
    "task_progress_metadata": EGOPLAN["task_progress_metadata"],
    "negative_answers": ["open tap", "take cup", "open tap", "close tap", "wash cup", "dry cup"],
}
EGOPLAN2: Record = {
    "sample_id": f"{CLIP_UID}_2",
    "domain": "Hobbies",
    "scenario": "baking",
    "task_goal": "bake bread",
    **{f"choice_{letter}": f"{letter} oven" for letter in "abcd"},
    "golden_choice_idx": "A",
    "answer": "a oven",
    "task_start_frame": 30,
    "current_observation_frame": 660,
    "task_progress_metadata": [{"narration_text": "open oven", "start_frame": 60, "stop_frame": 90}],
}


def egoplan(folder: Path, record: Record, **changes: Any) -> Sample:
    [sample] = read_egoplan(write_json(folder / "EgoPlan_validation.json", [record | changes]))
    return sample


def test_egoplans_clip_ends_with_the_current_observation(tmp_path: Path) -> None:
    assert egoplan(tmp_path, EGOPLAN) == Sample(
        id="EgoPlan_validation/115",
        question="What action should I take next in order to make tea?",
        answer="C",
        task="choice",
        source=f"{tmp_path}/EgoPlan_validation.json: record 1",
        options=("open tap", "take cup", "close tap", "take spoon"),
        clip_source=ClipSource(
            video=str(tmp_path / "EPIC-KITCHENS/P01/videos/P01_13.MP4"),
            start_s=2.0,  # frame 120 at 60 per second
            end_s=15.0,
        ),
        # 120..240 and 300..930, the latter up to the observation; what starts at it (900..960) is the future.
        keyframes_s=((0.0, 2.0), (3.0, 13.0)),
        columns={
            key: EGOPLAN[key]
            for key in (
                "sample_id",
                "video_source",
                "video_id",
                "task_goal",
                "current_observation_frame",
                "task_progress_metadata",
            )
        },
    )


def test_frames_are_counted_as_each_source_takes_them(tmp_path: Path) -> None:
    extension = egoplan(tmp_path, EGOPLAN, video_id="P07_113")
    assert extension.clip_source == ClipSource(  # at 50 per second
        video=str(tmp_path / "EPIC-KITCHENS/P07/videos/P07_113.MP4"), start_s=2.4, end_s=18.0
    )
    ego4d = egoplan(tmp_path, EGOPLAN, video_source="Ego4D", video_id=CLIP_UID)
    assert ego4d.clip_source == ClipSource(
        video=str(tmp_path / f"Ego4D/v1_288p/{CLIP_UID}.mp4"), start_s=4.0, end_s=30.0
    )


SEED_BENCH: Record = EGOPLAN | {
    "video_basename": "P01_13_1.mp4",
    "current_observation_basename": "P01_13_1.png",
}


def test_seed_benchs_clip_is_its_own_file_without_key_moments(tmp_path: Path) -> None:
    sample = egoplan(tmp_path, SEED_BENCH)
    assert sample.clip_source == ClipSource(video=str(tmp_path / "videos/EpicKitchens/P01_13_1.mp4"))
    assert (sample.answer, sample.keyframes_s) == ("C", ())
    assert sample.columns["current_observation_basename"] == "P01_13_1.png"


def test_with_nothing_done_before_it_seed_benchs_clip_is_the_observation(tmp_path: Path) -> None:
    sample = egoplan(tmp_path, SEED_BENCH, task_progress_metadata=[])
    assert sample.clip_source == ClipSource(frames=(str(tmp_path / "images/EpicKitchens/P01_13_1.png"),))


def test_the_current_observation_is_a_picture_of_its_own_where_that_is_asked_for(tmp_path: Path) -> None:
    """Of a clip its last frame, and of SEED-Bench-R1 the picture that comes with it."""

    def read(record: Record) -> Sample:
        [sample] = read_egoplan_frame(write_json(tmp_path / "EgoPlan_validation.json", [record]))
        return sample

    plain, sample = egoplan(tmp_path, EGOPLAN), read(EGOPLAN)
    clip_source = source_of(plain)
    assert sample.media == (clip_source, replace(clip_source, start_s=15.0, end_s=15.0))
    assert sample.media[1].is_picture and replace(sample, media=()) == plain
    picture = ClipSource(frames=(str(tmp_path / "images/EpicKitchens/P01_13_1.png"),))
    assert read(SEED_BENCH).media == (source_of(egoplan(tmp_path, SEED_BENCH)), picture)
    alone = read(SEED_BENCH | {"task_progress_metadata": []})
    assert (alone.clip_source, alone.media) == (picture, ())


def test_egoplan2_asks_for_its_goal_from_the_tasks_start(tmp_path: Path) -> None:
    sample = egoplan(tmp_path, EGOPLAN2)
    assert sample.question.endswith("what action should I take next in order to bake bread?")
    assert sample.clip_source == ClipSource(
        video=str(tmp_path / f"Ego4D/v1_288p/{CLIP_UID}.mp4"), start_s=1.0, end_s=22.0
    )
    assert sample.keyframes_s == ((1.0, 2.0),)


def test_with_nothing_done_before_it_the_clip_is_the_last_second(tmp_path: Path) -> None:
    sample = egoplan(tmp_path, EGOPLAN, task_progress_metadata=[])
    assert (source_of(sample).start_s, source_of(sample).end_s, sample.keyframes_s) == (14.0, 15.0, ())
    sample = egoplan(tmp_path, EGOPLAN, task_progress_metadata=[], current_observation_frame=30)
    assert source_of(sample).start_s == 0


def test_negative_answers_become_options_in_an_order_that_the_id_decides(tmp_path: Path) -> None:
    samples = [egoplan(tmp_path, EGOPLAN_IT, sample_id=number) for number in range(200)]
    for sample in samples:
        assert len(sample.options) == len(set(sample.options)) == 4
        assert sample.options["ABCD".index(sample.answer)] == "close tap"
    assert {sample.answer for sample in samples} == set("ABCD")
    assert {option for sample in samples for option in sample.options} == {*EGOPLAN_IT["negative_answers"]}
    again = egoplan(tmp_path, EGOPLAN_IT, sample_id=7)
    assert (again.options, again.answer) == (samples[7].options, samples[7].answer)
    # The order itself: another process, or another Python, has to find the same.
    assert samples[0].options == ("wash cup", "take cup", "close tap", "open tap")


def test_few_negative_answers_make_few_options(tmp_path: Path) -> None:
    sample = egoplan(tmp_path, EGOPLAN_IT, negative_answers=["open tap", "close tap"])
    assert set(sample.options) == {"open tap", "close tap"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden_choice_idx": "E"}, "answer 'E' is not one of the options A to D"),
        ({"golden_choice_idx": None}, "'golden_choice_idx' is missing"),  # the test set's are not published
        ({"choice_c": None}, "'choice_a to choice_d' must be a text that is not empty, not None"),
        ({"negative_answers": []}, "'negative_answers' has none that differs from the answer 'close tap'"),
        ({"negative_answers": "x"}, "'negative_answers' must be a list of texts, not 'x'"),
        ({"negative_answers": [1]}, "'negative_answers' must be a text that is not empty, not 1"),
        (
            {"video_source": None},
            "'video_source' is missing: does 'P01_13' belong to 'Ego4D' or to 'EpicKitchens'?",
        ),
        ({"video_source": None, "video_basename": "P01_13_1.mp4"}, "'video_source' is missing"),
        ({"video_basename": "../../../x.mp4"}, "leads out of the media root"),
        ({"video_source": "YouTube"}, "no video 'P01_13' of the 'video_source' 'YouTube' is known"),
        ({"video_id": "kitchen"}, "no video 'kitchen' of the 'video_source' 'EpicKitchens' is known"),
        (
            {"current_observation_frame": "900"},
            "'current_observation_frame' must be a number, 0 or more, not '900'",
        ),
        (
            {"current_observation_frame": 0},
            "'current_observation_frame' (0) must lie behind \"task's start\" (0)",
        ),
        ({"task_progress_metadata": {}}, "'task_progress_metadata' must be a list of objects, not {}"),
        ({"task_progress_metadata": [{"start_frame": 5}]}, "'stop_frame' is missing"),
        (
            {"task_progress_metadata": [{"start_frame": 60, "stop_frame": 30}]},
            "1 to 0.5 s ends before it starts",
        ),
        ({"sample_id": None}, "'sample_id' is missing"),
    ],
)
def test_what_egoplan_cannot_mean_is_refused(changes: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        egoplan(tmp_path, EGOPLAN, **changes)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/EgoPlan_validation.json: record 1: ") and message in said


def test_qaego4ds_moment_is_a_key_moment(tmp_path: Path) -> None:
    path = write_json(tmp_path / "annotations.train.json", [QAEGO4D])
    assert read_qaego4d(path, "/clips") == [
        Sample(
            id="annotations.train/5e6f-one_3",
            question="Where did I leave my keys?",
            answer="on the table",
            task="open",
            source=f"{path}: record 1",
            clip_source=ClipSource(video=f"/clips/{CLIP_UID}.mp4"),
            keyframes_s=((1.5, 2.0),),
            columns={"video_id": CLIP_UID, "sample_id": "5e6f-one_3"},
        )
    ]


def test_a_moment_that_ends_before_it_starts_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "annotations.train.json", [QAEGO4D | {"moment_end_frame": 15}])
    with pytest.raises(
        ValueError, match=r"record 1: 'moment_start_frame': 1.5 to 0.5 s ends before it starts"
    ):
        read_qaego4d(path)


def test_a_querys_span_is_answer_and_key_moment(tmp_path: Path) -> None:
    path = write_json(tmp_path / "nlq_train.json", nlq(NLQ_QUERY))
    [sample] = read_ego4d_nlq(path, "/clips")
    assert sample == Sample(
        id="nlq_train/9f8e-one_0",
        question=QUESTION.format(query="Where was the pan?"),
        answer="2.500-13.666",
        task="span",
        source=f"{path}: record 1",
        clip_source=ClipSource(video=f"/clips/{CLIP_UID}.mp4"),
        keyframes_s=((2.5, 13.6657),),
        columns={key: NLQ_QUERY[key] for key in ("video_start_sec", "video_end_sec", "template", "query")},
    )
    assert read_span(sample.answer) == (2.5, 13.666)


def test_entries_that_ask_for_nothing_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_length = NLQ_QUERY | {"clip_end_sec": 2.5}
    no_query = {key: value for key, value in NLQ_QUERY.items() if key != "query"}
    path = write_json(
        tmp_path / "nlq_train.json", nlq(no_query, NLQ_QUERY, NLQ_QUERY | {"query": ""}, no_length)
    )
    with caplog.at_level(logging.INFO):
        assert [sample.id for sample in read_ego4d_nlq(path)] == ["nlq_train/9f8e-one_1"]
    assert "entries that are no questions are left out: 3, e.g. 9f8e-one_0" in caplog.text


def test_a_wrong_query_is_named(tmp_path: Path) -> None:
    for query, message in (
        (NLQ_QUERY | {"clip_end_sec": 1}, "'clip_start_sec': 2.5 to 1 s ends before it starts"),
        (NLQ_QUERY | {"clip_end_sec": "43"}, "'clip_end_sec' must be in seconds, 0 or more, not '43'"),
        ({"query": "Where?"}, "'clip_start_sec' is missing"),  # the test set's spans are not published
    ):
        path = write_json(tmp_path / "nlq_train.json", nlq(NLQ_QUERY, query))
        with pytest.raises(ValueError, match=rf"^{path}: record 1: query 9f8e-one_1: {message}$"):
            read_ego4d_nlq(path)
