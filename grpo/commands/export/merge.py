"""LoRA adapters merged into their base in fp32, and compared with the adapters before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from grpo.codec.vocabulary import CODES_FILE, read_vocabulary
from grpo.commands.export.checks import WEIGHTS, check_free, named_base
from grpo.groups import Group
from grpo.policy.adapters import NAME, adapters_off
from grpo.policy.families import ModelFamily, load_family
from grpo.policy.model import Policy
from grpo.rollout import Sampling
from grpo.rollout.sync_proof import logps_of, make_prompt
from grpo.rollout.transformers_engine import TransformersEngine
from grpo.run.final_model import save_final

MAX_GAP = 1e-3
"""The largest difference of a log-prob between adapters and merged weights, both in fp32: their sums are rounded
differently."""

PROOF = Sampling(group_size=4, max_new_tokens=16, temperature=1.0)


class Merged(NamedTuple):
    """What was found when a merged model was compared with its adapters."""

    gap: float
    """The largest difference of a log-prob in fp32."""
    rounding: float
    """The mean difference that the precision of the written weights makes."""
    change: float
    """The mean difference that the adapters make."""


def merge(
    adapter: Path, *, base_path: str | None, out: Path, dtype: torch.dtype, max_shard_size: str = "5GB"
) -> Merged:
    """Write a base with its adapters merged, in a precision; the sums are fp32's.

    base_path: None: the base that the adapters name. Raises ValueError if the adapters don't fit the base, don't change
    its log-probs, or if those of the merged weights are others.
    """
    check_free(out)
    base_path = base_path or named_base(adapter)
    family = load_family(base_path)
    # A run leaves its adapters inside the model that they were trained into, with the codes that it had.
    if (adapter.parent / CODES_FILE).is_file() and read_vocabulary(adapter.parent) != family.vocabulary:
        raise ValueError(
            f"{adapter}: {base_path} has other code tokens than the model that the adapters are of"
        )
    adapted = load_adapted(family, adapter)
    group = _answers(adapted)
    logps_T = logps_of(adapted, group, torch.float32)
    with adapters_off(adapted.model):
        change = float((logps_of(adapted, group, torch.float32) - logps_T).abs().mean())
    if not change:
        raise ValueError(
            f"{adapter}: the adapters change no log-prob of {base_path}: are they of another base?"
        )
    weights = dict(adapted.named_weights())
    gap = float((_logps_with(family, weights, group) - logps_T).abs().max())
    # NaN is beyond it too.
    if not gap <= MAX_GAP:
        raise ValueError(
            f"{adapter}: merged, log-probs are {gap:.2g} from those with the adapters beside the base"
        )
    rounded = {name: weight.to(dtype).float() for name, weight in weights.items()}
    rounding = float((_logps_with(family, rounded, group) - logps_T).abs().mean())
    out.parent.mkdir(parents=True, exist_ok=True)
    save_final(out, adapted, dtype=dtype, max_shard_size=max_shard_size)
    return Merged(gap=gap, rounding=rounding, change=change)


def load_adapted(family: ModelFamily, adapter: Path) -> Policy:
    """Load a base in fp32 with adapters beside its weights; raise ValueError with the names that don't fit."""
    import peft

    model: Any = family.load_model(torch.float32)
    settings = peft.PeftConfig.from_pretrained(str(adapter))
    peft.inject_adapter_in_model(settings, model, adapter_name=NAME)
    stored = {
        name.removeprefix("base_model.model."): weight
        for name, weight in load_file(adapter / WEIGHTS).items()
    }
    found = peft.set_peft_model_state_dict(model, stored, adapter_name=NAME)
    own = {name.replace(f".{NAME}.", ".") for name, _ in model.named_parameters() if ".lora_" in name}
    if wrong := [*found.unexpected_keys, *(own ^ stored.keys())]:
        raise ValueError(f"{adapter}: not adapters of {family.path}: {', '.join(sorted(wrong)[:4])}")
    return Policy(model, family, temperature=1.0).eval()


def _answers(policy: Policy) -> Group:
    (group,) = TransformersEngine(policy).generate([make_prompt(policy.family)], PROOF, [0])
    return group


def _logps_with(family: ModelFamily, weights: dict[str, Tensor], group: Group) -> Tensor:
    """Return the log-probs of answers under weights that a plain model of the family is loaded with."""
    model = family.load_model(torch.float32)
    # A tied head is the embedding, and not among the weights.
    left_out = model.load_state_dict(weights, strict=False)
    assert not left_out.unexpected_keys and set(left_out.missing_keys) <= {"lm_head.weight"}
    return logps_of(Policy(model, family, temperature=1.0).eval(), group, torch.float32)
