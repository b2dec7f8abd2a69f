"""Input and weights that are wrong: said in one line before training, or named and survived during it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from grpo import train
from grpo.run_dir import RunDir, read_rows
from tests import tiny
from tests.runs import SMALL, data, reset_process_state, run


@pytest.fixture(autouse=True)
def fresh_process_state():
    yield
    reset_process_state()


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
        r"rewards.briefness: .*": ["rewards.briefness.weight=1"],
        r"rewards.mine: .*none.py": ["rewards.mine.fn=none.py:f"],
        r"rewards.broken: .*ZeroDivisionError": [f"rewards.broken.fn={plugin}:broken"],
        r"rewards.format.only_if: no reward named 'accurcy'": ["rewards.format.only_if=accurcy"],
        r"train.jsonl:2: sample wordy: its prompt has .* tokens, .*: raise that by .*grpo.doctor": edited(
            clips, tmp_path / "d", id="wordy", question="red " * 500
        ),
        r"prompt has 63 tokens, rollout.max_model_tokens leaves room for 16": ["rollout.max_model_tokens=40"],
    }
    for pattern, overrides in cases.items():
        with pytest.raises(SystemExit, match=rf"^error: (.|\n)*{pattern}") as caught:
            train.main([*SMALL, *data(clips), f"run_dir={tmp_path}/run", *overrides])
        assert "\n" not in str(caught.value.code)
        reset_process_state()


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


def test_two_runs_cannot_share_a_folder(clips: Path, tmp_path: Path) -> None:
    with RunDir(tmp_path / "run").locked(), pytest.raises(SystemExit, match="another process is running in"):
        run(tmp_path / "run", clips, "num_steps=1")
    assert len(run(tmp_path / "run", clips, "num_steps=1")) == 2  # free again


def test_the_readmes_reward_passes_the_checker(tmp_path: Path) -> None:
    readme = (tiny.ROOT / "README.md").read_text()
    code = next(block for block in readme.split("```python\n")[1:] if "cites_early" in block).split("```")[0]
    (tmp_path / "my_rewards.py").write_text(code)
    command = [sys.executable, "-m", "rewards.check", "my_rewards.py:cites_early"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
