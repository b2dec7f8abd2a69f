"""A trained model as another folder that `from_pretrained` and vLLM load.

    egogrpo export interpolate BASE TUNED --alpha 0.5 --out DIR

WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903): weights between the model that training started from and what
came out of it often keep most of the gain and lose less elsewhere. Try a few alphas on held-out questions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from grpo.policy.families import load_family
from grpo.policy.model import Policy
from grpo.run.final_model import save_final


def main(argv: Sequence[str]) -> int:
    """Write the folder that the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="egogrpo export", description="Write a model folder.")
    command = parser.add_subparsers(required=True).add_parser(
        "interpolate", help="weights between a model and what was trained from it (WiSE-FT)"
    )
    command.add_argument("base", metavar="BASE", help="the model that training started from")
    command.add_argument("tuned", metavar="TUNED", help="a run's final/")
    command.add_argument("--alpha", type=float, required=True, help="share of TUNED: 0 is BASE, 1 is TUNED")
    command.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    arguments = parser.parse_args(argv)
    try:
        interpolate(arguments.base, arguments.tuned, alpha=arguments.alpha, out=arguments.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(
        f"{arguments.out}: {arguments.alpha:g} {arguments.tuned} + {1 - arguments.alpha:g} {arguments.base}"
    )
    return 0


def interpolate(base_path: str, tuned_path: str, *, alpha: float, out: Path) -> None:
    """Write `alpha * tuned + (1 - alpha) * base`, computed in fp32, in the tuned model's precision.

    ValueError if the two are not of one shape, or if there is something at `out`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"--alpha must lie in [0, 1], not {alpha:g}")
    if out.exists():
        raise ValueError(f"--out: there is something at {out} already")
    base, tuned = load_family(base_path), load_family(tuned_path)
    dtype = tuned.config.dtype or torch.float32
    model = tuned.load_model(dtype)
    mix_into(model, base.load_model(base.config.dtype or torch.float32), alpha=alpha)
    save_final(out, Policy(model, tuned, temperature=1.0), dtype=dtype)


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
