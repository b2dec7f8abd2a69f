"""The demo's clips: a hand takes one of three objects while the camera moves. Real H.264 files.

`python -m grpo.demo.clips FOLDER --num-train 512 --num-heldout 200 --seed 0` writes `train.jsonl`,
`heldout.jsonl` and the clips that they name. Read `render_scene` first.

A clip is 8 s at 2 fps. A noisy textured room pans by, three objects of different colours stand in it, and
at a whole second k from 1 to 7 an arm comes in, grips one of them for a second and lifts it away. The
question is which; four of the five colours are the options, those of all three objects among them.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from grpo.media.clip import Clip, ClipFacts
from grpo.media.frames import resize
from grpo.media.sampling import PatchShape
from grpo.media.writing import write_mp4, write_once
from grpo.run.progress import say

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 40),
    "white": (245, 245, 245),
}
LETTERS = "ABCD"
QUESTION = "Which object does the hand take?"
SIZE_PX = 56
NUM_FRAMES = 16
FPS = 2
NUM_SECONDS = NUM_FRAMES // FPS
SKIN_RGB = (225, 170, 135)
SCENE_VERSION = 2
"""Raise it when the same seed gives other clips, so that folders written before are redone."""

Stream = Literal["train", "heldout", "pretrain", "probe"]
STREAMS: tuple[Stream, ...] = ("train", "heldout", "pretrain", "probe")
"""Clips of different streams never coincide. The last two are for `grpo.demo.make_base_policy`."""

_Y_HW, _X_HW = (axis.astype(np.float32) for axis in np.mgrid[0:SIZE_PX, 0:SIZE_PX])
_FRAME_OFFSETS_HW = (8, 24)
"""Where in the panorama the camera looks at mid-clip, without its shaking."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """One rendered clip and the truth about it."""

    frames_FHWC: np.ndarray
    taken: str
    """Colour of the object that the hand takes."""
    taken_at_s: int
    """The arm is there in the two frames of this second."""
    seen: tuple[str, ...]
    """The colours of the three objects, from left to right."""
    options: tuple[str, ...]

    @property
    def answer(self) -> str:
        return LETTERS[self.options.index(self.taken)]


def scene_at(stream: Stream, index: int, *, seed: int) -> Scene:
    """The clip number `index` of a stream: the same whatever else is rendered."""
    return render_scene(np.random.default_rng([seed, STREAMS.index(stream), index]))


def clip_of(frames_FHWC: np.ndarray, patches: PatchShape) -> Clip:
    """The frames of a whole clip as a policy gets them: resized to whole vision tokens where they are none."""
    side_px = round(SIZE_PX / patches.token_px) * patches.token_px
    frames_FHWC = np.stack([resize(frame_HWC, side_px, side_px) for frame_HWC in frames_FHWC])
    facts = ClipFacts.at_fps(frames_FHWC.shape, FPS, path="", patches=patches)
    return Clip(facts, frames_FHWC)


def render_scene(rng: np.random.Generator) -> Scene:
    """A camera pans over a room; at second k an arm grips the first of three objects and lifts it away."""
    colour_ids = rng.permutation(len(COLOURS))
    option_ids = rng.permutation(colour_ids[: len(LETTERS)])
    taken_at_s = int(rng.integers(1, NUM_SECONDS))
    objects = _place_objects(rng, colour_ids[:3])
    frames_FHWC, shift_F2 = _film_room(rng)

    first, last = taken_at_s * FPS, (taken_at_s + 1) * FPS
    for number, thing in enumerate(objects):
        num_shown = first if number == 0 else NUM_FRAMES
        for frame in range(num_shown):
            _draw_object(frames_FHWC[frame], thing, shift_F2[frame])
    for frame in range(first, last):
        lift_px = 6.0 * (frame - first)
        _draw_arm(frames_FHWC[frame], objects[0], shift_F2[frame] + np.array([lift_px, 0.0]))

    exposure = rng.uniform(0.85, 1.1)
    names = list(COLOURS)
    left_to_right = sorted(objects, key=lambda thing: thing.x_px)
    return Scene(
        frames_FHWC=np.clip(frames_FHWC * exposure, 0, 255).astype(np.uint8),
        taken=objects[0].colour,
        taken_at_s=taken_at_s,
        seen=tuple(thing.colour for thing in left_to_right),
        options=tuple(names[i] for i in option_ids),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Object:
    colour: str
    x_px: float
    y_px: float
    radius_px: int
    is_box: bool


def _place_objects(rng: np.random.Generator, colour_ids: np.ndarray) -> list[_Object]:
    """Three objects side by side in random order, so that the taken one may be anywhere."""
    x_px = rng.permutation(np.array([14, 28, 42]) + rng.integers(-3, 4, 3))
    return [
        _Object(
            colour=list(COLOURS)[colour_id],
            x_px=float(x),
            y_px=float(rng.integers(10, 32)),
            radius_px=int(rng.integers(6, 9)),
            is_box=bool(rng.integers(0, 2)),
        )
        for x, colour_id in zip(x_px, colour_ids, strict=True)
    ]


def _film_room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames of the empty room (float32, FHWC) and how far things stand from their place (F x (y, x), px)."""
    coarse_hw = rng.uniform(0.55, 1.0, (9, 13)).astype(np.float32)
    tint_rgb = rng.uniform(70, 150, 3).astype(np.float32)
    wall_hw = np.kron(coarse_hw, np.ones((8, 8), np.float32))
    wall_hw *= 1 + 0.06 * rng.standard_normal(wall_hw.shape, dtype=np.float32)
    wall_hwc = wall_hw[:, :, None] * tint_rgb

    pan_px = rng.uniform(-0.9, 0.9) * (np.arange(NUM_FRAMES) - NUM_FRAMES / 2)
    at_F2 = np.array(_FRAME_OFFSETS_HW) + rng.normal(0, (1.0, 0.6), (NUM_FRAMES, 2))
    at_F2[:, 1] += pan_px
    at_F2 = np.clip(np.round(at_F2), 0, np.array(wall_hw.shape) - SIZE_PX).astype(int)
    frames_FHWC = np.stack([wall_hwc[y : y + SIZE_PX, x : x + SIZE_PX] for y, x in at_F2])
    return frames_FHWC, np.array(_FRAME_OFFSETS_HW) - at_F2


def _draw_object(frame_HWC: np.ndarray, thing: _Object, shift_2: np.ndarray) -> None:
    dy, dx = _Y_HW - (thing.y_px + shift_2[0]), _X_HW - (thing.x_px + shift_2[1])
    if thing.is_box:
        inside_HW = np.maximum(np.abs(dy), np.abs(dx)) <= thing.radius_px
    else:
        inside_HW = dy**2 + dx**2 <= (thing.radius_px + 1) ** 2
    frame_HWC[inside_HW] = COLOURS[thing.colour]


def _draw_arm(frame_HWC: np.ndarray, thing: _Object, shift_2: np.ndarray) -> None:
    """A forearm from the lower edge and a fist around the object, which stays visible inside it."""
    dy, dx = _Y_HW - (thing.y_px + shift_2[0]), _X_HW - (thing.x_px + shift_2[1])
    forearm_HW = (np.abs(dx - dy * 0.25) <= 5) & (dy > 0)
    fist_HW = dy**2 + dx**2 <= (thing.radius_px + 3) ** 2
    frame_HWC[forearm_HW | fist_HW] = SKIN_RGB
    _draw_object(frame_HWC, thing, shift_2)


def record_of(scene: Scene, *, id: str, video: str) -> dict[str, object]:
    """The scene as a native record.

    The span covers the second's two frames. With a tolerance of 0.25 s it accepts k and k + 0.5, and
    neither k - 1 nor k + 1.
    """
    span_s = [float(scene.taken_at_s), scene.taken_at_s + (FPS - 1) / FPS]
    return {
        "id": id,
        "video": video,
        "question": QUESTION,
        "options": list(scene.options),
        "answer": scene.answer,
        "task": "choice",
        "keyframes_s": [span_s],
    }


def write_dataset(folder: str | os.PathLike[str], *, num_train: int, num_heldout: int, seed: int) -> Path:
    """Write clips and records, as `write_once` does."""
    if num_train < 0 or num_heldout < 0:
        raise ValueError(f"num_train and num_heldout must not be negative, got {num_train}, {num_heldout}")
    parameters = {
        "num_train": num_train,
        "num_heldout": num_heldout,
        "seed": seed,
        "scene_version": SCENE_VERSION,
    }

    def write(partial: Path) -> None:
        say(f"rendering the demo's clips into {Path(folder).absolute()}/")
        _write_split(partial, "train", num_train, seed)
        _write_split(partial, "heldout", num_heldout, seed)

    return write_once(folder, parameters, write)


def _write_split(folder: Path, split: Stream, num_clips: int, seed: int) -> None:
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with (folder / f"{split}.jsonl").open("w") as file:
        for index in tqdm(range(num_clips), f"rendering {split}", leave=False, mininterval=1.0):
            id = f"{split}-{index:05d}"
            scene = scene_at(split, index, seed=seed)
            write_mp4(folder / "clips" / f"{id}.mp4", scene.frames_FHWC, fps=FPS)
            file.write(json.dumps(record_of(scene, id=id, video=f"clips/{id}.mp4")) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's clips and questions.")
    parser.add_argument("folder")
    parser.add_argument("--num-train", type=int, default=512)
    parser.add_argument("--num-heldout", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_dataset(args.folder, num_train=args.num_train, num_heldout=args.num_heldout, seed=args.seed)
    print(f"{args.num_train} + {args.num_heldout} clips in {args.folder}")


if __name__ == "__main__":
    main()
