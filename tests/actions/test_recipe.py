"""The recipe's commands are ones that the program takes, and its table has what runs wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from grpo.actions.dataset import write_dataset
from grpo.actions.recipe import CODECS, SPACES, Sizes, Successes, interval, stages, table
from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, save_codec
from grpo.codec.streams import read_stream
from grpo.config.load import load_config
from tests.actions.compare import tables

SIZES = Sizes(num_train=1, num_heldout=4, grpo_steps=7, group_size=2)


def test_every_training_of_the_recipe_has_settings_that_load(tmp_path: Path):
    commands = {stage.name: list(stage.command) for stage in stages(tmp_path, SIZES, seed=3)}
    assert [*commands][:3] == ["data", "bins codec", "bins grow"]
    for space in SPACES:
        supervised, grpo = (load_config(commands[f"{space} {stage}"][6:]) for stage in ("supervised", "grpo"))
        assert (supervised.loss.type, grpo.loss.type) == ("nll", "dapo")
        assert grpo.model.path == f"{supervised.run_dir}/final"
        assert grpo.eval.every_steps == grpo.num_steps == 7
        assert {supervised.seed, grpo.seed} == {3}
        codecs = {spec.args["codec"] for spec in grpo.rewards.values()}
        if space in CODECS:
            assert codecs == {f"{supervised.model.path}/codecs/action"}
            assert commands[f"{space} grow"][-2:] == [supervised.model.path, f"{tmp_path}/codecs/{space}"]
        else:
            assert codecs == {"words:0.03"}
            assert grpo.data.train[0].path.endswith("train_words.jsonl")


def test_the_other_task_is_an_argument(tmp_path: Path):
    commands = {
        stage.name: [*stage.command] for stage in stages(tmp_path, replace(SIZES, arm="pusher"), seed=3)
    }
    assert "--arm=pusher" in commands["data"]
    assert "rewards.task_success.args.codec=words:0.04" in commands["words grpo"]


def test_an_interval_by_hand():
    # 3 of 4: middle 0.75 + 3.8415 / 8 = 1.2302, reach 1.96 sqrt(0.1875 / 4 + 3.8415 / 64) = 0.6408, by 1.9604.
    assert interval(3, 4) == "75.0% (30.1% to 95.4%)"
    assert interval(0, 4).startswith("0.0% (0.0% to 49.0%")


def test_the_table_has_success_before_and_after_and_what_a_space_can_say(tmp_path: Path):
    data = write_dataset(tmp_path / "data", arm="reacher", num_train=1, num_heldout=4, seed=0)
    streams = [read_stream(path) for path in sorted((data / "streams").glob("heldout-*.npz"))]
    for space in CODECS:
        # Two bins say next to nothing, and 512 all.
        codec = fit_bins("action", streams, codebook_size=2 if space == "plain" else 512, coverage=1.0)
        save_codec(Codec(*codec), tmp_path / space / "base" / "codecs" / "action")
    for space in SPACES:
        (tmp_path / space / "grpo").mkdir(parents=True)
        rows = [
            {
                "step": step,
                "eval/heldout/task_success": step / 14 + 0.25,
                "eval/heldout/sampled/task_success": 0.0,
            }
            for step in (0, 7)
        ]
        text = "\n".join(json.dumps(row) for row in [{"step": 7}, *rows])
        (tmp_path / space / "grpo" / "metrics.jsonl").write_text(text)
    lines = table(tmp_path, SIZES).splitlines()[2:]
    cells = {
        line.split(" | ")[0].strip("| "): [cell.split()[0] for cell in line.split(" | ")[1:]]
        for line in lines
    }
    assert cells["bins"] == cells["residual"] == ["16", "100.0%", "25.0%", "75.0%", "0.0%", "0.0%"]
    assert cells["words"] == ["8", "100.0%", "25.0%", "75.0%", "0.0%", "0.0%"]
    assert cells["plain"][1] != "100.0%"
    (tmp_path / "words" / "grpo" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no held-out success after step 0"):
        table(tmp_path, SIZES)


def test_success_over_seeds_is_compared_with_uniform_bins_seed_by_seed():
    def found(bins: float, other: float) -> dict[str, Successes]:
        own = Successes(
            num_tokens=4,
            demonstrations=1.0,
            supervised=other,
            grpo=other + 0.25,
            sampled_supervised=0.0,
            sampled_grpo=0.0,
        )
        return {space: own for space in SPACES} | {"bins": replace(own, supervised=bins)}

    text = tables({1: found(0.25, 0.5), 2: found(0.5, 0.625)})
    # 0.25 and 0.125 more than bins: 0.1875 on average, with half a width of 12.7 * 0.0884 / sqrt(2) = 0.794.
    assert "| residual | 2 | 0.562 | -0.232 to 1.357 | +0.188 | -0.607 to +0.982 |" in text
    # What GRPO added is the same for both seeds.
    assert "| residual, grpo | 2 | 0.812 | 0.018 to 1.607 | +0.250 | +0.250 to +0.250 |" in text
