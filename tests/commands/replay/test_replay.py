"""Replaying stored rollouts: the run's own figures come back, another set's are as by hand, mistakes have names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo.commands.replay import command as replay
from grpo.commands.replay.show import markdown
from grpo.data.readers.jsonl import read_jsonl
from grpo.media.clip import ClipSource
from grpo.media.reading import read_source
from grpo.run.folder import RunDir
from grpo.run.rollout_files import rollout_files
from tests.support import runs, tiny
from tests.support.clips import video_of
from tests.support.stored_runs import scored, write_run

RIGHT = "<think>x</think><answer>A</answer>"
BARE = "<answer>A</answer>"
WRONG = "<think>x</think><answer>B</answer>"
PLUGIN = """\
from rewards import counterfactual, reward

@reward
def broken(rollout) -> float:
    return 1 / 0

@reward
def broken_by_b(rollout) -> float:
    return {"A": 1.0}[rollout.text[-10]]

@reward
def brightness(rollout) -> float:
    return float(rollout.clip.frames_FHWC.mean())

@reward
def endless(rollout) -> float:
    while "B" in rollout.text:
        pass
    return 1.0

@counterfactual("blank")
@reward
def blind(rollout) -> float:
    return float(len(rollout.counterfactuals["blank"]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Step 1: a right, a bare and a wrong completion; the run paid for accuracy alone. Step 2: two wrong ones."""
    return write_run(
        tmp_path / "run",
        {1: [scored([RIGHT, BARE, WRONG], [1.0, 1.0, 0.0])], 2: [scored([WRONG, BARE[:-1]], [0.0, 0.0])]},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """The folder of a real run of two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.run(folder, clips, "num_steps=2", "eval.every_steps=0", "checkpoint.every_steps=0")
    return folder


def plugin(folder: Path, *names: str) -> list[str]:
    """Overrides that add rewards of PLUGIN, which is written beside the folder."""
    (folder.parent / "plugin.py").write_text(PLUGIN)
    return [f"rewards.{name}.fn={folder.parent}/plugin.py:{name}" for name in names]


def by_name(report: Mapping[str, Any]) -> dict[str, Any]:
    return {reward["name"]: reward for reward in report["rewards"]}


@pytest.mark.slow
def test_a_run_replayed_under_its_own_rewards_gives_its_own_figures(trained: Path) -> None:
    run = RunDir(trained)
    config, own = replay.read_configs(run, [])
    assert config == own
    found = replay.score(config, own, rollout_files(run.rollouts)).completions
    assert found.groupby("group").size().tolist() == [4] * 8 and not replay.replay(trained, [])["failures"]
    for name in ("accuracy", "format", "keyframe"):
        assert found[f"raw/{name}"].equals(found[f"run/{name}"]), name
    assert len([name for name in found if str(name).startswith(("raw/", "run/"))]) == 6
    assert found["total"].equals(found["run_total"]) and found["total"].nunique() > 2
    assert np.allclose(found["advantage"], found["run_advantage"], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_replay_counts_the_kl_the_baseline_and_the_mask_as_the_run_did(tmp_path: Path, clips: Path) -> None:
    folder = tmp_path / "run"
    runs.run(
        folder, clips, "num_steps=1", "eval.every_steps=0", "checkpoint.every_steps=0", "advantages.baseline=loo",
        "loss.beta=0.5", "loss.kl_in_reward=true", "loss.care.bonus=0.5", "loss.mask_truncated_completions=true",
        "rollout.temperature=2", "rollout.max_new_tokens=20",
    )  # fmt: skip
    run = RunDir(folder)
    config, own = replay.read_configs(run, [])
    found = replay.score(config, own, rollout_files(run.rollouts)).completions
    assert found["parts/kl"].abs().max() > 0 and 0 < found["run_advantage"].isna().sum() < 16
    assert np.allclose(found["total"], found["run_total"], rtol=1e-12)
    assert np.allclose(found["advantage"], found["run_advantage"], rtol=1e-9, equal_nan=True)
    with pytest.raises(ValueError, match="rewards.kl: loss.kl_in_reward takes that name"):
        replay.replay(folder, ["rewards.kl.fn=brevity"])


def test_another_set_gives_what_is_worked_out_by_hand(folder: Path) -> None:
    report = replay.replay(
        folder, ["rewards.accuracy.weight=-1", "rewards.format.weight=0.25", "advantages.scale=none"]
    )
    # Step 1: accuracy 1 1 0, format 1 0 1: -0.75, -1, 0.25; mean -0.5. Step 2: accuracy 0 0, format 1 0: 0.25, 0.
    accuracy, form = by_name(report)["accuracy"], by_name(report)["format"]
    assert accuracy["values"]["mean"] == accuracy["run_values"]["mean"] == pytest.approx(2 / 5)
    assert form["values"]["mean"] == pytest.approx(3 / 5) and form["run_values"] is None
    assert form["adds"] == pytest.approx(0.15) and accuracy["flat_frac"] == 0.5
    assert report["totals"]["replay"]["mean"] == pytest.approx((-0.75 - 1 + 0.25 + 0.25 + 0) / 5)
    assert report["no_signal"] == {"run": 0.5, "replay": 0.0, "lost": 0.0, "won": 0.5}
    # Totals 1 1 0 against -0.75 -1 0.25: both untied pairs are reversed, and one more is tied in the run only.
    assert report["ranking"]["kendall_tau"] == pytest.approx(-2 / 6**0.5)
    assert report["ranking"]["best_changed_frac"] == 1 and report["ranking"]["groups_compared"] == 1
    best = report["examples"]["gain_most"][0]
    assert (best["completion"], best["advantage"], best["share_of_step"]) == (WRONG, pytest.approx(0.75), 1.0)
    assert [each["completion"] for each in report["examples"]["wrong_but_raised"]] == [WRONG, WRONG]
    where = {(row["feature"], row["bucket"]): row for row in report["where"]}
    assert where["answer", "wrong"]["replay_share"] == 1.0 and where["answer", "wrong"]["run_share"] == 0.0
    repeated = report["examples"]["repeated"][0]
    assert (repeated["completion"], repeated["times"], repeated["groups"]) == (WRONG, 2, 2)
    assert (repeated["share"], repeated["right_frac"]) == (1.0, 0.0)


def test_schedules_and_gates_count_by_the_rows_own_step(folder: Path) -> None:
    overrides = [
        "rewards.format.schedule=[[1,0],[3,1]]",
        "rewards.format.weight=4",
        "rewards.accuracy.weight=0",
    ]
    form = by_name(replay.replay(folder, overrides))["format"]
    # Factor 0 in step 1 and 0.5 in step 2, where one of two completions has the format: 4 * 0.5 over 5 completions.
    assert form["weight"] == [0.0, 2.0] and form["adds"] == pytest.approx(2 / 5)
    gated = by_name(replay.replay(folder, ["rewards.format.only_if=accuracy"]))["format"]
    assert gated["adds"] == pytest.approx(0.5 / 5)  # of five, one is right and has the format


def test_a_weight_that_rises_and_falls_is_shown_with_its_peak(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {step: [scored([RIGHT, WRONG], [1.0, 0.0])] for step in range(1, 8)})
    report = replay.replay(folder, ["rewards.format.schedule=[[1,1],[4,0],[7,1]]", "rewards.format.weight=5"])
    assert by_name(report)["format"]["weight"] == [5.0, 0.0, 5.0]
    assert "| format   | 5 to 0 to 5 |" in markdown(report, num_examples=1)
    assert "| accuracy | 1 " in markdown(report, num_examples=1)


def test_what_gains_most_is_not_what_is_left_of_a_step_that_is_nearly_solved(tmp_path: Path) -> None:
    nearly, strong = scored([RIGHT, WRONG], [1.0, 0.0]), scored([RIGHT, BARE], [1.0, 1.0])
    folder = write_run(tmp_path / "run", {1: [nearly], 2: [strong, strong]})
    overrides = ["rewards.accuracy.weight=0.1", "rewards.format.weight=1", "advantages.scale=none"]
    # Step 1: 0.1 for the right answer alone. Step 2: 1 for the format, twice.
    best = replay.replay(folder, overrides)["examples"]["gain_most"]
    assert [(each["step"], round(each["advantage"], 3)) for each in best] == [(2, 0.5), (2, 0.5), (1, 0.05)]
    assert [round(each["share_of_step"], 3) for each in best] == [0.5, 0.5, 1.0]


def test_a_file_of_rewards_stands_for_itself_and_overrides_go_on_top(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "set.yaml"
    file.write_text("rewards:\n  mine: {fn: format, weight: 3.0}\n")
    report = replay.replay(folder, [str(file)])
    assert {name: reward["weight"] for name, reward in by_name(report).items()} == {"mine": [3.0, 3.0]}
    report = replay.replay(folder, [str(file), "rewards.mine.weight=5", "rewards.accuracy.weight=2"])
    assert {name: reward["weight"][0] for name, reward in by_name(report).items()} == {
        "mine": 5.0,
        "accuracy": 2.0,
    }
    file.write_text("optim: {lr: 1.0e-3}\n")
    assert list(by_name(replay.replay(folder, [str(file)]))) == ["accuracy", "format"]
    whole = replay.replay(folder, [str(tiny.ROOT / "configs" / "egovlm_3b.yaml")])
    assert {"accuracy", "format", "keyframe"} <= by_name(whole).keys()


def test_steps_and_limit_choose_what_is_scored(tmp_path: Path) -> None:
    groups = [scored([RIGHT, WRONG], [1.0, 0.0], tiny.sample(f"s{number}")) for number in range(4)]
    folder = write_run(tmp_path / "run", {step: groups for step in range(1, 7)})
    assert replay.replay(folder, [])["num_groups"] == 24
    report = replay.replay(folder, [], steps="2-4")
    assert (report["steps"], report["num_steps"], report["num_groups"]) == ([2, 4], 3, 12)
    assert replay.replay(folder, [], steps="5")["steps"] == [5, 5]
    report = replay.replay(folder, [], limit=5)  # each fifth of 24, from the first: 0, 5, 10, 15, 20
    assert (report["num_groups"], report["num_steps"]) == (5, 5)
    assert replay.replay(folder, [], limit=1000)["num_groups"] == 24


def test_groups_of_different_sizes_and_failed_rollouts_take_part_with_what_they_have(tmp_path: Path) -> None:
    group = scored([RIGHT, BARE, WRONG], [1.0, 1.0, 0.0])
    table = replace(group.table, totals=(1.0, None, 0.0))
    odd = replace(group, table=table, advantages=(0.5, None, -0.5))
    folder = write_run(tmp_path / "run", {1: [odd, scored([WRONG], [0.0])]})
    report = replay.replay(folder, [])
    assert report["totals"]["run"]["num"] == 3 and report["totals"]["replay"]["num"] == 4
    assert report["ranking"]["groups_compared"] == 1


def test_a_broken_reward_is_named_and_the_others_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay.main([str(folder), *plugin(folder, "broken")]) == 1
    captured = capsys.readouterr()
    assert (
        "error: rewards.broken failed on every completion: ZeroDivisionError: division by zero"
        in captured.err
    )
    assert "broken failed on 5 completions" in captured.out and "accuracy" in captured.out


def test_a_reward_that_fails_sometimes_is_counted_and_its_completions_have_no_total(folder: Path) -> None:
    report = replay.replay(folder, plugin(folder, "broken_by_b"))
    failures = report["failures"]["broken_by_b"]
    assert failures["count"] == 3 and failures["reasons"]["KeyError: 'B'"] == "step 1, sample s"
    assert by_name(report)["broken_by_b"]["failed_frac"] == pytest.approx(3 / 5)
    assert report["totals"]["replay"]["num"] == 2


@pytest.mark.slow
def test_a_reward_that_hangs_costs_its_time_limit_and_no_more(folder: Path) -> None:
    report = replay.replay(folder, [*plugin(folder, "endless"), "rewards.endless.timeout_s=1"])
    assert (
        report["failures"]["endless"]["count"] >= 2
    )  # two wrong answers; others may have waited behind them
    assert by_name(report)["accuracy"]["failed_frac"] == 0


def test_a_reward_that_looks_at_frames_gets_those_of_the_run_while_the_video_is_there(
    tmp_path: Path, clips: Path
) -> None:
    video = video_of(read_jsonl(clips / "train.jsonl")[0])
    settings = replay.read_configs(RunDir(write_run(tmp_path / "empty", {})), [])[1].media
    source = ClipSource(video=video, start_s=2.0, end_s=5.0)
    clip = read_source(source, settings=settings)
    samples = [tiny.sample(path, clip_source=replace(source, video=path)) for path in (video, "gone.mp4")]
    folder = write_run(
        tmp_path / "run", {1: [scored([RIGHT, WRONG], [1.0, 0.0], sample, clip) for sample in samples]}
    )
    report = replay.replay(folder, plugin(folder, "brightness"))
    values = by_name(report)["brightness"]["values"]
    assert values["num"] == 2 and values["mean"] == pytest.approx(float(clip.frames_FHWC.mean()))
    failures = report["failures"]["brightness"]
    assert failures["count"] == 2
    assert [*failures["reasons"]] == ["grpo.media.clip.MediaError: gone.mp4: no such file"]
    assert by_name(report)["accuracy"]["values"]["num"] == 4


def test_a_reward_without_its_counterfactuals_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="rewards.blind: compares with completions about blank frames"):
        replay.replay(folder, plugin(folder, "blind"))


def test_string_rewards_need_no_torch(folder: Path) -> None:
    code = "import sys; from grpo.commands.replay.command import main; "
    code += f"main([{str(folder)!r}]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_the_command_prints_the_table_and_leaves_three_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "deep" / "out"
    assert replay.main([str(folder), "--steps", "1", "rewards.format.weight=2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| accuracy | 1      | 0.667 | 0.667" in printed and f"written: {out}/replay.html" in printed
    report = json.loads((out / "replay.json").read_text(), parse_constant=pytest.fail)
    assert report["num_rollouts"] == 3 and report["configs"] == ["rewards.format.weight=2"]
    assert (out / "replay.md").read_text().startswith("# Replay of")
    assert sorted(path.name for path in out.iterdir()) == ["replay.html", "replay.json", "replay.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "9-5"], "--steps: '9-5' is neither a step nor FIRST-LAST"),
        (["--steps", "x"], "--steps: 'x' is neither a step nor FIRST-LAST"),
        (["--steps", "7-9"], "--steps 7-9: the rollouts in {folder}/rollouts are of steps 1 to 2"),
        (["--limit", "0"], "--limit: must be at least 1, not 0"),
        (["gone.yaml"], "config: no file gone.yaml"),
        (["reward.format.weight=2"], "config: no setting reward; did you mean rewards?"),
        (
            ["rewards.format.wieght=2"],
            "config: no setting rewards.format.wieght; did you mean rewards.format.weight?",
        ),
        (
            ["rewards.format.weight=big"],
            "config: rewards.format.weight: Value 'big' of type 'str' could not be converted to Float",
        ),
        (["rewards.x.fn=acuracy"], "rewards.x: no built-in reward named 'acuracy'"),
        (["rewards.format.args={x: 1}"], "rewards.format.args: no argument 'x'"),
        (
            ["rewards.format.only_if=nothing"],
            "rewards.format.only_if: no reward named 'nothing'",
        ),
        (["--out", "{folder}/config.yaml"], "[Errno 17] File exists: '{folder}/config.yaml'"),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert replay.main([str(folder), *(each.replace("{folder}", str(folder)) for each in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: " + message.replace("{folder}", str(folder))) and error.count("\n") == 1


def test_a_folder_that_holds_no_rollouts_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay.main([str(tmp_path / "gone")]) == 1
    assert replay.main([str(write_run(tmp_path / "empty", {}))]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {tmp_path}/gone: no such folder"
    assert second.startswith(f"error: {tmp_path}/empty: no rollouts in it")


def test_a_run_whose_completions_were_given_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "loss: {type: nll}\nrollout: {engine: none}\n")
    assert replay.main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith(
        f"error: {folder}: its completions were given (loss.type=nll), so"
    )


def test_a_missing_column_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "rollouts" / "step_000002.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["token_ids"]), file)
    assert replay.main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {file}: no column 'token_ids'")
    pq.write_table(
        pq.read_table(folder / "rollouts" / "step_000001.parquet").drop_columns(["rewards/accuracy"]), file
    )
    assert replay.main([str(folder)]) == 1
    assert (
        capsys.readouterr().err
        == "error: step 2: the rollouts files have different columns: rewards/accuracy\n"
    )


def test_an_override_of_what_a_replay_does_not_take_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"config: optim: a replay takes only rewards, rewards_workers, advantages"
    ):
        replay.replay(folder, ["optim.lr=0.1"])
