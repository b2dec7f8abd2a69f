"""The forms in which records may lie in a file, and what a file is refused for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.commands.doctor.records import examine
from grpo.data import READERS, check_media
from grpo.data.errors import BadRecords
from grpo.data.readers.jsonl import read_jsonl
from tests.support import tiny
from tests.support.clips import video_of
from tests.support.readers import (
    LLAVA,
    NATIVE,
    NEXTQA,
    Record,
    touch,
    write_json,
    write_nextqa,
)

TEXT: Record = {"id": "t", "question": "What?", "answer": "this", "task": "text"}


def test_json_is_a_list_or_lines_whatever_the_files_name(tmp_path: Path) -> None:
    two = [TEXT, TEXT | {"id": "u"}]
    lines = "\n".join(map(json.dumps, two))
    for name, content in (
        ("a.jsonl", json.dumps(two)),
        ("b.jsonl", json.dumps(two, indent=1)),
        ("c.json", lines),
        ("d.txt", lines),
        ("e.data", f"\n\n {json.dumps(two)}"),
        ("f.json", f"\ufeff{json.dumps(two)}"),
    ):
        assert [sample.id for sample in read_jsonl(write_json(tmp_path / name, content))] == ["t", "u"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.json", "", "the file is empty"),
        ("a.parquet", "", "the file is empty"),
        (
            "a.json",
            json.dumps({"data": [TEXT]}, indent=1),
            r"expected a JSON list of records: '\[' at line 1",
        ),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid x", "a pointer of Git LFS in place of"),
        ("a.csv", 'id,question\n"1,2', "not readable as CSV: unexpected end of data"),
        ("a.csv", "id,question\n1,2,3", "record 1: has not as many fields as the header"),
        ("a.csv", "id,question\n1", "record 1: has not as many fields as the header"),
    ],
)
def test_a_file_without_records_in_any_form_is_refused(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    path = write_json(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read_jsonl(path)


def test_files_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    """Python's own default under this locale is ASCII, with which none of these could be read."""
    lines = write_json(tmp_path / "a.jsonl", json.dumps(TEXT | {"answer": "한국어 café"}, ensure_ascii=False))
    csv = write_nextqa(tmp_path, NEXTQA | {"a2": "é 한"})
    code = (
        f"from grpo.data import READERS; [one] = READERS['jsonl']({str(lines)!r}, None); "
        f"[two] = READERS['nextqa']({str(csv)!r}, None); print(ascii([one.answer, two.options[2]]))"
    )
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, cwd=tiny.ROOT
    )
    assert run.stdout.strip() == ascii(["한국어 café", "é 한"]), run.stderr
    csv.write_bytes(csv.read_bytes() + b"\xff")
    with pytest.raises(ValueError, match=f"^{csv}: not UTF-8 at byte "):
        READERS["nextqa"](str(csv), None)


def test_half_a_surrogate_pair_is_named_wherever_it_stands(tmp_path: Path) -> None:
    for record, key in (
        (TEXT | {"no\ud83dte": 1}, r"'no\\ud83dte'"),
        (TEXT | {"extra": {"deep": ["\udc00"]}}, "'extra'"),
    ):
        for name, content, place in (
            ("a.jsonl", json.dumps(record), ":1"),
            ("a.json", json.dumps([record]), ": record 1"),
        ):
            path = write_json(tmp_path / name, content)
            with pytest.raises(BadRecords, match=f"^{path}{place}: {key} is not valid Unicode: "):
                read_jsonl(path)
    whole = write_json(tmp_path / "b.jsonl", json.dumps(TEXT | {"note": "\U0001f600"}))
    assert read_jsonl(whole)[0].columns == {"note": "\U0001f600"}


def test_texts_of_absurd_size_are_refused_before_they_are_processed(tmp_path: Path) -> None:
    huge = "word " * 2_000_000
    path = write_json(tmp_path / "a.jsonl", json.dumps(TEXT | {"question": huge}))
    with pytest.raises(
        ValueError, match=r"^.*a.jsonl:1: 'question' has 10,000,000 characters, and at most 100,000"
    ):
        read_jsonl(path)
    turns = [{"from": "human", "value": huge}, {"from": "gpt", "value": "x"}]
    path = write_json(tmp_path / "b.json", [LLAVA | {"conversations": turns}])
    with pytest.raises(ValueError, match="record 1: 'value' has 10,000,000 characters"):
        READERS["llava"](str(path), None)


def test_a_span_may_be_a_list(tmp_path: Path) -> None:
    record = TEXT | {"task": "span", "answer": [2, 3.5]}
    assert read_jsonl(write_json(tmp_path / "a.jsonl", json.dumps(record)))[0].answer == "2.0-3.5"
    for answer in ([2], [2, 3, 4], ["2", "x"], [3, 2], {}):
        path = write_json(tmp_path / "a.jsonl", json.dumps(record | {"answer": answer}))
        with pytest.raises(ValueError, match="a.jsonl:1: 'answer'"):
            read_jsonl(path)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("/clips/one.mp4", "leads out of the media root .*; with media_root: / paths may be absolute"),
        (r"clips\one.mp4", r"'clips\\\\one.mp4' has backslashes: folders are separated by / in paths"),
        ("s3://clips/one.mp4", "'s3://clips/one.mp4' is a web address: download it"),
    ],
)
def test_a_path_of_another_kind_says_what_to_do(video: str, message: str, tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.jsonl", json.dumps(NATIVE | {"video": video}))
    with pytest.raises(ValueError, match=f"^{path}:1: .*{message}"):
        read_jsonl(path)


def test_a_file_name_may_hold_a_backslash(tmp_path: Path) -> None:
    (tmp_path / r"a\b.mp4").touch()
    path = write_json(tmp_path / "a.jsonl", json.dumps(NATIVE | {"video": r"a\b.mp4"}))
    assert video_of(read_jsonl(path)[0]) == rf"{tmp_path}/a\b.mp4"


def test_a_path_that_starts_from_another_folder_says_where_its_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(video: str) -> str:
        path = write_json(tmp_path / "data/sets/a.jsonl", json.dumps(NATIVE | {"video": video}))
        with pytest.raises(FileNotFoundError) as caught:
            check_media(read_jsonl(path), num_probes=0)
        return str(caught.value)

    for folder in ("data/clips", "elsewhere/media"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/clips/one.mp4").touch()
    hint = f"; there is {tmp_path}/data/clips/one.mp4: set media_root to the folder that the paths start from"
    for video in ("clips/one.mp4", "data/clips/one.mp4"):
        assert refusal(video).endswith(hint)
    (tmp_path / "elsewhere/media/two.mp4").touch()
    assert refusal("media/two.mp4").endswith("/media/two.mp4")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert f"there is {tmp_path}/elsewhere/media/two.mp4" in refusal("media/two.mp4")


def test_the_doctor_says_once_where_files_are(tmp_path: Path) -> None:
    touch(tmp_path / "clips/one.mp4")
    lines = "\n".join(json.dumps(NATIVE | {"id": name}) for name in "ab")
    samples = read_jsonl(write_json(tmp_path / "sets/a.jsonl", lines))
    [first, second], _ = examine(samples, None, num_clips=0, num_workers=1)
    assert str(first).endswith("set media_root to the folder that the paths start from")
    assert str(second).endswith(f"no such video file: {tmp_path}/sets/clips/one.mp4")
