"""What a run takes on a GPU, worked out from the shapes of a 3B model, for every shipped job, overlay and launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from grpo.commands.doctor.memory import LAUNCHES, needs, sizes_of, table
from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.policy.model import Policy
from grpo.startup.assembly import build_outline
from tests.support import tiny
from tests.support.shapes import family_3b, family_of

JOB = str(tiny.ROOT / "configs" / "egovlm_3b.yaml")
OVERLAYS = {"": [], **{each.stem: [str(each)] for each in tiny.ROOT.glob("configs/overlays/*.yaml")}}
# A row of 16,384 tokens holds two groups, each with a clip of at most 1,536.
ROW: dict[str, Any] = {"row_tokens": 16384, "row_vision_tokens": 2 * 1536}


@lru_cache
def run_of(overlay: str) -> tuple[Config, Policy]:
    config = load_config([JOB, *OVERLAYS[overlay]])
    return config, build_outline(config, family_3b())


def fitting(overlay: str, processes: int = 8) -> dict[int, set[str]]:
    """The launches that fit, by the size of the GPUs."""
    config, policy = run_of(overlay)
    found = table(config, policy, **ROW, processes=processes)
    sizes = {each["gpu_gb"] for each in found}
    return {size: {e["launch"] for e in found if e["fits"] and e["gpu_gb"] == size} for size in sizes}


SHARDED = {"zero2", "zero2_offload", "zero3", "zero3_offload", "fsdp2"}


def test_every_launch_file_is_there() -> None:
    assert {path.stem for path in tiny.ROOT.glob("launch/accelerate/*.yaml")} == {*LAUNCHES}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        # 16 bytes a weight, autocast's 2 and a reference of 4 are 83 of 131 GiB beside vLLM's 39.
        ("", {24: set(), 80: SHARDED, 141: SHARDED}),
        ("lora", {24: set(), 80: {*LAUNCHES}, 141: {*LAUNCHES}}),
        # The header promises a single small GPU.
        ("qlora", {size: {"single", "multi_gpu"} for size in (24, 80, 141)}),
        # A single process has nobody to share rows with.
        ("hour_long", {24: set(), 80: SHARDED, 141: SHARDED}),
        ("less_memory", {24: set(), 80: {"single", "multi_gpu"}, 141: {"single", "multi_gpu"}}),
    ],
)
def test_each_shipped_job_and_overlay_fits_where_it_says(overlay: str, expected: dict[int, set[str]]) -> None:
    assert fitting(overlay) == expected


def test_every_overlay_is_in_the_table_above() -> None:
    assert {*OVERLAYS} == {"", "lora", "qlora", "less_memory", "hour_long"}


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3.75),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8.29),
        ("Qwen/Qwen3-VL-4B-Instruct", 4.44),
    ],
)
def test_the_shapes_have_the_published_numbers_of_weights(name: str, billions: float) -> None:
    weights = family_of(name).outline().parameters()
    assert sum(weight.numel() for weight in weights) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", LAUNCHES)
def test_weights_and_states_by_hand(name: str) -> None:
    config, policy = run_of("")
    sizes = sizes_of(config, policy, **ROW)
    assert sizes.trained == sizes.total and sizes.total == pytest.approx(3.75e9, rel=0.01)
    parts = needs(config, policy, sizes, LAUNCHES[name], processes=8, gpu_gib=80)
    gib = sizes.total / 2**30
    buckets = 0.8e9 / 2**30
    weights, states = {
        "single": (4 * gib, 12 * gib),
        "multi_gpu": (4 * gib, 12 * gib),
        "zero2": (2 * gib, 16 * gib / 8 + buckets),
        "zero2_offload": (2 * gib, buckets),
        "zero3": (2 * gib / 8, 16 * gib / 8 + buckets),
        "fsdp2": (4 * gib / 8, 12 * gib / 8),
        "zero3_offload": (0, buckets),
    }[name]
    assert (parts["weights"], parts["gradients and AdamW"]) == pytest.approx((weights, states))
    assert parts["engine"] == 24


def parts(config: Config, names: Sequence[str]) -> list[dict[str, float]]:
    _, policy = run_of("")
    sizes = sizes_of(config, policy, **ROW)
    return [needs(config, policy, sizes, LAUNCHES[name], processes=8, gpu_gib=80) for name in names]


def test_checkpointing_offloading_and_sleep_take_less() -> None:
    config, _ = run_of("")
    (kept,) = parts(config, ["zero2"])
    (whole,) = parts(replace(config, model=replace(config.model, gradient_checkpointing=False)), ["zero2"])
    (away,) = parts(replace(config, model=replace(config.model, activation_offloading=True)), ["zero2"])
    (asleep,) = parts(replace(config, rollout=replace(config.rollout, sleep=True)), ["zero2"])
    assert away["activations"] < kept["activations"] < whole["activations"] / 5
    # What vLLM holds besides weights and cache stays: the inputs of 8,192 tokens, graphs and kernels.
    assert asleep["engine"] == pytest.approx(1 + 2 * 8192 * 2048 / 2**30)
    # 36 layers of 16,384 x 2,048 and 32 of 12,288 x 1,280 patches, in bf16.
    inputs_gib = 2 * (36 * 16384 * 2048 + 32 * 12288 * 1280) / 2**30
    assert kept["activations"] - away["activations"] == pytest.approx(inputs_gib)


HOUR: dict[str, Any] = {"row_tokens": 262_144, "row_vision_tokens": 245_760}


def test_a_row_of_an_hour_fits_on_eight_gpus_that_compute_it_together() -> None:
    shared, policy = run_of("hour_long")
    alone = replace(shared, optim=replace(shared.optim, sequence_parallel_size=1))
    found = table(alone, policy, **HOUR, processes=8)
    assert not any(each["fits"] for each in found)
    on_80 = {each["launch"]: each for each in found if each["gpu_gb"] == 80}
    # Four processes for a row are too few: 55 GiB, and what vLLM keeps while it sleeps.
    assert on_80["zero2"]["change"] == "optim.sequence_parallel_size=8"
    assert "sequence_parallel_size" not in on_80["single"]["change"]
    together = table(shared, policy, **HOUR, processes=8)
    assert {each["launch"] for each in together if each["fits"] and each["gpu_gb"] == 80} == SHARDED
    # A single process can't share a row, nor can six share it by eight.
    assert {each["launch"] for each in together} == {*LAUNCHES} - {"single"}
    assert table(shared, policy, **HOUR, processes=6) == []


def test_activations_of_a_shared_row_by_hand() -> None:
    _, policy = run_of("")
    config = load_config([JOB, "optim.sequence_parallel_size=8"])
    sizes = sizes_of(config, policy, **HOUR)
    found = needs(config, policy, sizes, LAUNCHES["zero2"], processes=8, gpu_gib=80)["activations"]
    text, patches = 262_144 / 8, 4 * 245_760 / 8
    # Layers' inputs in bf16; then a layer's bytes of 6 inner widths and 24 own ones, with gradients. The tower's has
    # most, also beside a text layer's keys and values of one head of 128 for each of 8 completions, in bf16 with
    # gradients.
    kept = 2 * (36 * text * 2048 + 32 * patches * 1280)
    in_tower = 2 * patches * (6 * 3420 + 24 * 1280)
    keys = 2 * 2 * 2 * 128 * 262_144 * 8
    in_text = 2 * text * (6 * 11008 + 24 * 2048) + keys
    assert in_text < in_tower
    assert found == pytest.approx((kept + in_tower) / 2**30, rel=1e-6)
    frozen = replace(sizes, trains_vision=False)
    found = needs(config, policy, frozen, LAUNCHES["zero2"], processes=8, gpu_gib=80)["activations"]
    assert found == pytest.approx((2 * 36 * text * 2048 + in_text) / 2**30, rel=1e-6)
