"""ShareGPT conversations as LLaMA-Factory reads them (https://github.com/hiyouga/LLaMA-Factory, data/README.md).

`{"messages": [{"role": "user", "content": "<video>..."}, {"role": "assistant", ...}], "videos": ["a.mp4"]}`,
or `conversations` of `from` and `value`. A `dataset_info.json` in the file's folder or the one above it that
lists the file says what its columns and tags are called. Several `images`, an `<image>` each in the question, are the
frames of a clip where `frame_fps` in the record or of the data set in the config says how many there are per second, as
with EgoCross's support set; else they are pictures, each in its place. A system prompt may be a turn, or a column of
its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo.data.fields import Record, as_text, shown
from grpo.data.files import load_object
from grpo.data.readers.conversations import OPENAI, Layout, Tags, samples_of
from grpo.data.records import Place, Reader
from grpo.groups import Sample

INFO_FILE = "dataset_info.json"
LAYOUT = Layout(turns=("messages", "conversations"))


def translate(record: Record, place: Place) -> Iterator[Sample]:
    yield from samples_of(record, place, place.beside)


def _is_like(record: Record) -> bool:
    turns = record.get("messages") or record.get("conversations")
    return type(turns) is list and len(turns) > 1


def _layout(file: Path) -> Layout:
    """The layout that a `dataset_info.json` beside the file, or one folder above, states for it."""
    for folder in (file.parent, file.parent.parent):
        info = folder / INFO_FILE
        if info.is_file():
            for name, entry in load_object(info).items():
                if type(entry) is dict and _names(entry.get("file_name"), folder, file):
                    try:
                        return _read_entry(entry)
                    except ValueError as error:
                        raise ValueError(f"{info}: {name}: {error}") from None
    return LAYOUT


def _names(file_name: object, folder: Path, file: Path) -> bool:
    return isinstance(file_name, str) and os.path.normpath(folder / file_name) == os.path.normpath(file)


def _read_entry(entry: Record) -> Layout:
    if entry.get("formatting") not in ("sharegpt", "openai"):
        raise ValueError(f"'formatting' must be sharegpt, not {shown(entry.get('formatting', 'alpaca'))}")
    columns, tags = (_texts(entry, key) for key in ("columns", "tags"))
    own = {key: columns[key] for key in ("images", "videos", "audios", "system") if key in columns}
    turns = (columns["messages"],) if "messages" in columns else LAYOUT.turns
    defaults = OPENAI if entry["formatting"] == "openai" else Tags()
    names = {part: tags.get(f"{part}_tag", getattr(defaults, part)) for part in Tags.__slots__}
    return Layout(turns, **own, tags=Tags(**names) if tags or entry["formatting"] == "openai" else None)


def _texts(entry: Record, key: str) -> dict[str, Any]:
    value = entry.get(key) or {}
    if type(value) is not dict:
        raise ValueError(f"{key!r} must be an object, not {shown(value)}")
    return {name: as_text(text, name) for name, text in value.items() if text is not None}


read_sharegpt = Reader(translate=translate, is_like=_is_like, beside=_layout)
