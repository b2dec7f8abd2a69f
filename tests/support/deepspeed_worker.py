"""One training step of two rows under a shipped DeepSpeed config, in each of the processes of torchrun.

    torchrun --nproc_per_node 2 tests/support/deepspeed_worker.py launch/deepspeed/zero2.json

Fails unless the weights are those of plain fp32 sums of the bf16 gradients of all rows of all processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, nn

LR = 0.01
NUM_ROWS = 2
NUM_PROCESSES = 2


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)).bfloat16()


def row_loss(model: nn.Module, row: int, process: int) -> Tensor:
    """A loss whose size differs between rows and processes, as token counts do."""
    torch.manual_seed(100 * row + process)
    features = torch.randn(3 + row + 2 * process, 16, dtype=torch.bfloat16)
    return model(features).float().square().sum()


def expected_weights() -> list[Tensor]:
    model = make_model()
    master = [p.detach().float() for p in model.parameters()]
    summed = [torch.zeros_like(p) for p in master]
    for process in range(NUM_PROCESSES):
        for row in range(NUM_ROWS):
            grads = torch.autograd.grad(row_loss(model, row, process), list(model.parameters()))
            for total, grad in zip(summed, grads, strict=True):
                total += grad.float() / NUM_PROCESSES
    return [(p - LR * total).bfloat16() for p, total in zip(master, summed, strict=True)]


def trained_weights(config_path: Path) -> list[Tensor]:
    # Not clipped: a clipped gradient would hide that it is scaled.
    config = json.loads(config_path.read_text()) | {"gradient_clipping": 0.0}
    config["zero_allow_untested_optimizer"] = True  # accelerate sets this too
    deepspeed.init_distributed("gloo")
    model = make_model()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=LR), config=config
    )
    for row in range(NUM_ROWS):
        # As accelerate's DeepSpeedEngineWrapper.backward does.
        engine.set_gradient_accumulation_boundary(is_boundary=row == NUM_ROWS - 1)
        engine.backward(row_loss(engine, row, torch.distributed.get_rank()))
    engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return [p.detach().clone() for p in model.parameters()]


def main() -> None:
    for got, expected in zip(trained_weights(Path(sys.argv[1])), expected_weights(), strict=True):
        # One unit in the last place of bf16 where the fp32 sums were added in another order.
        torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-6)
    print("equal")


if __name__ == "__main__":
    main()
