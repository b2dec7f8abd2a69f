"""The demo's clips as files, and the shipped base policy that is trained on them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from grpo.config.load import load_config
from grpo.data.readers import read_synthetic
from grpo.data.readers.jsonl import read_jsonl
from grpo.demo import base_policy_maker
from grpo.demo import clips as synthetic
from grpo.demo.base_policy_maker import Maker
from grpo.demo.base_policy_model import SHIPPED
from grpo.demo.base_policy_texts import EXPLAIN, PLAIN, TIMELINE, ask, full_answer
from grpo.demo.clips import COLOURS, FPS, LETTERS, NUM_FRAMES, SKIN_RGB, clip_of, scene_at, write_dataset
from grpo.demo.make_base_policy import NAME, PHASES
from grpo.policy.families import load_family
from grpo.rollout import Sampling
from grpo.rollout.transformers_engine import TransformersEngine
from tests.support import tiny
from tests.support.clips import video_of
from tests.support.tiny import BASE_POLICY


def decode(path: Path) -> tuple[np.ndarray, list[float], str]:
    """Frames, their times in seconds, and the codec's name."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return (
            np.stack([frame.to_ndarray(format="rgb24") for frame in frames]),
            [float(frame.time or 0) for frame in frames],
            stream.codec_context.name,
        )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records_of(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "clips", num_train=6, num_heldout=3, seed=0)


def test_a_written_clip_decodes_to_nearly_the_rendered_frames(dataset: Path) -> None:
    for index, record in enumerate(records_of(dataset, "train")):
        frames, times_s, codec = decode(dataset / record["video"])
        rendered = scene_at("train", index, seed=0).frames_FHWC
        assert codec == "h264"
        assert frames.shape == rendered.shape == (NUM_FRAMES, 56, 56, 3)
        assert times_s == [frame / FPS for frame in range(NUM_FRAMES)]
        assert np.abs(frames.astype(int) - rendered).mean() < 6  # other clips are 40 and more away


def test_a_record_tells_the_truth_about_its_clip(dataset: Path) -> None:
    for split in ("train", "heldout"):
        for index, record in enumerate(records_of(dataset, split)):
            scene = scene_at(split, index, seed=0)
            assert record["options"][LETTERS.index(record["answer"])] == scene.taken
            assert record["keyframes_s"] == [[scene.taken_at_s, scene.taken_at_s + 0.5]]


def test_the_readers_of_records_take_the_written_ones(dataset: Path) -> None:
    samples = read_jsonl(dataset / "train.jsonl")
    assert [sample.id for sample in samples] == [f"train-{i:05d}" for i in range(6)]
    assert all(Path(video_of(sample)).is_file() for sample in samples)
    assert {(sample.task, len(sample.options)) for sample in samples} == {("choice", 4)}


def test_every_object_of_a_scene_is_among_its_options() -> None:
    scenes = [scene_at("train", index, seed=0) for index in range(50)]
    for scene in scenes:
        assert len(set(scene.options)) == 4 and set(scene.options) <= set(COLOURS)
        assert set(scene.seen) <= set(scene.options) and scene.taken in scene.seen
    assert {scene.answer for scene in scenes} == set(LETTERS)
    assert {scene.taken_at_s for scene in scenes} == set(range(1, 8))


def num_pixels_of(frames_FHWC: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """How many pixels of each frame have that colour, at any exposure: it scales all three channels."""
    frames, colour = frames_FHWC.astype(float), np.array(rgb) / np.linalg.norm(rgb)
    cosine = (frames @ colour) / np.linalg.norm(frames, axis=-1).clip(1)
    return ((cosine > 0.999) & (frames.max(-1) > 0.8 * max(rgb))).sum(axis=(1, 2))


def test_skin_is_seen_in_the_two_frames_of_the_key_moment_and_in_no_other() -> None:
    for index in range(20):
        scene = scene_at("train", index, seed=3)
        with_arm = np.flatnonzero(num_pixels_of(scene.frames_FHWC, SKIN_RGB) > 30)
        assert with_arm.tolist() == [2 * scene.taken_at_s, 2 * scene.taken_at_s + 1]


def test_the_taken_object_is_there_until_the_hand_has_taken_it_and_never_after() -> None:
    for index in range(20):
        scene = scene_at("train", index, seed=4)
        seen = num_pixels_of(scene.frames_FHWC, COLOURS[scene.taken]) > 30
        assert seen.tolist() == [frame < 2 * scene.taken_at_s + 2 for frame in range(NUM_FRAMES)]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_clips(tmp_path: Path) -> None:
    first, again, other = (
        files_of(write_dataset(tmp_path / name, num_train=2, num_heldout=1, seed=seed))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_a_clip_does_not_depend_on_how_many_are_written(dataset: Path, tmp_path: Path) -> None:
    more = files_of(write_dataset(tmp_path / "more", num_train=8, num_heldout=1, seed=0))
    for name, content in files_of(dataset).items():
        if name.startswith("clips/train"):
            assert more[name] == content


def test_train_and_heldout_clips_are_disjoint() -> None:
    clips = [
        scene_at(stream, index, seed=seed).frames_FHWC.tobytes()
        for stream in synthetic.STREAMS
        for seed in (0, 1)
        for index in range(20)
    ]
    assert len(set(clips)) == len(clips)


def test_a_finished_folder_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    write_dataset(dataset, num_train=6, num_heldout=3, seed=0)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_other_parameters_redo_the_folder(tmp_path: Path) -> None:
    write_dataset(tmp_path / "clips", num_train=3, num_heldout=1, seed=0)
    write_dataset(tmp_path / "clips", num_train=2, num_heldout=1, seed=5)
    assert len(records_of(tmp_path / "clips", "train")) == 2
    assert len(list((tmp_path / "clips" / "clips").iterdir())) == 3


def test_interrupted_writing_leaves_no_folder_and_is_redone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_the_second(path: Path, frames_FHWC: np.ndarray, *, fps: float) -> None:
        if path.name.endswith("00001.mp4"):
            raise KeyboardInterrupt
        path.write_bytes(b"half a clip")

    with monkeypatch.context() as patched:
        patched.setattr(synthetic, "write_mp4", fail_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / "clips", num_train=3, num_heldout=1, seed=0)
    assert not (tmp_path / "clips").exists()
    write_dataset(tmp_path / "clips", num_train=3, num_heldout=1, seed=0)
    write_dataset(tmp_path / "whole", num_train=3, num_heldout=1, seed=0)
    assert files_of(tmp_path / "clips") == files_of(tmp_path / "whole")


def test_a_folder_with_somebodys_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by"):
        write_dataset(tmp_path, num_train=1, num_heldout=1, seed=0)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(("family", "most"), [("qwen2_5_vl", 1_200_000), ("qwen3_vl", 1_400_000)])
def test_the_shipped_policies_load_without_warnings_and_are_small(
    family: str, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SHIPPED[family]
    logger = transformers_logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            processor = AutoProcessor.from_pretrained(folder)
            model = AutoModelForImageTextToText.from_pretrained(folder)
            processor.video_processor(
                [np.zeros((16, 56, 56, 3), np.uint8)], do_sample_frames=False, return_tensors="pt"
            )
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []
    assert model.config.model_type == family
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert sum(weight.numel() for weight in model.parameters()) < most
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000


def test_the_chat_template_renders_the_prompt_that_the_policy_was_trained_on() -> None:
    processor = AutoProcessor.from_pretrained(BASE_POLICY)
    options = ("red", "blue", "green", "white")
    text = "Which object does the hand take? Answer.\nA red\nB blue\nC green\nD white"
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
    rendered = processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    assert ask(options) == text
    video = "<|vision_start|><|video_pad|><|vision_end|>"
    assert rendered == f"<|im_start|>user\n{video}{text}<|im_end|>\n<|im_start|>assistant\n"


def test_all_prompts_are_equally_long_and_an_answer_has_twelve_tokens() -> None:
    tokenizer = AutoProcessor.from_pretrained(BASE_POLICY).tokenizer
    scenes = [scene_at("train", index, seed=0) for index in range(10)]
    prompts = [ask(scene.options, suffix) for scene in scenes for suffix in (PLAIN, EXPLAIN, TIMELINE)]
    assert len({len(tokenizer.encode(prompt)) for prompt in prompts}) == 1
    answer = full_answer("the hand takes red", 3, "A")
    assert len(tokenizer.encode(answer)) == 12
    assert tokenizer.decode(tokenizer.encode(answer)) == answer


@pytest.mark.slow
def test_the_shipped_policy_is_at_chance_when_greedy_and_has_not_the_format(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "clips", num_train=0, num_heldout=100, seed=0)
    samples = read_jsonl(folder / "heldout.jsonl")
    patches = tiny.family().patches
    clips = [clip_of(decode(Path(video_of(sample)))[0], patches) for sample in samples]
    prompts = [tiny.prompt(sample, clip) for sample, clip in zip(samples, clips, strict=True)]
    greedy = Sampling(group_size=1, max_new_tokens=24, temperature=0.0)
    groups = TransformersEngine(tiny.policy()).generate(prompts, greedy, range(len(prompts)))
    texts = [group.rollouts[0].text for group in groups]
    right = [f"<answer>{each.answer}</answer>" in text for each, text in zip(samples, texts, strict=True)]
    assert np.mean(right) <= 0.40
    assert np.mean(["<keyframes>" in text for text in texts]) <= 0.05


@pytest.mark.parametrize("family", SHIPPED)
def test_every_phase_of_the_factory_has_texts_to_learn_and_measures_what_ends_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in {"NUM_PRETRAIN_CLIPS": 4, "NUM_PROBE_CLIPS": 3}.items():
        monkeypatch.setattr(base_policy_maker, name, number)
    maker = Maker(family, seed=0, clips_per_step=2)
    at_chance = np.log(maker.policy.family.config.text_config.vocab_size)
    for phase in PHASES[family]:
        with torch.no_grad():
            loss = float(F.cross_entropy(*phase.batch(maker)))
        # A tower's first features are longer than embeddings, and surer of a wrong name.
        assert loss > at_chance - 1.5 and (phase is NAME or loss < at_chance + 1.5)
        assert phase.measure(maker).keys() >= phase.bounds.keys()


@pytest.mark.parametrize("family", SHIPPED)
def test_the_factory_saves_a_model_folder_with_its_weights(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base_policy_maker, "NUM_PRETRAIN_CLIPS", 1)
    monkeypatch.setattr(base_policy_maker, "NUM_PROBE_CLIPS", 1)
    maker = Maker(family, seed=3)
    maker.save(str(tmp_path / "made"))
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        path.name for path in SHIPPED[family].iterdir()
    }
    saved = load_family(str(tmp_path / "made")).load_model(torch.float32).state_dict()
    made = maker.policy.model.state_dict()
    assert saved.keys() == made.keys() and all(saved[name].equal(made[name]) for name in made)


@pytest.mark.slow
def test_the_shipped_policy_is_what_the_factorys_last_phase_asks_for() -> None:
    maker = Maker("qwen2_5_vl", seed=0)
    maker.policy.model.load_state_dict(tiny.policy().model.state_dict())
    habit = PHASES["qwen2_5_vl"][-1]
    with torch.no_grad():
        measures = habit.measure(maker)
    assert {
        name: low <= measures[name] <= high for name, (low, high) in habit.bounds.items()
    } == dict.fromkeys(habit.bounds, True)


@pytest.mark.parametrize("path", ["runs/demo_clips/trian.jsonl", "runs/demo_clip/train.jsonl", "train.jsonl"])
def test_a_mistyped_path_is_missing_and_renders_nothing(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{path}.*no such dataset file.* are in runs/demo_clips/, "):
        read_synthetic(path)
    assert not [*tmp_path.iterdir()]


def test_the_paths_of_the_demos_configs_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_config([f"{tiny.ROOT}/configs/demo.yaml"]).data
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        synthetic, "write_dataset", lambda folder, **_: rendered.append(Path(folder).resolve())
    )
    rendered: list[Path] = []
    for path in (data.train[0].path, tmp_path / data.eval[0].path):
        with pytest.raises(FileNotFoundError):
            read_synthetic(path)
    assert rendered == [tmp_path / "runs" / "demo_clips"] * 2


def test_rendering_says_into_which_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset("clips", num_train=1, num_heldout=0, seed=0)
    assert capsys.readouterr().out == f"rendering the demo's clips into {tmp_path}/clips/\n"
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        write_dataset(".", num_train=1, num_heldout=0, seed=0)
