"""Qwen2.5-VL's facts against vLLM's and transformers' own code."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from grpo.media.clip import Clip
from grpo.policy.families import load_family
from grpo.policy.families.prompt_text import user_text
from tests.support import tiny

CLIPS = [
    tiny.clip(),
    tiny.clip(64, 112, 112, 1.0),  # 32 x 8 x 8 patches: longer in time than in space
    tiny.clip(64, 112, 112, 1.37),
    tiny.clip(6, 140, 56, 0.3),
    tiny.clip(12, 56, 84, 29.97 / 7),  # less than a position per temporal patch
]


def vllm_positions(with_clip: Clip, token_ids: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """vLLM's own rule, on what its input processing makes of the clip (floats in the model's dtype)."""
    qwen = pytest.importorskip("vllm.model_executor.models.qwen2_5_vl")
    family = tiny.family()
    frames, metadata = family.engine_video(with_clip)
    features = family.processor(
        text=["<|vision_start|><|video_pad|><|vision_end|>"],
        videos=[frames],
        video_metadata=[{k: v for k, v in metadata.items() if k != "do_sample_frames"}],
        do_sample_frames=False,
        do_resize=False,
        return_tensors="pt",
    )
    seconds = features["second_per_grid_ts"].to(dtype)[0]
    feature = SimpleNamespace(
        modality="video",
        mm_position=SimpleNamespace(offset=token_ids.index(family.vision_token_id)),
        data={
            "video_grid_thw": SimpleNamespace(data=features["video_grid_thw"][0]),
            "second_per_grid_ts": SimpleNamespace(data=seconds),
        },
    )
    model = SimpleNamespace(config=family.config)
    model.iter_mm_grid_thw = lambda found: qwen.Qwen2_5_VLForConditionalGeneration.iter_mm_grid_thw(
        model, found
    )
    get = qwen.Qwen2_5_VLForConditionalGeneration.get_mrope_input_positions
    return get(model, list(token_ids), [feature])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_clip", CLIPS)
def test_positions_equal_vllms(with_clip: Clip, dtype: torch.dtype) -> None:
    prompt = tiny.prompt(tiny.sample(), with_clip)
    positions = replace(tiny.family(), seconds_dtype=dtype).positions(prompt)
    assert torch.equal(positions, vllm_positions(with_clip, prompt.token_ids, dtype))


def test_text_goes_on_after_the_highest_position_of_any_row() -> None:
    # 32 temporal patches of 2 s at 2 positions a second: the last starts at 31 * 4 = 124, far above 4 in space
    prompt = tiny.prompt(tiny.sample(), tiny.clip(64, 112, 112, 1.0))
    positions = tiny.family().positions(prompt)
    start = prompt.token_ids.index(tiny.family().vision_token_id)
    after = start + 32 * 4 * 4
    assert positions[:, start - 1].tolist() == [start - 1] * 3
    assert positions[:, after - 1].tolist() == [start + 124, start + 3, start + 3]
    assert positions[:, after].tolist() == [start + 125] * 3


def test_a_prompt_has_a_pad_token_per_feature_and_tokenizes_like_the_processor() -> None:
    family = tiny.family()
    for with_clip in CLIPS:
        prompt = tiny.prompt(tiny.sample(), with_clip)
        family.check_vision_tokens(prompt)
        frames, _ = family.engine_video(with_clip)
        text = family.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Q?"}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        whole = family.processor(text=[text], videos=[frames], do_resize=False, return_tensors="pt")
        pads = int((whole["input_ids"][0] == family.vision_token_id).sum())
        assert pads == family.num_vision_tokens(with_clip)


def test_a_prompt_with_a_missing_pad_token_is_refused() -> None:
    prompt = tiny.prompt(tiny.sample("k-7"), tiny.clip())
    pad = prompt.token_ids.index(tiny.family().vision_token_id)
    broken = replace(prompt, token_ids=prompt.token_ids[:pad] + prompt.token_ids[pad + 1 :])
    with pytest.raises(ValueError, match="sample k-7 .*: 31 vision tokens for 32 features"):
        tiny.family().check_vision_tokens(broken)


def test_a_question_that_contains_the_video_token_is_refused() -> None:
    with pytest.raises(ValueError, match="its text has <.video_pad.>, which stands for a clip"):
        tiny.prompt(tiny.sample("x", question="<|video_pad|>?"), tiny.clip())


def test_the_default_prompt_asks_for_the_tags_and_nothing_else() -> None:
    sample = tiny.sample(question="Why {braces}?")
    template = "{question}\n{options}\n{instruction}"
    text = user_text(sample, template=template, option="{letter}. {text}", tags=("think", "answer"))
    assert text.startswith("Why {braces}?\nA. red\nB. green\nC. blue\nD. white\n")
    assert "<think>" in text and "only the letter" in text and "keyframes" not in text


def test_a_system_prompt_stands_before_the_users_turn() -> None:
    family, wording = tiny.family(), {"template": "{question}", "option": "", "tags": ()}
    sample = tiny.sample(question="Which one?")
    plain = family.render(sample, None, **wording).token_ids
    prompt = family.render(sample, None, **wording, system="Answer briefly.")
    text = family.processor.tokenizer.decode(prompt.token_ids)
    assert text.startswith("<|im_start|>system\nAnswer briefly.<|im_end|>\n<|im_start|>user\nWhich one?")
    assert prompt.token_ids[-len(plain) :] == plain
    assert family.num_text_tokens(sample, **wording, system="Answer briefly.") == len(prompt.token_ids)


@pytest.mark.parametrize("path", ["/no/such/model", "./nothing", "some/hub-model-that-is-not-here"])
def test_a_model_path_that_does_not_exist_is_named_at_once(path: str) -> None:
    with pytest.raises(ValueError, match=f"model.path: .*{path}"):
        load_family(path)


def test_another_family_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' model; supported: qwen2_5_vl"):
        load_family(str(tmp_path))


def test_the_vision_tower_in_batched_chunks_equals_transformers_own_loop() -> None:
    policy = tiny.policy(seed=3)
    pixels, grid = tiny.family().pixels([tiny.clip(), tiny.clip(6, 140, 252), tiny.clip(4, 56, 84)])
    batched = torch.cat(policy.vision_features(pixels, grid))
    policy.model.model.visual.config._attn_implementation = "sdpa"
    torch.testing.assert_close(torch.cat(policy.vision_features(pixels, grid)), batched, atol=1e-5, rtol=1e-5)
