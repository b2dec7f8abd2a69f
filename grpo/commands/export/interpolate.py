"""WiSE-FT: weights between a model and what was trained from it (Wortsman et al., CVPR 2022, arXiv 2109.01903)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from grpo.codec.vocabulary import Vocabulary
from grpo.commands.export.checks import check_free, check_share, target_folders
from grpo.policy.families import load_family
from grpo.policy.model import Policy
from grpo.run.final_model import save_final


def sweep(
    base_path: str, tuned_path: str, *, alphas: Sequence[float], out: Path, max_shard_size: str
) -> list[Path]:
    """Write a model for each share of the tuned one: at `out` if it is one, else in folders inside it."""
    folders = target_folders(out, alphas)
    out.parent.mkdir(parents=True, exist_ok=True)
    for alpha, folder in zip(alphas, folders, strict=True):
        folder.parent.mkdir(exist_ok=True)
        interpolate(base_path, tuned_path, alpha=alpha, out=folder, max_shard_size=max_shard_size)
    return folders


def interpolate(
    base_path: str, tuned_path: str, *, alpha: float, out: Path, max_shard_size: str = "5GB"
) -> None:
    """Write `alpha * tuned + (1 - alpha) * base`, computed in fp32, in the tuned model's precision.

    ValueError if the two are not of one shape or have other code tokens, or if there is something at `out`.
    """
    check_share(alpha)
    check_free(out)
    base, tuned = load_family(base_path), load_family(tuned_path)
    # Rows of codes fit into the padding of many embeddings, whose shape then says nothing.
    if base.vocabulary != tuned.vocabulary:
        theirs = f"{base_path} has {_codes(base.vocabulary)}, {tuned_path} has {_codes(tuned.vocabulary)}"
        raise ValueError(f"the two models differ in their code tokens: {theirs}")
    dtype = tuned.config.dtype or torch.float32
    model = tuned.load_model(dtype)
    mix_into(model, base.load_model(base.config.dtype or torch.float32), alpha=alpha)
    save_final(out, Policy(model, tuned, temperature=1.0), dtype=dtype, max_shard_size=max_shard_size)


def _codes(vocabulary: Vocabulary | None) -> str:
    """Return the codecs of a vocabulary, each with the start of its digest."""
    return ", ".join(f"{c.name} {c.digest[:8]}" for c in vocabulary.codecs) if vocabulary else "none"


@torch.no_grad()
def mix_into(tuned: nn.Module, base: nn.Module, *, alpha: float) -> None:
    """Turn `tuned` into `alpha * tuned + (1 - alpha) * base`. A tied weight is listed, and mixed, once."""
    start = dict(base.named_parameters())
    end = dict(tuned.named_parameters())
    for name in sorted(start.keys() | end.keys()):
        if name not in start or name not in end or start[name].shape != end[name].shape:
            raise ValueError(f"not the same architecture: the two models differ in {name}")
    for name, weight in end.items():
        weight.copy_(start[name].float().lerp(weight.float(), alpha))
