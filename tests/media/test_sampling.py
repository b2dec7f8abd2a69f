"""Our sampling and resizing rules against qwen-vl-utils' own functions."""

from __future__ import annotations

import math
import random
from typing import Any, cast

import numpy as np
import pytest
from qwen_vl_utils import vision_process as reference

from grpo.media.sampling import (
    QWEN2_5_VL,
    MediaSettings,
    PatchShape,
    TooShort,
    clip_fps,
    clip_frame_size,
    frame_indices,
    frame_max_pixels,
    frame_range,
    num_sampled_frames,
    resize_target,
)

FRAME_RATES = (24.0, 25.0, 29.97, 30.0, 30000 / 1001, 50.0, 59.94, 12.5, 7.0)


def test_the_defaults_are_the_references() -> None:
    settings, factor = MediaSettings(), QWEN2_5_VL.token_px
    assert settings.fps == reference.FPS
    assert settings.min_frames == reference.FPS_MIN_FRAMES
    assert settings.max_frames == reference.FPS_MAX_FRAMES
    assert settings.min_pixels == reference.VIDEO_MIN_TOKEN_NUM * factor**2
    assert settings.max_pixels == reference.VIDEO_MAX_TOKEN_NUM * factor**2
    assert settings.total_pixels == reference.MODEL_SEQ_LEN * factor**2 * 0.9
    assert QWEN2_5_VL.merge == reference.SPATIAL_MERGE_SIZE
    assert QWEN2_5_VL.temporal_frames == reference.FRAME_FACTOR


def test_the_number_of_frames_is_the_references() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        num_frames = rng.choice([rng.randrange(2, 40), rng.randrange(2, 40_000)])
        video_fps = rng.choice(FRAME_RATES)
        min_frames = rng.randrange(1, 20)
        rule = {
            "fps": rng.choice([0.5, 1.0, 2.0, 4.0, rng.uniform(0.1, 60)]),
            "min_frames": min_frames,
            "max_frames": rng.randrange(max(min_frames, 2), 900),
        }
        expected = reference.smart_nframes(rule, num_frames, video_fps)
        assert num_sampled_frames(num_frames, video_fps, MediaSettings(**rule)) == expected


def test_with_defaults_the_number_of_frames_is_the_references() -> None:
    for num_frames in (2, 3, 4, 5, 89, 90, 91, 300, 11_519, 11_520, 11_521, 50_000):
        expected = reference.smart_nframes({}, num_frames, 30.0)
        assert num_sampled_frames(num_frames, 30.0, MediaSettings()) == expected


def test_a_single_frame_is_repeated_as_by_the_models_own_processor() -> None:
    """qwen-vl-utils refuses it."""
    with pytest.raises(ValueError, match="nframes"):
        reference.smart_nframes({}, 1, 30.0)
    assert num_sampled_frames(1, 30.0, MediaSettings()) == 2
    assert num_sampled_frames(1, 30.0, MediaSettings(max_frames=4), temporal_frames=4) == 4
    with pytest.raises(ValueError, match="at least 4 frames are needed, the clip has 2"):
        num_sampled_frames(2, 30.0, MediaSettings(), temporal_frames=4)


def test_another_temporal_patch_gives_multiples_of_it() -> None:
    # 90 frames at 30 fps are 3 s; at 3 fps 9 frames, and the multiple of 4 below is 8.
    assert num_sampled_frames(90, 30.0, MediaSettings(fps=3.0), temporal_frames=4) == 8


def test_the_range_of_frames_is_the_references_at_a_constant_rate() -> None:
    rng = random.Random(1)
    num_refused = 0
    for _ in range(3000):
        num_frames = rng.randrange(2, 2000)
        video_fps = rng.choice(FRAME_RATES)
        start_s = _time_between_frames(rng, num_frames, video_fps)
        end_s = _time_between_frames(rng, num_frames, video_fps)
        rule = {"video_start": start_s, "video_end": end_s}
        times_s = np.arange(num_frames) / video_fps
        first, last = frame_range(times_s, start_s or 0.0, end_s)
        try:
            expected = reference.calculate_video_frame_range(rule, num_frames, video_fps)
        except ValueError:
            # The reference also refuses a range of one frame, which we refuse in the next step.
            assert last - first + 1 < QWEN2_5_VL.temporal_frames
            num_refused += 1
        else:
            assert (first, last, last - first + 1) == expected
    assert 100 < num_refused < 2000


def _time_between_frames(rng: random.Random, num_frames: int, video_fps: float) -> float | None:
    """Or a whole second, or None.

    A frame's own time in decimals, such as 5.06 s at 50 fps, is no test: 5.06 * 50 is 252.99999999999997,
    so the reference loses frame 253.
    """
    seconds = rng.uniform(0, 1.2 * num_frames / video_fps)
    whole = int(seconds) if video_fps.is_integer() else seconds
    return rng.choice([None, seconds, whole])


def test_a_frame_shown_at_the_very_end_belongs_to_the_range() -> None:
    times_s = np.arange(300) / 50
    assert frame_range(times_s, 5.06, 5.06) == (253, 253)


def test_the_range_of_frames_follows_the_frames_own_times() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 5.0, 6.0, 6.1])
    assert frame_range(times_s, 0.2, 6.0) == (2, 4)
    assert frame_range(times_s, 0.15, None) == (2, 5)
    assert frame_range(times_s, 1.0, 4.0) == (3, 2)  # nothing is shown in between


def test_frame_indices_are_spread_from_the_first_to_the_last() -> None:
    # 0, 29.667, 59.333, 89
    assert frame_indices(0, 89, 4) == [0, 30, 59, 89]
    assert frame_indices(10, 11, 2) == [10, 11]
    # 0, 2.5, 5: a half goes to the even neighbour, as in torch.round
    assert frame_indices(0, 5, 3) == [0, 2, 5]


def test_the_files_rate_holds_unless_the_clips_frames_contradict_it() -> None:
    # Matroska rounds to milliseconds: 60 frames in 1.999 s are 30 fps, not 30.015.
    assert clip_fps(60, 1.999, 30.0) == 30.0
    # A slow stretch of a file with a variable rate: 20 frames in 2 s.
    assert clip_fps(20, 2.0, 30.0) == 10.0
    assert clip_fps(20, 2.0, None) == 10.0


@pytest.mark.parametrize("file_fps", [None, 30.0])
def test_frames_that_last_no_time_are_too_short(file_fps: float | None) -> None:
    with pytest.raises(TooShort, match="shown for 0 s"):
        clip_fps(1, 0.0, file_fps)


def test_the_resize_target_is_the_references() -> None:
    rng = random.Random(2)
    for _ in range(5000):
        height, width = rng.randrange(8, 2500), rng.randrange(8, 2500)
        min_pixels = rng.randrange(1, 200_000)
        max_pixels = min_pixels + rng.choice([0, rng.randrange(600_000), rng.random() * 1e6])
        if max(height, width) > 200 * min(height, width):
            continue
        expected = reference.smart_resize(height, width, 28, min_pixels, cast(int, max_pixels))
        target = resize_target(height, width, factor_px=28, min_pixels=min_pixels, max_pixels=max_pixels)
        assert target == expected


def test_a_frame_like_a_line_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 200 times"):
        clip_frame_size(10, 2001, 4, MediaSettings(), QWEN2_5_VL)
    with pytest.raises(ValueError, match="don't fit into media.max_pixels"):
        clip_frame_size(10, 2000, 4, MediaSettings(min_pixels=1, max_pixels=28 * 28), QWEN2_5_VL)


@pytest.mark.parametrize("total_pixels", [90_316_800, 3_000_000, 200_000])
@pytest.mark.parametrize("num_sampled", [2, 16, 300, 768])
@pytest.mark.parametrize("size", [(1080, 1920), (56, 56), (480, 641)])
def test_the_frame_size_is_what_the_reference_resizes_frames_to(
    size: tuple[int, int], num_sampled: int, total_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader is replaced by one that returns frames of one pixel value without any storage."""
    import torch

    frames_FCHW = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(num_sampled, 1, *size)
    monkeypatch.setitem(reference.VIDEO_READER_BACKENDS, "ours", lambda _: (frames_FCHW, {}, 2.0))
    monkeypatch.setattr(reference, "get_video_reader_backend", lambda: "ours")
    resized_to: list[list[int]] = []

    def record_target(frames: Any, target: list[int], **_: object) -> Any:
        resized_to.append(target)
        return frames[:1]

    monkeypatch.setattr("torchvision.transforms.functional.resize", record_target)
    reference.fetch_video({"video": "any", "total_pixels": total_pixels})
    settings = MediaSettings(total_pixels=total_pixels)
    assert list(clip_frame_size(*size, num_sampled, settings, QWEN2_5_VL)) == resized_to[0]


def test_many_frames_share_the_clips_pixels() -> None:
    # 20 frames make 10 pairs, each with a tenth of the total.
    assert frame_max_pixels(20, MediaSettings(total_pixels=3_000_000)) == 300_000
    # Never below 1.05 times the minimum.
    assert frame_max_pixels(768, MediaSettings(total_pixels=1)) == math.floor(1.05 * 100_352)


def test_a_larger_patch_gives_larger_steps() -> None:
    size = clip_frame_size(720, 1280, 8, MediaSettings(), PatchShape(patch_px=16))
    assert size[0] % 32 == size[1] % 32 == 0
