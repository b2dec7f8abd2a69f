"""Sweep files: what is wrong is said in one line before anything runs; what ships is right."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from grpo.commands.sweeps.plan import Run, Sweep, load_sweep, plan_runs
from grpo.commands.sweeps.search import distributions_of
from grpo.config.load import load_config, to_yaml
from grpo.config.schema import Config
from tests.support import tiny

SHIPPED = sorted((tiny.ROOT / "configs" / "sweeps").glob("*.yaml"))

FILE = """
name: small
config: [configs/demo.yaml]
overrides: [num_steps=2]
arms:
  base: [rewards.keyframe.weight=0]
  full: {rewards.keyframe.only_if: accuracy, optim.lr: 1.0e-05, rewards.format: {weight: 0.25}}
seeds: [3, 1]
metrics: [eval/heldout/accuracy]
"""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)


def plan(tmp_path: Path, text: str = FILE, *overrides: str) -> list[Run]:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    return plan_runs(load_sweep(str(file), [f"out={tmp_path}/out", *overrides]))


def test_every_arm_runs_with_every_seed_in_a_folder_of_its_own(tmp_path: Path) -> None:
    runs = plan(tmp_path)
    assert [run.label for run in runs] == ["base seed 3", "full seed 3", "base seed 1", "full seed 1"]
    assert [str(run.folder.relative_to(tmp_path / "out")) for run in runs[:2]] == [
        "base/seed_3",
        "full/seed_3",
    ]


def test_an_arms_changes_reach_its_config(tmp_path: Path) -> None:
    base, full = (load_config(run.argv) for run in plan(tmp_path)[:2])
    assert (base.rewards["keyframe"].weight, full.rewards["keyframe"].weight) == (0.0, 0.5)
    assert full.rewards["keyframe"].only_if == "accuracy" and full.optim.lr == 1e-5
    assert full.rewards["format"].weight == 0.25
    assert base.seed == full.seed == 3 and base.num_steps == 2


def test_what_stands_in_braces_is_each_runs_own(tmp_path: Path) -> None:
    judge = "{fn: brevity, args: {target_tokens: '${num_steps}'}, weight: 0}"
    text = FILE.replace("t=0]", f't=0, "rewards.judge={judge}", "model.path=${{run_dir}}/base"]')
    text = text.replace("full: {", "full: {model.path: '${run_dir}/full', ")
    base, full = (load_config(run.argv) for run in plan(tmp_path, text)[:2])
    assert base.model.path == f"{tmp_path}/out/base/seed_3/base"
    assert full.model.path == f"{tmp_path}/out/full/seed_3/full"
    assert base.rewards["judge"].args == {"target_tokens": 2}


def test_the_command_line_changes_the_sweep_or_all_its_runs(tmp_path: Path) -> None:
    (run, _) = plan(tmp_path, FILE, "seeds=[5]", "num_steps=7", "optim.lr=0.5")
    config = load_config(run.argv)
    assert (config.seed, config.num_steps, config.optim.lr) == (5, 7, 0.5)


def test_a_sweep_file_is_read_as_a_config_is(tmp_path: Path) -> None:
    changes = "{model.path: 010, run.x: no, rewards.format.args: {a: 1:30, b: 1e-3}}"
    (tmp_path / "sweep.yaml").write_text(
        FILE.replace("name: small", "name: 20260801_120000").replace("full:", f"other: {changes}\n  full:")
    )
    sweep = load_sweep(str(tmp_path / "sweep.yaml"))
    assert sweep.name == "20260801_120000"
    assert sweep.arms["other"] == {
        "model.path": "010",
        "run.x": "no",
        "rewards.format.args": {"a": "1:30", "b": 1e-3},
    }


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    (run, *_) = plan(tmp_path, FILE, f"out='{tmp_path}/[a], b: #c'")
    assert load_config(run.argv).run_dir == f"{tmp_path}/[a], b: #c/base/seed_3"


def test_no_key_of_the_sweep_is_also_one_of_a_run() -> None:
    """Else the command line could not tell them apart."""
    names = [{each.name for each in dataclasses.fields(kind)} for kind in (Sweep, Config)]
    assert not names[0] & names[1]


TWICE = FILE.replace("  full:", "  base:")
WRONG = {
    r"sweep.yaml: no YAML: base is set twice": (TWICE, []),
    r"sweep.yaml: no setting arm; did you mean arms\?": (FILE.replace("arms:", "arm:"), []),
    r"sweep.yaml: arms is empty": (FILE.split("arms:")[0] + "metrics: [a]", []),
    r"sweep.yaml: config is empty": (FILE.replace("[configs/demo.yaml]", "[]"), []),
    r"sweep.yaml: metrics is empty": (FILE, ["metrics=[]"]),
    r"sweep.yaml: seeds is empty": (FILE, ["seeds=[]"]),
    r"sweep.yaml: seeds: 1 is there twice": (FILE, ["seeds=[1,2,1]"]),
    r"sweep.yaml: seeds\[0\]: Value 'x'.* could not be converted to Integer": (FILE, ["seeds=[x]"]),
    r"sweep.yaml: name is not set": (FILE.replace("name: small", ""), []),
    r"sweep.yaml: arms: 'a/b' can't name a folder": (FILE.replace("base:", "a/b:"), []),
    r"sweep.yaml: arms: '..' can't name a folder": (FILE.replace("base:", "..:"), []),
    r"sweep.yaml: arms: 'search' can't name a folder": (FILE.replace("base:", "search:"), []),
    r"sweep.yaml: arms: 'slurm' can't name a folder": (FILE.replace("base:", "slurm:"), []),
    r"sweep.yaml: arms: 'results.md' can't name a folder": (FILE.replace("base:", "results.md:"), []),
    r"sweep.yaml: seeds.1 must be at least 0, not -1": (FILE, ["seeds=[0,-1]"]),
    r"arms.full: the same as base": (re.sub("full: .*", "full: {rewards.keyframe.weight: 0.0}", FILE), []),
    r"arms.base: config: .*Interpolation key 'nowhere'": (FILE.replace("t=0]", "t=0, 'optim.lr=${nowhere}']"), []),
    r"sweep.yaml: last must be above 0": (FILE, ["last=0"]),
    r"sweep.yaml: launch.config_file: no file nowhere.yaml": (FILE, ["launch.config_file=nowhere.yaml"]),
    r"arms.base: config: no setting keyfram; ": (FILE.replace("rewards.keyframe.weight=0", "keyfram=1"), []),
    r"arms.base: config: no setting .*wieght; did you mean .*\.weight\?": (FILE.replace(".weight=", ".wieght="), []),
    r"arms.base: rewards.keyfram: no built-in.*'keyframe'": (FILE.replace("s.keyframe.w", "s.keyfram.w"), []),
    r"arms.base: 'seed' is no key=value": (FILE.replace("[rewards.keyframe.weight=0]", "[seed]"), []),
    r"arms.base: seed is set by the sweep, from seeds": (FILE.replace("rewards.keyframe.weight=0", "seed=1"), []),
    r"arms.base: 7 is neither a list .* nor a mapping": (FILE.replace("[rewards.keyframe.weight=0]", "7"), []),
    r"overrides: run_dir is set by the sweep, from out": (FILE, ["run_dir=x"]),
    r"config: config: no setting optim.lrr; did you mean optim.lr\?": (FILE, ["optim.lrr=1"]),
    r"config: config: no file none.yaml": (FILE.replace("configs/demo.yaml", "none.yaml"), []),
    r"sweep.yaml: search.trials must be above 0, not 0": (FILE, ["search.metric=loss", "search.trials=0"]),
}  # fmt: skip


@pytest.mark.parametrize("pattern", WRONG)
def test_what_is_wrong_is_said_in_one_line_with_its_name(pattern: str, tmp_path: Path) -> None:
    text, overrides = WRONG[pattern]
    with pytest.raises(ValueError, match=pattern) as caught:
        plan(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_sweep_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="sweep: no file nowhere.yaml"):
        load_sweep("nowhere.yaml")


def test_two_runs_cannot_have_one_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "base").mkdir(parents=True)
    (tmp_path / "out" / "full").symlink_to("base")
    with pytest.raises(ValueError, match="out: base seed 3 and full seed 3 have one folder, .*seed_3"):
        plan(tmp_path)


def test_a_folder_with_another_run_in_it_is_refused_before_anything_starts(tmp_path: Path) -> None:
    run = plan(tmp_path)[1]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(load_config([*run.argv, "optim.lr=0.5"])))
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"arms.full: run_dir: .* holds a run with optim.lr=0.5, not 1e-05"):
        plan(tmp_path)


def test_a_longer_run_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    run = plan(tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(to_yaml(load_config([*run.argv, "num_steps=5"])))
    (run.folder / "metrics.jsonl").write_text('{"step": 5}\n')
    with pytest.raises(ValueError, match=r"arms.base: .*seed_3 holds a run of 5 steps, not 2; set out"):
        plan(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("file", SHIPPED, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_sweep_is_valid_and_has_a_folder_of_its_own(
    file: Path, tmp_path: Path
) -> None:
    sweep = load_sweep(str(file), [f"out={tmp_path}"])  # not where a run of this machine may lie
    runs = plan_runs(sweep)
    assert len({run.folder for run in runs}) == len(runs) == len(sweep.arms) * len(sweep.seeds)
    configs = [load_config(run.argv) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        assert config.run_dir == str(run.folder) and config.seed == run.seed
    # Arms that sample have one prompt: else the rewards are not all that differs. One whose completions are given asks
    # for what they hold.
    sampled = [config for config in configs if config.loss.is_sampled]
    assert len({(config.tags, config.prompt.template) for config in sampled}) == 1
    # What an arm starts from may be what another has left with the same seed.
    texts = [str(dataclasses.replace(config, run_dir="", seed=0)) for config in configs]
    differing = {text.replace(f"/seed_{run.seed}/", "/") for run, text in zip(runs, texts, strict=True)}
    assert len(differing) == len(sweep.arms)
    if sweep.search:
        distributions_of(sweep, sweep.search)


def test_the_shipped_sweeps_are_those_of_the_documentation() -> None:
    assert {file.stem for file in SHIPPED} >= {"demo", "egovlm"}
