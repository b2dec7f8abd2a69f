"""Several videos and pictures in one question, against transformers' and vLLM's own code."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo.groups import Prompt
from tests.support import tiny

several = pytest.mark.parametrize("kinds", tiny.SEVERAL.values(), ids=tiny.SEVERAL.keys())


def reference(prompt: Prompt) -> dict[str, Tensor]:
    """What transformers' own processor makes of a prompt's text and media: ids, grids, pixels."""
    family, media = tiny.family(), tiny.family().engine_media(prompt)
    videos = media.get("video", [])
    options: dict[str, Any] = {}
    if videos:
        options["videos"] = [frames for frames, _ in videos]
        options["video_metadata"] = [family.metadata(clip) for clip in prompt.clips if not clip.is_picture]
        options["do_sample_frames"] = False
    return family.processor(
        text=[family.processor.tokenizer.decode(family.folded_ids(prompt))],
        images=media.get("image"),
        do_resize=False,
        return_mm_token_type_ids=True,
        return_tensors="pt",
        **options,
    )


def vllm_positions(prompt: Prompt, made: dict[str, Tensor]) -> Tensor:
    """vLLM's own rule, on what its input processing makes of the media."""
    family = tiny.family()
    module = pytest.importorskip(f"vllm.model_executor.models.{family.config.model_type}")
    features, end, numbers = [], 0, defaultdict(int)
    for clip in prompt.clips:
        kind = "image" if clip.is_picture else "video"
        data = {f"{kind}_grid_thw": SimpleNamespace(data=made[f"{kind}_grid_thw"][numbers[kind]])}
        if kind == "video" and "second_per_grid_ts" in made:
            seconds = torch.as_tensor(made["second_per_grid_ts"])[numbers[kind]]
            data["second_per_grid_ts"] = SimpleNamespace(data=seconds)
        numbers[kind] += 1
        ids, pad = family.clip_ids(clip), family.pad_id(clip)
        start = prompt.token_ids.index(pad, end) - ids.index(pad)
        end = start + len(ids)
        place = SimpleNamespace(offset=start)
        features.append(SimpleNamespace(modality=kind, mm_position=place, data=data))
    engine_class = getattr(module, family.model_class.__name__)
    model = engine_class.__new__(engine_class)  # without weights
    object.__setattr__(model, "config", family.config)
    return model.get_mrope_input_positions(list(prompt.token_ids), features)[0]


@several
@pytest.mark.usefixtures("each_family")
def test_tokens_pixels_and_positions_equal_those_of_transformers_and_vllm(kinds: tuple[str, ...]) -> None:
    family, prompt = tiny.family(), tiny.media_prompt(kinds)
    made = reference(prompt)
    assert made["input_ids"].tolist() == [list(prompt.token_ids)]
    family.check_vision_tokens(prompt)
    for names, is_picture in (
        (("pixel_values", "image_grid_thw"), True),
        (("pixel_values_videos", "video_grid_thw"), False),
    ):
        if clips := [clip for clip in prompt.clips if clip.is_picture == is_picture]:
            for name, ours in zip(names, tiny.pixels(*clips), strict=True):
                assert torch.equal(made[name], ours)
    assert torch.equal(family.positions(prompt), vllm_positions(prompt, made))


@several
@pytest.mark.usefixtures("each_family")
def test_positions_equal_transformers_own_where_videos_are_short(kinds: tuple[str, ...]) -> None:
    """Behind one that is longer in time than in space it goes on too early (`ModelFamily.positions`)."""
    family, prompt = tiny.family(), tiny.media_prompt(kinds, short=True)
    made = reference(prompt)
    positions = family.positions(prompt)
    assert torch.equal(positions, vllm_positions(prompt, made))
    model: Any = family.outline()
    wanted = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    expected, _ = model.base_model.get_rope_index(**{key: made[key] for key in wanted if key in made})
    assert torch.equal(positions, expected[:, 0])


@pytest.mark.usefixtures("each_family")
def test_media_stand_where_the_question_says() -> None:
    prompt = tiny.media_prompt(("video", "image"), "First <video> I did this.\nNow <image> what?")
    text = tiny.family().processor.tokenizer.decode(prompt.token_ids)
    shown = re.sub(r"(<\|(?:video|image)_pad\|>)+", r"\1", text)
    assert shown.index("First ") < shown.index("<|video_pad|>") < shown.index(" I did this.\nNow ")
    assert shown.index("Now ") < shown.index("<|image_pad|>") < shown.index(" what? Answer.")
    assert prompt.clip is prompt.media[0]
    before = tiny.media_prompt(("video", "image"))
    text = tiny.family().processor.tokenizer.decode(before.token_ids)
    assert max(text.rindex("<|video_pad|>"), text.rindex("<|image_pad|>")) < text.index("Which object")


@pytest.mark.usefixtures("each_family")
def test_a_single_picture_is_an_image_without_a_time() -> None:
    family = tiny.family()
    prompt = tiny.prompt(tiny.sample(), tiny.picture())
    text = family.processor.tokenizer.decode(prompt.token_ids)
    # 2 x 3 tokens of 28 pixels, or of 32
    assert "<|vision_start|>" + 6 * "<|image_pad|>" + "<|vision_end|>" in text and "seconds>" not in text
    assert reference(prompt)["input_ids"].tolist() == [list(prompt.token_ids)]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("<image> and <video>?", "the places <image>, <video>, and its media are video, image"),
        ("<video> what?", "the places <video>, and its media are video, image"),
        ("<video> <image> <image>?", "mark one place for each, in their order, or none"),
        ("<|image_pad|>?", "its text has <.image_pad.>, which stands for a picture"),
    ],
)
def test_marks_that_do_not_fit_the_media_are_refused(question: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tiny.media_prompt(("video", "image"), question)


def test_a_question_about_one_clip_keeps_what_looks_like_a_mark() -> None:
    prompt = tiny.prompt(tiny.sample(question="What does <video> mean?"), tiny.clip())
    assert "What does <video> mean?" in prompt.text


def test_a_picture_whose_pads_are_those_of_a_video_is_refused() -> None:
    family, prompt = tiny.family(), tiny.media_prompt(("image", "video"))
    swapped = {family.config.image_token_id: family.config.video_token_id}
    wrong = replace(prompt, token_ids=tuple(swapped.get(token, token) for token in prompt.token_ids))
    with pytest.raises(ValueError, match="sample several .*: 0 vision tokens for 6 features"):
        family.check_vision_tokens(wrong)
