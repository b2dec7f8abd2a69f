"""Input and weights that are wrong: said in one line before training, or named and survived during it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from grpo import train
from grpo.config.load import load_config
from grpo.media.sampling import MediaSettings
from grpo.run.folder import RunDir, read_rows
from grpo.run.rollout_files import read_rollouts
from grpo.startup import assembly
from tests.support import tiny
from tests.support.runs import SMALL, data, reset_process_state, run
from tests.support.videos import read_video, write_bomb, write_sound, write_swapped


@pytest.fixture(autouse=True)
def fresh_process_state():
    yield
    reset_process_state()


def edited(clips: Path, tmp_path: Path, *more: Mapping[str, object], **fields: object) -> list[str]:
    """The training set with fields of its second record replaced, and of those after it."""
    lines = (clips / "train.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    lines = [json.dumps({**record, "video": f"{clips}/{record['video']}"}) for record in records]
    for number, changes in enumerate([fields, *more], start=1):
        lines[number] = json.dumps({**json.loads(lines[number]), **changes})
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return [f"data.train=[{{reader: jsonl, path: {file}, media_root: /}}]", "data.eval=[]"]


def test_bad_input_stops_the_run_in_one_line_before_a_model_is_loaded(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_policy(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(assembly, "load_policy", load_policy)
    not_a_video = tmp_path / "text.mp4"
    not_a_video.write_text("no video")
    plugin = tmp_path / "plugin.py"
    plugin.write_text("from rewards import reward\n@reward\ndef broken(rollout):\n    return 1 / 0\n")
    cases = {
        r"train.jsonl:2: .*no such video": edited(clips, tmp_path / "a", video=f"{clips}/none.mp4"),
        r"train.jsonl:2: .*text.mp4": edited(clips, tmp_path / "b", video=str(not_a_video)),
        r"train.jsonl:2: .*answer": edited(clips, tmp_path / "c", answer="E"),
        r"no setting optim.lrr; did you mean optim.lr\?": ["optim.lrr=1"],
        r"model.path: .*nowhere": ["model.path=./nowhere"],
        r"rollout.lora=adapters: vLLM has room for ranks up to 512, not for 600": [
            "rollout.engine=vllm",
            "rollout.lora=adapters",
            "model.lora.r=600",
        ],
        r"rollout.tensor_parallel_size=2 does not divide the 1 processes": [
            "rollout.engine=vllm",
            "rollout.tensor_parallel_size=2",
        ],
        r"optim.sequence_parallel_size=2 does not divide the 1 processes": ["optim.sequence_parallel_size=2"],
        r"rewards.briefness: .*": ["rewards.briefness.weight=1"],
        r"rewards.mine: .*none.py": ["rewards.mine.fn=none.py:f"],
        r"rewards.broken: .*ZeroDivisionError": [f"rewards.broken.fn={plugin}:broken"],
        r"rewards.format.only_if: no reward named 'accurcy'": ["rewards.format.only_if=accurcy"],
        r"train.jsonl:2: sample wordy: its prompt has .* tokens, .*: raise that by .*egogrpo doctor names all": edited(
            clips, tmp_path / "d", id="wordy", question="red " * 500
        ),
        r"prompt has 63 tokens, rollout.max_model_tokens leaves room for 16": ["rollout.max_model_tokens=40"],
    }
    for pattern, overrides in cases.items():
        with pytest.raises(SystemExit, match=rf"^error: (.|\n)*{pattern}") as caught:
            train.main([*SMALL, *data(clips), f"run_dir={tmp_path}/run", *overrides])
        assert "\n" not in str(caught.value.code)
        reset_process_state()
    with pytest.raises(SystemExit, match="AssertionError: a model is loaded"):  # with nothing wrong
        train.main([*SMALL, *data(clips), f"run_dir={tmp_path}/run"])


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([SMALL[0], "optim.lrr=1"], "did you mean optim.lr?"),
        (
            [SMALL[0], "rollout.engine=vlm"],
            "rollout.engine: no 'vlm' (did you mean 'vllm'?); it is one of vllm, ",
        ),
        ([SMALL[0], "run_dir={out}", "model.path=./nowhere"], "model.path: no model folder"),
        ([SMALL[0], "run_dir={out}", "rewards.acuracy.weight=1"], "did you mean 'accuracy'?"),
        (["--help"], "group_size: 8"),
        (
            [],
            "usage: egogrpo train --config_file launch/accelerate/single.yaml CONFIG.yaml",
        ),
    ],
)
def test_a_wrong_key_is_answered_before_torch_is_imported(
    arguments: list[str], answer: str, tmp_path: Path
) -> None:
    arguments = [each.replace("{out}", f"{tmp_path}/run") for each in arguments]
    """It takes seconds, and so do transformers."""
    code = f"import sys\nfrom grpo import train\ntry: train.main({arguments})\n"
    code += "except SystemExit as stop: print(stop)\nprint({'torch'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer in said and said.endswith("set()\n")


def write_unreadable(folder: Path, video: bytes) -> dict[str, str]:
    """Files and folders that can't be read as clips; why, by their names."""
    (folder / "cut.mp4").write_bytes(video[:600])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "no_images").mkdir()
    (folder / "closed").mkdir()
    (folder / "closed" / "0.png").symlink_to(
        folder / "closed" / "0.png"
    )  # for root, who looks into every folder
    (folder / "closed").chmod(0)
    write_sound(folder / "sound.mp4")
    (folder / "playlist.mp4").write_text("ffconcat version 1.0\nfile sound.mp4\n")
    write_swapped(folder / "swapped.mkv")
    write_bomb(folder / "bomb.png", side_px=60_000)
    return {
        "cut.mp4": "cannot be read as a video",
        "empty.mp4": "cannot be read as a video",
        "loop.mp4": "no such file",
        "sound.mp4": "no video stream",
        "playlist.mp4": "cannot be read as a video: no video stream in a known container",
        "swapped.mkv": "its frames could not be decoded in the order of their times",
        "bomb.png": "cannot be read as an image: Image size",
        "no_images": "no images in this folder",
        "closed": "cannot be read: Permission denied" if os.geteuid() else "no such file",
    }


def media_fields(path: str) -> dict[str, object]:
    """A native record's fields for a file or folder of images."""
    none = {"video": None, "image": None, "keyframes_s": None}
    if path.endswith((".mp4", ".mkv")):
        return {**none, "video": path}
    return {**none, "image": path} if path.endswith(".png") else {**none, "frames": path, "frame_fps": 1}


@pytest.mark.slow
def test_clips_that_turn_out_unreadable_lose_their_groups_and_the_run_goes_on(
    clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a cache folder that takes nothing, too: that is said once."""
    good = (clips / json.loads((clips / "train.jsonl").read_text().splitlines()[1])["video"]).read_bytes()
    reasons = write_unreadable(tmp_path, good)
    changes = [{"id": name, **media_fields(f"{tmp_path}/{name}")} for name in reasons]
    overrides = [*edited(clips, tmp_path, *changes[1:], **changes[0]), "data.probe_clips=0", "num_steps=3"]
    rows = run(tmp_path / "run", clips, *overrides, f"media.cache_dir={tmp_path}/cut.mp4")
    # three steps of four: every sample once
    assert sum(row.get("media/failed", 0) for row in rows) == len(reasons) == 9
    assert sum(row.get("groups/lost", 0) for row in rows) == 9
    failures = {row["sample_id"]: row["reason"] for row in read_rows(tmp_path / "run" / "failures.jsonl")}
    assert failures.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert failures[name].startswith(f"{tmp_path}/{name}") and f": {reason}" in failures[name]
    assert rows[-1]["step"] == 3 and sum(row.get("tokens/completion", 0) for row in rows) > 0
    assert sum(row["media/decoded"] for row in rows) == 3
    (warning,) = [each.getMessage() for each in caplog.records if each.name.startswith("grpo.media")]
    assert f"media.cache_dir: {tmp_path}/cut.mp4: " in warning and "going on without storing" in warning


@pytest.mark.slow
def test_a_run_trains_on_images(clips: Path, tmp_path: Path) -> None:
    """Frames of a clip in a folder, and a single picture."""
    record = json.loads((clips / "train.jsonl").read_text().splitlines()[1])
    frames = read_video(
        f"{clips}/{record['video']}", settings=MediaSettings(fps=1.0, min_pixels=56 * 56)
    ).frames_FHWC
    (tmp_path / "frames").mkdir()
    for number, frame_HWC in enumerate(frames):
        Image.fromarray(frame_HWC).save(tmp_path / "frames" / f"{number}.png")
    folder = {"id": "folder", "video": None, "frames": f"{tmp_path}/frames", "frame_fps": 1}
    picture = {"id": "picture", "video": None, "image": f"{tmp_path}/frames/0.png", "keyframes_s": None}
    rows = run(tmp_path / "run", clips, *edited(clips, tmp_path, picture, **folder), "num_steps=3")
    assert sum(row.get("groups/lost", 0) for row in rows) == 0
    assert max(row["sampler/gap_max"] for row in rows if "sampler/gap_max" in row) < 1e-3
    media = load_config([str(tmp_path / "run" / "config.yaml")]).media
    groups = [
        group.group.prompt
        for file in sorted((tmp_path / "run" / "rollouts").glob("step_*.parquet"))
        for _, group in read_rollouts(file, media)
    ]
    num_frames = {prompt.sample.id: prompt.clip.num_frames for prompt in groups if prompt.clip is not None}
    assert (num_frames["folder"], num_frames["picture"]) == (8, 2)
    [picture_again] = [prompt.clip for prompt in groups if prompt.sample.id == "picture"]
    assert picture_again is not None
    assert (picture_again.frames_FHWC[0] == picture_again.frames_FHWC[1]).all()


PLUGIN = """
from rewards import reward

@reward
def fragile(rollout, *, marked: str):
    if rollout.sample.id == marked:
        raise RuntimeError("no service")
    return 1.0
"""


@pytest.mark.slow
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
    # its group fails: 4 of the 16 completions of that step (4 prompts x 4 completions)
    assert max(row.get("rewards/error_frac", 0) for row in rows) == pytest.approx(4 / 16)
    assert max(row.get("rewards/fragile/failed", 0) for row in rows) == pytest.approx(4 / 16)
    assert max(row.get("rewards/accuracy/failed", 0) for row in rows) == 0
    assert max(row.get("rewards/fragile/abstained", 0) for row in rows) == 0
    failures = read_rows(tmp_path / "tolerant" / "failures.jsonl")
    assert [each["sample_id"] for each in failures] == [marked] * 4
    assert "no service" in failures[0]["traceback"] and failures[0]["completion"]
    reason = r"rewards.fragile failed on 4 completions \(RuntimeError: no service\); 25.0% of the .* no total"
    with pytest.raises(SystemExit, match=reason):
        run(tmp_path / "strict", clips, *overrides)


@pytest.mark.slow
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


@pytest.mark.slow
def test_weights_that_are_not_finite_stop_the_run(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="finite|nan"):
        run(tmp_path / "run", clips, "optim.lr=1e30", "optim.warmup_steps=0", "eval.every_steps=0")


@pytest.mark.slow
def test_a_finished_run_without_checkpoints_is_left_alone(clips: Path, tmp_path: Path) -> None:
    overrides = ["checkpoint.every_steps=0", "num_steps=1"]
    rows = run(tmp_path / "run", clips, *overrides)
    assert run(tmp_path / "run", clips, *overrides) == rows


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_failed_start_leaves_nothing_that_blocks_the_next(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="prompt.template"):
        run(tmp_path / "run", clips, "prompt.template='{what}'", "num_steps=1")
    with pytest.raises(SystemExit, match="model.path"):
        run(tmp_path / "run", clips, "model.path=./nowhere", "num_steps=1")
    assert not (tmp_path / "run").exists()
    assert len(run(tmp_path / "run", clips, "num_steps=1")) == 2


@pytest.mark.slow
def test_two_runs_cannot_share_a_folder(clips: Path, tmp_path: Path) -> None:
    with RunDir(tmp_path / "run").locked(), pytest.raises(SystemExit, match="another process is running in"):
        run(tmp_path / "run", clips, "num_steps=1")
    assert len(run(tmp_path / "run", clips, "num_steps=1")) == 2  # free again


def test_the_readmes_reward_passes_the_checker(tmp_path: Path) -> None:
    readme = (tiny.ROOT / "README.md").read_text()
    code = next(block for block in readme.split("```python\n")[1:] if "cites_early" in block).split("```")[0]
    (tmp_path / "my_rewards.py").write_text(code)
    command = [sys.executable, "-m", "grpo.commands", "check", "my_rewards.py:cites_early"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
