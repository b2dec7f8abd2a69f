"""A synthetic walker: it walks, turns, steps on the spot, bends, reaches or sits, with smooth random parameters.

Its head and hands move as the activity has it. Its legs have a life of their own: how high it lifts its feet, how wide
it stands, in which rhythm and from which phase it steps, which foot is in front. The head, the wrists and the pelvis
move the same whatever these are, so that of all but the rhythm no sensor tells anything. Of the rhythm the speed of
walking tells the slowest that there can be (`slowest_hz`), and no more. A camera on the head sees the legs
(`camera.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from grpo.motion.skeleton import (
    ANKLE_M,
    INDEX,
    OFFSETS_J3,
    SEGMENTS,
    SPINE,
    along,
    forward_kinematics,
    rotation,
)

Activity = Literal["walk", "turn", "step", "bend", "reach", "sit"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)

STANDING_M, SEATED_M = 0.885, 0.52
"""The height of the pelvis: a little bent knees leave the feet room to step."""
STANCE_FRAC = 0.6
"""The share of a step's cycle in which the foot stands."""
FASTEST_HZ = 0.85
"""The fastest rhythm of the steps, in cycles of both feet."""
THIGH_M, SHANK_M = -OFFSETS_J3[INDEX["R_LowerLeg"], 2], -OFFSETS_J3[INDEX["R_Foot"], 2]
_GRID_HZ, _MARGIN_S = 50, 4.0
"""The finer and longer grid on which the path is integrated: feet stand where the body has been or will be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Legs:
    """What only the legs do."""

    lift_m: float
    """The height of a swinging ankle above its stand."""
    width_m: float
    lead_m: float
    """How far the left foot stands before the right one, where nobody walks."""
    cadence_hz: float
    phase: float
    """The place in the left foot's cycle at the clip's start, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a walker does in a clip."""

    activity: Activity
    speed_m_s: float
    turn_rad_s: float
    bend_rad: float
    reach_rad: float
    hand: Literal["R", "L"]
    begins_s: float
    """When it begins to bend, reach or sit, which takes it a second."""
    stature: float
    """The body's size over that of the skeleton."""
    legs: Legs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Motion:
    """A clip's motion: positions (T, J, 3) in metres, rotations (T, J, 3, 3), at a rate; and what was planned."""

    plan: Plan
    rate_hz: float
    positions_TJ3: np.ndarray
    rotations_TJ33: np.ndarray


def draw_plan(rng: np.random.Generator, duration_s: float) -> Plan:
    """A plan, with each activity as likely as the others."""
    activity = ACTIVITIES[rng.integers(len(ACTIVITIES))]
    moves = activity in ("walk", "turn")
    speed_m_s = rng.uniform(0.3, 0.6) if activity == "walk" else rng.uniform(0.1, 0.25) if moves else 0.0
    is_stepping = moves or activity == "step"
    legs = Legs(
        lift_m=rng.choice([rng.uniform(0.02, 0.06), rng.uniform(0.2, 0.32)]) if is_stepping else 0.0,
        width_m=rng.choice([rng.uniform(0.12, 0.2), rng.uniform(0.36, 0.46)]),
        lead_m=0.0 if is_stepping else rng.choice([-1.0, 1.0]) * rng.uniform(0.1, 0.2),
        cadence_hz=rng.uniform(slowest_hz(speed_m_s), FASTEST_HZ) if is_stepping else 0.0,
        phase=rng.uniform(),
    )
    return Plan(
        activity=activity,
        speed_m_s=speed_m_s,
        turn_rad_s=float(rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)) if activity == "turn" else 0.0,
        bend_rad=rng.uniform(1.0, 1.5) if activity == "bend" else rng.uniform(0.15, 0.3),
        reach_rad=rng.uniform(1.1, 1.6) if activity == "reach" else rng.uniform(0.0, 0.3),
        hand="R" if rng.uniform() < 0.5 else "L",
        begins_s=rng.uniform(0.0, max(duration_s - 1.5, 0.0)),
        stature=rng.uniform(0.95, 1.05),
        legs=legs,
    )


def slowest_hz(speed_m_s: float) -> float:
    """The slowest rhythm of the steps at a speed: fast walkers take fast steps, or their legs would be stretched."""
    return max(0.45, 1.3 * speed_m_s)


def walk(plan: Plan, rng: np.random.Generator, *, num_frames: int, rate_hz: float) -> Motion:
    """The plan as motion, with smooth noise of its own in pace, turn, back, head and arms."""
    times_T = np.arange(num_frames) / rate_hz
    share_T = _smoothstep(times_T - plan.begins_s)
    path = _Path(plan, rng)
    yaw_T, place_T2 = path.at(times_T)
    sits_T = share_T if plan.activity == "sit" else np.zeros(num_frames)
    back_T3 = _ahead(yaw_T) * (-0.33 * sits_T)[:, None]
    pelvis_T3 = np.pad(place_T2, ((0, 0), (0, 1))) + back_T3
    pelvis_T3[:, 2] = STANDING_M + (SEATED_M - STANDING_M) * sits_T + _wobble(rng, times_T, 0.01)

    rotations_TJ33 = np.broadcast_to(rotation(2, yaw_T)[:, None], (num_frames, len(SEGMENTS), 3, 3)).copy()
    bend_T = plan.bend_rad * (share_T if plan.activity == "bend" else 1.0) + _wobble(rng, times_T, 0.04)
    _turn_spine(rotations_TJ33, rng, times_T, bend_T)
    _turn_arms(rotations_TJ33, plan, rng, times_T, share_T)
    for side, sign in (("R", -1.0), ("L", 1.0)):
        _place_leg(rotations_TJ33, side, pelvis_T3, path.ankle(side, sign, times_T), yaw_T)
    offsets_J3 = OFFSETS_J3 * plan.stature
    return Motion(
        plan=plan,
        rate_hz=rate_hz,
        positions_TJ3=forward_kinematics(pelvis_T3 * plan.stature, rotations_TJ33, offsets_J3),
        rotations_TJ33=rotations_TJ33,
    )


class _Path:
    """The pelvis' way over the floor, and where the feet stand along it."""

    def __init__(self, plan: Plan, rng: np.random.Generator) -> None:
        self.legs = plan.legs
        self.times_N = np.arange(-_MARGIN_S, 2 * _MARGIN_S + 60.0, 1 / _GRID_HZ)
        speed_N = plan.speed_m_s * (1 + _wobble(rng, self.times_N, 0.15))
        turn_N = plan.turn_rad_s * (1 + _wobble(rng, self.times_N, 0.2)) + (
            _wobble(rng, self.times_N, 0.1) if plan.speed_m_s else 0.0
        )
        self.yaw_N = rng.uniform(-np.pi, np.pi) + np.cumsum(turn_N) / _GRID_HZ
        self.place_N2 = np.cumsum(_ahead(self.yaw_N)[:, :2] * speed_N[:, None], axis=0) / _GRID_HZ

    def at(self, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The heading (T,) in radians, and the place (T, 2) in metres."""
        x, y = (np.interp(times_s, self.times_N, self.place_N2[:, axis]) for axis in (0, 1))
        return np.interp(times_s, self.times_N, self.yaw_N), np.stack([x, y], axis=-1)

    def ankle(self, side: str, sign: float, times_s: np.ndarray) -> np.ndarray:
        """Where an ankle is (T, 3): at rest in its stance, then on its way to the next one."""
        legs = self.legs
        phase = legs.phase + (0.5 if side == "R" else 0.0)
        cycle_T = times_s * legs.cadence_hz + phase
        whole_T = np.floor(cycle_T)
        swing_T = np.clip((cycle_T - whole_T - STANCE_FRAC) / (1 - STANCE_FRAC), 0.0, 1.0)
        here_T3, next_T3 = (self._stand(sign, whole_T + step, phase) for step in (0, 1))
        ankle_T3 = here_T3 + (next_T3 - here_T3) * _smoothstep(swing_T)[:, None]
        ankle_T3[:, 2] = ANKLE_M + legs.lift_m * np.sin(np.pi * swing_T)
        return ankle_T3

    def _stand(self, sign: float, cycle_T: np.ndarray, phase: float) -> np.ndarray:
        """Where a foot stands in a cycle (T, 3): beside the place of the pelvis in the middle of that stance."""
        legs = self.legs
        middle_s = (cycle_T + STANCE_FRAC / 2 - phase) / legs.cadence_hz if legs.cadence_hz else 0.0 * cycle_T
        yaw_T, place_T2 = self.at(middle_s)
        beside_T3 = _ahead(yaw_T + np.pi / 2) * (sign * legs.width_m / 2)
        return np.pad(place_T2, ((0, 0), (0, 1))) + beside_T3 + _ahead(yaw_T) * (sign * legs.lead_m / 2)


def _turn_spine(
    rotations_TJ33: np.ndarray, rng: np.random.Generator, times_T: np.ndarray, bend_T: np.ndarray
) -> None:
    """The back bends forward, more from segment to segment; the head looks down and about on its own."""
    for number, name in enumerate(SPINE[1:5], start=1):
        rotations_TJ33[:, INDEX[name]] @= rotation(1, bend_T * number / 4)
    chest_T33 = rotations_TJ33[:, INDEX["T8"]]
    for name in ("R_Shoulder", "L_Shoulder"):
        rotations_TJ33[:, INDEX[name]] = chest_T33
    nod_T = 0.45 + _wobble(rng, times_T, 0.08)
    rotations_TJ33[:, INDEX["Neck"]] @= rotation(1, (bend_T + nod_T) / 2)
    rotations_TJ33[:, INDEX["Head"]] @= rotation(2, _wobble(rng, times_T, 0.12)) @ rotation(1, nod_T)


def _turn_arms(
    rotations_TJ33: np.ndarray, plan: Plan, rng: np.random.Generator, times_T: np.ndarray, share_T: np.ndarray
) -> None:
    """The arms hang and swing in a rhythm of their own; the reaching one is raised forward."""
    for side in "RL":
        reach_T = plan.reach_rad * (share_T if plan.activity == "reach" else 1.0) * (side == plan.hand)
        raised_T = reach_T + _wobble(rng, times_T, 0.15)
        bent_T = 0.35 * (1 - np.minimum(reach_T, 1.0)) + np.abs(_wobble(rng, times_T, 0.1))
        rotations_TJ33[:, INDEX[f"{side}_UpperArm"]] @= rotation(1, -raised_T)
        for part in ("Forearm", "Hand"):
            rotations_TJ33[:, INDEX[f"{side}_{part}"]] @= rotation(1, -raised_T - bent_T)


def _place_leg(
    rotations_TJ33: np.ndarray, side: str, pelvis_T3: np.ndarray, ankle_T3: np.ndarray, yaw_T: np.ndarray
) -> None:
    """Turn thigh and shank so that the ankle is where it should be, or as near as the leg reaches; the knee forward."""
    hip_T3 = pelvis_T3 + rotations_TJ33[:, 0] @ OFFSETS_J3[INDEX[f"{side}_UpperLeg"]]
    line_T3 = ankle_T3 - hip_T3
    distance_T = np.linalg.norm(line_T3, axis=-1)
    reach_T = np.clip(distance_T, 0.2, 0.998 * (THIGH_M + SHANK_M))
    # The law of cosines: how far along the line from hip to ankle the knee is, and how far before it.
    along_T = (reach_T**2 + THIGH_M**2 - SHANK_M**2) / (2 * reach_T)
    before_T = np.sqrt(np.maximum(THIGH_M**2 - along_T**2, 0.0))
    down_T3 = line_T3 / distance_T[:, None]
    ahead_T3 = _ahead(yaw_T)
    ahead_T3 = ahead_T3 - down_T3 * (ahead_T3 * down_T3).sum(-1, keepdims=True)
    ahead_T3 /= np.linalg.norm(ahead_T3, axis=-1, keepdims=True)
    knee_T3 = down_T3 * along_T[:, None] + ahead_T3 * before_T[:, None]
    left_T3 = _ahead(yaw_T + np.pi / 2)
    rotations_TJ33[:, INDEX[f"{side}_UpperLeg"]] = along(knee_T3, left_T3)
    rotations_TJ33[:, INDEX[f"{side}_LowerLeg"]] = along(down_T3 * reach_T[:, None] - knee_T3, left_T3)


def _ahead(yaw_T: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(yaw_T), np.sin(yaw_T), np.zeros_like(yaw_T)], axis=-1)


def _smoothstep(share_T: np.ndarray) -> np.ndarray:
    share_T = np.clip(share_T, 0.0, 1.0)
    return share_T * share_T * (3 - 2 * share_T)


def _wobble(rng: np.random.Generator, times_T: np.ndarray, std: float) -> np.ndarray:
    """Smooth noise: three slow waves of random rates and phases."""
    rates_hz, phases = rng.uniform(0.05, 0.4, 3), rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * rates_hz[:, None] * times_T + phases[:, None])
    return std * np.sqrt(2 / 3) * waves.sum(axis=0)


def describe(plan: Plan) -> str:
    """What happens, in a sentence that a data set's narration could be: the activity, and what the legs do."""
    side = "left" if plan.turn_rad_s > 0 else "right"
    hand = "right" if plan.hand == "R" else "left"
    what = {
        "walk": "I walk",
        "turn": f"I turn {side}",
        "step": "I step",
        "bend": "I bend",
        "reach": f"I reach, {hand} hand",
        "sit": "I sit",
    }[plan.activity]
    width = "wide" if plan.legs.width_m > 0.28 else "narrow"
    if plan.legs.cadence_hz:
        return f"{what}, {'high' if plan.legs.lift_m > 0.13 else 'low'} steps, {width}"
    return f"{what}, {'left' if plan.legs.lead_m > 0 else 'right'} foot in front, {width}"
