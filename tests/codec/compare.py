"""Kinds of quantisation at the same token rate, on the synthetic walker's motion: `python -m tests.codec.compare`.

Prints JSON: for each kind the mean position error of segments in millimetres (each frame in its own heading, as EgoLM's
codecs are compared) on motion that no codec has seen, over seeds, with the 95% interval of Student's t; and the paired
difference from one plain codebook at the same token rate. Runs that `--runs` has already are not done again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from grpo.codec.measures import rebuilt
from grpo.codec.settings import CodecConfig
from grpo.codec.streams import Stream
from grpo.codec.training import train_codec
from grpo.motion.features import local_positions
from grpo.motion.records import streams_of
from grpo.motion.walker import draw_plan, walk

RATE_HZ, NUM_FRAMES, NUM_MEASURED = 10, 60, 64
# The first three have as many tokens a second, and with as many codes in each codebook as many bits. "plain, 4 frames"
# is the paper's baseline, with half of both; the last one has their bits in half the tokens: a code for every pair.
ARMS: dict[str, dict[str, Any]] = {
    "plain, 2 frames": {"kind": "plain", "downsampling": 2},
    "product, 4 frames x 2": {"kind": "product", "downsampling": 4, "levels": 2},
    "residual, 4 frames x 2": {"kind": "residual", "downsampling": 4, "levels": 2},
    "plain, 4 frames": {"kind": "plain", "downsampling": 4},
    "plain, 4 frames, all pairs": {"kind": "plain", "downsampling": 4},
}
BASELINE, ALL_PAIRS = "plain, 2 frames", "plain, 4 frames, all pairs"


@cache
def motion(split: int, index: int) -> Stream:
    rng = np.random.default_rng([split, index])
    walked = walk(draw_plan(rng, NUM_FRAMES / RATE_HZ), rng, num_frames=NUM_FRAMES, rate_hz=RATE_HZ)
    return streams_of(walked.positions_TJ3, walked.rotations_TJ33, rate_hz=RATE_HZ)["motion"]


def run(arm: str, seed: int, *, num_streams: int, num_epochs: int, codebook_size: int) -> dict[str, Any]:
    """A codec's error in millimetres and the use of its codes."""
    size = codebook_size**2 if arm == ALL_PAIRS else codebook_size
    # Three blocks, so that half the downsampling is no shorter view: of 26 frames to both sides.
    config = CodecConfig(
        name="motion", streams=[], out="", codebook_size=size, code_dim=32, depth=3, num_epochs=num_epochs,
        seed=seed, device="cpu", **ARMS[arm],
    )  # fmt: skip
    rows: list[Mapping[str, float]] = []
    codec = train_codec(config, [motion(0, index) for index in range(num_streams)], rows.append)
    errors_mm = [
        1000
        * np.linalg.norm(
            local_positions(rebuilt(codec, stream)) - local_positions(stream.values_TC), axis=-1
        ).mean()
        for stream in (motion(1, index) for index in range(NUM_MEASURED))
    ]
    used = [rows[-1][f"codes/used_frac/{level}"] for level in range(codec.spec.levels)]
    return {
        "arm": arm, "seed": seed, "mpjpe_mm": float(np.mean(errors_mm)), "tokens_per_s": codec.spec.codes_per_s,
        "bits_per_s": codec.spec.codes_per_s * math.log2(size), "used_frac": min(used), "streams": num_streams,
        "epochs": num_epochs, "codes": size,
    }  # fmt: skip


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means with intervals, and differences from the baseline over the seeds that both have."""
    errors = {arm: {each["seed"]: each["mpjpe_mm"] for each in runs if each["arm"] == arm} for arm in ARMS}
    table = {}
    for arm, by_seed in errors.items():
        if not by_seed:
            continue
        of_arm = [each for each in runs if each["arm"] == arm]
        same = {key: of_arm[0][key] for key in ("tokens_per_s", "bits_per_s")}
        shared = sorted(by_seed.keys() & errors[BASELINE].keys())
        less = [by_seed[seed] - errors[BASELINE][seed] for seed in shared]
        used = min(each["used_frac"] for each in of_arm)
        table[arm] = same | {"mpjpe_mm": interval([*by_seed.values()]), "least_used_frac": used}
        if arm != BASELINE and less:
            table[arm]["beyond_plain_mm"] = interval(less)
    return table


def interval(values: Sequence[float]) -> dict[str, float | int]:
    """The mean, and the half width of its 95% interval where there are two values or more."""
    found: dict[str, float | int] = {"mean": round(float(np.mean(values)), 2), "num": len(values)}
    if len(values) > 1:
        half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        found["half_width"] = round(float(half), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-streams", type=int, default=1024)
    parser.add_argument("--num-epochs", type=int, default=40)
    parser.add_argument("--codebook-size", type=int, default=64)
    parser.add_argument("--runs", type=Path, help="a file of finished runs, which is added to")
    arguments = parser.parse_args()
    sizes = {"num_streams": arguments.num_streams, "num_epochs": arguments.num_epochs}
    runs: list[dict[str, Any]] = []
    if arguments.runs is not None and arguments.runs.exists():
        runs = [json.loads(line) for line in arguments.runs.read_text().splitlines()]
    for seed in arguments.seeds:
        for arm in ARMS:
            if any((each["arm"], each["seed"]) == (arm, seed) for each in runs):
                continue
            runs.append(run(arm, seed, codebook_size=arguments.codebook_size, **sizes))
            if arguments.runs is not None:
                with arguments.runs.open("a") as file:
                    print(json.dumps(runs[-1]), file=file)
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    main()
