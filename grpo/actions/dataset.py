"""Demonstrations as a data set: `python -m grpo.actions.dataset OUT --arm reacher --num-train 1024 --num-heldout 128`.

OUT has `train.jsonl` and `heldout.jsonl`, native records whose target is `<action>`, the codes of their stream
`action`; `train_words.jsonl` and `heldout_words.jsonl`, the same whose target is in the model's own words; clips and
streams. The column `simulator` is the state in which the chunk starts, from which a reward executes what was answered.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from grpo.actions.demonstrations import Demonstration, demonstrate
from grpo.actions.simulator import ARMS, CHANNELS, SIZE_PX, UNITS, Simulator, simulator
from grpo.actions.words import Words
from grpo.codec.streams import Stream, write_stream
from grpo.media.writing import write_mp4, write_once

STREAM = "action"
STATE = "simulator"
"""The column of the simulator's state."""
VERSION = 2
"""Raise it when the same seed gives other records, so that folders written before are redone."""
SPLITS = ("train", "heldout")
WORD_M = {"reacher": 0.03, "pusher": 0.04}
"""How far a word moves: with as many words as action steps, each demonstrated place can be reached nearly enough."""


def write_dataset(
    folder: str | os.PathLike[str],
    *,
    arm: str,
    num_train: int,
    num_heldout: int,
    seed: int,
    size_px: int = SIZE_PX,
) -> Path:
    """Write records, clips and streams, as `write_once` does; ValueError for an arm that is not there."""
    if arm not in ARMS:
        raise ValueError(f"no arm {arm!r}: there are {', '.join(ARMS)}")
    nums = {"train": num_train, "heldout": num_heldout}
    parameters = {"arm": arm, "seed": seed, "size_px": size_px, "version": VERSION, **nums}

    def write(partial: Path) -> None:
        for name in ("clips", "streams"):
            (partial / name).mkdir()
        for split in SPLITS:
            _write_split(partial, split, simulator(arm, size_px), nums[split], seed)

    return write_once(folder, parameters, write)


def demonstrations(arm: Simulator, split: str, num: int, seed: int) -> Iterator[Demonstration]:
    """As many demonstrations that do the task; those of different splits, or seeds, are of different starts."""
    drawn = np.random.default_rng([seed, SPLITS.index(split)])
    while num:
        found = demonstrate(arm, int(drawn.integers(2**31)))
        if found is not None:
            num -= 1
            yield found


def _write_split(folder: Path, split: str, arm: Simulator, num: int, seed: int) -> None:
    say = Words(word_m=WORD_M[arm.name]).say
    found = tqdm(demonstrations(arm, split, num, seed), split, num, leave=False, mininterval=1.0)
    with (
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as codes,
        (folder / f"{split}_words.jsonl").open("w", encoding="utf-8") as words,
    ):
        for index, shown in enumerate(found):
            id, said = f"{split}-{index:05d}", say(shown.actions_TC)
            _write_media(folder, id, shown, arm.step_s)
            record = {
                "id": id,
                "video": f"clips/{id}.mp4",
                "question": shown.instruction,
                "answer": said,
                "task": "open",
                "streams": {STREAM: f"streams/{id}.{STREAM}.npz"},
                STATE: shown.state.as_column() | {"seed": shown.seed},
            }
            codes.write(json.dumps(record | {"target": f"<{STREAM}>"}) + "\n")
            words.write(json.dumps(record | {"target": said}) + "\n")


def _write_media(folder: Path, id: str, shown: Demonstration, step_s: float) -> None:
    write_mp4(folder / "clips" / f"{id}.mp4", shown.frames_FHWC, fps=1 / step_s)
    stream = Stream(
        values_TC=shown.actions_TC.astype(np.float32),
        rate_hz=1 / step_s,
        start_s=len(shown.frames_FHWC) * step_s,
        channels=CHANNELS,
        units=UNITS,
    )
    write_stream(folder / "streams" / f"{id}.{STREAM}.npz", stream)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write demonstrations of a simulated arm as a data set.")
    parser.add_argument("folder")
    parser.add_argument("--arm", choices=[*ARMS], default="reacher")
    parser.add_argument("--num-train", type=int, default=1024)
    parser.add_argument("--num-heldout", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_dataset(
        args.folder, arm=args.arm, num_train=args.num_train, num_heldout=args.num_heldout, seed=args.seed
    )
    print(f"{args.num_train} + {args.num_heldout} demonstrations of {args.arm} in {args.folder}")


if __name__ == "__main__":
    main()
