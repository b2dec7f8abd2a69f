"""An engine beside the learner without vLLM's start: a copy of the policy of its own, which another thread may use."""

from __future__ import annotations

from collections.abc import Callable

from accelerate import Accelerator

from grpo.config.model import PARTS
from grpo.config.schema import Config
from grpo.learner.launching import compute_dtype
from grpo.policy.model import Policy
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.startup import assembly

OVERRIDES = ("rollout.engine=vllm_process", "rollout.overlap=true")


def engine_beside(config: Config, accelerator: Accelerator, policy: Policy) -> TransformersEngine:
    """The engine in the place of `assembly.build_engine`'s."""
    own = Policy(
        policy.family.load_model(compute_dtype()),
        policy.family,
        temperature=config.rollout.temperature,
        frozen=PARTS,
    )
    return TransformersEngine(policy, own=own)


def use(before: Callable[[], object] | None = None) -> None:
    """Have runs of this process use it, whatever their engine is called; then do what else is due before them."""
    assembly.build_engine = engine_beside
    if before is not None:
        before()
