"""Whole runs of the real command on real clips: they repeat, resume, don't depend on packing or processes, and
say what is wrong with their input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from grpo import train
from grpo.data.synthetic import write_dataset
from grpo.run_dir import read_rows
from tests import tiny

SMALL = [
    str(tiny.ROOT / "configs" / "demo.yaml"),
    f"model.path={tiny.BASE_POLICY}",
    "rollout.engine=transformers",
    "rollout.group_size=4",
    "optim.prompts_per_step=4",
    "num_steps=4",
    "eval.every_steps=2",
    "eval.max_samples=4",
    "checkpoint.every_steps=2",
]
NOT_REPEATED = ("time/", "media/")
"""Times are never the same, and a resumed run has to decode again what it had in memory."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "clips", num_train=12, num_heldout=4, seed=1)


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    """accelerate keeps its state in singletons; every run here stands for a process of its own."""
    yield
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def data(clips: Path) -> list[str]:
    return [
        f"data.train=[{{reader: jsonl, path: {clips}/train.jsonl}}]",
        f"data.eval=[{{reader: jsonl, path: {clips}/heldout.jsonl}}]",
    ]


def run(run_dir: Path, clips: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train in this process; the rows of metrics.jsonl."""
    train.main([*SMALL, *data(clips), f"run_dir={run_dir}", *overrides])
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    return read_rows(run_dir / "metrics.jsonl")


def repeatable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(NOT_REPEATED)} for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "final" / "model.safetensors")


def close(a: list[dict[str, Any]], b: list[dict[str, Any]], *, but: tuple[str, ...] = ()) -> bool:
    """Equal up to the rounding of sums in another order."""
    assert [row.keys() for row in a] == [row.keys() for row in b]
    return all(
        row[key] == pytest.approx(other[key], rel=1e-3, abs=2e-5)
        for row, other in zip(a, b, strict=True)
        for key in row
        if key not in but
    )


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
        "time/rollout", "time/reward", "time/update", "time/sync", "tokens/prompt", "tokens/completion",
        "tokens/computed", "media/decoded", "media/cache_hits", "media/failed",
    }  # fmt: skip
    assert expected <= rows[1].keys()
    assert sorted(path.name for path in (folder / "rollouts").iterdir())[0] == "step_000001.parquet"
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "manifest.json", "metrics.jsonl", "rollouts", "checkpoints", "final", "curves.png",
    }  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == torch.__version__ and len(manifest["data"]) == 2


def test_the_rollouts_file_explains_every_completion(reference_run: Reference) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(reference_run[0] / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) == 16
    for row in rows:
        total = row["rewards/accuracy"] + 0.5 * row["rewards/format"] + 0.5 * row["rewards/keyframe"]
        assert row["total"] == pytest.approx(total)


def test_a_clip_is_decoded_once_per_run(reference_run: Reference) -> None:
    rows = reference_run[1]
    # 4 held-out clips and 12 training clips, 4 a step; step 4 starts the second epoch
    assert [row["media/decoded"] for row in rows] == [4, 4, 4, 4, 0]


def test_the_same_seed_gives_the_same_run(reference_run: Reference, clips: Path, tmp_path: Path) -> None:
    rows = run(tmp_path / "run", clips)
    assert repeatable(rows) == repeatable(reference_run[1])
    for name, weight in weights(tmp_path / "run").items():
        assert torch.equal(weight, weights(reference_run[0])[name]), name
    assert repeatable(run(tmp_path / "other", clips, "seed=1")) != repeatable(reference_run[1])


def test_a_run_stopped_after_a_checkpoint_goes_on_as_if_uninterrupted(
    reference_run: Reference, clips: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reference_run[0], folder)
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')  # cut off by the kill
    assert repeatable(run(folder, clips)) == repeatable(reference_run[1])
    for name, weight in weights(folder).items():
        assert torch.equal(weight, weights(reference_run[0])[name]), name


def test_the_run_does_not_depend_on_how_groups_are_packed(
    reference_run: Reference, clips: Path, tmp_path: Path
) -> None:
    rows = run(tmp_path / "run", clips, "optim.tokens_per_row=100")
    assert rows[1]["tokens/computed"] > reference_run[1][1]["tokens/computed"]
    assert close(repeatable(rows), repeatable(reference_run[1]), but=("tokens/computed",))


UNEVEN = """
from rewards import reward

@reward
def uneven(rollout):
    return float(len(rollout.token_ids)) if int(rollout.sample.id[-1]) % 2 else 0.0
"""


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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(tiny.ROOT / "grpo" / "train.py"), *SMALL, *data(clips), *overrides]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments, f"run_dir={tmp_path}/two"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = run(tmp_path / "one", clips, *overrides), read_rows(tmp_path / "two" / "metrics.jsonl")
    assert json.loads((tmp_path / "two" / "manifest.json").read_text())["num_processes"] == 2
    assert close(repeatable(two), repeatable(one), but=("tokens/computed",))
    for name, weight in weights(tmp_path / "two").items():
        torch.testing.assert_close(weight, weights(tmp_path / "one")[name], atol=2e-5, rtol=1e-3)


def test_several_updates_per_batch_use_the_clip_and_kl_grows_from_zero(clips: Path, tmp_path: Path) -> None:
    overrides = ["optim.num_iterations=3", "optim.lr=2e-3", "optim.warmup_steps=0", "loss.beta=0.04"]
    rows = run(
        tmp_path / "run", clips, *overrides, "loss.epsilon=0.05", "loss.epsilon_high=0.05", "num_steps=2"
    )
    assert rows[1]["policy/clip_fraction"] > 0
    assert 0 < rows[1]["policy/kl"] < rows[2]["policy/kl"]


def test_a_frozen_vision_tower_stays_as_it_was(clips: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", clips, "model.freeze_vision=true", "num_steps=1", "eval.every_steps=0")
    start, end = load_file(tiny.BASE_POLICY / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    assert changed and not any("visual" in name for name in changed)


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
        "import sys; from dataclasses import replace; from tests import tiny, test_rollout as t;"
        "from grpo.families import load_family; from grpo.policy import Policy; import torch;"
        "from grpo.rollout.vllm_engine import VLLMEngine;"
        "family = load_family(sys.argv[1]);"
        "policy = Policy(family.load_model(torch.float32), family, temperature=t.TEMPERATURE);"
        "engine = VLLMEngine(policy, seed=0, max_model_tokens=2048, gpu_memory_frac=0.3);"
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


def edited(clips: Path, tmp_path: Path, **fields: object) -> list[str]:
    """The training set with fields of its second record replaced."""
    lines = (clips / "train.jsonl").read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **fields})
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return [f"data.train=[{{reader: jsonl, path: {file}, media_root: {clips}}}]", "data.eval=[]"]


def test_bad_input_stops_the_run_in_one_line_before_a_model_is_loaded(clips: Path, tmp_path: Path) -> None:
    not_a_video = tmp_path / "text.mp4"
    not_a_video.write_text("no video")
    plugin = tmp_path / "plugin.py"
    plugin.write_text("from rewards import reward\n@reward\ndef broken(rollout):\n    return 1 / 0\n")
    cases = {
        r"train.jsonl:2: .*no such video": edited(clips, tmp_path / "a", video="clips/none.mp4"),
        r"train.jsonl:2: .*text.mp4": edited(clips, tmp_path / "b", video=str(not_a_video)),
        r"train.jsonl:2: .*answer": edited(clips, tmp_path / "c", answer="E"),
        r"Key 'lrr' not in 'OptimConfig'. Did you mean: 'lr'": ["optim.lrr=1"],
        r"model.path: .*nowhere": ["model.path=./nowhere"],
        r"rewards.brevity: .*": ["rewards.brevity.weight=1"],
        r"rewards.mine: .*none.py": ["rewards.mine.fn=none.py:f"],
        r"rewards.broken: .*ZeroDivisionError": [f"rewards.broken.fn={plugin}:broken"],
        r"rewards.format.only_if: no reward named 'accurcy'": ["rewards.format.only_if=accurcy"],
        r"prompt has 63 tokens, rollout.max_model_tokens leaves room for 16": ["rollout.max_model_tokens=40"],
    }
    for pattern, overrides in cases.items():
        with pytest.raises(SystemExit, match=rf"^error: (.|\n)*{pattern}") as caught:
            train.main([*SMALL, *data(clips), f"run_dir={tmp_path}/run", *overrides])
        assert "\n" not in str(caught.value.code)
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()


def test_a_clip_that_turns_out_unreadable_loses_its_group_and_the_run_goes_on(
    clips: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(
        (clips / json.loads((clips / "train.jsonl").read_text().splitlines()[1])["video"]).read_bytes()[:600]
    )
    overrides = [
        *edited(clips, tmp_path, id="broken-1", video=str(broken)),
        "data.probe_clips=0",
        "num_steps=3",
    ]
    rows = run(tmp_path / "run", clips, *overrides)
    assert sum(row.get("media/failed", 0) for row in rows) == 1
    assert sum(row.get("groups/lost", 0) for row in rows) == 1  # three steps of four: every sample once
    (failure,) = read_rows(tmp_path / "run" / "failures.jsonl")
    assert failure["sample_id"] == "broken-1" and "broken.mp4" in failure["reason"]
    assert rows[-1]["step"] == 3


PLUGIN = """
from rewards import reward

@reward
def fragile(rollout, *, marked: str):
    if rollout.sample.id == marked:
        raise RuntimeError("no service")
    return 1.0
"""


def test_a_reward_that_fails_in_training_is_counted_and_too_many_stop_the_run(
    clips: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    marked = json.loads((clips / "train.jsonl").read_text().splitlines()[2])["id"]
    overrides = [
        f"rewards.fragile.fn={plugin}:fragile",
        f"rewards.fragile.args.marked={marked}",
        "num_steps=3",
    ]
    rows = run(tmp_path / "tolerant", clips, *overrides, "rewards_max_error_frac=0.5")
    # its group fails: 4 of the 64 scores of that step (4 prompts x 4 completions x 4 rewards)
    assert max(row.get("rewards/error_frac", 0) for row in rows) == pytest.approx(4 / 64)
    failures = read_rows(tmp_path / "tolerant" / "failures.jsonl")
    assert [each["sample_id"] for each in failures] == [marked] * 4
    assert "no service" in failures[0]["traceback"]
    with pytest.raises(RuntimeError, match="6.2% of the scores failed, more than .*: fragile; see"):
        run(tmp_path / "strict", clips, *overrides)


def test_a_reward_that_fails_on_held_out_samples_is_written_down(clips: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    marked = json.loads((clips / "heldout.jsonl").read_text().splitlines()[0])["id"]
    overrides = [
        f"rewards.fragile.fn={plugin}:fragile",
        f"rewards.fragile.args.marked={marked}",
        "num_steps=1",
    ]
    rows = run(tmp_path / "run", clips, *overrides)
    assert rows[0]["eval/reward_failures"] == 2  # one greedy answer, one sampled
    failures = read_rows(tmp_path / "run" / "failures.jsonl")
    assert {(each["step"], each["sample_id"]) for each in failures} == {(0, marked), (1, marked)}


def test_weights_that_are_not_finite_stop_the_run(clips: Path, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, ValueError), match="finite|nan"):
        run(tmp_path / "run", clips, "optim.lr=1e30", "optim.warmup_steps=0", "eval.every_steps=0")


def test_a_finished_run_without_checkpoints_is_left_alone(clips: Path, tmp_path: Path) -> None:
    overrides = ["checkpoint.every_steps=0", "num_steps=1"]
    rows = run(tmp_path / "run", clips, *overrides)
    assert run(tmp_path / "run", clips, *overrides) == rows


def test_a_run_is_continued_with_more_steps_but_not_on_other_data(clips: Path, tmp_path: Path) -> None:
    own = tmp_path / "clips"
    shutil.copytree(clips, own)
    run(tmp_path / "run", own, "num_steps=1", "optim.schedule=constant")
    rows = run(tmp_path / "run", own, "num_steps=2", "optim.schedule=constant")
    assert [row["step"] for row in rows] == [0, 1, 2]
    text = (own / "train.jsonl").read_text()
    (own / "train.jsonl").write_text(text.replace("hand", "arm"))
    with pytest.raises(SystemExit, match=r"train.jsonl has changed since the run in .*run read it"):
        run(tmp_path / "run", own, "num_steps=3", "optim.schedule=constant")


def test_a_failed_start_leaves_nothing_that_blocks_the_next(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="prompt.template"):
        run(tmp_path / "run", clips, "prompt.template='{what}'", "num_steps=1")
    with pytest.raises(SystemExit, match="model.path"):
        run(tmp_path / "run", clips, "model.path=./nowhere", "num_steps=1")
    assert len(run(tmp_path / "run", clips, "num_steps=1")) == 2
