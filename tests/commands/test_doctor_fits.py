"""Every shipped job on every launch that takes it and every usual GPU: what fits, and what is said to change."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest

from grpo.commands.doctor.engine_memory import engine_parts_gib, group_tokens, least_frac
from grpo.commands.doctor.memory import (
    FURTHER_CHANGES,
    GPUS_GB,
    LAUNCHES,
    Sizes,
    engine_parts,
    goes_with,
    sizes_of,
    table,
    verdict,
)
from grpo.config.load import load_config
from grpo.config.schema import Config
from grpo.policy.families import ModelFamily
from grpo.policy.model import Policy
from grpo.startup.assembly import build_outline
from tests.support import tiny
from tests.support.shapes import family_3b, family_of

CONFIGS = tiny.ROOT / "configs"
LAUNCHED = re.compile(
    r"launch/accelerate/(\w+)\.yaml(?: --num_processes (\d+))?[^#]*?(?:#\s+)?grpo/train\.py\s+"
    r"((?:configs/\S+\.yaml\s*)+)"
)
# A model that was grown by some thousand tokens, of 152,000.
GROWN_FROM = {"runs/egolm_nymeria_supervised/final": "Qwen/Qwen2.5-VL-3B-Instruct",
              "models/qwen_motion": "Qwen/Qwen2.5-VL-3B-Instruct"}  # fmt: skip


def headers() -> dict[str, tuple[str, int, tuple[str, ...]]]:
    """How headers launch each shipped file, their own or that of another job: launch, processes, files."""
    found: dict[str, tuple[str, int, tuple[str, ...]]] = {}
    for path in sorted(CONFIGS.rglob("*.yaml")):
        for name, processes, files in LAUNCHED.findall(path.read_text().replace("\\\n#", " ")):
            stems = tuple(files.split())
            found.setdefault(stems[-1], (name, int(processes or 1), stems))
    return found


HEADERS = headers()


@dataclass(frozen=True)
class Shape:
    """What tells the outlines of jobs apart."""

    path: str
    lora: str
    config: Config = field(compare=False)


@lru_cache
def outline(shape: Shape) -> Policy:
    return build_outline(
        shape.config, family_of(shape.path) if shape.path.startswith("Qwen/") else tiny.family()
    )


@lru_cache
def job(files: tuple[str, ...]) -> tuple[Config, Policy, Sizes]:
    """A job with clips as long as its settings allow, as many in a row as whole groups."""
    config = load_config([str(tiny.ROOT / name) for name in files])
    policy = outline(
        Shape(GROWN_FROM.get(config.model.path, config.model.path), str(config.model.lora), config)
    )
    rollout, row_tokens = config.rollout, config.optim.tokens_per_row
    of_clip = min(config.media.max_tokens or rollout.max_prompt_tokens, rollout.max_prompt_tokens)
    of_group = of_clip + rollout.group_size * rollout.max_new_tokens
    row_vision = max(1, row_tokens // of_group) * of_clip
    row_tokens = max(row_tokens, rollout.max_model_tokens)
    return config, policy, sizes_of(config, policy, row_tokens=row_tokens, row_vision_tokens=row_vision)


SHIPPED = [
    path for each in ("*.yaml", "supervised/*.yaml", "overlays/**/*.yaml") for path in CONFIGS.glob(each)
]


def test_every_shipped_job_and_overlay_says_how_it_is_launched() -> None:
    names = {str(path.relative_to(tiny.ROOT)) for path in SHIPPED}
    # Recipes that one command runs launch their own: on the model of the repository.
    own = {
        f"configs/{folder}{stem}.yaml"
        for folder in ("", "supervised/")
        for stem in ("egolm_synthetic", "actions_reacher")
    }
    assert names - own - {"configs/demo.yaml"} <= {*HEADERS}


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_each_fits_where_its_header_launches_it(name: str) -> None:
    launch, processes, files = HEADERS[name]
    config, policy, sizes = job(files)
    # Each header means GPUs of 80 GB, but for the one that is for a single small GPU.
    gpu_gb = 24 if "qlora" in name else 80
    found = verdict(config, policy, sizes, launch, processes=processes, gpu_gb=gpu_gb)
    assert found["fits"], (found["change"], found["parts_gib"], found["engine_gib"])


def changed(found: dict[str, Any], config: Config) -> tuple[Config, str]:
    """The config and the launch with what a verdict says to change."""
    words = found["change"].split()
    for key, value in (word.split("=") for word in words if "=" in word):
        section, name = key.split(".")
        part = getattr(config, section)
        meant = {"true": True}.get(value) or type(getattr(part, name))(value)
        config = replace(config, **{section: replace(part, **{name: meant})})
    return config, words[words.index("launch") + 1] if "launch" in words else found["launch"]


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_what_is_said_to_change_makes_it_fit_on_every_launch_and_gpu(name: str) -> None:
    """All of the table, by the arithmetic, and by the rules of what goes together."""
    _, processes, files = HEADERS[name]
    config, policy, sizes = job(files)
    rows = [
        verdict(
            config,
            policy,
            sizes,
            launch,
            processes=1 if launch == "single" else max(processes, 2),
            gpu_gb=gpu_gb,
        )
        for launch in LAUNCHES
        for gpu_gb in GPUS_GB
        if goes_with(config, launch, max(processes, 2))
    ]
    assert rows and any(row["fits"] for row in rows)
    for row in rows:
        if row["fits"] or row["change"] == FURTHER_CHANGES:
            continue
        other, launch = changed(row, config)
        count = 1 if launch == "single" else max(processes, 2)
        assert goes_with(other, launch, count)
        again = verdict(other, policy, sizes, launch, processes=count, gpu_gb=row["gpu_gb"])
        assert again["fits"], (row, again)


def test_a_smaller_share_that_is_enough_is_named_alone_and_no_smaller_than_needed() -> None:
    launch, processes, files = HEADERS["configs/egovlm_3b.yaml"]
    config, policy, sizes = job(files)
    options: dict[str, Any] = {"processes": processes, "gpu_gb": 141}
    config = replace(config, loss=replace(config.loss, beta=0.0))
    assert config.model.gradient_checkpointing
    for sleep in (True, False):
        rollout = replace(config.rollout, sleep=sleep, gpu_memory_frac=0.98)
        greedy = replace(config, rollout=rollout)
        found = verdict(greedy, policy, sizes, launch, **options)
        key, _, frac = found["change"].partition("=")
        assert key == "rollout.gpu_memory_frac" and 0.5 < float(frac) < 0.98
        for hundredths, fits in ((0, True), (1, False)):
            other = replace(rollout, gpu_memory_frac=float(frac) + hundredths / 100)
            again = verdict(replace(config, rollout=other), policy, sizes, launch, **options)
            assert again["fits"] == fits


def test_what_is_said_to_change_is_a_setting_that_a_run_takes() -> None:
    launch, processes, files = HEADERS["configs/egovlm_3b.yaml"]
    config, policy, sizes = job(files)
    found = verdict(config, policy, sizes, launch, processes=processes, gpu_gb=24)
    settings = [word for word in found["change"].split() if "=" in word]
    loaded = load_config([*(str(tiny.ROOT / each) for each in files), *settings])
    assert len(settings) == 3 and loaded == changed(found, config)[0]


FAMILY = family_3b()


def engine(*settings: str, family: ModelFamily = FAMILY, processes: int = 8) -> dict[str, float]:
    config = load_config([str(CONFIGS / "egovlm_3b.yaml"), *settings])
    return engine_parts_gib(config, family, num_weights=3_754_622_976, processes=processes)


def test_the_engines_parts_by_hand() -> None:
    parts = engine()
    gib = 2**30
    assert parts["weights"] == pytest.approx(2 * 3_754_622_976 / gib)
    # A prompt of 3,328 tokens and 8 completions of 768 are 592 blocks of 16, and one is held back; a token has 36
    # layers of 2 heads of 128 keys and values in bf16.
    assert parts["cache"] == pytest.approx(593 * 16 * 36 * 2 * 128 * 2 * 2 / gib)
    # The processor's largest picture has 16,384 tokens of 4 patches: 1,176 pixels each, and in the tower's MLP
    # 3 x 1,280 and 3 x 3,420; features of 2,048.
    tower = 2 * 65_536 * (1176 + 3 * 1280 + 3 * 3420) + 2 * 16_384 * 2048
    assert parts["work"] == pytest.approx(tower / gib)
    assert parts["buffers"] == pytest.approx(2 * 8192 * 2048 / gib)


def test_a_step_of_a_clip_of_an_hour_takes_as_much_as_the_clip() -> None:
    parts = engine(str(CONFIGS / "overlays" / "hour_long.yaml"))
    tokens = 245_760
    tower = 2 * 4 * tokens * (1176 + 3 * 1280 + 3 * 3420) + 2 * tokens * 2048
    assert parts["work"] == pytest.approx(tower / 2**30)
    # 262,144 tokens and 7 more completions.
    assert parts["cache"] == pytest.approx((267_520 + 16) * 36_864 / 2**30)
    assert parts["buffers"] == pytest.approx(2 * tokens * 2048 / 2**30)
    assert least_frac(parts, 80e9 / 2**30) == 0.64


def test_two_processes_that_share_an_engine_halve_weights_and_cache() -> None:
    alone, shared = engine(), engine("rollout.tensor_parallel_size=2")
    assert shared["weights"] == alone["weights"] / 2 and shared["cache"] == alone["cache"] / 2
    assert alone["work"] / 2 < shared["work"] < alone["work"]
    # Of two key heads, four processes have one each.
    assert engine("rollout.tensor_parallel_size=4")["cache"] == shared["cache"]


def test_logits_of_many_sequences_and_the_masks_of_code_tokens_count() -> None:
    few = ("media.max_tokens=16",)
    small = replace(FAMILY, processor=tiny.family().processor)
    with_1024 = engine("optim.prompts_per_step=1024", *few, family=small)
    # In bf16, and three times in fp32.
    logits = 1024 * 151_936 * 14 + 2 * 8192 * 2048 + 2 * 8192 * 2048
    assert with_1024["work"] == pytest.approx(logits / 2**30)
    grown: Any = replace(small, vocabulary=object())
    masks = engine("optim.prompts_per_step=1024", *few, family=grown)["work"] - with_1024["work"]
    assert masks == pytest.approx(1024 * 151_936 / 2**30)


def test_adapters_beside_the_weights_have_room_up_to_the_next_rank() -> None:
    config, policy, sizes = job(HEADERS["configs/overlays/lora.yaml"][2])
    found = engine_parts(config, policy, sizes, 4)
    # Of a layer: queries and what comes out, keys and values, and three of the MLP.
    widths = 36 * (2 * 4096 + 2 * 2304 + 3 * 13_056)
    assert found["weights"] == pytest.approx(2 * (sizes.total + 64 * widths) / 2**30)
    merged = replace(config, rollout=replace(config.rollout, lora="merge"))
    assert engine_parts(merged, policy, sizes, 4)["weights"] == pytest.approx(2 * sizes.total / 2**30)


def test_no_engine_counts_where_none_is_in_the_process() -> None:
    files = HEADERS["configs/supervised/egocross.yaml"][2]
    config, policy, sizes = job(files)
    assert config.rollout.engine == "none"
    options: dict[str, Any] = {"processes": 4, "gpu_gb": 80}
    found = verdict(config, policy, sizes, "zero2", **options)
    assert found["parts_gib"]["engine"] == 0 and found["engine_gib"] == {}
    served = replace(config, rollout=replace(config.rollout, engine="vllm_server"))
    assert verdict(served, policy, sizes, "zero2", **options)["needs_gib"] == found["needs_gib"]


def test_a_share_that_vllm_can_not_start_with_is_named() -> None:
    config, policy, sizes = job(HEADERS["configs/overlays/qlora.yaml"][2])
    low = replace(config, rollout=replace(config.rollout, gpu_memory_frac=0.3))
    found = verdict(low, policy, sizes, "single", processes=1, gpu_gb=24)
    # 10.4 of 22.4 GiB: weights of 3.87 billion numbers, 0.3 of cache, 1.9 for the largest picture, and 1.
    assert not found["fits"] and found["change"] == "rollout.gpu_memory_frac=0.47"


def test_an_own_server_needs_its_share_of_its_own_gpu() -> None:
    config, policy, sizes = job(HEADERS["configs/egovlm_3b.yaml"][2])
    own = replace(config, rollout=replace(config.rollout, engine="vllm_process", gpu_memory_frac=0.1))
    found = verdict(own, policy, sizes, "zero2", processes=8, gpu_gb=80)
    assert found["parts_gib"]["engine"] == 0 and found["change"].startswith("rollout.gpu_memory_frac=0.1")


def test_a_group_shares_its_prompt_in_the_cache() -> None:
    config, _, _ = job(HEADERS["configs/egovlm_3b.yaml"][2])
    assert group_tokens(config) == 4096 - 768 + 8 * 768


def test_the_demo_fits_everywhere() -> None:
    config = load_config([str(CONFIGS / "demo.yaml")])
    policy = build_outline(config, tiny.family())
    found = table(config, policy, row_tokens=16384, row_vision_tokens=4096, processes=2)
    assert all(each["fits"] for each in found) and len(found) == 3 * len(LAUNCHES)
