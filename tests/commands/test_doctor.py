"""The doctor names every bad record and nothing else, and works out what a run needs."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from grpo.commands.doctor.command import main
from grpo.commands.doctor.records import wordy_numbers
from grpo.config.load import load_config, to_yaml
from grpo.data import load_samples
from grpo.media.loader import ClipLoader
from grpo.media.reading import ClipReader
from grpo.run.folder import RunDir
from tests.support import tiny
from tests.support.clips import source_of
from tests.support.runs import SMALL, data
from tests.support.videos import write_video

Record = dict[str, Any]


def good_records(clips: Path, folder: Path, count: int) -> list[Record]:
    """Different questions about the demo's twelve clips, in a folder of their own."""
    shutil.copytree(clips, folder / "demo")
    lines = (clips / "train.jsonl").read_text().splitlines()
    records = [json.loads(lines[i % len(lines)]) for i in range(count)]
    return [
        record | {"id": f"good-{i}", "video": f"demo/{record['video']}", "question": f"Which one, {i}?"}
        for i, record in enumerate(records)
    ]


def arguments(folder: Path, records: list[Record], *more: str) -> list[str]:
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    train = f"data.train=[{{path: {folder}/train.jsonl}}]"
    return [*SMALL, train, "data.eval=[]", f"run_dir={folder}/run", *more]


def examined(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, Record]:
    capsys.readouterr()
    status = main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_of_fifty_good_and_ten_bad_records_it_names_the_ten(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = good_records(clips, tmp_path, 50)
    whole = write_video(tmp_path / "whole.mp4", num_frames=60)
    (tmp_path / "cut.mp4").write_bytes(Path(whole).read_bytes()[:3000])
    (tmp_path / "text.mp4").write_text("no video")
    changes: list[tuple[str, Record]] = [
        ("missing", {"video": "none.mp4"}),
        ("missing", {"video": "nor/this.mp4"}),
        ("unreadable", {"video": "text.mp4"}),
        ("unreadable", {"video": "cut.mp4"}),
        ("too short", {"video": "whole.mp4", "start_s": 0.51, "end_s": 0.52, "keyframes_s": None}),
        ("too short", {"video": "whole.mp4", "start_s": 7, "keyframes_s": None}),
        ("record", {"answer": "E"}),
        ("record", {"answer": ["A"]}),
        ("duplicate", {"id": "good-3"}),
        ("duplicate", {"id": "good-9"}),
    ]
    records, expected = list(good), []
    for number, (kind, change) in enumerate(changes):
        line = 6 * number + 4  # spread among the good ones, counted as the file will have them
        records.insert(line - 1, good[number] | {"id": f"bad-{number}", "question": f"{number}?"} | change)
        expected.append((kind, f"{tmp_path}/train.jsonl:{line}"))
    status, report = examined(arguments(tmp_path, records), capsys)
    found = [(finding["kind"], finding["source"]) for finding in report["findings"]]
    assert sorted(found) == sorted(expected) and len(found) == 10
    assert status == 1 and not report["would_run"]
    assert main(arguments(tmp_path, records)) == 1
    lines = capsys.readouterr().out.splitlines()
    for kind, source in expected:
        assert sum(line.startswith(f"  {kind:<10}  {source}: ") for line in lines) == 1
    assert any("answer 'E' is not one of the options A to D" in line for line in lines)
    assert lines[-1] == "this would NOT run as it is"


@pytest.mark.slow
def test_prompts_that_cannot_fit_and_damage_inside_a_file_are_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = good_records(clips, tmp_path, 3)
    records[1]["question"] = "red " * 300
    content = bytearray(Path(write_video(tmp_path / "damaged.mp4", size_px=(320, 192))).read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = random.Random(0).randbytes(third)
    (tmp_path / "damaged.mp4").write_bytes(content)
    records[2]["video"] = "damaged.mp4"
    status, report = examined(arguments(tmp_path, records), capsys)
    found = {finding["source"][-1]: (finding["kind"], finding["reason"]) for finding in report["findings"]}
    assert status == 1 and found.keys() == {"2", "3"}
    assert found["2"][0] == "too long" and "rollout.max_model_tokens leaves room for 232" in found["2"][1]
    assert found["3"][0] == "unreadable" and "damaged.mp4" in found["3"][1]


@pytest.mark.slow
def test_what_is_odd_is_named_and_does_not_stop_a_run(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *records, late = good_records(clips, tmp_path, 4)
    records[1]["end_s"] = 99.0
    records.append(records[2] | {"id": "again"})
    records.append(late | {"keyframes_s": [2.0, [50, 60]]})
    status, report = examined(arguments(tmp_path, records, "optim.tokens_per_row=60"), capsys)
    found = {finding["source"][-1]: finding["reason"] for finding in report["findings"]}
    assert status == 0 and report["would_run"] and found.keys() == {"2", "4", "5"}
    assert "a key moment ends at 60 s, but the video at 8 s" in found["5"]
    assert "the clip ends at 99 s, but the video at 8 s" in found["2"]
    assert "train.jsonl:3 asks the same about the same clip, with the same answer" in found["4"]
    assert report["tokens"]["longest_row"] > 60


@pytest.mark.slow
def test_the_plan_is_what_the_run_will_have(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*SMALL, *data(clips), f"run_dir={tmp_path}/run"]
    status, report = examined(own, capsys)
    assert status == 0 and report["findings"] == []
    config = load_config(own)
    reader = ClipReader(settings=config.media, patches=tiny.family().patches)
    loader = ClipLoader(reader, cache_gib=1, num_workers=0, timeout_s=60)
    samples = load_samples(config.data.train) + load_samples(config.data.eval)
    num_bytes = sum(loader.get(source_of(sample)).frames_FHWC.nbytes for sample in samples)
    loader.close()
    assert report["cached"]["frames_gib"] == pytest.approx(num_bytes / 2**30)
    # Clips of one size, of which two later steps' four wait while the four held-out ones are asked about.
    assert report["cached"]["ahead_gib"] == pytest.approx((2 * 4 + 4) / 16 * num_bytes / 2**30)
    assert (report["num_clips"], report["num_opened"]) == (16, 16)
    assert report["tokens"]["prompt"]["max"] == 63  # as the run itself says, see test_bad_input.py
    assert report["tokens"]["step_at_most"] == 4 * 63 + 4 * 4 * 24
    assert report["model"]["num_trained"] == sum(weight.numel() for weight in tiny.policy().parameters())
    assert report["decoding"]["num_decoded"] == 8 and report["decoding"]["clips_per_s"] > 0
    others = ["model.freeze_vision=true", "optim.sequence_parallel_size=4"]
    status, fewer = examined([*own, "--clips", "5", "--decode", "0", *others], capsys)
    # Of a single process it would be refused; the doctor is asked for eight.
    assert status == 0 and fewer["tokens"]["processes_per_row"] == 4
    assert "single" not in {each["launch"] for each in fewer["memory"]}
    assert fewer["num_opened"] == 5 and "decoding" not in fewer
    assert fewer["cached"]["frames_gib"] == pytest.approx(num_bytes / 2**30)
    width = tiny.family().config.text_config.hidden_size
    assert report["cached"]["features_gib"] == 0
    assert fewer["cached"]["features_gib"] == pytest.approx(16 * 32 * width * 2 / 2**30)  # bf16


@pytest.mark.slow
def test_wrong_settings_and_leaking_held_out_data_are_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = data(clips)[0].replace("data.train", "data.eval")
    status, report = examined(
        [*SMALL, *data(clips), twice, f"run_dir={tmp_path}/run", "--decode", "0"], capsys
    )
    assert status == 1
    assert [finding["source"] for finding in report["findings"]] == ["data.allow_overlap"]
    broken = ["rewards.briefness.weight=1", "rollout.group_size=1"]
    status, report = examined([*SMALL, *data(clips), broken[0], f"run_dir={tmp_path}/run"], capsys)
    assert status == 1 and [finding["source"] for finding in report["findings"]] == ["rewards"]
    lora = ["model.lora.r=4", "model.lora.targets.language=[q_prj]"]
    status, report = examined([*SMALL, *data(clips), *lora, f"run_dir={tmp_path}/run"], capsys)
    (finding,) = report["findings"]
    assert status == 1 and finding["source"] == "model.lora" and "'q_prj'" in finding["reason"]
    status, report = examined([*SMALL, broken[1]], capsys)
    assert status == 1 and "rollout.group_size must be at least 2" in report["error"]


@pytest.mark.slow
def test_it_runs_as_a_command(clips: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "grpo.commands",
        "doctor",
        *SMALL,
        *data(clips),
        f"run_dir={tmp_path}/run",
    ]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "16 of 16 clips opened" in done.stdout and "this would run" in done.stdout
    assert not (tmp_path / "run").exists()


def test_images_without_times_or_files_and_answers_without_numbers_are_named_one_by_one(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = good_records(clips, tmp_path, 5)
    names = [f"{number}.png" for number in range(6)]
    for name in names[:4] + names[5:]:
        Image.new("RGB", (56, 56)).save(tmp_path / name)
    images = {"video": None, "keyframes_s": None, "frames": names[:3]}
    records[0] |= images
    records[1] |= images | {"frames": names, "frame_fps": 1}
    records[2] |= images | {"frame_fps": 1}
    records[3] |= {"video": "a\0b.mp4"}
    records[4] |= {"task": "number", "options": None, "answer": "a few"}
    status, report = examined(arguments(tmp_path, records, "--decode", "0"), capsys)
    found = {
        finding["source"][-1]: (finding["kind"], finding["reason"])
        for finding in report["findings"]
        if finding["source"] != "rewards.keyframe"  # which scores none of these
    }
    assert status == 1 and found.keys() == {"1", "2", "4", "5"}
    assert found["1"] == (
        "record",
        "nothing says when its frames are shown: set frame_fps beside the data set's path",
    )
    assert found["2"] == ("missing", f"sample good-1: no such image: {tmp_path}/4.png")
    assert "null character" in found["4"][1] and "must be a number" in found["5"][1]
    assert report["num_clips"] == 2


def test_what_a_start_refuses_is_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from rewards import reward, counterfactual\n"
        "@counterfactual(frames='other_clip')\n@reward\ndef other(rollout):\n    return 0.0\n"
    )
    own = [*SMALL, *data(clips), f"run_dir={tmp_path}/run", "--clips", "0"]
    cases = {
        "model.attention": (["model.attention=flex"], "model.attention=flex: "),
        "rewards": (
            [f"rewards.other.fn={plugin}:other", "optim.prompts_per_step=1"],
            "other_clip takes the clip of another question",
        ),
    }
    for key, (overrides, reason) in cases.items():
        status, report = examined([*own, *overrides], capsys)
        [finding] = report["findings"]
        assert status == 1 and finding["source"] == key and reason in finding["reason"]
    _, report = examined([*own, "model.attention=flex", "rewards.briefness.weight=1"], capsys)
    assert [finding["source"] for finding in report["findings"]] == ["rewards", "model.attention"]


def test_a_longer_run_in_a_finished_one_without_checkpoints_is_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*SMALL, *data(clips), f"run_dir={tmp_path}/run", "--clips", "0"]
    finished = RunDir(tmp_path / "run")
    finished.open(to_yaml(load_config(own[:-2])), {"data": {}})
    finished.append_metrics({"step": 4})
    finished.final.mkdir()
    (finished.final / "training.json").write_text('{"step": 4}')
    assert examined(own, capsys)[0] == 0
    status, report = examined([*own, "num_steps=8"], capsys)
    [finding] = report["findings"]
    assert status == 1 and finding["source"] == "run_dir" and "finished run of 4 steps" in finding["reason"]


def test_rewards_are_probed_with_the_samples_that_a_start_takes(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stated share puts its set first, wherever the config lists it."""
    records = good_records(clips, tmp_path, 4)
    for name, own in (("plain", records[:2]), ("mine", [record | {"mine": 1} for record in records[2:]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, own)))
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from rewards import reward\n@reward\ndef column(rollout):\n"
        "    return float(rollout.sample.columns['mine'])\n"
    )
    train = f"data.train=[{{path: {tmp_path}/plain.jsonl}}, {{path: {tmp_path}/mine.jsonl, share: 0.5}}]"
    own = [train, "data.eval=[]", f"rewards.column.fn={plugin}:column", f"run_dir={tmp_path}/run"]
    status, report = examined([*SMALL, *own, "--clips", "0"], capsys)
    assert status == 0, report["findings"]


def test_the_data_is_looked_at_also_without_a_model(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = good_records(clips, tmp_path, 4)
    records[1] |= {"video": "none.mp4"}
    records[2] |= {"start_s": 7.9, "end_s": 60, "keyframes_s": None}
    (tmp_path / "text.mp4").write_text("no video")
    records[3] |= {"video": "text.mp4"}
    status, report = examined(arguments(tmp_path, records, "model.path=./nowhere"), capsys)
    found = [(each["source"].rpartition("/")[2], each["kind"]) for each in report["findings"]]
    assert status == 1 and sorted(found) == [
        ("model.path", "config"),
        ("train.jsonl:2", "missing"),
        ("train.jsonl:3", "too short"),
        ("train.jsonl:4", "unreadable"),
    ]
    assert report["sets"]["data.train.0"].startswith("4 questions (4 choice), ")


def test_weights_that_are_a_pointer_are_named(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny.BASE_POLICY, tmp_path / "model")
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 4421360\n")
    own = [*SMALL, *data(clips), f"model.path={model}", f"run_dir={tmp_path}/run", "--clips", "0"]
    status, report = examined(own, capsys)
    [finding] = report["findings"]
    assert (
        status == 1
        and finding["source"] == "model.path"
        and "model.safetensors is a pointer" in finding["reason"]
    )
    assert not report["would_run"] and "prompt" not in report


def test_the_first_prompt_is_shown_and_time_is_estimated_from_given_speeds(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*SMALL, *data(clips), f"run_dir={tmp_path}/run", "--clips", "1", "--decode", "0"]
    _, report = examined([*own, "prompt.system=Be brief.", "--tokens-per-s", "96,318"], capsys)
    prompt = report["prompt"]
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>") and prompt.count("<|video_pad|>") == 1
    # 4 x 4 completions of 24 tokens are 384; the update computes the prompts as well.
    step_s = 384 / 96 + report["tokens"]["step_at_most"] / 318
    # 4 questions, each answered twice by 24 tokens; before the first step, after two and after four.
    eval_s = 8 * 24 / 96
    assert report["time"] == pytest.approx(
        {"step_s": step_s, "eval_s": eval_s, "run_h": (4 * step_s + 3 * eval_s) / 3600}
    )
    assert main([*own, "--tokens-per-s", "96,318"]) == 0
    text = capsys.readouterr().out
    assert "  | <|im_start|>user" in text and "2 s an evaluation" in text


def test_a_published_number_in_words_is_odd() -> None:
    """Only the native reader refuses it: one such record must not stop a run on somebody else's file."""
    samples = [tiny.sample(each, task="number", answer=each, options=()) for each in ("3/4", "none")]
    [finding] = wordy_numbers(samples)
    assert not finding.is_fatal and finding.source == "made-up:none" and "'none' holds none" in finding.reason


def test_what_a_run_would_note_of_its_rewards_is_found(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        record | {"task": "open", "options": None, "answer": "the red one", "keyframes_s": None}
        for record in good_records(clips, tmp_path, 2)
    ]
    rewards = "rewards={accuracy: {}, choice: {weight: 0.5}}"
    _, report = examined(arguments(tmp_path, records, "model.path=/nowhere", rewards), capsys)
    odd = {each["source"]: each["reason"] for each in report["findings"] if not each["is_fatal"]}
    assert "2 questions are open, and accuracy is 1 for the very words" in odd["rewards.accuracy"]
    assert odd["rewards.choice"].startswith("gave no score (None) to any completion")
    _, report = examined(
        arguments(tmp_path, records, "model.path=/nowhere", "rewards={accuracy: {}, rouge: {}}"), capsys
    )
    assert "rewards.accuracy" not in {each["source"] for each in report["findings"]}
