"""A matrix of small video files, each compared with a full decoding: codecs, containers, GOPs, rates, clocks, damage.

    python -m tests.media.matrix [--only NAME] [--keep FOLDER]

Prints JSON: for each kind of file how many agree with the full decoding in every frame and time, how many are refused
and why, and which differ. Files are encoded with PyAV's own encoders; some are then changed as bytes or packets, as
recorders, cutters and broken writers do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import InvalidDataError
from av.video.frame import PictureType

from grpo.media.clip import MediaError
from grpo.media.frames import resize
from grpo.media.sampling import QWEN2_5_VL, MediaSettings, TooShort, choose_frames
from tests.support import changed_videos as changed
from tests.support.videos import read_video, write_video

NUM_FRAMES = 60
SIZE_PX = (112, 84)
PIXELS = {"min_pixels": 112 * 84, "max_pixels": 112 * 84}
PARTS: list[tuple[float, float | None, dict[str, Any]]] = [
    (0.0, None, {"fps": 1000.0, "max_frames": 10_000}),
    (0.35, 1.4, {"fps": 4.0}),
    (1.05, None, {"fps": 3.0}),
    (0.0, None, {"fps": 0.1, "min_frames": 2, "max_frames": 2}),
    (1.43, 1.62, {"fps": 1000.0}),
]
"""The parts of a file that are read, in seconds, and the settings: all frames first, then some."""
STEPS = [1, 1, 3, 1, 2, 6, 1, 1, 1, 4]
UNEVEN = [sum(STEPS[i % len(STEPS)] for i in range(number)) for number in range(NUM_FRAMES)]
"""The times of a variable rate, in frames at the constant one."""
PAUSED = [number if number < 40 else number + 45 for number in range(NUM_FRAMES)]
"""The times where 45 frames were dropped in a row."""


@dataclass(frozen=True)
class Case:
    """A file of the matrix."""

    kind: str
    name: str
    """What is special about the file; its ending is the container's."""
    video: dict[str, Any]
    """The arguments of `write_video`."""
    change: changed.Change | None = None
    """What is done to the file afterwards."""
    shown: Callable[[np.ndarray], np.ndarray] = np.array
    """How a stored picture is shown."""
    slots: Sequence[int] | None = None
    """The times of frames that the container doesn't tell, in frames at its rate."""
    is_refused: str = ""
    """Part of the reason for which the file is refused; empty if it has to be read."""


X264 = {"preset": "veryfast", "sc_threshold": "0"}
X265 = "log-level=none:scenecut=0:rc-lookahead=5"
AV1 = {"preset": "12", "svtav1-params": "lookahead=0"}
VP9 = {"deadline": "realtime", "cpu-used": "8"}
GOPS: dict[str, dict[str, dict[str, Any]]] = {
    "libx264": {
        "closed": {"options": X264 | {"bf": "2"}},
        "no_b": {"options": X264 | {"bf": "0"}},
        "open": {"options": {"x264-params": "open-gop=1:scenecut=0:bframes=3:b-adapt=0"}},
        "long": {"gop": 600, "options": X264 | {"bf": "3"}},
        "intra_refresh": {"options": {"x264-params": "intra-refresh=1:bframes=0:scenecut=0"}},
        "pyramid": {"options": {"x264-params": "b-pyramid=normal:bframes=5:b-adapt=0:ref=4:scenecut=0"}},
        "only_keyframes": {"gop": 1, "options": X264},
        "interlaced": {"options": X264 | {"bf": "2", "flags": "+ildct+ilme"}},
    },
    "libx265": {
        "closed": {"options": {"x265-params": f"{X265}:open-gop=0:bframes=2"}},
        "open": {"options": {"x265-params": f"{X265}:open-gop=1:bframes=3:b-adapt=0"}},
        "long": {"gop": 600, "options": {"x265-params": f"{X265}:bframes=3"}},
    },
    "mpeg2video": {
        "closed": {"options": {"bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}},
        "open": {"options": {"bf": "2"}},
        "long": {"gop": 600, "options": {"bf": "0"}},
    },
    "mpeg4": {"no_b": {"options": {}}, "b": {"options": {"bf": "2"}}, "long": {"gop": 600, "options": {}}},
    "h263": {"short": {"size_px": (128, 96), "options": {}}},
    "h263p": {"short": {"options": {}}, "long": {"gop": 600, "options": {}}},
    "libvpx": {
        "plain": {"options": {"deadline": "realtime", "cpu-used": "8"}},
        "hidden": {"options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}},
    },
    "libvpx-vp9": {
        "plain": {"options": VP9},
        "hidden": {"options": VP9 | {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    },
    "libsvtav1": {"closed": {"options": AV1}, "long": {"gop": 600, "options": AV1}},
    "prores": {"intra": {"pixel_format": "yuv422p10le", "options": {}}},
    "mjpeg": {"intra": {"pixel_format": "yuvj420p", "options": {}}},
}
CONTAINERS = {
    "libx264": "mp4 mkv ts avi flv",
    "libx265": "mp4 mkv ts",
    "mpeg2video": "ts mpg mkv mp4 avi",
    "mpeg4": "mp4 mkv avi",
    "h263": "3gp avi mov",
    "h263p": "avi",
    "libvpx": "webm avi",
    "libvpx-vp9": "webm mp4",
    "libsvtav1": "mp4 webm",
    "prores": "mov mkv",
    "mjpeg": "mov avi mkv",
}
AMBIGUOUS = {
    ("mpeg2video", "long_even.mpg"): "in the order of their times",
    ("mpeg2video", "long_uneven.avi"): "nothing tells when the others are shown",
    ("mpeg2video", "long_paused.avi"): "nothing tells when the others are shown",
}
"""Files whose own times contradict each other: two frames at one time, and a delay that may or may not be meant."""
ONE = 1 << 16
ORIENTATIONS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "as_stored": ((1, 0, 0, 1), np.array),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside_down": ((1, 0, 0, -1), np.flipud),
    "turned_180": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "turned_clockwise": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "turned_counterclockwise": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    "transposed_the_other_way": ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1)),
}
"""Display matrices (a, b, c, d), and the picture that a player shows."""


def cases() -> Iterator[Case]:
    yield from codecs_and_containers()
    yield from orientations()
    yield from edited()
    yield from mismarked()
    yield from cut_and_joined()


def codecs_and_containers() -> Iterator[Case]:
    for codec, gops in GOPS.items():
        for gop, arguments in gops.items():
            for container in CONTAINERS[codec].split():
                for rate, timing in RATES.items():
                    slots = timing.get("pts", range(NUM_FRAMES)) if container == "avi" else None
                    video = {"codec": codec, **arguments, **timing}
                    name = f"{gop}_{rate}.{container}"
                    yield Case(codec, name, video, slots=slots, is_refused=AMBIGUOUS.get((codec, name), ""))


RATES: dict[str, dict[str, Any]] = {"even": {}, "uneven": {"pts": UNEVEN}, "paused": {"pts": PAUSED}}


def orientations() -> Iterator[Case]:
    for name, ((a, b, c, d), shown) in ORIENTATIONS.items():
        matrix = [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30]
        for codec, container in (("libx264", "mp4"), ("prores", "mov")):
            [(_, arguments), *_] = GOPS[codec].items()
            video = {"codec": codec, **arguments, "matrix": matrix}
            yield Case("orientation", f"{name}.{container}", video, shown=shown)


def edited() -> Iterator[Case]:
    edits: dict[str, tuple[tuple[float, float], ...]] = {
        "start_cut": ((1.5, 0.5),),
        "start_cut_at_a_b_frame": ((1.4, 0.6),),
        "end_cut": ((1.2, 0.0),),
        "delayed": ((0.7, -1), (2.0, 0.0)),
        "middle_cut": ((0.6, 0.1), (0.7, 1.1)),
        "shown_twice": ((0.8, 0.0), (0.8, 0.0)),
    }
    for name, each in edits.items():
        for codec, gop in (("libx264", "closed"), ("libx264", "open"), ("libx265", "open"), ("mpeg4", "b")):
            video = {"codec": codec, **GOPS[codec][gop]}
            yield Case("edit list", f"{name}_{codec}_{gop}.mp4", video, changed.with_edits(*each))


def mismarked() -> Iterator[Case]:
    for codec in ("libx264", "libx265", "mpeg4", "h263", "libvpx-vp9", "libsvtav1", "mpeg2video"):
        for gop, arguments in GOPS[codec].items():
            container = "mov" if codec == "h263" else "mp4"
            if "long" in gop or "only" in gop:
                continue
            for change in (changed.without_sync_table, changed.with_false_sync_table):
                name = f"{codec}_{gop}_{change.__name__}.{container}"
                yield Case("keyframes marked wrongly", name, {"codec": codec, **arguments}, change)


def cut_and_joined() -> Iterator[Case]:
    for codec, gop, container in (
        ("libx264", "closed", "mkv"),
        ("libx264", "open", "ts"),
        ("libx264", "intra_refresh", "ts"),
        ("libx265", "open", "mkv"),
        ("libx265", "closed", "ts"),
        ("mpeg2video", "open", "ts"),
        ("mpeg4", "b", "mkv"),
        ("libvpx", "plain", "webm"),
        ("libvpx-vp9", "hidden", "webm"),
        ("libsvtav1", "closed", "mkv"),
        ("h263", "short", "mov"),
    ):
        video = {"codec": codec, **GOPS[codec][gop]}
        name = f"{codec}_{gop}"
        for change in (changed.without_first_packets(7), changed.from_second_keyframe):
            begins = "keyframe" if change is changed.from_second_keyframe else "between"
            yield Case("starts inside a GOP", f"{name}_{begins}.{container}", video, change)
        if codec == "h263":
            continue  # not in Matroska
        yield Case("starts after its sound", f"{name}.mkv", video, changed.with_earlier_sound(0.4))
        yield Case("thumbnail first", f"{name}.mkv", video, changed.with_thumbnail)
        # PyAV itself calls the only frame of that file corrupt.
        refused = "damaged" if codec == "mpeg2video" else ""
        yield Case("one frame", f"{name}.{container}", video | {"num_frames": 1}, is_refused=refused)
        yield Case("cut off", f"{name}.mkv", video, changed.cut_off, is_refused="cut off")
        if container == "ts":
            joined = [*range(NUM_FRAMES), *range(NUM_FRAMES, 2 * NUM_FRAMES)]
            yield Case("joined", f"{name}.ts", video, changed.twice, slots=joined)
            yield Case("bad reception", f"{name}.ts", video, changed.with_a_gap, is_refused="damaged")


@dataclass(frozen=True)
class Decoding:
    """A file's frames as a player gets them, decoded from the start with nothing but PyAV."""

    frames: list[np.ndarray]
    times_s: np.ndarray
    fps: float | None


def full_decoding(path: Path, case: Case) -> Decoding:
    with av.open(str(path)) as container:
        stream = container.streams.video[-1]
        decoder, frames, pts = stream.codec_context, [], []
        for packet in container.demux(stream):
            try:
                decoded = decoder.decode(packet if packet.size else None)
            except InvalidDataError:
                assert not frames, "the decoder fails in the middle"
                continue
            for frame in decoded:
                depends = frame.pict_type != PictureType.I and not frame.key_frame
                is_cut = case.kind == "starts inside a GOP"
                if frames or decoder.name == "h264" or not (is_cut and depends):
                    frames.append(case.shown(frame.to_ndarray(format="rgb24")))
                    pts.append(frame.pts)
        rate, time_base = stream.average_rate, stream.time_base
    assert time_base is not None
    if case.slots is not None:
        assert len(case.slots) == len(frames)
        times_s = [float(slot / Fraction(case.video.get("fps", 30))) for slot in case.slots]
    else:
        times_s = [float((each - pts[0]) * time_base) for each in pts]
    return Decoding(frames, np.array(times_s), float(rate) if rate else None)


def difference(path: Path, case: Case) -> str:
    """Return how the clips of a file differ from its full decoding; empty if they don't. Raises MediaError."""
    whole = full_decoding(path, case)
    end_s = 0.0
    for start_s, stop_s, how in PARTS:
        settings = MediaSettings(**PIXELS, **how)
        part = f"from {start_s} to {stop_s} s"
        try:
            chosen = choose_frames(
                whole.times_s,
                start_s,
                stop_s,
                whole.frames[0].shape[:2],
                settings,
                QWEN2_5_VL,
                file_end_s=end_s or whole.times_s[-1] + 0.04,
                file_fps=whole.fps,
            )
        except TooShort:
            continue
        clip = read_video(path, start_s=start_s, end_s=stop_s, settings=settings)
        end_s = end_s or clip.duration_s
        if len(chosen.shown_s) != clip.num_frames:
            return f"{part}: {clip.num_frames} frames, not {len(chosen.shown_s)}"
        if np.abs(np.array(clip.times_s) + start_s - chosen.shown_s).max() > 1e-6:
            return f"{part}: times {clip.times_s}, not {chosen.shown_s}"
        for index, frame_HWC in zip(chosen.indices, clip.frames_FHWC, strict=True):
            if not np.array_equal(frame_HWC, resize(whole.frames[index], clip.height_px, clip.width_px)):
                return f"{part}: another picture than frame {index}"
        if len(whole.frames) == 1:
            break
    if not whole.times_s[-1] < end_s < whole.times_s[-1] + 1:
        return f"its end is {end_s}"
    return ""


def check(case: Case, folder: Path) -> tuple[str, str]:
    """Return `agrees`, `refused` or `differs`, and the reason."""
    path = folder / case.name
    write_video(path, **({"num_frames": NUM_FRAMES, "size_px": SIZE_PX, "gop": 12} | case.video))
    if case.change is not None:
        case.change(path)
    try:
        differs = difference(path, case)
    except MediaError as error:
        reason = str(error).replace(str(path), case.name)
        is_expected = case.is_refused and case.is_refused in reason
        return ("refused", reason) if is_expected else ("differs", f"refused: {reason}")
    if case.is_refused and not differs:
        differs = "not refused"
    return ("differs", differs) if differs else ("agrees", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="kinds or names that hold this text")
    args = parser.parse_args()
    table: dict[str, Counter[str]] = {}
    findings = []
    with tempfile.TemporaryDirectory() as name:
        for case in cases():
            if args.only not in f"{case.kind} {case.name}":
                continue
            try:
                outcome, reason = check(case, Path(name))
            except Exception as error:
                outcome, reason = "error", f"{type(error).__name__}: {error}"
            table.setdefault(case.kind, Counter())[outcome] += 1
            if reason:
                findings.append(f"{case.kind}: {case.name}: {outcome}: {reason}")
    total = sum(table.values(), Counter())
    print(json.dumps({"kinds": table, "total": total, "findings": findings}, indent=2))


if __name__ == "__main__":
    main()
