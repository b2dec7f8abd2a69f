"""The page about EgoCross, command by command, in a folder of the official layout, with a tiny Qwen3-VL."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

from grpo import train
from grpo.commands.__main__ import main as egogrpo
from grpo.run.folder import read_rows
from tests.support import pages, tiny
from tests.support.readers import EGOCROSS, write_json
from tests.support.runs import reset_process_state, weights

PAGE = tiny.ROOT / "docs" / "egocross.md"
MODEL = "Qwen/Qwen3-VL-4B-Instruct"
DOMAINS = {"animal": "EgoPet", "industry": "ENIGMA", "xsports": "ExtrameSportFPV", "surgery": "CholecTrack20"}
OPTIONS = ("a saw", "a cup", "a rope", "a knife")
SMALL = ["media.min_pixels=4096", "media.max_pixels=4096", "media.max_frames=4", "media.num_workers=1"]
OF_TRAINING = [
    *SMALL, "num_steps=2", "optim.tokens_per_row=8192", "rollout.max_model_tokens=2048",
    "checkpoint.final_dtype=float32", "checkpoint.every_steps=0", "optim.warmup_steps=0",
]  # fmt: skip
OF_ROLLOUTS = [
    "rollout.engine=transformers", "rollout.max_new_tokens=8", "rollout.group_size=2", "optim.prompts_per_step=4",
    # No random model earns anything by its answers.
    "rewards.brevity={weight: 1.0, args: {target_tokens: 2}}",
]  # fmt: skip
OF_ANSWERS = [
    *SMALL,
    "rollout.engine=transformers",
    "rollout.max_new_tokens=8",
    "rollout.max_model_tokens=4096",
]


def write_frames(folder: Path, seed: int) -> list[Path]:
    """Three pictures, as the challenge names them."""
    folder.mkdir(parents=True)
    colours = np.random.default_rng(seed).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    files = [folder / f"frame_{index:05d}.jpg" for index in range(3)]
    for file, pixels in zip(files, colours, strict=True):
        Image.fromarray(pixels).save(file)
    return files


def write_support_set(folder: Path) -> None:
    """80 questions, 20 of each domain, in the form of LLaMA-Factory."""
    everything = []
    for number, domain in enumerate(DOMAINS):
        files = write_frames(folder / "frames" / domain, number)
        images = [str(file.relative_to(folder)) for file in files]
        listed = "\n".join(f"{letter}) {text}" for letter, text in zip("ABCD", OPTIONS, strict=True))
        records = [
            {
                "messages": [
                    {"role": "user", "content": f"{'<image>' * 3}What is used in scene {index}?\n{listed}"},
                    {"role": "assistant", "content": "ABCD"[index % 4]},
                ],
                "images": images,
            }
            for index in range(20)
        ]
        write_json(folder / f"train_{domain}.json", records)
        everything += records
    write_json(folder / "train.json", everything)
    columns = {"messages": "messages", "images": "images"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"file_name": "train.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"egocross_train": info}))


def write_test_set(folder: Path) -> None:
    """A question of each domain, with and without its answer; in the files, paths begin with a slash."""
    records = []
    for number, (domain, dataset) in enumerate(DOMAINS.items(), start=1):
        files = write_frames(folder / dataset / "generated" / "8" / "frames" / f"{domain}_q1", 10 + number)
        paths = [f"/{file.relative_to(folder.parent)}" for file in files]
        records.append({**EGOCROSS, "id": number, "dataset": dataset, "video_path": paths})
    write_json(folder / "egocross_testbed_answers.json", records)
    answers = ("correct_option_letter", "answer_text", "detailed_answer", "question_id")
    asked = [{key: value for key, value in each.items() if key not in answers} for each in records]
    write_json(folder / "egocross_testbed_imgs.json", asked)


def run_command(command: str, model: str) -> None:
    """Run a command as it stands on the page, but for the model and the sizes."""
    words = [word.replace(MODEL, model) for word in shlex.split(command)]
    if words[0] == "accelerate":
        arguments = words[words.index("grpo/train.py") + 1 :]
        is_supervised = any(word.startswith("configs/supervised/") for word in arguments)
        sizes = ["rollout.max_new_tokens=8", "optim.lr=1e-3"] if is_supervised else OF_ROLLOUTS
        train.main([*arguments, f"model.path={model}", *OF_TRAINING, *sizes])
    elif words[1] == "doctor":
        assert egogrpo([*words[1:], f"model.path={model}", *OF_TRAINING, *OF_ROLLOUTS]) == 0
    else:
        assert words[1] == "evaluate" and egogrpo([*words[1:], *OF_ANSWERS]) == 0
    reset_process_state()


@pytest.mark.slow
def test_the_pages_commands_train_evaluate_and_submit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tiny.of_family("qwen3_vl"):
        model = Path(tiny.family().path)
    assert AutoConfig.from_pretrained(model).model_type == "qwen3_vl"
    for name in ("configs", "launch", "grpo"):
        (tmp_path / name).symlink_to(tiny.ROOT / name)
    write_support_set(tmp_path / "data" / "egocross" / "support")
    write_test_set(tmp_path / "data" / "egocross" / "egocross_testbed")
    monkeypatch.chdir(tmp_path)
    commands = [each for block in pages.blocks(PAGE, "bash") for each in pages.commands(block)]
    assert len(commands) == 5
    for command in commands:
        run_command(command, str(model))

    runs = tmp_path / "runs"
    for name in ("egocross_qwen3vl_4b_lora", "egocross_lora_supervised"):
        assert [row["step"] for row in read_rows(runs / name / "metrics.jsonl")] == [0, 1, 2]
        assert weights(runs / name)
    rows = read_rows(runs / "egocross_lora_supervised" / "metrics.jsonl")
    assert rows[2]["loss"] < rows[1]["loss"] and rows[1]["completion/length"] == 2  # a letter, and the end
    results = json.loads((runs / "eval" / "egocross" / "results.json").read_text())
    assert results["models"].keys() == {"base", "grpo", "supervised"}
    table = (runs / "eval" / "egocross" / "results.md").read_text()
    assert all(domain in table for domain in ("Animal", "Industry", "XSports", "Surgery"))
    (submission,) = (runs / "eval" / "egocross_submission" / "submission").rglob("*.json")
    rows = json.loads(submission.read_text())
    assert [(row["id"], row["dataset"]) for row in rows] == [*enumerate(DOMAINS.values(), start=1)]
    assert all(row["answer"] in ("", "A", "B", "C", "D") for row in rows)
