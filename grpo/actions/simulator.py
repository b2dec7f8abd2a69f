"""Arms of gymnasium's MuJoCo tasks, whose fingertip is moved by displacements; read `Simulator.execute` first.

An action is how far the fingertip is to go in the plane during one action step, `(dx, dy)` in metres: the space of an
"end-effector delta" controller. A chunk of them starts in a stored state and ends in another one, the same each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

CHANNELS = ("dx", "dy")
UNITS = ("m", "m")
CHUNK_STEPS = 8
"""The length of a chunk of actions."""
SIZE_PX = 56
"""The height and width of frames."""


class SimulatorFailed(RuntimeError):
    """The physics broke down: a state that is no number, or accelerations that the solver gave up on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A task of gymnasium's as this project uses it."""

    gym_id: str
    tip: str
    """The body that actions move."""
    moved: str
    """The body that is to come to the goal: the tip itself, or what it pushes."""
    goal: str
    success_m: float
    """The most that the moved body may be from the goal, in the plane, for the task to count as done."""
    substeps: int
    """Steps of the task for each action step."""
    settle_steps: int
    """Steps of the task, after the last action, in which the arm holds."""
    stiffness: float
    """The tip's acceleration in 1/s2 for each metre that it is from where it is to be."""
    camera: Mapping[str, Any]
    drawn_m: Mapping[str, float] = field(default_factory=dict)
    """The radii with which single balls that touch nothing are drawn, where the task's own are a pixel or two."""


ARMS = {
    "reacher": Arm(
        gym_id="Reacher-v5",
        tip="fingertip",
        moved="fingertip",
        goal="target",
        # The fingertip is on the ball as it is drawn.
        success_m=0.03,
        substeps=4,
        settle_steps=8,
        stiffness=900.0,
        drawn_m={"target": 0.03, "fingertip": 0.012},
        camera={"distance": 0.42, "elevation": -90.0, "azimuth": 90.0, "lookat": (0.0, -0.1, 0.0)},
    ),
    "pusher": Arm(
        gym_id="Pusher-v5",
        tip="tips_arm",
        moved="object",
        goal="goal",
        # The disc's radius.
        success_m=0.05,
        substeps=2,
        settle_steps=4,
        stiffness=100.0,
        camera={"distance": 1.6, "elevation": -90.0, "azimuth": 90.0, "lookat": (0.5, -0.2, -0.3)},
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """A state of a simulator, from which all that follows is determined."""

    arm: str
    qpos: tuple[float, ...]
    """Positions of all joints, in MuJoCo's order and units."""
    qvel: tuple[float, ...]

    def as_column(self) -> dict[str, object]:
        return {"arm": self.arm, "qpos": [*self.qpos], "qvel": [*self.qvel]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a chunk of actions led to."""

    state: State
    tip_T2: np.ndarray
    """The fingertip's place in the plane, in metres, after each action step."""
    tip_2: np.ndarray
    """The fingertip's place after the arm has settled."""
    moved_2: np.ndarray
    goal_2: np.ndarray
    is_success: bool


def read_state(column: object) -> State:
    """The state that a record's column holds; ValueError says what is wrong with it."""
    if not isinstance(column, Mapping) or not {"arm", "qpos", "qvel"} <= column.keys():
        raise ValueError("a simulator's state must have arm, qpos and qvel")
    arm = column["arm"]
    if arm not in ARMS:
        raise ValueError(f"no arm {str(arm)[:40]!r}: there are {', '.join(ARMS)}")
    qpos, qvel = (_numbers(column[key], key) for key in ("qpos", "qvel"))
    return State(arm=str(arm), qpos=qpos, qvel=qvel)


def _numbers(values: object, key: str) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(each, int | float) for each in values):
        raise ValueError(f"{key} must be a list of numbers")
    numbers = tuple(float(each) for each in values)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{key} has a value that is no finite number")
    return numbers


@lru_cache(maxsize=8)
def simulator(arm: str, size_px: int = SIZE_PX) -> Simulator:
    """This process's simulator of an arm. size_px: of its frames, which are drawn only when they are asked for."""
    return Simulator(arm, size_px)


class Simulator:
    """One arm's physics; nothing of what it did before reaches what it does next."""

    def __init__(self, arm: str, size_px: int) -> None:
        # Only a window system gives MuJoCo's default a context; EGL draws without a screen.
        os.environ.setdefault("MUJOCO_GL", "egl")
        import gymnasium
        import mujoco

        # Its functions are compiled, and no type checker sees them.
        self._mujoco: Any = mujoco
        # Warnings are counted, and the count is looked at. MuJoCo's file of them would lie wherever a run was started.
        self._mujoco.set_mju_user_warning(lambda message: None)
        self.name, self.arm = arm, ARMS[arm]
        env: Any = gymnasium.make(
            self.arm.gym_id,
            render_mode="rgb_array",
            width=size_px,
            height=size_px,
            default_camera_config=dict(self.arm.camera),
        ).unwrapped
        self.env, self.model, self.data = env, env.model, env.data
        self.num_joints = self.model.nu
        self._gear_J = self.model.actuator_gear[:, 0]
        self._limits_J2 = self.model.actuator_ctrlrange
        # The tasks' own light leaves colours nearly black.
        self.model.vis.headlight.ambient[:] = 0.5
        for geom, radius_m in self.arm.drawn_m.items():
            self.model.geom(geom).size[0] = radius_m
        self._weigh_what_is_pushed()
        env.reset(seed=0)

    def _weigh_what_is_pushed(self) -> None:
        """Count the armature of the pushed body's joints in its weight.

        MuJoCo scales how hard contacts are by a weight that leaves it out. The pusher's disc has almost no mass beside
        it, and the fork would sink through.
        """
        body = self.model.body(self.arm.moved)
        if body.dofnum[0]:
            armature = self.model.dof_armature[body.dofadr[0]]
            self.model.body_invweight0[body.id, 0] = 1 / (body.mass[0] + armature)

    @property
    def step_s(self) -> float:
        """The length of an action step."""
        return self.env.dt * self.arm.substeps

    def start(self, seed: int) -> State:
        """The state in which the task itself starts with a seed."""
        self.env.reset(seed=seed)
        return self.state()

    def state(self) -> State:
        return State(arm=self.name, qpos=tuple(self.data.qpos.tolist()), qvel=tuple(self.data.qvel.tolist()))

    def put(self, state: State) -> None:
        """Put the simulator into a state; ValueError if it is another arm's or has other joints."""
        if (state.arm, len(state.qpos), len(state.qvel)) != (self.name, self.model.nq, self.model.nv):
            raise ValueError(
                f"a state of {state.arm} with {len(state.qpos)} positions and {len(state.qvel)} velocities can't be "
                f"put into {self.name}, which has {self.model.nq} and {self.model.nv}"
            )
        # It clears what the solver starts from, or the same state would go on a little differently each time.
        self._mujoco.mj_resetData(self.model, self.data)
        self.env.set_state(np.array(state.qpos), np.array(state.qvel))

    def place(self, body: str) -> np.ndarray:
        """A body's place in space, in metres."""
        return self.data.body(body).xpos.copy()

    def execute(
        self, state: State, actions_TC: np.ndarray, *, each_step: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Start in a state, let the fingertip follow the actions, hold, and say what came of it.

        each_step: called after each action step. SimulatorFailed where the physics breaks down.
        """
        self.put(state)
        wanted_3 = self.place(self.arm.tip)
        track = []
        for action_C in np.asarray(actions_TC, np.float64):
            wanted_3[:2] += action_C
            self._follow(wanted_3, self.arm.substeps)
            track.append(self.place(self.arm.tip)[:2])
            each_step()
        self._follow(wanted_3, self.arm.settle_steps)
        return self._outcome(track)

    def bring(self, place_3: np.ndarray, *, lift_m: float = 0.2, num_steps: int = 40) -> State:
        """Bring the fingertip to a place in space, from above: over it first, then down; the state that it ends in."""
        self._follow(place_3 + np.array([0.0, 0.0, lift_m]), num_steps)
        self._follow(place_3, num_steps)
        return self.state()

    def _outcome(self, track: Sequence[np.ndarray]) -> Outcome:
        tip_2, moved_2, goal_2 = (
            self.place(body)[:2] for body in (self.arm.tip, self.arm.moved, self.arm.goal)
        )
        return Outcome(
            state=self.state(),
            tip_T2=np.array(track).reshape(-1, 2),
            tip_2=tip_2,
            moved_2=moved_2,
            goal_2=goal_2,
            is_success=bool(np.linalg.norm(moved_2 - goal_2) <= self.arm.success_m),
        )

    def _follow(self, wanted_3: np.ndarray, num_steps: int) -> None:
        for _ in range(num_steps):
            self.env.step(self._control(wanted_3))
            if self.data.warning.number.any() or not np.isfinite(self.data.qpos).all():
                raise SimulatorFailed(f"{self.name}: the physics broke down at {self.data.time:.2f} s")

    def _control(self, wanted_3: np.ndarray) -> np.ndarray:
        """Computed torque: accelerate the joints as the damped inverse of the Jacobian says, critically damped."""
        num, data = self.num_joints, self.data
        jacobian_3V = np.zeros((3, self.model.nv))
        self._mujoco.mj_jacBody(self.model, data, jacobian_3V, None, self.model.body(self.arm.tip).id)
        jacobian_3J = jacobian_3V[:, :num]
        error_3 = wanted_3 - data.body(self.arm.tip).xpos
        damped_33 = jacobian_3J @ jacobian_3J.T + 1e-4 * np.eye(3)
        accelerations_J = self.arm.stiffness * jacobian_3J.T @ np.linalg.solve(damped_33, error_3)
        accelerations_J -= 2 * self.arm.stiffness**0.5 * data.qvel[:num]
        mass_VV = np.zeros((self.model.nv, self.model.nv))
        self._mujoco.mj_fullM(self.model, data, mass_VV)
        torques_J = mass_VV[:num, :num] @ accelerations_J + (data.qfrc_bias - data.qfrc_passive)[:num]
        return np.clip(torques_J / self._gear_J, *self._limits_J2.T)

    def frame(self) -> np.ndarray:
        """The picture of the state that it is in, HWC."""
        return self.env.render()
