"""Rewards of body motion that a completion writes as code tokens.

All read the one span `<motion> ... </motion>` of a completion, and compare what its codes decode to with the sample's
stream `motion`, which is the recording itself and not what the codec makes of it. A span that does not parse, or that
is longer or shorter than the stream, earns 0; None is "this sample has no such stream".

codec: the folder of the codec that the policy's vocabulary was grown with, `codecs/motion` of its model folder.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from grpo.codec.codec import Codec, load_codec
from grpo.codec.spec import check_stream
from grpo.codec.streams import Stream, read_stream
from grpo.codec.texts import parse_codes
from grpo.groups import Rollout
from grpo.motion.features import MOTION, joint_positions, local_positions
from grpo.motion.skeleton import INDEX, LOWER, SEGMENTS, UPPER
from rewards import reward
from rewards.scoring.motion import mpjpe_mm, mpjve_mm_s, skate_frac

STREAM = "motion"
JOINTS = {"full": tuple(range(len(SEGMENTS))), "upper": UPPER, "lower": LOWER}
FEET = tuple(INDEX[name] for name in ("R_Toe", "L_Toe"))

Joints = Literal["full", "upper", "lower"]


@reward
def mpjpe(
    rollout: Rollout,
    *,
    codec: str,
    zero_at_mm: float = 500.0,
    joints: Joints = "full",
    space: Literal["pelvis", "start"] = "pelvis",
) -> float | None:
    """1 less the mean per-joint position error over zero_at_mm, 0 from there on: 1 - min(e / zero_at_mm, 1); 0 to 1.

    e is the mean distance in millimetres of the segments' origins, all 23, the 15 of the upper body or the 8 of the
    legs, as EgoLM reports it (arXiv 2409.18127); the mean of this reward tells that of e where nothing is cut off.
    Space "pelvis" compares each frame in its own heading, above the pelvis' point on the floor, and "start" in the
    first frame's, so that the way walked counts too.

    The cheap hack is a pose in the middle of all others: choose zero_at_mm so that it earns little.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    made_TC, truth = found
    if space == "start":
        made_TJ3, true_TJ3 = (joint_positions(each, truth.rate_hz) for each in (made_TC, truth.values_TC))
    else:
        made_TJ3, true_TJ3 = local_positions(made_TC), local_positions(truth.values_TC)
    return _falling(mpjpe_mm(made_TJ3, true_TJ3, JOINTS[joints]), zero_at_mm)


@reward
def joint_velocity(
    rollout: Rollout, *, codec: str, zero_at_mm_s: float = 1000.0, joints: Joints = "full"
) -> float | None:
    """1 less the mean per-joint velocity error over zero_at_mm_s, 0 from there on; 0 to 1.

    The error (MPJVE, arXiv 1811.11742) is the mean distance of the joints' velocities in mm/s, from frame to frame in
    the frames' own headings: motion that trembles, or steps in another rhythm, has a large one at a small `mpjpe`. None
    also for a stream of a single frame.

    The cheap hack is to stand still, which costs no more than what the body really moves.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    made_TC, truth = found
    if len(made_TC) < 2:
        return None
    made_TJ3, true_TJ3 = local_positions(made_TC), local_positions(truth.values_TC)
    error_mm_s = mpjve_mm_s(made_TJ3, true_TJ3, JOINTS[joints], rate_hz=truth.rate_hz)
    return _falling(error_mm_s, zero_at_mm_s)


@reward
def foot_skate(rollout: Rollout, *, codec: str) -> float | None:
    """The share of steps from frame to frame in which no foot on the floor slides; 0 to 1.

    The complement of GMD's foot skating ratio (arXiv 2305.12577): a toe that is less than 5 cm above the floor in both
    frames, and moves by more than 0.5 m/s over it (there 2.5 cm a frame at 20 Hz), skates. It is of the decoded motion
    alone, whatever was recorded. None also for a stream of a single frame.

    The cheap hack is not to walk, or to keep the feet in the air: give it less weight than `mpjpe`.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    made_TC, truth = found
    if len(made_TC) < 2:
        return None
    return 1.0 - skate_frac(joint_positions(made_TC, truth.rate_hz), FEET, rate_hz=truth.rate_hz)


@reward
def token_validity(rollout: Rollout, *, codec: str) -> float | None:
    """1 if the completion is one span of codes and nothing else, of the right levels and the stream's length; or 0.

    Where only codes of the right level are sampled, what is left to learn is the length. Of our own design.
    """
    found = _decoded(rollout, codec)
    if not isinstance(found, tuple):
        return found
    text = rollout.text.strip()
    return float(text.startswith(f"<{STREAM}>") and text.endswith(f"</{STREAM}>"))


@lru_cache
def _codec(folder: str) -> Codec:
    """The codec of a folder; ValueError unless it is one of body motion."""
    codec = load_codec(folder)
    if (codec.spec.channels, codec.spec.units) != (tuple(MOTION), tuple(MOTION.values())):
        raise ValueError(f"{folder}: the codec {codec.spec.name} is not one of body motion (docs/motion.md)")
    return codec


@lru_cache(maxsize=4096)
def _truth(path: str, folder: str) -> Stream:
    """The recording; ValueError unless it is as the codec's streams are."""
    truth = read_stream(Path(path))
    try:
        check_stream(_codec(folder).spec, truth)
    except ValueError as error:
        raise ValueError(f"{path}: {error} ({folder})") from None
    return truth


def _decoded(rollout: Rollout, folder: str) -> tuple[np.ndarray, Stream] | float | None:
    """The values (T, C) that the codes decode to, and the recording; the reward where there is nothing to compare."""
    if STREAM not in rollout.sample.streams:
        return None
    codec, truth = _codec(folder), _truth(rollout.sample.streams[STREAM], folder)
    try:
        codes_KQ = parse_codes(codec.spec, rollout.text)
    except ValueError:
        return 0.0
    if len(codes_KQ) != _num_steps(codec, truth):
        return 0.0
    return codec.decode(codes_KQ)[: len(truth.values_TC)], truth


def _num_steps(codec: Codec, truth: Stream) -> int:
    """The code steps of a stream, of which the last one may be filled up."""
    return -(-len(truth.values_TC) // codec.spec.downsampling)


def _falling(error: float, zero_at: float) -> float:
    """1 at no error, falling in a straight line to 0."""
    return 1.0 - min(error / zero_at, 1.0)
