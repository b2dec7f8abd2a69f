"""DDP, ZeRO and FSDP2 in two real processes: the update of one, from rows as unequal as can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo.learner import launching
from grpo.run.folder import read_rows
from tests.support import tiny
from tests.support.launched import run_two
from tests.support.runs import SMALL, close, data, repeatable, reset_process_state, run, weights
from tests.support.sharded_worker import CASES, family_of, update

Result = dict[str, Any]


@pytest.fixture(scope="module")
def in_one_process() -> dict[str, Result]:
    """Each case's update of all rows in this process."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    results = {}
    for case in CASES:
        reset_process_state()
        with tiny.of_family(family_of(case)):
            results[case] = update(case, of_process=None)
    reset_process_state()
    del os.environ["ACCELERATE_USE_CPU"]
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("multi_gpu", "checkpointed"),
        ("zero2", "frozen tower"),
        ("zero2_offload", "checkpointed"),
        ("zero3", "full"),
        ("zero3", "frozen tower"),
        ("zero3", "lora"),
        ("zero3_offload", "checkpointed"),
        ("fsdp2", "lora"),
        ("fsdp2", "checkpointed"),
        ("fsdp2", "spd"),
        ("fsdp2", "full of qwen3_vl"),
    ],
)
def test_two_processes_make_the_update_of_one(
    kind: str, case: str, in_one_process: dict[str, Result], tmp_path: Path
) -> None:
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    run_two(kind, ["-m", "tests.support.sharded_worker", case, str(tmp_path / "two.pt")], tmp_path)
    one, two = in_one_process[case], torch.load(tmp_path / "two.pt")
    # Where FSDP2 is let run on a CPU, accelerate's state is there before the run asks for it.
    assert two["timeout_s"] == launching.PATIENCE.total_seconds() or kind == "fsdp2"
    # FSDP2 would keep whole gradients until the last of a step's rows.
    assert two["kept whole"] == 0 and two["rows"] > 1
    assert two["sharded"] == two["in parts"] == (kind in ("zero3", "zero3_offload", "fsdp2"))
    keys = ["optim/projected_frac"] if case == "spd" else []
    for key in (*keys, "loss", "optim/grad_norm", "policy/kl", "policy/entropy", "sampler/gap_max"):
        assert two["figures"][key] == pytest.approx(one["figures"][key], rel=1e-4), key
    assert one["figures"]["optim/grad_norm"] > 0.02  # it is clipped at 0.01
    assert "spd" not in case or one["figures"]["optim/projected_frac"] > 0
    for mine, theirs in zip(one["proofs"], two["proofs"], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)
    assert not torch.allclose(*one["proofs"], atol=1e-3)
    with tiny.of_family(family_of(case)):
        start = dict(tiny.policy(seed=1, **CASES[case]).named_weights())
    assert two["weights"].keys() == one["weights"].keys() == start.keys()
    # Adam turns a gradient of rounding errors into a full step: compare the whole.
    off = sum(
        float((two["weights"][name] - weight).square().sum()) for name, weight in one["weights"].items()
    )
    way = sum(float((start[name] - weight).square().sum()) for name, weight in one["weights"].items())
    assert off < 1e-8 * way  # 1e-4 of the distance travelled


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi_gpu", "zero2", "zero3", "fsdp2"])
def test_two_processes_in_bf16_make_the_update_of_one_and_skip_one_that_is_not_finite(
    kind: str, in_one_process: dict[str, Result], tmp_path: Path
) -> None:
    """As on GPUs: passes in bf16, the head in fp32, fused AdamW. The worker asserts that the second one is skipped."""
    if kind.startswith("zero"):
        pytest.importorskip("deepspeed")
    run_two(kind, ["-m", "tests.support.sharded_worker", "in bf16", str(tmp_path / "two.pt")], tmp_path)
    one, two = in_one_process["in bf16"], torch.load(tmp_path / "two.pt")
    exact = in_one_process["checkpointed"]["figures"]
    assert two["kept whole"] == 0 and two["rows"] > 1
    # The loss is about 0, since advantages cancel.
    assert two["figures"]["loss"] == pytest.approx(exact["loss"], abs=3e-4)
    for key in ("optim/grad_norm", "policy/kl", "policy/entropy"):
        assert two["figures"][key] != pytest.approx(exact[key], rel=1e-5), key
        # Under DeepSpeed weights and states are in bf16 throughout, and elsewhere the products alone.
        assert two["figures"][key] == pytest.approx(one["figures"][key], rel=0.1), key
        assert two["figures"][key] == pytest.approx(exact[key], rel=0.1), key
    start = dict(tiny.policy(seed=1, **CASES["in bf16"]).named_weights())
    names = [name for name in start if two["weights"][name].ndim > 1]
    ways = [
        torch.cat([(each["weights"][name].float() - start[name]).flatten() for name in names])
        for each in (one, two)
    ]
    assert float(torch.nn.functional.cosine_similarity(*ways, dim=0)) > 0.9


TRAINED = {
    "full": [],
    "frozen tower": ["model.freeze_vision=true"],
    "lora": ["model.lora.r=4", "optim.lr=2e-3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
def test_a_run_under_zero_3_is_that_of_one_process_and_resumes(
    trained: str, clips: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    folder, few = tmp_path / "two", ["eval.every_steps=1", "eval.max_samples=2", "checkpoint.every_steps=1"]
    few += ["loss.beta=0.04", *TRAINED[trained]]
    for num_steps in (1, 2):
        arguments = [*SMALL, *data(clips), *few, f"run_dir={folder}", f"num_steps={num_steps}"]
        run_two("zero3", ["grpo/train.py", *arguments], tmp_path)
    rows = run(tmp_path / "one", clips, *few, "num_steps=2")
    assert close(
        repeatable(read_rows(folder / "metrics.jsonl"))[1:], repeatable(rows)[1:], but=("tokens/computed",)
    )
    start, one, two = (
        load_file(tiny.BASE_POLICY / "model.safetensors"),
        weights(tmp_path / "one"),
        weights(folder),
    )
    assert two.keys() == start.keys()
    assert (folder / "final" / "adapter").exists() == (trained == "lora")
    changed = {name for name in two if not torch.equal(start[name], two[name])}
    assert any("visual" in name for name in changed) == (trained == "full") and changed
    off = sum(float((two[name] - one[name]).square().sum()) for name in one)
    assert off < 1e-4 * sum(float((one[name] - start[name]).square().sum()) for name in one)
