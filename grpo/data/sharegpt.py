"""ShareGPT conversations as LLaMA-Factory reads them (https://github.com/hiyouga/LLaMA-Factory, data/README.md).

`{"messages": [{"role": "user", "content": "<video>..."}, {"role": "assistant", ...}], "videos": ["a.mp4"]}`,
or `conversations` of `from` and `value`. A `dataset_info.json` in the file's folder or the one above it that
lists the file says what its columns and tags are called. `images`, an `<image>` each in the first question, are the
frames of a clip, as in EgoCross's support set; with several of them, `frame_fps` in the record or of the data set
in the config says how many there are per second. A system prompt, in a turn or a column of its own, is kept as the
column `system` and not shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo.data.conversations import (
    SYSTEM,
    Tags,
    exchanges,
    said_system,
    samples_of,
    without_media,
    without_system,
)
from grpo.data.fields import Record, as_text, get_objects, get_rate, shown, without
from grpo.data.records import Place, load_object, read_samples
from grpo.groups import Sample
from grpo.media.clip import ClipSource

INFO_FILE = "dataset_info.json"
OPENAI = Tags(role="role", content="content", user="user", assistant="assistant")


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of a file's columns and of the parts of its turns; None: the usual names, by what is there."""

    messages: str | None = None
    images: str = "images"
    videos: str = "videos"
    audios: str = "audios"
    system: str = "system"
    tags: Tags | None = None


def read_sharegpt(
    path: str | os.PathLike[str], media_root: str | os.PathLike[str] | None = None
) -> list[Sample]:
    return said_system(
        path, read_samples(path, media_root, translate=partial(translate, layout=_layout(Path(path))))
    )


def translate(record: Record, place: Place, *, layout: Layout) -> Iterator[Sample]:
    if record.get(layout.audios):
        raise ValueError(f"{layout.audios!r} is not supported: {shown(record[layout.audios])}")
    messages = layout.messages or ("messages" if "messages" in record else "conversations")
    turns = get_objects(record, messages)
    tags = layout.tags or (OPENAI if turns and OPENAI.role in turns[0] else Tags())
    system, spoken = without_system(turns, tags)
    plain, num_media = without_media(exchanges(spoken, tags))
    if record.get(layout.system):
        system = {SYSTEM: record[layout.system]} | system
    videos = record.get(layout.videos) or []
    if type(videos) is not list or len(videos) > 1:
        raise ValueError(f"{layout.videos!r} must be a list of one path: {shown(videos)}")
    images = record.get(layout.images) or []
    frames = place.images(images, layout.images) if images else ()
    if videos and frames:
        raise ValueError(f"{layout.videos!r} and {layout.images!r} in a conversation are not supported")
    if frames and num_media[0] != len(frames):
        raise ValueError(
            f"{num_media[0]} media tokens in the first question for {len(frames)} {layout.images!r}, a clip's frames"
        )
    if sum(num_media) != len(videos) + len(frames):
        raise ValueError(f"{sum(num_media)} media tokens for {len(videos) + len(frames)} videos or images")
    clip_source = None
    if videos or frames:
        video = place.media(as_text(videos[0], layout.videos)) if videos else None
        clip_source = ClipSource(video=video, frames=frames, frame_fps=get_rate(record, "frame_fps"))
    yield from samples_of(
        plain,
        place,
        name=str(place.number),  # such records have no names of their own
        clip_source=clip_source,
        columns=without(
            record, messages, layout.videos, layout.images, layout.audios, layout.system, "frame_fps"
        )
        | system,
    )


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
    return Layout()


def _names(file_name: object, folder: Path, file: Path) -> bool:
    return isinstance(file_name, str) and os.path.normpath(folder / file_name) == os.path.normpath(file)


def _read_entry(entry: Record) -> Layout:
    if entry.get("formatting") not in ("sharegpt", "openai"):
        raise ValueError(f"'formatting' must be sharegpt, not {shown(entry.get('formatting', 'alpaca'))}")
    columns, tags = (_texts(entry, key) for key in ("columns", "tags"))
    own = {
        key: columns[key] for key in ("messages", "images", "videos", "audios", "system") if key in columns
    }
    defaults = OPENAI if entry["formatting"] == "openai" else Tags()
    names = {part: tags.get(f"{part}_tag", getattr(defaults, part)) for part in Tags.__slots__}
    return Layout(**own, tags=Tags(**names) if tags or entry["formatting"] == "openai" else None)


def _texts(entry: Record, key: str) -> dict[str, Any]:
    value = entry.get(key) or {}
    if type(value) is not dict:
        raise ValueError(f"{key!r} must be an object, not {shown(value)}")
    return {name: as_text(text, name) for name, text in value.items() if text is not None}
