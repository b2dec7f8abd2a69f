"""SPD and L2-SP against plain numpy transcriptions of their formulas, and against torch's AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import Trainer

from grpo.config.learner import LossConfig, OptimConfig, RobustConfig
from grpo.learner.optimizers import SPD, decay_groups, make_optimizer
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
        self.condition = 0.0
        """SPD's sum over all steps."""

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


def accumulated_spd_step(
    adam: Adam, weight: np.ndarray, start: np.ndarray, gradient: np.ndarray, strength: float
) -> tuple[np.ndarray, bool]:
    """Algorithm 2 of the slides: c_t = c_(t-1) - g_t^T (theta_(t-1) - theta_0), and r_t where it is below 0."""
    moved = adam.moved(weight, gradient)
    adam.condition -= np.sum(gradient * (weight - start))
    if adam.condition >= 0:
        return moved, False
    distance, previous = np.linalg.norm(moved - start), np.linalg.norm(weight - start)
    ratio = max(0.0, distance - previous) / distance
    return moved - strength * ratio * (moved - start), bool(ratio > 0)


def l2_sp_step(
    adam: Adam, weight: np.ndarray, start: np.ndarray, gradient: np.ndarray, strength: float
) -> tuple[np.ndarray, bool]:
    """Algorithm 1 of the slides: theta_t <- theta_t - lambda alpha (theta_t - theta_0), after Adam's step."""
    moved = adam.moved(weight, gradient)
    return moved - strength * LR * (moved - start), False


STEPS = {"spd": spd_step, "spd, accumulated": accumulated_spd_step, "l2_sp": l2_sp_step}


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
    name, _, accumulated = method.partition(", ")
    robust = RobustConfig(method=name, strength=strength, spd_accumulates=bool(accumulated))  # pyright: ignore
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
@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize("from_zero", [False, True], ids=["full", "lora"])
def test_equals_the_numpy_transcription(from_zero: bool, method: str, strength: float) -> None:
    transcription = STEPS[method]
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
        if method != "l2_sp":
            assert optimizer.projected_frac == np.mean([projected for _, projected in results])
            projections += sum(projected for _, projected in results)
        for weight, value in zip(weights, expected, strict=True):
            # norms are in fp32: 1e-7 relative, in each of the steps
            np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-4, atol=2e-5)
    assert method == "l2_sp" or 10 < projections < 150


def test_the_sum_of_spd_is_in_its_state_and_differs_from_the_last_summand() -> None:
    whole, resumed, plain = (parameters(torch.float32) for _ in range(3))
    optimizers = [optimizer_for(each, "spd, accumulated", 1.0) for each in (whole, resumed)]
    optimizers.append(optimizer_for(plain, "spd", 1.0))
    for number, step in enumerate(gradients(40)):
        for optimizer, weights in zip(optimizers, (whole, resumed, plain), strict=True):
            stepped(optimizer, weights, step)
        if number == 20:
            starts_then = optimizers[1].starts
            optimizers[1] = optimizer_for(resumed, "spd, accumulated", 1.0)
            optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
            optimizers[1].starts = starts_then
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert not torch.equal(whole[0], plain[0])


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


def test_l2_sp_from_zero_is_weight_decay_that_follows_each_step() -> None:
    zeros = [[nn.Parameter(torch.zeros(shape)) for shape in SHAPES] for _ in range(2)]
    optimizer = optimizer_for(zeros[0], "l2_sp", 0.3)
    adamw = torch.optim.AdamW(zeros[1], lr=LR, betas=BETAS, weight_decay=0.3)
    for step in gradients(20):
        stepped(optimizer, zeros[0], step)
        stepped(adamw, zeros[1], step)
    # AdamW's first decay is of zeros: it is behind by one, LR * 0.3 of the weight.
    for weight, expected in zip(*zeros, strict=True):
        torch.testing.assert_close(weight, (1 - LR * 0.3) * expected)


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
    weights = parameters()
    optimizer = make_optimizer(weights, OptimConfig(lr=LR, betas=BETAS, weight_decay=0.1), from_zero=False)
    assert type(optimizer) is torch.optim.AdamW
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(LR, BETAS)}
    decays = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert [decays[id(each)] for each in weights] == [0.1, 0.0, 0.1, 0.0]  # those of one axis don't


def test_norms_and_biases_do_not_decay_and_all_else_does() -> None:
    """As transformers' Trainer has it, but for norms that it does not know by their names."""
    policy = tiny.policy()
    decaying, others = decay_groups([*policy.parameters()], 0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    name_of = {id(weight): name.removeprefix("model.") for name, weight in policy.named_parameters()}
    found = {name_of[id(weight)] for weight in decaying["params"]}
    theirs = set(Trainer.get_decay_parameter_names(None, policy.model))  # pyright: ignore[reportArgumentType]
    assert found < theirs and len(found) + len(others["params"]) == len(name_of)
    assert {name.split(".")[-2] for name in (theirs & {*name_of.values()}) - found} == {
        "norm1",
        "norm2",
        "ln_q",
    }


def test_adapters_all_decay() -> None:
    policy = tiny.policy(lora=tiny.LORA)
    (group,) = decay_groups([each for each in policy.parameters() if each.requires_grad], 0.1)
    assert group["weight_decay"] == 0.1


def test_the_start_is_taken_again_after_preparation_has_changed_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def prepare(self: Accelerator, policy: nn.Module, optimizer: Any) -> Any:
        with torch.no_grad():
            for weight in policy.parameters():
                weight += 1.0
        return policy, SimpleNamespace(optimizer=optimizer)

    monkeypatch.setattr(Accelerator, "prepare", prepare)
    optim = OptimConfig(robust=RobustConfig(method="spd", strength=1.0))
    learner = make_learner(tiny.policy(seed=1), loss=LossConfig(), optim=optim)
    for weight, start in zip(learner.policy.parameters(), learner.optimizer.optimizer.starts, strict=True):
        assert torch.equal(weight, start)


def test_a_start_of_zeros_is_one_number_however_large_the_weight_is() -> None:
    optimizer = optimizer_for(parameters(), "spd", 1.0, from_zero=True)
    assert [(start.shape, start.untyped_storage().nbytes()) for start in optimizer.starts] == [
        (shape, 8) for shape in SHAPES
    ]


def adapters_of(learner: Learner) -> list[nn.Parameter]:
    return [weight for weight in learner.policy.parameters() if weight.requires_grad]


def as_numpy(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().double().numpy().copy()


@pytest.mark.parametrize(("method", "strength"), [("spd", 1.0), ("l2_sp", 3.0)])
def test_the_learner_pulls_adapters_towards_zero(method: str, strength: float) -> None:
    transcription = STEPS[method]
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
