"""What a run writes down of its steps, and the figures that stop it."""

from __future__ import annotations

import json
import math
import pty
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo.config.load import load_config
from grpo.config.schema import LogConfig
from grpo.groups import LostSample, RewardFailure, ScoredGroup
from grpo.media.clip import ClipSource
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.run.folder import RunDir, read_rows
from grpo.run.group_metrics import group_metrics
from grpo.run.metrics import Mean, Metrics
from grpo.run.recorder import Recorder
from grpo.run.rollout_files import rollout_files
from grpo.run.terminal import BottomDisplay, LineDisplay
from rewards.scoring.runner import load_rewards
from tests.support import tiny
from tests.support.runs import reset_process_state
from tests.support.stored_runs import scored
from tests.support.videos import write_video

Make = Callable[..., Recorder]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Recorders of runs with a folder, rewards and a loader, and nothing else of a run."""
    reset_process_state()
    demo = str(tiny.ROOT / "configs" / "demo.yaml")
    config = load_config([demo, f"run_dir={tmp_path}/run", "model.path=x", "data.train=[{path: x}]"])
    reader = ClipReader(settings=config.media, patches=tiny.family().patches)
    with (
        closing(load_rewards(config.rewards)) as rewards,
        closing(ClipLoader(reader, cache_gib=1, num_workers=0, timeout_s=60)) as loader,
    ):
        (tmp_path / "run").mkdir()

        def made(max_gap: float = 0.1, is_live: bool = True) -> Recorder:
            return Recorder(
                replace(config, log=replace(config.log, live=is_live)),
                run_dir=RunDir(tmp_path / "run"),
                accelerator=Accelerator(cpu=True),
                rewards=rewards,
                loader=loader,
                policy=tiny.policy(),
                max_gap=max_gap,
            )

        yield made


def half_failed(name: str = "s") -> ScoredGroup:
    """Two completions, on the second of which the reward `accuracy` failed."""
    group = scored(["right", "wrong"], [1.0, 0.0], tiny.sample(name))
    failure = RewardFailure(
        reward="accuracy",
        sample_id=name,
        rollout_index=1,
        completion="wrong",
        kind="raised",
        summary="KeyError: 'x'",
        traceback="KeyError: 'x'",
    )
    columns = {"accuracy": (1.0, None), "format": (0.5, None), "keyframe": (None, None)}
    table = replace(group.table, columns=columns, totals=(1.0, None), failures=(failure,))
    return replace(group, table=table, advantages=(0.0, None))


def test_curves_are_drawn_at_every_evaluation(make: Make) -> None:
    recorder = make()
    recorder.begin(0)
    picture = recorder.run_dir.path / "curves.png"
    recorder.finish_step(1)
    assert not picture.exists()
    recorder.add(Metrics(means={"eval/held/accuracy": Mean(1.0, 2.0)}))
    recorder.finish_step(2)
    recorder.close()
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("is_live", "expected"), [(True, BottomDisplay), (False, LineDisplay)])
def test_the_figures_in_the_terminal_can_be_turned_off(
    make: Make, is_live: bool, expected: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    with open(slave, "w") as stream, closing(open(master, "rb")):
        monkeypatch.setattr(sys, "stdout", stream)
        recorder = make(is_live=is_live)
        recorder.begin(0)
        assert type(recorder.display) is expected
        recorder.close()


def test_a_steps_figures_become_one_row_and_the_next_step_begins_anew(make: Make) -> None:
    recorder = make()
    with recorder.timed("time/data"):
        recorder.add(Metrics(sums={"groups/resampled": 1}))
    with recorder.timed("time/data"):
        recorder.add(Metrics(sums={"groups/resampled": 2}, maxima={"sampler/gap_max": 0.5}))
    recorder.finish_step(1)
    recorder.finish_step(2)
    first, second = read_rows(recorder.run_dir.metrics_file)
    assert (first["step"], first["groups/resampled"], first["sampler/gap_max"]) == (1, 3, 0.5)
    assert first["time/data"] > 0 and second.keys() == first.keys() - {
        "groups/resampled",
        "sampler/gap_max",
        "time/data",
    }


def test_trackers_get_the_rows_that_are_written(make: Make) -> None:
    recorder = make()
    log = LogConfig(trackers=["tensorboard"], pictures_every_steps=2)
    recorder.config = replace(recorder.config, log=log)
    recorder.begin(0)
    recorder.add(Metrics(maxima={"sampler/gap_max": 0.5, "loss": math.nan}))
    for step in range(1, 5):
        recorder.write_groups(step, [scored(["a", "b"], [0.0, 1.0])] * (3 if step < 4 else 0), [])
        recorder.add(Metrics(sums={"tokens/prompt": 9}))
        recorder.finish_step(step)
    recorder.close()
    found = EventAccumulator(str(recorder.run_dir.path / "tensorboard")).Reload()
    rows = read_rows(recorder.run_dir.metrics_file)
    assert {*found.Tags()["scalars"]} == {name for row in rows for name in row} - {"step"}
    assert [(each.step, each.value) for each in found.Scalars("sampler/gap_max")] == [(1, 0.5)]
    assert found.Tags()["images"] == ["rollouts/0", "rollouts/1"]
    assert [each.step for each in found.Images("rollouts/1")] == [2]


def test_warnings_are_printed_when_they_begin_and_a_step_is_a_line(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = make()
    recorder.begin(0)
    for step, stopped in enumerate((0.0, 0.0, 1.0, 0.0)):
        means = {"completion/stopped": Mean(stopped, 1), "completion/length": Mean(64.0, 1)}
        recorder.add(Metrics(means=means, sums={"tokens/prompt": 9}))
        recorder.finish_step(step)
    recorder.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["step 0/50", "length=64 cut=100%"],
        ["warning", "step 0"],
        ["step 1/50", "length=64 cut=100%"],
        ["step 2/50", "length=64 cut=0%"],
        ["step 3/50", "length=64 cut=100%"],
        ["warning", "step 3"],
    ]


def test_media_are_counted_by_the_step(make: Make, tmp_path: Path) -> None:
    recorder = make()
    source = ClipSource(video=write_video(tmp_path / "clip.mp4"))
    for step, num_gets in ((1, 1), (2, 3)):
        for _ in range(num_gets):
            recorder.loader.get(source)
        recorder.finish_step(step)
    rows = read_rows(recorder.run_dir.metrics_file)
    assert [(row["media/decoded"], row["media/cache_hits"]) for row in rows] == [(1, 0), (0, 3)]


def test_groups_leave_rollouts_failures_and_figures(make: Make) -> None:
    recorder = make()
    lost = [LostSample(sample_id="gone", reason="no such file")]
    recorder.write_groups(7, [half_failed(), scored(["a", "b"], [1.0, 0.0])], lost)
    assert list(rollout_files(recorder.run_dir.rollouts)) == [7]
    failures = read_rows(recorder.run_dir.failures_file)
    assert [(row["kind"], row["sample_id"], row["reason"]) for row in failures] == [
        ("sample", "gone", "no such file"),
        ("reward", "s", "KeyError: 'x'"),
    ]
    found = recorder.metrics.reduced()
    assert found["groups/lost"] == 1 and found["groups/no_signal"] == 0.5
    assert found["reward/mean"] == pytest.approx((1 + 1 + 0) / 3)
    assert found["reward/std"] == pytest.approx((0.0 + 0.5) / 2)
    assert found["rewards/error_frac"] == found["rewards/accuracy/failed"] == 1 / 4
    assert found["rewards/accuracy/abstained"] == 0
    assert (found["rewards/keyframe/abstained"], found["rewards/keyframe/failed"]) == (1.0, 0.0)


def test_a_completion_on_which_all_abstain_is_no_error(make: Make) -> None:
    recorder = make()
    silent = half_failed("silent")
    columns = {"accuracy": (1.0, None), "format": (0.5, None), "keyframe": (None, None)}
    table = replace(silent.table, columns=columns, failures=())
    recorder.write_groups(1, [replace(silent, table=table)], [])
    found = recorder.metrics.reduced()
    assert (found["rewards/all_abstained"], found["rewards/error_frac"]) == (0.5, 0.0)
    assert [found[f"rewards/{name}/abstained"] for name in columns] == [0.5, 0.5, 1.0]
    assert (found["reward/mean"], found["reward/std"]) == (1.0, 0.0)
    recorder.finish_step(1)


def test_groups_below_the_smallest_std_are_counted() -> None:
    near, far, flat = ([1.0, 1.001], [1.0, 0.0], [0.1 + 0.2, 0.3])  # stds 0.0005, 0.5 and 0
    groups = [scored(["a", "b"], totals) for totals in (near, far, flat)]
    found = sum((group_metrics(group, {}, min_std=0.01) for group in groups), Metrics()).reduced()
    assert found["groups/below_min_std"] == pytest.approx(1 / 3)
    assert found["reward/std"] == pytest.approx((0.0005 + 0.5) / 3)  # those of populations
    none = [group_metrics(group, {}, min_std=0.0).reduced()["groups/below_min_std"] for group in groups]
    assert none == [0.0] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_figures_that_json_does_not_have_are_named_in_the_failures(make: Make, value: float) -> None:
    recorder = make()
    recorder.add(Metrics(means={"reward/std": Mean(value, 1), "reward/mean": Mean(1.0, 1)}))
    recorder.finish_step(1)
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for file in (recorder.run_dir.metrics_file, recorder.run_dir.failures_file)
        for line in file.read_text().splitlines()
    ]
    assert lines[0]["reward/mean"] == 1.0 and "reward/std" not in lines[0]
    assert lines[1:] == [{"step": 1, "kind": "figures", "figures": {"reward/std": str(value)}}]


def test_too_many_failures_stop_the_run_and_name_the_reward(make: Make) -> None:
    recorder = make()
    recorder.write_groups(3, [half_failed()], [])
    reason = r"step 3: rewards.accuracy failed on 1 completions \(KeyError: 'x'\); 50.0% of the .* no total"
    with pytest.raises(RuntimeError, match=reason):
        recorder.finish_step(3)
    assert [row["step"] for row in read_rows(recorder.run_dir.metrics_file)] == [3]


def test_three_steps_in_a_row_without_a_prompt_stop_the_run(make: Make) -> None:
    recorder = make()
    recorder.finish_step(0)  # before the first step nothing is asked
    for step in (1, 2):
        recorder.finish_step(step)
    recorder.add(Metrics(sums={"tokens/prompt": 5}))
    for step in (3, 4, 5):
        recorder.finish_step(step)
    with pytest.raises(
        RuntimeError, match="step 6: 3 steps in a row had no usable prompt; see .*failures.jsonl"
    ):
        recorder.finish_step(6)


@pytest.mark.parametrize(
    ("gap", "max_gap", "stops"),
    # At once only if it is more than four times the limit.
    [(0.5, 0.1, True), (0.3, 0.1, False), (0.2, 0.3, False), (0.2, 0.0, False), (math.nan, 9.0, True)],
)
def test_an_engine_that_samples_from_other_weights_stops_the_run(
    make: Make, gap: float, max_gap: float, stops: bool
) -> None:
    recorder = make(max_gap=max_gap)
    recorder.add(Metrics(means={"sampler/gap_mean": Mean(gap * 10, 10)}))
    if not stops:
        assert recorder.finish_step(1)["sampler/gap_mean"] == pytest.approx(gap)
        return
    with pytest.raises(
        RuntimeError, match=rf"differ from the learner's by {gap} .* more than rollout.max_gap={max_gap:g}"
    ):
        recorder.finish_step(1)


def test_a_gap_above_the_limit_stops_the_run_in_the_third_step_in_a_row(make: Make) -> None:
    recorder = make(max_gap=0.1)
    for step, gap in enumerate((0.2, 0.2, 0.05, 0.2, 0.2)):
        recorder.add(Metrics(means={"sampler/gap_mean": Mean(gap, 1)}, sums={"tokens/prompt": 9}))
        recorder.finish_step(step)
    recorder.add(Metrics(means={"sampler/gap_mean": Mean(0.2, 1)}, sums={"tokens/prompt": 9}))
    with pytest.raises(RuntimeError, match=r"step 5: .* by 0.2 on average, more than rollout.max_gap=0.1"):
        recorder.finish_step(5)
