"""Whole runs of the real command on real clips: they repeat, resume, and don't depend on packing or processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo.config.load import read_config
from grpo.run.folder import checkpoint_steps, read_rows
from grpo.run.model_inputs import ModelInputs, read_inputs
from tests.support import tiny
from tests.support.launched import run_in_two
from tests.support.runs import SMALL, close, data, repeatable, run, weights


@pytest.fixture(scope="module")
def reference_run(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    return folder, run(folder, clips)


Reference = tuple[Path, list[dict[str, Any]]]


def test_a_run_leaves_everything_about_itself_in_its_folder(reference_run: Reference) -> None:
    folder, rows = reference_run
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert {"eval/heldout/accuracy", "eval/heldout/sampled/keyframe"} <= rows[0].keys()
    expected = {
        "loss", "reward/mean", "reward/std", "rewards/accuracy/mean", "rewards/keyframe/abstained",
        "completion/length", "groups/no_signal", "policy/entropy", "policy/clip_fraction", "sampler/gap_max",
        "time/data", "time/rollout", "time/reward", "time/update", "time/sync", "tokens/prompt", "tokens/completion",
        "tokens/computed", "media/decoded", "media/cache_hits", "media/failed",
    }  # fmt: skip
    assert expected <= rows[1].keys()
    assert sorted(path.name for path in (folder / "rollouts").iterdir())[0] == "step_000001.parquet"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "manifest.json", "media_files.json", "metrics.jsonl", "rollouts", "answers", "checkpoints",
        "final", "curves.png", ".lock",
    }  # fmt: skip
    assert len({file.stat().st_mode for file in folder.rglob("*") if file.is_file()}) == 1
    assert read_inputs(str(folder / "final")) == ModelInputs.of(read_config(folder / "config.yaml"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == torch.__version__ and len(manifest["data"]) == 2


def test_the_rollouts_file_explains_every_completion(reference_run: Reference) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(reference_run[0] / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) == 16
    for row in rows:
        assert row["prompt"].count("<|video_pad|>") == 1 and row["question"] in row["prompt"]
        total = row["rewards/accuracy"] + 0.5 * row["rewards/format"] + 0.5 * row["rewards/keyframe"]
        assert row["total"] == pytest.approx(total)
        assert row["learner_logprobs"] == pytest.approx(row["logprobs"], abs=1e-3)


def test_the_answers_to_held_out_questions_are_kept(reference_run: Reference) -> None:
    import pyarrow.parquet as pq

    folder, metrics = reference_run
    assert [path.name for path in sorted((folder / "answers").iterdir())] == [
        f"step_{step:06d}.parquet" for step in (0, 2, 4)
    ]
    rows = pq.read_table(folder / "answers" / "step_000004.parquet").to_pylist()
    greedy = [row for row in rows if row["pass"] == "greedy"]
    assert len({row["sample_id"] for row in greedy}) == len(greedy) == len(rows) - len(greedy) == 4
    assert {row["set"] for row in rows} == {"heldout"} and all(row["completion"] for row in rows)
    accuracy = sum(row["rewards/accuracy"] for row in greedy) / 4
    assert accuracy == pytest.approx(metrics[-1]["eval/heldout/accuracy"])


def test_a_clip_is_decoded_once_per_run(reference_run: Reference) -> None:
    rows = reference_run[1]
    # 4 held-out clips and 12 training clips, the first 4 of which the start tries; step 4 starts the second epoch
    decoded = [row["media/decoded"] for row in rows]
    assert sum(decoded) == 16 and decoded[0] == 8 and decoded[4] == 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(reference_run: Reference, clips: Path, tmp_path: Path) -> None:
    """To the last count of decoded clips: each of the two has a disk cache of its own, beside its folder."""
    rows = run(tmp_path / "run", clips)
    assert repeatable(rows, but=("time/",)) == repeatable(reference_run[1], but=("time/",))
    for name, weight in weights(tmp_path / "run").items():
        assert torch.equal(weight, weights(reference_run[0])[name]), name
    assert repeatable(run(tmp_path / "other", clips, "seed=1")) != repeatable(reference_run[1])


def test_a_run_stopped_after_a_checkpoint_goes_on_as_if_uninterrupted(
    reference_run: Reference, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference_run[0], folder)
    stop_after(2, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # cut off by the kill
    assert repeatable(run(folder, clips)) == repeatable(reference_run[1])
    for name, weight in weights(folder).items():
        assert torch.equal(weight, weights(reference_run[0])[name]), name


@pytest.mark.slow
def test_the_run_does_not_depend_on_how_groups_are_packed(
    reference_run: Reference, clips: Path, tmp_path: Path
) -> None:
    rows = run(tmp_path / "run", clips, "optim.tokens_per_row=100")
    assert rows[1]["tokens/computed"] > reference_run[1][1]["tokens/computed"]
    assert close(repeatable(rows), repeatable(reference_run[1]), but=("tokens/computed",))


@pytest.mark.slow
def test_what_is_kept_where_and_how_far_ahead_changes_no_update(
    reference_run: Reference, clips: Path, tmp_path: Path
) -> None:
    rows = run(
        tmp_path / "run",
        clips,
        "log.rollouts_every_steps=3",
        f"media.cache_dir={tmp_path}/frames",
        "media.prefetch_steps=0",
        "eval.batch_prompts=3",
    )
    assert repeatable(rows) == repeatable(reference_run[1])
    assert [path.name for path in (tmp_path / "run" / "rollouts").iterdir()] == ["step_000003.parquet"]
    assert len([*(tmp_path / "frames").glob("*/[!.]*.clip")]) == 16
    assert {path.name for path in tmp_path.iterdir()} == {"run", "frames"}


UNEVEN = """
from rewards import reward

@reward
def uneven(rollout):
    return float(len(rollout.token_ids)) if int(rollout.sample.id[-1]) % 2 else 0.0
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "uneven rows", "kl, two updates"])
def test_two_processes_make_the_same_run_as_one(case: str, clips: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "uneven.py"
    plugin.write_text(UNEVEN)
    weightless = [f"rewards.{name}.weight=0" for name in ("accuracy", "format", "keyframe")]
    overrides = {
        "plain": [],
        # half of the samples are flat and every completion has a row: one process has more rows than the other
        "uneven rows": [f"rewards.uneven.fn={plugin}:uneven", *weightless, "optim.tokens_per_row=1"],
        "kl, two updates": ["loss.beta=0.5", "optim.num_iterations=2", "optim.tokens_per_row=200"],
    }[case]
    arguments = ["grpo/train.py", *SMALL, *data(clips), *overrides, f"run_dir={tmp_path}/two"]
    run_in_two(arguments, dict(os.environ), tmp_path)
    one, two = run(tmp_path / "one", clips, *overrides), read_rows(tmp_path / "two" / "metrics.jsonl")
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["num_processes"] == 2
    assert close(repeatable(two), repeatable(one), but=("tokens/computed",))
    assert distance_between(tmp_path / "two", tmp_path / "one") < 0.01


def distance_between(run_dir: Path, reference: Path) -> float:
    """How far final weights are from those of a reference, as a share of the way that the reference's have travelled.

    Adam turns a gradient of rounding errors alone into a full step, so single weights may differ.
    """
    start = load_file(tiny.BASE_POLICY / "model.safetensors")
    one_way, difference = 0.0, 0.0
    for name, weight in weights(reference).items():
        one_way += float((weight - start[name]).square().sum())
        difference += float((weights(run_dir)[name] - weight).square().sum())
    return (difference / one_way) ** 0.5


@pytest.mark.slow
def test_a_run_goes_on_in_more_and_in_fewer_processes(
    reference_run: Reference, clips: Path, tmp_path: Path
) -> None:
    """Step 3 is made by two processes from the checkpoint of one, and step 4 by one from the checkpoint of two."""
    folder = tmp_path / "run"
    shutil.copytree(reference_run[0], folder)
    stop_after(2, folder)
    overrides = [f"run_dir={folder}", "checkpoint.every_steps=1"]
    run_in_two(["grpo/train.py", *SMALL, *data(clips), *overrides], dict(os.environ), tmp_path)
    stop_after(3, folder)
    assert {path.name for path in (folder / "checkpoints" / "step_000003").glob("random_states_*")} == {
        "random_states_0.pkl",
        "random_states_1.pkl",
    }
    rows = run(folder, clips, "checkpoint.every_steps=1")
    assert close(repeatable(rows), repeatable(reference_run[1]), but=("tokens/computed",))
    assert distance_between(folder, reference_run[0]) < 0.01


def stop_after(step: int, run_dir: Path) -> None:
    """Make a finished run of 4 steps one that was killed before its last checkpoint; the newest is of this step."""
    shutil.rmtree(run_dir / "final")
    shutil.rmtree(run_dir / "checkpoints" / "step_000004")
    assert checkpoint_steps(run_dir / "checkpoints")[-1] == step


@pytest.mark.slow
def test_several_updates_per_batch_use_the_clip(clips: Path, tmp_path: Path) -> None:
    overrides = ["optim.num_iterations=3", "optim.lr=2e-3", "optim.warmup_steps=0", "num_steps=1"]
    rows = run(tmp_path / "run", clips, *overrides, "loss.epsilon=0.05")
    assert rows[1]["policy/clip_fraction"] > 0


@pytest.mark.slow
def test_the_kl_term_grows_from_zero(clips: Path, tmp_path: Path) -> None:
    rows = run(
        tmp_path / "run", clips, "loss.beta=0.04", "optim.lr=1e-3", "optim.warmup_steps=0", "num_steps=2"
    )
    assert rows[1]["policy/kl"] == pytest.approx(0.0, abs=1e-9)  # the policy still is its own reference
    assert rows[2]["policy/kl"] > 1e-4


@pytest.mark.slow
def test_a_frozen_vision_tower_stays_as_it_was(clips: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", clips, "model.freeze_vision=true", "num_steps=1", "eval.every_steps=0")
    start, end = load_file(tiny.BASE_POLICY / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    assert changed and not any("visual" in name for name in changed)


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_another_config_is_refused(
    reference_run: Reference, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, rows = reference_run
    assert run(folder, clips) == rows
    with pytest.raises(SystemExit, match="holds a run with optim.lr=0.0001, not 0.5"):
        run(folder, clips, "optim.lr=0.5")


@pytest.mark.slow
def test_a_killed_run_with_vllm_resumes_and_its_model_is_served(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    command = [*launch, "--mixed_precision=no", "--dynamo_backend=no", str(tiny.ROOT / "grpo" / "train.py")]
    arguments = [*SMALL, *data(clips), "rollout.engine=vllm"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, *arguments, f"run_dir={killed}"], start_new_session=True)
    deadline = time.monotonic() + 240
    while not (killed / "checkpoints" / "step_000002").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for folder in (killed, whole):
        subprocess.run([*command, *arguments, f"run_dir={folder}"], check=True, timeout=300)
    assert repeatable(read_rows(killed / "metrics.jsonl")) == repeatable(read_rows(whole / "metrics.jsonl"))

    serve = (
        "import sys; from dataclasses import replace; from tests.rollout import test_rollout as t;"
        "from grpo.policy.families import load_family; from grpo.policy.model import Policy; import torch;"
        "from tests.support.engines import vllm_engine;"
        "family = load_family(sys.argv[1]);"
        "policy = Policy(family.load_model(torch.float32), family, temperature=t.TEMPERATURE);"
        "engine = vllm_engine(policy);"
        "assert t.gap(policy, engine.generate(t.prompts(), t.SAMPLING, t.SEEDS)) < 1e-3"
    )
    subprocess.run(
        [sys.executable, "-c", serve, str(whole / "final")], check=True, timeout=300, cwd=tiny.ROOT
    )


@pytest.mark.slow
def test_a_run_under_deepspeed_zero_2_learns_and_resumes(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes=1",
        "--main_process_port=0",
    ]
    config = ["--config_file", str(tiny.ROOT / "launch" / "accelerate" / "zero2.yaml")]
    # bf16: the engine samples with the weights as they are rolled out, the learner sums in another order
    overrides = [
        f"run_dir={tmp_path}/run",
        "optim.tokens_per_row=300",
        "optim.lr=1e-4",
        "rollout.max_gap=0.1",
    ]
    command = [*launch, *config, str(tiny.ROOT / "grpo" / "train.py"), *SMALL, *data(clips), *overrides]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    for num_steps in (2, 4):
        done = subprocess.run(
            [*command, f"num_steps={num_steps}"],
            env=environment,
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(0 < row["optim/grad_norm"] < 10 for row in rows[1:])
    start, end = load_file(tiny.BASE_POLICY / "model.safetensors"), weights(tmp_path / "run")
    moved = [name for name in end if not torch.equal(start[name].bfloat16(), end[name].bfloat16())]
    assert len(moved) > len(end) / 2
