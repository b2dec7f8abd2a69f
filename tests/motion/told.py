"""`python -m tests.motion.told` measures what the synthetic walker's sensors and clips tell of its body.

Ridge regression, frame by frame and without any memory, from the sensors' channels, from where the frames are red and
blue (the legs), or from both, to the positions of all segments: held-out errors in millimetres. What both tell
together, and sensors alone don't, is what a policy can gain from the clip.
"""

from __future__ import annotations

import sys

import numpy as np

from grpo.motion.features import local_positions, motion_features, sensor_features
from grpo.motion.skeleton import LOWER, UPPER
from grpo.motion.synthetic import FPS, RATE_HZ, motion_at
from rewards.scoring.motion import mpjpe_mm

RIDGE = 300.0
CELL_PX = 4
"""The frames are made so much smaller."""
COLOUR_STEP = 90
"""How much more red than blue a leg is, or the other way round."""


def main(num_train: int = 240, num_heldout: int = 60) -> None:
    given, wanted = collect("train", num_train)
    held_out, truth = collect("heldout", num_heldout)
    print("| from | full body | upper | legs |\n| --- | --- | --- | --- |")
    guesses = {"nothing: the mean pose": np.broadcast_to(wanted.mean(axis=0), truth.shape)}
    for name, keys in {"sensors": ["sensors"], "clip": ["clip"], "both": ["sensors", "clip"]}.items():
        inputs, asked = (np.hstack([each[key] for key in keys]) for each in (given, held_out))
        guesses[name] = ridge(inputs, wanted.reshape(len(wanted), -1), asked).reshape(truth.shape)
    for name, guess in guesses.items():
        errors = [mpjpe_mm(guess, truth, joints) for joints in (range(23), UPPER, LOWER)]
        print(f"| {name} | {' | '.join(f'{error:.1f}' for error in errors)} |")


def collect(split: str, num_clips: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of the frames that are filmed, and the positions (N, 23, 3) of the body in them."""
    parts: dict[str, list[np.ndarray]] = {"sensors": [], "clip": [], "positions": []}
    for index in range(num_clips):
        motion, frames_FHWC = motion_at(split, index, seed=0)
        positions = motion.positions_TJ3
        parts["sensors"].append(sensor_features(positions, motion.rotations_TJ33, RATE_HZ)[:: RATE_HZ // FPS])
        parts["clip"].append(legs_seen(frames_FHWC))
        parts["positions"].append(local_positions(motion_features(positions, RATE_HZ))[:: RATE_HZ // FPS])
    found = {name: np.concatenate(each) for name, each in parts.items()}
    return found, found.pop("positions")


def legs_seen(frames_FHWC: np.ndarray) -> np.ndarray:
    """The share of each cell that is red, and that is blue."""
    step_FHW = frames_FHWC[..., 0].astype(int) - frames_FHWC[..., 2]
    seen_FHW2 = np.stack([step_FHW > COLOUR_STEP, step_FHW < -COLOUR_STEP], axis=-1)
    num_frames, height_px, width_px, _ = seen_FHW2.shape
    cells = (num_frames, height_px // CELL_PX, CELL_PX, width_px // CELL_PX, CELL_PX, 2)
    return seen_FHW2.reshape(cells).mean(axis=(2, 4)).reshape(num_frames, -1)


def ridge(inputs: np.ndarray, wanted: np.ndarray, asked: np.ndarray) -> np.ndarray:
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
    known, new = (np.hstack([(each - mean) / spread, np.ones((len(each), 1))]) for each in (inputs, asked))
    weights = np.linalg.solve(known.T @ known + RIDGE * np.eye(known.shape[1]), known.T @ wanted)
    return new @ weights


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
