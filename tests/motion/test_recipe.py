"""The recipe's commands are ones that the program takes, and its table has the errors of stored answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from grpo.codec.bins import fit_bins
from grpo.codec.codec import Codec, save_codec
from grpo.codec.streams import read_stream
from grpo.codec.texts import code_text
from grpo.config.evaluate import load_evaluation
from grpo.config.load import load_config
from grpo.motion.recipe import ARMS, INPUTS, Sizes, stages, table
from grpo.motion.synthetic import write_dataset

SIZES = Sizes(num_train=1, num_heldout=2, group_size=2)


def test_every_training_and_evaluation_of_the_recipe_has_settings_that_load(tmp_path: Path):
    commands = {stage.name: list(stage.command) for stage in stages(tmp_path, SIZES, seed=3)}
    assert [*commands][:4] == ["data", "codec sensor", "codec motion", "pace"]
    configs = {
        (task, arm): load_config(commands[f"{task} {arm}"][6:])
        for given, task in INPUTS.items()
        for arm in ARMS[given]
    }
    assert {name: config.loss.type for name, config in configs.items()} == {
        ("tracking", "supervised"): "nll",
        ("tracking", "more"): "nll",
        ("tracking", "grpo"): "dapo",
        ("tracking_blind", "supervised"): "nll",
    }
    supervised, more, grpo = (configs["tracking", arm] for arm in ARMS["with video"])
    assert more.num_steps == grpo.num_steps
    assert more.optim.prompts_per_step == grpo.optim.prompts_per_step
    assert {each.model.path for each in (more, grpo)} == {f"{supervised.run_dir}/final"}
    assert grpo.rollout.engine == "vllm" and grpo.seed == 3
    # What differs is what is seen.
    blind = configs["tracking_blind", "supervised"]
    assert replace(blind, data=supervised.data, run_dir=supervised.run_dir) == supervised
    for given, task in INPUTS.items():
        for num_samples in (1, 2)[: 2 if given == "with video" else 1]:
            evaluation = load_evaluation(commands[f"{task} evaluate {num_samples}"][4:])
            assert evaluation.rollout.num_samples == num_samples
            assert evaluation.paths == {arm: f"{configs[task, arm].run_dir}/final" for arm in ARMS[given]}
            assert evaluation.data.path == configs[task, "supervised"].data.eval[0].path


def write_answers(folder: Path, model: str, *answers: tuple[str, int, str]) -> None:
    folder = folder / "answers" / f"{model}-0123abcd"
    folder.mkdir(parents=True)
    lines = [json.dumps({"sample_id": id, "index": index, "text": text}) for id, index, text in answers]
    (folder / "part-0.jsonl").write_text("\n".join(lines) + "\n")


def test_the_table_has_greedy_errors_and_the_best_of_several(tmp_path: Path):
    data = write_dataset(tmp_path / "data", num_train=1, num_heldout=2, seed=0, num_frames=8)
    streams = [read_stream(path) for path in sorted((data / "streams").glob("heldout-*.motion.npz"))]
    spec, bins = fit_bins("motion", streams, codebook_size=4096, coverage=1.0)
    codec = save_codec(Codec(spec, bins), tmp_path / "base" / "codecs" / "motion")

    right = [code_text(spec, codec.encode(stream)) for stream in streams]
    for given, task in INPUTS.items():
        ids = [f"heldout-{index:05d}/{task}" for index in (0, 1)]
        for arm in ARMS[given]:
            write_answers(tmp_path / task / "answers_1", arm, (ids[0], 0, right[0]), (ids[1], 0, "I sit."))
            sampled = [
                (id, n, text) for id, own in zip(ids, right, strict=True) for n, text in ((0, "?"), (1, own))
            ]
            write_answers(tmp_path / task / "answers_2", arm, *sampled)
    text = table(tmp_path, SIZES)
    lines = [line for line in text.splitlines() if line.startswith("| with")]
    assert len(lines) == 3 * len(ARMS["with video"]) + len(ARMS["without"])
    greedy, mean, best = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:3])
    assert greedy[:3] == ["with video", "supervised", "greedy"] and greedy[5] == "50.0%"
    assert mean[2:5] == ["mean of 2", best[3], best[4]]
    assert best[:3] == ["with video", "supervised", "best of 2"] and best[5] == "50.0%"
    # Bins of a 4096th of what the two clips span are right to a fraction of a millimetre.
    assert float(greedy[3].split()[0]) < 1 and float(best[4].split()[0]) < 1
    assert "The codec alone: 0." in text
