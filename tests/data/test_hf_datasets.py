"""Parquet files, folders of them, and what `Dataset.save_to_disk` writes."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo.data.readers.jsonl import read_jsonl
from grpo.data.readers.llava import read_llava
from grpo.data.records import Reader
from tests.support.clips import source_of, video_of
from tests.support.readers import LLAVA, NATIVE, Record, write_json, write_parquet

RICH: Record = NATIVE | {
    "start_s": 1.0,
    "end_s": 9.0,
    "keyframes_s": [[2.0, 3.5]],
    "scene": {"room": "kitchen"},
}


def test_a_parquet_row_is_a_native_record(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, RICH, RICH | {"id": "k-2", "end_s": None})
    first, second = read_jsonl(path, "/m")
    [expected] = read_jsonl(write_json(tmp_path / "same.jsonl", json.dumps(RICH)), "/m")
    fields = ("id", "question", "options", "answer", "clip_source", "keyframes_s", "columns")
    assert [getattr(first, name) for name in fields] == [getattr(expected, name) for name in fields]
    assert (first.source, second.source) == (f"{path}: record 1", f"{path}: record 2")
    assert source_of(second).end_s is None


def test_a_number_of_single_precision_is_the_decimal_that_was_stored(tmp_path: Path) -> None:
    single = pa.float32()
    columns = {"answer": single, "keyframes_s": pa.list_(pa.list_(single)), "at": pa.struct([("x", single)])}
    record = NATIVE | {
        "options": None,
        "task": "number",
        "answer": 2.7,
        "keyframes_s": [[1.1, 2.3]],
        "at": {"x": 0.1},
    }
    records = [record, record | {"id": "k-2", "answer": 1e16, "keyframes_s": None, "at": None}]
    table = pa.Table.from_pylist(records)
    for number, field in enumerate(table.schema):
        if field.name in columns:
            table = table.set_column(number, field.name, table[number].cast(columns[field.name]))
    pq.write_table(table, tmp_path / "train.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "train.parquet", tmp_path / "saved"):
        first, second = read_jsonl(path)
        assert (first.answer, first.keyframes_s, first.columns) == ("2.7", ((1.1, 2.3),), {"at": {"x": 0.1}})
        assert (second.answer, second.keyframes_s, second.columns) == ("10000000000000000", (), {"at": None})


def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("train-00001", "train-00000"):
        pq.write_table(pa.Table.from_pylist([NATIVE | {"id": name}]), tmp_path / f"{name}.parquet")
    assert [sample.id for sample in read_jsonl(tmp_path)] == ["train-00000", "train-00001"]


def test_a_saved_data_set_is_read_with_its_rows_order(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([NATIVE | {"id": str(number)} for number in range(5)])
    data.select([3, 1]).save_to_disk(str(tmp_path / "mine"))
    samples = read_jsonl(tmp_path / "mine")
    assert [sample.id for sample in samples] == ["3", "1"]
    assert video_of(samples[0]) == str(tmp_path / "mine/clips/one.mp4")


def test_of_several_splits_one_has_to_be_named(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list([NATIVE])})
    splits.save_to_disk(str(tmp_path / "mine"))
    with pytest.raises(
        ValueError, match=f"^{tmp_path}/mine: holds several splits: name one, {tmp_path}/mine/train$"
    ):
        read_jsonl(tmp_path / "mine")
    assert len(read_jsonl(tmp_path / "mine/train")) == 1


def test_every_reader_takes_a_table(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, LLAVA | {"id": "a", "start_time": "1.5", "audio": None})
    [sample] = read_llava(path)
    assert (sample.id, sample.answer, source_of(sample).start_s) == ("train/a", "On the table.", 1.5)


def test_a_table_that_is_none_or_holds_what_json_cannot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"^{tmp_path}/empty: no parquet files in this folder"):
        read_jsonl(tmp_path / "empty")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match=f"^{tmp_path}/text.parquet: not readable as parquet: "):
        read_jsonl(tmp_path / "text.parquet")
    for value in (b"raw", datetime.date(2024, 1, 1), float("nan")):
        path = write_parquet(tmp_path, NATIVE | {"extra": None}, NATIVE | {"id": "k-2", "extra": value})
        with pytest.raises(ValueError, match=f"^{path}: record 2: column 'extra' holds what JSON cannot: "):
            Reader(translate=lambda record, place: [], is_like=bool)(path)
    path = write_parquet(tmp_path, NATIVE | {"start_s": float("inf")})
    with pytest.raises(ValueError, match="record 1: column 'start_s' holds what JSON cannot"):
        read_jsonl(path)


def test_a_wrong_row_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, NATIVE, NATIVE | {"id": "k-2", "answer": "C"})
    with pytest.raises(ValueError, match=f"^{path}: record 2: answer 'C' is not one of the options A to B$"):
        read_jsonl(path)
