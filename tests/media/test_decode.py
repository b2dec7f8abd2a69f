"""Real video files, each frame with its number in the picture, read back through `read_clip`."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from qwen_vl_utils import vision_process as reference
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision_functional

from grpo.media import decode
from grpo.media import frame_table as tables
from grpo.media.clip import ClipSource
from grpo.media.container import open_video
from grpo.media.decode import plan_clip, probe
from grpo.media.frame_table import frame_table
from grpo.media.frames import resize
from grpo.media.sampling import MediaSettings
from tests.support.tiny import ROOT
from tests.support.videos import SMALL, numbers, read_number, read_video, refusal, write_swapped, write_video


def test_the_chosen_frames_are_the_ones_that_come(sparse_mp4: str) -> None:
    clip = read_video(sparse_mp4)
    # 12 frames over 0..89, 89/11 = 8.09 apart
    assert numbers(clip) == [0, 8, 16, 24, 32, 40, 49, 57, 65, 73, 81, 89]
    assert clip.times_s == pytest.approx([number / 30 for number in numbers(clip)], abs=1e-12)
    assert clip.frames_FHWC.shape == (12, 84, 168, 3)  # 160x96 in steps of 28, at most 32 tokens
    assert clip.sample_fps == pytest.approx(4.0)
    assert clip.duration_s == pytest.approx(3.0)


def test_a_clip_of_no_length_is_the_picture_that_is_shown_then(sparse_mp4: str) -> None:
    """Frame 45 of 30 per second is shown from 1.5 s on; it stands twice, to fill a token in time, at no time."""
    for at_s in (1.5, 1.52):
        source = ClipSource(video=sparse_mp4, start_s=at_s, end_s=at_s)
        clip = read_video(sparse_mp4, start_s=at_s, end_s=at_s)
        assert source.is_picture and clip.is_picture and numbers(clip) == [45, 45]
        assert (clip.times_s, clip.duration_s) == ((0.0, 0.0), 0.5)
        planned = plan_clip(source, settings=SMALL)
        assert (planned.num_frames, planned.height_px) == (2, clip.height_px)
    assert not read_video(sparse_mp4, start_s=1.5, end_s=1.6).is_picture
    for at_s in (3.0, 3.9):  # a little behind the end: the last frame
        source = ClipSource(video=sparse_mp4, start_s=at_s, end_s=at_s)
        probe(source)
        assert numbers(read_video(sparse_mp4, start_s=at_s, end_s=at_s)) == [89, 89]
        assert plan_clip(source, settings=SMALL).num_frames == 2
    assert "the clip starts at 4 s, but the video ends at 3 s" in refusal(sparse_mp4, start_s=4.0, end_s=4.0)


def test_a_clip_inside_the_file_has_its_own_clock(sparse_mp4: str) -> None:
    clip = read_video(sparse_mp4, start_s=1.01, end_s=2.5)
    # Frames 31 (at 1.0333 s) to 75 (at 2.5 s): 45 / 30 * 4 = 6 of them.
    assert numbers(clip) == [31, 40, 49, 57, 66, 75]
    assert clip.times_s[0] == pytest.approx(31 / 30 - 1.01)
    assert clip.times_s[-1] == pytest.approx(2.5 - 1.01)
    assert clip.duration_s == pytest.approx(1.49)


def test_an_end_behind_the_files_end_is_the_files_end(sparse_mp4: str) -> None:
    clip = read_video(sparse_mp4, start_s=1.0, end_s=100.0)
    assert numbers(clip)[-1] == 89
    assert clip.duration_s == pytest.approx(2.0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices of the frames that come out of a decoder, as they come."""
    indices: list[int] = []
    by_pts = decode._by_pts

    def noted(table: Any, frames: Any) -> Any:
        for index, frame in by_pts(table, frames):
            indices.append(index)
            yield index, frame

    monkeypatch.setattr(decode, "_by_pts", noted)
    return indices


def test_what_is_only_marked_as_a_keyframe_is_decoded_from_the_one_before(
    sparse_mp4: str, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = frame_table(sparse_mp4)
    assert table.keyframes.tolist() == [0, 24, 48, 72]
    marked = replace(table, keyframes=np.array([0, 24, 48, 50, 52]))
    # No other table: the file is not decoded from its start.
    monkeypatch.setattr(decode, "frame_tables", lambda _: iter([marked]))
    assert numbers(read_video(sparse_mp4, start_s=53 / 30, end_s=56 / 30)) == [53, 54, 55, 56]
    assert min(decoded) >= 48
    none = replace(table, keyframes=np.array([0, 50, 51, 52]))
    monkeypatch.setattr(decode, "frame_tables", lambda _: iter([none]))
    assert "is no keyframe, but marked as one" in refusal(sparse_mp4, start_s=53 / 30, end_s=56 / 30)


def test_only_the_stretches_that_hold_a_chosen_frame_are_decoded(sparse_mp4: str, decoded: list[int]) -> None:
    assert numbers(read_video(sparse_mp4, start_s=50 / 30, end_s=54 / 30)) == [50, 51, 53, 54]
    # From the keyframe on. Frames 49 and 52 are not wanted, but others depend on them.
    assert decoded == [48, 49, 50, 51, 52, 53, 54]
    decoded.clear()
    few = MediaSettings(fps=0.1, min_frames=2, min_pixels=28 * 28, max_pixels=32 * 28 * 28)
    assert numbers(read_video(sparse_mp4, start_s=2 / 30, end_s=80 / 30, settings=few)) == [2, 80]
    # On 74 and 77, no other frame depends.
    assert decoded == [0, 1, 2, 72, 73, 75, 76, 78, 79, 80]


def test_no_frame_is_left_out_where_frames_may_be_two_fields(tmp_path: Path, decoded: list[int]) -> None:
    """With a packet for each field, half of a frame could be left out."""
    path = write_video(tmp_path / "fields.mp4", options={"bf": "2", "flags": "+ildct+ilme"})
    few = MediaSettings(fps=0.1, min_frames=2, min_pixels=28 * 28, max_pixels=32 * 28 * 28)
    assert numbers(read_video(path, start_s=2 / 30, end_s=12 / 30, settings=few)) == [2, 12]
    assert decoded == [*range(13)]


FORMATS: dict[str, dict[str, Any]] = {
    "no_b_frames.mp4": {"options": {"bf": "0"}},
    "dense_keyframes.mp4": {"gop": 2, "options": {"bf": "0"}},
    "short_gops_with_b_frames.mp4": {"gop": 5, "options": {"bf": "3", "sc_threshold": "0"}},
    "only_keyframes.mp4": {"gop": 1},
    "open_gops.mp4": {"options": {"bf": "3", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}},
    "ntsc.mp4": {"fps": Fraction(30000, 1001)},
    "h265.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3"}},
    "matroska.mkv": {},
    "hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "transport.ts": {},
    "program.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "b": "2M"}},
    "b_frames.avi": {},
    "ten_bit.mp4": {"pixel_format": "yuv420p10le"},
    "full_chroma.mp4": {"pixel_format": "yuv444p"},
    "odd_size.mp4": {"size_px": (100, 70)},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_right_frames_at_the_right_times(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, **FORMATS[name])
    probe(ClipSource(video=path))
    fps = float(FORMATS[name].get("fps", 30))
    for start_s, end_s in ((0.0, None), (0.51, 2.2), (1.7, None), (2.41, 2.95)):
        clip = read_video(path, start_s=start_s, end_s=end_s)
        shown_s = np.array(numbers(clip)) / fps - start_s
        # Matroska rounds times to milliseconds.
        assert np.array(clip.times_s) == pytest.approx(shown_s, abs=0.0011)
        assert all(size % 28 == 0 for size in clip.frames_FHWC.shape[1:3])
        assert clip.num_frames % 2 == 0


def test_a_variable_frame_rate_keeps_true_times(tmp_path: Path) -> None:
    # In ms: 30 frames 20 apart, then 30 frames 100 apart.
    shown_ms = [20 * i for i in range(30)] + [600 + 100 * i for i in range(30)]
    path = write_video(tmp_path / "vfr.mp4", num_frames=60, fps=1000, pts=shown_ms)
    clip = read_video(path)
    # 3.6 s at 4 fps: 14 samples, evenly from 0 to 3.5 s, and each the frame that a player shows then.
    assert clip.times_s == pytest.approx([3.5 * i / 13 for i in range(14)])
    assert numbers(clip) == [
        max(i for i, ms in enumerate(shown_ms) if ms <= 3500 * k / 13) for k in range(14)
    ]
    assert numbers(clip)[:4] == [0, 13, 26, 32]  # at 0, .27, .54 and .81 s
    # In the slow part, 10 frames a second are shown: 1.0 to 3.0 s are 21 frames, 2.1 s, 8 samples at 4 fps.
    slow = read_video(path, start_s=1.0, end_s=3.0)
    assert numbers(slow)[0] == 34 and numbers(slow)[-1] == 54
    assert slow.num_frames == 8
    assert slow.sample_fps == pytest.approx(8 / 2.1)


def test_a_picture_that_stands_still_is_shown_as_often_as_it_is_sampled(tmp_path: Path) -> None:
    """As a recorder of slides writes it: nothing for as long as nothing moves."""
    shown_ms = [0, 100, 200, 300, 8000, 8100, 8200, 8300]
    path = write_video(tmp_path / "slides.mp4", num_frames=8, fps=1000, pts=shown_ms)
    clip = read_video(path)
    assert numbers(clip) == [0, 3, 3, 3, 3, 3, 3, 7]
    assert clip.times_s == pytest.approx([8.3 * i / 7 for i in range(8)])


@pytest.mark.parametrize(
    "options",
    [
        {"bf": "2", "crf": "18"},
        {"bf": "8", "x264-params": "b-pyramid=strict:b-adapt=0:ref=5"},
        {"bf": "3", "x264-params": "b-pyramid=normal:open-gop=1:scenecut=0:weightp=2"},
    ],
)
def test_leaving_frames_out_changes_no_other(options: dict[str, str], tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=75, options=options)
    with av.open(path) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    table = frame_table(path)
    for step in (1, 7, 20, 31):
        with open_video(path) as (container, stream):
            chosen = [*decode._decode(path, container, stream, table, range(3, 75, step))]
        for index, frame in zip(range(3, 75, step), chosen, strict=True):
            assert np.array_equal(frame.to_ndarray(format="rgb24"), everything[index])


def test_frames_that_are_not_stored_in_the_order_of_their_times_are_refused(tmp_path: Path) -> None:
    """A decoder gives such frames as they come; sorting them would be a guess at what the recorder meant."""
    path = write_swapped(tmp_path / "swapped.mkv")
    assert "its frames could not be decoded in the order of their times" in refusal(path)


@pytest.mark.parametrize("name", ["clip.txt", "clip.jpg", "clip.avi", "clip"])
def test_a_wrong_ending_does_not_matter(name: str, sparse_mp4: str, tmp_path: Path) -> None:
    path = shutil.copy(sparse_mp4, tmp_path / name)
    assert numbers(read_video(path))[:3] == [0, 8, 16]


@pytest.mark.slow
def test_a_clip_of_8k_frames_is_held_one_large_frame_at_a_time(tmp_path: Path) -> None:
    large = {"size_px": (7680, 4320), "codec": "mpeg4", "options": {"qscale": "31"}}
    path = write_video(tmp_path / "8k.mp4", num_frames=6, fps=4, gop=1, **large)
    code = (
        "import resource, sys; from tests.support.videos import numbers, read_video\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(numbers(read_video(sys.argv[1])))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found, grown_mib = done.stdout.splitlines()
    assert found == str([*range(6)])
    assert int(grown_mib) < 1200  # a frame is 95 MiB as RGB and 380 as floats; all six would be 2,850


def test_frames_cut_off_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    """An mp4 whose first ten frames lie before time 0, as a cut without re-encoding leaves it."""
    path = write_video(tmp_path / "cut.mp4", pts=range(-10, 80))
    clip = read_video(path)
    assert numbers(clip)[0] == 10 and numbers(clip)[-1] == 89
    assert clip.times_s[-1] == pytest.approx(79 / 30)


def test_the_size_that_is_planned_is_that_of_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "held_upright.mp4", rotation=90)
    plan, clip = plan_clip(ClipSource(video=path), settings=SMALL), read_video(path)
    assert (plan.height_px, plan.width_px) == (clip.height_px, clip.width_px) == (168, 84)


def test_a_stored_rotation_is_applied(tmp_path: Path) -> None:
    path = write_video(tmp_path / "held_upright.mp4", rotation=90)
    clip = read_video(path)
    assert clip.frames_FHWC.shape == (12, 168, 84, 3)
    # The rotation is counter-clockwise: turned back clockwise, the pictures are the original ones.
    lying = [read_number(np.rot90(frame_HWC, -1)) for frame_HWC in clip.frames_FHWC]
    assert lying[:4] == [0, 8, 16, 24]


def test_a_colon_in_a_relative_path_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "concat:30.mp4")
    monkeypatch.chdir(tmp_path)
    assert numbers(read_video("concat:30.mp4"))[0] == 0


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=90)
    assert frame_table(path).end_s == pytest.approx(3.0)
    write_video(tmp_path / "clip.mp4", num_frames=30)
    assert frame_table(path).end_s == pytest.approx(1.0)


def test_threads_read_the_same_as_one_after_another(sparse_mp4: str) -> None:
    starts_s = [random.Random(3).uniform(0, 2.5) for _ in range(24)]

    def read(start_s: float) -> list[int]:
        return numbers(read_video(sparse_mp4, start_s=start_s))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(read, starts_s)) == [read(start_s) for start_s in starts_s]


@pytest.mark.parametrize("size", [(84, 168), (96, 160), (300, 200), (28, 28)])
def test_resizing_equals_torchvisions(size: tuple[int, int]) -> None:
    # Noise has the edges on which bicubic overshoots 0 and 255.
    frame_HWC = np.random.default_rng(0).choice([0, 255, 128], (96, 160, 3)).astype(np.uint8)
    frame_CHW = torch.from_numpy(frame_HWC).permute(2, 0, 1)
    expected_CHW = torchvision_functional.resize(
        frame_CHW, list(size), InterpolationMode.BICUBIC, antialias=True
    )
    assert isinstance(expected_CHW, torch.Tensor)
    ours = resize(frame_HWC, *size).astype(int)
    assert abs(ours - expected_CHW.permute(1, 2, 0).numpy().astype(int)).max() == 0


def _read_all_then_choose(rule: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """A reader for qwen-vl-utils by its own rules, as its torchcodec reader is, on PyAV."""
    with av.open(str(rule["video"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = container.streams.video[0].average_rate
    assert rate is not None
    start, end, total = reference.calculate_video_frame_range(rule, len(frames), float(rate))
    num_sampled = reference.smart_nframes(rule, total, float(rate))
    indices = torch.linspace(start, end, num_sampled).round().long().tolist()
    frames_FCHW = torch.from_numpy(np.stack([frames[index] for index in indices])).permute(0, 3, 1, 2)
    return frames_FCHW, {}, num_sampled / total * float(rate)


@pytest.mark.parametrize(
    ("rule", "size_px"),
    [
        ({}, (160, 96)),
        ({"fps": 5.0, "max_frames": 8}, (640, 360)),
        ({"fps": 0.5}, (100, 70)),
        ({"video_start": 0.4, "video_end": 2.3, "fps": 3.0}, (320, 480)),
        ({"video_start": 1.0, "min_pixels": 28 * 28, "max_pixels": 20 * 28 * 28}, (322, 242)),
        ({"video_end": 2.0, "min_pixels": 784, "total_pixels": 160 * 784, "fps": 10.0}, (640, 360)),
    ],
)
def test_a_clip_equals_what_qwen_vl_utils_makes_of_the_file(
    rule: dict[str, Any], size_px: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", size_px=size_px)
    monkeypatch.setitem(reference.VIDEO_READER_BACKENDS, "pyav", _read_all_then_choose)
    monkeypatch.setattr(reference, "get_video_reader_backend", lambda: "pyav")
    expected_FCHW, sample_fps = reference.fetch_video({"video": path, **rule}, return_video_sample_fps=True)
    settings = MediaSettings(**{key: value for key, value in rule.items() if not key.startswith("video_")})
    clip = read_video(
        path, start_s=rule.get("video_start", 0.0), end_s=rule.get("video_end"), settings=settings
    )
    assert clip.sample_fps == pytest.approx(sample_fps)
    assert isinstance(expected_FCHW, torch.Tensor)
    expected_FHWC = expected_FCHW.permute(0, 2, 3, 1).numpy()
    assert clip.frames_FHWC.shape == expected_FHWC.shape
    assert abs(clip.frames_FHWC.astype(float) - expected_FHWC).max() <= 1


def test_probing_decodes_nothing(sparse_mp4: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []
    monkeypatch.setattr(decode, "_decode", decoded.append)
    monkeypatch.setattr(tables, "decode_parts", decoded.append)
    probe(ClipSource(video=sparse_mp4))
    assert decoded == []


def test_no_file_stays_open(sparse_mp4: str, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        read_video(sparse_mp4, start_s=1.0)
        refusal(text)
        refusal(sparse_mp4, start_s=2.99)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
