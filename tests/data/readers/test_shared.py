"""What all readers have in common: each gives samples that render, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.data import READERS
from grpo.data.records import Place
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from tests.support import tiny
from tests.support.readers import EXAMPLES, WRITERS, write_media

FOREIGN = sorted(EXAMPLES.keys() - {"jsonl", "huggingface"})
LISTS = sorted(set(FOREIGN) - {"ego4d_nlq", "egotempo", "nextqa", "charades_sta", "hd_epic", "hourvideo"})
"""Readers whose file is a list of records."""
NAMED_BY_PLACE = {
    "ego4d_nlq", "sharegpt", "swift", "easyr1", "verl", "trl", "egothink", "charades_sta", "egotaskqa", "hd_epic",
}  # fmt: skip
KEYS_OF_VIDEOS = {
    "llava": {"video": "../one.mp4"},
    "openeqa": {"episode_history": "../000"},
    "qaego4d": {"video_id": "../one"},
    "egotempo": {"clip_id": "../one"},
    "egoplan": {"video_source": "Ego4D", "video_id": "../../../one"},
    "egocross": {"video_path": ["/../frames/one.jpg"]},
    "sharegpt": {"videos": ["/elsewhere/one.mp4"]},
    "video_r1": {"path": "./../one.mp4"},
    "vsi_bench": {"dataset": "../one"},
    "video_mme": {"videoID": "../one"},
    "egotaskqa": {"video_path": "../one.mp4"},
    "hd_epic": {"inputs": {"video 1": {"id": "../../one"}}},
    "jsonl": {"video": "a/../../one.mp4"},
    "huggingface": {"video": "/elsewhere/one.mp4"},
}


@pytest.mark.parametrize("reader", sorted(EXAMPLES))
def test_every_readers_sample_becomes_a_prompt_with_its_clip(reader: str, tmp_path: Path) -> None:
    path = WRITERS[reader](tmp_path, EXAMPLES[reader])
    [sample] = READERS[reader](str(path), None)
    write_media(sample, num_frames=160, fps=10)
    clips = [read_source(source, settings=MediaSettings(max_frames=4)) for source in sample.sources]
    prompt = tiny.prompt(sample, clips)
    tiny.family().check_vision_tokens(prompt)
    clip = prompt.clip
    assert clip is not None and sum(map(prompt.token_ids.count, tiny.family().vision_token_ids)) > 0
    assert all(0 <= start <= end <= clip.duration_s for start, end in sample.keyframes_s)
    assert json.loads(json.dumps(dict(sample.columns), allow_nan=False)) == dict(sample.columns)


def test_there_is_an_example_of_every_reader() -> None:
    assert EXAMPLES.keys() == WRITERS.keys() == READERS.keys() - {"synthetic", "auto"}


@pytest.mark.parametrize("reader", sorted(set(FOREIGN) - NAMED_BY_PLACE))
def test_an_id_that_comes_twice_is_refused(reader: str, tmp_path: Path) -> None:
    record = EXAMPLES[reader]
    path = WRITERS[reader](tmp_path, record, record)
    with pytest.raises(ValueError, match=rf"{path}: record 2: id '.*' was already used in {path}: record 1$"):
        READERS[reader](str(path), None)


@pytest.mark.parametrize("reader", LISTS)
def test_json_of_the_wrong_type_is_refused(reader: str, tmp_path: Path) -> None:
    path = WRITERS[reader](tmp_path, EXAMPLES[reader])
    path.write_text('{"train": []}')
    with pytest.raises(ValueError, match=rf"^{path}: expected a JSON list of records: '\[' at line 1, not"):
        READERS[reader](str(path), None)
    path.write_text(json.dumps([EXAMPLES[reader], 7]))
    with pytest.raises(ValueError, match=rf"^{path}: record 2: a record is a JSON object, not 7$"):
        READERS[reader](str(path), None)
    path.write_text("[]")
    with pytest.raises(ValueError, match=rf"^{path}: no records$"):
        READERS[reader](str(path), None)


@pytest.mark.parametrize(("reader", "key"), [("egotempo", "annotations"), ("ego4d_nlq", "videos")])
def test_an_object_without_its_list_is_refused(reader: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content, message in (
        ("[]", r"expected a JSON object, not \[\]"),
        ("{}", rf"'{key}' must be a list of records, not None"),
        (f'{{"{key}": 3}}', rf"'{key}' must be a list of records, not 3"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"^{path}: {message}$"):
            READERS[reader](str(path), None)


@pytest.mark.parametrize("reader", LISTS)
def test_broken_json_is_named_by_its_record(reader: str, tmp_path: Path) -> None:
    path = WRITERS[reader](tmp_path, EXAMPLES[reader])
    good = json.dumps(EXAMPLES[reader])
    for tail, message in (
        (',\n{"x": NaN}]', "record 2: not readable as JSON: NaN is no JSON number"),
        (',\n{"x": 1e999}]', "record 2: not readable as JSON: '1e999' is too large a number"),
        (',\n{"x": 1, "x": 2}]', "record 2: the key 'x' is there twice"),
        (',\n{"x": ]', "record 2: not readable as JSON: Expecting value at line 2, column 7"),
        (",\n" + "[" * 100_000, "record 2: not readable as JSON: nested too deeply"),
        (",\n", "record 2: not readable as JSON: Expecting value at line 2, column 1"),
        (" 5]", r"expected a JSON list of records: ',' at line 1, not '5\]'"),
        ("] x", "not readable as JSON: text behind the list, 'x'"),
    ):
        path.write_text(f"[{good}{tail}")
        with pytest.raises(ValueError, match=rf"^{path}: {message}$"):
            READERS[reader](str(path), None)


@pytest.mark.parametrize("reader", FOREIGN)
def test_a_missing_field_is_named_with_its_record(reader: str, tmp_path: Path) -> None:
    needed = {"ego4d_nlq": "clip_end_sec", "llava": "conversations", "sharegpt": "messages", "egoschema": "q_uid",
              "video_r1": "path", "egocross": "correct_option_letter", "egocross_open": "answer_text",
              "egoplan": "golden_choice_idx", "egoplan_frame": "golden_choice_idx", "swift": "messages",
              "trl": "prompt", "verl": "prompt",
              "easyr1": "problem", "charades_sta": "timestamps", "vsi_bench": "ground_truth", "egotaskqa": "a",
              "hd_epic": "choices", "hourvideo": "correct_answer_label"}.get(reader, "answer")  # fmt: skip
    path = WRITERS[reader](tmp_path, {key: value for key, value in EXAMPLES[reader].items() if key != needed})
    named = {"sharegpt": "conversations", "swift": "query"}.get(reader, needed)
    with pytest.raises(ValueError, match=rf"^{path}: record 1: .*'{named}' is missing$"):
        READERS[reader](str(path), None)


@pytest.mark.parametrize("reader", sorted(KEYS_OF_VIDEOS))
def test_a_path_that_leads_out_of_the_media_root_is_refused(reader: str, tmp_path: Path) -> None:
    path = WRITERS[reader](tmp_path, EXAMPLES[reader] | KEYS_OF_VIDEOS[reader])
    root = tmp_path / "media"
    place = rf"{path}(:1|: record 1)"
    with pytest.raises(
        ValueError, match=rf"^{place}: '.*' leads out of the media root {root}(; with media_root: / .*)?$"
    ):
        READERS[reader](str(path), str(root))


def test_paths_are_joined_to_the_media_root() -> None:
    def joined(root: str, path: str) -> str:
        return Place("s", Path("f.json"), Path(root), 1).media(path)

    assert joined("/m", "a/b.mp4") == joined("/m/", "./a/../a/b.mp4") == joined("/m", "/m/a/b.mp4")
    assert joined(".", "a.mp4") == "a.mp4"
    assert joined("..", "a.mp4") == "../a.mp4"
    assert joined("/", "a.mp4") == "/a.mp4"
    for root, path in (
        ("/m", "/mm/a"),
        ("/m", ".."),
        ("/m", "."),
        (".", "../a"),
        (".", "/a"),
        ("..", "../a"),
    ):
        with pytest.raises(ValueError, match="leads out of the media root"):
            joined(root, path)


@pytest.mark.parametrize(
    ("reader", "changes"),
    [
        ("video_r1", {"options": [f"{i}" for i in range(300)]}),
        ("egocross", {"options": [f"{i}" for i in range(300)]}),
        ("jsonl", {"options": [f"{i}" for i in range(300)]}),
        ("huggingface", {"options": [f"{i}" for i in range(300)]}),
    ],
)
def test_300_options_are_refused(reader: str, changes: dict[str, Any], tmp_path: Path) -> None:
    path = WRITERS[reader](tmp_path, EXAMPLES[reader] | changes)
    with pytest.raises(ValueError, match="'options' must be a list of 2 to 26 texts"):
        READERS[reader](str(path), None)


@pytest.mark.parametrize("reader", LISTS)
def test_json_lines_serve_as_well_as_a_list(reader: str, tmp_path: Path) -> None:
    listed = WRITERS[reader](tmp_path, EXAMPLES[reader])
    lines = listed.with_suffix(".jsonl")
    lines.write_text("\n" + json.dumps(EXAMPLES[reader]) + "\n")
    [from_list], [from_lines] = READERS[reader](str(listed), None), READERS[reader](str(lines), None)
    assert from_lines.source == f"{lines}:2" and from_list.source == f"{listed}: record 1"
    assert (from_list.question, from_list.answer) == (from_lines.question, from_lines.answer)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for reader in FOREIGN:
        with pytest.raises(FileNotFoundError, match=r"nowhere"):
            READERS[reader](str(tmp_path / "nowhere/file.json"), None)
    with pytest.raises(ValueError, match="no parquet files in this folder"):
        READERS["jsonl"](str(tmp_path), None)
