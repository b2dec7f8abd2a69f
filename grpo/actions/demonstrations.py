"""Scripted demonstrations: a start that a seed decides, the moments before it as frames, and the chunk that does it.

The fingertip goes to its place in a straight line, with the speed of a minimum jerk (Flash and Hogan, 1985).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from grpo.actions.simulator import CHUNK_STEPS, Outcome, Simulator, State

NUM_FRAMES = 4
"""The frames that are filmed before a chunk, one for each action step."""
INSTRUCTIONS = {
    "reacher": ("Move to the red ball at {}.", "Touch the red ball at {}.", "Reach the red target at {}."),
    "pusher": ("Push the white disc to the red goal at {}.", "Move the disc onto the red goal at {}."),
}
"""What is asked, with the goal's cell in a grid."""
NUM_CELLS = 8
GRIDS_22 = {"reacher": ((-0.14, -0.2), (0.14, 0.0)), "pusher": ((0.2, -0.6), (0.9, 0.3))}
"""Opposite corners of the grids of NUM_CELLS by NUM_CELLS, in metres: where goals lie."""
_ATTEMPTS = 200
_POSE_J = (-2.6, 2.1)
"""The reacher's angles at the start."""
_NEAREST_M, _CLEAR_M, _REACH_M = 0.05, 0.05, 0.2
"""The least distance to a target, the least that the way may be from the base, where no joint helps, and the most."""
_BASE_2, _AWAY_2 = np.array([0.0, -0.6]), np.array([1.2, 1.2])
"""The place of the pusher's own base, and one that is out of its way."""
_PUSH_Z_M, _PUSH_RADII_M, _PUSH_TURNS = -0.275, (0.5, 0.6), (0.2, 1.2)
"""The height of the disc, and where the fork starts: how far from its base, and in which direction, in radians."""
_AHEAD_M, _CONTACT_M = 0.09, 0.07
"""How far in front of the fork's root the disc starts, and is when the two touch: radii of 0.05 and 0.02."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Demonstration:
    """One chunk of actions that does the task, and what was seen before it."""

    seed: int
    instruction: str
    state: State
    """Where the chunk starts."""
    frames_FHWC: np.ndarray
    actions_TC: np.ndarray
    outcome: Outcome


def demonstrate(simulator: Simulator, seed: int) -> Demonstration | None:
    """The demonstration of a seed, the same whatever came before; None where the controller does not do the task."""
    rng = np.random.default_rng([seed, len(simulator.name)])
    texts = INSTRUCTIONS[simulator.name]
    text = texts[int(rng.integers(len(texts)))]
    found = _START[simulator.name](simulator, seed, rng)
    if found is None:
        return None
    before, lead_in_TC, way_2 = found
    frames: list[np.ndarray] = []
    start = simulator.execute(before, lead_in_TC, each_step=lambda: frames.append(simulator.frame()))
    actions_TC = straight(way_2, CHUNK_STEPS)
    outcome = simulator.execute(start.state, actions_TC)
    if not outcome.is_success:
        return None
    return Demonstration(
        seed=seed,
        instruction=text.format(cell_of(outcome.goal_2, GRIDS_22[simulator.name])),
        state=start.state,
        frames_FHWC=np.stack(frames[-NUM_FRAMES:]),
        actions_TC=actions_TC,
        outcome=outcome,
    )


def cell_of(place_2: np.ndarray, corners_22: tuple[tuple[float, float], tuple[float, float]]) -> str:
    """The column and the row of a place in a grid, counted from the left and from below; the nearest ones outside."""
    low_2, high_2 = np.array(corners_22)
    shares_2 = (np.asarray(place_2) - low_2) / (high_2 - low_2)
    column, row = np.clip((shares_2 * NUM_CELLS).astype(int), 0, NUM_CELLS - 1)
    return f"{column} {row}"


def straight(way_2: np.ndarray, num_steps: int) -> np.ndarray:
    """The displacements of a straight way with minimum jerk: 10 t^3 - 15 t^4 + 6 t^5 of it after a share t."""
    t = np.linspace(0, 1, num_steps + 1)
    return np.diff(10 * t**3 - 15 * t**4 + 6 * t**5)[:, None] * np.asarray(way_2, np.float64)


def _start_reacher(
    simulator: Simulator, seed: int, rng: np.random.Generator
) -> tuple[State, np.ndarray, np.ndarray] | None:
    """The arm near one pose, as the task has it, and a target to which the way is clear; the arm drifts a little."""
    base = simulator.start(seed)
    for _ in range(_ATTEMPTS):
        angles = np.array(_POSE_J) + rng.uniform(-0.05, 0.05, 2)
        target_2 = rng.uniform(*GRIDS_22["reacher"])
        state = State(arm=base.arm, qpos=(*angles.tolist(), *target_2.tolist()), qvel=(0.0,) * 4)
        simulator.put(state)
        tip_2 = simulator.place(simulator.arm.tip)[:2]
        lead_in_2 = rng.normal(0, 0.004, 2)
        way_2 = target_2 - tip_2 - lead_in_2
        if np.linalg.norm(way_2) >= _NEAREST_M and _clearance(tip_2, target_2) >= _CLEAR_M:
            return state, straight(lead_in_2, NUM_FRAMES), way_2
    return None


def _clearance(start_2: np.ndarray, end_2: np.ndarray) -> float:
    """The room that a straight way leaves to the base, in metres, or to where the arm can't reach, if that is less."""
    along = np.linspace(0, 1, 33)[:, None]
    radii = np.linalg.norm(start_2 + along * (end_2 - start_2), axis=1)
    return float(min(radii.min(), _REACH_M - radii.max() + _CLEAR_M))


def _start_pusher(
    simulator: Simulator, seed: int, rng: np.random.Generator
) -> tuple[State, np.ndarray, np.ndarray] | None:
    """The disc in the fork, and a goal that the fork points to more or less."""
    simulator.start(seed)
    simulator.put(_moved_to(simulator.state(), disc_2=_AWAY_2, goal_2=_AWAY_2))
    turn = rng.uniform(*_PUSH_TURNS)
    tip_2 = _BASE_2 + rng.uniform(*_PUSH_RADII_M) * np.array([np.cos(turn), np.sin(turn)])
    state = simulator.bring(np.array([*tip_2, _PUSH_Z_M]))
    tip_2 = simulator.place(simulator.arm.tip)[:2]
    ahead_2 = simulator.data.body(simulator.arm.tip).xmat.reshape(3, 3)[:2, 0]
    disc_2 = tip_2 + _AHEAD_M * ahead_2 / np.linalg.norm(ahead_2)
    turn = np.arctan2(ahead_2[1], ahead_2[0]) + rng.uniform(-0.5, 0.5)
    push_2 = np.array([np.cos(turn), np.sin(turn)])
    length_m = rng.uniform(0.1, 0.22)
    state = _moved_to(state, disc_2=disc_2, goal_2=disc_2 + length_m * push_2)
    return state, np.zeros((NUM_FRAMES, 2)), push_2 * (length_m + _AHEAD_M - _CONTACT_M)


def _moved_to(state: State, *, disc_2: np.ndarray, goal_2: np.ndarray) -> State:
    """The state of the pusher with disc and goal elsewhere, at rest. Their joints slide from (0.45, -0.05), y first."""
    shifts = [(place_2 - (0.45, -0.05))[::-1] for place_2 in (disc_2, goal_2)]
    return replace(
        state, qpos=(*state.qpos[:7], *np.concatenate(shifts).tolist()), qvel=(*state.qvel[:7], *[0.0] * 4)
    )


_START = {"reacher": _start_reacher, "pusher": _start_pusher}
