"""EgoSchema, EgoCross, OpenEQA and EgoTempo."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from grpo.data import READERS
from grpo.data.readers.egocross import read_egocross, read_egocross_open
from grpo.data.readers.egoschema import read_egoschema
from grpo.data.readers.egotempo import read_egotempo
from grpo.data.readers.openeqa import read_openeqa
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from tests.support.clips import source_of
from tests.support.readers import (
    CLIP_UID,
    EGOCROSS,
    EGOSCHEMA,
    EGOTEMPO,
    OPENEQA,
    WRITERS,
    Record,
    write_egocross,
    write_egoschema,
    write_json,
    write_openeqa,
)

FRAMES = "egocross_testbed/EgoPet/generated/8/frames/ai_q1"


def test_egoschemas_answers_lie_beside_its_questions(tmp_path: Path) -> None:
    unanswered = EGOSCHEMA | {"q_uid": "q-two"}
    path = write_egoschema(tmp_path, unanswered, EGOSCHEMA)
    expected = Sample(
        id="questions/q-one",
        question="What is the overall goal?",
        answer="D",
        task="choice",
        source=f"{path}: record 2",
        options=tuple(f"Goal {number}." for number in range(5)),
        clip_source=ClipSource(video="/media/videos/q-one.mp4"),
        columns={"q_uid": "q-one", "google_drive_id": "1x"},
    )
    assert read_egoschema(path, "/media") == [expected]
    origin = {"video_uid": "v", "starting_sec": 240, "ending_sec": 420}
    write_json(tmp_path / "uid_to_ego4d.json", {"q-one": origin})
    assert read_egoschema(path)[0].columns == {**expected.columns, "ego4d": origin}


def test_egoschemas_answer_must_be_an_options_number(tmp_path: Path) -> None:
    path = write_egoschema(tmp_path, EGOSCHEMA)
    for answer in (5, -1, "3", True, None, 2.0):
        write_json(tmp_path / "subset_answers.json", {"q-one": answer})
        with pytest.raises(
            ValueError, match=rf"^{path}: record 1: its answer .* must be 0 to 4, not {answer!r}"
        ):
            read_egoschema(path)
    write_json(tmp_path / "subset_answers.json", "[]")
    with pytest.raises(ValueError, match=r"subset_answers.json: expected a JSON object, not \[\]"):
        read_egoschema(path)
    (tmp_path / "subset_answers.json").unlink()
    with pytest.raises(FileNotFoundError, match="subset_answers.json: no such file"):
        read_egoschema(path)


def test_egoschema_needs_all_five_options(tmp_path: Path) -> None:
    path = write_egoschema(tmp_path, {k: v for k, v in EGOSCHEMA.items() if k != "option 4"})
    with pytest.raises(
        ValueError, match="record 1: 'option 0 to 4' must be a text that is not empty, not None"
    ):
        read_egoschema(path)


def test_egocross_is_a_choice_or_open(tmp_path: Path) -> None:
    path = write_egocross(tmp_path, EGOCROSS)
    kept = ("id", "dataset", "primary_category", "question_type", "original_video_fps", "answer_text")
    columns = {key: EGOCROSS[key] for key in (*kept, "detailed_answer", "question_id")}
    closed = Sample(
        id="egocross_testbed_answers/7",
        question="What animal wears the camera?",
        answer="B",
        task="choice",
        source=f"{path}: record 1",
        options=("Cat", "Dog", "Turtle", "Cat"),  # three of the published questions repeat an option
        clip_source=ClipSource(video=str(tmp_path / f"{FRAMES}.mp4")),
        columns=columns,
    )
    assert read_egocross(path) == [closed]
    [opened] = read_egocross_open(path)
    assert (opened.task, opened.answer, opened.options) == ("open", "Dog", ())
    assert opened.id == "egocross_testbed_answers/7#open"
    assert (opened.clip_source, opened.columns, opened.question) == (
        closed.clip_source,
        columns,
        closed.question,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct_option_letter": "E"}, "answer 'E' is not one of the options A to D"),
        ({"video_path": []}, r"'video_path' must be a list of frames, not \[\]"),
        ({"video_path": "/a.mp4"}, "'video_path' must be a list of frames, not '/a.mp4'"),
        ({"video_path": ["/a/1.jpg", "/b/1.jpg"]}, "the frames of 'video_path' lie in several folders"),
    ],
)
def test_what_egocross_cannot_mean_is_refused(changes: Record, message: str, tmp_path: Path) -> None:
    path = write_egocross(tmp_path, EGOCROSS | changes)
    with pytest.raises(ValueError, match=rf"^{path}: record 1: {message}"):
        read_egocross(path)


def test_openeqas_extra_answers_are_kept_for_the_rewards(tmp_path: Path) -> None:
    without_extra = {k: v for k, v in OPENEQA.items() if k != "extra_answers"} | {"question_id": "two"}
    path = write_openeqa(tmp_path, OPENEQA, without_extra)
    first, second = read_openeqa(path)
    assert first == Sample(
        id="open-eqa-v0/f2e8-one",
        question="Where is the lamp?",
        answer="On the desk",
        task="open",
        source=f"{path}: record 1",
        clip_source=ClipSource(video=str(tmp_path / "hm3d-v0/000-hm3d-One.mp4")),
        columns={
            key: OPENEQA[key] for key in ("extra_answers", "category", "question_id", "episode_history")
        },
    )
    assert "extra_answers" not in second.columns


def test_openeqas_blank_extra_answer_is_left_out(tmp_path: Path) -> None:
    path = write_openeqa(tmp_path, OPENEQA | {"extra_answers": ["near", "", " "]})
    assert read_openeqa(path)[0].columns["extra_answers"] == ["near"]


def test_openeqas_extra_answers_must_be_texts(tmp_path: Path) -> None:
    for extra in ("near", [3], ["near", None]):
        path = write_openeqa(tmp_path, OPENEQA | {"extra_answers": extra})
        with pytest.raises(ValueError, match="record 1: 'extra_answers' must be a"):
            read_openeqa(path)


def test_egotempos_record_is_translated(tmp_path: Path) -> None:
    path = WRITERS["egotempo"](tmp_path, EGOTEMPO)
    assert read_egotempo(path, "/clips") == [
        Sample(
            id=f"egotempo_openQA/{CLIP_UID}_120.0_180.0_0",
            question="What is done after the tap is opened?",
            answer="The cup is washed.",
            task="open",
            source=f"{path}: record 1",
            clip_source=ClipSource(video=f"/clips/{CLIP_UID}_120.0_180.0.mp4"),
            columns={key: EGOTEMPO[key] for key in ("question_id", "clip_id", "question_type")},
        )
    ]


def test_a_clip_id_may_end_in_mp4(tmp_path: Path) -> None:
    [plain] = READERS["egotempo"](str(WRITERS["egotempo"](tmp_path, EGOTEMPO)), None)
    ended = EGOTEMPO | {"clip_id": EGOTEMPO["clip_id"] + ".mp4"}
    [sample] = READERS["egotempo"](str(WRITERS["egotempo"](tmp_path, ended)), None)
    assert sample.clip_source == plain.clip_source


def test_a_slice_of_openeqas_own_file_is_read() -> None:
    path = Path(__file__).parent / "files" / "open_eqa_slice.json"  # MIT; its license lies beside it
    records = {f"open_eqa_slice/{record['question_id']}": record for record in json.loads(path.read_text())}
    samples = read_openeqa(path, "/frames")
    assert [sample.id for sample in samples] == [*records] and len(samples) == 18
    assert {sample.task for sample in samples} == {"open"}
    assert Counter(source_of(sample).frames[0].split("/")[2] for sample in samples) == {
        "hm3d-v0": 9,
        "scannet-v0": 9,
    }
    for sample in samples:
        record = records[sample.id]
        assert (sample.question, sample.answer) == (record["question"], record["answer"])
        assert sample.clip_source == ClipSource(frames=(f"/frames/{record['episode_history']}",))
        assert sample.columns["category"] == record["category"]
        published = record.get("extra_answers")
        kept = (
            [answer for answer in published if answer] if published else None
        )  # one published answer is blank
        assert sample.columns.get("extra_answers") == kept
    counts = Counter(len(sample.columns.get("extra_answers", ())) for sample in samples)
    assert counts == {0: 12, 4: 5, 3: 1}
