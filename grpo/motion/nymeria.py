"""Nymeria's own files as a data set of motion: `body/xdata.npz` of each sequence and the CSV files of its narrations.

`python -m grpo.motion.nymeria ROOT OUT [--clocks clocks.json] [--clips FOLDER]` cuts the sequences under ROOT into
windows, and writes streams and records as `records.py` has them. Nothing is downloaded: docs/motion.md says what to
get.

Of the body file, positions and rotations of 23 segments in the XSens world (z up) and their times are read; keys,
shapes and repairs are those of the official code (facebookresearch/nymeria_dataset, nymeria/body_motion_provider.py
and nymeriaplus/loaders/xsens.py). Head and wrist sensors are the body's own segments, and not the devices'
trajectories. Body times are on the recordings' common time code, and narrations on the head's own clock, so that
texts and clips need the offset between the two.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from grpo.media.frame_table import frame_table
from grpo.media.identity import identity
from grpo.media.writing import write_once
from grpo.motion.records import Window, streams_of, write_records, write_streams
from grpo.motion.skeleton import SEGMENTS, from_quaternion

logger = logging.getLogger(__name__)

BODY = "body/xdata.npz"
ROUNDING_S = 0.001
"""How far a window may go beyond its clip's end: both are sums of many steps."""
BODY_HZ, STEP_TOLERANCE_S, DRIFT_TOLERANCE_S = 240.0, 0.001, 0.010
"""The body's rate, how far a step may be off before it is repaired, and how far the repaired clock may be off."""
NARRATIONS: Mapping[str, tuple[str, ...]] = {
    "motion_narration": (
        "Describe my body posture",
        "Describe my hands/arms motion",
        "Describe my legs/feet motion",
        "Describe my focus attention",
    ),
    "atomic_action": ("Describe my atomic actions",),
    "activity_summarization": ("Describe my activity",),
}
"""The files in `narration/`, finest first, with their columns of text beside `start_time` and `end_time`, seconds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Body:
    """A sequence's motion, at times on the recordings' time code."""

    times_s: np.ndarray
    positions_TJ3: np.ndarray
    rotations_TJ33: np.ndarray

    def part(self, frames_T: np.ndarray) -> Body:
        return Body(
            times_s=self.times_s[frames_T],
            positions_TJ3=self.positions_TJ3[frames_T],
            rotations_TJ33=self.rotations_TJ33[frames_T],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """A sequence's offsets, which its recordings' VRS files know."""

    device_to_timecode_s: float
    """What is added to a narration's time to get the time code."""
    video_start_s: float | None = None
    """The time code of the first frame of the sequence's clip; None: it has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Narration:
    start_s: float
    end_s: float
    text: str


def read_body(path: Path) -> Body:
    """The motion of a body file; ValueError names the file and what of it is missing or of another shape."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            count = int(np.ravel(arrays["segmentCount"])[0]) if "segmentCount" in arrays else len(SEGMENTS)
            times_us = arrays["timestamps_us"].astype(np.int64)
            flat_TC, quaternions_TC = arrays["segment_tXYZ"], arrays["segment_qWXYZ"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no body file of Nymeria: {error}") from None
    num_frames = len(times_us)
    shapes = ((num_frames, 3 * len(SEGMENTS)), (num_frames, 4 * len(SEGMENTS)))
    if count != len(SEGMENTS) or (flat_TC.shape, quaternions_TC.shape) != shapes or num_frames < 2:
        found = f"{count} segments, segment_tXYZ {flat_TC.shape}, segment_qWXYZ {quaternions_TC.shape}"
        raise ValueError(f"{path}: {found}, for {num_frames} times: not {len(SEGMENTS)} segments each")
    if not (np.isfinite(flat_TC).all() and np.isfinite(quaternions_TC).all()):
        raise ValueError(f"{path}: positions or rotations that are no finite numbers")
    return Body(
        times_s=_repaired_times(times_us / 1e6, path),
        positions_TJ3=flat_TC.reshape(num_frames, -1, 3).astype(np.float64),
        rotations_TJ33=from_quaternion(_repaired_rotations(quaternions_TC.reshape(num_frames, -1, 4))),
    )


def read_narrations(path: Path, columns: Sequence[str]) -> list[Narration]:
    """The narrations of a CSV file, their columns joined by spaces; ValueError names the file and line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [
            name for name in ("start_time", "end_time", *columns) if name not in (rows.fieldnames or ())
        ]:
            raise ValueError(f"{path}: no column {missing[0]!r}")
        try:
            found = [
                Narration(
                    start_s=float(row["start_time"]),
                    end_s=float(row["end_time"]),
                    text=" ".join(text for name in columns if (text := (row[name] or "").strip())),
                )
                for row in rows
            ]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}:{rows.line_num}: {error}") from None
    return [each for each in found if each.text]


def text_of(start_s: float, end_s: float, narrations: Sequence[Narration]) -> str:
    """The narration that a stretch has most of, if it is about half of the stretch or more; else nothing."""

    def shared_s(each: Narration) -> float:
        return min(each.end_s, end_s) - max(each.start_s, start_s)

    best = max(narrations, key=shared_s, default=None)
    return "" if best is None or shared_s(best) < (end_s - start_s) / 2 else best.text


def split_of(sequence: str, heldout_percent: int) -> str:
    """The split of a sequence by its person, whom its name tells (DATE_SESSION_FIRST_LAST_ACTIVITY_ID)."""
    person = "_".join(sequence.split("_")[2:4])
    return "heldout" if zlib.crc32(person.encode()) % 100 < heldout_percent else "train"


def read_clocks(path: Path) -> dict[str, Clock]:
    """The clocks of sequences by name, from a JSON object of objects with `Clock`'s fields."""
    try:
        return {
            name: Clock(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no clocks of sequences: {error}") from None


def write_dataset(
    root: Path,
    out: Path,
    *,
    rate_hz: float = 10.0,
    num_frames: int = 60,
    heldout_percent: int = 10,
    clocks: Mapping[str, Clock] | None = None,
    clips: Path | None = None,
) -> Path:
    """Write the data set of all sequences under a folder; ValueError if a split has none.

    A folder that was written from files of the same content, with the same settings and clocks, is left alone.
    """
    clocks = clocks or {}
    bodies = sorted(root.glob(f"*/{BODY}"))
    splits = {body: split_of(body.parents[1].name, heldout_percent) for body in bodies}
    if missing := {"train", "heldout"} - set(splits.values()):
        raise ValueError(
            f"{root}: {len(bodies)} sequences with {BODY}, of which none is in the split {min(missing)}"
        )

    def write(partial: Path) -> None:
        windows: dict[str, list[Window]] = {"train": [], "heldout": []}
        for body in tqdm(bodies, "sequences", leave=False):
            folder = body.parents[1]
            split, clock = splits[body], clocks.get(folder.name)
            windows[split] += _windows(
                folder, f"{split}-{folder.name}", partial, rate_hz, num_frames, clock, clips
            )
        for split, found in windows.items():
            write_records(partial, split, found)

    about = {
        "root": str(root),
        "rate_hz": rate_hz,
        "num_frames": num_frames,
        "heldout_percent": heldout_percent,
    }
    known = {name: asdict(clock) for name, clock in sorted(clocks.items())}
    files = _digest(_files_of(bodies, clips))
    return write_once(out, {**about, "clips": str(clips), "clocks": known, "files": files}, write)


def _files_of(bodies: Sequence[Path], clips: Path | None) -> Iterator[Path]:
    """All files that a data set is made of, as far as they are there."""
    for body in bodies:
        sequence = body.parents[1]
        narrations = [sequence / "narration" / f"{name}.csv" for name in NARRATIONS]
        clip = [] if clips is None else [clips / f"{sequence.name}.mp4"]
        yield from (file for file in (body, *narrations, *clip) if file.is_file())


def _digest(files: Iterable[Path]) -> str:
    """A hash of files' paths, sizes, and first and last bytes; of the texts among them, of all that they hold."""
    digest = hashlib.sha256()
    for file in files:
        size, _, ends = identity(str(file))
        content = file.read_text("utf-8-sig") if file.suffix == ".csv" else ""
        digest.update(repr((str(file), size, ends, content)).encode())
    return digest.hexdigest()


def _windows(
    sequence: Path,
    name: str,
    out: Path,
    rate_hz: float,
    num_frames: int,
    clock: Clock | None,
    clips: Path | None,
) -> Iterator[Window]:
    """The windows of a sequence, one after another, whose streams are written; their ids begin with a name.

    Of a sequence with a clip they are those that the clip shows from start to end.
    """
    body = read_body(sequence / BODY)
    narrations = [] if clock is None else _narrations(sequence)
    video = _linked_clip(sequence.name, out, clips) if clock and clock.video_start_s is not None else None
    clip_end_s = frame_table(str(out / video)).end_s if video else math.inf
    grid_s = np.arange(body.times_s[0], body.times_s[-1], 1 / rate_hz)
    nearest = np.clip(np.searchsorted(body.times_s, grid_s - 0.5 / BODY_HZ), 0, len(body.times_s) - 1)
    for number in range(len(grid_s) // num_frames):
        part = body.part(nearest[number * num_frames : (number + 1) * num_frames])
        start_s, length_s = float(grid_s[number * num_frames]), num_frames / rate_hz
        in_clip_s = start_s - (clock.video_start_s or 0.0) if clock and video else 0.0
        if in_clip_s < 0 or in_clip_s + length_s > clip_end_s + ROUNDING_S:
            continue
        id = f"{name}-{number:05d}"
        streams = streams_of(part.positions_TJ3, part.rotations_TJ33, rate_hz=rate_hz, start_s=in_clip_s)
        write_streams(out, id, streams)
        told_s = start_s - (clock.device_to_timecode_s if clock else 0.0)
        text = text_of(told_s, told_s + length_s, narrations)
        yield Window(
            id=id, text=text, video=video, start_s=in_clip_s, end_s=in_clip_s + length_s if video else None
        )


def _narrations(sequence: Path) -> list[Narration]:
    """The narrations of the finest file that a sequence has."""
    for name, columns in NARRATIONS.items():
        path = sequence / "narration" / f"{name}.csv"
        if path.is_file():
            return read_narrations(path, columns)
    return []


def _linked_clip(sequence: str, out: Path, clips: Path | None) -> str | None:
    """The path of a sequence's clip in the data set, a link to the file; None where there is none."""
    if clips is None or not (file := clips / f"{sequence}.mp4").is_file():
        return None
    (out / "clips").mkdir(exist_ok=True)
    (out / "clips" / file.name).symlink_to(file.resolve())
    return f"clips/{file.name}"


def _repaired_times(times_s: np.ndarray, path: Path) -> np.ndarray:
    """Times whose odd steps are made even ones, as the official code does."""
    steps_s = np.diff(times_s)
    odd = np.abs(steps_s - 1 / BODY_HZ) > STEP_TOLERANCE_S
    if not odd.any():
        return times_s
    repaired_s = times_s[0] + np.concatenate([[0.0], np.cumsum(np.where(odd, 1 / BODY_HZ, steps_s))])
    if (drift_s := abs(repaired_s[-1] - times_s[-1])) > DRIFT_TOLERANCE_S:
        raise ValueError(f"{path}: {odd.sum()} odd steps between times, {drift_s:.3f} s in all")
    return repaired_s


def _repaired_rotations(quaternions_TJ4: np.ndarray) -> np.ndarray:
    """Unit quaternions; a segment that has none in a frame keeps the one before it, at first none, as officially."""
    fixed = quaternions_TJ4.astype(np.float64)
    sizes_TJ = np.linalg.norm(fixed, axis=-1)
    for frame in np.flatnonzero((sizes_TJ < 0.5).any(axis=1)):
        lacking = sizes_TJ[frame] < 0.5
        fixed[frame, lacking] = fixed[frame - 1, lacking] if frame else (1.0, 0.0, 0.0, 0.0)
    return fixed / np.linalg.norm(fixed, axis=-1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write Nymeria's sequences as a data set of motion.")
    parser.add_argument("root", type=Path, help="the folder of the sequences' folders")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rate-hz", type=float, default=10.0)
    parser.add_argument("--num-frames", type=int, default=60)
    parser.add_argument("--heldout-percent", type=int, default=10, help="persons, not sequences")
    parser.add_argument("--clocks", type=Path, help="a JSON file with the sequences' clocks")
    parser.add_argument("--clips", type=Path, help="a folder with SEQUENCE.mp4 of the head camera")
    args = parser.parse_args()
    clocks = read_clocks(args.clocks) if args.clocks else None
    write_dataset(
        args.root,
        args.out,
        rate_hz=args.rate_hz,
        num_frames=args.num_frames,
        heldout_percent=args.heldout_percent,
        clocks=clocks,
        clips=args.clips,
    )


if __name__ == "__main__":
    main()
