"""Records about images: the frames of a clip one by one, a folder of them, or a single picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from grpo.config.schema import DatasetConfig
from grpo.data import READERS, check_media, load_samples
from grpo.groups import Sample
from grpo.media.clip import ClipSource, MediaError
from grpo.media.reading import read_source
from grpo.media.sampling import MediaSettings
from tests.support import tiny
from tests.support.clips import source_of
from tests.support.readers import EGOCROSS, LLAVA, OPENEQA, VIDEO_R1, WRITERS, Record

SETTINGS = MediaSettings(fps=2.0, min_pixels=28 * 28, max_pixels=8 * 28 * 28)
NATIVE: Record = {"id": "q", "question": "What?", "answer": "this", "task": "text"}
Write = Callable[..., Path]


def picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((56, 84, 3), value, np.uint8)).save(path)


def native(folder: Path, **fields: Any) -> DatasetConfig:
    path = folder / "train.jsonl"
    path.write_text(json.dumps(NATIVE | fields))
    return DatasetConfig(path=str(path))


def test_frames_have_a_rate_or_times_of_their_own(tmp_path: Path) -> None:
    listed = ["f/0.png", "f/1.png"]
    paths = tuple(f"{tmp_path}/{name}" for name in listed)
    [sample] = load_samples([native(tmp_path, frames=listed, frame_fps=4)])
    assert sample.clip_source == ClipSource(frames=paths, frame_fps=4.0) and not sample.columns
    [sample] = load_samples([native(tmp_path, frames=listed, frame_times_s=[0, 0.5], keyframes_s=[0.5])])
    assert sample.clip_source == ClipSource(frames=paths, frame_times_s=(0, 0.5)) and not sample.columns
    assert sample.keyframes_s == ((0.5, 0.5),)


def test_frames_with_times_begin_with_the_first_of_them(tmp_path: Path) -> None:
    times = {"frames": ["0.png", "1.png"], "frame_times_s": [60, 61.5]}
    [sample] = load_samples([native(tmp_path, **times, keyframes_s=[61])])
    assert (source_of(sample).start_s, sample.keyframes_s) == (60.0, ((1.0, 1.0),))
    with pytest.raises(ValueError, match="'keyframes_s': 59 to 59 s lies outside the clip"):
        load_samples([native(tmp_path, **times, keyframes_s=[59])])


def test_the_data_sets_rate_is_for_records_without_one(tmp_path: Path) -> None:
    dataset = native(tmp_path, frames=["0.png", "1.png"])
    with pytest.raises(
        ValueError, match=r"train.jsonl:1: nothing says when its frames are shown: set frame_fps"
    ):
        load_samples([dataset])
    [sample] = load_samples([DatasetConfig(path=dataset.path, frame_fps=0.5)])
    assert source_of(sample).frame_fps == 0.5
    [sample] = load_samples(
        [DatasetConfig(path=native(tmp_path, frames=["0.png"], frame_fps=3).path, frame_fps=0.5)]
    )
    assert source_of(sample).frame_fps == 3


def test_a_folder_of_frames_needs_a_rate_and_a_picture_none(tmp_path: Path) -> None:
    picture(tmp_path / "f" / "0.png")
    folder = native(tmp_path, frames="f")
    with pytest.raises(ValueError, match="nothing says when its frames are shown"):
        load_samples([folder])
    [sample] = load_samples([DatasetConfig(path=folder.path, frame_fps=2)])
    assert sample.clip_source == ClipSource(frames=(f"{tmp_path}/f",), frame_fps=2)
    for field in ({"image": "f/0.png"}, {"images": ["f/0.png"]}, {"frames": ["f/0.png"]}):
        [sample] = load_samples([native(tmp_path, **field)])
        assert sample.clip_source == ClipSource(frames=(f"{tmp_path}/f/0.png",))


def egocross(folder: Path) -> tuple[str, Path]:
    for path in EGOCROSS["video_path"]:
        picture(folder / path.lstrip("/"))
    written = WRITERS["egocross"](folder, EGOCROSS)
    for video in folder.rglob("*.mp4"):  # the writer's, which would be preferred
        video.unlink()
    return "egocross", written


def openeqa(folder: Path) -> tuple[str, Path]:
    written = WRITERS["openeqa"](folder, OPENEQA)
    for video in folder.rglob("*.mp4"):
        video.unlink()
    for number in range(5):
        picture(folder / OPENEQA["episode_history"] / f"{number}-rgb.png")
    return "openeqa", written


def sharegpt(folder: Path) -> tuple[str, Path]:
    """As EgoCross's support set."""
    names = [f"frames/{number}.jpg" for number in range(3)]
    for name in names:
        picture(folder / name)
    question = {"role": "user", "content": "<image>" * 3 + "What is done?\nA) cutting\nB) washing"}
    record = {"messages": [question, {"role": "assistant", "content": "B"}], "images": names}
    path = folder / "train.json"
    path.write_text(json.dumps([record]))
    return "sharegpt", path


def llava(folder: Path) -> tuple[str, Path]:
    """As EVUD's VSR part."""
    picture(folder / "vsr" / "1.jpg")
    turns = [{"from": "human", "value": "<image>\nIs the cat left of the dog?"}, LLAVA["conversations"][1]]
    path = folder / "vsr.json"
    path.write_text(json.dumps([{"id": 1, "image": "vsr/1.jpg", "conversations": turns}]))
    return "llava", path


def video_r1(folder: Path) -> tuple[str, Path]:
    picture(folder / "CLEVR" / "one.png")
    path = folder / "r1.json"
    path.write_text(json.dumps([VIDEO_R1 | {"data_type": "image", "path": "./CLEVR/one.png"}]))
    return "video_r1", path


@pytest.mark.parametrize(
    ("write", "num_given", "times_s"),
    [
        (egocross, 3, (0, 2, 4, 4)),  # 0.5 per second; the last one fills the token
        (openeqa, 1, (0, 2, 4, 6, 8, 8)),  # the folder
        (sharegpt, 3, (0, 2, 4, 4)),
        (llava, 1, (0, 0)),
        (video_r1, 1, (0, 0)),
    ],
)
def test_every_reader_of_images_gives_clips_and_prompts(
    write: Callable[[Path], tuple[str, Path]], num_given: int, times_s: tuple[float, ...], tmp_path: Path
) -> None:
    reader, path = write(tmp_path)
    frame_fps = 0.5 if num_given != 1 or reader == "openeqa" else None
    samples = load_samples([DatasetConfig(reader=reader, path=str(path), frame_fps=frame_fps)])
    check_media(samples, num_probes=8)
    [sample] = samples
    source = source_of(sample)
    assert source.video is None and len(source.frames) == num_given
    clip = read_source(source, settings=SETTINGS)
    assert clip.times_s == times_s
    prompt = tiny.prompt(sample, clip)
    pad = tiny.family().pad_id(clip)
    assert prompt.token_ids.count(pad) == len(times_s) // 2 * 2 * 3
    assert (pad == tiny.family().config.image_token_id) == (len(set(times_s)) == 1)
    assert "<image>" not in sample.question


def test_egocrosss_rate_is_that_of_its_own_code(tmp_path: Path) -> None:
    frames = [f"/e/frames/{number}.png" for number in range(2)]
    for dataset, ending, fps in (
        ("CholecTrack20", "png", 1.0),
        ("CholecTrack20", "jpg", 0.5),
        ("EgoPet", "png", 0.5),
    ):
        paths = [frame.replace("png", ending) for frame in frames]
        written = WRITERS["egocross"](tmp_path, EGOCROSS | {"dataset": dataset, "video_path": paths})
        for video in tmp_path.rglob("*.mp4"):
            video.unlink()
        [sample] = READERS["egocross"](str(written), None)
        assert source_of(sample).frame_fps == fps


def test_the_check_finds_images_that_are_missing_or_none(tmp_path: Path) -> None:
    [sample] = load_samples([native(tmp_path, image="0.png")])
    with pytest.raises(FileNotFoundError, match=r"train.jsonl:1: sample .*: no such image: .*0.png$"):
        check_media([sample], num_probes=0)
    (tmp_path / "0.png").write_text("no image")
    with pytest.raises(MediaError, match=r"train.jsonl:1: .*0.png: cannot be read as an image"):
        check_media([sample], num_probes=1)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    source = ClipSource(frames=(f"{tmp_path}/loop/0.png",))
    looped = Sample(id="l", question="?", answer="!", task="text", source="here:1", clip_source=source)
    check_media([looped], num_probes=0)  # not missing: left to the run, which names it
    with pytest.raises(MediaError, match="here:1: .*loop/0.png: no such file"):
        check_media([looped], num_probes=1)


def test_the_check_names_any_image_of_a_list_that_is_missing(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        picture(tmp_path / name)
    dataset = native(tmp_path, frames=names, frame_fps=1)
    check_media(load_samples([dataset]), num_probes=0)
    (tmp_path / "4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.jsonl:1: sample .*: no such image: .*/4.png$"):
        check_media(load_samples([dataset]), num_probes=0)
