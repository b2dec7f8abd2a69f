"""Clips of image files: sampled and resized by the rules of videos, or refused in one line."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import vision_process as reference

from grpo.media.clip import ClipSource, MediaError
from grpo.media.disk_cache import entry_name
from grpo.media.frames import MAX_SOURCE_PIXELS
from grpo.media.images import probe_images, read_images
from grpo.media.reading import plan_source
from grpo.media.sampling import QWEN2_5_VL, MediaSettings
from tests.support import tiny
from tests.support.videos import SMALL, numbered_picture, numbers, read_video, write_bomb, write_video

WIDTH, HEIGHT = 168, 112
"""The size that frames keep under SMALL."""


def write_frames(
    folder: Path, count: int, *, size_px: tuple[int, int] = (WIDTH, HEIGHT), ending: str = "png"
):
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.{ending}" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(numbered_picture(number, *size_px)).save(path)
    return tuple(map(str, paths))


def refusal(source: ClipSource, settings: MediaSettings = SMALL) -> str:
    with pytest.raises(MediaError) as caught:
        read_images(source, settings=settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def of_image(path: Path) -> ClipSource:
    return ClipSource(frames=(str(path),))


def test_frames_are_sampled_as_a_video_of_them_is(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "f", 90)
    video = write_video(tmp_path / "a.mp4", num_frames=90, size_px=(WIDTH, HEIGHT))
    for start_s, end_s in ((0.0, None), (0.5, 2.0), (1.01, None)):
        source = ClipSource(frames=frames, frame_fps=30.0, start_s=start_s, end_s=end_s)
        clip = read_images(source, settings=SMALL)
        other = read_video(video, start_s=start_s, end_s=end_s)
        assert numbers(clip) == numbers(other)
        assert clip.times_s == pytest.approx(other.times_s)
        assert (clip.sample_fps, clip.duration_s) == pytest.approx((other.sample_fps, other.duration_s))
        assert clip.frames_FHWC.shape == other.frames_FHWC.shape


def test_of_frames_that_were_sampled_all_are_taken_and_the_last_fills_the_token(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "f", 5)
    clip = read_images(ClipSource(frames=frames, frame_fps=0.5), settings=SMALL)
    assert numbers(clip) == [0, 1, 2, 3, 4, 4]
    assert clip.times_s == (0, 2, 4, 6, 8, 8)
    assert (clip.sample_fps, clip.duration_s) == (0.5, 10.0)
    few = replace(SMALL, min_frames=2, max_frames=5)  # no more than four of them make whole tokens
    assert len(numbers(read_images(ClipSource(frames=frames, frame_fps=0.5), settings=few))) == 4


def test_what_is_planned_without_decoding_is_what_is_read(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "f", 9, size_px=(300, 200))
    source = ClipSource(frames=frames, frame_fps=0.5)
    for settings in (
        SMALL,
        replace(SMALL, max_tokens=40),
        replace(SMALL, max_tokens=5, fps=0.1, min_frames=2),
    ):
        plan = plan_source(source, settings=settings)
        clip = read_images(source, settings=settings)
        assert (plan.num_frames, plan.height_px, plan.width_px) == clip.frames_FHWC.shape[:3]
    assert clip.num_frames == 2  # 4 of them at least would be more than 5 tokens


def test_frames_with_times_of_their_own_are_chosen_by_time(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "f", 6)
    times_s = (10.0, 10.1, 10.2, 10.3, 12.0, 14.0)
    clip = read_images(
        ClipSource(frames=frames, frame_times_s=times_s, start_s=10.0), settings=replace(SMALL, fps=1.0)
    )
    assert clip.times_s == pytest.approx(np.linspace(0, 4, 4))
    assert numbers(clip) == [0, 3, 4, 5]


def test_a_single_picture_is_one_frame_twice(tmp_path: Path) -> None:
    [frame] = write_frames(tmp_path / "f", 1)
    clip = read_images(ClipSource(frames=(frame,)), settings=SMALL)
    assert clip.num_frames == 2 and clip.times_s == (0, 0)
    assert np.array_equal(clip.frames_FHWC[0], clip.frames_FHWC[1])
    assert np.array_equal(clip.frames_FHWC[0], numbered_picture(0, WIDTH, HEIGHT))


def test_a_clip_of_a_single_picture_is_to_the_model_what_an_image_is(tmp_path: Path) -> None:
    """The same tokens, features and positions as transformers' own."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (56, 84, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    clip = read_images(of_image(tmp_path / "noise.png"), settings=SMALL)
    family, model = tiny.family(), tiny.family().load_model(torch.float32).eval()
    prompt = tiny.prompt(tiny.sample(), clip)
    ids_1P = torch.tensor([prompt.token_ids])
    features, grid = tiny.pixels(clip)
    image = family.processor.image_processor(
        images=[clip.frames_FHWC[0].copy()], do_resize=False, return_tensors="pt"
    )
    assert family.config.video_token_id not in prompt.token_ids
    with torch.no_grad():
        ours = model(
            input_ids=ids_1P,
            pixel_values=features,
            image_grid_thw=grid,
            position_ids=family.positions(prompt)[:, None],
        ).logits
        theirs = model(
            input_ids=ids_1P,
            pixel_values=image["pixel_values"],
            image_grid_thw=image["image_grid_thw"],
            mm_token_type_ids=(ids_1P == family.config.image_token_id).int(),
        ).logits
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_resizing_agrees_with_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = [
        Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((300, 200)) for _ in range(3)
    ]
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for image, path in zip(smooth, paths, strict=True):
        image.save(path)
    settings = MediaSettings(min_pixels=28 * 28, max_pixels=25 * 28 * 28)
    clip = read_images(ClipSource(frames=tuple(paths), frame_fps=0.5), settings=settings)
    limits = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    frames_FCHW, fps = reference.fetch_video(
        {"video": paths, "sample_fps": 0.5, **limits}, return_video_sample_fps=True
    )
    assert isinstance(frames_FCHW, torch.Tensor)
    difference = clip.frames_FHWC.astype(float) - frames_FCHW.permute(0, 2, 3, 1).numpy()
    assert fps == clip.sample_fps
    assert np.abs(difference).max() <= 2 and np.abs(difference).mean() < 0.3


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    write_frames(tmp_path / "f", 12, ending="jpg")
    (tmp_path / "f" / "notes.txt").write_text("no image")
    clip = read_images(ClipSource(frames=(f"{tmp_path}/f",), frame_fps=0.5), settings=SMALL)
    assert numbers(clip) == [*range(12)]


def test_an_image_is_shown_as_a_viewer_shows_it(tmp_path: Path) -> None:
    upright = numbered_picture(5, WIDTH, HEIGHT)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise by a quarter
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "turned.png", exif=exif)
    half = np.concatenate([upright, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=2)
    Image.fromarray(half, "RGBA").save(tmp_path / "glass.png")
    Image.fromarray(upright[:, :, 0]).save(tmp_path / "grey.png")
    for name, expected in (("turned", upright), ("glass", np.full_like(upright, 255)), ("grey", upright)):
        clip = read_images(of_image(tmp_path / f"{name}.png"), settings=SMALL)
        assert np.array_equal(clip.frames_FHWC[0], expected), name


@pytest.mark.parametrize("side_px", [8200, 12_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(
    side_px: int, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    write_bomb(tmp_path / "bomb.png", side_px=side_px)
    assert side_px**2 > MAX_SOURCE_PIXELS
    message = refusal(of_image(tmp_path / "bomb.png"))
    assert "bomb.png" in message and "pixels" in message
    with pytest.raises(MediaError):
        probe_images(of_image(tmp_path / "bomb.png"))
    assert not recwarn.list


def test_a_video_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=4)
    monkeypatch.setattr("grpo.media.frames.MAX_SOURCE_PIXELS", 160 * 96 - 1)
    with pytest.raises(MediaError, match="160x96 pixels are more than 15,359"):
        read_video(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.png", b""), ("text.jpg", b"this is a text"), ("video.png", b"")):
        (tmp_path / name).write_bytes(content)
    os.replace(write_video(tmp_path / "video.mp4", num_frames=4), tmp_path / "video.png")
    for name in ("empty.png", "text.jpg", "video.png"):
        assert f"{name}: cannot be read as an image" in refusal(of_image(tmp_path / name))
    assert refusal(of_image(tmp_path / "nowhere.png")).endswith("nowhere.png: no such file")
    os.mkfifo(tmp_path / "pipe.png")
    # It is not waited for.
    assert refusal(of_image(tmp_path / "pipe.png")).endswith("not a file")


def test_an_image_may_have_another_kinds_ending(tmp_path: Path) -> None:
    Image.fromarray(numbered_picture(3, WIDTH, HEIGHT)).save(tmp_path / "a.jpg", format="PNG")
    assert numbers(read_images(of_image(tmp_path / "a.jpg"), settings=SMALL)) == [3, 3]


def test_damaged_images_are_refused_or_read_but_nothing_else_happens(tmp_path: Path) -> None:
    """Cut off: always refused. Changed bytes: whatever Pillow raises is a refusal."""
    for ending in ("png", "jpg", "webp", "bmp"):
        [good] = write_frames(tmp_path / ending, 1, ending=ending)
        content, path = Path(good).read_bytes(), tmp_path / f"bad.{ending}"
        for cut in (len(content) // 2, 30):
            path.write_bytes(content[:cut])
            refusal(of_image(path))
        for seed in range(60):
            rng = random.Random(seed)
            at = rng.randrange(len(content))
            path.write_bytes(content[:at] + rng.randbytes(8) + content[at + 8 :])
            with suppress(MediaError):
                read_images(of_image(path), settings=SMALL)


def test_pixels_of_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((56, 56), np.uint16)).save(tmp_path / "depth.png")
    assert "not of 8 bits" in refusal(of_image(tmp_path / "depth.png"))


def test_folders_that_give_no_frames_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    source = ClipSource(frames=(str(folder),), frame_fps=1.0)
    assert f"{folder}: no images in this folder" in refusal(source)
    write_frames(folder, 3)
    assert "3 images, but times for 2" in refusal(replace(source, frame_fps=None, frame_times_s=(0.0, 1.0)))
    assert "nothing says when its 3 images are shown" in refusal(replace(source, frame_fps=None))
    assert "starts at 5 s, but the images end at 3 s" in refusal(replace(source, start_s=5.0))
    assert "no frame is shown" in refusal(replace(source, start_s=0.5, end_s=0.6))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refusal(ClipSource(frames=(f"{tmp_path}/loop",))).endswith("loop: no such file")
    Image.fromarray(numbered_picture(0, 56, 56)).save(folder / "1.png")
    assert "the frame size changes" in refusal(source)


def test_an_unreadable_folder_is_refused_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    write_frames(folder, 2)
    write_video(folder / "a.mp4", num_frames=4)
    os.chmod(folder, 0)
    was = os.geteuid()
    try:
        if was == 0:
            for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
                os.chmod(above, 0o755)
            os.seteuid(65534)
        assert "f: cannot be read: Permission denied" in refusal(
            ClipSource(frames=(str(folder),), frame_fps=1.0)
        )
        assert "0.png: cannot be read: Permission denied" in refusal(of_image(folder / "0.png"))
        with pytest.raises(MediaError, match="a.mp4: cannot be read: Permission denied"):
            read_video(folder / "a.mp4")
    finally:
        os.seteuid(was)
        os.chmod(folder, 0o755)


def test_the_cache_tells_frames_apart_by_content_and_times(tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "f", 4)
    source = ClipSource(frames=frames, frame_fps=2.0)

    def name(of: ClipSource) -> str:
        return entry_name(of, SMALL, QWEN2_5_VL)

    first = name(source)
    assert first == name(replace(source, frames=(str(tmp_path / "f"),)))
    others = [
        replace(source, frame_fps=1.0),
        replace(source, frames=frames[::-1]),
        replace(source, end_s=1.2),
    ]
    assert len({first, *map(name, others)}) == 4
    Image.fromarray(numbered_picture(9, WIDTH, HEIGHT)).save(frames[2])
    assert name(source) != first
