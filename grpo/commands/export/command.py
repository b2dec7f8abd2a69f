"""A trained model as another folder that `from_pretrained` and vLLM load, and a card that describes it.

    egogrpo export merge runs/x/final/adapter --out DIR
    egogrpo export interpolate BASE TUNED --alpha 0.25 0.5 0.75 --out DIR
    egogrpo export card runs/x/final --results results.json

WiSE-FT (interpolate): weights between the model that training started from and what came out of it often keep most of
the gain and lose less elsewhere. With several shares, evaluate each folder on a benchmark like the training's and on
another, and `egogrpo export plot` shows what is gained against what is lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.commands.arguments import Parser
from grpo.commands.export.checks import check_free, named_base, target_folders
from grpo.policy.model_folder import find_model_folder
from grpo.run.progress import under_way

DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str]) -> int:
    """Write what the command line asks for; the exit status."""
    parser = Parser(
        prog="egogrpo export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    _add_merge(commands.add_parser("merge", help="LoRA adapters merged into their base, and checked"))
    _add_interpolate(
        commands.add_parser(
            "interpolate", help="weights between a model and what was trained from it (WiSE-FT)"
        )
    )
    _add_plot(
        commands.add_parser("plot", help="what mixing weights gain on one benchmark and lose on another")
    )
    _add_card(commands.add_parser("card", help="a model card from a run's manifest and evaluations' results"))
    arguments = parser.parse_args(argv)
    try:
        with under_way("exporting"):
            done = arguments.run_command(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}".splitlines()[0], file=sys.stderr)
        return 1
    print(done)
    return 0


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="a folder of peft, as a run's final/adapter"
    )
    parser.add_argument("--base", help="the model they are of; by default the one that they name")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="the precision of the merged weights"
    )
    _add_out(parser)
    parser.set_defaults(run_command=_merge)


def _add_interpolate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the model that training started from")
    parser.add_argument("tuned", metavar="TUNED", help="a run's final/")
    parser.add_argument(
        "--alpha", type=float, nargs="+", required=True, help="shares of TUNED: 0 is BASE, 1 is TUNED"
    )
    _add_out(parser)
    parser.set_defaults(run_command=_interpolate)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--max-shard-size", default="5GB", help="the size of a file of weights")


def _add_plot(parser: argparse.ArgumentParser) -> None:
    results = "results.json of evaluations of the folders alpha_*"
    parser.add_argument(
        "--inside", type=Path, nargs="+", required=True, help=f"{results}: like the training's"
    )
    parser.add_argument(
        "--outside", type=Path, nargs="+", required=True, help=f"{results}: another benchmark"
    )
    parser.add_argument("--out", type=Path, required=True, help="a picture, whose ending names its format")
    parser.set_defaults(run_command=_plot)


def _add_card(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="MODEL", help="a model folder, as a run's final/")
    parser.add_argument("--run", type=Path, help="the run's folder; by default the one around final/")
    parser.add_argument(
        "--results", type=Path, nargs="*", default=[], help="results.json of egogrpo evaluate"
    )
    parser.add_argument("--license", help="the licence's name on the hub; none: the card says nothing of it")
    parser.add_argument(
        "--push", metavar="REPO", help="upload the folder with its card to this hub repository"
    )
    parser.add_argument("--public", action="store_true", help="a repository that --push makes is public")
    parser.add_argument("--overwrite", action="store_true", help="replace a card that was edited, too")
    parser.set_defaults(run_command=_card)


def _merge(arguments: argparse.Namespace) -> str:
    find_model_folder(arguments.base or named_base(arguments.adapter))
    check_free(arguments.out)
    import torch

    from grpo.commands.export.merge import merge

    found = merge(
        arguments.adapter,
        base_path=arguments.base,
        out=arguments.out,
        dtype=getattr(torch, arguments.dtype),
        max_shard_size=arguments.max_shard_size,
    )
    return (
        f"{arguments.out}: merged in fp32; log-probs as with the adapters to {found.gap:.2g}, to {found.rounding:.2g} "
        f"on average in {arguments.dtype}; the adapters change them by {found.change:.2g}"
    )


def _interpolate(arguments: argparse.Namespace) -> str:
    for folder in (arguments.base, arguments.tuned):
        find_model_folder(folder)
    target_folders(arguments.out, arguments.alpha)
    from grpo.commands.export.interpolate import sweep

    folders = sweep(
        arguments.base,
        arguments.tuned,
        alphas=arguments.alpha,
        out=arguments.out,
        max_shard_size=arguments.max_shard_size,
    )
    return "\n".join(
        f"{folder}: {alpha:g} {arguments.tuned} + {1 - alpha:g} {arguments.base}"
        for folder, alpha in zip(folders, arguments.alpha, strict=True)
    )


def _plot(arguments: argparse.Namespace) -> str:
    from grpo.commands.export.plot import plot

    return plot(arguments.inside, arguments.outside, arguments.out)


def _card(arguments: argparse.Namespace) -> str:
    from grpo.commands.export.card import push, write_card

    card = write_card(
        arguments.folder,
        run=arguments.run,
        results=arguments.results,
        license_name=arguments.license,
        overwrite=arguments.overwrite,
    )
    if arguments.push is None:
        return str(card)
    return f"{card}\n{push(arguments.folder, arguments.push, private=not arguments.public)}"
