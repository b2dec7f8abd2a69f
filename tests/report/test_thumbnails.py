"""Film strips: the frames that the model saw, in their order, and a reason where they can't be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from grpo.config.load import read_config
from grpo.config.schema import Config
from grpo.media.clip import ClipSource
from grpo.media.decode import read_clip
from grpo.report.thumbnails import SeenClip, picture, strip_file, write_strips
from tests.support.clips import facts_of
from tests.support.stored_runs import scored, write_run
from tests.support.videos import read_number, write_video


def config_of(tmp_path: Path) -> Config:
    return read_config(write_run(tmp_path / "run", {1: [scored(["a"], [1.0])]}) / "config.yaml")


def test_a_picture_has_the_frames_row_after_row():
    frames = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 6, 3), 10, np.uint8)
    sheet = np.asarray(picture(frames, (6, 8)))
    assert sheet.shape == (2 * 8, 16 * 6, 3)
    assert [sheet[4, 6 * index + 3, 0] for index in range(16)] == [10 * index for index in range(16)]
    assert [sheet[12, 6 * index + 3, 0] for index in range(4)] == [160, 170, 180, 190]


def test_a_strip_shows_the_frames_that_the_run_read(tmp_path: Path):
    config = config_of(tmp_path)
    source = ClipSource(video=write_video(tmp_path / "clip.mp4", num_frames=60))
    clip = read_clip(source, settings=config.media)
    seen = SeenClip(source, clip.facts)
    assert write_strips(tmp_path, [seen], config) == {}
    sheet = np.asarray(Image.open(strip_file(tmp_path, seen.name)))
    width_px, height_px = seen.thumbnail_px
    strip = [sheet[:height_px, left : left + width_px] for left in range(0, sheet.shape[1], width_px)]
    assert [read_number(each) for each in strip] == [read_number(each) for each in clip.frames_FHWC]


def test_a_clip_that_is_gone_or_another_one_has_a_reason_in_the_place_of_a_strip(tmp_path: Path):
    config = config_of(tmp_path)
    source = ClipSource(video=write_video(tmp_path / "clip.mp4", num_frames=60))
    facts = read_clip(source, settings=config.media).facts
    gone = SeenClip(ClipSource(video=str(tmp_path / "gone.mp4")), facts)
    other = SeenClip(source, replace(facts, duration_s=99.0))
    failed = write_strips(tmp_path, [gone, other], config)
    assert "gone.mp4" in failed[gone.name] and "not the video that the run read" in failed[other.name]
    assert not (tmp_path / "clips").exists()


def test_large_frames_get_smaller_and_small_ones_stay():
    source = ClipSource(video="x.mp4")
    assert SeenClip(source, facts_of(4, 256, 512, 3)).thumbnail_px == (128, 64)
    assert SeenClip(source, facts_of(4, 56, 56, 3)).thumbnail_px == (56, 56)


def test_a_strips_name_tells_parts_of_a_file_apart():
    facts = facts_of(4, 56, 56, 3)
    names = {SeenClip(ClipSource(video="x.mp4", start_s=start_s), facts).name for start_s in (0.0, 1.0)}
    assert len(names) == 2
