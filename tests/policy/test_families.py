"""The families' facts against vLLM's and transformers' own code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grpo.groups import Prompt
from grpo.media.clip import Clip, ClipSource
from grpo.policy.families import FAMILIES, load_family
from grpo.policy.prompt_text import user_text
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import Ends, TransformersEngine
from tests.support import tiny
from tests.support.clips import with_facts

CLIPS: dict[str, dict[str, Any]] = {
    "8 patches": {},
    "1 patch": {"num_frames": 2, "fps": 0.5},
    "2 patches": {"num_frames": 4, "width_px": 84, "fps": 3.0},
    "5 patches": {"num_frames": 10, "height_px": 84, "fps": 0.31},
    "longer in time than in space": {"num_frames": 64, "height_px": 112, "width_px": 112, "fps": 1.0},
    "long, at an odd rate": {"num_frames": 64, "height_px": 112, "width_px": 112, "fps": 1.37},
    "slow": {"num_frames": 6, "height_px": 140, "fps": 0.3},
    "less than a position per patch": {"num_frames": 12, "width_px": 84, "fps": 29.97 / 7},
}


def reference(prompt: Prompt) -> dict[str, Tensor]:
    """What transformers' own processor makes of a prompt's text and clip: ids, grid, pixels."""
    assert prompt.clip is not None
    family = tiny.family()
    text = family.processor.tokenizer.decode(family.folded_ids(prompt))
    return family.processor(
        text=[text],
        videos=[prompt.clip.frames_FHWC.copy()],
        video_metadata=[family.metadata(prompt.clip)],
        do_sample_frames=False,
        do_resize=False,
        return_mm_token_type_ids=True,
        return_tensors="pt",
    )


def vllm_positions(prompt: Prompt, dtype: torch.dtype) -> Tensor:
    """vLLM's own rule, on what its input processing makes of the clip (floats in the model's dtype)."""
    assert prompt.clip is not None
    family, made = tiny.family(), reference(prompt)
    module = pytest.importorskip(f"vllm.model_executor.models.{family.config.model_type}")
    data = {"video_grid_thw": SimpleNamespace(data=made["video_grid_thw"][0])}
    if "second_per_grid_ts" in made:
        data["second_per_grid_ts"] = SimpleNamespace(data=made["second_per_grid_ts"].to(dtype)[0])
    pad = family.config.video_token_id
    start = prompt.token_ids.index(pad) - family.clip_ids(prompt.clip).index(pad)
    feature = SimpleNamespace(modality="video", mm_position=SimpleNamespace(offset=start), data=data)
    engine_class = getattr(module, family.model_class.__name__)
    model = engine_class.__new__(engine_class)  # without weights
    object.__setattr__(model, "config", family.config)
    return model.get_mrope_input_positions(list(prompt.token_ids), [feature])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.usefixtures("each_family")
def test_positions_equal_vllms(name: str, dtype: torch.dtype) -> None:
    prompt = tiny.prompt(tiny.sample(), tiny.clip(**CLIPS[name]))
    positions = replace(tiny.family(), seconds_dtype=dtype).positions(prompt)
    assert torch.equal(positions, vllm_positions(prompt, dtype))


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.usefixtures("each_family")
def test_tokens_and_pixels_equal_those_of_transformers_processor(name: str) -> None:
    family = tiny.family()
    prompt = tiny.prompt(tiny.sample(), tiny.clip(**CLIPS[name]))
    assert prompt.clip is not None
    family.check_vision_tokens(prompt)
    made = reference(prompt)
    assert made["input_ids"].tolist() == [list(prompt.token_ids)]
    pixels, grid = tiny.pixels(prompt.clip)
    assert torch.equal(made["pixel_values_videos"], pixels) and torch.equal(made["video_grid_thw"], grid)
    assert len(pixels) == 4 * family.num_vision_tokens(prompt.clip)


@pytest.mark.parametrize("name", CLIPS)
def test_positions_of_qwen3_vl_equal_transformers_own(name: str) -> None:
    with tiny.of_family("qwen3_vl"):
        prompt = tiny.prompt(tiny.sample(), tiny.clip(**CLIPS[name]))
        made = reference(prompt)
        model: Any = tiny.family().outline()
        chosen = {key: made[key] for key in ("input_ids", "mm_token_type_ids", "video_grid_thw")}
        expected, _ = model.base_model.get_rope_index(**chosen)
        assert torch.equal(tiny.family().positions(prompt), expected[:, 0])


def test_text_goes_on_after_the_highest_position_of_any_row() -> None:
    # 32 temporal patches of 2 s at 2 positions a second: the last starts at 31 * 4 = 124, far above 4 in space
    prompt = tiny.prompt(tiny.sample(), tiny.clip(64, 112, 112, 1.0))
    positions = tiny.family().positions(prompt)
    start = prompt.token_ids.index(tiny.family().config.video_token_id)
    after = start + 32 * 4 * 4
    assert positions[:, start - 1].tolist() == [start - 1] * 3
    assert positions[:, after - 1].tolist() == [start + 124, start + 3, start + 3]
    assert positions[:, after].tolist() == [start + 125] * 3


def text_of(clip: Clip) -> str:
    """A clip in a prompt of Qwen3-VL, as text."""
    with tiny.of_family("qwen3_vl"):
        text = tiny.family().processor.tokenizer.decode(tiny.prompt(tiny.sample(), clip).token_ids)
    return text[text.index("<|vision_start|>") : text.rindex("<|vision_end|>")].replace("<|video_pad|>", ".")


def test_qwen3_vl_is_told_the_mean_time_of_each_patchs_frames() -> None:
    with tiny.of_family("qwen3_vl"):
        clip = tiny.clip(num_frames=6)
    # Frames of an uneven clip: their own times, not those that a constant rate would give.
    uneven = with_facts(clip, times_s=(0.0, 0.25, 7.0, 10.5, 1234.56, 1234.56))
    assert text_of(uneven) == (
        "<|vision_start|><0.1 seconds><|vision_start|>....<|vision_end|>"
        "<8.8 seconds><|vision_start|>....<|vision_end|>"
        "<1234.6 seconds><|vision_start|>....<|vision_end|>"
    )
    # In fp32 the mean of 0.3 and 0.4 is above 0.35, as vLLM computes it below.
    assert text_of(with_facts(clip, times_s=(0.3, 0.4, 0.5, 0.5, 0.6, 0.6))).startswith(
        "<|vision_start|><0.3 seconds>"
    )


@pytest.mark.usefixtures("each_family")
def test_a_clip_has_at_most_the_planned_text() -> None:
    family, clip = tiny.family(), tiny.clip(num_frames=6)
    planned = family.most_clip_text_tokens(6)
    assert (planned > 0) == (family.config.model_type == "qwen3_vl")
    for times_s, holds in (
        ((0.0, 0.5, 2.0, 3.0, 86399.0, 86399.9), range(planned + 1)),
        ((86394.0, 86395.0, 86396.0, 86397.0, 86398.0, 86399.9), [planned]),  # the longest that there are
    ):
        ids = family.clip_ids(with_facts(clip, times_s=times_s))
        assert len([token for token in ids if token != family.config.video_token_id]) in holds


@pytest.mark.usefixtures("each_family")
def test_an_engine_gets_the_frames_as_they_are_sampled() -> None:
    family, clip = tiny.family(), tiny.clip(num_frames=6)
    frames, metadata = family.engine_video(clip)
    assert np.array_equal(frames, clip.frames_FHWC) and frames.flags.writeable
    # Qwen3-VL is told a frame a second, so that a frame's number is its time.
    has_times = family.config.model_type == "qwen3_vl"
    assert metadata == {
        "fps": 1.0 if has_times else 2.0,
        "duration": 3.0,
        "total_num_frames": 6,
        "frames_indices": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] if has_times else [0, 1, 2, 3, 4, 5],
        "video_backend": "pyav",
        "do_sample_frames": False,
    }


def test_an_outline_leaves_the_familys_config_as_it_is() -> None:
    family = tiny.family()
    before = repr(vars(family.config)) + repr(vars(family.config.text_config))
    family.outline()
    assert repr(vars(family.config)) + repr(vars(family.config.text_config)) == before


def test_a_completion_ends_at_the_first_of_any_of_the_tokens_that_end_one() -> None:
    """A model may list several, of which the second is as good as the first."""
    family = replace(tiny.family(), eos_ids=(300, 301))
    text = family.decode([65, 66])
    begin = family.processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert family.decode([begin, 65, 66]) == f"<|im_start|>{text}"
    for eos in (300, 301):
        assert family.decode([65, 66, eos]) == text
        engine = TransformersEngine(tiny.policy())
        engine.family = family
        prompt = tiny.prompt(tiny.sample(), None)
        tokens, ends = [[65, 66, eos, 65, 300], [65, 66, 67, 68, 69]], Ends(family, (), 2)
        assert [ends.all_after(column) for column in zip(*tokens, strict=True)] == [False] * 5
        ((ended, cut_off),) = engine._rollouts([prompt], tokens, [[0.0] * 5] * 2, ends.lengths)
        assert (ended.token_ids, ended.stopped, ended.text) == ((65, 66, eos), True, text)
        assert (len(cut_off.token_ids), cut_off.stopped) == (5, False)


def test_sampling_goes_on_until_all_completions_have_ended_with_any_of_the_tokens() -> None:
    engine, prompt = TransformersEngine(tiny.policy()), tiny.prompt(tiny.sample(), None)
    sampling = Sampling(group_size=2, max_new_tokens=6, temperature=0.0)
    (group,) = engine.generate([prompt], sampling, [0])
    first = group.rollouts[0].token_ids[0]
    engine.family = replace(tiny.family(), eos_ids=(399, first))
    passes: list[int] = []
    engine.sampler.model.model.language_model.register_forward_hook(lambda *_: passes.append(1))
    (group,) = engine.generate([prompt], sampling, [0])
    assert len(passes) == 1  # that of the prompt
    assert [(rollout.token_ids, rollout.stopped) for rollout in group.rollouts] == [((first,), True)] * 2


@pytest.mark.usefixtures("each_family")
def test_a_prompt_with_a_missing_pad_token_is_refused() -> None:
    prompt = tiny.prompt(tiny.sample("k-7"), tiny.clip())
    pad = prompt.token_ids.index(tiny.family().config.video_token_id)
    broken = replace(prompt, token_ids=prompt.token_ids[:pad] + prompt.token_ids[pad + 1 :])
    with pytest.raises(ValueError, match="sample k-7 .*: 31 vision tokens for 32 features"):
        tiny.family().check_vision_tokens(broken)


@pytest.mark.usefixtures("each_family")
def test_a_question_that_contains_the_video_token_is_refused() -> None:
    with pytest.raises(ValueError, match="its text has <.video_pad.>, which stands for a clip"):
        tiny.prompt(tiny.sample("x", question="<|video_pad|>?"), tiny.clip())


def test_the_default_prompt_asks_for_the_tags_and_nothing_else() -> None:
    sample = tiny.sample(question="Why {braces}?")
    template = "{question}\n{options}\n{instruction}"
    text = user_text(sample, template=template, option="{letter}. {text}", tags=("think", "answer"))
    assert text.startswith("Why {braces}?\nA. red\nB. green\nC. blue\nD. white\n")
    assert "<think>" in text and "only the letter" in text and "keyframes" not in text


def test_instructions_stand_in_one_line_and_empty_parts_leave_none() -> None:
    sample = tiny.sample(question="What is it?", options=(), task="text")
    template = "{question}\n{options}\n{instruction}"
    assert user_text(sample, template=template, option="", tags=("think", "answer")) == (
        "What is it?\nFirst reason step by step inside <think> </think>. "
        "Finally give the answer inside <answer> </answer>."
    )


def test_a_system_prompt_stands_before_the_users_turn() -> None:
    family, wording = tiny.family(), {"template": "{question}", "option": "", "tags": ()}
    sample = tiny.sample(question="Which one?")
    plain = family.render(sample, None, **wording).token_ids
    prompt = family.render(sample, None, **wording, system="Answer briefly.")
    text = family.processor.tokenizer.decode(prompt.token_ids)
    assert text.startswith("<|im_start|>system\nAnswer briefly.<|im_end|>\n<|im_start|>user\nWhich one?")
    assert prompt.token_ids[-len(plain) :] == plain
    assert family.num_text_tokens(sample, **wording, system="Answer briefly.") == len(prompt.token_ids)
    watched = replace(sample, clip_source=ClipSource(video="x.mp4"))
    clip = tiny.clip()
    beside = len(family.render(watched, clip, **wording).token_ids) - family.num_vision_tokens(clip)
    assert family.num_text_tokens(watched, **wording) == beside
    own = tiny.sample(question="Which one?", system="Answer briefly.")
    assert family.render(own, None, **wording, system=None).token_ids == prompt.token_ids
    assert family.render(own, None, **wording, system="").token_ids == plain


def test_an_official_prompt_takes_the_place_of_the_whole_turn() -> None:
    wording = {"template": "{question}", "option": "", "tags": ("answer",)}
    prompt = tiny.family().render(
        tiny.sample(question="Which?"),
        None,
        **wording,
        user=lambda sample: f"Asked officially: {sample.question}",
    )
    turn = "<|im_start|>user\nAsked officially: Which?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.text.endswith(turn) and "Which?" not in prompt.text.replace(turn, "")
    assert prompt.tags == ("answer",)


@pytest.mark.parametrize("path", ["/no/such/model", "./nothing", "some/hub-model-that-is-not-here"])
def test_a_model_path_that_does_not_exist_is_named_at_once(path: str) -> None:
    with pytest.raises(ValueError, match=f"model.path: .*{path}"):
        load_family(path)


@pytest.mark.parametrize(("listed", "expected"), [([7, 5], (7, 5)), (9, (9,)), (None, (431,))])
def test_a_completion_ends_with_what_the_generation_config_lists(
    listed: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.BASE_POLICY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert load_family(str(tiny.BASE_POLICY)).processor.tokenizer.eos_token_id == 431
    family = load_family(str(folder), seconds_dtype=torch.bfloat16)
    assert (family.eos_ids, family.seconds_dtype) == (expected, torch.bfloat16)


def test_what_transformers_says_of_a_folder_is_one_line_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(path: str, **_: Any) -> None:
        raise OSError("no tokenizer here\nIf you were trying to load it from the hub ...")

    monkeypatch.setattr(FAMILIES["qwen2_5_vl"], "load", load)
    with pytest.raises(ValueError, match=r"^model\.path: no tokenizer here$"):
        load_family(str(tiny.BASE_POLICY))


def test_another_family_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' model; supported: qwen2_vl, qwen2_5_vl, qwen3_vl"):
        load_family(str(tmp_path))


@pytest.mark.usefixtures("each_family")
def test_the_vision_tower_in_batched_chunks_equals_transformers_own_loop() -> None:
    policy = tiny.policy(seed=3)
    pixels, grid = tiny.pixels(tiny.clip(), tiny.clip(6, 140, 252), tiny.clip(4, 56, 84))
    batched = torch.cat(policy.vision_features(pixels, grid))
    policy.model.model.visual.config._attn_implementation = "sdpa"
    torch.testing.assert_close(torch.cat(policy.vision_features(pixels, grid)), batched, atol=1e-5, rtol=1e-5)
