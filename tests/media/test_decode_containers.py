"""Files whose containers say something else than their frames do, or less: clocks, keyframes, single frames."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpo.media import decode
from grpo.media import frame_table as tables
from grpo.media.frame_table import frame_table
from grpo.media.sequential import decode as decode_packet
from tests.support.changed_videos import with_earlier_sound, without_sync_table
from tests.support.videos import numbers, read_video, write_video


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize(("order", "step"), [((1, 0), 90), ((0, 1), 30), ((0, 0), 0), ((0, 1), 900)])
def test_parts_joined_byte_by_byte_follow_one_another(
    order: tuple[int, int], step: int, codec: str, tmp_path: Path
) -> None:
    """A later part of a recording before an earlier one, neighbours, the same part twice, and one 30 s later."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"bf": "2"}
    for i in {*order}:
        shown = range(i * step, i * step + 30)
        write_video(tmp_path / f"{i}.ts", num_frames=30, pts=shown, codec=codec, options=options)
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join((tmp_path / f"{i}.ts").read_bytes() for i in order))
    clip = read_video(path)
    # 8 of 60 frames, 59/7 apart, and each part has frames 0 to 29
    assert numbers(clip) == [0, 8, 17, 25, 4, 12, 21, 29]
    assert clip.times_s == pytest.approx([round(59 / 7 * i) / 30 for i in range(8)])
    assert clip.duration_s == pytest.approx(2.0)


def test_a_video_that_starts_after_its_sound_says_on_which_clock_its_times_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "late.mkv"
    write_video(path)
    with_earlier_sound(0.4)(path)
    with caplog.at_level(logging.WARNING):
        first, again = (read_video(path) for _ in range(2))
    assert first.times_s[0] == again.times_s[0] == 0.0 and numbers(first)[0] == 0
    (warning,) = caplog.messages
    assert warning == f"{path}: its video starts 0.40 s after the file; times count from the first frame"


def test_a_clip_of_one_frame_is_a_picture_that_fills_its_token(sparse_mp4: str, tmp_path: Path) -> None:
    for name in ("one.mp4", "one.mkv", "one.ts"):
        clip = read_video(write_video(tmp_path / name, num_frames=1))
        assert numbers(clip) == [0, 0] and clip.times_s == (0.0, 0.0)
        assert np.array_equal(*clip.frames_FHWC)
        assert 0.01 < clip.duration_s <= 0.5
    clip = read_video(sparse_mp4, start_s=0.99, end_s=1.02)
    assert numbers(clip) == [30, 30]
    assert clip.times_s == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("h264.mp4", {}),
        ("h265.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
        ("vp8.webm", {"codec": "libvpx", "options": {"cpu-used": "8"}}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("av1.mkv", {"codec": "libsvtav1", "options": {"preset": "12"}}),
        ("prores.mov", {"codec": "prores", "pixel_format": "yuv422p10le", "options": {}}),
        ("mjpeg.mkv", {"codec": "mjpeg", "pixel_format": "yuvj420p", "options": {}}),
    ],
)
def test_a_clip_late_in_a_file_is_read_from_a_keyframe_near_it(
    name: str, video: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / name, **video)
    frame_table(path)
    fed: list[object] = []
    monkeypatch.setattr(
        decode, "decode", lambda *args, **how: fed.append(args) or decode_packet(*args, **how)
    )
    assert numbers(read_video(path, start_s=2.8)) == [84, 86, 87, 89]
    assert 0 < len(fed) < 30


def test_a_file_whose_keyframes_are_none_is_decoded_from_its_start_and_known_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one is found to be false; what a full decoding costs is not paid for each clip of the file."""
    path = tmp_path / "false.mp4"
    write_video(path, codec="libx265", options={"x265-params": "log-level=none:bframes=0"})
    without_sync_table(path)
    counted: list[str] = []
    monkeypatch.setattr(tables, "_counted_table", counted.append)
    assert len(frame_table(str(path)).keyframes) > 4  # every frame is marked, and four are true
    for _ in range(2):
        assert numbers(read_video(path, start_s=1.7))[0] == 51
    assert counted == []


def test_a_false_keyframe_is_noticed_by_the_decoder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPEG-4's decoder begins anywhere, with garbage: what it begins with is looked at."""
    monkeypatch.setattr(tables, "CODECS_WITH_TRUE_KEYFRAMES", ("mpeg4",))
    path = tmp_path / "false.mp4"
    write_video(path, codec="mpeg4", options={})
    without_sync_table(path)
    assert len(frame_table(str(path)).keyframes) == 90
    assert numbers(read_video(path, start_s=2.0)) == [60, 70, 79, 89]


@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_frames_dropped_in_an_avi_are_a_pause(b_frames: str, tmp_path: Path) -> None:
    """20 frames, 40 dropped ones, 30 frames: 3 s at 30 a second, however many packets there are."""
    shown = [*range(20), *range(60, 90)]
    path = write_video(tmp_path / "dropped.avi", num_frames=50, pts=shown, options={"bf": b_frames})
    clip = read_video(path)
    assert clip.duration_s == pytest.approx(3.0)
    # 12 samples, evenly from 0 to 89/30 s: those from 0.81 to 1.89 s find the last frame before the pause
    assert numbers(clip) == [0, 8, 16, 19, 19, 19, 19, 19, 24, 32, 40, 49]
    assert clip.times_s == pytest.approx([89 / 30 * i / 11 for i in range(12)])


def test_writing_av1_leaves_the_process_at_the_priority_that_it_had(tmp_path: Path) -> None:
    """Else later tests' processes, which inherit it, keep all others of the machine from running."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    write_video(tmp_path / "av1.mkv", num_frames=12, codec="libsvtav1", options={"preset": "12"})
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before
