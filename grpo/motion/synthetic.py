"""The synthetic walker as a data set.

`python -m grpo.motion.synthetic FOLDER --num-train 1024 --num-heldout 128 --seed 0` writes clips, streams and the
records of all tasks (`records.py`): `train.TASK.jsonl` and `heldout.TASK.jsonl`. Clips of the two splits never
coincide, and all tasks of a clip are in its split.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from grpo.media.writing import write_mp4, write_once
from grpo.motion.camera import film
from grpo.motion.records import Window, streams_of, write_records, write_streams
from grpo.motion.walker import Motion, describe, draw_plan, walk

SPLITS = ("train", "heldout")
WALKER_VERSION = 1
"""Raise it when the same seed gives other clips, so that folders written before are redone."""
NUM_FRAMES, RATE_HZ, FPS = 60, 10, 5
"""EgoLM's window of 60 frames, and a clip with every other one: a code step of four frames is one patch of time."""


def motion_at(
    split: str, index: int, *, seed: int, num_frames: int = NUM_FRAMES
) -> tuple[Motion, np.ndarray]:
    """The motion number `index` of a split, the same whatever else is made, and the frames that its head sees."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    plan = draw_plan(rng, num_frames / RATE_HZ)
    motion = walk(plan, rng, num_frames=num_frames, rate_hz=RATE_HZ)
    return motion, film(motion, rng, every=RATE_HZ // FPS)


def write_dataset(
    folder: str | Path, *, num_train: int, num_heldout: int, seed: int, num_frames: int = NUM_FRAMES
) -> Path:
    """Write the data set as `write_once` does; ValueError for sizes that make none."""
    if min(num_train, num_heldout) < 1 or num_frames < 4:
        raise ValueError("a data set has a clip or more in each split, and a clip four frames or more")

    def write(partial: Path) -> None:
        (partial / "clips").mkdir()
        for split, num_clips in zip(SPLITS, (num_train, num_heldout), strict=True):
            bar = tqdm(range(num_clips), f"rendering {split}", leave=False, mininterval=1.0)
            windows = [_write_clip(partial, split, index, seed, num_frames) for index in bar]
            write_records(partial, split, windows)

    sizes = {"num_train": num_train, "num_heldout": num_heldout, "num_frames": num_frames}
    return write_once(folder, {**sizes, "seed": seed, "walker_version": WALKER_VERSION}, write)


def _write_clip(folder: Path, split: str, index: int, seed: int, num_frames: int) -> Window:
    id = f"{split}-{index:05d}"
    motion, frames_FHWC = motion_at(split, index, seed=seed, num_frames=num_frames)
    write_mp4(folder / "clips" / f"{id}.mp4", frames_FHWC, fps=FPS)
    write_streams(folder, id, streams_of(motion.positions_TJ3, motion.rotations_TJ33, rate_hz=motion.rate_hz))
    return Window(id=id, text=describe(motion.plan), video=f"clips/{id}.mp4")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the synthetic walker's clips, streams and records.")
    parser.add_argument("folder")
    parser.add_argument("--num-train", type=int, default=1024)
    parser.add_argument("--num-heldout", type=int, default=128)
    parser.add_argument("--num-frames", type=int, default=NUM_FRAMES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_dataset(
        args.folder,
        num_train=args.num_train,
        num_heldout=args.num_heldout,
        seed=args.seed,
        num_frames=args.num_frames,
    )
    print(f"{args.num_train} + {args.num_heldout} clips in {args.folder}")


if __name__ == "__main__":
    main()
