"""SPD and L2-SP against plain numpy transcriptions of their formulas, and against torch's AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grpo.config.learner import LossConfig, OptimConfig, RobustConfig
from grpo.learner.optimizers import SPD, make_optimizer
from grpo.learner.update import Learner
from tests.support import tiny
from tests.support.learners import counts_of, make_learner, packed, text_groups

BETAS, EPS, LR = (0.9, 0.99), 1e-8, 0.02
SHAPES = [(7, 5), (11,), (3, 4, 2), (1,)]


class Adam:
    """Adam's step for one tensor, after Kingma and Ba, algorithm 1."""

    def __init__(self) -> None:
        self.first = self.second = 0.0
        self.count = 0

    def moved(self, weight: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        self.count += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        first, second = self.first / (1 - BETAS[0] ** self.count), self.second / (1 - BETAS[1] ** self.count)
        return weight - LR * first / (np.sqrt(second) + EPS)


def spd_step(
    adam: Adam, weight: np.ndarray, start: np.ndarray, gradient: np.ndarray, strength: float
) -> tuple[np.ndarray, bool]:
    """adamSPD.py of the published code: one tensor's next value, and whether it was projected."""
    moved = adam.moved(weight, gradient)
    condition = -np.sum(gradient * (weight - start))
    if condition >= 0:
        return moved, False
    distance, previous = np.linalg.norm(moved - start), np.linalg.norm(weight - start)
    ratio = np.clip((distance - previous) / distance, 0, 1)
    return moved - strength * ratio * (moved - start), bool(ratio > 0)


def l2_sp_step(
    adam: Adam, weight: np.ndarray, start: np.ndarray, gradient: np.ndarray, strength: float
) -> tuple[np.ndarray, bool]:
    return adam.moved(weight - strength * LR * (weight - start), gradient), False


def origins(from_zero: bool) -> list[np.ndarray]:
    """What weights are pulled back to: where they began, or with adapters zero."""
    return [start * (not from_zero) for start in starts()]


def starts(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in SHAPES]


def gradients(num_steps: int) -> list[list[np.ndarray]]:
    """A pull that swings about every few steps, so that momentum carries tensors on against it."""
    rng = np.random.default_rng(1)
    pulls = [rng.normal(size=shape) for shape in SHAPES]
    return [
        [np.sin(0.7 * step + i) * pull + 0.2 * rng.normal(size=pull.shape) for i, pull in enumerate(pulls)]
        for step in range(num_steps)
    ]


def optimizer_for(
    weights: Sequence[nn.Parameter], method: str, strength: float, *, from_zero: bool = False, **options: Any
) -> Any:
    robust = RobustConfig(method=method, strength=strength)  # pyright: ignore[reportArgumentType]
    return make_optimizer(
        weights, OptimConfig(lr=LR, betas=BETAS, robust=robust, **options), from_zero=from_zero
    )


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(start, dtype=dtype)) for start in starts()]


def stepped(
    optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], step: list[np.ndarray]
) -> None:
    for weight, gradient in zip(weights, step, strict=True):
        weight.grad = torch.tensor(gradient, dtype=weight.dtype)
    optimizer.step()


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.3])
@pytest.mark.parametrize("method", ["spd", "l2_sp"])
@pytest.mark.parametrize("from_zero", [False, True], ids=["full", "lora"])
def test_equals_the_numpy_transcription(from_zero: bool, method: str, strength: float) -> None:
    transcription = {"spd": spd_step, "l2_sp": l2_sp_step}[method]
    weights = parameters()
    optimizer = optimizer_for(weights, method, strength, from_zero=from_zero)
    expected, adams, projections = starts(), [Adam() for _ in SHAPES], 0
    for step in gradients(40):
        stepped(optimizer, weights, step)
        results = [
            transcription(*each, strength)
            for each in zip(adams, expected, origins(from_zero), step, strict=True)
        ]  # fmt: skip
        expected = [value for value, _ in results]
        if method == "spd":
            assert optimizer.projected_frac == np.mean([projected for _, projected in results])
            projections += sum(projected for _, projected in results)
        for weight, value in zip(weights, expected, strict=True):
            # norms are in fp32: 1e-7 relative
            np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-5, atol=1e-6)
    assert method == "l2_sp" or 10 < projections < 100


@pytest.mark.parametrize("method", ["spd", "l2_sp"])
def test_strength_zero_is_torchs_adamw(method: str) -> None:
    weights, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer = optimizer_for(weights, method, 0.0)
    adamw = torch.optim.AdamW(plain, lr=LR, betas=BETAS, weight_decay=0.0)
    for step in gradients(20):
        stepped(optimizer, weights, step)
        stepped(adamw, plain, step)
    assert type(optimizer) is not torch.optim.AdamW
    for weight, expected in zip(weights, plain, strict=True):
        assert torch.equal(weight, expected)


def test_l2_sp_from_zero_is_weight_decay() -> None:
    zeros = [[nn.Parameter(torch.zeros(shape)) for shape in SHAPES] for _ in range(2)]
    optimizer = optimizer_for(zeros[0], "l2_sp", 0.3)
    adamw = torch.optim.AdamW(zeros[1], lr=LR, betas=BETAS, weight_decay=0.3)
    for step in gradients(20):
        stepped(optimizer, zeros[0], step)
        stepped(adamw, zeros[1], step)
    for weight, expected in zip(*zeros, strict=True):
        torch.testing.assert_close(weight, expected)


def test_strength_one_keeps_a_projected_tensor_at_its_distance() -> None:
    start, weight = torch.tensor([1.0, 2.0]), nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optimizer_for([weight], "spd", 1.0)
    distances, projected = [0.0], []
    for gradient in [[-1.0, 1.0], [-1.0, 1.0], [0.1, -0.1]]:  # the last one points back; momentum goes on
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        distances.append(float((weight.detach() - start).norm()))
        projected.append(optimizer.projected_frac)
    assert projected == [0.0, 0.0, 1.0]
    assert distances[0] < distances[1] < distances[2] == pytest.approx(distances[3])


def test_a_tensor_without_gradient_is_left_alone_and_not_counted() -> None:
    weights = parameters(torch.float32)
    optimizer = optimizer_for(weights, "spd", 1.0)
    assert isinstance(optimizer, SPD)
    for step in gradients(30):
        stepped(optimizer, weights[:2], step[:2])
        assert optimizer.projected_frac in (0.0, 0.5, 1.0)
    for weight, start in zip(weights[2:], starts()[2:], strict=True):
        assert torch.equal(weight, torch.tensor(start, dtype=torch.float32))


def test_without_a_method_it_is_adamw_with_its_weight_decay() -> None:
    optimizer = make_optimizer(parameters(), OptimConfig(lr=LR, betas=BETAS, weight_decay=0.1))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def adapters_of(learner: Learner) -> list[nn.Parameter]:
    return [weight for weight in learner.policy.parameters() if weight.requires_grad]


def as_numpy(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().double().numpy().copy()


@pytest.mark.parametrize(("method", "strength"), [("spd", 1.0), ("l2_sp", 3.0)])
def test_the_learner_pulls_adapters_towards_zero(method: str, strength: float) -> None:
    transcription = {"spd": spd_step, "l2_sp": l2_sp_step}[method]
    robust = RobustConfig(method=method, strength=strength)  # pyright: ignore[reportArgumentType]
    optim = OptimConfig(lr=LR, betas=BETAS, schedule="constant", max_grad_norm=1e9, robust=robust)
    policy, groups = tiny.policy(seed=1, lora=tiny.LORA), text_groups()
    learner = make_learner(policy, loss=LossConfig(), optim=optim)
    weights = adapters_of(learner)
    assert all(not start.any() for start in learner.optimizer.optimizer.starts)
    expected, adams, projections = [as_numpy(weight) for weight in weights], [Adam() for _ in weights], 0
    for step in range(1, 5):
        sign = (-1) ** step  # swings about, against the momentum
        rows = [replace(row, advantages_T=sign * row.advantages_T) for row in packed(groups)]
        learner.forward_backward(learner.prepare(rows, counts_of(groups)))
        gradients = [as_numpy(weight.grad) for weight in weights]
        learner.optimizer_step()
        origins = [np.zeros(weight.shape) for weight in weights]
        each = zip(adams, expected, origins, gradients, strict=True)
        results = [transcription(*one, strength) for one in each]
        expected, projected = [list(column) for column in zip(*results, strict=True)]
        projections += sum(projected)
        for weight, value in zip(weights, expected, strict=True):
            np.testing.assert_allclose(as_numpy(weight), value, rtol=1e-4, atol=1e-6)
    assert method == "l2_sp" or 0 < projections < 4 * len(weights)
