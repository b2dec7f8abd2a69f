"""Tokens planned from a clip's header: exactly what decoding and rendering give, and never above the limits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from grpo.commands.doctor.records import examine
from grpo.feed.planner import Planner
from grpo.media.clip import ClipSource, MediaError
from grpo.media.decode import plan_clip, read_clip
from grpo.media.reading import plan_source, read_source
from grpo.media.sampling import (
    QWEN2_5_VL,
    ClipPlan,
    MediaSettings,
    PatchShape,
    TooManyTokens,
    clip_frame_size,
    most_tokens,
    most_vision_tokens,
)
from grpo.media.sampling import plan_clip as plan
from tests.support import tiny
from tests.support.videos import SMALL, read_video, write_video

TEXT = {"template": "{question}\n{options}", "option": "{letter} {text}", "tags": tiny.TAGS}
LIMITED = replace(SMALL, min_pixels=4 * 784, max_pixels=24 * 784, min_frames=4)


def planner(settings: MediaSettings, max_prompt_tokens: int) -> Planner:
    family = tiny.family()
    return Planner(
        family=family,
        settings=settings,
        count_text=partial(family.num_text_tokens, **TEXT),
        max_prompt_tokens=max_prompt_tokens,
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_video(folder / "wide.mp4"),
        write_video(folder / "upright.mp4", size_px=(64, 160), num_frames=75),
        write_video(folder / "turned.mp4", size_px=(192, 96), rotation=90),
    ]


@pytest.mark.usefixtures("each_family")
@pytest.mark.parametrize("max_tokens", [None, 40, 25, 16, 11, 8])
def test_the_plan_is_what_decoding_and_rendering_give(videos: list[str], max_tokens: int | None) -> None:
    settings = replace(LIMITED, max_tokens=max_tokens)
    family = tiny.family()
    for path in videos:
        for start_s, end_s in ((0.0, None), (0.5, 2.0)):
            clip = read_video(path, start_s=start_s, end_s=end_s, settings=settings, patches=family.patches)
            sample = tiny.sample(clip_source=ClipSource(video=path, start_s=start_s, end_s=end_s))
            planned = planner(settings, 10_000).plan(sample)
            [planned_clip] = planned.clips
            assert planned_clip.num_frames == clip.num_frames
            assert {planned_clip.height_px, planned_clip.width_px} == {clip.height_px, clip.width_px}
            assert planned_clip.num_bytes == clip.frames_FHWC.nbytes
            assert planned.num_vision_tokens == family.num_vision_tokens(clip) <= (max_tokens or 1000)
            # Of a clip's text the most is planned: times below 10 s have four digits less.
            clip_text = len(family.clip_ids(clip)) - family.num_vision_tokens(clip)
            spare = 4 * clip.num_frames // 2 if clip_text else 0
            assert planned.num_tokens - spare == len(family.render(sample, clip, **TEXT).token_ids)


@pytest.mark.usefixtures("each_family")
def test_a_prompt_of_several_media_is_planned_as_their_sum(videos: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (200, 90)).save(tmp_path / "now.png")
    frame = ClipSource(video=videos[2], start_s=1.0, end_s=1.0)
    media = (ClipSource(video=videos[0]), ClipSource(frames=(str(tmp_path / "now.png"),)), frame)
    sample = tiny.sample(question="<video> <image> <image>?", media=media, clip_source=media[0])
    settings, family = replace(LIMITED, max_tokens=40), tiny.family()
    clips = [read_source(source, settings=settings, patches=family.patches) for source in media]
    prompt = family.render(sample, clips, **TEXT)
    planned = planner(settings, 10_000).plan(sample)
    assert [clip.num_frames for clip in planned.clips] == [clip.num_frames for clip in clips]
    assert planned.num_vision_tokens == sum(map(family.num_vision_tokens, clips))
    # Of the video's own text the most is planned; pictures have none.
    spare = 4 * clips[0].num_frames // 2 if family.most_clip_text_tokens(2) else 0
    assert planned.num_tokens - spare == len(prompt.token_ids)
    tight = planner(settings, planned.num_tokens - 1)
    assert planner(settings, planned.num_tokens).refusals([sample], num_workers=1) == []
    (reason,) = tight.refusals([sample], num_workers=1)
    assert f"sample s: its prompt has {planned.num_tokens} tokens" in reason and "raise that by 1" in reason
    room = (planned.num_tokens - 1 - planned.num_text_tokens) // 3
    assert f"lower media.max_tokens to {room} or" in reason
    # A mark without its medium is told before anything is opened.
    wrong = replace(sample, question="<video> <image>?", source="data.jsonl:7")
    (reason,) = tight.refusals([wrong], num_workers=1)
    assert reason.startswith(
        "data.jsonl:7: sample s: its text has the places <video>, <image>, and its media are"
    )


def test_a_clip_of_images_is_planned_too(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (200, 90)).save(tmp_path / f"{number}.png")
    source = ClipSource(frames=(str(tmp_path),), frame_fps=2.0)
    sample = tiny.sample(clip_source=source)
    settings, family = replace(LIMITED, max_tokens=20), tiny.family()
    clip = read_source(source, settings=settings, patches=family.patches)
    planned = planner(settings, 10_000).plan(sample)
    assert planned.num_tokens == len(family.render(sample, clip, **TEXT).token_ids)
    assert planned.num_vision_tokens == family.num_vision_tokens(clip) <= 20


def test_frames_shrink_before_there_are_fewer() -> None:
    """300 frames of 30 fps are 20 at 2 fps, ten temporal patches; 448x252 pixels are 16 x 9 = 144 tokens."""

    def planned(max_tokens: int | None) -> ClipPlan:
        settings = MediaSettings(min_pixels=40 * 784, max_tokens=max_tokens)
        return plan(300, 30.0, 252, 448, settings, QWEN2_5_VL)

    assert planned(None) == planned(1440) == ClipPlan(num_frames=20, height_px=252, width_px=448)
    # A tenth of 1000 is 100 tokens for each patch: sides shrink by 1.2 to 210.0 and 373.3, so 7 x 13 tokens.
    assert planned(1000) == ClipPlan(num_frames=20, height_px=196, width_px=364)
    # A tenth of 300 is 30, but min_pixels asks for 40: sides shrink by 1.9 to 132.8 and 236.1, so 4 x 8 tokens.
    # Nine patches of these are the most that 300 has room for.
    assert planned(300) == ClipPlan(num_frames=18, height_px=112, width_px=224)


@given(
    st.integers(2, 4000),
    st.integers(16, 4000),
    st.integers(16, 4000),
    st.integers(1, 400),
    st.integers(784, 10_000_000),
    st.one_of(st.none(), st.integers(1, 4000)),
)
@example(30, 1024, 1024, 16, 4_247_712, None)  # 15 x 19 x 19 tokens, at most 5408 of 32 frames
def test_no_clip_exceeds_the_limits(
    num_frames: int, height_px: int, width_px: int, least: int, total_pixels: int, max_tokens: int | None
) -> None:
    settings = MediaSettings(
        fps=30.0,
        min_pixels=least * 784,
        max_pixels=512 * 784,
        total_pixels=total_pixels,
        max_frames=32,
        max_tokens=max_tokens,
    )
    try:
        planned = plan(num_frames, 30.0, height_px, width_px, settings, QWEN2_5_VL)
    except TooManyTokens:
        assert max_tokens is not None and most_tokens(4, settings, QWEN2_5_VL) > max_tokens
        return
    except ValueError:
        return  # too long and narrow
    tokens = planned.num_tokens(QWEN2_5_VL)
    assert tokens <= most_tokens(planned.num_frames, settings, QWEN2_5_VL)
    assert tokens <= most_vision_tokens(settings, QWEN2_5_VL)
    assert max_tokens is None or tokens <= max_tokens


def test_where_the_fewest_and_smallest_frames_do_not_fit_the_key_is_named(videos: list[str]) -> None:
    settings = replace(LIMITED, max_tokens=3)
    with pytest.raises(TooManyTokens, match="media.max_tokens=3: raise it, or lower media.min_frames"):
        clip_frame_size(96, 160, 4, settings, QWEN2_5_VL)
    for refuse in (plan_clip, read_clip):
        with pytest.raises(MediaError, match="wide.mp4.*4 frames of .* more than media.max_tokens=3"):
            refuse(ClipSource(video=videos[0]), settings=settings)
    [reason] = planner(settings, 10_000).refusals(
        [tiny.sample("a", clip_source=ClipSource(video=videos[0]))], num_workers=1
    )
    assert reason.startswith("made-up:a: sample a: ") and "media.max_tokens=3" in reason


def test_a_prompt_that_cannot_fit_is_named_with_the_way_out(videos: list[str]) -> None:
    short, long = (tiny.sample(name, clip_source=ClipSource(video=videos[0])) for name in ("short", "long"))
    long = replace(long, question="red " * 300)
    exact = planner(LIMITED, 10_000).plan(long)
    assert planner(LIMITED, exact.num_tokens).refusals([short, long], num_workers=2) == []
    [reason] = planner(LIMITED, exact.num_tokens - 5).refusals([short, long], num_workers=2)
    assert reason == (
        f"made-up:long: sample long: its prompt has {exact.num_tokens} tokens, rollout.max_model_tokens leaves room "
        f"for {exact.num_tokens - 5}: lower media.max_tokens to {exact.num_vision_tokens - 5} or raise that by 5"
    )


def test_a_text_that_cannot_be_a_prompt_is_refused_by_its_record() -> None:
    bad = tiny.sample(question="What is <|video_pad|>?")
    (reason,) = planner(LIMITED, 10_000).refusals([tiny.sample(), bad], num_workers=2)
    assert reason.startswith(f"{bad.source}: sample {bad.id}: ") and "<|video_pad|>" in reason


def test_no_file_is_opened_where_any_clip_would_fit(tmp_path: Path) -> None:
    nowhere = tiny.sample(clip_source=ClipSource(video=str(tmp_path / "none.mp4")))
    with_limit = planner(replace(LIMITED, min_pixels=784, max_frames=64, max_tokens=200), 300)
    assert with_limit.refusals([nowhere], num_workers=1) == []
    with pytest.raises(MediaError, match="no such file"):
        with_limit.plan(nowhere)


def test_a_file_that_brings_up_any_error_is_survived_and_its_record_named(
    videos: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = tiny.sample("odd", clip_source=ClipSource(video=videos[1]))
    good = tiny.sample("good", clip_source=ClipSource(video=videos[0]))

    def plan_or_fail(source: ClipSource, *, settings: MediaSettings, patches: PatchShape) -> ClipPlan:
        if source == odd.clip_source:
            raise MemoryError("9 GiB")
        return plan_source(source, settings=settings, patches=patches)

    monkeypatch.setattr("grpo.feed.planner.plan_source", plan_or_fail)
    [reason] = planner(LIMITED, 20).refusals([odd, good], num_workers=1)
    assert reason.startswith("made-up:good: sample good: ")
    assert "made-up:odd: sample odd: MemoryError: 9 GiB" in caplog.messages
    problems, plans = examine([odd, good], planner(LIMITED, 10_000), num_clips=None, num_workers=1)
    [finding] = problems
    assert (finding.kind, finding.source) == ("unreadable", "made-up:odd")
    assert finding.reason == "sample odd: MemoryError: 9 GiB"
    assert [sample for sample, _ in plans] == [good]
