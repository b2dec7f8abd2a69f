"""Motion from end to end: the walker's records, codecs, a grown policy, its supervised stage and GRPO on `mpjpe`."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo import train
from grpo.codec.codec import save_codec
from grpo.codec.settings import CodecConfig
from grpo.codec.streams import read_stream
from grpo.codec.training import train_codec
from grpo.commands.codec.grow import grow
from grpo.media.sampling import MediaSettings
from grpo.motion.synthetic import write_dataset
from grpo.run.folder import read_rows
from grpo.run.rollout_files import read_rollouts, rollout_files
from tests.support import tiny
from tests.support.runs import reset_process_state

CONFIG, SUPERVISED = (
    str(tiny.ROOT / "configs" / name) for name in ("egolm_synthetic.yaml", "supervised/egolm_synthetic.yaml")
)


def settings(folder: Path, task: str, *overrides: str) -> list[str]:
    sets = [
        f"data.{split}=[{{reader: jsonl, path: {folder}/data/{file}.{task}.jsonl}}]"
        for split, file in (("train", "train"), ("eval", "heldout"))
    ]
    codec = [
        f"rewards.{name}.args.codec={folder}/base/codecs/motion"
        for name in ("mpjpe", "lower", "token_validity")
    ]
    small = [
        "num_steps=1",
        "optim.prompts_per_step=2",
        "optim.warmup_steps=0",
        "media.num_workers=1",
        "log.live=false",
    ]
    return [*sets, *codec, *small, *overrides]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 8 frames to train on, and the demo's policy with codes for their sensors and motion."""
    folder = tmp_path_factory.mktemp("motion")
    write_dataset(folder / "data", num_train=2, num_heldout=1, seed=0, num_frames=8)
    for name in ("sensor", "motion"):
        streams = [
            read_stream(path) for path in sorted((folder / "data/streams").glob(f"train-*.{name}.npz"))
        ]
        config = CodecConfig(
            name=name, streams=[], out="", codebook_size=4, code_dim=4, width=8, window_steps=8, num_epochs=2
        )
        save_codec(train_codec(config, streams, lambda _: None), folder / "codecs" / name)
    grow(str(tiny.BASE_POLICY), folder / "base", [folder / "codecs" / name for name in ("sensor", "motion")])
    return folder


def test_recordings_codes_are_trained_on_and_earn_what_the_codec_loses(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    train.main(
        [CONFIG, SUPERVISED, *settings(folder, "tracking", f"model.path={folder}/base", f"run_dir={run}")]
    )
    reset_process_state()
    (row,) = (each for each in read_rows(run / "metrics.jsonl") if "rewards/mpjpe/mean" in each)
    # Two steps of two levels, two tags and the end of the turn.
    assert row["completion/length"] == 7 and row["rewards/token_validity/mean"] == 1
    assert 0 < row["rewards/mpjpe/mean"] < 1
    (_, group), *_ = read_rollouts(rollout_files(run / "rollouts")[1], MediaSettings())
    assert group.group.rollouts[0].text.startswith("<motion><motion_0_")
    assert "<sensor><sensor_0_" in group.group.prompt.text and "sensor" in group.group.prompt.sample.streams


def test_grpo_samples_motion_of_which_errors_are_rewards(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    train.main(
        [
            CONFIG,
            *settings(folder, "tracking_blind", f"model.path={folder}/base", f"run_dir={run}"),
            "rollout.engine=transformers",
            "rollout.group_size=2",
            "rollout.max_new_tokens=12",
        ]
    )
    reset_process_state()
    (row,) = (each for each in read_rows(run / "metrics.jsonl") if "rewards/mpjpe/mean" in each)
    assert 0 <= row["rewards/mpjpe/mean"] <= 1 and row["rewards/mpjpe/failed"] == 0
