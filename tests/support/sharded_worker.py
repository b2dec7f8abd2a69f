"""One update in each of the processes of torchrun, launched as DDP, DeepSpeed or FSDP2 by the environment.

    torchrun --nproc_per_node 2 -m tests.support.sharded_worker CASE OUT.pt

The first process stores the figures of the update and the weights after it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import grpo.policy.model
from grpo.config.learner import LossConfig, OptimConfig, RobustConfig
from grpo.config.model import LoraConfig, LoraTargets
from grpo.learner import launching, optimizers
from grpo.learner.launching import compute_dtype, make_accelerator, shards_weights
from grpo.learner.update import Learner
from grpo.policy.sharding import is_zero3
from grpo.policy.weights import flat, weight_buckets
from grpo.rollout.sync_proof import logps_of
from grpo.run.metrics import Metrics
from tests.support import tiny
from tests.support.launched import allow_fsdp_on_cpu
from tests.support.learners import counts_of, moved_policy, overflowing, packed

OPTIM = OptimConfig(lr=1e-3, max_grad_norm=0.01)
SPD = RobustConfig(method="spd", strength=1.0)
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen tower": {"frozen": ("vision", "merger")},
    "lora": {"lora": LoraConfig(r=4, alpha=8, targets=LoraTargets(vision=["attn.qkv"]))},
    "spd": {},
    "not finite": {},
    "checkpointed": {"gradient_checkpointing": True},
    "full of qwen3_vl": {},
    "in bf16": {"gradient_checkpointing": True, "fp32_head": True},
}
ONE_IDLE = ("full", "lora")
LOSS = LossConfig(beta=0.04, top_entropy_quantile=0.5)


def family_of(case: str) -> str:
    """The family that a case names, or the shipped policy's."""
    return case.partition(" of ")[2] or "qwen2_5_vl"


def update(case: str, *, of_process: int | None) -> dict[str, Any]:
    """The update of `update_of`, in the precision of the case."""
    with computing_as_on_gpu() if case == "in bf16" else nullcontext():
        return update_of(case, of_process=of_process)


def update_of(case: str, *, of_process: int | None) -> dict[str, Any]:
    """An update with the rows of one of two processes, or with all rows.

    One has all clips, the other the group without a clip, and their rows have different numbers of head chunks. In the
    cases of ONE_IDLE another update follows in which the second process has no rows at all.
    """
    accelerator, groups = make_accelerator(), tiny.ragged_groups()
    seeing = [scored for scored in groups if scored.group.prompt.clip is not None]
    blind = [scored for scored in groups if scored.group.prompt.clip is None]
    own = {None: groups, 0: seeing, 1: blind}[of_process]
    policy = tiny.policy(seed=1, sharded=shards_weights(accelerator), **CASES[case])
    optim = replace(OPTIM, robust=SPD) if case == "spd" else OPTIM
    learner = Learner(
        policy, accelerator, loss=LOSS, optim=optim, num_steps=10, load_reference=lambda _: moved_policy()
    )
    kept_whole = watch_whole_gradients(learner)
    # A run begins with the proof of its first sync, a pass without a gradient before all others.
    proofs = [logps_of(policy, groups[0].group, compute_dtype())]
    rows = packed(own, tokens_per_row=600)
    if case == "spd":  # a step away from the start, and one back, against the momentum
        learner.update(rows, counts_of(groups), 1)
        rows = [replace(row, advantages_T=-row.advantages_T) for row in rows]
    if case == "not finite" and of_process == 1:
        rows = [replace(row, advantages_T=row.advantages_T * torch.nan) for row in rows]
    results = [learner.update(rows, counts_of(groups), 1)]
    if case == "in bf16":
        moved = {name: weight.clone() for name, weight in policy.named_weights()}
        spoilt = [replace(row, advantages_T=row.advantages_T * torch.nan) for row in rows]
        skipped = learner.update(rows if of_process == 0 else spoilt, counts_of(groups), 1).num_skipped
        assert skipped == 1
        assert all(torch.equal(weight, moved[name]) for name, weight in policy.named_weights())
    if case == "not finite":  # of the second process: first its loss, then its gradient
        if of_process == 1:
            overflowing(policy)
        results.append(learner.update(packed(own, tokens_per_row=600), counts_of(groups), 1))
    if case in ONE_IDLE:
        rows = [] if of_process == 1 else packed(groups, tokens_per_row=600)
        learner.update(rows, counts_of(groups), 2)
    proofs.append(logps_of(policy, groups[0].group, compute_dtype()))
    return {
        "proofs": proofs,
        "figures": sum((result.metrics for result in results), Metrics()).reduced(gather_object),
        # In several buckets.
        "weights": {
            name: weight.clone() for name, weight in flat(weight_buckets(policy.model, max_bytes=100_000))
        },
        "sharded": policy.sharded,
        "in parts": any(is_zero3(weight) or isinstance(weight, DTensor) for weight in policy.parameters()),
        "skipped": [result.num_skipped for result in results],
        "rows": len(rows),
        "kept whole": sum(kept_whole),
        "timeout_s": timeout_s(),
    }


@contextmanager
def computing_as_on_gpu() -> Iterator[None]:
    """Let passes run in bf16 and AdamW be the fused one, as on a GPU."""
    with patch.object(launching, "on_gpu", lambda: True), patch.object(optimizers, "on_gpu", lambda: True):
        yield


def watch_whole_gradients(learner: Learner) -> list[int]:
    """Return a list that gets, after each row, how many whole gradients FSDP2 keeps beside the shards."""
    found: list[int] = []
    row_pass = learner._row_pass

    def watched(*given: Any) -> Any:
        result = row_pass(*given)
        modules = [module for module in learner.wrapped.modules() if isinstance(module, FSDPModule)]
        groups = [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]
        weights = [weight for group in groups for weight in group.fsdp_params]
        # In the precision of the pass they are the weights' own, else they are accumulated beside them.
        own = [weight._unsharded_param.grad for weight in weights if hasattr(weight, "_unsharded_param")]
        beside = [weight.unsharded_accumulated_grad for weight in weights]
        found.append(sum(each is not None for each in own + beside))
        return result

    learner._row_pass = watched  # pyright: ignore[reportAttributeAccessIssue]
    return found


def timeout_s() -> float | None:
    """Return how long a process of the run waits for the others; None in a single process."""
    if not torch.distributed.is_initialized():
        return None
    backend = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    return backend.options._timeout.total_seconds()


def main(case: str, out: str) -> None:
    allow_fsdp_on_cpu()
    grpo.policy.model.HEAD_CHUNK_TOKENS = 16
    with tiny.of_family(family_of(case)):
        # A model that is made later is split among the processes.
        tiny.family()
        result = update(case, of_process=int(os.environ["RANK"]))
    if torch.distributed.get_rank() == 0:
        torch.save(result, out)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
