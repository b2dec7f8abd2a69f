"""Hugging Face data sets on disk: parquet files, a folder of them, or what `Dataset.save_to_disk` wrote.

Their rows are records like those of any other file, so every reader takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo.data.errors import DataError

SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` leaves in the folder of a data set, and of several splits."""


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file or a data set's folder, in order. ValueError if there are none."""
    if path.is_dir() and any((path / name).is_file() for name in SAVED):
        return _saved(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError("no parquet files in this folder, and no data set written by save_to_disk")
    return (row for file in files for row in _parquet(file))


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches():
            yield from _decimals(pa.Table.from_batches([batch])).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(file), f"not readable as parquet: {' '.join(str(error).split())}") from None


def _saved(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise ValueError("needs the package datasets: pip install datasets") from None

    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        raise ValueError(f"holds several splits: name one, {folder}/{next(iter(data))}")
    # As Arrow tables: rows would come with their media decoded.
    for table in data.with_format("arrow").iter(batch_size=1000):
        yield from _decimals(table).to_pylist()


def _decimals(table: Any) -> Any:
    """The table with its single-precision numbers as the shortest decimals that mean them: 2.7, which is
    2.700000047683716 in double precision."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        texts, decimals = (_with_numbers(field, number) for number in (pa.string(), pa.float64()))
        if texts != field:
            table = table.set_column(index, decimals, table[index].cast(texts.type).cast(decimals.type))
    return table


def _with_numbers(field: Any, number: Any) -> Any:
    """The column's field with this type in place of single precision, in lists and structures too."""
    import pyarrow as pa

    kind = field.type
    if kind == pa.float32():
        return field.with_type(number)
    if pa.types.is_list(kind):
        return field.with_type(pa.list_(_with_numbers(kind.value_field, number)))
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_with_numbers(part, number) for part in kind]))
    return field
