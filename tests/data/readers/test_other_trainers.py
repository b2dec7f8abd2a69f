"""Files of ms-swift, EasyR1, verl, TRL and VLM-R1, tables with embedded images, and the reader that tells formats."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from grpo.config.schema import DatasetConfig
from grpo.data import FORMATS, READERS, load_samples, read_records, timed
from grpo.data.errors import DataError
from grpo.groups import Sample
from grpo.media.clip import ClipSource
from tests.support import tiny
from tests.support.clips import source_of
from tests.support.readers import (
    ASKED,
    EASYR1,
    EXAMPLES,
    NATIVE,
    SWIFT,
    TRL,
    VERL,
    WRITERS,
    Record,
    write_json,
    write_parquet,
)

SYSTEM = {"role": "system", "content": "You are a useful assistant"}


def read(reader: str, folder: Path, record: Record, **changes: Any) -> Sample:
    [sample] = READERS[reader](str(write_json(folder / "train.jsonl", json.dumps(record | changes))), None)
    return sample


def user(content: object) -> list[Record]:
    return [{"role": "user", "content": content}]


def png(colour: str) -> bytes:
    content = BytesIO()
    Image.new("RGB", (84, 56), colour).save(content, "png")
    return content.getvalue()


@pytest.mark.parametrize(
    ("reader", "record"),
    [
        ("swift", SWIFT),
        ("swift", SWIFT | {"messages": [SYSTEM, *user(ASKED)]}),
        ("swift", SWIFT | {"messages": [*user(ASKED), {"role": "assistant", "content": "Hm."}]}),
        ("swift", {"query": ASKED, "response": "B. washing", "videos": ["clips/one.mp4"]}),
        ("swift", {"query": ASKED[7:], "solution": "(B)", "videos": ["clips/one.mp4"]}),
        ("easyr1", EASYR1),
        ("easyr1", EASYR1 | {"problem": "<video>What is done?", "options": ["A. cutting", "B. washing"]}),
        ("easyr1", EASYR1 | {"answer": None, "solution": "<think>Hm.</think><answer>B</answer>"}),
        ("verl", VERL),
        ("verl", VERL | {"prompt": user("<video>What is done? A. cutting B. washing")}),
        ("verl", VERL | {"videos": ["file://clips/one.mp4"]}),
        ("trl", TRL),
        ("trl", {"prompt": ASKED, "video": "clips/one.mp4", "completion": "washing"}),
        ("trl", {"prompt": user(ASKED), "videos": ["clips/one.mp4"], "ground_truth": "B"}),
        ("trl", TRL | {"solution": None, "completion": [{"role": "assistant", "content": "B"}]}),
    ],
)
def test_each_trainers_record_is_the_same_choice(reader: str, record: Record, tmp_path: Path) -> None:
    sample = read(reader, tmp_path, record)
    assert (sample.question, sample.answer, sample.task) == ("What is done?", "B", "choice")
    assert sample.options == ("cutting", "washing")
    assert sample.clip_source == ClipSource(video=str(tmp_path / "clips/one.mp4"))
    assert sample.system == (SYSTEM["content"] if "useful" in json.dumps(record) else "")
    assert sample.columns.get("solution") == record.get("solution")


@pytest.mark.parametrize(
    ("changes", "task", "answer"),
    [
        ({"answer": "3"}, "number", "3"),
        ({"answer": 0.00005}, "number", "0.00005"),
        ({"answer": "a cup"}, "open", "a cup"),
        ({"answer": "3 cups"}, "open", "3 cups"),
        ({"answer": "42", "problem_type": "OCR"}, "ocr", "42"),
        ({"answer": "42", "problem_type": "regression"}, "regression", "42"),
        ({"answer": "42", "problem_type": "a new kind"}, "open", "42"),
        ({"answer": [2, 3.5]}, "span", "2.0-3.5"),
        ({"answer": "2 to 3.5", "problem_type": "temporal grounding"}, "span", "2.0-3.5"),
    ],
)
def test_an_answer_is_compared_by_its_kind(changes: Record, task: str, answer: str, tmp_path: Path) -> None:
    sample = read("easyr1", tmp_path, EASYR1, problem="<video>What?", **changes)
    assert (sample.task, sample.answer) == (task, answer)
    assert sample.question.startswith("What?") and ("span in seconds" in sample.question) == (task == "span")


@pytest.mark.parametrize(
    ("reader", "record", "message"),
    [
        ("swift", SWIFT | {"solution": None}, "there is no answer: no reply, and none of solution, answer"),
        ("swift", SWIFT | {"messages": [SYSTEM]}, "a record with an answer has one question, not 0"),
        (
            "swift",
            SWIFT | {"messages": user("a") * 2},
            "a record with an answer has one question, not 2",
        ),
        (
            "swift",
            SWIFT | {"history": [["Hi", "Ho"]]},
            "'history' is not supported: a record is one question",
        ),
        ("swift", SWIFT | {"audios": ["a.wav"]}, r"'audios' is not supported: \['a.wav'\]"),
        ("easyr1", EASYR1 | {"answer": ["blue", "navy"]}, "'answer' must be a text that is not empty, not"),
        (
            "easyr1",
            EASYR1 | {"answer": "E", "problem_type": "multiple choice"},
            r"answer 'E' is not one of the options \['cutting', 'washing'\]",
        ),
        ("verl", VERL | {"videos": [{"fps": 2}]}, "'videos' must be a text that is not empty, not None"),
        ("verl", VERL | {"videos": ["https://a.org/b.mp4"]}, "'https://a.org/b.mp4' is a web address"),
        ("trl", TRL | {"prompt": user([{"type": "audio"}])}, "a part of the type 'audio' is not supported"),
        ("trl", TRL | {"prompt": []}, "a record with an answer has one question, not 0"),
    ],
)
def test_what_a_trainers_record_cannot_be_is_named(
    reader: str, record: Record, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"train.jsonl:1: {message}"):
        read(reader, tmp_path, record)


def test_two_files_of_one_name_are_told_why_their_ids_are_the_same(tmp_path: Path) -> None:
    paths = [str(write_json(tmp_path / folder / "train.json", [SWIFT])) for folder in ("a", "b")]
    with pytest.raises(
        ValueError, match=rf"^{paths[1]}: .* used in {paths[0]}: record 1: ids begin with the file's name"
    ):
        load_samples([DatasetConfig(reader="swift", path=path) for path in paths])


def test_several_images_are_pictures_or_with_a_rate_the_frames_of_a_clip(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    turns = [
        {"from": "human", "value": "<image><image>Compare"},
        {"from": "gpt", "value": "<answer>same</answer>"},
    ]
    record = {"id": 1, "image": ["a.png", "b.png"], "conversations": turns}  # as VLM-R1's
    path = str(write_json(tmp_path / "train.jsonl", json.dumps(record)))
    [sample] = load_samples([DatasetConfig(reader="llava", path=path)])
    assert sample.media == tuple(ClipSource(frames=(f"{tmp_path}/{name}.png",)) for name in "ab")
    assert sample.question == "<image><image>Compare"
    [sample] = load_samples([DatasetConfig(reader="llava", path=path, frame_fps=1)])
    frames = tuple(f"{tmp_path}/{name}.png" for name in "ab")
    assert sample.clip_source == ClipSource(frames=frames, frame_fps=1.0)
    assert (sample.question, sample.answer) == ("Compare", "same")
    assert "several images of a question are pictures of their own, unless frame_fps is set: 1" in caplog.text
    many = record | {"image": ["a.png"] * 33, "conversations": [{**turns[0], "value": "Compare"}, turns[1]]}
    path = str(write_json(tmp_path / "train.jsonl", json.dumps(many)))
    with pytest.raises(ValueError, match="33 media in a question: there may be 32; with frame_fps, pictures"):
        load_samples([DatasetConfig(reader="llava", path=path)])


def test_what_can_not_be_the_frames_of_one_clip_is_not_made_one() -> None:
    files = tuple(ClipSource(frames=(f"{name}.png",)) for name in "ab")
    moments = tuple(ClipSource(video="a.mp4", start_s=at_s, end_s=at_s) for at_s in (1.0, 2.0))
    question = tiny.sample("q", clip_source=files[0], media=files, options=("up <image>", "down"))
    assert timed(question, 2.0).options == ("up", "down")
    assert timed(question, None) is question
    for media in (moments, (files[0], moments[0])):
        apart = replace(question, clip_source=media[0], media=media)
        assert timed(apart, 2.0) is apart
    with pytest.raises(
        ValueError, match="pictures as options can't be the frames of one clip: leave frame_fps out"
    ):
        timed(replace(question, options=("<image>", "<image>")), 2.0)


def test_images_in_a_table_are_written_beside_it_once(tmp_path: Path) -> None:
    red, blue = png("red"), png("blue")
    one = {"id": "a", "question": "What?", "answer": "this", "task": "open"}
    for name, column, value in (
        ("struct", "image", {"bytes": red, "path": "img.png"}),
        ("bytes", "image", red),
        ("list", "images", [{"bytes": red, "path": None}]),
    ):
        path = write_parquet(tmp_path / name, one | {column: value})
        for media_root in (None, "/elsewhere"):
            [sample] = READERS["jsonl"](str(path), media_root)
        [written] = [*Path(f"{path}.media").iterdir()]
        assert source_of(sample).frames == (str(written),) and written.read_bytes() == red
    rows = [
        {"images": [{"bytes": each, "path": None}], "problem": "<image>What?", "answer": "3"}
        for each in (red, blue)
    ]
    first, second = READERS["easyr1"](str(write_parquet(tmp_path / "two", *rows)), None)
    pictures = [Image.open(source_of(sample).frames[0]).getpixel((0, 0)) for sample in (first, second)]
    assert pictures == [(255, 0, 0), (0, 0, 255)]


def test_an_image_column_that_only_names_its_file_is_that_path(tmp_path: Path) -> None:
    image = pa.array(
        [{"bytes": None, "path": "a.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    table = pa.Table.from_pylist([NATIVE | {"video": None}]).append_column("image", image)
    pq.write_table(table, tmp_path / "train.parquet")
    [sample] = READERS["jsonl"](str(tmp_path / "train.parquet"), None)
    assert source_of(sample).frames == (str(tmp_path / "a.png"),)


def test_images_that_cannot_be_written_name_the_folder(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, NATIVE | {"video": None, "image": {"bytes": png("red"), "path": None}})
    Path(f"{path}.media").write_text("a file in the way")
    with pytest.raises(ValueError, match=rf"^{path}.media: embedded media can't be written here: "):
        READERS["jsonl"](str(path), None)


AMBIGUOUS = {"huggingface": "jsonl", "egocross_open": "egocross", "egoplan_frame": "egoplan"}
"""Readers of the same files as another one, which is taken for them."""


@pytest.mark.parametrize("reader", sorted(EXAMPLES))
def test_auto_reads_every_format_and_says_which_it_is(
    reader: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(WRITERS[reader](tmp_path, EXAMPLES[reader]))
    meant = AMBIGUOUS.get(reader, reader)
    with caplog.at_level(logging.INFO):
        assert READERS["auto"](path, None) == FORMATS[meant](path, None)
    assert f"{path}: read with the reader {meant}" in caplog.text


@pytest.mark.parametrize("reader", sorted(EXAMPLES.keys() - {"jsonl", "huggingface"}))
def test_records_of_another_format_name_its_reader(reader: str, tmp_path: Path) -> None:
    path = str(WRITERS[reader](tmp_path, EXAMPLES[reader]))
    meant = AMBIGUOUS.get(reader, reader)
    with pytest.raises(DataError) as caught:
        read_records(DatasetConfig(path=path))
    hint = f"{path}: its records are for another reader: write {{reader: {meant}, path: {path}}}, or reader: auto"
    assert str(caught.value).startswith(f"{hint} (jsonl says: {path}")


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_looked_for_in_any_record(name: str) -> None:
    keys = [*{key for record in EXAMPLES.values() for key in record}, "line", "videos", "annotations"]
    for value in (None, 3, "text", [], [3], [{}], {}, {"a": [1]}):
        for key in keys:
            assert FORMATS[name].is_like({key: value}) in (True, False)
    assert not FORMATS[name].is_like({})


def test_a_first_record_that_cannot_be_read_is_named_and_hides_no_format(tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.jsonl", f'{{"id"\n{json.dumps(SWIFT)}')
    with pytest.raises(ValueError, match=f"^{path}:1: not readable as JSON"):
        READERS["auto"](str(path), None)
    with pytest.raises(DataError, match=f"^{path}: .* write {{reader: swift, "):
        read_records(DatasetConfig(path=str(path)))
    path = write_json(tmp_path / "train.jsonl", '\n{"id"\n{"no\\ud83d": 1}')
    with pytest.raises(ValueError, match=f"^{path}:2: not readable as JSON"):
        READERS["auto"](str(path), None)


def test_an_error_in_the_readers_own_format_is_left_as_it_is(tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.jsonl", json.dumps(NATIVE | {"answer": "Z"}))
    with pytest.raises(ValueError, match=f"^{path}:1: answer 'Z' is not one of the options A to B$"):
        read_records(DatasetConfig(path=str(path)))
    path = write_json(tmp_path / "other.jsonl", json.dumps({"text": "no question"}))
    with pytest.raises(ValueError, match=f"^{path}:1: 'task' is missing$"):
        read_records(DatasetConfig(path=str(path)))
    with pytest.raises(
        DataError, match=f"^{path}: in none of the known formats: its first record has 'text'; it is like "
    ):
        read_records(DatasetConfig(path=str(path), reader="auto"))
    with pytest.raises(FileNotFoundError, match="no such dataset file"):
        read_records(DatasetConfig(path="nowhere.jsonl", reader="auto"))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"question": "What?", "answer": 1}, "has 'question', 'answer'; it is like jsonl, but for 'task'"),
        ({"prompt": "What?"}, "it is like trl, but for 'solution' or verl, but for 'reward_model' (docs/datasets.md)"),
        ({"text": "What?"}, "has 'text'; it is like none of them (docs/datasets.md)"),
        (["What?"], "its first record is no object with keys"),
    ],
)  # fmt: skip
def test_a_record_of_no_format_is_shown_beside_the_nearest(record: object, says: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "train.jsonl", json.dumps(record))
    with pytest.raises(DataError, match=re.escape(says)):
        read_records(DatasetConfig(path=str(path), reader="auto"))


def test_what_is_said_of_a_single_medium_bounds_the_clip_or_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = {"video": "a.mp4", "fps": 2.0, "max_pixels": 1000, "video_start": 3, "video_end": 4.5}
    for reader, record in (
        ("verl", VERL | {"videos": [video]}),
        ("trl", TRL | {"prompt": user([{"type": "video", **video}, {"type": "text", "text": "What?"}])}),
    ):
        source = read(reader, tmp_path, {**record, "video": None}).clip_source
        assert source == ClipSource(video=str(tmp_path / "a.mp4"), start_s=3.0, end_s=4.5)
    assert (
        caplog.text.count(
            "fps, max_pixels of single media are left out: the config's media.* are those of all"
        )
        == 2
    )
    with pytest.raises(ValueError, match=r"'video_end' \(1\) must lie behind 'video_start' \(3\)"):
        read("verl", tmp_path, VERL | {"videos": [video | {"video_end": 1}]})


@pytest.mark.parametrize("reader", ["jsonl", "auto", "llava"])
def test_captions_and_preferences_are_refused_as_what_they_are(reader: str, tmp_path: Path) -> None:
    for record, what in (
        ({"video_path": "a.mp4", "keyframe": [0], "captions": [{"idx": "1"}]}, "ShareGPT4Video's captions"),
        ({"prompt": "What?", "chosen": "a", "rejected": "b"}, "pairs of a preferred and a rejected answer"),
    ):
        path = write_json(tmp_path / "train.jsonl", json.dumps(record))
        with pytest.raises(DataError, match=f"^{path}: holds {what}, not questions with answers"):
            read_records(DatasetConfig(path=str(path), reader=reader))
